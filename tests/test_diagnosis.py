"""Events and causes on evaluations whose truth is set by hand: each cause fires on its own situation and not on its
neighbour.

Also the life cycle (opened, doubled, closed; nothing twice), abstention, the online property, and the words.
"""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace

import pytest

from lightning_lossacc.diagnosis import Diagnosis, Event
from lightning_lossacc.diagnosis.changes import Stream, accuracy_down, loss_down
from lightning_lossacc.diagnosis.engine import required_z
from lightning_lossacc.diagnosis.states import hidden_classes
from lightning_lossacc.history import History, Record
from lightning_lossacc.scan import replay
from tests.simulated import Simulation, learning


def warnings_of(events: list[Event]) -> list[Event]:
    return [event for event in events if event.level == "warning"]


def growing(start: int, speed: float) -> object:
    return lambda epoch: 1.0 + speed * max(0, epoch - start)


def test_scale_alone_is_over_confidence() -> None:
    run = Simulation()
    run.run(60, growing(20, 0.05), learning)
    first = warnings_of(run.events)[0]
    assert (first.event, first.cause, first.status) == ("loss-up-accuracy-flat", "over-confidence", "open")
    assert 20 < first.epoch < 45 and first.reference_epoch <= 25
    assert first.causes[0].share > 0.75 and first.evidence["temperature_after"] > 1.05
    change, low, _high = first.evidence["refinement_change"]
    assert low <= 0.005 and abs(change) < 0.25 * first.evidence["probe_nll_change"]
    assert all(event.cause == "over-confidence" for event in warnings_of(run.events))


def test_separation_alone_is_overfitting() -> None:
    run = Simulation()
    run.run(60, lambda epoch: 1.0, lambda epoch: learning(epoch) - 0.03 * max(0, epoch - 20))
    first = warnings_of(run.events)[0]
    assert first.event.startswith("loss-up") and first.cause == "overfitting" and first.causes[0].share > 0.5
    last = warnings_of(run.events)[-1]
    assert last.event == "loss-up-accuracy-down" and last.cause == "overfitting"


def test_both_together_are_mixed_with_both_shares() -> None:
    run = Simulation(num_rows=8000)
    run.run(70, growing(20, 0.03), lambda epoch: learning(epoch) - 0.004 * max(0, epoch - 20))
    last = warnings_of(run.events)[-1]
    assert last.cause == "mixed"
    assert (
        "is left after one temperature" in last.causes[0].evidence[0] and "is confidence" in last.causes[0].evidence[1]
    )


def test_improving_answers_under_growing_scale_are_scale_growth_and_only_info() -> None:
    run = Simulation(num_rows=8000)
    run.run(70, growing(20, 0.12), lambda epoch: learning(epoch, level=2.0) + 0.01 * max(0, epoch - 20))
    ups = [event for event in run.events if event.event == "loss-up-accuracy-up"]
    assert ups and ups[-1].cause == "scale-growth" and ups[-1].level == "info"
    assert ups[-1].evidence["refinement_change"][2] < 0


def test_wider_margins_are_confidence_growth_and_only_info() -> None:
    run = Simulation()
    run.run(60, lambda epoch: 0.3 + 0.01 * epoch, lambda epoch: 2.5)
    downs = [event for event in run.events if event.event == "loss-down-accuracy-flat"]
    assert downs and downs[0].cause == "confidence-growth" and downs[0].level == "info"
    assert not warnings_of(run.events)


def test_loss_down_while_accuracy_falls() -> None:
    run = Simulation(num_rows=4000)
    # Far too confident at first; the scale comes down, and so do the answers.
    run.run(
        60,
        lambda epoch: max(1.0, 6.0 - 0.15 * max(0, epoch - 20)),
        lambda epoch: learning(epoch) - 0.012 * max(0, epoch - 20),
    )
    found = [event for event in run.events if event.event == "loss-down-accuracy-down"]
    assert found and found[0].level == "warning" and found[0].cause == "unconfident-shift" and found[0].epoch > 20


def told(epoch: int, nll: float, accuracy: float, paired: dict[str, dict[str, float]] | None = None) -> Record:
    """One evaluation of 1000 rows."""
    values = {"nll": nll, "accuracy": accuracy}
    return Record("val", 0, epoch, 10 * epoch, 0.0, True, 1000, 1000, values, {}, {}, paired or {})


