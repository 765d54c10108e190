"""What is proved about `trends`: a decision uses the points given and nothing else, is equal at any
scale, never raises or warns on any list of floats, opens on real rises within stated evaluations,
stays silent on healthy curves and wandering noise, and `compare` names what its interval shows.
"""

from __future__ import annotations

import dataclasses
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_lossacc import trends
from lightning_lossacc.trends import (
    MAX_REPEATS,
    Shift,
    compare,
    find_oscillation,
    find_plateau,
    find_rise,
    find_spike,
    jitter,
)

FREE = {"relative_floor": 0.0, "absolute_floor": 0.0}


def decay(count: int, floor: float = 0.5, amplitude: float = 1.5, scale: float = 10.0):
    return floor + amplitude * np.exp(-np.arange(count) / scale)


def noise(seed: int, count: int, deviation: float = 0.01) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, deviation, count)


def autoregression(seed: int, count: int, correlation: float) -> np.ndarray:
    shocks = noise(seed, count, 0.01 * math.sqrt(1 - correlation**2))
    shocks[0] /= math.sqrt(1 - correlation**2)
    for index in range(1, count):
        shocks[index] += correlation * shocks[index - 1]
    return shocks


def student(seed: int) -> np.ndarray:
    return 0.01 * np.random.default_rng(seed).standard_t(3, 100)


def spikes(seed: int) -> np.ndarray:
    return noise(seed, 100) + 0.2 * (np.random.default_rng([seed, 1]).random(100) < 0.03)


def digits(seed: int) -> np.ndarray:
    """2.0 down to 0.14 over 40 evaluations, +0.02 until evaluation 100, jitter 0.002."""
    steps = np.arange(110)
    rise = 0.02 * np.clip(steps - 40, 0, None) / 60
    return decay(110, 0.14, 1.86, 7.0) + rise + noise(seed, 110, 0.002)


def breast_cancer(seed: int) -> np.ndarray:
    """Lowest, 0.115, at evaluation 9 of 300, then straight up to 0.20."""
    rise = 0.085 * np.clip(np.arange(300) - 9, 0, None) / 290
    return decay(300, 0.115, 0.6, 1.6) + rise + noise(seed, 300, 0.0005)


def first_rise(values, **floors) -> tuple[int, Shift] | None:
    values = [float(value) for value in values]
    for stop in range(1, len(values) + 1):
        if (found := find_rise(values[:stop], **floors)) is not None:
            return stop - 1, found
    return None


