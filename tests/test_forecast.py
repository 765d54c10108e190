"""A forecast is given only where it was right in the past, and the reasons of a standing accuracy are told apart."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lightning_lossacc import forecast as room
from lightning_lossacc.forecast import Forecast, forecast
from lightning_lossacc.history import Record
from lightning_lossacc.margin_bins import margin_edges
from lightning_lossacc.outlook import _wrong_margins, outlook, reading
from lightning_lossacc.quantities import summary
from lightning_lossacc.sums import Layout
from tests.simulated import Simulation, learning

Random = np.random.Generator


def series(values: Any, key: str = "nll") -> list[Record]:
    """One record a value."""
    return [
        Record("val", 0, place, place, 0.0, True, 99, 99, {key: float(value)}) for place, value in enumerate(values)
    ]


def decay(random: Random, count: int) -> Any:
    """A healthy loss with white noise."""
    return 0.5 + 1.5 * np.exp(-np.arange(count) / 10) + random.normal(0, 0.01, count)


def flat(random: Random, count: int) -> Any:
    """A level with white noise."""
    return 0.6 + random.normal(0, 0.01, count)


def slow(random: Random, count: int) -> Any:
    """A power law."""
    return 0.5 + 1.5 / np.sqrt(1 + np.arange(count)) + random.normal(0, 0.01, count)


# -- forecast ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "seen"), [(flat, 45), (decay, 70), (slow, 70)])
def test_intervals_hold_what_comes(family: Callable[[Random, int], Any], seen: int) -> None:
    """Of 25 runs, the 90 % interval holds the value 10 evaluations later, and is no wider than needed."""
    held = given = 0
    widths = []
    for run in range(25):
        values = family(np.random.default_rng([3, run]), seen + 10)
        found = forecast(series(values[:seen]), "nll", 10)
        if found is not None:
            given += 1
            held += found.low <= values[-1] <= found.high
            widths.append(found.high - found.low)
    assert given >= 20 and held >= 0.8 * given  # binomial(25, 0.9): P(< 20) = 0.03
    assert np.median(widths) < 8 * 0.01  # of noise 0.01; 3.3 sd is the narrowest honest one


def test_a_curve_that_was_not_foreseen_gets_no_forecast() -> None:
    """A curve that bent within the last evaluations has failed its backtest: nothing is said."""
    random = np.random.default_rng(0)
    bent = np.concatenate((flat(random, 40), 0.6 + 0.05 * np.arange(20)))
    assert forecast(series(flat(random, 60)), "nll", 10) is not None
    assert forecast(series(bent), "nll", 10) is None


def test_too_short_a_past_gets_no_forecast() -> None:
    """Below 20 evaluations, or 10 backtests, nothing is known about its errors; nor of values that are not there."""
    values = flat(np.random.default_rng(1), 100)
    assert forecast(series(values[:19]), "nll", 1) is None
    assert forecast(series(values[:26]), "nll", 10) is None and forecast(series(values[:27]), "nll", 10) is not None
    assert forecast(series(values), "accuracy", 10) is None
    with pytest.raises(ValueError, match="`horizon`"):
        forecast(series(values), "nll", 0)


def test_backtest_is_honest() -> None:
    """Each past forecast knew only what came before it: replayed by hand on prefixes, the same ones are covered."""
    values = slow(np.random.default_rng(2), 60)
    found = forecast(series(values), "nll", 5)
    assert found is not None
    first = max(room.FIRST_ORIGIN, 60 - 2 * 5 - 2 * room.MAX_BACKTESTS)
    held = []
    for origin in range(first, 60 - 5 + 1):
        known = [
            abs(values[earlier + 4] - room._middle(values[:earlier], 5)[0]) / room._middle(values[:earlier], 5)[1]
            for earlier in range(first, origin - 5 + 1)
        ]
        middle, scale = room._middle(values[:origin], 5)
        held.append(abs(values[origin + 4] - middle) <= room._quantile(np.array(known)) * scale)
    assert (found.covered, found.backtests) == (sum(held[-30:]), 30)
    assert found.coverage == found.covered / 30 >= room.LEAST_COVERAGE


def test_the_future_is_not_looked_at() -> None:
    """Later values change nothing about an earlier forecast, whatever they are."""
    values = decay(np.random.default_rng(4), 90)
    early = forecast(series(values[:60]), "nll", 10)
    values[60:] = 99
    assert forecast(series(values)[:60], "nll", 10) == early


def test_scale_and_gaps() -> None:
    """In another unit the same forecast; an evaluation without the value is left out; a constant stays constant."""
    values = decay(np.random.default_rng(5), 60)
    plain, scaled = forecast(series(values), "nll", 5), forecast(series(1000 * values), "nll", 5)
    assert plain is not None and scaled is not None
    assert (scaled.low, scaled.high) == pytest.approx((1000 * plain.low, 1000 * plain.high), rel=1e-6)
    gaps = series(values)
    gaps.insert(7, replace(gaps[7], values={}))
    gaps.insert(30, replace(gaps[30], values={"nll": math.nan}))
    assert forecast(gaps, "nll", 5) == plain
    constant = forecast(series(np.full(40, 0.95), "accuracy"), "accuracy", 5)
    assert constant is not None and constant.low == pytest.approx(0.95) == constant.high


def test_accuracy_stays_within_its_range() -> None:
    """No accuracy above 1, and no NLL below 0."""
    random = np.random.default_rng(6)
    near_one = np.minimum(0.995 + random.normal(0, 0.005, 60), 1.0)
    found = forecast(series(near_one, "accuracy"), "accuracy", 10)
    assert found is not None and found.high == 1.0 and found.low < 0.995
    small = forecast(series(np.abs(random.normal(0.001, 0.001, 60))), "nll", 10)
    assert small is not None and small.low == 0.0


# -- reading -----------------------------------------------------------------------------------------------------------


class Complete(Simulation):
    """A simulation whose records hold class counts, margins and the level of training; nobody judges them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.diagnosis = SimpleNamespace(examine=lambda history: [])  # type: ignore[assignment]

    def finish(self, level: Callable[[float], float] | None) -> list[Record]:
        """Records with what training would show; `level` turns the validation NLL into that of training."""
        return [
            record
            if level is None
            else replace(record, context={"train_nll": level(record.values["nll"]), "train_accuracy": 0.6})
            for record in self.history.measured()
        ]

    def evaluate(self, scale: float, separation: float, turn: float = 0.0, jitter: float = 0.02) -> list[Any]:
        state = self.generator.get_state()
        logits = self.logits(scale, separation, turn, jitter)
        self.generator.set_state(state)
        found = super().evaluate(scale, separation, turn, jitter)
        from lightning_lossacc import kernels

        counts, sums = self.layout.zeros()
        kernels.row_statistics(logits, self.target, counts, sums, self.layout)
        part = self.layout.parts(counts, sums)
        arrays = {
            "margin_histogram": part["margin_histogram"].tolist(),
            "classes": {"class": list(range(self.num_classes)), "rows": part["class_rows"].tolist()},
        }
        last = self.history.records[-1]
        self.history.records[-1] = replace(last, arrays=last.arrays | arrays)
        return found


