"""Saved predictions give the same numbers as a live evaluation, and two files all of what changed between them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lossacc.analyze import analyze, certificates, measure
from lightning_lossacc.metrics import LossAccuracy


def stored(path: Path, **arrays: Any) -> Path:
    np.savez(path, **{name: array.numpy() if isinstance(array, Tensor) else array for name, array in arrays.items()})
    return path


def two(num_rows: int = 600, classes: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """A calibrated evaluation, one three times as sure with a few other answers, and the targets."""
    target = torch.randint(0, classes, (num_rows,))
    noise, other = torch.randn(2, num_rows, classes, dtype=torch.float64)
    hot = F.one_hot(target, classes)
    return 2 * (2 * hot + noise), 6 * (2 * hot + noise + 0.1 * other), target


def as_numbers(*paths: Path, **more: Any) -> dict[str, Any]:
    return json.loads(analyze(paths, as_json=True, **more))


def test_quantities_are_those_of_the_metric(tmp_path: Path) -> None:
    """Every quantity of `LossAccuracy` with its value, in the JSON and in the text."""
    logits, _, target = two()
    path = stored(tmp_path / "a.npz", logits=logits, target=target)
    metric = LossAccuracy(num_classes=4)
    metric.update(logits, target)
    wanted = {name: float(value) for name, value in metric.compute().items()}
    found = as_numbers(path)["files"][0]
    assert found["values"] == pytest.approx(wanted) and found["num_classes"] == 4
    text = analyze([path])
    for name, value in wanted.items():
        assert any(line.split()[:2] == [name, f"{value:.5g}"] for line in text.splitlines()), name
    assert found["temperature_bounds"][0] <= wanted["refinement_nll"] <= found["temperature_bounds"][1]
    assert sum(map(sum, found["confusion"])) == 600 and found["fits"]["items"] == 600


@pytest.mark.parametrize("name", ["probabilities", "probs", "log_probabilities", "preds", "predictions"])
def test_the_name_says_what_the_predictions_are(tmp_path: Path, name: str) -> None:
    """Probabilities and log-probabilities give the numbers of their logits; `preds` are logits."""
    logits, _, target = two()
    shown = F.log_softmax(logits, 1) if name.startswith("log") else F.softmax(logits, 1) if "prob" in name else logits
    found = as_numbers(stored(tmp_path / "a.npz", **{name: shown, "y": target}))["files"][0]
    assert found["values"]["nll"] == pytest.approx(float(F.cross_entropy(logits, target)))


def test_probabilities_under_the_name_of_logits_are_noticed(tmp_path: Path) -> None:
    """They are counted as what they are called, it is said, and an argument puts it right."""
    logits, _, target = two()
    path = stored(tmp_path / "a.npz", logits=F.softmax(logits, 1), target=target)
    assert "look like probabilities" in analyze([path])
    right = analyze([path], input_kind="probabilities")
    assert "look like" not in right and f"NLL {float(F.cross_entropy(logits, target)):.4f}" in right
    with pytest.raises(ValueError, match="Expected `input_kind` to be one of logits"):
        analyze([path], input_kind="scores")


@pytest.mark.parametrize("shape", [(500,), (500, 1)])
def test_one_column_is_binary(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Logits of one column, Boolean or unsigned targets."""
    logits, target = torch.randn(shape), torch.randint(0, 2, (500,))
    for kind in (np.bool_, np.uint8, np.float32):
        path = stored(tmp_path / "a.npz", logits=logits, labels=target.numpy().astype(kind))
        found = as_numbers(path)["files"][0]
        wanted = F.binary_cross_entropy_with_logits(logits.reshape(-1), target.float())
        assert found["task"] == "binary" and found["values"]["nll"] == pytest.approx(float(wanted), rel=1e-5)


def test_labels_that_contradict_the_model_are_listed(tmp_path: Path) -> None:
    """Ten of 600 rows get another class: they are counted and named; of fitting labels nothing is said."""
    logits, _, _ = two()
    logits = 3 * logits
    target = torch.multinomial(logits.softmax(1), 1)[:, 0]
    assert "contradict" not in analyze([stored(tmp_path / "fitting.npz", logits=logits, target=target)])
    wrong = torch.randperm(600)[:30]
    target[wrong] = (logits[wrong].argmax(1) + 2) % 4
    path = stored(tmp_path / "wrong.npz", logits=logits, target=target)
    found = as_numbers(path)["files"][0]["tail"]
    assert 0.02 < found["share"] < 0.1 and set(found["rows"][:8]) <= set(wrong.tolist())
    text = analyze([path])
    assert "of the labels contradict the model" in text and f"#{found['rows'][0]}, " in text


def test_two_files_of_the_same_targets_are_compared_row_by_row(tmp_path: Path) -> None:
    """Identities add up, flips are counted, the worst rows named, and the refinement change has its interval."""
    before, after, target = two()
    paths = [stored(tmp_path / f"{name}.npz", logits=z, target=target) for name, z in (("a", before), ("b", after))]
    change = as_numbers(*paths)["change"]
    nll = [F.cross_entropy(logits, target, reduction="none") for logits in (before, after)]
    difference = nll[1] - nll[0]
    pairs, parts = change["pairs"], change["attribution"]
    assert change["paired"] and pairs["nll_change"] == pytest.approx(float(difference.mean()))
    for name in ("by_group", "by_temperature", "by_margin"):
        assert math.fsum(parts[name].values()) == pytest.approx(pairs["nll_change"], abs=1e-9)
    was, is_now = before.argmax(1) == target, after.argmax(1) == target
    assert parts["flips"]["to_right"] == int((~was & is_now).sum()) > 0
    assert [item["index"] for item in pairs["worst"]] == difference.argsort(descending=True)[:8].tolist()
    assert abs(pairs["refinement_change"]) < 4 * pairs["refinement_change_error"] + 0.02 < pairs["nll_change"]
    text = analyze(paths)
    assert "the same targets, compared row by row" in text and f"#{pairs['worst'][0]['index']} " in text
    assert all(line in text for line in change["sentences"]) and "NaN" not in text


