"""What a reader's ordinary scripts were told wrongly once: averages that never catch up, labels that smoothing is meant
to blur, weights in no optimizer, steps that are too large to learn anything, and remedies that could not help.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from lightning_lossacc.diagnosis.catalogue import RULES
from lightning_lossacc.history import Record
from lightning_lossacc.remedies import remedies
from tests.situations import PRIOR, STATE, classes, reported

RECORD = STATE.evidence().current


def first_remedy(cause: str, record: Record) -> str:
    """What is said first about a cause found at this evaluation."""
    return remedies(cause, record, record)[0]


@pytest.mark.parametrize(("reached", "named"), [(0.36, True), (0.55, False)])
def test_validation_that_comes_nowhere_near_first_sight(reached: float, named: bool) -> None:
    """An average that forgets too slowly: accuracy creeps up, and training rows were 68 % accurate at first sight."""
    rows = {"train_classes": [130] * 10}
    records = [
        replace(
            RECORD,
            epoch=epoch,
            global_step=10 * epoch,
            arrays=rows,
            values=RECORD.values
            | {"accuracy": 0.3 + (reached - 0.3) * epoch / 14, "nll": 2.0 - 0.01 * epoch, "refinement_nll": 1.99}
            | {"temperature": 1.0, "accuracy_standard_error": 0.01},
            context={"train_accuracy": 0.68 + 0.02 * epoch, "train_nll": 1.0 - 0.06 * epoch},
        )
        for epoch in range(15)
    ]
    events = [event for event in reported(records) if event.event == "behind-first-sight"]
    assert [(event.cause, event.level, event.epoch) for event in events[:1]] == (
        [("validation-mismatch", "warning", 9)] if named else []
    )


@pytest.mark.parametrize(
    ("terms", "level"),
    [("smoothing 0.1 and class weights", "info"), ("smoothing 0.4", "warning"), ("smoothing 0.001", "warning")],
)
def test_usual_smoothing_is_no_warning(terms: str, level: str) -> None:
    """The training steps smooth, the logged loss does not: the best temperature stays below 1, as it is meant to."""
    values = RECORD.values | {"nll": 0.3, "refinement_nll": 0.21, "temperature": 0.45}
    records = [
        record
        for epoch in range(15)
        for record in (
            replace(RECORD, stage="train", arrays={"loss_terms": terms}, epoch=epoch, global_step=10 * epoch + 9),
            replace(RECORD, arrays={}, values=values, epoch=epoch, global_step=10 * epoch + 10),
        )
    ]
    event = [event for event in reported(records) if event.cause == "under-confidence"][-1]
    assert event.level == level
    # A thousandth cannot bring 0.09 nats.
    assert (f"your loss has {terms}, which brings this" in event.causes[0].against) == (terms != "smoothing 0.001")


def test_where_nothing_was_learnt_frozen_weights_come_first() -> None:
    text = first_remedy("nothing-learned", replace(RECORD, context={"frozen_share": 0.995}))
    assert "99.5 % of its weights are frozen or in no optimizer" in text and "all of them in the optimizer" in text
    assert "overfit_batches" in first_remedy("nothing-learned", replace(RECORD, context={"frozen_share": 0.2}))


@pytest.mark.parametrize(
    ("top", "wider"), [(0.7, "0.7 would cut few"), (3e5, "4.0 would cut few"), (math.nan, "0.4 would cut half")]
)
def test_clipping_that_cuts_every_step_is_loosened(top: float, wider: str) -> None:
    context = {"gradient_norm": 0.4, "gradient_norm_max": top, "gradient_clip": 0.001, "learning_rate": 0.1}
    text = first_remedy("learning-rate-too-low", replace(RECORD, context=context))
    assert f"by 400 times each; gradient_clip_val={wider} of the sampled ones" in text


@pytest.mark.parametrize(("training", "where"), [(0.45, "renumber what training learns from"), (0.63, "of this set")])
def test_renumber_where_the_numbers_differ(training: float, where: str) -> None:
    """Of a teacher whose classes stand in another order, training rows are as wrong as these."""
    confusion = [[300.0, 0.0, 0.0], [0.0, 30.0, 270.0], [0.0, 290.0, 10.0]]
    values = RECORD.values | {"accuracy": 0.38}
    record = replace(RECORD, values=values, arrays={"confusion": confusion}, context={"train_accuracy": training})
    text = first_remedy("label-mapping-mismatch", record)
    assert where in text and "1 → 2, 2 → 1 gives accuracy 95.6 % instead of 38.0 %" in text


def test_without_a_layer_of_two_modes_it_is_the_weights() -> None:
    context = {"batch_norm_layers": 0.0, "dropout": 0.0}
    said = remedies("train-eval-mismatch", replace(RECORD, context=context), RECORD)
    assert said[0].startswith("validate the weights that were trained")
    assert not any("running statistics" in text for text in said)
    for acts in ({"batch_norm_layers": 2.0}, {"dropout": 0.3}):
        assert not first_remedy("train-eval-mismatch", replace(RECORD, context=context | acts)).startswith("validate")


def test_a_layer_that_was_never_alive_has_wrong_initial_values() -> None:
    dead = replace(RECORD, context={"dead_units": 1.0})
    assert first_remedy("dead-activations", dead).startswith("initial values")
    for record, before in (
        (dead, replace(RECORD, context={"dead_units": 0.1}, global_step=1)),
        (replace(RECORD, context={"dead_units": 0.0, "saturated_units": 1.0}), RECORD),
    ):
        said = remedies("dead-activations", record, record, (before, record))
        assert said[0].startswith("leaky activations") and len(set(said)) == len(said)


@pytest.mark.parametrize(("ratio", "named"), [(0.03, True), (0.015, False)])
def test_steps_that_are_too_large_to_learn_more_than_shares(ratio: float, named: bool) -> None:
    """The training loss stays at that of guessing; with usual steps the inputs say nothing, or the labels."""
    level = {"nll": PRIOR + 0.01, "refinement_nll": PRIOR, "accuracy": 0.1, "balanced_accuracy": 0.1}
    situation = STATE.but(
        values=level, before=level, context={"update_ratio": ratio, "learning_rate": 0.05}, train=(PRIOR + 0.01,) * 6
    )
    found = RULES["learning-rate-too-high"](situation.evidence())
    assert (found is not None) == named
    if found is not None:
        assert "3 % of their size" in found.evidence[1]


def test_training_rows_of_other_shares_are_not_measured_by_these() -> None:
    """A set with 99 % in one class has an entropy of 0.06 nats: a training NLL of 0.2 is not that of guessing."""
    falling = tuple(0.21 - 0.003 * place for place in range(8))
    for rows in ([990, 10], [1000]):
        situation = STATE.but(
            values={"nll": 0.07, "refinement_nll": 0.06},
            context={"update_ratio": 0.03, "learning_rate": 0.05},
            train=falling,
            arrays=classes(rows, rows, rows) | {"train_classes": [500, 500]},
        )
        assert RULES["learning-rate-too-high"](situation.evidence()) is None