@pytest.mark.parametrize(
    ("nll", "accuracy", "opens"),
    [
        ((-0.2, 0.05), (-0.05, 0.01), True),
        ((-0.2, 0.06), (-0.05, 0.01), False),  # 3.3 standard errors
        ((-0.2, 0.05), (-0.05, 0.016), False),
        ((-0.09, 0.01), (-0.05, 0.01), False),  # less than two floors of 5 %
        ((-0.2, 0.05), (-0.015, 0.001), False),  # less than two margins of 1 pp
    ],
)
def test_both_fell_row_by_row(nll: tuple[float, float], accuracy: tuple[float, float], opens: bool) -> None:
    """Five restless evaluations in a row, of which no trend is sure: the evidence that is enough for a rise."""
    pair = {"reference_epoch": 0, "reference_step": 0}
    pair |= dict(zip(("nll_change", "nll_change_error"), nll, strict=True))
    pair |= dict(zip(("accuracy_change", "accuracy_change_error"), accuracy, strict=True))
    swings = [(-1) ** epoch for epoch in range(1, 10)]
    series = [told(0, 1.0, 0.8)]
    series += [
        told(epoch, 0.8 + 0.35 * swing, 0.6 + 0.15 * swing, {"accuracy": pair})
        for epoch, swing in enumerate(swings, start=1)
    ]
    opening = accuracy_down(Stream(series, series[-1]), None)
    assert (opening is not None) is opens
    if opening is not None:
        assert opening.event == "loss-down-accuracy-down" and opening.evidence.accuracy.change == accuracy[0]


@pytest.mark.parametrize(("last", "opens"), [(0.53, True), (0.61, False)])
def test_a_loss_that_fell_is_below_that_of_the_evaluation_it_is_named_with(last: float, opens: bool) -> None:
    """A single low loss stands between high ones; later losses are below their level, and above that one or not."""
    sign = [(-1) ** epoch for epoch in range(27)]
    losses = (
        [1.0 + 0.01 * turn for turn in sign[:9]] + [0.6, 1.0, 1.0, 1.0] + [last + 0.01 * turn for turn in sign[13:]]
    )
    accuracies = [0.9 + 0.002 * turn for turn in sign[:9]] + [0.908] + [0.8 + 0.002 * turn for turn in sign[10:]]
    series = [told(epoch, *both) for epoch, both in enumerate(zip(losses, accuracies, strict=True))]
    stream = Stream(series, series[-1])
    assert stream.loss_verdict(series[9]).kind == "down"
    opening = accuracy_down(stream, None)
    assert (opening is not None) is opens
    if opening is not None:
        assert opening.evidence.full_nll_change < 0


@pytest.mark.parametrize(("drift", "opens"), [(0.0, True), (-0.001, False)])
def test_a_level_of_accuracy_is_more_than_its_first_evaluation(drift: float, opens: bool) -> None:
    """A lucky evaluation began it; what followed stands 1 pp below that one, and does not move, or falls."""
    losses = [0.6 - 0.01 * epoch for epoch in range(26)]
    accuracies = [0.8] * 8 + [0.908] + [0.9 + drift * epoch + 0.0005 * (-1) ** epoch for epoch in range(17)]
    series = [told(epoch, *both) for epoch, both in enumerate(zip(losses, accuracies, strict=True))]
    opening = loss_down(Stream(series, series[-1]), None)
    assert (opening is not None) is opens
    if opening is not None:
        assert (opening.onset_epoch, opening.evidence.accuracy.kind) == (8, "flat")


@pytest.mark.parametrize("seed", range(8))
def test_healthy_runs_are_silent(seed: int) -> None:
    run = Simulation(num_rows=600, seed=seed)
    run.run(80, lambda epoch: 1.0, learning, jitter=0.05)
    assert not warnings_of(run.events)


def test_a_rise_below_the_floor_is_silent() -> None:
    # Near miss of over-confidence: the same direction, 3 % of the loss at the end.
    run = Simulation()
    run.run(60, growing(20, 0.006), learning)
    nll = run.history.column("nll")
    assert 0.005 * min(nll) < nll[-1] - min(nll) < 0.05 * min(nll)
    assert not warnings_of(run.events)


