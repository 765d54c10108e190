"""Remedies: every cause has some, their numbers are the run's, and the code in them does what it says."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_lossacc.advice.data import label_mapping
from lightning_lossacc.advice.optimisation import learning_rate_factor
from lightning_lossacc.history import Record
from lightning_lossacc.remedies import REMEDIES, remedies

CAUSES = (
    "over-confidence",
    "mixed",
    "under-confidence",
    "scale-growth",
    "confidence-growth",
    "unconfident-shift",
    "overfitting",
    "label-noise",
    "hard-tail",
    "leakage",
    "prior-shift",
    "capacity-limit",
    "majority-collapse",
    "class-imbalance",
    "class-trade-off",
    "nothing-learned",
    "label-mapping-mismatch",
    "validation-too-small",
    "learning-rate-too-high",
    "learning-rate-too-low",
    "blow-up",
    "dead-activations",
    "over-regularisation",
    "loss-mismatch",
    "double-softmax",
    "wrong-accuracy",
    "train-eval-mismatch",
    "validation-mismatch",
    "unknown",
)

VALUES = {
    "nll": 0.9,
    "nll_standard_error": 0.03,
    "accuracy": 0.93,
    "accuracy_standard_error": 0.008,
    "balanced_accuracy": 0.61,
    "top_k_accuracy": 1.0,
    "majority_rate": 0.9,
    "refinement_nll": 0.25,
    "calibration_nll": 0.65,
    "temperature": 3.2,
    "temperature_at_edge": 0.0,
    "temperature_gain": 0.6437,
}
ARRAYS: dict[str, Any] = {
    "train_classes": [3817, 200, 57],
    "classes": {"class": [0, 1, 2], "rows": [900, 60, 40], "correct": [890, 30, 10]},
    "half_temperatures": [3.4, 3.1],
    "fits": {"items": 1000, "nll": 0.9, "temperature": 0.26, "bias": 0.21, "vector": 0.22},
    "loss_terms": "",
}
CONTEXT = {
    "num_classes": 3.0,
    "train_nll": 0.31,
    "steps": 63.0,
    "learning_rate": 0.1,
    "update_ratio": 0.02,
    "gradient_norm": 0.5,
    "gradient_norm_max": 8.0,
    "dead_units": 0.97,
    "weight_decay": 0.01,
    "weight_norm": 21.5,
    "penalty": 2.31,
    "dropout": 0.2,
    "batch_norm_layers": 4.0,
}


def made(epoch: int = 40, values: dict[str, float] | None = None, **fields: Any) -> Record:
    """A validation record with everything that a remedy can use."""
    arrays = ARRAYS | fields.pop("arrays", {})
    context = CONTEXT | fields.pop("context", {})
    return Record(
        "val",
        0,
        epoch,
        100 * epoch,
        0.0,
        True,
        1000,
        1000,
        VALUES | (values or {}),
        arrays=arrays,
        context=context,
        **fields,
    )


def bare() -> Record:
    """What a log of scalars gives."""
    return Record("val", 0, 3, 300, 0.0, True, 0, 0, {}, logged={"val_loss": 0.91, "val_acc": 0.93})


def of(cause: str, record: Record | None = None, *series: Record) -> str:
    """All remedies of a cause as one text."""
    record = made() if record is None else record
    return "\n".join(remedies(cause, record, record, series))


def code(text: str, start: str) -> str:
    """The argument or the lines of code in a remedy that begin with `start`, up to the matching end."""
    for found in re.findall(r"`([^`]+)`", text):
        if start in found:
            return found
    begin, depth = text.index(start), 0
    for place in range(begin, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0 and text[place] == ")":
            return text[begin : place + 1]
    raise AssertionError(f"no code after {start}")


# -- every cause -------------------------------------------------------------------------------------------------------


def test_every_cause_of_the_design_has_remedies() -> None:
    """No cause is left without advice, and no advice is kept for a cause that nobody names."""
    assert set(REMEDIES) == set(CAUSES)
    assert all(remedies(cause, made(), made()) for cause in CAUSES)


@pytest.mark.parametrize("record", [made(), bare(), replace(made(), context={}, arrays={})], ids=["all", "log", "bare"])
@pytest.mark.parametrize("cause", CAUSES)
def test_sentences_are_whole(cause: str, record: Record) -> None:
    """A number that was not measured never shows as NaN or 0; every remedy is one line, said once."""
    given = remedies(cause, record, record, [record])
    assert given and len(set(given)) == len(given)
    for sentence in given:
        assert not re.search(r"\b(nan|inf)\b", sentence)
        assert "\n" not in sentence and sentence == sentence.strip() and len(sentence) > 20
        assert sentence.count("`") % 2 == 0 and "None" not in re.sub("\\[:, None\\]", "", sentence)


def test_unknown_cause_gets_the_remedies_of_unknown() -> None:
    """A cause of a newer version does not break a report."""
    assert remedies("something-new", made(), made()) == remedies("unknown", made(), made())


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        ("class-imbalance", ("resampl", "class weights", "focal")),
        ("majority-collapse", ("class weights", "resampl", "initial bias")),
        ("over-confidence", ("logits / t", "label_smoothing", "weight decay", "focal", "temperaturescaling")),
        ("overfitting", ("weight decay", "l1", "l2", "dropout", "augmentation")),
        ("learning-rate-too-high", ("schedule", "lower", "warm-up", "gradient_clip_val")),
        ("dead-activations", ("leaky", "gelu", "initial", "kaiming_normal_")),
        ("prior-shift", ("log ratio of class shares",)),
        ("label-noise", ("labels",)),
        ("train-eval-mismatch", ("momentum", "sync_batchnorm", "layernorm", "eval()")),
        ("wrong-accuracy", ("micro", "macro")),
        ("double-softmax", ("softmax", "logits")),
        ("leakage", ("copies", "group")),
        ("capacity-limit", ("capacity",)),
    ],
)
def test_remedies_of_the_field_are_said(cause: str, words: tuple[str, ...]) -> None:
    """The remedies of the second article and of the field come with their cause, measured or not."""
    for record in (made(), bare()):
        text = of(cause, record).lower()
        assert all(word in text for word in words), text


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_temperature_and_its_gain_are_the_records() -> None:
    """T, both halves and the cross-fitted gain stand in the first remedy."""
    first = remedies("over-confidence", made(), made())[0]
    assert first == (
        "logits / T with T = 3.20 (halves of the items: 3.10 and 3.40) saves 0.6437 nats "
        "(cross-fitted; confirm on a test set)"
    )


def test_temperature_without_gain_is_not_praised() -> None:
    """No gain is said to be none, and where a temperature is not the cause's first remedy, it is left out."""
    useless = made(values={"temperature_gain": -0.002})
    assert "saves nothing (cross-fitted: -0.0020 nats)" in of("over-confidence", useless)
    assert "logits / T" in of("overfitting") and "logits / T" not in of("overfitting", useless)


