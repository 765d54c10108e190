"""Both losses fall and accuracy stays: what is the reason, what will more epochs bring, is the network incapable?

The answers come from records alone: what moves after one temperature, which rows the fall of the loss comes from, how
many wrong rows come nearer to the boundary and how fast, and where the training loss stands.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning_lossacc import trends
from lightning_lossacc.floors import label_entropy
from lightning_lossacc.forecast import Forecast, forecast
from lightning_lossacc.history import Record
from lightning_lossacc.margin_bins import MARGIN_BINS, MARGIN_LIMIT, margin_edges

Kind = Literal["only-the-prior", "wrong-rows-approach", "confidence-alone", "ceiling", "training-parts", "undecided"]

ALPHA = 0.01
# Of the label entropy: so much of it must be left after one temperature for "only the prior was learnt".
PRIOR_SHARE = 0.98
# Of the validation NLL: training within this is the same level, so that nothing is memorised.
SAME_LEVEL = 0.10


@dataclass(frozen=True, slots=True)
class Reading:
    """Why accuracy stays, with numbers.

    Attributes:
        kind: `only-the-prior`: after one temperature the NLL is that of the class shares. `wrong-rows-approach`: it
            still falls, and wrong rows move towards the boundary. `confidence-alone`: only the probabilities change.
            `ceiling`: nothing moves, and training stands on the same level. `training-parts`: nothing moves here, and
            the training loss is far lower. `undecided`: none of these is shown.
        sentence: the same in words.
        numbers: what it rests on, by name.
        worth_training: whether the NLL after one temperature still falls beyond noise.
    """

    kind: Kind
    sentence: str
    numbers: dict[str, float]
    worth_training: bool


@dataclass(frozen=True, slots=True)
class Outlook:
    """A reading with the forecasts that were right in the past.

    Attributes:
        reading: why accuracy stays.
        forecasts: by quantity, only those that passed their backtest.
        sentence: one line: forecasts, where the loss would end, and whether training on is worth it.
    """

    reading: Reading
    forecasts: dict[str, Forecast]
    sentence: str

    def numbers(self) -> dict[str, Any]:
        """For the evidence of an event: `reading`, its numbers, and for each forecast its interval and backtest."""
        found: dict[str, Any] = {"reading": self.reading.kind, **self.reading.numbers}
        for key, one in self.forecasts.items():
            found[f"forecast_{key}"] = [one.low, one.value, one.high]
            found[f"forecast_{key}_horizon"] = one.horizon
            found[f"forecast_{key}_covered"] = [one.covered, one.backtests]
        return found


def outlook(series: Sequence[Record], horizon: int = 10) -> Outlook:
    """What some more evaluations will bring.

    Args:
        series: comparable evaluations with an NLL, oldest first.
        horizon: evaluations ahead; fewer where the past is too short to test so far a forecast.
    """
    found = reading(series)
    ahead = max(1, min(horizon, len(series) // 4))
    forecasts = {
        key: one for key in ("accuracy", "nll", "refinement_nll") if (one := forecast(series, key, ahead)) is not None
    }
    parts = []
    if "accuracy" in forecasts:
        one = forecasts["accuracy"]
        parts.append(f"accuracy {100 * one.low:.1f} … {100 * one.high:.1f} % ({_backtest(one)})")
    if "nll" in forecasts:
        one = forecasts["nll"]
        parts.append(f"NLL {one.low:.4f} … {one.high:.4f} ({_backtest(one)})")
    epochs = all(later.epoch - earlier.epoch == 1 for earlier, later in itertools.pairwise(series))
    what = f"{ahead} more {'epochs' if epochs else 'evaluations'}"
    said = f"{what}: {'; '.join(parts)}" if parts else f"{what}: no forecast, its past ones did not hold or are too few"
    left = series[-1].values.get("calibration_nll", math.nan) if series else math.nan
    if left > 0:
        said += f"; the NLL would end near {series[-1].values['refinement_nll']:.4f}, the loss after one temperature"
    worth = "falls" if found.worth_training else "is not shown to fall"
    return Outlook(found, forecasts, f"{said}; training on is worth it while refined NLL falls, which {worth} now")


def _backtest(one: Forecast) -> str:
    return f"90 %; covered {one.covered} of {one.backtests} past forecasts"


def reading(series: Sequence[Record]) -> Reading:
    """Which of the reasons holds, from the last third of the run (8 evaluations at least).

    Args:
        series: comparable evaluations with an NLL, oldest first.
    """
    count = len(series)
    if count < trends.MIN_EVALUATIONS:
        return Reading(
            "undecided", f"{count} evaluations say nothing about where it goes", {"evaluations": count}, False
        )
    now, place = series[-1], max(0, count - max(trends.MIN_EVALUATIONS, count // 3))
    moves = {key: _move(series, key, place) for key in ("nll", "refinement_nll", "accuracy")}
    falls = moves["refinement_nll"].kind == "down"
    numbers = {"evaluations": float(count - 1 - place)}
    for key, move in moves.items():
        numbers |= {key: now.values.get(key, math.nan), f"{key}_change": move.change}
    numbers = {key: value for key, value in numbers.items() if math.isfinite(value)}
    prior = _only_the_prior(now, numbers)
    if prior:
        return Reading("only-the-prior", prior, numbers, falls)
    if falls:
        sentence = _approach(series, numbers)
        kind: Kind = "wrong-rows-approach" if sentence else "undecided"
        return Reading(
            kind,
            sentence or "the loss after one temperature falls; without paired rows it is not seen for which",
            numbers,
            True,
        )
    steady = moves["refinement_nll"].kind in ("flat", "not-down")
    if steady and moves["nll"].kind == "down":
        return Reading("confidence-alone", _confidence(now, numbers), numbers, False)
    if steady and moves["nll"].kind in ("flat", "not-down") and moves["accuracy"].kind in ("flat", "not-up"):
        return _level(now, numbers)
    return Reading("undecided", "the last third of the run shows none of the reasons beyond noise", numbers, False)


def _move(series: Sequence[Record], key: str, place: int) -> trends.Verdict:
    values = [record.values.get(key, math.nan) for record in series]
    level = values[place]
    margin = 0.01 if key == "accuracy" else max(0.002, 0.005 * abs(level)) if math.isfinite(level) else 0.002
    return trends.compare(values, place, margin, alpha=ALPHA)


def _only_the_prior(now: Record, numbers: dict[str, float]) -> str:
    rows = [float(count) for count in now.arrays.get("classes", {}).get("rows", [])]
    refined = now.values.get("refinement_nll", math.nan)
    folded = -1 in now.arrays.get("classes", {}).get("class", [])
    if folded or sum(count > 0 for count in rows) < 2 or not math.isfinite(refined):
        return ""
    entropy = label_entropy(rows)
    numbers |= {"label_entropy": entropy, "largest_class": max(rows) / sum(rows)}
    if not refined > PRIOR_SHARE * entropy:
        return ""
    return (
        f"only the prior was learnt: NLL {refined:.4f} after one temperature, class shares alone give {entropy:.4f}, "
        f"and accuracy {_percent(now, 'accuracy')} stands by a largest class of {100 * max(rows) / sum(rows):.1f} %"
    )


def _approach(series: Sequence[Record], numbers: dict[str, float]) -> str:
    """Rows that are still wrong and their loss: how many come nearer, how fast; empty if that is not seen.

    Only paired rows can tell: the margins of all wrong rows also change because the nearest ones turn right.
    """
    now = series[-1]
    groups, epoch = _groups(now)
    if not groups:
        return ""
    wrong, gained, lost = (groups[name] for name in ("wrong both times", "wrong to right", "right to wrong"))
    passed = max(1, sum(record.epoch > epoch for record in series))
    net = (gained["items"] - lost["items"]) / passed
    if not (wrong["change"] < 0 or net > 0):
        return ""
    lower = wrong["items"] - wrong["higher"]
    numbers |= {"wrong_rows": wrong["items"], "wrong_rows_lower": lower, "net_flips": net}
    numbers |= {"to_right": gained["items"], "to_wrong": lost["items"]}
    text = (
        f"wrong rows move towards the boundary: since epoch {epoch} {gained['items']} rows turned right and "
        f"{lost['items']} wrong ({net:+.1f} an evaluation), and {lower} of {wrong['items']} rows that stayed wrong "
        "have a lower loss"
    )
    margins = _wrong_margins(now)
    if margins:
        near, rows = sum(count for margin, count in margins if margin > -1), sum(count for _, count in margins)
        numbers |= {"wrong_rows_near": near}
        text += f"; {near:.0f} of {rows:.0f} wrong rows lack less than 1 in margin / temperature"
    return f"{text}; refined NLL {numbers['refinement_nll_change']:+.4f} in {numbers['evaluations']:.0f} evaluations"


def _groups(now: Record) -> tuple[dict[str, dict[str, Any]], int]:
    """Paired groups against the evaluation with the best accuracy, or else the lowest NLL, and its epoch."""
    paired = now.paired.get("accuracy") or now.paired.get("nll") or {}
    groups = {group["name"]: group for group in paired.get("groups", ())}
    return (groups, paired["reference_epoch"]) if "wrong both times" in groups else ({}, -1)


def _confidence(now: Record, numbers: dict[str, float]) -> str:
    text = f"NLL {numbers['nll_change']:+.4f}, after one temperature {numbers['refinement_nll_change']:+.4f}"
    groups, epoch = _groups(now)
    change = sum(group["change"] for group in groups.values())
    if not change < 0:
        return f"confidence alone moves: {text}"
    right, wrong = (groups[name]["change"] / change for name in ("right both times", "wrong both times"))
    flips = groups["wrong to right"]["items"], groups["right to wrong"]["items"]
    numbers |= {"right_share": right, "wrong_share": wrong, "to_right": flips[0], "to_wrong": flips[1]}
    where = "grows only where it was already right" if right > 0.5 else "alone moves"
    return (
        f"confidence {where}: {text}; of the fall since epoch {epoch}, {100 * right:.0f} % comes from rows right both "
        f"times and {100 * wrong:.0f} % from rows wrong both times, with {flips[0]} rows turned right and {flips[1]} "
        "wrong"
    )


def _level(now: Record, numbers: dict[str, float]) -> Reading:
    """Nothing moves here: the level of training tells a ceiling from rows that are memorised."""
    here, train = now.values.get("nll", math.nan), now.context.get("train_nll", math.nan)
    stands = f"nothing moves: NLL {here:.4f}, accuracy {_percent(now, 'accuracy')}"
    if not math.isfinite(train):
        return Reading("undecided", f"{stands}; the training loss, which would tell why, is not known", numbers, False)
    numbers["train_nll"] = train
    accuracy = now.context.get("train_accuracy", math.nan)
    beside = f" and accuracy {100 * accuracy:.1f} %" if math.isfinite(accuracy) else ""
    if train > (1 - SAME_LEVEL) * here:
        return Reading(
            "ceiling",
            f"a ceiling of capacity or of what the inputs tell: {stands}, and training stands at NLL "
            f"{train:.4f}{beside}, too; a larger network that stops on the same level would show that it is the inputs",
            numbers,
            False,
        )
    return Reading(
        "training-parts",
        f"{stands}, while training stands at NLL {train:.4f}{beside}: capacity is there, and what is still learnt does "
        "not carry over",
        numbers,
        False,
    )


def _wrong_margins(record: Record) -> list[tuple[float, float]]:
    """Margin / temperature at the middle of each bin below zero, with its rows; ascending, empty if unknown."""
    histogram, temperature = record.arrays.get("margin_histogram", []), record.values.get("temperature", math.nan)
    if len(histogram) != MARGIN_BINS + 2 or not temperature > 0:
        return []
    middles = [-MARGIN_LIMIT, *((low + high) / 2 for low, high in itertools.pairwise(margin_edges()))]
    return [
        (middle / temperature, float(rows))
        for middle, rows in zip(middles, histogram, strict=False)
        if middle < 0 and rows
    ]


def _percent(record: Record, key: str) -> str:
    return f"{100 * record.values.get(key, math.nan):.1f} %"
