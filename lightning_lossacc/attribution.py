"""Why did the loss move? Identities whose parts add up to the change exactly, as plain numbers and as a sentence.

Paired ones take the dictionary that `probe.compare` makes, and only they may say "more confident". Unpaired ones take
two evaluations as they were recorded and hold for all rows; they cannot tell "more confident" from "other rows", and
are labelled so. The parts of each identity add up to its change within 1e-9.

Unpaired identities use that d(u v) = mean(u) dv + mean(v) du exactly, with the means of both evaluations: there is no
rest and no order of the two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

from lightning_lossacc.history import Record

LEVEL = 0.99  # of every interval in a message
_QUANTILE = -NormalDist().inv_cdf((1 - LEVEL) / 2)
# So many classes and cells are named, the largest parts first; the others are one part, so that the sum stays.
NAMED = 5
# Below so many flips McNemar's test is computed exactly.
FEW_FLIPS = 25
FLIPS = ("wrong to right", "right to wrong")


def interval(change: float, error: float) -> tuple[float, float]:
    """99 % interval of a mean paired difference by its standard error (normal approximation)."""
    return change - _QUANTILE * error, change + _QUANTILE * error


def accuracy_spread(error: float, items: int) -> float:
    """Half the width of the 99 % interval of an accuracy by its standard error.

    At least what a sample without an error leaves open, 1 - 0.005^(1 / items): near 0 and 1 the standard error is too
    small, and 0 where all items are right (Clopper and Pearson 1934).
    """
    return max(_QUANTILE * error, 1 - 0.005 ** (1 / max(items, 1)))


def by_group(paired: dict[str, Any]) -> dict[str, float]:
    """Change of the NLL (nats) by what happened to the item: right both times, wrong both times, flips each way."""
    return {group["name"]: group["change"] for group in paired["groups"]}


def by_temperature(paired: dict[str, Any]) -> dict[str, float]:
    """Change of the NLL as change after one temperature plus change of what one temperature removes.

    L = R + G with R the NLL after the best single temperature and G = L - R >= 0 (Berta et al. 2025), so dL = dR + dG.
    One temperature cannot repair class-wise or prior errors: R is an upper bound of what is left after re-calibration.

    Returns:
        Two parts, or an empty dictionary if the temperature grid was off.
    """
    if "refinement_change" not in paired:
        return {}
    refined = paired["refinement_change"]
    return {"after one temperature": refined, "confidence (one temperature)": paired["nll_change"] - refined}


def temperature_bounds(paired: dict[str, Any]) -> tuple[float, float]:
    """Certified bounds of the change after the probe's own best temperatures, nats; NaN at an edge of the grid.

    The NLL is convex in the inverse temperature: the best grid point lies above its minimum, and the tangents of the
    neighbours meet below it. So no interpolation is trusted; sampling is no part of these bounds.
    """
    before = paired.get("refinement_bounds_before", (math.nan, math.nan))
    after = paired.get("refinement_bounds_after", (math.nan, math.nan))
    return after[0] - before[1], after[1] - before[0]


def by_margin(paired: dict[str, Any]) -> dict[str, float]:
    """Change of the NLL as that of the margin alone plus that of the mass on other classes than the strongest rival.

    With margin m = z_y - max other z: NLL = ln(1 + exp(-m)) + r and 0 <= r <= ln(C - 1).

    Returns:
        Two parts, or an empty dictionary if the probe kept no logits.
    """
    if "margin_nll_change" not in paired:
        return {}
    margin = paired["margin_nll_change"]
    return {"margin to the strongest rival": margin, "mass on other classes": paired["nll_change"] - margin}


def flips(paired: dict[str, Any]) -> dict[str, float]:
    """Answers that changed between right and wrong, and McNemar's test of their balance.

    Returns:
        "to_right", "to_wrong" items, "accuracy_change" = their difference over all items, "error" its standard error,
        "p_value" two-sided, exact below 25 flips (McNemar 1947); empty where items hold several rows.
    """
    groups = {group["name"]: group["items"] for group in paired["groups"]}
    if FLIPS[0] not in groups:
        return {}
    gained, lost = (groups[name] for name in FLIPS)
    items, both = paired["items"], gained + lost
    if both < FEW_FLIPS:
        tail = math.fsum(math.comb(both, count) for count in range(min(gained, lost) + 1)) / 2**both
        p_value = min(1.0, 2 * tail)
    else:
        p_value = 2 * NormalDist().cdf(-abs(gained - lost) / math.sqrt(both))
    change = (gained - lost) / items
    error = math.sqrt(max(both - items * change**2, 0.0)) / items
    return {"to_right": gained, "to_wrong": lost, "accuracy_change": change, "error": error, "p_value": p_value}


def by_answer(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Unpaired: change of the NLL by the share of right answers, and by the mean NLL of right and of wrong ones.

    With accuracy a and means c, w of right and wrong rows: dL = da (c - w) + a dc + (1 - a) dw, every factor the mean
    of both evaluations. Rows near the boundary that turn right raise the mean of both groups while the loss falls.

    Args:
        before, after: `Record.values` with `nll`, `accuracy`, `nll_right` and `nll_wrong`.

    Returns:
        Three parts, or an empty dictionary if a value is missing.
    """
    if not all(math.isfinite(values.get(key, math.nan)) for values in (before, after) for key in ("nll", "accuracy")):
        return {}
    share = _both(before["accuracy"], after["accuracy"])
    right = _filled(before.get("nll_right", math.nan), after.get("nll_right", math.nan))
    wrong = _filled(before.get("nll_wrong", math.nan), after.get("nll_wrong", math.nan))
    return {
        "share of right answers": share[1] * (sum(right) - sum(wrong)) / 2,
        "right answers": share[0] * (right[1] - right[0]),
        "wrong answers": (1 - share[0]) * (wrong[1] - wrong[0]),
    }