def test_temperature_beyond_the_grid_is_not_claimed() -> None:
    """At the grid's end there is no T to give, only a bound."""
    text = remedies("over-confidence", made(values={"temperature": 8.0, "temperature_at_edge": 1.0}), made())[0]
    assert "T at least 8.00" in text and "saves" not in text


def test_checkpoint_of_the_refinement_minimum_against_the_loss_minimum() -> None:
    """Epochs, NLL, accuracy and the two gains are those of the records; a training probe is no candidate."""
    best = made(30, {"nll": 0.5, "refinement_nll": 0.2, "accuracy": 0.95})
    lowest = made(10, {"nll": 0.4, "refinement_nll": 0.23, "accuracy": 0.94})
    probe = replace(made(5, {"nll": 0.01}), stage="train_probe")
    text = remedies("overfitting", made(), best, [lowest, best, probe, made()])[0]
    assert "epoch 30, NLL 0.5000, refined 0.2000, accuracy 95.0 %" in text
    assert "the loss minimum is epoch 10, NLL 0.4000, refined 0.2300, accuracy 94.0 %" in text
    assert "saves 0.0300 nats" in text and "brings +1.0 pp" in text and "confirm on a test set" in text
    same = remedies("overfitting", made(), lowest, [lowest, made()])[0]
    assert "the loss minimum is" not in same