def test_opened_doubled_closed_and_nothing_twice() -> None:
    run = Simulation()
    for epoch in range(70):
        run.evaluate(1.0 + 0.06 * max(0, min(epoch, 50) - 20), learning(epoch))
    for _ in range(8):
        run.evaluate(1.0, 2.6)
    statuses = [event.status for event in warnings_of(run.events)]
    assert statuses[0] == "open" and statuses[-1] == "closed"
    # The word for the accuracy becomes certain once; everything else is a doubling.
    assert set(statuses[1:-1]) <= {"doubled", "revised"} and statuses.count("revised") <= 1 and len(statuses) <= 6
    reports = [event for event in warnings_of(run.events) if event.status in ("open", "doubled")]
    changes = [event.evidence["nll_change"] for event in reports]
    assert all(later >= 2 * earlier for earlier, later in itertools.pairwise(changes))
    assert len({event.id for event in warnings_of(run.events)}) == 1
    assert warnings_of(run.events)[-1].message.startswith("closed: over-confidence")


def test_a_rise_is_over_at_its_own_level_whatever_came_below() -> None:
    """A lucky evaluation of a new, lower level is no reference for what was reported against the old one."""
    run = Simulation()
    run.run(50, growing(20, 0.06), lambda epoch: learning(epoch, level=2.0))
    opened = warnings_of(run.events)
    assert opened and opened[-1].status != "closed"
    run.evaluate(1.0, 3.0)
    for _ in range(9):
        run.evaluate(1.0, 2.8)
    level, lucky, now = (run.history.column("nll")[place] for place in (19, 50, -1))
    assert 1.05 * lucky < now < level
    assert warnings_of(run.events)[-1].status == "closed"


def test_what_comes_and_goes_at_the_limit_is_one_event() -> None:
    run = Simulation()
    run.run(45, growing(20, 0.06), learning)
    opened = len(warnings_of(run.events))
    assert opened
    for _ in range(6):
        # Gone for three evaluations, back for three.
        for scale in (1.0, 1.0, 1.0, 2.5, 2.5, 2.5):
            run.evaluate(scale, 2.5)
    later = [event.status for event in warnings_of(run.events)[opened:]]
    assert "closed" not in later and "open" not in later


def test_four_evaluations_open_on_paired_evidence_alone() -> None:
    run = Simulation(num_rows=4000)
    run.evaluate(1.0, 2.0)
    run.evaluate(1.0, 2.5)
    assert not [event for event in run.evaluate(2.5, 2.5) if event.event.startswith("loss-up")]
    found = [event for event in run.evaluate(2.5, 2.5) if event.event.startswith("loss-up")]
    assert [event.cause for event in found] == ["over-confidence"] and found[0].generalises == "shown"
    unpaired = Simulation(num_rows=4000, paired=False)
    for scale, separation in ((1.0, 2.0), (1.0, 2.5), (2.5, 2.5), (2.5, 2.5)):
        assert not [event for event in unpaired.evaluate(scale, separation) if event.event.startswith("loss-up")]


@pytest.mark.parametrize(("update_ratio", "opens"), [(1e-4, True), (0.02, False)])
def test_early_rises_under_large_steps_wait(update_ratio: float, opens: bool) -> None:
    """The same four evaluations: of a fine-tuning, and of a training whose steps move the weights by 2 %."""
    run = Simulation(num_rows=4000)
    for scale, separation in ((1.0, 2.0), (1.0, 2.5), (2.5, 2.5), (2.5, 2.5)):
        run.evaluate(scale, separation)
    told = History(replace(record, context={"update_ratio": update_ratio}) for record in run.history)
    assert opens == any(event.event.startswith("loss-up") for event in replay(told))


def test_without_pairs_no_cause_is_named() -> None:
    run = Simulation(paired=False)
    run.run(60, growing(20, 0.05), learning)
    first = warnings_of(run.events)[0]
    assert first.cause == "unknown" and "could not be paired" in first.causes[0].evidence[0]
    assert first.generalises == "not-shown" and "no cause is named" in first.message


