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


@pytest.fixture(params=["compiled", "plain"])
def on_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What computes on a CPU: code that is compiled there, or plain PyTorch, as if there were no compiler."""
    from lightning_lossacc.kernels import compiled, compiled_loss

    if request.param == "plain":
        for room in (compiled, compiled_loss):
            monkeypatch.setattr(room, "obstacle", lambda *_: "the test leaves it out")
    return request.param