@pytest.mark.parametrize(
    ("ratio", "higher", "factor"),
    [
        (0.02, False, 1 / 30),
        (0.003, False, 1 / 3),
        (0.01, False, 1 / 10),
        (1.0, False, 1 / 1000),
        (5e-4, False, 1 / 3),  # smaller than usual: still a cause to lower
        (math.nan, False, 1 / 3),
        (0.0, True, 3),
        (1e-5, True, 100),
        (3e-7, True, 3000),
    ],
)
def test_learning_rate_factor(ratio: float, higher: bool, factor: float) -> None:
    """1e-3 over the measured update, rounded to steps of about 3, never to the wrong side."""
    assert learning_rate_factor(ratio, higher) == pytest.approx(factor)


def test_learning_rate_is_given_as_two_numbers() -> None:
    """The present rate and the proposed one, with the measured update."""
    assert (
        "lower the learning rate from 0.1 to 0.00333 (1/30 of it): a step changes a weight tensor by 2.0 % of its size"
        in of("learning-rate-too-high")
    )
    slow = made(context={"learning_rate": 1e-7, "update_ratio": 1e-6})
    assert "raise the learning rate from 1e-07 to 0.0001 (1000 times it)" in of("learning-rate-too-low", slow)
    assert "it is 0, so that the schedule has ended" in of(
        "learning-rate-too-low", made(context={"learning_rate": 0.0})
    )


def test_a_rate_that_broke_the_network_is_lowered_by_what_it_did_then() -> None:
    early, late = (
        made(epoch, context={"learning_rate": 5.0, "update_ratio": ratio}) for epoch, ratio in ((3, 0.1), (40, 1e-10))
    )
    text = of("learning-rate-too-high", late, early, late)
    assert "lower the learning rate from 5.0 to 0.05 (1/100 of it): a step changed a weight tensor by 10.0 %" in text
    unknown = made(1, context={"learning_rate": 5.0, "update_ratio": math.nan})
    assert "(1/100 of it)" in of("learning-rate-too-high", late, unknown, early, late)
    burst = made(context={"learning_rate": 5.0, "update_ratio": 3e7})
    assert "to 0.005 (1/1000 of it)" in of("learning-rate-too-high", burst)


def test_no_checkpoint_is_advised_where_no_loss_was_finite() -> None:
    text = of("blow-up", made(values={"nll": math.nan}))
    assert "start again" in text and "go on from the checkpoint" not in text


def test_a_class_that_training_never_saw_gets_no_shift() -> None:
    rows = {"class": [0, 1, 2], "rows": [100, 100, 100], "predicted": [150, 150, 0], "correct": [90, 90, 0]}
    text = of("prior-shift", made(arrays={"train_classes": [200, 200, 0], "classes": rows}))
    assert "class 2 never occurred in training" in text and "inf" not in text and "log ratio" not in text


def test_measured_numbers_of_training_are_said() -> None:
    """Clipping at the median norm, a warm-up of one epoch's steps, dead units, penalty and layers as measured."""
    text = of("learning-rate-too-high")
    assert "gradient_clip_val=0.5" in text and "the largest 8.0" in text and "total_iters=63" in text
    assert "97.0 % of the units of the worst layer" in of("dead-activations")
    assert "from 0.01 to 0.001" in of("over-regularisation") and "2.31" in of("over-regularisation")
    assert "nn.Dropout(0.2) → nn.Dropout(0.1)" in of("over-regularisation") and "dropout 0.2 → 0.4" in of("overfitting")
    assert "4 BatchNorm layers" in of("train-eval-mismatch")
    assert "weight decay (L2) 0.01 → 0.03" in of("overfitting") and "|w| is 21.5" in of("overfitting")


def test_what_cannot_help_is_left_out() -> None:
    """No more dropout beyond one half, no lower decay than none, no smoothing on smoothing, no rows without a gap."""
    record = made(
        context={"dropout": 0.5, "weight_decay": 0.0, "train_nll": 0.95}, arrays={"loss_terms": "smoothing 0.1"}
    )
    assert "dropout" not in of("overfitting", record).lower() and "more training rows" not in of("overfitting", record)
    assert "weight_decay" not in of("capacity-limit", record)
    assert "label_smoothing=0.05" not in of("over-confidence", record)
    assert "your loss has smoothing 0.1" in of("under-confidence", record)


