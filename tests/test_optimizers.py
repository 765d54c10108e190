"""Trainable parameters that no optimizer has are named when training begins, and nothing else is said of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_lossacc.training import left_out
from tests.modules import QUIET, Plain, loader, monitor, trainer

pytestmark = QUIET


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


class HeadOnly(Plain):
    """Hands its last layer alone to the optimizer."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net[-1].parameters(), lr=0.1)


def test_what_is_left_out_is_named_with_its_share() -> None:
    module = network()
    text = left_out(module, [torch.optim.SGD(module[1].parameters(), lr=0.1)])
    assert text is not None and "61.5 % of the trainable parameters (0.weight and 1 more)" in text
    both = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in module]
    assert left_out(module, both) is None


@pytest.mark.parametrize("kind", ["frozen", "averaged", "no optimizer"])
def test_what_is_meant_gets_no_word(kind: str) -> None:
    module = network()
    optimizers = [torch.optim.SGD(module[1].parameters(), lr=0.1)]
    if kind == "frozen":
        module[0].requires_grad_(False)
    elif kind == "averaged":
        module, model = nn.ModuleList([module, AveragedModel(module)]), module
        optimizers = [torch.optim.SGD(model.parameters(), lr=0.1)]
    else:
        optimizers = []
    assert left_out(module, optimizers) is None


@pytest.mark.parametrize(("module", "told"), [(HeadOnly, 1), (Plain, 0)])
def test_it_is_said_once_a_fit(
    module: type[Plain], told: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(tmp_path, monitor(verbose=True)).fit(module(), loader(40), loader(40))
    shown = capsys.readouterr()
    assert (shown.out + shown.err).count("are in no optimizer, which leaves them as they are") == told