@functools.cache
def confident(level: Callable[[float], float] | None = None) -> list[Record]:
    """From epoch 12 on only the scale grows towards the best one."""
    run = Complete(num_rows=1000)
    run.run(56, lambda epoch: min(1.0, 0.3 + 0.015 * epoch), lambda epoch: learning(epoch, 1.36, speed=1.0))
    return run.finish(level)


@functools.cache
def approaching() -> list[Record]:
    """Separation grows slowly: wrong rows come nearer to the boundary, and some pass it."""
    run = Complete(num_rows=1000)
    run.run(40, lambda epoch: 1.0, lambda epoch: 0.9 + 0.012 * epoch)
    return run.finish(None)


@functools.cache
def still() -> Complete:
    """Nothing moves from epoch 10 on."""
    run = Complete(num_rows=1000)
    run.run(30, lambda epoch: 1.0, lambda epoch: learning(epoch, 1.36, speed=1.0))
    return run


def standing(level: Callable[[float], float] | None) -> list[Record]:
    """The same with a level of training."""
    return still().finish(level)


@functools.cache
def ignorant() -> list[Record]:
    """Logits are noise: at best the class shares are learnt."""
    run = Complete(num_rows=1000)
    run.run(30, lambda epoch: 0.2, lambda epoch: 0.02)
    return run.finish(None)