def test_weights_that_are_in_use_are_not_advised_again() -> None:
    """A weighted loss that collapsed to the rare class needs smaller weights, not the same once more."""
    text = of("majority-collapse", made(arrays={"loss_terms": "class weights"}))
    assert "has class weights already" in text and "weight.sqrt()" in text and "CrossEntropyLoss(weight=" not in text


@pytest.mark.parametrize(
    ("predicted", "words"),
    [([960, 30, 10], "a weight must grow as its class gets rarer"), ([100, 100, 800], "weight.sqrt()")],
    ids=["the frequent class has too many answers", "the rare one has"],
)
def test_weights_in_use_are_corrected_to_the_right_side(predicted: list[int], words: str) -> None:
    table = {"class": [0, 1, 2], "rows": [900, 60, 40], "correct": [890, 30, 10], "predicted": predicted}
    text = of("class-imbalance", made(arrays={"loss_terms": "class weights", "classes": table}))
    assert words in text and ("torch.tensor([0.356, 6.79, 23.8])" in text) is (predicted[0] > 900)
    one = {"class": [0, 1], "rows": [900, 100], "correct": [900, 0], "predicted": [1000, 0]}
    arrays = {"loss_terms": "class weights", "classes": one, "train_classes": [900, 100], "task": "binary"}
    assert "pos_weight=torch.tensor(9.0)" in of("majority-collapse", made(arrays=arrays, context={"num_classes": 2.0}))


def test_a_batch_that_was_learnt_is_not_asked_for_again() -> None:
    """Training rows that are learnt show that the network can learn; the two sets are compared instead."""
    assert "overfit_batches=1" in of("nothing-learned")
    text = of("nothing-learned", made(values={"majority_rate": 0.3}, context={"train_accuracy": 0.9}))
    assert "overfit_batches" not in text and "training rows are learnt (90.0 %), these are not" in text


def test_clipping_that_cuts_every_step_is_named_before_the_rate() -> None:
    cut = made(context={"gradient_clip": 0.001, "update_ratio": 1e-5})
    text = remedies("learning-rate-too-low", cut, cut)[0]
    assert "gradient_clip_val=0.001" in text and "by 500 times" in text
    for clip in (0.4, 1.0):
        assert "clip" not in of("learning-rate-too-low", made(context={"gradient_clip": clip}))


def test_running_statistics_that_have_not_arrived_need_a_higher_momentum() -> None:
    """4000 updates at momentum 0.0001 leave 67 % of the initial values; at 0.1 nothing, and slower ones are advised."""
    late = of("train-eval-mismatch", made(context={"batch_norm_momentum": 1e-4}))
    assert "keeps 67.0 % of their initial values after 4000 updates" in late and "momentum=0.1)" in late
    assert "momentum=0.01)" in of("train-eval-mismatch", made(context={"batch_norm_momentum": 0.1}))
    few = of("train-eval-mismatch", made(epoch=1, context={"batch_norm_momentum": 0.1}))
    assert "momentum=" not in few and "larger batches" in few


def test_a_temperature_that_saves_needs_no_cause() -> None:
    """It is that of one evaluation: rows that cannot be paired, as of a shuffled set, do not matter to it."""
    assert "T = 3.20" in of("unknown") and "saves 0.6437 nats" in of("unknown")
    assert "logits / T" not in of("unknown", made(values={"temperature_gain": -0.001}))


def test_items_to_look_at_are_listed() -> None:
    """Suspects of the training probe come first, as numbers or with their details; else the worst items."""
    suspects = [{"index": 17, "margin": -2.0}, {"index": 4, "margin": -1.0}]
    probe = replace(made(), stage="train_probe", arrays={"memory": {"suspects": suspects}})
    assert "training items #17, #4 (2 in all)" in of("label-noise", made(), probe)
    assert "#17, #4" in of("label-noise", made(arrays={"memory": {"suspects": [17, 4]}}))
    paired = {"nll": {"worst": [{"index": 113}, {"index": 872}], "nll_change": 0.03, "nll_change_winsorised": -0.001}}
    # Validation rows say nothing about the labels of training rows.
    assert "#113" not in of("label-noise", made(paired=paired)) and "train_probe=" in of(
        "label-noise", made(paired=paired)
    )
    assert "#113, #872" in of("hard-tail", made(paired=paired)) and "-0.0010 with the tails cut" in of(
        "hard-tail", made(paired=paired)
    )


