"""What ordinary scripts with one mistake looked like that was named wrongly once: copies made before a split, classes
under other names without a confusion table, a few corrupt batches, frozen weights, and what is a mere consequence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.swa_utils import AveragedModel

from lightning_lossacc.attribution import accuracy_spread
from lightning_lossacc.diagnosis.catalogue import RULES, RULING_CAUSES, explain, find_causes, follows
from lightning_lossacc.diagnosis.changes import Stream
from lightning_lossacc.diagnosis.engine import _keep_first, _why_unknown
from lightning_lossacc.diagnosis.event import Event
from lightning_lossacc.diagnosis.evidence import Evidence
from lightning_lossacc.diagnosis.states import little_learnt, loss_high
from lightning_lossacc.history import Record
from lightning_lossacc.matches import twins
from lightning_lossacc.modes import frozen_share
from lightning_lossacc.remedies import remedies
from tests.situations import DOUBT, REPORTED, RISE, STATE, TAIL, TAILED, Situation, classes, reported


def _reported(cause: str, evidence: Evidence) -> Event:
    """An event as it was reported, with this first cause."""
    found = RULES[cause](evidence)
    assert found is not None
    return replace(REPORTED, causes=(found,))


def examined(records: Iterable[Record]) -> list[Event]:
    """All reports on these evaluations, numbered from 0."""
    return reported(replace(record, epoch=epoch, global_step=epoch) for epoch, record in enumerate(records))


def with_series(situation: Situation, arrays: list[dict[str, Any]], contexts: list[dict[str, float]]) -> Evidence:
    """Evidence whose evaluations have these arrays and contexts, one an epoch; the last one is the current."""
    evidence = situation.evidence()
    series = [
        replace(
            evidence.current,
            epoch=epoch,
            global_step=10 * epoch,
            arrays=evidence.current.arrays | added,
            context=evidence.current.context | context,
        )
        for epoch, (added, context) in enumerate(zip(arrays, contexts, strict=True))
    ]
    start = series[-1] if evidence.is_static else evidence.reference
    return replace(evidence, reference=start, current=series[-1], series=series)


TABLE = {"class": list(range(10)), "rows": [100] * 10, "predicted": [100] * 10, "correct": [15] * 10}


# -- copies that were made before the split ----------------------------------------------------------------------------


def test_twins_tell_what_the_rows_without_one_cost() -> None:
    """Of 200 rows 80 stand in both sets; those cost 0.1 nats, the others 1.0."""
    generator = torch.Generator().manual_seed(0)
    mine, theirs = (torch.randn(200, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    target = torch.arange(200) % 4
    theirs[:80] = mine[:80]
    nll = torch.where(torch.arange(200) < 80, 0.1, 1.0) + 0.01 * (torch.arange(200) % 2)
    found = twins(mine, target, nll, theirs, target)
    assert found is not None and (found["share"], found["others"]) == (0.4, 120)
    assert found["nll"] == pytest.approx(0.105) and found["others_nll"] == pytest.approx(1.005)
    # Under other targets they are no copies; nor are outputs that a tenth of all rows have.
    assert twins(mine, target, nll, theirs, target.roll(1)) is None
    theirs[:30] = mine[:30] = mine[0]
    assert twins(mine, 0 * target, nll, theirs, 0 * target) is None


PAID = {"share": 0.46, "nll": 0.3, "others_nll": 0.8, "error": 0.1, "others": 200.0}


@pytest.mark.parametrize(
    ("shares", "now", "named"),
    [
        ([0.46] * 5, {}, True),
        ([0.46] * 2, {}, False),
        ([0.1, 0.2, 0.3, 0.4, 0.46], {}, False),
        ([0.15] * 5, {}, False),
        ([0.46] * 5, {"others_nll": 0.55}, False),
        ([0.46] * 5, {"error": 0.25}, False),
        ([0.46] * 5, {"nll": 0.01, "others_nll": 0.04, "error": 1e-3}, False),
    ],
    ids=["copies", "seen too seldom", "the network's doing", "few", "cost little more", "by chance", "cost nothing"],
)
def test_rows_with_a_twin_are_known_by_heart(shares: list[float], now: dict[str, float], named: bool) -> None:
    arrays = [{"twins": PAID | now | {"share": share}} for share in shares]
    evidence = with_series(STATE, arrays, [{}] * len(arrays))
    found = RULES["leakage"](evidence)
    assert (found is not None) is named
    if found is not None:
        assert "46 % of the validation rows" in found.evidence[0] and "0.8000 on the 200 without" in found.evidence[1]


# -- names of classes without a confusion table ------------------------------------------------------------------------

# Pixels: a background, and three classes of which two go to each other.
PIXELS = STATE.but(
    context={"train_accuracy": 0.98},
    arrays=classes([7500, 900, 800, 800], [7500, 800, 800, 900], [7400, 5, 780, 3]),
    items=10000,
)


def test_classes_below_chance_need_training_that_knows_them() -> None:
    """Before training a network that answers with its input is never right: no name of a class is other."""
    for context in ({"train_accuracy": 0.02}, {"train_accuracy": math.nan}):
        assert RULES["label-mapping-mismatch"](PIXELS.but(values={"accuracy": 0.0}, context=context).evidence()) is None


@pytest.mark.parametrize(
    ("table", "named"),
    [
        (([7500, 900, 800, 800], [7500, 800, 800, 900], [7400, 5, 780, 3]), True),
        (([7500, 900, 800, 800], [7500, 800, 800, 900], [7400, 5, 780, 60]), False),
        (([7500, 900, 800, 800], [8900, 150, 800, 150], [7400, 0, 780, 0]), False),
        (([7500, 90, 1600, 80], [7500, 80, 1600, 90], [7400, 0, 1580, 0]), False),
    ],
    ids=["two exchanged", "one of them by chance", "seldom predicted", "few rows"],
)
def test_classes_below_chance_are_known_under_other_names(table: tuple[list[int], ...], named: bool) -> None:
    found = RULES["label-mapping-mismatch"](PIXELS.but(arrays=classes(*table)).evidence())
    assert (found is not None) is named
    if found is not None:
        assert "classes 1, 3 are predicted in 1700 rows and right in 8 of them; by chance" in found.evidence[0]


# -- penalties, bursts and rates ---------------------------------------------------------------------------------------

PENALISED = STATE.but(
    values={"nll": 0.3, "refinement_nll": 0.25, "temperature": 0.6}, context={"penalty": 0.1}, probe={"nll": 0.29}
)


@pytest.mark.parametrize(
    ("situation", "named"),
    [
        (PENALISED, True),
        (PENALISED.but(values={"refinement_nll": 0.29}), False),
        (PENALISED.but(values={"refinement_nll": 0.1}), False),
        (PENALISED.but(values={"refinement_nll": 0.1}, context={"penalty": 0.7}), True),
        (PENALISED.but(arrays={"loss_terms": "label smoothing 0.1"}), False),
    ],
    ids=["rules", "saves next to nothing", "most is learnt", "most is learnt under twice the loss", "smoothing"],
)
def test_a_penalty_that_rules(situation: Situation, named: bool) -> None:
    assert (RULES["over-regularisation"](situation.evidence()) is not None) is named


@pytest.mark.parametrize(("norm", "decay", "named"), [(9.0, 1e-3, False), (6.0, 1e-3, True), (9.0, 1e-2, True)])
def test_a_rise_under_the_same_penalty_is_not_its_doing(norm: float, decay: float, named: bool) -> None:
    """Weights that have grown from 6 to 9 under the decay that was there before were not held down by it."""
    evidence = PENALISED.but(static=False, paired={"nll_change": 0.1}).evidence()
    before = replace(evidence.reference, context={"weight_norm": 6.0, "weight_decay": 1e-3})
    context = evidence.current.context | {"weight_norm": norm, "weight_decay": decay}
    current = replace(evidence.current, context=context)
    found = RULES["over-regularisation"](replace(evidence, reference=before, current=current))
    assert (found is not None) is named


STEADY = [{"weight_norm": 6.0 + 0.02 * epoch, "train_nll": 0.35} for epoch in range(8)]


@pytest.mark.parametrize(
    ("norm", "train_nll", "loss", "named"),
    [(8.6, 10.0, 1.9, True), (6.2, 10.0, 1.9, False), (8.6, 0.36, 1.9, False), (8.6, 10.0, 0.8, False)],
    ids=["a burst", "the weights stay", "training does", "the loss does"],
)
def test_a_few_batches_that_made_the_weights_leap(norm: float, train_nll: float, loss: float, named: bool) -> None:
    contexts = [*STEADY, {"weight_norm": norm, "train_nll": train_nll}, {"weight_norm": norm, "train_nll": 1.8}]
    evidence = with_series(RISE, [{}] * 10, contexts)
    losses = [0.5] * 8 + [loss, 1.5]
    series = [
        replace(record, values=record.values | {"nll": value})
        for record, value in zip(evidence.series, losses, strict=True)
    ]
    found = RULES["blow-up"](replace(evidence, series=series, current=series[-1]))
    assert (found is not None) is named
    if found is not None:
        assert "between steps 70 and 80 (epoch 8) the norm of the weights leapt from 6.14 to 8.6" in found.evidence[0]
        text = " ".join(remedies("blow-up", series[-1], series[0], tuple(series)))
        assert "look at the batches of epoch 8, whose training loss is 28.6 times" in text


@pytest.mark.parametrize(("now", "start", "named"), [(1.5, 0, True), (0.6, 0, False), (1.5, 85, False)])
def test_a_leap_that_is_over_or_came_before_is_no_reason(now: float, start: int, named: bool) -> None:
    contexts = [*STEADY, {"weight_norm": 8.6, "train_nll": 10.0}, {"weight_norm": 8.6, "train_nll": 1.8}]
    evidence = with_series(RISE, [{}] * 10, contexts)
    series = [
        replace(record, values=record.values | {"nll": value})
        for record, value in zip(evidence.series, [0.5] * 8 + [1.9, now], strict=True)
    ]
    reference = replace(evidence.reference, global_step=start)
    evidence = replace(evidence, series=series, current=series[-1], reference=reference)
    assert (RULES["blow-up"](evidence) is not None) is named


def test_training_that_pays_for_the_rise_is_no_overfitting() -> None:
    """The mean of a first epoch is high; from the second on the training loss rises with that of validation."""
    train = [1.33, 0.95, 1.0, 1.1, 1.2, 1.25, 1.22, 1.25]
    situation = RISE.but(
        values={"nll": 1.2},
        before={"nll": 0.8},
        paired={"nll_change": 0.4, "refinement_change": 0.4, "refinement_change_error": 0.02},
    )
    evidence = with_series(situation, [{}] * 8, [{"train_nll": loss, "update_ratio": 0.014} for loss in train])
    reference = replace(evidence.reference, context={"train_nll": 1.33}, global_step=0)
    evidence = replace(evidence, reference=reference)
    assert evidence.training_rise == pytest.approx(0.3)
    assert [cause.cause for cause in find_causes("loss-up-accuracy-down", evidence)] == ["learning-rate-too-high"]
    slow = replace(evidence, series=[replace(r, context=r.context | {"update_ratio": 4e-3}) for r in evidence.series])
    assert find_causes("loss-up-accuracy-down", slow) == ()


@pytest.mark.parametrize(("momentum", "swing", "named"), [(0.99, 0.3, True), (0.1, 0.3, False), (0.99, None, False)])
def test_statistics_of_the_last_batch_make_the_loss_swing(momentum: float, swing: float | None, named: bool) -> None:
    details = {} if swing is None else {"swing": swing}
    situation = STATE.but(context={"batch_norm_layers": 2.0, "batch_norm_momentum": momentum}, details=details)
    found = find_causes("oscillation", situation.evidence())
    assert (bool(found) and found[0].cause == "train-eval-mismatch") is named
    if named:
        assert "momentum of 0.99" in found[0].evidence[0]


# -- consequences ------------------------------------------------------------------------------------------------------


def test_consequences_do_not_stand_beside_their_reason() -> None:
    assert follows("over-confidence", "label-mapping-mismatch") and follows("nothing-learned", "train-eval-mismatch")
    assert not follows("over-confidence", "leakage") and not follows("blow-up", "label-mapping-mismatch")
    for ruling in RULING_CAUSES:
        assert not any(follows(cause, ruling) for cause in ("unknown", "leakage", "prior-shift", "overfitting"))
    swapped = {"confusion": [[0, 100, 0], [100, 0, 0], [0, 0, 100]]}
    risen = RISE.but(arrays=swapped)
    assert RULES["over-confidence"](risen.evidence()) is not None
    assert [cause.cause for cause in find_causes("loss-up-accuracy-flat", risen.evidence())] == [
        "label-mapping-mismatch"
    ]


@pytest.mark.parametrize(("temperature", "beside"), [(0.9, False), (1.6, True)])
def test_rows_without_the_tail_decide_on_over_confidence(temperature: float, beside: bool) -> None:
    situation = TAILED.but(arrays={"tail": TAIL | {"temperature": temperature}})
    named = [cause.cause for cause in find_causes("loss-up-accuracy-flat", situation.evidence())]
    assert named == (["hard-tail", "over-confidence"] if beside else ["hard-tail"])


def test_a_consequence_opens_no_event_of_its_own() -> None:
    """Two rare classes are exchanged: that they are missed, and what it costs, is not said once more."""
    rows = {"class": [0, 1, 2], "rows": [900, 60, 40], "predicted": [900, 40, 60], "correct": [890, 0, 0]}
    arrays = {"classes": rows, "confusion": [[890, 5, 5], [0, 0, 60], [0, 40, 0]]}
    values = {"accuracy": 0.89, "balanced_accuracy": 0.33, "nll": 0.9, "refinement_nll": 0.5, "temperature": 3.0}
    first = STATE.but(values=values, arrays=arrays).evidence().current
    assert {event.cause for event in examined([first] * 12) if event.level == "warning"} == {"label-mapping-mismatch"}
    other = STATE.but(values=values, arrays={"classes": rows}).evidence().current
    assert "class-imbalance" in {event.cause for event in examined([other] * 12) if event.level == "warning"}


def test_a_mode_that_may_be_meant_hides_no_leak_and_no_rise() -> None:
    """Dropout that acts in evaluation is said once; copies and a rise of the loss are said beside it."""
    evidence = STATE.but(context={"training_layers": 1.0}, arrays={"twins": PAID}).evidence()
    first = replace(evidence.current, arrays={"twins": PAID})
    risen = [{"nll": 0.5 + 0.03 * max(0, epoch - 10), "refinement_nll": 0.45} for epoch in range(30)]
    seen = examined(replace(first, values=first.values | values) for values in risen)
    warnings = {event.event.split("-accuracy")[0] for event in seen if event.level == "warning"}
    assert {"train-eval-gap", "val-better-than-train", "loss-up"} <= warnings


def test_what_was_reported_stays_first_where_a_mode_rules_once() -> None:
    """Doubled at an evaluation in training mode: over-confidence, which follows from it, was there before."""
    evidence = RISE.evidence()
    reported = _reported("over-confidence", evidence)
    ruled = RISE.but(context={"training_layers": 1.0}).evidence()
    kept = _keep_first("loss-up-accuracy-flat", find_causes("loss-up-accuracy-flat", ruled), reported)
    assert [cause.cause for cause in kept] == ["over-confidence", "train-eval-mismatch"]


def test_a_collapse_is_no_shift_to_less_confidence() -> None:
    assert RULES["unconfident-shift"](DOUBT.evidence()) is not None
    assert RULES["unconfident-shift"](DOUBT.but(values={"predicted_majority_rate": 1.0}).evidence()) is None


@pytest.mark.parametrize(("first", "level"), [(0.25, "info"), (0.44, "warning")])
def test_confidence_that_still_grows_is_no_warning(first: float, level: str) -> None:
    """The best temperature comes nearer to 1 while the loss falls, or stays where it is."""
    record = replace(STATE.evidence().current, arrays={})
    columns = [
        {"nll": 0.6 - 0.3 * share, "refinement_nll": 0.45 - 0.24 * share, "temperature": first + (0.46 - first) * share}
        for share in (epoch / 29 for epoch in range(30))
    ]
    events = examined(replace(record, values=record.values | values) for values in columns)
    seen = [event for event in events if event.cause == "under-confidence"]
    assert seen and seen[-1].level == level


# -- weights that do not learn, and words ------------------------------------------------------------------------------


@pytest.mark.parametrize(("frozen", "named"), [(0.97, True), (0.2, False)])
def test_little_is_learnt_with_frozen_weights(frozen: float, named: bool) -> None:
    situation = STATE.but(
        values={"nll": 2.05, "refinement_nll": 2.03, "temperature": 0.4},
        context={"frozen_share": frozen},
        probe={"nll": 2.04},
    )
    evidence = with_series(situation, [{}] * 12, [{}] * 12)
    opening = little_learnt(Stream(list(evidence.series), evidence.current, [], list(evidence.train_probe)), None)
    assert opening is not None
    found = find_causes("little-learnt", opening.evidence)
    assert [cause.cause for cause in found] == (["capacity-limit"] if named else [])
    if named:
        assert "but where little was learnt" in explain("capacity-limit")
        falling = [
            replace(record, values=record.values | {"nll": 2.6 - 0.05 * place})
            for place, record in enumerate(evidence.series)
        ]
        slow = replace(opening.evidence, series=falling, current=falling[-1])
        assert find_causes("little-learnt", slow) == ()
        text = remedies("capacity-limit", evidence.current, evidence.current)[0]
        assert "97 % of the weights are frozen" in found[0].evidence[0] and "97 % of its weights" in text


def test_little_is_not_said_of_more_classes_than_are_listed() -> None:
    """The entropy of 64 classes and the rest as one is far below that of all of them."""
    table = {"class": [*range(9), -1], "rows": [10] * 9 + [910], "predicted": [100] * 10, "correct": [1] * 10}
    situation = STATE.but(values={"nll": 2.4, "refinement_nll": 2.4}, arrays={"classes": table}, probe={"nll": 2.4})
    evidence = with_series(situation, [{}] * 12, [{}] * 12)
    assert little_learnt(Stream(list(evidence.series), evidence.current, [], list(evidence.train_probe)), None) is None


def test_frozen_share() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 1, bias=False))
    assert frozen_share(model) == 0 and frozen_share(nn.ReLU()) == 0
    model[0].requires_grad_(False)
    assert frozen_share(model) == 0.75
    model[0].requires_grad_(True)
    # One that no optimizer has learns as little; where an optimizer has copies only, nothing is known of its weights.
    assert frozen_share(model, [SGD(model[1].parameters(), 0.1)]) == 0.75
    assert frozen_share(model, [SGD(model.parameters(), 0.1)]) == 0
    assert frozen_share(model, [SGD(deepcopy(model).parameters(), 0.1)]) == 0
    # An average of weights is no part of what learns.
    model.append(AveragedModel(deepcopy(model)))
    assert frozen_share(model, [SGD(model[:2].parameters(), 0.1)]) == 0


def test_accuracy_without_an_error_is_not_known_exactly() -> None:
    """500 of 500 right: half a percent of the samples of a classifier that misses 1.05 % would show no error."""
    assert accuracy_spread(0.0, 500) == pytest.approx(0.01054, abs=1e-5)
    assert (1 - accuracy_spread(0.0, 500)) ** 500 == pytest.approx(0.005)
    assert accuracy_spread(0.002, 500) == accuracy_spread(0.0, 500)  # one of 500 is wrong
    assert accuracy_spread(0.01, 500) == pytest.approx(0.0258, abs=1e-4)


@pytest.mark.parametrize(("train", "said"), [(0.95, False), (1.0, True)])
def test_training_far_ahead_speaks_against_confidence_alone(train: float, said: bool) -> None:
    situation = RISE.but(values={"accuracy": 0.78}, probe={"accuracy": train})
    found = RULES["over-confidence"](situation.evidence())
    assert found is not None and any("of another kind" in text for text in found.against) is said


def test_what_is_left_of_a_fall_is_said_in_words() -> None:
    evidence = RISE.but(paired={"nll_change": -0.066, "refinement_change": 0.2, "refinement_change_error": 0.03})
    opening = loss_high(Stream([evidence.evidence().current] * 2, evidence.evidence().current), None)
    assert opening is not None
    text = _why_unknown(replace(opening, evidence=evidence.evidence()))
    assert "so all of it is confidence: nothing else that was measured tells why" in text


def test_a_ceiling_of_frozen_weights_is_a_warning() -> None:
    """A plateau alone is not; next to nothing learnt in ten evaluations is."""
    situation = STATE.but(
        values={"nll": 2.05, "refinement_nll": 2.04, "temperature": 0.9, "accuracy": 0.15},
        context={"frozen_share": 0.97, "train_nll": 2.04, "train_accuracy": 0.15},
    )
    record = replace(situation.evidence().current, arrays={"classes": {**TABLE, "nll": [205.0] * 10}})
    assert [(event.event, event.cause) for event in examined([record] * 12) if event.level == "warning"] == [
        ("little-learnt", "capacity-limit")
    ]