def test_confidence_alone() -> None:
    """The NLL falls and after one temperature it does not: the reason is confidence, with its share of right rows."""
    found = reading(confident()[:40])
    assert found.kind == "confidence-alone" and not found.worth_training
    assert found.numbers["nll_change"] < -0.02 and abs(found.numbers["refinement_nll_change"]) < 0.003
    paired = confident()[39].paired["accuracy"]
    groups = {group["name"]: group for group in paired["groups"]}
    if paired["nll_change"] < 0:
        share = groups["right both times"]["change"] / paired["nll_change"]
        assert found.numbers["right_share"] == pytest.approx(share, rel=1e-6)
        assert f"{100 * share:.0f} % comes from rows right both times" in found.sentence
    later = reading(confident()[:30])
    assert "grows only where it was already right" in later.sentence + found.sentence


def test_wrong_rows_approach() -> None:
    """The refined NLL falls: how many wrong rows there are, how near, how fast; and training on is worth it."""
    found = reading(approaching())
    assert found.kind == "wrong-rows-approach" and found.worth_training
    last = approaching()[-1]
    groups = {group["name"]: group for group in last.paired["accuracy"]["groups"]}
    wrong = groups["wrong both times"]
    numbers = found.numbers
    assert numbers["wrong_rows"] == wrong["items"] and numbers["wrong_rows_lower"] == wrong["items"] - wrong["higher"]
    passed = len(approaching()) - 1 - last.paired["accuracy"]["reference_epoch"]
    turned = groups["wrong to right"]["items"] - groups["right to wrong"]["items"]
    assert numbers["net_flips"] == pytest.approx(turned / passed)
    assert turned == pytest.approx(1000 * last.paired["accuracy"]["accuracy_change"])
    assert 0 < numbers["wrong_rows_near"] < (1 - last.values["accuracy"]) * 1000
    assert (
        "move towards the boundary" in found.sentence and f"{wrong['items']} rows that stayed wrong" in found.sentence
    )
    unpaired = [replace(record, paired={}) for record in approaching()]
    assert reading(unpaired).kind == "undecided" and reading(unpaired).worth_training


def test_ceiling_or_training_that_parts() -> None:
    """Nothing moves: with training on the same level a ceiling, with training far below it none, else unknown."""
    ceiling = reading(standing(lambda nll: 1.01 * nll))
    assert ceiling.kind == "ceiling" and not ceiling.worth_training and "training stands at NLL" in ceiling.sentence
    assert reading(standing(lambda nll: 0.5 * nll)).kind == "training-parts"
    unknown = reading(standing(None))
    assert unknown.kind == "undecided" and "is not known" in unknown.sentence


def test_only_the_prior() -> None:
    """After one temperature the NLL is the label entropy: nothing of the inputs is used."""
    found = reading(ignorant())
    rows = torch.tensor(ignorant()[-1].arrays["classes"]["rows"], dtype=torch.float64)
    entropy = float(-(rows / rows.sum() * (rows / rows.sum()).log()).sum())
    assert found.kind == "only-the-prior" and found.numbers["label_entropy"] == pytest.approx(entropy)
    assert f"{entropy:.4f}" in found.sentence and not found.worth_training
    folded = [
        replace(record, arrays=record.arrays | {"classes": {"class": [0, -1], "rows": [9, 1]}}) for record in ignorant()
    ]
    assert reading(folded).kind != "only-the-prior"