class TestOpens:
    # Ten seeds each: jitter decides when exactly, and the bounds hold for all. The steep start of
    # the second (0.6 nats) must not get into its jitter of 0.0005.
    @pytest.mark.parametrize("seed", range(10))
    @pytest.mark.parametrize(
        ("curve", "opens", "lowest", "latest_onset", "largest_noise"),
        [(digits, (60, 100), (35, 65), 75, 0.005), (breast_cancer, (30, 65), (6, 16), 30, 0.002)],
    )
    def test_slow_rises(self, curve, opens, lowest, latest_onset: int, largest_noise: float, seed: int) -> None:
        opened, shift = first_rise(curve(seed))
        assert opens[0] < opened < opens[1]
        assert lowest[0] <= shift.reference <= lowest[1]
        assert shift.reference < shift.onset <= latest_onset
        assert shift.threshold < shift.change < 0.025
        assert largest_noise / 5 < shift.noise < largest_noise

    # Slope of 0.5 sd, step of 6 sd, slope of 0.2 sd: the shapes whose delays differ most.
    @pytest.mark.parametrize(
        ("shape", "latest", "latest_onset"),
        [(lambda u: u / 2, 62, 50), (lambda u: 6 * (u > 0), 70, 43), (lambda u: u / 5, 76, 63)],
    )
    def test_rises_of_known_size(self, shape, latest: int, latest_onset: int) -> None:
        steps = np.arange(80)
        base = 0.5 + 1.5 * np.exp(-np.minimum(steps, 40) / 10)
        rise = 0.01 * shape(np.maximum(steps - 40, 0))
        for seed in range(8):
            opened, shift = first_rise(base + rise + noise(seed, 80))
            assert 40 < opened <= latest
            assert 36 <= shift.onset <= latest_onset

    # Lowest at evaluation 2 of a fast fall, then 0.04 an evaluation: the loss has doubled 11 evaluations later.
    @pytest.mark.parametrize("lowest", [1, 2, 3, 4])
    def test_early_minimum(self, lowest: int) -> None:
        steps = np.arange(30)
        fall = np.where(steps < lowest, 1.2 * np.exp(-steps), 0.0)
        for seed in range(8):
            values = 0.45 + fall + 0.04 * np.maximum(steps - lowest, 0) + noise(seed, 30, 0.008)
            opened, shift = first_rise(values)
            assert lowest + 2 <= opened <= lowest + 6
            assert shift.reference == pytest.approx(lowest, abs=1)

    @pytest.mark.parametrize(
        ("values", "opens"),
        [([0.35, 0.30, 0.37, 0.45], 3), ([0.6, 0.40, 0.42, 0.46, 0.50], 4), ([0.30, 0.36, 0.42], 2)],
    )
    def test_three_to_five_evaluations(self, values: list[float], opens: int) -> None:
        opened, shift = first_rise(values)
        lowest = int(np.argmin(values))
        assert (opened, shift.reference, shift.onset) == (opens, lowest, lowest + 1)
        assert shift.change == pytest.approx(values[-1] - min(values))
        assert find_rise(values, errors=[0.1] * len(values)) is None

    def test_a_rise_after_a_drop_of_the_learning_rate(self) -> None:
        # The noise of the first 40 evaluations, 0.08, says nothing about the 30 that follow, 0.01.
        for seed in range(5):
            values = np.concatenate((decay(40, 1.2, 0.6, 6.0) + noise(seed, 40, 0.08), np.full(30, 1.05)))
            values[40:] += 0.02 * np.arange(30) + noise(seed + 50, 30, 0.01)
            opened, _ = first_rise(values)
            assert opened <= 60

    def test_first_rise_is_that_of_every_prefix(self) -> None:
        for seed in range(6):
            for values in (digits(seed), spikes(seed), decay(100) + autoregression(seed, 100, 0.8), decay(100)):
                expected = first_rise(values)
                found = trends.first_rise(values.tolist())
                assert found == (None if expected is None else (expected[0] + 1, expected[1]))

    def test_short_run(self) -> None:
        steps = np.arange(25)
        values = decay(25, 0.25, 0.5, 1.0) + 0.02 * np.maximum(steps - 3, 0) + noise(0, 25, 0.003)
        opened, shift = first_rise(values)
        assert opened <= 13
        assert shift.reference in (2, 3, 4)

    def test_fall_of_accuracy_is_a_rise_of_the_negated_series(self) -> None:
        accuracy = np.concatenate((np.linspace(0.5, 0.95, 30), np.linspace(0.95, 0.80, 30)))
        negated = -(accuracy + noise(1, 60, 0.004))
        opened, shift = first_rise(negated)
        assert 33 <= opened <= 45
        assert shift.threshold >= 0.05 * 0.9
        assert first_rise(-negated[:30]) is not None
        assert first_rise(negated[:30]) is None


