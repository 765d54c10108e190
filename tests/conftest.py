"""Shared by all tests: one thread, a seed from the test's own name, and no network."""

from __future__ import annotations

import os
import zlib

import pytest

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.pop("LOSSACC", None)


@pytest.fixture(autouse=True)
def _seed(request: pytest.FixtureRequest) -> None:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))