def test_number_of_items_needed() -> None:
    """With that many items, the 99 % interval of accuracy is one point to either side, by the same clustered error."""
    text = of("validation-too-small")
    items = int(re.search(r"(\d+) items to know accuracy", text).group(1))  # type: ignore[union-attr]
    error = VALUES["accuracy_standard_error"] * math.sqrt(1000 / items)
    assert NormalDist().inv_cdf(0.995) * error == pytest.approx(0.01, rel=1e-3)
    for_loss = int(re.search(r"(\d+) items to know the NLL", text).group(1))  # type: ignore[union-attr]
    loss_error = VALUES["nll_standard_error"] * math.sqrt(1000 / for_loss)
    assert NormalDist().inv_cdf(0.995) * loss_error == pytest.approx(0.05 * 0.9, rel=1e-3)


def test_double_softmax_floor() -> None:
    """The floor is the loss of a sure and right probability vector that is taken for logits."""
    floor = F.cross_entropy(torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64), torch.tensor([0]))
    assert f"{float(floor):.3f}" in of("double-softmax")


def test_a_logarithm_that_is_missing_is_asked_for() -> None:
    """F.nll_loss applies no softmax: neither dropping one nor logging the NLL mends it."""
    record = made(arrays={"loss_terms": "no log_softmax before F.nll_loss", "looks_like": "probabilities"})
    for cause in ("double-softmax", "loss-mismatch"):
        assert remedies(cause, record, record)[0].startswith("F.nll_loss takes log-probabilities")


def test_double_sigmoid_floor() -> None:
    """With one logit a row the floor depends on the classes: a sure 0 costs ln 2, a sure 1 ln(1 + 1/e)."""
    target = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    floor = float(F.binary_cross_entropy_with_logits(target, target))
    table = {"class": [0, 1], "rows": [750, 250], "correct": [750, 0], "predicted": [1000, 0]}
    record = made(
        arrays={"task": "binary", "classes": table, "looks_like": "probabilities"}, context={"num_classes": 2.0}
    )
    text = of("double-softmax", record)
    assert f"{floor:.3f}" in text and "binary_cross_entropy_with_logits" in text and "softmax" not in text


def test_accuracies_that_a_logged_number_may_be() -> None:
    """Micro, macro and top-k of these logits stand beside what was logged."""
    text = of("wrong-accuracy", made(logged={"val_acc": 0.61, "val_loss": 0.9}))
    assert 'average="micro" gives 93.0 %' in text and 'average="macro" gives 61.0 %' in text
    assert "you logged val_acc 0.61" in text and "val_loss" not in text


# -- code --------------------------------------------------------------------------------------------------------------