@pytest.mark.parametrize("what", ["other labels", "fewer rows", "more classes", "other rows ignored"])
def test_other_sets_are_compared_without_pairs(tmp_path: Path, what: str) -> None:
    """It says why, uses unpaired identities only, and these add up as well."""
    before, after, target = two()
    one = stored(tmp_path / "a.npz", logits=before, target=target)
    later = target.clone()
    if what == "other labels":
        later[3] = (later[3] + 1) % 4
    elif what == "fewer rows":
        after, later = after[:500], later[:500]
    elif what == "more classes":
        after = torch.cat((after, torch.full((600, 1), -9.0)), dim=1)
    else:
        after[0] = math.nan
    other = stored(tmp_path / "b.npz", logits=after, target=later)
    change = as_numbers(one, other)["change"]
    assert not change["paired"] and change["why_not"] and "by_group" not in change["attribution"]
    nll = change["values"]["nll"]
    assert math.fsum(change["attribution"]["by_answer"].values()) == pytest.approx(nll[1] - nll[0], abs=1e-9)
    assert f"not compared row by row: {change['why_not']}" in analyze([one, other])


def test_segmentation_and_ignored_rows(tmp_path: Path) -> None:
    """Channels first, several rows an item, some of them ignored: pairs are items."""
    logits, target = torch.randn(30, 3, 6, 5), torch.randint(0, 3, (30, 6, 5))
    target[:, 0] = 255
    paths = [stored(tmp_path / f"{k}.npz", logits=k * logits, target=target.byte()) for k in (1, 2)]
    found = as_numbers(*paths, ignore_index=255)
    assert found["files"][0]["values"]["num_rows"] == 30 * 25 and found["files"][0]["excluded"]["ignored"] == 150
    assert found["change"]["pairs"]["items"] == 30 and found["files"][0]["fits"] == {}
    assert "750 rows in 30 items" in analyze(paths, ignore_index=255)


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    """One sentence with the file, what was expected and what there was."""
    logits, _, target = two()
    with pytest.raises(FileNotFoundError, match=r"nothing\.npz"):
        analyze([tmp_path / "nothing.npz"])
    with pytest.raises(ValueError, match="one file or two, but got 3"):
        analyze(["a", "b", "c"])
    text = tmp_path / "text.npz"
    text.write_text("no archive")
    one = tmp_path / "one.npy"
    np.save(one, logits.numpy())
    objects = stored(tmp_path / "objects.npz", logits=np.array([{}, {}], dtype=object), target=target)
    for path in (text, one, objects):
        with pytest.raises(ValueError, match=r"written by numpy\.savez"):
            analyze([path])
    for arrays, message in (
        ({"x": logits, "target": target}, r"under one of the names logits, preds.*got x \(600, 4\) float64"),
        ({"preds": logits.argmax(1), "target": target}, "answers alone tell accuracy and no loss"),
        ({"logits": logits, "classes": target}, "targets under exactly one of the names"),
        ({"logits": logits, "target": target, "labels": target}, "targets under exactly one of the names"),
        ({"logits": logits, "target": target[:5]}, r"bad.npz: Expected `target` to have shape \(600,\)"),
        ({"logits": logits, "target": np.array(["a"] * 600)}, "Expected `target` in .* to hold numbers"),
        ({"logits": logits, "target": torch.full_like(target, -100)}, "rows that count"),
        ({"logits": logits[:0], "target": target[:0]}, "rows that count"),
    ):
        with pytest.raises(ValueError, match=message):
            analyze([stored(tmp_path / "bad.npz", **arrays)])


def test_answers_beside_the_scores_do_no_harm(tmp_path: Path) -> None:
    """A file with the predicted classes as well is read by its scores."""
    logits, _, target = two()
    path = stored(tmp_path / "a.npz", preds=logits.argmax(1), probs=F.softmax(logits, 1), logits=logits, target=target)
    assert measure(path).record.values["nll"] == pytest.approx(float(F.cross_entropy(logits, target)))


def test_certificates_hold_where_they_should() -> None:
    """Each at its bound and on the other side of it."""

    def holding(nll: float, accuracy: float, predicted: float = 0.5) -> set[str]:
        values = {"nll": nll, "accuracy": accuracy, "predicted_majority_rate": predicted}
        found = certificates(values, 2, [95, 5])
        assert all(bool(item["text"]) == item["holds"] for item in found)
        return {item["name"] for item in found if item["holds"]}

    entropy = -0.95 * math.log(0.95) - 0.05 * math.log(0.05)
    assert holding(0.05, 0.99) == set()
    assert holding(0.90, 0.95, 1.0) == {
        "worse-than-uniform", "worse-than-constant-confidence", "worse-than-class-shares", "one-class-predicted",
    }  # fmt: skip
    assert holding(entropy + 1e-6, 0.90) == {"worse-than-class-shares"}
    assert holding(entropy - 1e-6, 0.96) == {"worse-than-constant-confidence"}
    assert "one-class-predicted" not in holding(0.1, 0.95, 0.97)