class TestSilent:
    # Shapes without jitter: a false alarm here would be one of bookkeeping, not of chance.
    @pytest.mark.parametrize(
        "curve",
        [
            decay(120),
            2.0 / np.sqrt(1 + np.arange(120)),
            np.where(np.arange(120) < 50, decay(120), 0.4),
            np.full(120, 0.0),
            np.linspace(3.0, -3.0, 120),
        ],
        ids=["exponential", "power law", "rate drop", "zero", "through zero"],
    )
    def test_healthy_shapes_with_floors_off(self, curve: np.ndarray) -> None:
        assert first_rise(curve, **FREE) is None

    # White and heavy-tailed noise without floors; wandering and spikes as in real use. Bounds are
    # about five times the simulated rates, or one run where that is none.
    @pytest.mark.parametrize(
        ("make", "floors", "allowed"),
        [
            pytest.param(lambda seed: noise(seed, 100), FREE, 1, id="white"),
            pytest.param(student, FREE, 1, id="t3"),
            pytest.param(lambda seed: np.round(noise(seed, 100), 2), FREE, 1, id="rounded"),
            pytest.param(lambda seed: autoregression(seed, 100, 0.5), {}, 1, id="AR(0.5)"),
            pytest.param(lambda seed: autoregression(seed, 100, 0.8), {}, 2, id="AR(0.8)"),
            pytest.param(spikes, {}, 1, id="spikes"),
        ],
    )
    def test_false_alarms(self, make, floors: dict[str, float], allowed: int) -> None:
        alarms = [first_rise(decay(100) + make(seed), **floors) for seed in range(20)]
        assert sum(alarm is not None for alarm in alarms) <= allowed

    def test_two_spikes_in_a_row_are_no_level(self) -> None:
        values = decay(60) + noise(3, 60)
        values[[45, 46, 48]] = 0.9, 0.85, 0.95
        assert first_rise(values) is None

    def test_floors_decide_what_matters(self) -> None:
        values = np.concatenate((decay(60), np.full(40, 0.5 * 1.03))) + noise(4, 100, 0.0005)
        assert first_rise(values) is None
        assert first_rise(values, relative_floor=0.01, absolute_floor=0.0) is not None
        assert first_rise(values, relative_floor=0.0, absolute_floor=0.02) is None

    # Level: the lowest one lies before the first bump; falling: after it.
    @pytest.mark.parametrize("slope", [0.0, -0.0005])
    def test_an_excursion_no_larger_than_one_that_recovered(self, slope: float) -> None:
        # Two equal bumps of 0.2: the first is news until it goes, the second is what this run does.
        steps = np.arange(230)
        bumps = sum(0.2 * np.exp(-(((steps - center) / 5) ** 2)) for center in (70, 190))
        values = (0.5 + slope * steps + bumps + noise(5, 230, 0.004)).tolist()
        found = [count for count in range(8, 231) if find_rise(values[:count]) is not None]
        assert 75 in found
        assert max(found) < 100

    # Below eight evaluations a rise must be large against everything that the series shows.
    @pytest.mark.parametrize(
        "values",
        [
            [1.0, 0.5],
            [1.0, 0.5, 0.8],
            [1.0, 0.5, 0.55, 0.6],
            [1.0, 0.5, 0.8, 0.66, 0.85],
            [1.0, 0.5, 0.51, 0.52, 0.9],
            [0.5, 0.62, 0.5, 0.58, 0.7, 0.82],
        ],
        ids=["fell", "one value", "small", "went back", "one jump", "as large as an earlier step"],
    )
    def test_few_evaluations(self, values: list[float]) -> None:
        assert first_rise(values) is None
        assert first_rise([*values, math.nan, math.inf]) is None

    def test_few_evaluations_of_noise(self) -> None:
        # Noise of 5 % of the level, more than twice that of the benchmark.
        alarms = [first_rise((0.5 + noise(seed, 7, 0.025)).tolist()) for seed in range(400)]
        assert sum(alarm is not None for alarm in alarms) <= 8

    def test_a_warm_restart_is_no_rise(self) -> None:
        steps = np.arange(100)
        cycle = np.where(steps < 20, 1 + np.cos(np.pi * steps / 20), 1 + np.cos(np.pi * ((steps - 20) % 40) / 40))
        for seed in range(5):
            assert first_rise(0.4 + 0.05 * cycle + decay(100, 0.0, 1.0, 4.0) + noise(seed, 100, 0.004)) is None

    # Cosine cycles of 10, 20, 40, 80, ... evaluations; of 20 runs 5 alarmed where nothing was
    # remembered of the jump before.
    def test_warm_restarts_of_doubling_period(self) -> None:
        starts = np.array([0, 10, 30, 70, 150, 310])
        steps = np.arange(200)
        cycle = np.searchsorted(starts, steps, side="right") - 1
        excess = 0.5 + 0.5 * np.cos(np.pi * (steps - starts[cycle]) / np.diff(starts)[cycle])
        curve = decay(200) + 0.1 * excess
        alarms = [trends.first_rise((curve + noise(seed, 200)).tolist()) for seed in range(20)]
        assert sum(alarm is not None for alarm in alarms) <= 2

    # The first jump falls back from evaluation 30 to 70, so the second, at 70, waits for 40 evaluations; alone, for 26.
    @pytest.mark.parametrize(("first", "opens"), [(0.0, (95, 100)), (0.1, (109, 128))])
    def test_a_jump_after_one_that_went_away(self, first: float, opens: tuple[int, int]) -> None:
        steps = np.arange(140)
        fallen = np.clip((steps - 30) / 40, 0, 1)
        went_away = first * (0.5 + 0.5 * np.cos(np.pi * fallen)) * (steps >= 30)
        for seed in range(10):
            values = decay(140, 0.5, 1.5, 6.0) + went_away + 0.2 * (steps >= 70) + noise(seed, 140)
            opened = next(stop for stop in range(72, 141) if find_rise(values[:stop].tolist()) is not None) - 1
            assert opens[0] <= opened <= opens[1]

    # At 41; a third of 41 evaluations is 13.
    def test_a_jump_that_rises_further_need_not_wait(self) -> None:
        steps = np.arange(80)
        base = 0.5 + 1.5 * np.exp(-np.minimum(steps, 40) / 10)
        for seed in range(5):
            jump = base + 0.1 * (steps > 40) + noise(seed, 80)
            assert trends.first_rise(jump.tolist())[0] > 41 + 12
            jump += 0.015 * np.maximum(steps - 41, 0)
            assert trends.first_rise(jump.tolist())[0] <= 41 + 8

    def test_a_jump_within_two_evaluations_waits(self) -> None:
        steps = np.arange(80)
        base = 0.5 + 1.5 * np.exp(-np.minimum(steps, 40) / 10)
        jump = base + 0.1 * (steps > 40) - 0.065 * (steps == 41)
        opened = sorted(trends.first_rise((jump + noise(seed, 80)).tolist())[0] for seed in range(16))
        assert opened[4] > 41 + 12

    def test_jitter_is_no_fall(self) -> None:
        # A step of 6 sd: by chance the last third lies lower than the first by 8 % of it, for up to 28 evaluations.
        steps = np.arange(80)
        base = 0.5 + 1.5 * np.exp(-np.minimum(steps, 40) / 10) + 0.06 * (steps > 40)
        found = [trends.first_rise((base + noise(seed, 80)).tolist()) for seed in range(80)]
        # 49 and 76 if jitter is taken for a fall.
        assert sum(opened is not None and opened[0] <= 41 + 16 for opened in found) >= 53
        assert sum(opened is not None for opened in found) >= 78

    def test_small_warm_restarts_stay_below_the_floor(self) -> None:
        # Cosine periods of 20, 40, 80, 160 that add 4 % each: a rise of 5 % is chance (no margin: 17 of 80).
        starts = np.repeat([0, 20, 60, 140], [20, 40, 80, 60])
        phase = (np.arange(200) - starts) / np.repeat([20, 40, 80, 160], [20, 40, 80, 60])
        curve = decay(200) + 0.01 * (1 + np.cos(np.pi * phase))
        assert sum(trends.first_rise((curve + noise(seed, 200)).tolist()) is not None for seed in range(80)) <= 3

    def test_a_slow_rise_is_no_jump(self) -> None:
        # A fifth of the jitter an evaluation: the margin for jumps would find it 4 evaluations later.
        steps = np.arange(80)
        curve = decay(80)[np.minimum(steps, 40)] + 0.002 * np.maximum(steps - 40, 0)
        delays = sorted(trends.first_rise((curve + noise(seed, 80)).tolist())[0] - 41 for seed in range(40))
        assert delays[20] <= 24

    def test_learning_rates_tell_a_restart_from_a_step(self) -> None:
        values = (np.concatenate((decay(30, 0.5, 1.0, 4.0), np.full(6, 0.6))) + noise(2, 36, 0.004)).tolist()
        assert find_rise(values) is None
        assert find_rise(values, learning_rates=[0.1] * 36) is not None
        assert find_rise(values, learning_rates=[0.1] * 30 + [0.3] * 6) is None
        assert find_rise(values, learning_rates=[math.nan] * 36) is None

    # A jump of three standard deviations, 1.2 times the floor: where the rate jumps too it is a restart, where the rate
    # stays it is a rise, and without rates it may be a restart whose true size is below the floor. If the rate grows by
    # a tenth each evaluation, a rise is found as it is without rates.
    def test_learning_rates_tell_a_small_restart(self) -> None:
        steps = np.arange(60)
        rates = np.where(steps < 40, 0.1, 0.3).tolist()
        base = decay(60, 0.5, 1.5, 6.0)

        def opened(values: list[float], rates: list[float] | None) -> int | None:
            stops = range(41, 61)
            given = ((stop, None if rates is None else rates[:stop]) for stop in stops)
            return next((stop for stop, part in given if find_rise(values[:stop], learning_rates=part)), None)

        jumps = [(base + 0.03 * (steps >= 40) + noise(seed, 60)).tolist() for seed in range(20)]
        assert sum(opened(values, [0.1] * 60) is not None for values in jumps) >= 15
        assert sum(opened(values, None) is not None for values in jumps) <= 8
        assert sum(opened(values, rates) is not None for values in jumps) <= 2
        for seed in range(5):
            values = (base + 0.005 * np.maximum(steps - 38, 0) + noise(seed, 60)).tolist()
            assert opened(values, (1.1**steps).tolist()) == opened(values, None) is not None

    def test_sampling_errors_that_hide_the_rise(self) -> None:
        values = digits(0).tolist()
        assert find_rise(values, errors=[0.0] * 110) == find_rise(values) is not None
        assert find_rise(values, errors=[math.nan] * 110) == find_rise(values)
        for error in (0.01, math.inf):
            assert find_rise(values, errors=[error] * 110) is None


