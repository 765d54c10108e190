"""With the fused loss the monitor reads nothing twice, and its records are those of a second read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import seed_everything
from torch import Tensor

from lightning_lossacc import buffer, kernels
from lightning_lossacc.loss import cross_entropy
from lightning_lossacc.stages import StageState
from tests.modules import QUIET, Plain, loader, monitor, trainer

pytestmark = QUIET


class Fused(Plain):
    """Whole batches in training; sequences of two tokens that are flattened into rows, if asked for."""

    tokens = False

    def loss(self, stage: str, batch: Any) -> Tensor:
        logits, target = self.net(batch[0]), batch[1]
        if self.tokens:
            logits, target = logits.repeat_interleave(2, 0), target.repeat_interleave(2)
        return cross_entropy(logits, target)


class Tokens(Fused):
    tokens = True


@pytest.mark.parametrize("make", [Fused, Tokens])
def test_records_are_those_of_a_second_read(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key of the training records; the first batch, whose place is unknown, and paired validation are updates."""
    monkeypatch.setattr(buffer, "BUFFER_BYTES", 0)  # as on a GPU: no batch waits
    original, found = kernels.row_statistics, {}
    for reserved in (True, False):
        updates: list[int] = []

        def count(logits: Tensor, *rest: Any) -> None:
            updates.append(len(logits))
            original(logits, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(kernels, "row_statistics", count)
            if not reserved:
                patch.setattr(StageState, "reserve", lambda *_: None)
            seed_everything(3, verbose=False)
            watch = monitor()
            trainer(tmp_path, watch).fit(make(drop=0.0), loader(41, shuffle=True), loader(17, seed=2))
            found[reserved] = watch.history, len(updates)
    (ours, few), (theirs, many) = found[True], found[False]
    # 6 training batches an epoch, of which the very first is held, and 3 of validation.
    assert (few, many) == (1 + 2 * 3, 2 * (6 + 3))
    for stage in ("train", "val"):
        for one, other in zip(ours.series(stage), theirs.series(stage), strict=True):
            assert one.num_rows == other.num_rows and one.num_items == other.num_items
            assert one.values.keys() == other.values.keys()
            for key, value in one.values.items():
                assert value == pytest.approx(other.values[key], rel=1e-9, nan_ok=True), key
