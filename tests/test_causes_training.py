"""How a training went: what a schedule, a penalty, a cut or a sampler leaves behind, and near misses of each.

Found by people who wrote ordinary scripts with one mistake each; the situations hold their numbers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from lightning_lossacc.diagnosis import Diagnosis
from lightning_lossacc.diagnosis.catalogue import RULES, find_causes
from lightning_lossacc.diagnosis.changes import Stream
from lightning_lossacc.diagnosis.data import is_renamed
from lightning_lossacc.diagnosis.evidence import Evidence
from lightning_lossacc.diagnosis.states import dead_layer, little_learnt, loss_high
from lightning_lossacc.history import History, Record
from lightning_lossacc.remedies import remedies
from tests.situations import FLAT_OUT, RISE, SPLIT, STATE, TIGHT, UNREST, Numbers, Situation, classes


def stream(situation: Situation, evaluations: int = 12, **context: Any) -> Stream:
    """So many equal evaluations, and the probe of the situation."""
    evidence = situation.evidence()
    series = [
        replace(evidence.current, epoch=epoch, global_step=10 * epoch, context=evidence.current.context | context)
        for epoch in range(evaluations)
    ]
    return Stream(series, series[-1], (), evidence.train_probe)


def run(situation: Situation, evaluations: int, **columns: Any) -> Evidence:
    """So many evaluations, of which numbers of the training side are given one by one."""
    evidence = situation.evidence()
    series = [
        replace(
            evidence.current,
            epoch=epoch,
            global_step=10 * epoch,
            context=evidence.current.context | {name: values[epoch] for name, values in columns.items()},
        )
        for epoch in range(evaluations)
    ]
    return replace(evidence, reference=series[-1], current=series[-1], series=series)


# -- next to nothing is learnt -----------------------------------------------------------------------------------------

# Of ln 10 = 2.30 nats 2.0 are left after one temperature, on training rows too.
LITTLE = FLAT_OUT.but(
    values={"nll": 2.1, "refinement_nll": 2.0, "temperature": 0.5, "accuracy": 0.3}, probe={"nll": 2.05}
)


@pytest.mark.parametrize(
    ("context", "cause"),
    [
        ({"dropout": 0.9}, "over-regularisation"),
        ({"penalty": 3.0}, "over-regularisation"),
        ({"dropout": 0.6}, None),
        ({"penalty": 2.2}, None),  # above the loss, not above ln 10
        ({"update_ratio": 1e-4}, "learning-rate-too-low"),
        ({"update_ratio": 1e-3}, None),
    ],
)
def test_what_keeps_a_network_from_learning(context: Numbers, cause: str | None) -> None:
    opening = little_learnt(stream(LITTLE, **context), None)
    assert opening is not None and opening.event == "little-learnt"
    found = [item.cause for item in find_causes("little-learnt", opening.evidence)]
    assert found == ([] if cause is None else [cause])


@pytest.mark.parametrize(
    ("situation", "evaluations"),
    [
        (LITTLE, 9),
        (LITTLE.but(values={"refinement_nll": 1.8}), 12),
        (LITTLE.but(probe={"nll": 1.8}), 12),
        (LITTLE.but(values={"predicted_majority_rate": 1.0}), 12),
    ],
    ids=["too early", "more than a fifth is learnt", "training rows are", "a collapse has its own name"],
)
def test_what_is_not_little(situation: Situation, evaluations: int) -> None:
    assert little_learnt(stream(situation, evaluations), None) is None


@pytest.mark.parametrize(
    ("context", "temperature", "opens"),
    [
        ({"dropout": 0.9}, 0.6, True),
        ({"dropout": 0.6}, 0.6, False),
        ({"dropout": 0.9}, 0.9, False),
        ({"penalty": 0.5}, 0.6, True),
        ({"penalty": 0.3}, 0.6, False),
        ({"penalty": 0.5}, 0.9, False),
    ],
)
def test_what_rules_needs_less_of_the_loss(context: Numbers, temperature: float, opens: bool) -> None:
    """One temperature takes 9 % of the loss away."""
    values = {"nll": 0.8, "refinement_nll": 0.73, "temperature": temperature}
    opening = loss_high(stream(STATE.but(values=values, probe={"nll": 0.75}), **context), None)
    assert (opening is not None) is opens
    if opening is not None:
        assert find_causes(opening.event, opening.evidence)[0].cause == "over-regularisation" and opening.lasting


# -- rates -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rates", "ratios", "named"),
    [
        ([1e-2 * 0.1**place for place in range(20)], [1e-2, 1e-3] + [1e-7] * 18, True),
        ([1e-2 * 0.1**place for place in range(20)], [1e-2] * 12 + [1e-7] * 8, False),
        ([1e-2 * 0.1**place for place in range(20)], [1e-2, 1e-3] + [1e-4] * 18, False),
        ([1e-2] * 20, [1e-2, 1e-3] + [1e-7] * 18, False),
    ],
    ids=["ended early", "ended late", "goes on", "the rate stands"],
)
def test_a_schedule_that_ended_long_ago(rates: list[float], ratios: list[float], named: bool) -> None:
    found = RULES["learning-rate-too-low"](run(LITTLE, 20, learning_rate=rates, update_ratio=ratios))
    assert (found is not None) is named
    if found is not None:
        assert "for 10 evaluations" in found.evidence[0] and "stepped for each batch" in found.evidence[1]


# Training rows are known less and less, after updates of 4 %; the updates are ordinary by now.
FORGETS = UNREST.but(train=(1.6, 0.8, 0.86, 0.95, 1.1, 1.0, 1.1, 1.2, 1.25, 1.2), context={"update_ratio": 1.1e-2})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"first": {"update_ratio": 0.04}}, True),
        ({"first": {"update_ratio": 0.015}}, False),
        ({"first": {"update_ratio": 0.04}, "train": (1.6, 1.0, 0.99, 1.0, 1.1, 1.0, 1.1, 1.2, 1.25, 1.2)}, False),
        ({"first": {"update_ratio": 0.04}, "train": tuple(0.4 * loss for loss in FORGETS.train)}, False),
    ],
    ids=["after large updates", "after ordinary ones", "by a fifth", "little was left to lose"],
)
def test_training_that_loses_what_it_knew_names_the_rate(change: Numbers, named: bool) -> None:
    assert (RULES["learning-rate-too-high"](FORGETS.but(**change).evidence()) is not None) is named


@pytest.mark.parametrize(("rows", "named"), [((0.5, 0.6), False), ((0.5, 0.52), True)])
def test_what_the_probe_pays_as_well_is_no_overfitting(rows: tuple[float, float], named: bool) -> None:
    """The steps of the epochs saw earlier weights; the very same rows at the very same weights rose by half as much."""
    evidence = RISE.but(paired={"refinement_change": 0.09, "refinement_change_error": 0.003}).evidence()
    probes = [
        replace(record, stage="train_probe", values={"nll": loss})
        for record, loss in zip((evidence.reference, evidence.current), rows, strict=True)
    ]
    assert (RULES["overfitting"](replace(evidence, train_probe=probes)) is not None) is named


@pytest.mark.parametrize(
    ("losses", "named"),
    [
        ((190.0, 120.0, 80.0, 33.0), False),
        ((190.0, 120.0, 33.0, 80.0), True),
        ((1e6, 1e6, 1e6, 1e6), True),  # exploded before the first evaluation
        ((1e6, 9.9e5, 9.8e5, 9.7e5), True),
    ],
)
def test_a_loss_that_only_came_down_is_no_blow_up(losses: tuple[float, ...], named: bool) -> None:
    """Initial weights that are far too large begin so; what comes back up does blow up."""
    evidence = run(STATE, 4, train_nll=losses)
    series = [
        replace(record, values=record.values | {"nll": loss})
        for record, loss in zip(evidence.series, losses, strict=True)
    ]
    evidence = replace(evidence, reference=series[-1], current=series[-1], series=series)
    assert (RULES["blow-up"](evidence) is not None) is named


def test_evaluations_before_one_that_is_not_a_number_are_kept() -> None:
    """Its rows are all excluded: it is the same validation set all the same, and the last good checkpoint is known."""
    good = stream(STATE, 3).series
    bad = replace(
        good[-1],
        epoch=3,
        global_step=30,
        num_rows=0,
        values={},
        arrays={"excluded": {"non_finite": good[-1].num_rows}},
    )
    (event,) = Diagnosis().examine(History([*good, bad]))
    assert (event.event, event.cause) == ("non-finite", "blow-up")
    assert event.remedies[0].startswith("go on from the checkpoint of step")


# -- logits that are cut off -------------------------------------------------------------------------------------------

CUT = STATE.but(
    values={"balanced_accuracy": 0.5, "accuracy": 0.5},
    arrays={"excluded": {"ties": 200}} | classes([100] * 10, [200] * 5 + [0] * 5, [100] * 5 + [0] * 5),
)


@pytest.mark.parametrize(
    ("situation", "evaluations", "opens"),
    [
        (CUT, 12, True),
        (CUT, 9, False),
        (CUT.but(arrays={"excluded": {"ties": 90}}), 12, False),
        (CUT.but(arrays=classes([100] * 10, [1000] + [0] * 9, [100] + [0] * 9)), 12, False),
        (CUT.but(arrays=classes([100] * 10, [100] * 10, [50] * 10)), 12, False),
    ],
    ids=["cut", "too early", "few rows", "no row is told from another", "every class is predicted"],
)
def test_equal_largest_logits(situation: Situation, evaluations: int, opens: bool) -> None:
    opening = dead_layer(stream(situation, evaluations), None)
    assert (opening is not None) is opens
    if opening is not None:
        (cause,) = find_causes("dead-layer", opening.evidence)
        assert cause.cause == "dead-activations" and "200 of 1000 rows" in cause.evidence[0]


# -- what is no fault of the network -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("drawn", "named"), [([910] + [10] * 9, False), ([100] * 10, True), ([150] + [94] * 9, True)])
def test_a_sampler_is_no_mismatch_of_modes(drawn: list[int], named: bool) -> None:
    situation = SPLIT.but(arrays={"train_classes": drawn})
    assert (RULES["train-eval-mismatch"](situation.evidence()) is not None) is named


# Labels off by one: 4 is now 3 and should be 5, whose own rows are there as well.
SPILLED = [
    [0, 0, 4, 7, 0, 122],
    [102, 1, 0, 0, 22, 0],
    [0, 108, 17, 2, 0, 2],
    [0, 1, 129, 0, 1, 6],
    [0, 0, 6, 12, 0, 127],
    [4, 1, 19, 0, 106, 1],
]


@pytest.mark.parametrize(
    ("confusion", "renamed"),
    [
        (SPILLED, True),
        ([[80, 0, 20], [0, 100, 0], [90, 0, 10]], False),  # one class spills over into another
        ([[0, 0, 100], [0, 100, 0], [0, 0, 100]], False),  # a collapse of two
        ([[200, 400, 0], [0, 100, 0], [0, 0, 100]], False),  # the name of the other is taken
    ],
)
def test_a_renaming_in_which_two_classes_share_a_name(confusion: list[list[int]], renamed: bool) -> None:
    record = STATE.but(arrays={"confusion": confusion}).evidence().current
    assert is_renamed(record) is renamed
    found = RULES["label-mapping-mismatch"](STATE.but(arrays={"confusion": confusion}).evidence())
    if renamed:
        assert (
            found is not None and "0→3, 1→0, 2→1, 3→2, 4→5" in found.evidence[0] and "72.4 instead" in found.evidence[0]
        )


# A quarter of the labels here are wrong, and none in training.
QUARTER = RISE.but(
    arrays={"tail": {"share": 0.26, "loss": 0.55, "score": 50.0, "temperature": 1.3}},
    paired={"tail_change": 0.09},
    values={"accuracy": 0.72},
    probe={"accuracy": 0.99, "nll": 0.1},
)


@pytest.mark.parametrize(
    ("situation", "named"),
    [
        (QUARTER, True),
        (QUARTER.but(probe={"accuracy": 0.8}), False),
        (QUARTER.but(before={"accuracy": 0.74}, context={"train_accuracy": 0.95}), True),
        (QUARTER.but(before={"accuracy": 0.74}, context={"train_accuracy": 0.86}), False),
        (QUARTER.but(paired={"tail_change": 0.07}), False),
        (QUARTER.but(arrays={"tail": {"share": 0.26, "loss": 0.55, "score": 50.0, "temperature": 1.7}}), False),
        (QUARTER.but(arrays={"tail": {"share": 0.26, "loss": 0.55, "score": 25.0, "temperature": 1.3}}), False),
        (QUARTER.but(arrays={"tail": {"share": 0.4, "loss": 0.55, "score": 50.0, "temperature": 1.3}}), False),
    ],
    ids=[
        "wrong",
        "in training too",
        "so it was",
        "learnt by heart since",
        "carry less",
        "over-confident",
        "less certain",
        "too many",
    ],
)
def test_a_large_tail_needs_more_evidence(situation: Situation, named: bool) -> None:
    assert (RULES["hard-tail"](situation.evidence()) is not None) is named


def test_a_probe_that_is_there_is_not_asked_for() -> None:
    evidence = TIGHT.but(values={"accuracy": 0.2}, probe={"accuracy": 0.845}).evidence()
    probes: list[Record] = [replace(record, stage="train_probe") for record in evidence.train_probe]
    texts = [
        " ".join(remedies("validation-mismatch", evidence.current, evidence.current, series))
        for series in ((*evidence.series, *probes), tuple(evidence.series))
    ]
    assert "84.5 % on training rows in eval mode, 20.0 % here" in texts[0] and "train_probe=True" not in texts[0]
    assert "train_probe=True" in texts[1]


def test_remedies_of_a_schedule_that_ended_and_of_logits_that_are_cut_off() -> None:
    ended = run(LITTLE, 12, learning_rate=[1e-2 * 0.1**place for place in range(12)])
    first = remedies("learning-rate-too-low", ended.current, ended.current, ended.series)[0]
    assert "the rate fell from 0.01 to 1e-13 in 12 evaluations" in first and '"interval": "epoch"' in first
    steady = run(LITTLE, 12, learning_rate=[1e-5] * 12)
    assert "raise" in remedies("learning-rate-too-low", steady.current, steady.current, steady.series)[0]
    cut = CUT.evidence().current
    assert "no nn.ReLU, clamp or rounding" in remedies("dead-activations", cut, cut)[0]
    few = CUT.but(arrays={"excluded": {"ties": 90}}).evidence().current
    assert "no nn.ReLU" not in " ".join(remedies("dead-activations", few, few))