def test_few_evaluations_are_undecided() -> None:
    """Jitter is not known before 8 evaluations."""
    assert reading(confident()[:7]).kind == "undecided" and reading([]).kind == "undecided"


def test_margins_are_those_of_the_layout() -> None:
    """The bins of the histogram lie where `sums` puts them, and margins are divided by the temperature."""
    layout = Layout(3)
    logits = torch.tensor([[0.0, 1.5, 0.0], [0.0, 0.3, 0.0], [9.0, 0.0, 0.0], [0.0, 90.0, 0.0]], dtype=torch.float64)
    counts, sums = layout.zeros()
    from lightning_lossacc import kernels

    kernels.row_statistics(logits, torch.zeros(4, dtype=torch.long), counts, sums, layout)
    histogram = layout.parts(counts, sums)["margin_histogram"].tolist()
    record = Record("val", 0, 0, 0, 0.0, True, 4, 4, {"temperature": 2.0}, arrays={"margin_histogram": histogram})
    found = [margin * 2 for margin, _ in _wrong_margins(record)]
    edges = margin_edges()
    width = max(high - low for low, high in itertools.pairwise(edges) if high <= 0 and low > -2)
    assert found[0] == -64 and found[1:] == pytest.approx([-1.5, -0.3], abs=width)
    assert summary(counts, sums, layout)["accuracy"] == 0.25


# -- outlook -----------------------------------------------------------------------------------------------------------


def test_outlook_says_what_was_tested() -> None:
    """Both forecasts with their backtests, where the loss would end, and whether training on is worth it."""
    found = outlook(confident()[:45])
    accuracy, nll = found.forecasts["accuracy"], found.forecasts["nll"]
    assert accuracy.low <= confident()[54].values["accuracy"] <= accuracy.high
    assert nll.low <= confident()[54].values["nll"] <= nll.high
    refined = confident()[44].values["refinement_nll"]
    for text in (
        "10 more epochs: ",
        f"accuracy {100 * accuracy.low:.1f} … {100 * accuracy.high:.1f} % (90 %; covered {accuracy.covered} of",
        f"NLL {nll.low:.4f} … {nll.high:.4f}",
        f"the NLL would end near {refined:.4f}, the loss after one temperature",
        "which is not shown to fall now",
    ):
        assert text in found.sentence
    assert confident()[-1].values["nll"] == pytest.approx(refined, abs=0.01)  # and there it ended
    numbers = found.numbers()
    assert numbers["forecast_accuracy"] == [accuracy.low, accuracy.value, accuracy.high]
    assert numbers["forecast_nll_covered"] == [nll.covered, nll.backtests] and numbers["reading"] == "confidence-alone"


def test_outlook_without_a_past_says_so() -> None:
    """Few evaluations: no forecast, in words; evaluations within an epoch are not called epochs."""
    found = outlook(confident()[:12])
    assert not found.forecasts and "no forecast" in found.sentence
    several = [replace(record, epoch=record.epoch // 2) for record in confident()[:45]]
    assert "10 more evaluations: accuracy" in outlook(several).sentence
    assert outlook([]).reading.kind == "undecided"


def test_worth_training_is_said_only_while_the_refined_loss_falls() -> None:
    """The same NLL and accuracy with a refined loss that stands: not worth it."""
    assert "which falls now" in outlook(approaching()).sentence
    stands = [replace(record, values=record.values | {"refinement_nll": 0.9}) for record in approaching()]
    assert "is not shown to fall" in outlook(stands).sentence


def test_forecast_is_plain() -> None:
    """Equal numbers make equal forecasts, so that ranks agree."""
    values = decay(np.random.default_rng(9), 60)
    assert forecast(series(values), "nll") == forecast(series(values), "nll") and isinstance(
        forecast(series(values), "nll"), Forecast
    )
