"""Runs on a CUDA device, or by Triton's interpreter on a CPU: `TRITON_INTERPRET=1 pytest tests/kernels_triton`."""

from __future__ import annotations

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
WHY_NOT = "needs a CUDA device, or TRITON_INTERPRET=1 (`make test` runs them so)"
# The interpreter computes with numpy, whose warnings on NaN and infinity are the point of some inputs.
NUMPY_WARNINGS = "ignore::RuntimeWarning"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    able = INTERPRETED or torch.cuda.is_available()
    for item in items:
        if item.path.parent.name != "kernels_triton":
            continue
        if not able:
            item.add_marker(pytest.mark.skip(reason=WHY_NOT))
        item.add_marker(pytest.mark.filterwarnings(NUMPY_WARNINGS))


@pytest.fixture
def device() -> str:
    """Where tensors of these tests are."""
    return "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