def by_cell(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Unpaired: change of the NLL by right or wrong and confidence: rows that moved, and change within each cell.

    With the share w and the mean NLL m of a cell: dL = sum dw (m - mean m) + sum w dm; an empty cell takes the mean of
    the other evaluation, which leaves the sum exact.

    Args:
        before, after: `Record.arrays["cells"]`, "rows" and summed "nll" (2, B): wrong and right rows by confidence bin.

    Returns:
        "moved between cells", "within right", "within wrong" (they add up), and the "largest" cells by name with both
        parts; empty without rows.
    """
    sizes = [[float(rows) for half in cells["rows"] for rows in half] for cells in (before, after)]
    sums = [[value for half in cells["nll"] for value in half] for cells in (before, after)]
    if len(sizes[0]) != len(sizes[1]) or not (sum(sizes[0]) and sum(sizes[1])):
        return {}
    moved, within = _shares(sizes, sums)
    bins = len(sizes[0]) // 2
    names = [f"{'right' if cell >= bins else 'wrong'}, {_bin(cell % bins, bins)}" for cell in range(2 * bins)]
    parts = {
        "moved between cells": math.fsum(moved),
        "within right": math.fsum(within[bins:]),
        "within wrong": math.fsum(within[:bins]),
    }
    order = sorted(range(2 * bins), key=lambda cell: -abs(moved[cell] + within[cell]))[:NAMED]
    largest = [{"cell": names[cell], "moved": moved[cell], "within": within[cell]} for cell in order]
    return parts | {"largest": [cell for cell in largest if cell["moved"] or cell["within"]]}


def by_class(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Unpaired: change of the NLL by target class: other shares of the classes, and change within each class.

    With the share w and the mean NLL m of a class: dL = sum dw (m - mean m) + sum w dm. The first is nothing on a fixed
    validation set.

    Args:
        before, after: `Record.arrays["classes"]`, the table of `quantities.class_table`; classes that only one of them
            names join the rest.

    Returns:
        "shares of classes", "within classes" (they add up), and "classes": the largest by name, the others as class
        -1, each with both parts; empty without rows.
    """
    named = set(before["class"]) & set(after["class"]) - {-1}
    index = [label for label in before["class"] if label in named] + [-1]
    sizes, sums = [], []
    for table in (before, after):
        place = {label: position for position, label in enumerate(index)}
        rows, total = [0.0] * len(index), [0.0] * len(index)
        for label, count, nll in zip(table["class"], table["rows"], table["nll"], strict=True):
            position = place.get(label, len(index) - 1)
            rows[position] += count
            total[position] += count * nll if count else 0.0
        sizes.append(rows)
        sums.append(total)
    if not (sum(sizes[0]) and sum(sizes[1])):
        return {}
    moved, within = _shares(sizes, sums)
    order = sorted(range(len(index)), key=lambda place: -abs(moved[place] + within[place]))
    order = [place for place in order if index[place] != -1][:NAMED]
    rest = [place for place in range(len(index)) if place not in order]
    classes = [{"class": index[place], "moved": moved[place], "within": within[place]} for place in order]
    if any(moved[place] or within[place] for place in rest):
        others = {"moved": math.fsum(moved[place] for place in rest), "within": math.fsum(within[p] for p in rest)}
        classes.append({"class": -1, **others})
    return {"shares of classes": math.fsum(moved), "within classes": math.fsum(within), "classes": classes}


def by_loss(before: Record, after: Record) -> dict[str, float]:
    """Change of the loss that the user logged: that of the NLL, and of what else is in it (penalties, weights …).

    Returns:
        Two parts that add up to the change of the logged loss; empty where none was logged, or several were.
    """
    names = [name for name in after.logged if "loss" in name.lower()]
    name = names[0] if len(names) == 1 else "loss"
    losses = [record.logged.get(name, math.nan) for record in (before, after)]
    nll = [record.values.get("nll", math.nan) for record in (before, after)]
    if not all(map(math.isfinite, losses + nll)):
        return {}
    return {"nll": nll[1] - nll[0], "rest of the logged loss": (losses[1] - nll[1]) - (losses[0] - nll[0])}


def attribution(
    paired: dict[str, Any] | None, full_change: float, before: Record | None = None, after: Record | None = None
) -> dict[str, Any]:
    """All identities of one change, with the change of the whole evaluation beside the probe's.

    Args:
        paired: see `probe.compare`; None where rows could not be paired.
        full_change: change of the NLL over all rows; equals the probe's when the probe holds all items.
        before, after: both evaluations, for the unpaired identities.

    Returns:
        From the pairs "nll_change", "outside_probe", "by_group", "by_temperature", "temperature_bounds", "by_margin",
        "flips", "worst"; from the records "by_answer", "by_cell", "by_class", "by_loss". What could not be measured is
        absent.
    """
    found: dict[str, Any] = {"full_nll_change": full_change}
    if paired is not None:
        found |= {
            "nll_change": paired["nll_change"],
            "outside_probe": full_change - paired["nll_change"],
            "by_group": by_group(paired),
            "by_temperature": by_temperature(paired),
            "by_margin": by_margin(paired),
            "flips": flips(paired),
            "worst": paired["worst"],
        }
        bounds = temperature_bounds(paired)
        found |= {"temperature_bounds": list(bounds)} if math.isfinite(sum(bounds)) else {}
    if before is not None and after is not None:
        arrays = before.arrays, after.arrays
        found |= {
            "by_answer": by_answer(before.values, after.values),
            "by_cell": by_cell(arrays[0]["cells"], arrays[1]["cells"]) if _have("cells", arrays) else {},
            "by_class": by_class(arrays[0]["classes"], arrays[1]["classes"]) if _have("classes", arrays) else {},
            "by_loss": by_loss(before, after),
        }
    kept = ("by_group", "by_temperature", "worst")
    return {name: part for name, part in found.items() if name in kept or part != {}}


def sentences(parts: Mapping[str, Any]) -> list[str]:
    """Each identity of `attribution` beyond groups and temperature as one readable line, paired ones first."""
    lines = []
    if "flips" in parts:
        flip = parts["flips"]
        lines.append(
            f"flips: {flip['to_right']} to right, {flip['to_wrong']} to wrong, so accuracy "
            f"{100 * flip['accuracy_change']:+.2f} pp (McNemar p = {flip['p_value']:.2g})"
        )
    if "temperature_bounds" in parts:
        bounds = parts["temperature_bounds"]
        lines.append(f"after one temperature, certainly between {bounds[0]:+.4f} and {bounds[1]:+.4f} on these rows")
    if "by_margin" in parts:
        lines.append(f"by margin: {_listed(parts['by_margin'])}")
    if "by_answer" in parts:
        lines.append(f"not paired, by answer: {_listed(parts['by_answer'])}")
    if "by_cell" in parts:
        cells = parts["by_cell"]
        largest = "; ".join(f"{cell['cell']}: {cell['moved'] + cell['within']:+.4f}" for cell in cells["largest"][:2])
        numbers = {name: value for name, value in cells.items() if name != "largest"}
        lines.append(f"not paired, by confidence: {_listed(numbers)} (most in {largest or 'no cell'})")
    if "by_class" in parts:
        classes = parts["by_class"]
        names = ["other classes" if part["class"] == -1 else f"class {part['class']}" for part in classes["classes"]]
        changes = [part["moved"] + part["within"] for part in classes["classes"]]
        largest = "; ".join(f"{name} {change:+.4f}" for name, change in zip(names[:3], changes, strict=False))
        shift = classes["shares of classes"]
        lines.append(f"by class: {largest or 'nothing'}" + (f" · other class shares {shift:+.4f}" if shift else ""))
    if "by_loss" in parts:
        lines.append(f"the logged loss: {_listed(parts['by_loss'])}")
    return lines


def group_sentence(paired: dict[str, Any]) -> str:
    """The groups as one line: rows, how many have a higher loss, and their part of the change (nats)."""
    groups = {group["name"]: group for group in paired["groups"]}
    if "right both times" not in groups:
        return " · ".join(f"{group['items']} {name}: {group['change']:+.4f}" for name, group in groups.items())
    wrong, right = groups["wrong both times"], groups["right both times"]
    gained, lost = groups["wrong to right"], groups["right to wrong"]
    flips = gained["items"] + lost["items"]
    return (
        f"{wrong['items']} rows wrong both times ({wrong['higher']} with higher loss): {wrong['change']:+.4f} · "
        f"{right['items']} right both times: {right['change']:+.4f} · "
        f"{flips} flips ({gained['items']} to right, {lost['items']} to wrong): "
        f"{gained['change'] + lost['change']:+.4f}"
    )


def temperature_sentence(paired: dict[str, Any]) -> str:
    """What is left of the change after one temperature, and the share of the change that is confidence."""
    refined = paired.get("refinement_change", math.nan)
    low, high = interval(refined, paired.get("refinement_change_error", math.nan))
    text = f"after one temperature: {refined:+.4f} ({low:+.4f} … {high:+.4f})"
    change = paired["nll_change"]
    if change <= 0:
        return text
    least, most = (round(100 * (1 - bound / change)) for bound in (high, low))
    if least >= 100:
        return f"{text}, so all of the rise is confidence"
    if most <= 0:
        return f"{text}, so none of the rise is confidence"
    return f"{text}, so {max(least, 0)} … {min(most, 100)} % of the rise is confidence"


def worst_sentence(paired: dict[str, Any], shown: int = 3) -> str:
    """The items whose loss rose most: position in the data set, target → predicted class."""
    worst = paired["worst"][:shown]
    if not worst:
        return ""
    names = [
        (
            f"#{item['index']} {item['target']}→{item['predicted']}"
            if item["target"] != item["predicted"]
            else f"#{item['index']} (right)"
        )
        if item["rows"] == 1
        else f"#{item['index']}"
        for item in worst
    ]
    return f"worst rows {', '.join(names)}"


def _shares(sizes: Sequence[Sequence[float]], sums: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """For each group: part of the change of the mean by its share, and by its own mean; see `by_cell`.

    Args:
        sizes, sums: rows and summed NLL of each group, before and after.
    """
    totals = [math.fsum(rows) for rows in sizes]
    middle = math.fsum(math.fsum(values) / total for values, total in zip(sums, totals, strict=True)) / 2
    moved, within = [], []
    for rows, values in zip(zip(*sizes, strict=True), zip(*sums, strict=True), strict=True):
        share = _both(rows[0] / totals[0], rows[1] / totals[1])
        mean = _filled(*(value / count if count else math.nan for value, count in zip(values, rows, strict=True)))
        moved.append(share[1] * (sum(mean) / 2 - middle))
        within.append(share[0] * (mean[1] - mean[0]))
    return moved, within


def _both(before: float, after: float) -> tuple[float, float]:
    """Mean and change."""
    return (before + after) / 2, after - before


def _filled(before: float, after: float) -> tuple[float, float]:
    """Two means of a group, where the one of an empty group is that of the other evaluation; 0 if both are empty."""
    before = after if math.isnan(before) else before
    after = before if math.isnan(after) else after
    return (0.0, 0.0) if math.isnan(before) else (before, after)


def _have(name: str, arrays: Sequence[Mapping[str, Any]]) -> bool:
    return all(bool(array.get(name)) for array in arrays)


def _bin(index: int, bins: int) -> str:
    return f"confidence {index / bins:.2f}-{(index + 1) / bins:.2f}"


def _listed(parts: Mapping[str, float]) -> str:
    return " · ".join(f"{name} {value:+.4f}" for name, value in parts.items())
