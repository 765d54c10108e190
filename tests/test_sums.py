"""`Layout`: the parts cover both vectors without overlap, fingerprints tell configurations apart, bad arguments are
named.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch

from lightning_lossacc.margin_bins import margin_edges
from lightning_lossacc.sums import EVALUATION_TEMPERATURES, Layout

LAYOUTS: list[dict[str, Any]] = [
    {"num_classes": 3},
    {"num_classes": 4},
    {"num_classes": 2},
    {"num_classes": 2, "task": "binary"},
    {"num_classes": 3, "num_bins": 10},
    {"num_classes": 3, "top_k": 1},
    {"num_classes": 3, "temperatures": ()},
    {"num_classes": 3, "per_class": False},
    {"num_classes": 3, "ignore_index": None},
    {"num_classes": 3, "ignore_index": 255},
    {"num_classes": 3, "input_kind": "probabilities"},
]


@pytest.mark.parametrize("arguments", LAYOUTS)
def test_parts_cover_both_vectors_without_overlap(arguments: dict[str, Any]) -> None:
    layout = Layout(**arguments)
    counts, sums = layout.zeros()
    for part in layout.parts(counts, sums).values():
        part += 1
    assert torch.equal(counts, torch.ones_like(counts)) and torch.equal(sums, torch.ones_like(sums))
    assert counts.dtype == torch.int64 and sums.dtype == torch.float64


def test_fingerprints_differ_and_repeat() -> None:
    prints = [Layout(**arguments).fingerprint for arguments in LAYOUTS]
    assert all(first != second for first, second in combinations(prints, 2))
    assert prints == [Layout(**arguments).fingerprint for arguments in LAYOUTS]
    # top-5 and top-3 of three classes are the same question.
    assert Layout(3, top_k=5).fingerprint == Layout(3, top_k=3).fingerprint


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_classes": 1}, "`num_classes` to be an integer of at least 2, but got 1"),
        ({"num_classes": 3, "task": "binary"}, "`num_classes` to be 2 for the binary task, but got 3"),
        ({"num_classes": 3, "task": "multilabel"}, "`task` to be 'multiclass' or 'binary', but got 'multilabel'"),
        ({"num_classes": 3, "num_bins": 0}, "`num_bins`"),
        ({"num_classes": 3, "top_k": 0}, "`top_k`"),
        ({"num_classes": 3, "temperatures": (1.0,)}, "`temperatures`"),
        ({"num_classes": 3, "temperatures": (2.0, 1.0)}, "positive and ascending"),
        ({"num_classes": 3, "temperatures": (0.5, 2.0)}, "to be empty, or to hold 1.0"),
        ({"num_classes": 3, "ignore_index": 1.5}, "`ignore_index`"),
        ({"num_classes": 3, "input_kind": "scores"}, "`input_kind`"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Layout(**arguments)


def test_margin_edges_are_fine_near_zero() -> None:
    edges = margin_edges()
    assert len(edges) == 129 and edges[64] == 0 and edges[-1] == pytest.approx(64)
    assert edges[65] - edges[64] < 0.08 and edges[-1] - edges[-2] < 5
    assert all(high == pytest.approx(-low) for low, high in zip(edges, reversed(edges), strict=True))


def test_grid_is_half_octaves() -> None:
    assert EVALUATION_TEMPERATURES[0] == 0.25 and EVALUATION_TEMPERATURES[-1] == 8.0 and 1.0 in EVALUATION_TEMPERATURES


def test_zeros_work_after_inference_mode() -> None:
    with torch.inference_mode():
        counts, sums = Layout(3).zeros()
    counts.add_(1)
    sums.add_(1)
    assert not counts.is_inference()
