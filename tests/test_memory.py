"""The memory of training rows names what was learnt against the model's own answer.

Proved here: right, forgotten and learnt rows over a made-up sequence, by hand; the summary's numbers and its order of
suspects; the margin from NLL and from logits; wrong labels planted in a real training are found, and rows labelled
right are not; several rows an item, an item never seen and a state of another size give nothing wrong.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_lossacc import memory
from lightning_lossacc.memory import Memory
from lightning_lossacc.probe import CORRECT, MARGIN_NLL, NLL, PREDICTED, ROWS, TARGET, Reference


def evaluation(right: list[int], nll: list[float] | None = None, target: int = 0, predicted: int = 1) -> Tensor:
    """Items of one row each; of the wrong ones `predicted` is what the model says."""
    items = torch.full((len(right), MARGIN_NLL + 1), math.nan, dtype=torch.float64)
    items[:, ROWS] = 1
    items[:, CORRECT] = torch.tensor(right, dtype=torch.float64)
    items[:, NLL] = torch.tensor(nll or [0.1 if it else 2.0 for it in right], dtype=torch.float64)
    items[:, TARGET] = target
    items[:, PREDICTED] = torch.where(items[:, CORRECT] > 0, target, predicted).double()
    return items


def after(*evaluations: Tensor) -> Memory:
    made = Memory(len(evaluations[0]))
    for items in evaluations:
        made.update(items)
    return made


def test_rows_are_followed_over_evaluations() -> None:
    made = after(*(evaluation(right) for right in ([0, 1, 0, 1], [1, 1, 0, 0], [1, 0, 0, 1], [1, 1, 0, 1])))
    assert made.evaluations == 4
    assert made.right.tolist() == [True, True, False, True]
    assert made.ever_right.tolist() == [True, True, False, True]
    assert made.learnt.tolist() == [1, 3, -1, 2]
    assert made.forgotten.tolist() == [0, 1, 0, 1]


def test_the_margin_is_that_of_the_logits_or_a_bound_of_it() -> None:
    logits = torch.tensor([[3.0, 1.0, 0.5], [0.2, 2.0, -1.0], [200.0, 0.0, 0.0]], dtype=torch.float64)
    items = evaluation([1, 0, 1], nll=(logits.logsumexp(1) - logits[:, 0]).tolist())
    bound = after(items).margin.tolist()
    items[:, MARGIN_NLL] = torch.log1p(torch.exp(-torch.tensor([2.0, -1.8, 200.0], dtype=torch.float64)))
    exact = after(items).margin.tolist()
    assert exact[:2] == pytest.approx([2.0, -1.8]) and exact[2] == 64
    assert all(low <= high for low, high in zip(bound, exact, strict=True)) and bound[0] < 2.0
    assert bound[0] == pytest.approx(3 - math.log(math.exp(1) + math.exp(0.5)))


def test_the_summary_counts_what_was_learnt_since_the_reference() -> None:
    """Four classes, so that an NLL above ln 4 + 1 = 2.39 contradicts the label with confidence."""
    before = evaluation([1, 0, 0, 0, 1, 0], nll=[0.1, 2.0, 3.0, 4.0, 0.2, 5.0], target=2, predicted=3)
    now = evaluation([1, 1, 1, 1, 0, 0], nll=[0.1, 0.1, 0.1, 0.2, 3.0, 6.0], target=2)
    made = after(before, now)
    without = memory.summary(made, now, None, list(range(10, 70, 10)), 4)
    assert without == {"items": 6, "evaluations": 2, "right": 4, "never_right": 1, "forgetting_events_mean": 1 / 5}
    found = memory.summary(made, now, Reference(7, 80, 1.0, 1.0, [0.0, 1.0], before), list(range(10, 70, 10)), 4)
    assert found["reference_epoch"] == 7
    assert found["learnt_since_reference"] == 3 and found["memorised"] == 2
    assert found["memorised_share"] == pytest.approx(2 / 6)
    # The row that is still wrong is suspect too, and has the smallest mean margin.
    assert [suspect["index"] for suspect in found["suspects"]] == [60, 40, 30]
    assert found["suspects"][0] | {"margin_mean": 0.0} == {
        "index": 60,
        "target": 2,
        "predicted": 3,
        "nll_reference": 5.0,
        "margin_mean": 0.0,
    }


def test_items_of_several_rows_and_unseen_ones() -> None:
    items = evaluation([1, 0])
    items[0, ROWS] = 2
    assert memory.summary(after(items), items, None, [0, 1], 4) == {}
    items = evaluation([1, 0, 0])
    items[2] = 0
    assert memory.summary(after(items), items, None, [0, 1, 2], 4)["items"] == 2
    assert memory.summary(after(0 * items), 0 * items, None, [0, 1, 2], 4) == {}


def test_a_state_comes_back_and_one_of_another_size_does_not(tmp_path: Any) -> None:
    made = after(evaluation([0, 1, 0]), evaluation([1, 0, 0]))
    torch.save(made.state(), tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    back = Memory(3, saved)
    for other in (made, back):
        other.update(evaluation([1, 1, 1]))
    assert back.evaluations == 3 and back.forgotten.tolist() == [0, 1, 0]
    for name in ("right", "ever_right", "learnt", "forgotten", "margin"):
        assert torch.equal(getattr(made, name), getattr(back, name)), name
    assert Memory(4, saved).evaluations == 0
    assert sum(value.element_size() for value in made.state().values() if isinstance(value, Tensor)) == 16
