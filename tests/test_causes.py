"""Each cause by itself: one situation that it names, and near misses, each a single number away, that it does not.

The situations are plain numbers, so that a reader sees what decides. Whole runs are in `test_diagnosis.py`, real
trainings in `benchmarks/bench_diagnosis.py`.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from lightning_lossacc.diagnosis.catalogue import (
    EVENTS,
    HEADINGS,
    INFO_CAUSES,
    ORDER,
    RULES,
    explain,
    find_causes,
    supersedes,
)
from lightning_lossacc.diagnosis.changes import Opening
from lightning_lossacc.diagnosis.engine import _keep_first, _why_unknown
from lightning_lossacc.diagnosis.event import Cause
from lightning_lossacc.diagnosis.evidence import Evidence
from lightning_lossacc.history import Record
from lightning_lossacc.trends import Verdict
from tests.situations import (
    APART,
    BEHIND,
    COLLAPSED,
    DIED,
    DIVIDED,
    DOUBT,
    DRIFTED,
    DUPLICATED,
    EXPLODED,
    FALL,
    FLAT_OUT,
    KILLED,
    LEARNT,
    LIMIT,
    LOST,
    MEMORY,
    MIXED_UP,
    REPORTED,
    RISE,
    SCALARS,
    SHIFTED,
    SLOW,
    SPLIT,
    STATE,
    STILL,
    SWAPPED,
    SWUNG,
    TAIL,
    TAILED,
    TIGHT,
    UNLIKE,
    UNREST,
    WEIGHTED,
    Numbers,
    Situation,
    classes,
    exchanged,
)

# One situation a cause, and for each number that decides a near miss in which that number alone is other.
CASES: dict[str, tuple[Situation, dict[str, Situation]]] = {
    "over-confidence": (
        RISE,
        {
            "a third of the rise is left": RISE.but(paired={"refinement_change": 0.033}),
            "the interval reaches overfitting": RISE.but(paired={"refinement_change_error": 0.02}),
            "the temperature fell": RISE.but(before={"temperature": 1.9}),
            "below 1": RISE.but(values={"temperature": 0.9}, before={"temperature": 0.8}),
            "the reference lies beyond the grid": RISE.but(before={"temperature_at_edge": 1.0}),
            "a third of what was learnt is gone": EXPLODED,
            "below the grid": RISE.but(values={"temperature": 0.25, "temperature_at_edge": 1.0}),
        },
    ),
    "mixed": (
        RISE.but(paired={"refinement_change": 0.037}),
        {
            "nothing is left": RISE,
            "most is left": RISE.but(paired={"refinement_change": 0.09}),
            "the interval says nothing": RISE.but(paired={"refinement_change": 0.037, "refinement_change_error": 0.1}),
            "nothing is lost beside an explosion": EXPLODED.but(paired={"refinement_change": 0.3}),
            "the interval is 60 pp wide": RISE.but(
                paired={"refinement_change": 0.037, "refinement_change_error": 0.012}
            ),
        },
    ),
    "under-confidence": (
        RISE.but(values={"temperature": 0.6}, before={"temperature": 0.9}),
        {
            "above 1": RISE,
            "half is left": RISE.but(
                values={"temperature": 0.6}, before={"temperature": 0.9}, paired={"refinement_change": 0.05}
            ),
        },
    ),
    "scale-growth": (
        RISE.but(paired={"refinement_change": -0.05}, accuracy="up", accuracy_change=0.02),
        {
            "accuracy flat, and little gained": RISE.but(paired={"refinement_change": -0.02}),
            "accuracy down": RISE.but(paired={"refinement_change": -0.05}, accuracy="down"),
            "refined loss flat": RISE.but(accuracy="up", accuracy_change=0.02),
        },
    ),
    "confidence-growth": (
        FALL.but(values={"margin_p05": 0.5}),
        {"margins shrank": FALL.but(values={"margin_p05": -2.0})},
    ),
    "unconfident-shift": (
        DOUBT,
        {
            "accuracy no lower": DOUBT.but(accuracy="flat", accuracy_change=0.0),
            "balanced accuracy rose": DOUBT.but(before={"balanced_accuracy": 0.8}),
            "the loss after one temperature fell as much": DOUBT.but(paired={"refinement_change": -0.09}),
            "surer than before": DOUBT.but(before={"temperature": 1.1}),
        },
    ),
    "overfitting": (
        RISE.but(paired={"refinement_change": 0.09}),
        {
            "a third of it": RISE.but(paired={"refinement_change": 0.037}),
            "the interval reaches over-confidence": RISE.but(
                paired={"refinement_change": 0.055, "refinement_change_error": 0.015}
            ),
            "a state": RISE.but(paired={"refinement_change": 0.09}, static=True),
        },
    ),
    "label-noise": (
        RISE.but(paired={"refinement_change": 0.09}, probe={"accuracy": 1.0}, memory=MEMORY),
        {
            "nothing was memorised": RISE.but(
                paired={"refinement_change": 0.09}, probe={"accuracy": 1.0}, memory=MEMORY | {"memorised_share": 0.01}
            ),
            "it is not known how wrong these rows were": RISE.but(
                paired={"refinement_change": 0.09},
                probe={"accuracy": 1.0},
                memory=MEMORY,
                before_arrays={"cells": None},
            ),
            "a few rows more than of these": RISE.but(
                paired={"refinement_change": 0.09},
                probe={"accuracy": 1.0},
                memory=MEMORY | {"memorised_share": 0.028, "items": 300},
                before_arrays={"cells": {"rows": [[0, 20], [0, 980]], "nll": [[0.0, 100.0], [0.0, 40.0]]}},
            ),
            "as many of these rows are as wrong": RISE.but(
                paired={"refinement_change": 0.09},
                probe={"accuracy": 1.0},
                memory=MEMORY,
                before_arrays={"cells": {"rows": [[0, 90], [0, 910]], "nll": [[0.0, 450.0], [0.0, 40.0]]}},
            ),
            "the ranking is as good": RISE.but(probe={"accuracy": 1.0}, memory=MEMORY),
            "training is a little behind": RISE.but(
                paired={"refinement_change": 0.09}, probe={"accuracy": 0.82}, memory=MEMORY
            ),
            "training is no better": RISE.but(
                paired={"refinement_change": 0.09}, probe={"accuracy": 0.9}, memory=MEMORY
            ),
            "no probe": RISE.but(paired={"refinement_change": 0.09}),
            "training was as accurate": BEHIND.but(context={"train_accuracy": 0.88}),
            "layers drop out": BEHIND.but(context={"dropout": 0.3}),
        },
    ),
    "hard-tail": (
        TAILED,
        {
            "others rise as well": TAILED.but(paired={"tail_change": 0.04}),
            "not a few": TAILED.but(arrays={"tail": TAIL | {"share": 0.2}}),
            "single rows": TAILED.but(arrays={"tail": TAIL | {"share": 0.001}}),
            "not there before": TAILED.but(before_arrays={"tail": TAIL | {"score": 2.0}}),
            "as likely without": TAILED.but(arrays={"tail": TAIL | {"score": 8.0}}),
            "the others are over-confident as well": TAILED.but(arrays={"tail": TAIL | {"temperature": 2.6}}),
            "the others are far too confident": TAILED.but(
                arrays={"tail": TAIL | {"temperature": 3.4, "score": 200.0}}
            ),
            "a rare class is missed": TAILED.but(
                values={"balanced_accuracy": 0.6}, arrays=classes([950, 50], [990, 10], [940, 10])
            ),
            "rows of the training set": TAILED.but(arrays={"duplicates": 0.3}),
        },
    ),
    "leakage": (
        DUPLICATED,
        {
            "a few repeat": DUPLICATED.but(arrays={"duplicates": 0.02}),
            "only now": DUPLICATED.but(static=False, before_arrays={"duplicates": 0.0}),
            "collapsed": DUPLICATED.but(values={"predicted_majority_rate": 1.0}),
        },
    ),
    "prior-shift": (
        SHIFTED,
        {
            "shares alike": SHIFTED.but(arrays={"train_classes": [100] * 10}),
            "few rows, by chance": APART.but(arrays=classes([2, 10], [2, 10], [2, 10])),
            "a bias gains nothing certain": SHIFTED.but(arrays={"fits": {"bias_gain": 0.02, "bias_gain_error": 0.01}}),
        },
    ),
    "capacity-limit": (
        LIMIT,
        {
            "training is far better": LIMIT.but(probe={"nll": 0.5}),
            "no plateau": LIMIT.but(details={"plateau": 0.0}),
            "confidence is the reason": LIMIT.but(values={"temperature": 2.0}),
            "nothing but the prior": LIMIT.but(values={"nll": 2.3, "refinement_nll": 2.3}, probe={"nll": 2.3}),
        },
    ),
    "majority-collapse": (
        COLLAPSED,
        {
            "3 % are another class": COLLAPSED.but(values={"predicted_majority_rate": 0.97}),
            "only lately": COLLAPSED.but(before={"predicted_majority_rate": 0.8}),
        },
    ),
    "class-imbalance": (
        STATE.but(
            values={"accuracy": 0.93, "balanced_accuracy": 0.6}, arrays=classes([900, 100], [960, 40], [890, 30])
        ),
        {
            "half of them are found": STATE.but(
                values={"accuracy": 0.93, "balanced_accuracy": 0.74}, arrays=classes([900, 100], [940, 60], [890, 50])
            ),
            "classes are alike": STATE.but(
                values={"accuracy": 0.7, "balanced_accuracy": 0.5}, arrays=classes([600, 400], [900, 100], [590, 90])
            ),
        },
    ),
    "class-trade-off": (
        FALL.but(
            accuracy="down",
            before_arrays=classes([500, 500], [500, 500], [450, 450]),
            arrays=classes([500, 500], [560, 440], [460, 410]),
        ),
        {
            "rows did not move": FALL.but(
                accuracy="down",
                before_arrays=classes([500, 500], [500, 500], [450, 450]),
                arrays=classes([500, 500], [505, 495], [430, 430]),
            ),
            "no class gained": FALL.but(
                accuracy="down",
                before_arrays=classes([500, 500], [500, 500], [450, 450]),
                arrays=classes([500, 500], [560, 440], [445, 410]),
            ),
        },
    ),
    "nothing-learned": (
        FLAT_OUT,
        {
            "all rows in the class of most rows": FLAT_OUT.but(
                values={"predicted_majority_rate": 1.0, "majority_rate": 0.5}
            ),
            "below the entropy": FLAT_OUT.but(values={"refinement_nll": 2.1}),
            "accuracy above chance": FLAT_OUT.but(values={"accuracy": 0.2}),
            "classes are told apart": FLAT_OUT.but(arrays=classes([500, 500], [300, 700], [200, 400])),
            "classes are told apart under other numbers": FLAT_OUT.but(arrays={"confusion": SWAPPED}),
            "training rows are told apart at first sight": UNLIKE,
        },
    ),
    "label-mapping-mismatch": (
        STATE.but(arrays={"confusion": SWAPPED}),
        {
            "right as it is": STATE.but(arrays={"confusion": SWAPPED[::-1]}),
            "two classes go to one": STATE.but(arrays={"confusion": [[90, 10], [95, 5]]}),
            "too few rows": STATE.but(arrays={"confusion": [[1, 9], [9, 1]]}),
            "a shaken network": STATE.but(arrays={"confusion": [[400, 600], [600, 400]]}),
            "two rare ones of four": STATE.but(arrays={"confusion": exchanged(4)}),
        },
    ),
    "validation-too-small": (
        RISE.but(items=50, paired={"nll_change_error": 0.05}),
        {
            "enough items": RISE.but(items=500, paired={"nll_change_error": 0.05}),
            "the change is certain": RISE.but(items=50, paired={"nll_change_error": 0.02}),
        },
    ),
    "learning-rate-too-high": (
        UNREST,
        {
            "dead from the start": DIED.but(first={"dead_units": 0.95, "update_ratio": 0.05}),
            "a few more died": DIED.but(first={"dead_units": 0.75, "update_ratio": 0.05}),
            "some died, of long steps, in a layer that answers": KILLED.but(
                first={"dead_units": 0.3, "update_ratio": 0.15}
            ),
            "a few died of huge steps": KILLED.but(first={"dead_units": 0.45, "update_ratio": 0.3}),
            "some died, and one step was long": DIED.but(
                first={"dead_units": 0.6, "update_ratio": 0.012, "update_ratio_max": 0.03}
            ),
            "died of small steps": DIED.but(first={"dead_units": 0.2, "update_ratio": 2e-3}),
            "some died, of ordinary first steps": DIED.but(first={"dead_units": 0.6, "update_ratio": 0.03}),
            "most died, of ordinary first steps": DIED.but(first={"dead_units": 0.2, "update_ratio": 0.012}),
            "not a number, after small steps": LOST.but(first={"update_ratio": 0.03}),
            "long steps, and still a number": LOST.but(values={"nll": 2.0}),
            "a first step from zero": DIED.but(
                first={"dead_units": 0.2, "update_ratio": 2e-3}, context={"update_ratio_max": 0.5}
            ),
            "the steps go on": STILL.but(context={"update_ratio": 1e-3}),
            "the rate fell as well": STILL.but(first={"learning_rate": 1.0, "update_ratio": 0.05}),
            "something was learnt": STILL.but(values={"refinement_nll": 1.5}),
            "smooth": UNREST.but(train=(1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)),
            "tiny steps": UNREST.but(context={"update_ratio": 1e-3}),
            "the unrest of mixup": MIXED_UP,
            "nothing left to lose": UNREST.but(train=LEARNT),
            "nothing left to lose, and steps of half a percent": SWUNG.but(context={"update_ratio": 6e-3}),
            "nothing left to lose, and validation stands": SWUNG.but(details={"swing": 0.0}),
        },
    ),
    "learning-rate-too-low": (
        SLOW,
        {
            "ordinary steps": SLOW.but(context={"update_ratio": 1e-3}),
            "small steps that bring less and less": SLOW.but(context={"update_ratio": 4e-4}),
            "large once": SLOW.but(first={"update_ratio": 0.1}),
            "learned": SLOW.but(values={"refinement_nll": 0.3}),
        },
    ),
    "blow-up": (
        RISE.but(values={"nll": 30.0}, train=(0.5, 0.4, 20.0), paired={"nll_change": 29.5}),
        {
            "training is fine": RISE.but(values={"nll": 30.0}, train=(0.5, 0.4, 0.3), paired={"nll_change": 29.5}),
            "a doubling": RISE.but(values={"nll": 1.0}, train=(0.5, 0.4, 1.2), paired={"nll_change": 0.5}),
        },
    ),
    "dead-activations": (
        STATE.but(context={"dead_units": 1.0}),
        {"half of a layer": STATE.but(context={"dead_units": 0.5})},
    ),
    "over-regularisation": (
        TIGHT,
        {
            "training is better": TIGHT.but(probe={"nll": 0.6}),
            "no penalty": TIGHT.but(context={"penalty": 0.01}),
            "confident enough": TIGHT.but(values={"temperature": 0.95}),
        },
    ),
    "loss-mismatch": (
        STATE.but(logged={"val_loss": 0.7}),
        {
            "the NLL": STATE.but(logged={"val_loss": 0.51}),
            "nothing logged": STATE,
        },
    ),
    "double-softmax": (
        STATE.but(arrays={"looks_like": "probabilities"}),
        {"log-probabilities": STATE.but(arrays={"looks_like": "log-probabilities"})},
    ),
    "wrong-accuracy": (
        STATE.but(logged={"val_acc": 0.1}),
        {
            "rounded": STATE.but(logged={"val_acc": 0.91}),
            "in percent": STATE.but(logged={"val_acc": 90.4}),
            "top-k": STATE.but(logged={"val_acc": 0.985}),
            "that of another head beside it": STATE.but(logged={"val_acc": 0.9, "val_acc_b": 0.1}),
            "top-k by its name": STATE.but(logged={"val_top2_acc": 0.96}),
            "probabilities of two classes": STATE.but(
                logged={"val_acc": 0.1}, arrays={"looks_like": "probabilities"}, context={"num_classes": 2.0}
            ),
        },
    ),
    "train-eval-mismatch": (
        SPLIT,
        {
            "as good": SPLIT.but(probe={"nll": 0.35}),
            "the training loss divides the logits": DIVIDED,
            "no row is lost": SPLIT.but(probe={"nll": 0.6, "accuracy": 0.93}),
            "no probe": SPLIT.but(probe=None),
            "statistics of the batches": DRIFTED.but(context={"batch_norm_drift": 0.1}),
            "validation is as good": DRIFTED.but(context={"train_accuracy": 0.9}),
        },
    ),
    "validation-mismatch": (
        UNLIKE,
        {
            "half as far": UNLIKE.but(values={"accuracy": 0.21}),
            "known to 20 pp": UNLIKE.but(values={"accuracy_standard_error": 0.08}),
            "hardly better than the largest class": UNLIKE.but(first={"train_accuracy": 0.14}),
            "training has lost it as well": UNLIKE.but(context={"train_accuracy": 0.3}),
            "training rows are as bad in eval mode": UNLIKE.but(probe={"accuracy": 0.1}),
            "known under other numbers": UNLIKE.but(arrays={"confusion": SWAPPED}),
            "two evaluations": UNLIKE.but(train=(2.0, 0.5)),
        },
    ),
}
MISSES = [(cause, name, miss) for cause, (_, misses) in CASES.items() for name, miss in misses.items()]


@pytest.mark.parametrize("cause", RULES)
def test_names_its_situation_with_numbers(cause: str) -> None:
    situation, _ = CASES[cause]
    found = RULES[cause](situation.evidence())
    assert found is not None and found.cause == cause
    assert found.evidence and all(re.search(r"\d", line) or cause == "double-softmax" for line in found.evidence)


@pytest.mark.parametrize(("cause", "name", "miss"), MISSES, ids=[f"{cause}: {name}" for cause, name, _ in MISSES])
def test_keeps_silent_on_a_near_miss(cause: str, name: str, miss: Situation) -> None:
    assert RULES[cause](miss.evidence()) is None


@pytest.mark.parametrize("cause", RULES)
def test_no_rule_fails_on_what_was_not_measured(cause: str) -> None:
    record = Record("val", 0, 0, 0, 0.0, True, 100, 100, {}, logged={"loss": 0.5})
    verdict = Verdict("undecided", math.nan, -math.inf, math.inf, 0.01, math.inf)
    assert RULES[cause](Evidence(record, record, verdict, None, (record,))) is None


def _early(accuracies: tuple[float, ...], error: float = 0.01, shares: tuple[float, ...] = ()) -> Evidence:
    """A rise of the refined loss after the second of three evaluations (accuracy 90 %), and the train probe of each."""
    evidence = RISE.but(paired={"refinement_change": 0.09}, train=(0.5, 0.4, 0.3)).evidence()
    values = [{"accuracy": value, "accuracy_standard_error": error} for value in accuracies]
    memories = [{"memory": MEMORY | {"memorised_share": share}} for share in shares] or [{}] * len(values)
    probe = [
        Record("train_probe", 0, epoch, 10 * epoch, 0.0, True, 500, 500, value, memory)
        for epoch, (value, memory) in enumerate(zip(values, memories, strict=True))
    ]
    return replace(evidence, reference=evidence.series[1], train_probe=probe)


@pytest.mark.parametrize(
    ("accuracies", "error", "shares", "named"),
    [
        ((0.75, 0.89, 1.0), 0.01, (), True),  # far behind before the minimum of the loss, where some were learnt
        ((0.83, 0.89, 1.0), 0.01, (), False),  # 7 pp behind
        ((0.75, 0.89, 1.0), 0.06, (), False),  # 15 pp, known to 6
        ((0.89, 0.89, 1.0), 0.01, (0.0, 0.1, 0.0), True),  # memorised, and forgotten at the moment
        ((0.89, 0.89, 1.0), 0.01, (0.0, 0.01, 0.0), False),
        ((0.75, 0.89, 0.87), 0.01, (), True),  # has caught up 12 of 15 pp
        ((0.81, 0.89, 0.84), 0.01, (), False),  # 3 of 9
    ],
)
def test_label_noise_remembers_what_came_before(
    accuracies: tuple[float, ...], error: float, shares: tuple[float, ...], named: bool
) -> None:
    found = RULES["label-noise"](_early(accuracies, error, shares))
    assert (found is not None) is named
    if found is not None and not shares:
        assert "15.0 pp less accurate than these, at the reference or before" in found.evidence[0]


@pytest.mark.parametrize(
    ("changes", "accuracies", "error", "named"),
    [
        ({}, [0.78] * 5, 0.01, True),
        ({}, [0.78] * 4 + [0.82], 0.01, False),  # 8 pp
        ({}, [0.78] * 4, 0.01, False),  # four evaluations
        ({}, [0.78] * 5, 0.05, False),  # 12 pp, known to 5
        ({"temperature": 1.1}, [0.78] * 5, 0.01, False),
    ],
)
def test_label_noise_that_was_never_learnt(
    changes: Numbers, accuracies: list[float], error: float, named: bool
) -> None:
    """Training rows stay behind validation rows, whose confidence is too low for them."""
    values = {"temperature": 0.6, "accuracy": 0.9} | changes
    evidence = STATE.but(values=values, train=(0.5,) * len(accuracies)).evidence()
    probe = [
        replace(record, stage="train_probe", values={"accuracy": value, "accuracy_standard_error": error})
        for record, value in zip(evidence.series, accuracies, strict=True)
    ]
    found = RULES["label-noise"](replace(evidence, train_probe=probe))
    assert (found is not None) is named
    if found is not None:
        assert "have been 12.0 pp and more less accurate" in found.evidence[0] and "0.60 here" in found.evidence[1]


def test_few_rows_or_many_that_are_apart() -> None:
    """Classes in other shares to the loss of validation: of 1200 rows that is no chance."""
    assert RULES["prior-shift"](APART.evidence()) is not None


@pytest.mark.parametrize(
    ("situation", "train_nll", "named"),
    [
        (WEIGHTED, 0.6, True),
        (WEIGHTED, 0.4, False),
        (WEIGHTED.but(values={"balanced_accuracy": 0.64}), 0.6, False),
        (WEIGHTED.but(accuracy_change=0.01), 0.6, False),
    ],
    ids=["weights", "training rows gain", "rare classes gain little", "accuracy rises"],
)
def test_weights_for_rare_classes_raise_the_loss(situation: Situation, train_nll: float, named: bool) -> None:
    """Rows move to the rare class, accuracy falls and balanced accuracy rises; training rows pay as well."""
    evidence = situation.evidence()
    reference = replace(evidence.reference, context={"train_nll": 0.5})
    current = replace(evidence.current, context={"train_nll": train_nll})
    found = find_causes("loss-up-accuracy-down", replace(evidence, reference=reference, current=current))
    assert ("class-trade-off" in [cause.cause for cause in found]) is named
    if named:
        assert len(found) == 1 and "class 1 is predicted +20.0 pp more often, class 0 -20.0" in found[0].evidence[0]


@pytest.mark.parametrize(
    ("reported", "cause", "news"),
    [
        ("label-noise", "under-confidence", False),  # what is left once they have been learnt
        ("label-noise", "over-regularisation", True),
        ("hard-tail", "scale-growth", False),  # such rows do not go away
        ("over-confidence", "under-confidence", True),
        ("unknown", "under-confidence", True),
        ("over-regularisation", "under-confidence", False),
    ],
)
def test_what_is_news_after_a_reported_cause(reported: str, cause: str, news: bool) -> None:
    assert supersedes("loss-up-accuracy-flat", cause, reported) is news


@pytest.mark.parametrize(
    "situation",
    [SWUNG, MIXED_UP.but(context={"update_ratio": 8e-3}), MIXED_UP.but(details={"swing": 0.3})],
    ids=["training has nothing to lose", "larger steps", "validation swings by more than half"],
)
def test_unrest_of_validation_names_the_rate(situation: Situation) -> None:
    assert RULES["learning-rate-too-high"](situation.evidence()) is not None


@pytest.mark.parametrize(
    ("ratio", "probes", "named"),
    [
        (1.5e-2, (0.2, 0.3, 0.2, 0.3, 0.2, 0.3), True),
        (1.5e-2, (0.3, 0.29, 0.28, 0.27, 0.26, 0.25), False),
        (1.2e-2, (0.2, 0.3, 0.2, 0.3, 0.2, 0.3), False),
    ],
    ids=["jumps", "falls", "smaller updates"],
)
def test_weights_that_jump_are_seen_at_the_same_rows(ratio: float, probes: tuple[float, ...], named: bool) -> None:
    """The mean over the steps of an epoch moves by a tenth, what the weights at its end give to its rows by a third."""
    steps = UNREST.but(train=(0.5, 0.3, 0.33, 0.3, 0.33, 0.3), context={"update_ratio": ratio}, details={"swing": 0.2})
    evidence = steps.but(probe={"nll": 0.3}).evidence()
    rows = [replace(evidence.train_probe[0], values={"nll": loss}) for loss in probes]
    assert (RULES["learning-rate-too-high"](replace(evidence, train_probe=rows)) is not None) is named


@pytest.mark.parametrize(
    ("context", "named"),
    [
        ({"dropout": 0.9}, True),
        ({"dropout": 0.7}, False),
        ({"penalty": 3.0}, True),
        ({"penalty": 1.0}, False),
    ],
)
def test_nothing_is_learnt_under_a_ruling_penalty_or_dropout(context: Numbers, named: bool) -> None:
    """Outputs that say nothing have no temperature of their own, here 8; dead units are a consequence."""
    nothing = FLAT_OUT.but(values={"temperature": 8.0}, context=context | {"dead_units": 0.95}, probe={"nll": 2.3})
    causes = [cause.cause for cause in find_causes("accuracy-stuck", nothing.evidence())]
    assert (causes[0] == "over-regularisation") is named and "dead-activations" in causes


def test_swings_under_a_penalty_name_it_before_the_rate() -> None:
    """Of weights that a penalty keeps small the same steps are large."""
    swinging = UNREST.but(details={"swing": 0.3}, values={"temperature": 0.7}, context={"penalty": 0.5})
    names = [cause.cause for cause in find_causes("oscillation", swinging.evidence())]
    assert names == ["over-regularisation", "learning-rate-too-high"]
    names = [cause.cause for cause in find_causes("oscillation", swinging.but(context={"penalty": 0.01}).evidence())]
    assert names == ["learning-rate-too-high"]


@pytest.mark.parametrize(
    ("reported", "found", "first"),
    [
        ("learning-rate-too-high", ["over-confidence"], "learning-rate-too-high"),
        ("learning-rate-too-high", ["over-confidence", "learning-rate-too-high"], "learning-rate-too-high"),
        ("learning-rate-too-high", ["blow-up", "over-confidence"], "blow-up"),
        ("over-confidence", ["overfitting"], "overfitting"),
        ("unknown", ["over-confidence"], "over-confidence"),
        ("learning-rate-too-high", ["unknown"], "learning-rate-too-high"),
    ],
)
def test_a_doubled_report_keeps_its_cause_before_a_consequence(reported: str, found: list[str], first: str) -> None:
    before = replace(REPORTED, causes=(Cause(reported, 1.0, ("then",)),))
    causes = tuple(Cause(name, 1.0, ("now",)) for name in found)
    kept = _keep_first("loss-up-accuracy-flat", causes, before)
    assert kept[0].cause == first and kept[0].evidence == ("now" if first in found else "then",)
    named = {*found, first} - {"unknown"}
    assert {cause.cause for cause in kept} == named and len(kept) == len(named)


# Up and down by as much as the noise of a mean, at four times the level of before; half as far; up to almost nothing.
@pytest.mark.parametrize(
    ("train", "named"),
    [
        ((0.2, 0.12, 0.11, 0.12, 0.44, 0.45, 0.48, 0.46, 0.5, 0.47, 0.48), True),
        ((0.2, 0.32, 0.31, 0.32, 0.44, 0.45, 0.48, 0.46, 0.5, 0.47, 0.48), False),
        ((0.2, 0.05, 0.04, 0.05, 0.2, 0.22, 0.23, 0.22, 0.22, 0.21, 0.22), False),
    ],
)
def test_a_training_loss_that_rises_far_and_stays_names_the_rate(train: tuple[float, ...], named: bool) -> None:
    situation = UNREST.but(train=train, context={"update_ratio": 7e-3}, details={"swing": 0.0})
    assert (RULES["learning-rate-too-high"](situation.evidence()) is not None) is named


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (0.012, "so 32 … 94 % of it is confidence: too wide to name a cause"),
        (0.004, "so 53 … 73 % of it is confidence: nothing else that was measured tells why"),
        (0.1, "which fits more than one cause"),
    ],
)
def test_an_unknown_cause_says_what_is_known(error: float, words: str) -> None:
    evidence = RISE.but(paired={"refinement_change": 0.037, "refinement_change_error": error}).evidence()
    assert words in _why_unknown(Opening("loss-up-accuracy-flat", evidence, 0))


def test_label_noise_without_a_probe_says_what_is_not_excluded() -> None:
    found = RULES["label-noise"](BEHIND.evidence())
    assert found is not None and "augmentation is not excluded" in found.against[0]


@pytest.mark.parametrize(("situation", "words"), [(DIED, "units died after"), (STILL, "no gradient passes")])
def test_a_network_that_large_steps_broke(situation: Situation, words: str) -> None:
    """Its updates are small now; what they were, and what became of it, names the rate."""
    found = RULES["learning-rate-too-high"](situation.evidence())
    assert found is not None and words in found.evidence[0] and "5 %" in found.evidence[0]
    assert find_causes("accuracy-stuck", situation.evidence())[0].cause == "learning-rate-too-high"


@pytest.mark.parametrize(
    "situation",
    [KILLED, DIED.but(first={"update_ratio": 0.012, "update_ratio_max": 0.03})],
    ids=["huge steps killed some", "one step was long enough, and the layer is dead"],
)
def test_steps_that_killed_units_name_the_rate(situation: Situation) -> None:
    found = RULES["learning-rate-too-high"](situation.evidence())
    assert found is not None and "units died after" in found.evidence[0]


@pytest.mark.parametrize(
    ("alive", "learnt", "details", "named"),
    [
        (5, 2.30, {}, False),
        (4, 2.30, {}, True),
        (5, 2.0, {}, True),  # at one of them
        (5, 2.30, {"dead_evaluations": 10.0}, True),  # asked about the layer itself
    ],
)
def test_units_that_learned_nothing_while_they_lived_are_not_the_reason(
    alive: int, learnt: float, details: Numbers, named: bool
) -> None:
    """They answered for some evaluations, nothing was learned, and they died then."""
    evidence = FLAT_OUT.but(train=(2.3,) * 9, details=details).evidence()
    series = [
        replace(
            record,
            values=record.values | ({"refinement_nll": learnt} if place == 1 else {}),
            context=record.context | {"dead_units": 0.8 if place < alive else 0.95},
        )
        for place, record in enumerate(evidence.series)
    ]
    dead = replace(evidence, reference=series[-1], current=series[-1], series=series)
    assert (RULES["dead-activations"](dead) is not None) is named
    first = find_causes("accuracy-stuck", dead)[0].cause
    assert first == ("dead-activations" if named else "nothing-learned")


@pytest.mark.parametrize(
    "other",
    [
        DIVIDED.but(context={"batch_norm_layers": 2.0}),
        DIVIDED.but(probe={"temperature": 0.4}),
        DIVIDED.but(probe={"refinement_nll": 0.6}),
        SPLIT,
    ],
    ids=["batch normalisation", "too small", "most is left", "rows are lost, nothing known of layers"],
)
def test_a_gap_that_the_size_of_the_logits_does_not_explain(other: Situation) -> None:
    assert RULES["train-eval-mismatch"](other.evidence()) is not None


@pytest.mark.parametrize(
    ("stage", "context"), [("val", {"training_layers": 2.0}), ("train_probe", {"random_rows": 0.5})]
)
def test_what_acts_in_evaluation_needs_no_gap(stage: str, context: Numbers) -> None:
    quiet = SPLIT.but(probe={"nll": 0.35}, context={"training_layers": 0.0})
    evidence = quiet.evidence()
    assert RULES["train-eval-mismatch"](evidence) is None
    if stage == "val":
        evidence = quiet.but(context=context).evidence()
    else:
        probes = [replace(record, context=record.context | context) for record in evidence.train_probe]
        evidence = replace(evidence, train_probe=probes)
    assert RULES["train-eval-mismatch"](evidence) is not None


def test_what_moved_between_classes_is_a_consequence_of_a_mismatch_of_modes() -> None:
    situation, _ = CASES["class-trade-off"]
    both = situation.but(context=SPLIT.context, probe=SPLIT.probe)
    named = [cause.cause for cause in find_causes("loss-down-accuracy-down", both.evidence())]
    assert named == ["train-eval-mismatch"]


def test_an_explosion_of_confidence_does_not_hide_what_was_lost() -> None:
    found = RULES["mixed"](EXPLODED.evidence())
    assert found is not None and "of 1.8526 nats that had been learnt 0.6000 are gone" in found.evidence[-1]


def test_one_row_of_a_class_knows_nothing() -> None:
    lucky = FLAT_OUT.but(arrays=classes([499, 499, 1, 1], [500, 498, 1, 1], [120, 120, 1, 1]))
    assert RULES["nothing-learned"](lucky.evidence()) is not None


@pytest.mark.parametrize(("after", "named"), [(0.32, True), (0.36, False)])
def test_what_training_rows_pay_as_well_is_no_overfitting(after: float, named: bool) -> None:
    """The NLL here rose by 0.1; in the steps of the epoch it stood at 0.3 at the reference."""
    evidence = RISE.but(paired={"refinement_change": 0.09}).evidence()
    reference, current = (
        replace(record, context=record.context | {"train_nll": nll})
        for record, nll in ((evidence.reference, 0.3), (evidence.current, after))
    )
    found = RULES["overfitting"](replace(evidence, reference=reference, current=current))
    assert (found is not None) is named


def test_what_acts_twice_is_named() -> None:
    """Softmax, sigmoid with the floor of its classes, or nothing: F.nll_loss has no softmax of its own."""
    rule, twice = RULES["double-softmax"], STATE.but(arrays={"looks_like": "probabilities"})
    found = rule(twice.but(arrays={"loss_terms": "no log_softmax before F.nll_loss"}).evidence())
    assert found is not None and found.evidence == ("F.nll_loss got probabilities, and takes their logarithms",)
    one = {"class": [0, 1], "rows": [750, 250], "predicted": [1000, 0], "correct": [750, 0]}
    found = rule(twice.but(arrays={"task": "binary", "classes": one}, context={"num_classes": 2.0}).evidence())
    assert found is not None and "sigmoid applied twice the loss cannot fall below 0.5982" in found.evidence[1]


def test_a_tie_leaves_a_class_its_own_name() -> None:
    table = [[90, 0, 0, 0], [50, 50, 0, 0], [0, 0, 5, 95], [0, 0, 95, 5]]
    assert RULES["label-mapping-mismatch"](STATE.but(arrays={"confusion": table}).evidence()) is not None


def test_a_sum_instead_of_a_mean_is_named() -> None:
    found = RULES["loss-mismatch"](STATE.but(logged={"val_loss": 32.0}).evidence())
    assert (
        found is not None
        and 'about 64 times the NLL each time: a sum over rows, as of reduction="sum"' in (found.evidence[0])
    )


def test_under_confidence_of_a_smoothed_loss_is_expected() -> None:
    low = STATE.but(values={"nll": 0.6, "temperature": 0.5}, arrays={"loss_terms": "label smoothing 0.1"})
    assert "label smoothing 0.1" in RULES["under-confidence"](low.evidence()).against[0]
    assert not RULES["under-confidence"](low.but(arrays={"loss_terms": ""}).evidence()).against


def test_a_tail_of_over_confident_rows_needs_more_certainty() -> None:
    certain = TAILED.but(arrays={"tail": TAIL | {"temperature": 2.6, "score": 90.0}})
    assert RULES["hard-tail"](certain.evidence()) is not None


@pytest.mark.parametrize(("fall", "rate", "named"), [(0.01, 1e-7, True), (0.0, 1e-7, False), (0.01, 1e-9, False)])
def test_small_steps_on_a_straight_line_are_too_small(fall: float, rate: float, named: bool) -> None:
    """Learning at one rate has not slowed down after a dozen evaluations: longer steps had brought it further."""
    situation = SLOW.but(context={"update_ratio": 4e-4, "learning_rate": 1e-7}, train=(2.3,) * 12)
    evidence = situation.but(first={"learning_rate": rate}).evidence()
    series = [
        replace(record, values=record.values | {"nll": 2.3 - (fall * place if fall else 0.1 * (1 - 0.5**place))})
        for place, record in enumerate(evidence.series)
    ]
    found = RULES["learning-rate-too-low"](replace(evidence, series=series))
    assert (found is not None) is named


def test_two_exchanged_classes_of_ten_are_named() -> None:
    """The rows of the other classes, which both namings get right, say nothing about it."""
    found = RULES["label-mapping-mismatch"](STATE.but(arrays={"confusion": exchanged(100)}).evidence())
    assert found is not None and "3→5, 5→3" in found.evidence[0] and "100.0 instead of 80.0 %" in found.evidence[0]


def test_a_loss_that_stopped_being_a_number_after_long_steps() -> None:
    first, second = find_causes("non-finite", LOST.evidence())
    assert (first.cause, second.cause) == ("blow-up", "learning-rate-too-high") and "30 %" in second.evidence[0]


def test_what_drifting_batch_norm_collapses_is_not_called_unlearned() -> None:
    """Running statistics that are far off give every row to one class; nothing about the labels follows from that."""
    lost = DRIFTED.but(values=FLAT_OUT.values, arrays=FLAT_OUT.arrays)
    assert find_causes("accuracy-equals-class-share", lost.evidence())[0].cause == ("train-eval-mismatch")


def test_drifting_batch_norm_is_named_without_a_probe() -> None:
    found = RULES["train-eval-mismatch"](DRIFTED.evidence())
    assert found is not None and "0.8 of their size" in found.evidence[0] and "overfitting" in found.against[0]


def test_scalar_certificates() -> None:
    """From loss, accuracy and C alone."""
    mismatch, over = RULES["loss-mismatch"], RULES["over-confidence"]
    # Wrong answers have p <= 1/2: 40 % of them cost 0.277 nats at least.
    found = mismatch(SCALARS.evidence())
    assert found is not None and "0.2773" in found.evidence[0] and "macro" in found.against[0]
    assert mismatch(SCALARS.but(values={"nll": 0.3}).evidence()) is None
    # ln 10 = 2.303: above it, the best temperature is above 1.
    high = SCALARS.but(values={"nll": 3.0})
    found = over(high.evidence())
    assert found is not None and any("ln C = 2.3026" in line for line in found.evidence)
    assert over(SCALARS.but(values={"nll": 1.6}).evidence()) is None
    assert over(high.but(context={"num_classes": 1000.0}).evidence()) is None
    # ln(e + 9) - 1 = 1.461 and one nat for each wrong and certain row.
    twice = RULES["double-softmax"]
    standing = SCALARS.but(values={"nll": 1.565, "accuracy": 0.9})
    assert twice(standing.evidence()) is not None
    assert twice(standing.but(values={"nll": 1.3}).evidence()) is None


def test_the_catalogue_is_whole() -> None:
    """Every cause is asked for some event, has all headings of a lint rule, and is explained."""
    asked = {name for order in ORDER.values() for name in order} | set(_loss_up())
    assert asked == set(RULES) and len(RULES) == sum(map(len, HEADINGS.values())) == 28
    assert set(INFO_CAUSES) <= set(RULES)
    headings = (
        "What it finds:",
        "Why it matters:",
        "Evidence it needs:",
        "What to do:",
        "When it is wrong:",
        "Reference:",
    )
    for cause, rule in RULES.items():
        assert all(rule.__doc__.count(heading) == 1 for heading in headings), cause
        text = explain(cause)
        assert text.startswith(f"{cause} (") and "Seen in: " in text
    for event in EVENTS:
        assert explain(event).startswith(f"{event}: ")
    assert all(name in explain() for name in [*RULES, *EVENTS])
    with pytest.raises(ValueError, match="did you mean 'over-confidence'"):
        explain("overconfidence")


def _loss_up() -> list[str]:
    return explain("loss-up-accuracy-flat").split("asked: ")[1].rstrip(".").split(", ")


def test_causes_stand_together_in_the_order_of_decision() -> None:
    """Collapsed and over-confident: both are named, the collapse first."""
    both = RISE.but(
        before={"predicted_majority_rate": 1.0},
        values={"predicted_majority_rate": 1.0},
        arrays=classes([950, 50], [1000, 0], [950, 0]),
    )
    assert [cause.cause for cause in find_causes("loss-up-accuracy-flat", both.evidence())][:2] == [
        "majority-collapse",
        "over-confidence",
    ]