def test_beyond_the_grid_the_loss_after_one_temperature_is_an_upper_bound() -> None:
    """Scale alone grows, past the largest temperature: what is measured there is enough to call it confidence."""
    run = Simulation()
    run.run(50, lambda epoch: 1.0 + 0.8 * max(0, epoch - 20), learning)
    beyond = [event for event in warnings_of(run.events) if event.evidence["temperature_after"] == 8.0]
    assert beyond and all(event.cause == "over-confidence" for event in beyond)
    assert "8.00 or beyond" in " ".join(beyond[-1].causes[0].evidence)


def test_flat_is_never_said_while_balanced_accuracy_falls() -> None:
    run = Simulation()
    run.run(50, growing(20, 0.05), learning)
    history = History()
    for record in run.history:
        values = dict(record.values)
        values["balanced_accuracy"] -= 0.004 * max(0, record.epoch - 20)
        history.append(replace(record, values=values))
    diagnosis, events = Diagnosis(), []
    for length in range(1, len(history) + 1):
        events += diagnosis.examine(History(history.records[:length]))
    named = {event.event for event in events if event.event.startswith("loss-up")}
    assert named and "loss-up-accuracy-flat" not in named


def test_decisions_use_only_the_past_and_survive_a_restart() -> None:
    run = Simulation()
    run.run(50, growing(20, 0.05), learning)
    fresh, events = Diagnosis(), []
    for length in range(1, len(run.history) + 1):
        restarted = Diagnosis()
        restarted.load_state(fresh.state())
        fresh = restarted
        events += fresh.examine(History(run.history.records[:length]))
    assert [event.to_json() for event in events] == [event.to_json() for event in run.events]


def test_another_number_of_rows_is_another_set() -> None:
    run = Simulation()
    run.run(60, growing(20, 0.05), learning)
    history = History(replace(record, num_rows=2000 + record.epoch) for record in run.history)
    diagnosis = Diagnosis()
    for length in range(1, len(history) + 1):
        # What one evaluation shows may be said of each of them; a change from another set may not.
        found = diagnosis.examine(History(history.records[:length]))
        assert {event.event for event in found} <= {"loss-high-for-accuracy"}


def test_a_handful_of_items_says_nothing() -> None:
    few, enough = Simulation(num_rows=9, seed=1), Simulation(num_rows=60, seed=1)
    for run in (few, enough):
        run.run(60, growing(20, 0.2), learning)
    assert not few.events and warnings_of(enough.events)


def test_generalises_needs_more_than_the_set_itself() -> None:
    # A small validation set shows the rise on itself, not on new data; a large one shows it on both.
    small, large = Simulation(num_rows=150, seed=3), Simulation(num_rows=8000, seed=3)
    for run in (small, large):
        run.run(60, growing(20, 0.03), learning, jitter=0.01)
    assert warnings_of(small.events)[0].generalises == "not-shown"
    assert warnings_of(large.events)[0].generalises == "shown"
    assert warnings_of(small.events)[0].evidence["items_needed_to_show"] > 150
    assert required_z(10) < required_z(100) < 7


def test_message_has_the_numbers_and_at_most_eight_lines() -> None:
    run = Simulation()
    run.run(60, growing(20, 0.05), learning)
    event = warnings_of(run.events)[0]
    lines = event.message.splitlines()
    assert len(lines) <= 8 and max(map(len, lines)) < 200
    epochs = f"opened at epoch {event.epoch} · since epoch {event.reference_epoch}"
    assert lines[0] == f"over-confidence · val · {epochs} · loss up, accuracy flat"
    before, after = event.evidence["nll_before"], event.evidence["nll_after"]
    assert f"NLL {before:.4f} → {after:.4f} ({after - before:+.4f}" in lines[1]
    assert "rows wrong both times" in lines[2] and "after one temperature" in lines[3]
    assert lines[4].startswith("do: logits / T with T = ") and "cross-fitted" in lines[4]
    assert "best epoch by refined NLL" in lines[5]


def test_attribution_adds_up_to_1e_9() -> None:
    run = Simulation()
    run.run(60, growing(20, 0.05), lambda epoch: learning(epoch), turn=0.0, jitter=0.1)
    for event in run.events:
        if not event.attribution:
            continue
        parts = event.attribution
        for name in ("by_group", "by_temperature"):
            assert math.fsum(parts[name].values()) == pytest.approx(parts["nll_change"], abs=1e-9)
        assert parts["nll_change"] + parts["outside_probe"] == pytest.approx(parts["full_nll_change"], abs=1e-9)