def sampled(shares: torch.Tensor, rows: int = 20_000, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact log-posteriors of Gaussian classes under equal shares, and targets drawn with `shares`."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.multinomial(shares, rows, replacement=True, generator=generator)
    noise = torch.randn(rows, len(shares), generator=generator, dtype=torch.float64)
    return 1.5 * (1.5 * F.one_hot(target, len(shares)) + noise), target


def test_class_weights_give_every_class_the_same_part() -> None:
    """The list in the remedy is N / (C n_c) of the rows seen in training."""
    loss = eval(code(of("class-imbalance"), "nn.CrossEntropyLoss(weight"), {"nn": nn, "torch": torch})
    counts = torch.tensor([3817.0, 200.0, 57.0])
    assert torch.allclose(loss.weight * counts, counts.sum() / 3 * torch.ones(3), rtol=5e-3)


def test_class_weights_of_two_classes_and_of_many() -> None:
    """Two classes get `pos_weight` as well, more than 12 a formula, and unseen counts are said to be validation's."""
    two = made(arrays={"train_classes": [950, 50]}, context={"num_classes": 2.0})
    loss = eval(code(of("class-imbalance", two), "nn.BCEWithLogitsLoss"), {"nn": nn, "torch": torch})
    assert float(loss.pos_weight) == 19
    many = of("class-imbalance", made(arrays={"train_classes": list(range(5, 105))}))
    counts = torch.arange(5.0, 105.0)
    scope: dict[str, Any] = {"counts": counts, "nn": nn}
    exec(code(many, "counts.sum()"), scope)
    assert torch.allclose(scope["weight"] * counts, counts.sum() / 100 * torch.ones(100))
    assert "5 … 104 rows a class" in many
    unseen = made(arrays={"train_classes": None})
    assert "validation (those of training were not counted)" in of("class-imbalance", unseen)
    folded = {"class": [3, 1, -1], "rows": [9, 8, 70], "correct": [9, 1, 30]}
    assert "counts = rows of each class" in of(
        "class-imbalance", made(arrays={"train_classes": None, "classes": folded})
    )


def test_empty_class_has_weight_one() -> None:
    """A class without rows must not weigh infinitely."""
    text = of("class-imbalance", made(arrays={"train_classes": [100, 0, 50]}))
    assert "torch.tensor([0.75, 1.0, 1.5])" in text


def test_resampling_draws_classes_alike() -> None:
    """The sampler in the remedy draws every class as often, whatever its rows."""
    from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

    target = torch.repeat_interleave(torch.arange(3), torch.tensor([3817, 200, 57]))
    scope: dict[str, Any] = {
        "torch": torch,
        "target": target,
        "WeightedRandomSampler": WeightedRandomSampler,
        "DataLoader": DataLoader,
        "train_set": TensorDataset(target),
        "batch_size": 4074,
    }
    torch.manual_seed(0)
    exec(code(of("majority-collapse"), "WeightedRandomSampler"), scope)
    drawn = torch.bincount(target[list(scope["sampler"])], minlength=3) / len(target)
    assert torch.allclose(drawn, torch.full((3,), 1 / 3), atol=0.03)


def test_logit_adjustment_raises_balanced_accuracy() -> None:
    """The posterior of unequal classes, adjusted as the remedy says, is best for equal ones."""
    shares = torch.tensor([3817.0, 200.0, 57.0], dtype=torch.float64) / 4074
    logits, target = sampled(torch.ones(3) / 3)
    logits = logits + shares.log()  # what training on such shares gives
    adjusted = eval(code(of("class-imbalance"), "(logits - torch.tensor("), {"logits": logits, "torch": torch})
    balanced = (
        (logits.argmax(1) == target).double().mean(),
        (eval("a.argmax(1)", {"a": adjusted}) == target).double().mean(),
    )
    assert balanced[1] > balanced[0] + 0.2
    assert torch.allclose(adjusted - adjusted[:, :1], logits - shares.log() - (logits - shares.log())[:, :1], atol=0.01)


def test_prior_correction_takes_the_shift_back() -> None:
    """The shift is the log ratio of class shares; on new data it brings the NLL near the true posterior's."""
    before, here = torch.tensor([3817.0, 200.0, 57.0]), torch.tensor([900.0, 60.0, 40.0])
    far = {"train_classes": [500, 500, 500]}
    text = of("prior-shift", made(arrays=far))
    logits, target = sampled(here / here.sum())
    corrected = eval("logits + " + code(text, "torch.tensor("), {"logits": logits, "torch": torch})
    true = F.cross_entropy(logits + (here / here.sum()).log(), target)
    assert F.cross_entropy(logits, target) - F.cross_entropy(corrected, target) > 0.2
    assert F.cross_entropy(corrected, target) == pytest.approx(float(true), abs=1e-3)
    shift = eval(code(of("prior-shift"), "torch.tensor("), {"torch": torch})
    assert torch.allclose(shift, (here / 1000).log() - (before / 4074).log(), atol=5e-3)
    assert "a fitted bias saves 0.6900 nats where one temperature saves 0.6400 on 1000 items" in text
    assert "a fitted bias" not in of("prior-shift", made(arrays={"fits": {"items": 9, "nll": 0.9, "bias": 0.95}}))


def test_vector_scaling_only_where_it_saves_more() -> None:
    """Class-wise errors are named with their gain; without a gain, one temperature is enough."""
    assert "one scale and a bias a class, on validation logits: 0.0500 nats less than one temperature, 0.6900" in of(
        "over-confidence"
    )
    equal = {"items": 1000, "nll": 0.9, "temperature": 0.26, "bias": 0.7, "vector": 0.2595}
    assert "fit one" not in of("over-confidence", made(arrays={"fits": equal}))


def test_output_bias_starts_at_the_label_entropy() -> None:
    """With that bias and no weights, the first NLL is the number in the remedy."""
    text = of("majority-collapse")
    layer = nn.Linear(4, 3)
    exec(code(text, "layer.bias.data"), {"layer": layer, "torch": torch})
    target = torch.repeat_interleave(torch.arange(3), torch.tensor([3817, 200, 57]))
    start = float(F.cross_entropy(layer.bias.detach().double().expand(4074, 3), target))
    assert f"starts at NLL {start:.4f}" in text and f"{math.log(3) - start:.4f} nats below" in text


def test_lines_of_loss_code_run() -> None:
    """Focal loss, bounded loss and L1: the code of the remedies computes what they are."""
    logits, target = torch.randn(50, 3, requires_grad=True), torch.randint(0, 3, (50,))
    probability = logits.softmax(1).gather(1, target[:, None]).squeeze(1)
    scope: dict[str, Any] = {"F": F, "logits": logits, "y": target}
    exec(code(of("over-confidence"), "reduction"), scope)
    assert torch.allclose(scope["loss"], (-((1 - probability) ** 2) * probability.log()).mean())
    exec(code(of("label-noise"), "0.7"), scope)
    assert torch.allclose(scope["loss"], ((1 - probability**0.7) / 0.7).mean()) and 1 / 0.7 < 1.43
    module = nn.Linear(3, 2)
    penalised: dict[str, Any] = {"self": module, "loss": torch.tensor(1.0)}
    exec(code(of("overfitting"), "1e-5"), penalised)
    assert torch.allclose(penalised["loss"], 1 + 1e-5 * module.weight.abs().sum())


def test_duplicates_are_dropped() -> None:
    """The code keeps what is not in training, and the share found is said."""
    rows = torch.randn(10, 4)
    scope: dict[str, Any] = {
        "train_set": [(row, 0) for row in rows[:7]],
        "val_set": [(row.clone(), 0) for row in rows[5:]],
    }
    text = of("leakage", made(arrays={"duplicates": 0.4}))
    exec(code(text, "train_set"), scope)
    assert scope["keep"] == [2, 3, 4] and "at least 40.0 %" in text


def test_labels_are_mapped_back() -> None:
    """A permutation of labels is found from the confusion matrix, with the accuracy under it."""
    confusion = [[1, 2, 47], [45, 3, 2], [4, 46, 0]]
    mapping, accuracy = label_mapping(confusion)  # type: ignore[misc]
    assert mapping == [2, 0, 1] and accuracy == pytest.approx(138 / 150)
    text = of("label-mapping-mismatch", made(arrays={"confusion": confusion}))
    assert "0 → 2, 1 → 0, 2 → 1 gives accuracy 92.0 %" in text
    assert label_mapping([[40, 10], [5, 45]]) is None and label_mapping([]) is None


def test_weakest_class_is_named() -> None:
    """The class with the lowest recall; the fold of small classes is none."""
    assert "class 2 first: 25.0 % of its 40 rows" in of("class-imbalance")
    folded = {"class": [7, -1], "rows": [50, 10], "correct": [40, 0]}
    assert "class 7 first: 80.0 % of its 50 rows" in of("class-imbalance", made(arrays={"classes": folded}))


def test_fitted_correction_is_given_as_code() -> None:
    """Scale and biases that the probe fitted, as an expression that computes them; left out within their error."""
    fitted = ARRAYS["fits"] | {
        "slope": 0.5,
        "bias_values": [0.4, 0.1, -0.5],
        "bias_gain": 0.05,
        "bias_gain_error": 0.01,
    }
    for cause in ("over-confidence", "class-trade-off"):
        text = of(cause, made(arrays={"fits": fitted}))
        logits = torch.randn(4, 3)
        corrected = eval(code(text, "log_softmax"), {"logits": logits, "torch": torch})
        assert torch.allclose(corrected, logits.log_softmax(1) * 0.5 + torch.tensor([0.4, 0.1, -0.5]))
    assert "fit one" not in of("over-confidence", made(arrays={"fits": fitted | {"bias_gain_error": 0.03}}))
    long = fitted | {"bias_values": [0.0] * 40}
    assert "logits * scale + bias" in of("class-trade-off", made(arrays={"fits": long}))