class TestInvariants:
    def test_a_decision_has_no_memory(self) -> None:
        values = digits(2).tolist()
        stops = range(1, len(values) + 1)
        forwards = {stop: find_rise(values[:stop]) for stop in stops}
        backwards = {stop: find_rise(values[:stop]) for stop in reversed(stops)}
        assert forwards == backwards
        assert all(found.onset < stop for stop, found in forwards.items() if found)

    def test_confirmed_by_two_evaluations(self) -> None:
        # Three of the last five are up, so the running median is: seen once, then twice.
        values = [0.5, 0.501, 0.499, 0.502, 0.498] * 6 + [0.9, 0.901, 0.899, 0.9]
        assert first_rise(values)[0] == 33

    # Powers of two are exact; the others round, and the extremes would underflow if squared.
    @pytest.mark.parametrize("factor", [0.5, 1e-3, 3.0, 1e3, 1e-30, 1e30])
    def test_scale(self, factor: float) -> None:
        values, sizes = digits(3), ("change", "noise", "threshold")
        for stop in range(8, 111, 3):
            plain = find_rise(values[:stop].tolist(), absolute_floor=0.0)
            scaled = find_rise((values[:stop] * factor).tolist(), absolute_floor=0.0)
            assert (plain is None) == (scaled is None)
            if plain is not None:
                expected = [getattr(plain, name) * factor for name in sizes] + [plain.width]
                found = [getattr(scaled, name) for name in sizes] + [scaled.width]
                assert found == pytest.approx(expected, rel=1e-9)
                assert (scaled.reference, scaled.onset) == (plain.reference, plain.onset)
        plain = compare(values.tolist(), 45, 0.01)
        scaled = compare((values * factor).tolist(), 45, 0.01 * factor)
        assert scaled.kind == plain.kind
        assert scaled.low == pytest.approx(plain.low * factor, rel=1e-9)

    def test_values_that_are_not_finite_are_left_out(self) -> None:
        values = digits(4).tolist()
        plain = find_rise(values)
        holes = list(values)
        for index, value in ((3, math.nan), (50, math.inf), (50, -math.inf), (90, math.nan)):
            holes.insert(index, value)
        shift = find_rise([*holes, math.nan])
        finite = [index for index, value in enumerate(holes) if math.isfinite(value)]
        assert plain is not None
        assert shift == dataclasses.replace(plain, reference=finite[plain.reference], onset=finite[plain.onset])
        assert jitter(holes) == jitter(values)

    @given(st.lists(st.floats(-3, 3), min_size=2, max_size=40), st.integers(1, MAX_REPEATS))
    @settings(max_examples=150, deadline=None)
    def test_repeating_the_last_point_changes_nothing(self, values: list[float], times: int) -> None:
        values = [*values, values[-1] + 1.0]
        assert find_rise(values + [values[-1]] * times) == find_rise(values)

    @pytest.mark.parametrize("times", [1, 4, 5, 8, 40])
    def test_repeating_a_high_last_point_of_pure_noise(self, times: int) -> None:
        for seed in range(20):
            values = (0.5 + noise(seed, 60)).tolist()
            values[-1] = 0.53
            assert find_rise(values + [values[-1]] * times, **FREE) is None

    def test_a_dead_network_is_a_level(self) -> None:
        values = (decay(40) + noise(7, 40)).tolist() + [2.302585] * 9
        opened, shift = first_rise(values)
        assert opened == 40 + MAX_REPEATS + 1
        assert shift.change == pytest.approx(2.302585 - 0.53, abs=0.03)

    def test_small_added_noise_changes_few_decisions(self) -> None:
        changed = total = 0
        for seed in range(6):
            values = digits(seed)
            added = values + noise(100 + seed, 110, 0.0002)
            for stop in range(8, 111, 2):
                one, other = find_rise(values[:stop].tolist()), find_rise(added[:stop].tolist())
                changed += (one is None) != (other is None)
                total += 1
        assert changed <= 0.05 * total

    @given(
        st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=60),
        st.floats(allow_nan=True, allow_infinity=True),
    )
    @settings(max_examples=200, deadline=None)
    def test_nothing_raises_or_warns(self, values: list[float], error: float) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for floors in ({}, FREE):
                shift = find_rise(values, errors=[error] * len(values), **floors)
                assert shift is None or 0 <= shift.reference < shift.onset < len(values)
                assert shift is None or shift.change > shift.threshold or shift.change == math.inf
            deviation = jitter(values)
            assert deviation is None or deviation >= 0
            if values:
                compare(values, len(values) // 2, 0.01, errors=[error] * len(values))

    # 10 000 points is the longest run of the promise; one is the shortest.
    @pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 10_000])
    @pytest.mark.parametrize("factor", [1e-30, 1.0, 1e30])
    def test_lengths_and_magnitudes(self, count: int, factor: float) -> None:
        values = ((0.5 + noise(8, count)) * factor).tolist()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert find_rise(values, absolute_floor=0.0) is None
            assert (jitter(values) is None) == (count < 8)
            assert compare(values, count // 3, factor).kind in ("flat", "undecided")

    def test_arguments(self) -> None:
        values = [1.0] * 9
        for name, wrong in (
            ("alpha", {"alpha": 0.0}),
            ("alpha", {"alpha": 0.5}),
            ("floors", {"relative_floor": -0.1}),
            ("floors", {"absolute_floor": math.nan}),
            ("`errors` to have 9 entries", {"errors": [1.0]}),
        ):
            with pytest.raises(ValueError, match=name):
                find_rise(values, **wrong)
        for name, arguments in (
            ("reference", (-1, 0.1)),
            ("reference", (9, 0.1)),
            ("margin", (0, -0.1)),
            ("margin", (0, math.nan)),
        ):
            with pytest.raises(ValueError, match=name):
                compare(values, *arguments)
        with pytest.raises(ValueError, match="alpha"):
            compare(values, 0, 0.1, alpha=math.nan)


class TestCompare:
    # Two constant levels, so jitter is 0 and the interval is change -+ 2.3263 sqrt(2) error:
    # half width 0.0658 for an error of 0.02, 0.3290 for 0.1. One row a kind, both signs, and the
    # two rows where precedence decides.
    @pytest.mark.parametrize(
        ("change", "error", "margin", "kind"),
        [
            (0.20, 0.02, 0.10, "up"),
            (-0.20, 0.02, 0.10, "down"),
            (0.02, 0.02, 0.10, "flat"),
            (0.08, 0.02, 0.15, "flat"),
            (0.08, 0.02, 0.08, "up"),
            (0.08, 0.02, 0.10, "not-down"),
            (-0.08, 0.02, 0.10, "not-up"),
            (0.30, 0.10, 0.10, "not-down"),
            (0.02, 0.10, 0.10, "undecided"),
        ],
    )
    def test_kinds(self, change: float, error: float, margin: float, kind: str) -> None:
        values = [1.0] * 12 + [1.0 + change] * 12
        # Without a finer step the two levels would pass for values rounded to that step.
        values[0] += 1e-9
        verdict = compare(values, 6, margin, errors=[error] * 24)
        assert verdict.kind == kind
        assert verdict.change == pytest.approx(change, abs=1e-12)
        assert verdict.resolvable == pytest.approx(2.326348 * math.sqrt(2) * error, rel=1e-6)
        assert verdict.low == pytest.approx(verdict.change - verdict.resolvable)
        assert verdict.high == pytest.approx(verdict.change + verdict.resolvable)
        assert verdict.margin == margin

    def test_hand_computed(self) -> None:
        # +-1 in turn: jitter 4 / (1.036433 sqrt(6)), inflated by 1 + 6 / 20; middle 3 of 5 values
        # on both sides, (1 + 1 - 1) / 3 and (1 - 1 - 1) / 3.
        verdict = compare([1.0, -1.0] * 10, 10, 10.0)
        # Not known better than 1.6 / sqrt(20): the autocorrelation may be 0.36; of a mean of 5, see `variance`.
        likely = 1.6 / math.sqrt(20)
        hidden = math.sqrt(6 / (6 - 8 * likely + 2 * likely**2))
        likely = round(likely, 2)
        variance = (5 + 2 * sum((5 - lag) * likely**lag for lag in range(1, 5))) / 25
        deviation = 4 / (1.036433 * math.sqrt(6)) * hidden * 1.3 * math.sqrt(2 * 1.14 * variance)
        assert verdict.resolvable == pytest.approx(2.326348 * deviation, rel=1e-6)
        assert verdict.change == pytest.approx(-2 / 3)
        assert verdict.kind == "flat"

    # Nominal 99 %; about two standard errors of 150 runs below the bars of 97 and 93 %.
    @pytest.mark.parametrize(("correlation", "least"), [(0.0, 0.98), (0.5, 0.95), (0.8, 0.89)])
    @pytest.mark.parametrize("count", [12, 30, 100])
    def test_coverage(self, correlation: float, least: float, count: int) -> None:
        made = ((0.5 + autoregression(seed, count + 50, correlation))[50:] for seed in range(150))
        verdicts = [compare(values.tolist(), count // 3, 0.02) for values in made]
        assert sum(verdict.low <= 0 <= verdict.high for verdict in verdicts) >= least * 150

    def test_wandering_widens_the_interval(self) -> None:
        white = [compare((0.5 + noise(s, 150)).tolist(), 50, 1.0).resolvable for s in range(15)]
        slow = [compare((0.5 + autoregression(s, 150, 0.8)).tolist(), 50, 1.0).resolvable for s in range(15)]
        assert np.median(slow) > 1.3 * np.median(white)

    def test_a_step_is_no_jitter(self) -> None:
        values = np.concatenate((np.full(20, 0.9), np.full(20, 0.8))) + noise(11, 40, 0.002)
        verdict = compare(values.tolist(), 15, 0.01)
        assert verdict.kind == "down"
        assert verdict.resolvable < 0.015

    def test_one_outlier_beside_the_reference(self) -> None:
        values = (0.5 + noise(12, 60, 0.001)).tolist()
        plain = compare(values, 30, 0.01).change
        values[31] = 5.0
        assert compare(values, 30, 0.01).change == pytest.approx(plain, abs=0.002)

    # 7 fits from reference 3 on with 7 + 3 values after it; a smaller one is taken otherwise.
    @pytest.mark.parametrize(
        ("count", "reference", "width"),
        [(40, 20, 7), (14, 3, 7), (13, 3, 5), (40, 2, 5), (40, 1, 3), (40, 0, 1), (40, 39, 1)],
    )
    def test_windows(self, count: int, reference: int, width: int) -> None:
        values = np.cumsum(np.arange(count, dtype=float))

        def level(window: np.ndarray) -> float:
            return float(np.sort(window)[1:-1].mean() if len(window) > 1 else window[0])

        half = width // 2
        expected = level(values[-width:]) - level(values[reference - half : reference + half + 1])
        assert compare(values.tolist(), reference, 1.0).change == pytest.approx(expected)

    def test_reference_that_is_not_finite(self) -> None:
        values = (0.5 + noise(13, 40)).tolist()
        holes = [*values[:21], math.nan, math.inf, *values[21:]]
        assert compare(holes, 22, 0.1) == compare(values, 20, 0.1)
        assert compare([math.nan, *values], 0, 0.1) == compare(values, 0, 0.1)

    def test_too_few_values(self) -> None:
        verdict = compare([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, math.nan], 0, 0.1)
        assert (verdict.kind, verdict.change, verdict.resolvable) == ("undecided", 6.0, math.inf)
        nothing = compare([math.nan], 0, 0.1)
        assert nothing.kind == "undecided"
        assert math.isnan(nothing.change)


class TestJitter:
    # Scale of the curve against its jitter from 0 to 1e5: blind to a trend.
    @pytest.mark.parametrize(
        "trend",
        [np.zeros(100), decay(100), np.linspace(0, 1e3, 100)],
        ids=["flat", "decay", "line"],
    )
    def test_white_noise(self, trend: np.ndarray) -> None:
        estimates = [jitter((trend + noise(seed, 100)).tolist()) for seed in range(20)]
        assert np.median(estimates) == pytest.approx(0.01, rel=0.15)
        assert max(estimates) < 0.016

    def test_outliers_and_wandering(self) -> None:
        values = 0.5 + noise(14, 100)
        plain = jitter(values.tolist())
        values[[20, 50, 80]] = 9.0
        assert jitter(values.tolist()) < 1.5 * plain
        slow = [jitter(autoregression(seed, 200, 0.8).tolist()) for seed in range(10)]
        # sqrt((6 - 8 * 0.8 + 2 * 0.64) / 6) = 0.383 of it moves between neighbours.
        assert np.median(slow) == pytest.approx(0.00383, rel=0.15)

    # Constant; +-1 in turn: every second difference is 4, so 4 / (1.036433 sqrt(6)); two values
    # 0.01 apart that mostly repeat: the rounding error 0.01 / sqrt(12); too short.
    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ([0.7] * 20, 0.0),
            ([1.0, -1.0] * 10, 1.575588),
            ([0.5] * 15 + [0.51] + [0.5] * 14, 0.01 / math.sqrt(12)),
            ([1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, math.nan], None),
        ],
    )
    def test_hand_computed(self, values: list[float], expected: float | None) -> None:
        assert jitter(values) == (expected if expected is None else pytest.approx(expected))


class TestOscillation:
    def test_swings(self) -> None:
        # 0.4 and 0.6 in turn: swings of 0.2 around 0.5, every inner point turns.
        found = find_oscillation([2.0, 1.0] + [0.4, 0.6] * 10)
        assert (found.amplitude, found.turning_share, found.window) == (pytest.approx(0.1), 1.0, 20)
        assert found.level == pytest.approx(0.5)

    def test_window_of_the_newest(self) -> None:
        # Quiet, then 8 evaluations of swings: the long windows hold too few.
        found = find_oscillation([0.5] * 30 + [0.3, 0.7] * 4)
        assert 8 <= found.window <= 16

    @pytest.mark.parametrize(
        "values",
        [
            (0.5 + noise(3, 40)).tolist(),
            decay(40).tolist(),
            (decay(100) + spikes(1)).tolist(),
            [0.5] * 20,
            [0.4, 0.6] * 3,
            [0.3, 0.7] * 6 + [0.5, 0.501] * 10,
            (0.5 + 0.2 * np.sin(np.arange(40) / 6)).tolist(),
        ],
        ids=["jitter of 2 %", "decay", "spikes", "constant", "six values", "died away", "slow wave"],
    )
    def test_none(self, values: list[float]) -> None:
        assert find_oscillation(values) is None

    def test_a_small_validation_set_swings_by_itself(self) -> None:
        values = [0.4, 0.6] * 10
        assert find_oscillation(values, errors=[0.03] * 20) is not None
        assert find_oscillation(values, errors=[0.05] * 20) is None
        with pytest.raises(ValueError, match="floors"):
            find_oscillation(values, relative_floor=-1.0)


class TestPlateau:
    def test_flat(self) -> None:
        found = find_plateau((decay(20) + 0.0).tolist() + (0.5 + noise(1, 40, 0.002)).tolist(), 0.02)
        assert found.window == 30
        assert -0.02 < found.low <= found.change <= found.high < 0.02

    def test_a_line_is_a_plateau_within_its_change(self) -> None:
        # Twenty values of a line of slope 0.01: the change over 20 is 0.19, over 10 it is 0.09.
        values = (0.01 * np.arange(20)).tolist()
        assert find_plateau(values, 0.2).change == pytest.approx(0.19)
        assert find_plateau(values, 0.1).window in (10, 11)
        assert find_plateau(values, 0.085) is None

    def test_none(self) -> None:
        assert find_plateau([0.5] * 9, 0.1) is None
        assert find_plateau((0.5 + noise(2, 40, 0.1)).tolist(), 0.02) is None
        # Wandering noise needs a wider margin than white noise of the same size.
        slow = [find_plateau((0.5 + autoregression(seed, 60, 0.8)).tolist(), 0.03) for seed in range(20)]
        white = [find_plateau((0.5 + noise(seed, 60)).tolist(), 0.03) for seed in range(20)]
        assert sum(found is not None for found in slow) < sum(found is not None for found in white)

    def test_arguments(self) -> None:
        for name, arguments in (("margin", {"margin": -1.0}), ("shortest", {"margin": 1.0, "shortest": 3})):
            with pytest.raises(ValueError, match=name):
                find_plateau([1.0] * 20, **arguments)


class TestSpike:
    @pytest.mark.parametrize("length", [1, 2])
    def test_one_or_two_values(self, length: int) -> None:
        values = (0.5 + noise(4, 30, 0.005)).tolist()
        values[24 : 24 + length] = [0.8] * length
        found = find_spike(values)
        assert (found.index, found.length) == (24, length)
        assert found.height == pytest.approx(0.3, abs=0.02)
        assert find_spike([math.nan, *values]).index == 25

    def test_none(self) -> None:
        values = (0.5 + noise(5, 30, 0.005)).tolist()
        assert find_spike(values) is None
        for changed in ([0.8] * 3, [0.8] * 12, [0.53]):
            lifted = list(values)
            lifted[18 : 18 + len(changed)] = changed
            assert find_spike(lifted) is None
        assert find_spike([*values, 0.9]) is None, "it has not returned yet"
        with pytest.raises(ValueError, match="floors"):
            find_spike(values, absolute_floor=-1.0)


# The other questions: any list of floats, without an exception or a warning.
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=40))
@settings(max_examples=100, deadline=None)
def test_shapes_never_raise_or_warn(values: list[float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        find_oscillation(values)
        find_plateau(values, 0.1)
        find_spike(values)
        trends.first_rise(values)