def test_event_survives_json() -> None:
    run = Simulation()
    run.run(45, growing(20, 0.05), learning)
    for event in run.events:
        assert Event.from_json(event.to_json()).to_json() == event.to_json()
    saved = copy.deepcopy(run.diagnosis.state())
    other = Diagnosis()
    other.load_state(saved)
    assert other.state() == saved


@pytest.mark.parametrize(("collapsed", "lasting"), [(7, True), (0, False)])
def test_rare_classes_are_missed_since_the_collapse(collapsed: int, lasting: bool) -> None:
    """Evaluations that gave every row to the frequent class count as well, and while they last have another name."""

    def record(epoch: int, predicted: int) -> Record:
        rare = 1000 - predicted
        values = {
            "nll": 0.5,
            "accuracy": 0.9 + 0.0002 * rare,
            "balanced_accuracy": 0.5 + 0.002 * rare,
            "predicted_majority_rate": predicted / 1000,
            "majority_rate": 0.9,
        }
        table = {"class": [0, 1], "rows": [900, 100], "predicted": [predicted, rare], "correct": [900, rare]}
        return Record("val", 0, epoch, 10 * epoch, 0.0, True, 1000, 1000, values, {"classes": table})

    series = [record(epoch, 1000) for epoch in range(collapsed)]
    assert not series or hidden_classes(Stream(series, series[-1]), None) is None
    series.append(record(collapsed, 980))
    opening = hidden_classes(Stream(series, series[-1]), None)
    assert opening is not None and opening.lasting is lasting


@pytest.mark.parametrize(
    ("shares", "ratio", "cause"),
    [
        ([0.3, 0.4] + [0.95] * 10, 0.3, "learning-rate-too-high"),
        ([0.95] * 11, 0.001, "dead-activations"),
        ([0.95] * 9, 0.001, ""),
        ([0.95] + [math.nan] * 9, 0.001, ""),
        ([0.3, 0.4] + [0.8] * 10, 0.3, "learning-rate-too-high"),
        ([0.3, 0.4] + [0.8] * 9, 0.3, ""),
        ([0.3, 0.4] + [0.8] * 10, 0.15, ""),
        ([0.6, 0.7] + [0.8] * 10, 0.3, ""),
        ([1.0] * 3, 0.001, "dead-activations"),
        ([1.0] * 2, 0.001, ""),
    ],
    ids=[
        "died",
        "dead from the start",
        "nine evaluations",
        "not known since",
        "killed by huge steps",
        "for nine evaluations",
        "a fifth is alive after long steps",
        "a few were killed",
        "all",
        "all, twice",
    ],
)
def test_a_layer_that_answers_nothing(shares: list[float], ratio: float, cause: str) -> None:
    """Also where the network learns on, so that no other event asks."""
    assert silent_layer(shares, ratio) == ([("dead-layer", cause, "warning")] if cause else [])


def test_units_that_weight_decay_took_are_not_reported_without_a_cause() -> None:
    """Updates seem huge beside weights that have nearly vanished."""
    assert not silent_layer([0.3, 0.4] + [0.8] * 10, 0.3, decay=0.1)


def silent_layer(shares: list[float], ratio: float, decay: float = 0.0) -> list[tuple[str, str, str]]:
    """Events of a network that learns on, with such shares of silent units and first updates; weights halve."""
    diagnosis, history, events = Diagnosis(), History(), []
    for epoch, share in enumerate(shares):
        values = {"nll": 1 / (2 + epoch), "accuracy": 0.5 + 0.02 * epoch, "accuracy_standard_error": 0.01}
        context = {"dead_units": share, "dead_units_total": share, "update_ratio": ratio if epoch < 2 else 1e-3}
        context |= {"weight_norm": 0.5**epoch, "weight_decay": decay}
        history.append(
            Record("val", 0, epoch, 10 * epoch, 0.0, True, 1000, 1000, values, {}, {}, {}, context),
        )
        events += diagnosis.examine(history)
    return [(event.event, event.cause, event.level) for event in events]
