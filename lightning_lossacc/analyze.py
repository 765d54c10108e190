"""What do saved predictions say, and what changed between two sets of them? `lossacc analyze A.npz [B.npz]`.

A file holds predictions under a name in `PREDICTIONS`, which says what they are (the first one of the list that is
there), and targets under one of the names in `TARGETS`. Everything that a live evaluation reports is computed by the
same path; two files of the same targets are compared row by row.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from lightning_lossacc import attribution, floors, kernels, quantities
from lightning_lossacc.floors import labels_contradict
from lightning_lossacc.history import Record, to_json
from lightning_lossacc.looks import Looks
from lightning_lossacc.probe import Probe
from lightning_lossacc.refinement import half_temperatures, refinement
from lightning_lossacc.sums import InputKind, Layout, Task

PREDICTIONS: dict[str, InputKind] = {
    "logits": "logits",
    "preds": "logits",
    "predictions": "logits",
    "probabilities": "probabilities",
    "probs": "probabilities",
    "log_probabilities": "log_probabilities",
    "log_probs": "log_probabilities",
}
TARGETS = ("target", "targets", "labels", "label", "y", "y_true")
PAIRED_ITEMS = 1_000_000
FITTED_ITEMS = 20_000
SUSPECTS = 16
SHOWN_CLASSES = 10
# Share of the answers from which on one class is all that is predicted.
ONE_CLASS = 0.99
WORST_CONFUSIONS = 5


@dataclass(frozen=True, slots=True)
class Analysis:
    """One file: its sums, its items, and its numbers.

    Attributes:
        name: of the file.
        layout: of the sums.
        probe: all items (at most a million), for the comparison with another file.
        target: (N, ...) as stored.
        record: all quantities, cells and classes as a live evaluation records them.
        numbers: what `as_json` writes.
    """

    name: str
    layout: Layout
    probe: Probe
    target: Tensor
    record: Record
    numbers: dict[str, Any]


def analyze(
    paths: Sequence[str | Path],
    as_json: bool = False,
    input_kind: InputKind | None = None,
    ignore_index: int | None = -100,
) -> str:
    """All quantities of one file of predictions, or of two and what changed between them.

    Args:
        paths: one or two `.npz` files, the earlier one first.
        as_json: one JSON object `{"files": [...], "change": {...}}` instead of text.
        input_kind: what the predictions are, where their name does not tell or is wrong.
        ignore_index: target value of rows without any effect; None for none.

    Returns:
        The text, or one line of JSON.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if there is not one file or two, or a file does not hold predictions and targets that fit together.
    """
    if len(paths) not in (1, 2):
        raise ValueError(f"Expected `paths` to name one file or two, but got {len(paths)}.")
    if input_kind is not None and input_kind not in get_args(InputKind):
        raise ValueError(
            f"Expected `input_kind` to be one of {', '.join(get_args(InputKind))}, but got {input_kind!r}."
        )
    found = [measure(Path(path), input_kind, ignore_index) for path in paths]
    change = compare(*found) if len(found) == 2 else None
    if as_json:
        result: dict[str, Any] = {"files": [one.numbers for one in found]}
        return to_json(result | ({} if change is None else {"change": change}))
    if change is None:
        return "\n".join(_file_lines(found[0]))
    return "\n".join(_change_lines(*found, change))


def measure(path: Path, input_kind: InputKind | None = None, ignore_index: int | None = -100) -> Analysis:
    """Everything about one file; arguments and errors as in `analyze`."""
    preds, target, kind = _read(path, input_kind)
    task: Task = "binary" if preds.ndim == 1 or preds.shape[1] == 1 else "multiclass"
    classes = 2 if task == "binary" else preds.shape[1]
    try:
        layout = Layout(num_classes=classes, task=task, input_kind=kind, ignore_index=ignore_index)
        counts, sums = layout.zeros()
        kernels.row_statistics(preds, target, counts, sums, layout)
        probe = Probe(len(preds), layout, limit=PAIRED_ITEMS)
        probe.update(torch.arange(len(preds)), preds, target)
        looks = Looks()
        looks.update(kernels.canonical(preds, target, layout)[0])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None
    values = quantities.summary(counts, sums, layout)
    if not values["num_rows"]:
        raise ValueError(f"Expected `{path}` to hold rows that count, but every one is ignored, invalid or non-finite.")
    part = layout.parts(counts, sums)
    classes_table = quantities.class_table(counts, sums, layout)
    arrays = {
        "cells": {"rows": part["bin_rows"].view(2, -1).tolist(), "nll": part["bin_nll"].view(2, -1).tolist()},
        "classes": classes_table,
    }
    rows, items = int(values["num_rows"]), int(values["num_items"])
    record = Record("analyze", 0, 0, 0, 0.0, True, rows, items, values, arrays)
    best = refinement(counts, sums, layout)
    looks_like = looks.verdict() if kind == "logits" else ""
    numbers = {
        "file": str(path),
        "task": task,
        "input_kind": kind,
        "num_classes": classes,
        "values": values,
        "excluded": {name: int(part[name]) for name in ("ignored", "invalid", "non_finite", "unsupported")},
        "temperature_bounds": [best.lower, best.upper],
        "half_temperatures": half_temperatures(counts, sums, layout),
        "fits": probe.fits(FITTED_ITEMS),
        "tail": _tail(probe),
        "classes": classes_table,
        "confusion": probe.confusion(),
        "certificates": certificates(values, classes, classes_table["rows"]),
        "looks_like": looks_like,
    }
    return Analysis(path.name, layout, probe, target, record, numbers)


def _tail(probe: Probe) -> dict[str, Any]:
    """Rows whose label contradicts the model, the likeliest ones by number; empty where logits are not kept."""
    found, rows = probe.tail(), probe.rows()
    if found is None or rows is None:
        return {}
    order = found.weight.argsort(descending=True, stable=True)[:SUSPECTS]
    return found.numbers() | {"rows": rows[0][order].tolist(), "weights": found.weight[order].tolist()}


def certificates(values: dict[str, float], num_classes: int, class_rows: Sequence[float]) -> list[dict[str, Any]]:
    """Statements that scalars alone prove: "name", "bound" (nats or a share), whether it "holds", "text" if it does.

    Args:
        values: `nll`, `accuracy`, `predicted_majority_rate`.
        num_classes: C.
        class_rows: rows of each class.
    """
    nll, accuracy, predicted = (values[key] for key in ("nll", "accuracy", "predicted_majority_rate"))
    uniform = math.log(num_classes)
    constant = floors.constant_confidence_nll(1 - accuracy, num_classes)
    entropy = floors.label_entropy(class_rows)
    shares = [rows / math.fsum(class_rows) for rows in class_rows]
    nearest = min(range(len(shares)), key=lambda label: abs(shares[label] - accuracy))
    is_one_class = predicted >= ONE_CLASS and abs(shares[nearest] - accuracy) <= 1 - ONE_CLASS
    found = (
        (
            "worse-than-uniform",
            uniform,
            nll > uniform,
            f"NLL is above ln {num_classes} = {uniform:.4f}, that of equal probabilities: the best temperature is "
            "above 1",
        ),
        (
            "worse-than-constant-confidence",
            constant,
            nll > constant,
            f"the same answers with confidence {accuracy:.3f} always would have NLL {constant:.4f}, "
            f"{nll - constant:.4f} less",
        ),
        (
            "worse-than-class-shares",
            entropy,
            nll > entropy,
            f"NLL is above {entropy:.4f}, that of the class shares without a look at any input",
        ),
        (
            "one-class-predicted",
            shares[nearest],
            is_one_class,
            f"{100 * predicted:.1f} % of the answers are one class, and accuracy is the share of class {nearest}",
        ),
    )
    return [
        {"name": name, "bound": bound, "holds": holds, "text": text if holds else ""}
        for name, bound, holds, text in found
    ]


def compare(before: Analysis, after: Analysis) -> dict[str, Any]:
    """What changed from one file to the other, as plain numbers.

    Returns:
        "paired": whether rows were compared one by one, else "why_not"; "pairs": the paired comparison
        (`probe.compare`); "attribution": all identities; "sentences": them in words; "values": quantities before and
        after.
    """
    old, new = before.record, after.record
    why_not = ""
    if before.target.shape != after.target.shape:
        why_not = f"targets have shapes {tuple(before.target.shape)} and {tuple(after.target.shape)}"
    elif not torch.equal(before.target, after.target):
        why_not = f"{int((before.target != after.target).sum())} targets differ"
    elif before.layout.num_classes != after.layout.num_classes:
        why_not = f"one has {before.layout.num_classes} classes and the other {after.layout.num_classes}"
    pairs = None
    if not why_not:
        before.probe.keep("before", 0, 0, old.values["temperature"], old.values["nll"])
        after.probe.load_state(before.probe.state())
        pairs = after.probe.compare("before", new.values["temperature"])
        if pairs is None:
            why_not = "other rows are counted, or fewer than two"
    change = new.values["nll"] - old.values["nll"]
    parts = attribution.attribution(pairs, change, old, new)
    lines = attribution.sentences(parts)
    if pairs is not None:
        paired_lines = [attribution.group_sentence(pairs), attribution.temperature_sentence(pairs)]
        lines = [line for line in (*paired_lines, attribution.worst_sentence(pairs, 8)) if line] + lines
    values = {key: [old.values.get(key, math.nan), value] for key, value in new.values.items()}
    result = {"paired": pairs is not None, "why_not": why_not, "pairs": pairs or {}}
    return result | {"attribution": parts, "sentences": lines, "values": values}


def _read(path: Path, input_kind: InputKind | None) -> tuple[Tensor, Tensor, InputKind]:
    """Predictions, targets and what the predictions are."""
    if not path.is_file():
        raise FileNotFoundError(f"Expected `{path}` to be a file of predictions and targets, but there is none.")
    try:
        stored = np.load(path, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise ValueError("one array without a name")
        with stored:
            arrays = {name: stored[name] for name in stored.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"Expected `{path}` to be written by numpy.savez with arrays of numbers, but got {error}."
        ) from None
    listed = ", ".join(f"{name} {array.shape} {array.dtype}" for name, array in arrays.items()) or "nothing"
    scores = [name for name in PREDICTIONS if name in arrays and arrays[name].dtype.kind == "f" and arrays[name].ndim]
    if not scores:
        raise ValueError(
            f"Expected `{path}` to hold scores of shape (N, C), or (N,) for two classes, under one of the names "
            f"{', '.join(PREDICTIONS)}, but got {listed}; answers alone tell accuracy and no loss."
        )
    targets = [name for name in TARGETS if name in arrays]
    if len(targets) != 1:
        raise ValueError(
            f"Expected `{path}` to hold targets under exactly one of the names {', '.join(TARGETS)}, but got {listed}."
        )
    preds, target = (torch.from_numpy(_supported(path, name, arrays[name])) for name in (scores[0], targets[0]))
    return preds, target, input_kind or PREDICTIONS[scores[0]]


def _supported(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    """The array in a type that torch has: unsigned and Boolean numbers as int64, others as they are."""
    if array.dtype.kind in "ub":
        array = array.astype(np.int64)
    if array.dtype.kind not in "if" or array.dtype.itemsize > 8:
        raise ValueError(f"Expected `{name}` in `{path}` to hold numbers, but got {array.dtype}.")
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))


def _head(one: Analysis) -> list[str]:
    numbers = one.numbers
    values = one.record.values
    items = f" in {one.record.num_items} items" if one.record.num_items != one.record.num_rows else ""
    excluded = ", ".join(f"{rows} {name.replace('_', '-')}" for name, rows in numbers["excluded"].items() if rows)
    lines = [
        f"{one.name}: {one.record.num_rows} rows{items} of {numbers['num_classes']} classes, "
        f"{numbers['input_kind'].replace('_', '-')}" + (f"; left out: {excluded}" if excluded else ""),
    ]
    if numbers["looks_like"] == "probabilities":
        lines.append("these look like probabilities, not logits: all numbers below are wrong then; see `input_kind`")
    lines.append(
        f"NLL {values['nll']:.4f} ± {values['nll_standard_error']:.4f} · accuracy {100 * values['accuracy']:.2f} % "
        f"± {100 * values['accuracy_standard_error']:.2f} (standard errors)"
    )
    low, high = numbers["temperature_bounds"]
    if values["temperature_at_edge"]:
        lines.append("the best temperature lies outside 0.25 … 8, so the loss after it is not known")
    else:
        halves = " and ".join(f"{temperature:.2f}" for temperature in numbers["half_temperatures"])
        lines.append(
            f"after one temperature, T = {values['temperature']:.3f} (each half alone: {halves}): "
            f"NLL {values['refinement_nll']:.4f}, certainly {low:.4f} … {high:.4f}; saves "
            f"{values['temperature_gain']:.4f} nats cross-fitted; confirm on a test set"
        )
    lines += _fit_lines(numbers["fits"])
    if numbers["tail"] and labels_contradict(numbers["tail"]["score"], one.record.num_rows):
        lines.append(_tail_line(numbers["tail"]))
    return lines + [item["text"] for item in numbers["certificates"] if item["holds"]]


def _fit_lines(found: dict[str, Any]) -> list[str]:
    if not found:
        return []
    gains = " · ".join(
        f"{words} {found[name]:.4f} ({-found[f'{name}_gain']:+.4f} ± {found[f'{name}_gain_error']:.4f})"
        for name, words in (("temperature", "one temperature"), ("bias", "and a bias per class"))
    )
    scales = f" · and a scale per class {found['vector']:.4f}" if found["vector"] != found["bias"] else ""
    return [f"cross-fitted on {found['items']} rows: as it is {found['nll']:.4f} · {gains}{scales}"]


def _tail_line(found: dict[str, Any]) -> str:
    rows = ", ".join(f"#{row}" for row, weight in zip(found["rows"], found["weights"], strict=True) if weight > 0.5)
    return (
        f"about {100 * found['share']:.1f} % of the labels contradict the model, which its errors do not explain "
        f"(likelihood ratio {found['score']:.0f}; T = {found['temperature']:.2f} without them): look at "
        f"{rows or 'the worst rows'}"
    )


def _file_lines(one: Analysis) -> list[str]:
    """The whole text about one file."""
    lines = [*_head(one), "", f"{'quantity':<26}{'value':>12}  better"]
    for key, value in one.record.values.items():
        lines.append(f"{key:<26}{value:>12.5g}  {quantities.KEYS[key].better}")
    return lines + _class_lines(one)


def _class_lines(one: Analysis) -> list[str]:
    """Classes with the largest part of the loss, and the most frequent confusions."""
    table = one.record.arrays["classes"]
    filled = [place for place, rows in enumerate(table["rows"]) if rows]
    total = math.fsum(table["rows"][place] * table["nll"][place] for place in filled) or 1.0
    order = sorted(filled, key=lambda place: -table["rows"][place] * table["nll"][place])
    lines = ["", f"{'class':<8}{'rows':>9}{'predicted':>11}{'recall':>9}{'NLL':>10}{'of the loss':>13}"]
    for place in order[:SHOWN_CLASSES]:
        rows, nll = table["rows"][place], table["nll"][place]
        lines.append(
            f"{table['class'][place]:<8}{rows:>9.0f}{table['predicted'][place]:>11.0f}"
            f"{100 * table['correct'][place] / rows:>7.1f} %{nll:>10.4f}{100 * rows * nll / total:>11.1f} %"
        )
    if len(order) > SHOWN_CLASSES:
        lines.append(f"… {len(order) - SHOWN_CLASSES} classes with less of the loss")
    confusion = one.numbers["confusion"]
    if confusion is not None:
        pairs = [(rows, target, answer) for target, row in enumerate(confusion) for answer, rows in enumerate(row)]
        worst = sorted(pair for pair in pairs if pair[0] and pair[1] != pair[2])[: -WORST_CONFUSIONS - 1 : -1]
        if worst:
            named = ", ".join(f"{target}→{answer} {rows}" for rows, target, answer in worst)
            lines += ["", f"most frequent confusions (target→answer rows): {named}"]
    return lines


def _change_lines(before: Analysis, after: Analysis, change: dict[str, Any]) -> list[str]:
    """The whole text about two files."""
    old, new = before.record.values, after.record.values
    pairs = change["pairs"]
    how = "the same targets, compared row by row" if pairs else f"not compared row by row: {change['why_not']}"
    lines = [*_head(before), "", *_head(after), "", f"{before.name} → {after.name}: {how}"]
    for name, key, factor, unit in (("NLL", "nll", 1, ""), ("accuracy", "accuracy", 100, " %")):
        difference = new[key] - old[key]
        error = math.hypot(old[f"{key}_standard_error"], new[f"{key}_standard_error"])
        if pairs:
            error = pairs[f"{key}_change_error"]
        low, high = attribution.interval(difference, error)
        digits, points = (4, "") if factor == 1 else (2, " pp")
        lines.append(
            f"{name} {factor * old[key]:.{digits}f} → {factor * new[key]:.{digits}f}{unit} "
            f"({factor * difference:+.{digits}f}{points}, 99 % {factor * low:+.{digits}f} … {factor * high:+.{digits}f}"
            + (
                f"; without the outer 1 % of rows {pairs['nll_change_winsorised']:+.4f})"
                if pairs and digits == 4
                else ")"
            )
        )
    lines += change["sentences"]
    lines += ["", f"{'quantity':<26}{'before':>12}{'after':>12}{'change':>12}  better"]
    for key, (first, second) in change["values"].items():
        lines.append(f"{key:<26}{first:>12.5g}{second:>12.5g}{second - first:>+12.4g}  {quantities.KEYS[key].better}")
    return lines
