"""The two articles that started the project, statement by statement, question by question, remedy by remedy.

One test each, in the order of the articles (`test_first_…`, `test_second_…`); its docstring gives the statement in our
words. Three kinds. Shown: a computation with this package agrees. "Not true, because": the measurement that disagrees.
Not built yet: what should be said and is not; the body is real, and the day it passes, the mark must go.

Where an answer must be known, evaluations are made by hand (`tests.simulated`); what needs a network is trained here on
data that come with scikit-learn.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_lossacc import Accuracy, LossAccuracy, LossAccuracyMonitor, demo
from lightning_lossacc.closing import opening
from lightning_lossacc.diagnosis import Diagnosis, Event
from lightning_lossacc.diagnosis.catalogue import RULES
from lightning_lossacc.history import History, Record
from lightning_lossacc.remedies import remedies
from tests.simulated import Simulation, learning

pytestmark = [
    # Lightning's own import of a deprecated torch name.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
]


def not_built(what: str) -> pytest.MarkDecorator:
    """Fails as it must until `what` exists; only a failed assertion counts, not a broken test."""
    return pytest.mark.xfail(strict=True, raises=AssertionError, reason=f"not built yet: {what}")


def given(situation: bool) -> None:
    """The situation of a test that is not built yet; no `AssertionError`, so that its lack counts as a broken test."""
    if not situation:
        raise RuntimeError("The situation is not as described.")


# -- measuring ---------------------------------------------------------------------------------------------------------


def measure(logits: Tensor, target: Tensor, input_kind: str = "logits") -> dict[str, float]:
    """All quantities of one evaluation, by the package's metric."""
    metric = LossAccuracy(num_classes=logits.shape[1], input_kind=input_kind)
    metric.update(logits, target)
    return {key: float(value) for key, value in metric.compute().items()}


def binary_logits(margins: Tensor) -> Tensor:
    """Two logits (N, 2) whose difference, class 0 over class 1, is given (N,)."""
    return torch.stack([margins, torch.zeros_like(margins)], dim=1).double()


def shares(*counts: int) -> Tensor:
    """Target with so many rows of class 0, 1, …"""
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))


def record_of(logits: Tensor, target: Tensor, stage: str = "val") -> Record:
    """One evaluation as the callback would keep it."""
    rows = len(target)
    return Record(stage, 0, 0, 100, 0.0, True, rows, rows, measure(logits, target), {})


def causes_of(events: Iterable[Event]) -> set[str]:
    """Every cause that any report names, not only the first."""
    return {cause.cause for event in events for cause in event.causes}


class Scripted(Simulation):
    """A simulation whose logits are written by hand: epoch → (N, C), with the target of that shape's rows."""

    def script(self, target: Tensor, logits: Callable[[int], Tensor], epochs: int) -> list[Event]:
        self.target = target
        self.logits = lambda scale, separation, turn, jitter: logits(len(self.history))  # type: ignore[method-assign]
        for _ in range(epochs):
            self.evaluate(1.0, 1.0)
        return self.events


@functools.cache
def confident_run() -> Simulation:
    """From epoch 20 on the same answers are given with more and more confidence."""
    run = Simulation()
    run.run(60, lambda epoch: 1 + 0.05 * max(0, epoch - 20), learning)
    return run


@functools.cache
def forgetful_run() -> Simulation:
    """From epoch 20 on less is known, and confidence follows."""
    run = Simulation()
    run.run(60, lambda epoch: 1.0, lambda epoch: learning(epoch) - 0.0112 * max(0, epoch - 20))
    return run


@functools.cache
def growing_run() -> Simulation:
    """From epoch 20 on more is known, and confidence grows faster than knowledge."""
    run = Simulation(num_rows=6000)
    run.run(
        50, lambda epoch: 1 + 0.12 * max(0, epoch - 20), lambda epoch: learning(epoch, 2.0) + 0.01 * max(0, epoch - 20)
    )
    return run


# -- training ----------------------------------------------------------------------------------------------------------


def data_of(table: demo.Table) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features and target of the training part, then of the validation part."""
    table.setup()
    table.teardown()
    return *table.train_dataloader().dataset.tensors, *table.val_dataloader().dataset.tensors


TABLES: dict[str, Callable[[], demo.Table]] = {
    "biopsies": lambda: demo.BreastCancer(num_train=100, seed=2),
    "noisy digits": lambda: demo.Digits(num_train=300, label_noise=0.2, seed=0),
    "digits": lambda: demo.Digits(num_train=898, seed=0),
}


@functools.cache
def trained(
    table: str, epochs: int, jitter: float = 0.0, focal: float = 0.0, **options: Any
) -> tuple[demo.Classifier, list[dict[str, float]]]:
    """A network after a plain training loop with batches of 32, and what was measured after each epoch.

    Args:
        table: key of `TABLES`.
        epochs: passes over the training rows.
        jitter: standard deviation of the noise added to each training batch: augmentation for standardised tables.
        focal: exponent of the focal loss (Lin et al. 2017).
        options: arguments of `demo.Classifier`.
    """
    features, target, val_features, val_target = data_of(TABLES[table]())
    torch.manual_seed(0)
    model = demo.Classifier(features.shape[1], int(target.max()) + 1, **options)
    optimizer = model.configure_optimizers()
    measured = []
    for _ in range(epochs):
        model.train()
        for rows in torch.randperm(len(features)).split(32):
            logits = model(features[rows] + jitter * torch.randn(len(rows), features.shape[1]))
            losses = F.cross_entropy(logits, target[rows], label_smoothing=model.label_smoothing, reduction="none")
            optimizer.zero_grad()
            ((1 - torch.exp(-losses)) ** focal * losses).mean().backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            measured.append(measure(model(val_features), val_target))
    return model, measured


def live(model: LightningModule, data: LightningDataModule | list[DataLoader], epochs: int) -> LossAccuracyMonitor:
    """The monitor after a real Lightning run."""
    monitor = LossAccuracyMonitor(dirpath=False, verbose=False)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=monitor,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    if isinstance(data, list):
        trainer.fit(model, *data)
    else:
        trainer.fit(model, datamodule=data)
    assert len(monitor.history.series()) == epochs
    return monitor


class Reciter(LightningModule):
    """Recites validation logits (epoch, N, C) that were written down before; its only weight learns nothing."""

    def __init__(self, script: Tensor) -> None:
        super().__init__()
        self.script = script
        self.weight = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        rows, target = batch
        return F.cross_entropy(self.script[self.current_epoch][rows] + 0 * self.weight, target)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        rows, target = batch
        self.log("val_loss", F.cross_entropy(self.script[self.current_epoch][rows], target))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


# ======================================================================================================================
# First article: loss versus accuracy
# ======================================================================================================================


def test_first_the_loss_optimises_and_accuracy_measures() -> None:
    """A loss is what training lowers; accuracy is how the result is read: a share of rows."""
    _, measured = trained("digits", 4)
    losses = [values["nll"] for values in measured]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.4 * losses[0]
    for values in measured:
        right_rows = values["accuracy"] * values["num_rows"]
        assert right_rows == pytest.approx(round(right_rows), abs=1e-9)


def test_first_loss_and_accuracy_conflict_in_both_directions() -> None:
    """Against intuition, the loss can get better while accuracy gets worse, or the other way round."""
    worse, better, target = demo.two_cases()
    first, second = (measure(case, target, "probabilities") for case in (worse, better))
    assert first["nll"] < second["nll"] and first["accuracy"] < second["accuracy"]
    assert "loss-up-accuracy-up" in {event.event for event in growing_run().events}


def test_first_loss_turns_at_epoch_537_while_accuracy_stays() -> None:
    """Accuracy rises to a bit over 90 %, the loss falls until epoch 537 and then gets worse."""
    run = Simulation(num_rows=3000)
    # One evaluation stands for ten epochs.
    run.run(75, lambda tens: 1 + 0.06 * max(0, tens - 53), lambda tens: learning(tens, 2.75, speed=9))
    assert run.history.column("accuracy")[-1] > 0.9
    (opened,) = [event for event in run.events if event.level == "warning" and event.status == "open"]
    assert abs(opened.reference_epoch - 53) <= 2 and 53 < opened.epoch <= 68
    assert opened.event == "loss-up-accuracy-flat" and opened.cause == "over-confidence"


@functools.cache
def dip() -> tuple[LossAccuracyMonitor, list[float], list[float]]:
    """A live run in which class 0 is preferred too much around epoch 30, while confidence grows throughout."""
    made = Simulation(num_rows=2000)
    script = []
    for epoch in range(50):
        scale, preferred = 0.1 + 0.016 * epoch, 0.6 * max(0.0, 1 - abs(epoch - 30) / 8)
        logits = made.logits(scale, 2.2, 0.0, 0.01)
        logits[:, 0] += 2.2 * scale * preferred
        script.append(logits)
    rows = torch.arange(2000)
    train = DataLoader(TensorDataset(rows[:1], made.target[:1]))
    val = DataLoader(TensorDataset(rows, made.target), batch_size=1000)
    monitor = live(Reciter(torch.stack(script)), [train, val], 50)
    return monitor, monitor.history.column("nll"), monitor.history.column("accuracy")


def test_first_dip_of_accuracy_under_a_falling_loss_is_an_event() -> None:
    """Around epoch 50 accuracy drops strangely although the loss falls smoothly and quickly (at epoch 30 here)."""
    monitor, losses, accuracies = dip()
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))
    assert accuracies[30] < accuracies[20] - 0.015 and accuracies[45] > accuracies[20] - 0.005
    named = [event for event in monitor.events if event.event == "loss-down-accuracy-down"]
    assert [event.status for event in named[:2]] == ["open", "closed"]
    assert 22 < named[0].epoch <= 32 and named[0].level == "warning"


def test_first_dip_is_explained() -> None:
    """The strange drop has a reason: rows of other classes went to class 0 for a while."""
    monitor, _, _ = dip()
    predicted = [record.arrays["classes"]["predicted"][0] for record in monitor.history.series()]
    given(predicted[30] > 1.2 * predicted[20])  # the evidence is in the records
    assert "class-trade-off" in causes_of(monitor.events)


def test_first_cross_entropy_is_best_with_all_weight_on_the_right_class() -> None:
    """With one-hot targets the loss is best near 1 for the right class and near 0 for all others."""
    losses = []
    for right in (0.5, 0.9, 0.99, 1.0):
        rest = (1 - right) / 2
        losses.append(measure(torch.tensor([[right, rest, rest]]), torch.tensor([0]), "probabilities")["nll"])
    assert losses == pytest.approx([-math.log(p) for p in (0.5, 0.9, 0.99, 1.0)], abs=1e-6)
    assert losses[-1] == pytest.approx(0, abs=1e-6)
    # How the others share what is left does not matter to it.
    uneven = measure(torch.tensor([[0.5, 0.49, 0.01]]), torch.tensor([0]), "probabilities")["nll"]
    assert uneven == pytest.approx(losses[0], abs=1e-6)


def test_first_loss_is_continuous_and_accuracy_discrete() -> None:
    """The loss is a continuous number; accuracy is right or wrong for each row."""
    target = torch.arange(40) % 4
    # Noise below 1 against a head start of 2 for the right class, except in every fifth row.
    head_start = torch.where(torch.arange(40) % 5 == 0, -2.0, 2.0).double()
    logits = torch.rand(40, 4, dtype=torch.float64) + head_start[:, None] * F.one_hot(target, 4)
    steps = [measure(logits * (1 + 1e-3 * step), target) for step in range(5)]
    losses = [values["nll"] for values in steps]
    assert len(set(losses)) == 5
    assert max(abs(later - earlier) for earlier, later in itertools.pairwise(losses)) < 5e-3
    assert {values["accuracy"] for values in steps} == {0.8}
    one_more = logits.clone()
    one_more[0, target[0]] += 4
    assert measure(one_more, target)["accuracy"] == pytest.approx(0.8 + 1 / 40)


def test_first_case_1_has_less_loss_and_worse_accuracy_than_case_2() -> None:
    """A table of two cases over the same rows: less error, yet worse accuracy."""
    *cases, target = demo.two_cases()
    first, second = (measure(case, target, "probabilities") for case in cases)
    assert (first["nll"], second["nll"]) == pytest.approx((0.4224, math.log(2)), abs=1e-4)
    assert (first["accuracy"], second["accuracy"]) == pytest.approx((2 / 3, 1))


def test_first_reference_value_of_one_row() -> None:
    """Truth [1, 0, 0] and prediction [0.50, 0.25, 0.25] cost ln 2."""
    loss = measure(torch.tensor([[0.50, 0.25, 0.25]]), torch.tensor([0]), "probabilities")["nll"]
    assert loss == pytest.approx(math.log(2), abs=1e-7)


def test_first_growing_confidence_improves_the_loss_and_leaves_accuracy() -> None:
    """When predictions get more confident the loss gets better although accuracy stays: reported, as good news."""
    run = Simulation()
    run.run(60, lambda epoch: 0.3 + 0.01 * epoch, lambda epoch: 2.5)
    accuracies = run.history.column("accuracy")
    assert run.history.column("nll")[-1] < 0.7 * run.history.column("nll")[0]
    assert run.history.column("confidence")[-1] > run.history.column("confidence")[0] + 0.2
    assert max(accuracies) - min(accuracies) < 0.01
    assert all(event.level == "info" for event in run.events)
    reported = {(event.event, event.cause) for event in run.events if event.status == "open"}
    # Too little confidence at first is said as well.
    assert ("loss-down-accuracy-flat", "confidence-growth") in reported
    assert reported <= {
        ("loss-down-accuracy-flat", "confidence-growth"),
        ("loss-high-for-accuracy", "under-confidence"),
    }


def test_first_wider_margin() -> None:
    """There is a wider margin between the classes."""
    target = torch.randint(0, 5, (2000,))
    noise = torch.randn(2000, 5, dtype=torch.float64)
    narrow, wide = (measure(noise + gap * F.one_hot(target, 5), target) for gap in (4.0, 6.0))
    # Divided by the best temperature, so that mere scale does not count.
    assert wide["margin_p05"] / wide["temperature"] > narrow["margin_p05"] / narrow["temperature"] + 1
    assert wide["nll"] < narrow["nll"]


def test_first_confidence_alone_makes_no_model_more_robust() -> None:
    """Not true, because doubling the logits improves this loss and flips not one answer fewer under the same noise.

    "More confident, thus more robust": the raw margin doubles, margin / temperature stays.
    """
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 5, (2000,), generator=generator)
    weight = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    features = torch.randn(2000, 20, generator=generator, dtype=torch.float64) + 0.6 * weight.T[target]
    shaken = features + 0.5 * torch.randn(2000, 20, generator=generator, dtype=torch.float64)
    plain, doubled = (measure(scale * features @ weight, target) for scale in (0.2, 0.4))
    assert doubled["nll"] < plain["nll"] - 0.1 and doubled["confidence"] > plain["confidence"] + 0.1
    assert doubled["margin_p05"] == pytest.approx(2 * plain["margin_p05"], rel=0.05)
    assert doubled["temperature"] == pytest.approx(2 * plain["temperature"], rel=1e-3)
    flips = [
        ((scale * features @ weight).argmax(1) != (scale * shaken @ weight).argmax(1)).sum() for scale in (0.2, 0.4)
    ]
    assert flips[0] == flips[1] > 50


def test_first_one_false_answer_of_an_over_confident_model_costs_out_of_proportion() -> None:
    """If the model is over-confident, a single false prediction raises the loss far more than it lowers accuracy."""
    rows = 1000
    rises = {}
    for name, margin in (("over-confident", 12.0), ("modest", 1.0)):
        right = binary_logits(torch.full((rows,), margin))
        one_wrong = right.clone()
        one_wrong[0] = right[0].flip(0)
        before, after = (measure(logits, shares(rows, 0)) for logits in (right, one_wrong))
        assert before["accuracy"] - after["accuracy"] == pytest.approx(0.001)
        rises[name] = after["nll"] / before["nll"]
    assert rises["over-confident"] > 1000 and rises["modest"] < 1.005


def test_first_over_confident_model_has_good_accuracy_and_bad_loss() -> None:
    """An over-confident model can have good accuracy and a bad loss."""
    target = torch.randint(0, 5, (4000,))
    logits = 3.2 * (3.2 * F.one_hot(target, 5) + torch.randn(4000, 5, dtype=torch.float64))
    calibrated, boasting = measure(logits, target), measure(6 * logits, target)
    assert calibrated["accuracy"] == boasting["accuracy"] > 0.95
    assert boasting["nll"] > 3 * calibrated["nll"]
    assert boasting["refinement_nll"] == pytest.approx(calibrated["refinement_nll"], abs=5e-4)
    assert boasting["overconfidence"] > 0.02 > abs(calibrated["overconfidence"])


def test_first_over_confidence_is_not_over_fitting() -> None:
    """Not true, because two runs whose loss rises by the same 0.22 nats differ in all that matters.

    "I'd assume over-confidence equals over-fitting": after one temperature the first run has lost nothing, and its
    accuracy is what it was; the second has lost all of the rise, and 10 pp.
    """
    confident, forgetful = confident_run(), forgetful_run()
    rises, left, lost = [], [], []
    for run in (confident, forgetful):
        losses, refined = run.history.column("nll"), run.history.column("refinement_nll")
        rises.append(losses[-1] - min(losses))
        left.append(refined[-1] - min(refined))
        lost.append(max(run.history.column("accuracy")) - run.history.column("accuracy")[-1])
    assert rises[0] == pytest.approx(rises[1], rel=0.05) and rises[0] > 0.2
    assert left[0] < 0.02 * rises[0] and left[1] > 0.98 * rises[1]
    assert lost[0] < 0.01 and lost[1] > 0.08
    assert [event.cause for event in confident.events if event.level == "warning"][-1] == "over-confidence"
    assert [event.cause for event in forgetful.events if event.level == "warning"][-1] == "overfitting"


def test_first_always_apple_has_good_accuracy() -> None:
    """If 90 % of the rows are apples, predicting apple every time has a good accuracy: and balanced accuracy 1 / C."""
    target = shares(900, 50, 50)
    always = torch.tensor([[5.0, 0.0, 0.0]], dtype=torch.float64).expand(1000, 3).contiguous()
    values = measure(always, target)
    assert values["accuracy"] == 0.9 == values["majority_rate"]
    assert values["balanced_accuracy"] == pytest.approx(1 / 3) and values["predicted_majority_rate"] == 1


def test_first_always_apple_is_named() -> None:
    """The good score that comes from predicting apple every time must be seen at once."""
    always = torch.tensor([[5.0, 0.0, 0.0]], dtype=torch.float64).expand(1000, 3).contiguous()
    events = Diagnosis().examine(History([record_of(always, shares(900, 50, 50))]))
    assert "accuracy-equals-class-share" in {event.event for event in events}


def test_first_accuracy_is_easier_to_interpret() -> None:
    """Accuracy is easier to read: a number of rows. The same loss is chance with 2 classes and good with 1000."""
    for num_classes in (2, 10, 1000):
        logits = torch.zeros(1000, num_classes, dtype=torch.float64)
        assert measure(logits, torch.arange(1000) % num_classes)["nll"] == pytest.approx(math.log(num_classes))
    monitor, _, _ = dip()
    text = opening(monitor.history.series()[0], "F.cross_entropy", "")
    assert "2000 rows: one row is 0.05 pp" in text


def test_first_accuracy_has_no_gradient_and_the_loss_has_one() -> None:
    """Accuracy is not differentiable and cannot be back-propagated."""
    assert Accuracy.is_differentiable is False
    logits = torch.randn(50, 4, dtype=torch.float64, requires_grad=True)
    target = torch.arange(50) % 4
    accuracy = Accuracy(num_classes=4)(logits, target)
    assert not accuracy.requires_grad
    F.cross_entropy(logits, target).backward()
    expected = (logits.detach().softmax(1) - F.one_hot(target, 4)) / 50
    assert torch.allclose(logits.grad, expected)
    # Where it has a slope, it is zero: accuracy is a step function of the logits.
    step = 1e-9 * torch.randn(50, 4, dtype=torch.float64)
    assert measure(logits.detach() + step, target)["accuracy"] == float(accuracy)


def test_first_the_loss_is_a_good_proxy_for_accuracy() -> None:
    """A differentiable loss is needed that stands in for accuracy: it bounds the error rate by loss / ln 2."""
    _, measured = trained("digits", 4)
    assert measured[-1]["accuracy"] > measured[0]["accuracy"] + 0.05
    for scale in (0.1, 1.0, 10.0):
        target = torch.randint(0, 4, (500,))
        measured.append(measure(scale * (F.one_hot(target, 4) + torch.randn(500, 4, dtype=torch.float64)), target))
    for values in measured:
        assert 1 - values["accuracy"] <= values["nll"] / math.log(2) + 1e-12
        assert values["nll_wrong"] >= math.log(2)  # no wrong row has more than 1/2 on its class


def test_first_reader_over_trains_and_accuracy_stays() -> None:
    """A reader: what if I over-train? The loss goes up as expected; accuracy stays, to their surprise."""
    _, measured = trained("biopsies", 60)
    losses, accuracies = ([values[key] for values in measured] for key in ("nll", "accuracy"))
    lowest = losses.index(min(losses))
    assert losses[-1] > 1.4 * losses[lowest] and abs(accuracies[-1] - accuracies[lowest]) < 0.01
    assert measured[-1]["refinement_nll"] < measured[lowest]["refinement_nll"] + 0.002 < 0.1
    assert measured[-1]["temperature"] > 2


def test_first_reader_asks_for_references() -> None:
    """A reader: can you link papers? Every rule names where it comes from."""
    assert len(RULES) == 28
    for rule in RULES.values():
        reference = rule.__doc__.split("Reference: ")[1]
        assert re.search(r"\b(19|20)\d\d\b", reference), rule


@functools.cache
def sixty_percent(capable: bool = False) -> Simulation:
    """Both losses fall and accuracy stays near 60 %; a capable network learns on after epoch 60."""
    run = Simulation()
    for epoch in range(90):
        level = 1.36 + (0.05 * max(0, epoch - 60) if capable else 0.0)
        run.evaluate(min(1.0, 0.3 + 0.012 * epoch), learning(epoch, level, speed=1.0))
        run.history.append(replace(run.history.records[-1], stage="train", paired={}))
    return run


def test_first_reader_both_losses_fall_and_accuracy_stays_at_60_percent() -> None:
    """A reader: what is the reason? Confidence grows towards what accuracy already deserves."""
    run = sixty_percent()
    accuracies, losses = run.history.column("accuracy"), run.history.column("nll")
    assert all(0.58 < accuracy < 0.62 for accuracy in accuracies[6:]) and losses[-1] < losses[10] - 0.1
    named = [event for event in run.events if event.event == "loss-down-accuracy-flat"]
    assert named and {event.cause for event in named} == {"confidence-growth"}


def test_first_reader_will_the_loss_stop_falling() -> None:
    """A reader: will the loss stop at some point with accuracy where it is? At the loss after one temperature."""
    run = sixty_percent()
    losses, refined = run.history.column("nll"), run.history.column("refinement_nll")
    assert losses[10] - refined[10] > 0.1  # epoch 10: so much can confidence alone still save
    assert losses[-1] == pytest.approx(refined[10], abs=0.01)  # and that is where it stopped
    assert abs(losses[-1] - losses[70]) < 0.005


def test_first_reader_what_if_we_train_more_epochs() -> None:
    """A reader: what will more epochs bring? The message should say, with an interval that was tested on the past."""
    run = sixty_percent()
    given(any(event.event == "loss-down-accuracy-flat" for event in run.events))
    assert any("forecast" in key for event in run.events for key in event.evidence)


def test_first_reader_is_the_network_incapable() -> None:
    """A reader: is the network incapable of the task? Training and validation stay on one level for 30 epochs."""
    series = sixty_percent().history.series("train")[60:]
    given(len(series) == 30 and spread([record.values for record in series], "nll") < 0.03)
    assert "capacity-limit" in causes_of(sixty_percent().events)


def test_first_reader_a_plateau_does_not_show_incapability() -> None:
    """Not true, because the same first 60 epochs come before a run that ends near 60 % and one that ends above 90 %."""
    stuck, capable = sixty_percent(), sixty_percent(capable=True)
    ends = []
    for run in (stuck, capable):
        accuracies = run.history.column("accuracy")
        assert accuracies[:60] == stuck.history.column("accuracy")[:60]
        ends.append(accuracies[-1])
    assert ends[0] < 0.62 and ends[1] > 0.9
    early = [[event.to_json() for event in run.events if event.epoch < 60] for run in (stuck, capable)]
    assert early[0] == early[1]  # so nothing said before epoch 60 may claim to know


# ======================================================================================================================
# Second article: constant validation accuracy with a high loss
# ======================================================================================================================

FRAUD = shares(1900, 100)


def fraud_logits(margin: float, rows: int = 2000) -> Tensor:
    """Every transaction is called genuine, by the same margin."""
    return binary_logits(torch.full((rows,), margin))


def test_second_steady_accuracy_with_high_loss_does_not_mean_nothing_was_learned() -> None:
    """Not true, because a loss 70 % higher can go with exactly the same knowledge.

    "Accuracy suggests steady, the high loss indicates inefficient learning": here the loss after one temperature stays.
    """
    history = confident_run().history
    losses, refined = history.column("nll"), history.column("refinement_nll")
    assert losses[-1] > 1.65 * losses[20] and abs(refined[-1] - refined[20]) < 0.02 * (losses[-1] - losses[20])


def test_second_accuracy_is_the_share_of_right_rows() -> None:
    """Accuracy: right rows over all rows."""
    target = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    logits = 2.0 * F.one_hot(torch.tensor([0, 1, 2, 0, 1, 0, 1, 2]), 3).double()
    assert measure(logits, target)["accuracy"] == 5 / 8


def test_second_loss_measures_how_well_predictions_match() -> None:
    """Loss: how well predictions match the targets; it falls with every step towards them."""
    target = torch.arange(30) % 3
    steps = [measure(match * F.one_hot(target, 3).double(), target)["nll"] for match in (0.0, 1.0, 2.0, 4.0, 8.0)]
    assert steps[0] == pytest.approx(math.log(3)) and steps == sorted(steps, reverse=True)


def test_second_high_loss_need_not_be_poor_predictions() -> None:
    """Not true, because dividing the logits by one number takes the high loss away and changes no prediction."""
    target = torch.randint(0, 5, (4000,))
    logits = 20 * (3.2 * F.one_hot(target, 5) + torch.randn(4000, 5, dtype=torch.float64))
    high = measure(logits, target)
    low = measure(logits / high["temperature"], target)
    assert high["nll"] > 3 * low["nll"] and low["accuracy"] == high["accuracy"] > 0.95
    assert low["nll"] == pytest.approx(high["refinement_nll"], abs=5e-4)


def test_second_validation_set_is_unbiased_only_until_something_is_chosen_on_it() -> None:
    """Not true as said, because the best of 200 checkpoints that all guess scores 56.6 % there and 50 % on new rows."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 2000, 2, generator=generator, dtype=torch.float64)
    val, new = (torch.randint(0, 2, (1000,), generator=generator) for _ in range(2))
    scores = [measure(one[:1000], val)["accuracy"] for one in logits]
    best = max(range(200), key=scores.__getitem__)
    assert scores[best] > 0.53 and abs(measure(logits[best, 1000:], new)["accuracy"] - 0.5) < 0.03
    # So what was chosen there is cross-fitted, and marked.
    record = record_of(*_calibrated())
    assert "cross-fitted; confirm on a test set" in remedies("over-confidence", record, record)[0]


def _calibrated() -> tuple[Tensor, Tensor]:
    target = torch.randint(0, 5, (1000,))
    return 2.0 * (2.0 * F.one_hot(target, 5) + torch.randn(1000, 5, dtype=torch.float64)), target


def test_second_class_imbalance_hides_the_loss_of_the_minority() -> None:
    """Reason 1: predicting the majority gives high accuracy and a high loss, from wrong rows of the minority."""
    metric = LossAccuracy(num_classes=2)
    metric.update(fraud_logits(10.0), FRAUD)
    values, table = metric.compute(), metric.per_class()
    assert float(values["accuracy"]) == 0.95 and float(values["balanced_accuracy"]) == 0.5
    by_class = table["nll"] * table["rows"] / 2000
    assert float(by_class[1] / by_class.sum()) > 0.99


def test_second_class_imbalance_is_named() -> None:
    """Reason 1, on a run: the network comes to call everything genuine."""
    run = Scripted(num_rows=2000, num_classes=2)
    noise = torch.randn(2000, dtype=torch.float64)
    run.script(FRAUD, lambda epoch: binary_logits(0.3 * epoch + noise), 30)
    given(run.history.column("predicted_majority_rate")[-1] == 1.0)  # the evidence is in the records
    assert {"class-imbalance", "majority-collapse"} & causes_of(run.events)


def test_second_overfitting_on_patterns_is_named() -> None:
    """Reason 2: the model learns patterns that do not generalise."""
    assert {event.cause for event in forgetful_run().events if event.level == "warning"} == {"overfitting"}


def test_second_correct_rows_do_not_make_a_high_loss() -> None:
    """Not true, because a right row never costs more than ln C, and 99 % of an over-trained loss is in wrong rows.

    "Correct predictions but high loss values", said of overfitting.
    """
    _, measured = trained("biopsies", 60)
    last = measured[-1]
    wrong = (1 - last["accuracy"]) * last["nll_wrong"] / last["nll"]
    assert wrong > 0.9 and last["nll_right"] < 0.02
    for values in measured:
        assert values["nll_right"] <= math.log(2)


@pytest.mark.parametrize(("scale", "right"), [(0.02, "less confident right rows"), (30.0, "confident wrong rows")])
def test_second_cross_entropy_is_sensitive_to_confidence(scale: float, right: str) -> None:
    """Reason 3: wrong or less confident predictions raise cross-entropy, and accuracy does not show it."""
    target = torch.randint(0, 5, (4000,))
    logits = 3.2 * (3.2 * F.one_hot(target, 5) + torch.randn(4000, 5, dtype=torch.float64))
    calibrated, changed = measure(logits, target), measure(scale * logits, target)
    assert changed["accuracy"] == calibrated["accuracy"] and changed["nll"] > 5 * calibrated["nll"]
    grown = "nll_right" if scale < 1 else "nll_wrong"
    assert changed[grown] > 5 * calibrated[grown], right


def test_second_high_loss_for_its_accuracy_is_named_from_one_evaluation() -> None:
    """The combination is a diagnostic tool: it must be named in validate and test, too."""
    logits, target = _calibrated()
    events = Diagnosis().examine(History([record_of(6 * logits, target)]))
    assert "loss-high-for-accuracy" in {event.event for event in events}


def test_second_less_confident_predictions_are_named() -> None:
    """Reason 3, the other side: the loss rises because right answers are given with too little confidence."""
    run = Simulation()
    run.run(60, lambda epoch: max(0.3, 1 - 0.02 * max(0, epoch - 20)), learning)
    given(any(event.event.startswith("loss-up") for event in run.events))
    assert "under-confidence" in causes_of(run.events)


@functools.cache
def dead_run() -> LossAccuracyMonitor:
    """A live run whose hidden units are all dead before the first step."""
    seed_everything(0, verbose=False)
    data = demo.BreastCancer(num_train=300, seed=0, batch_size=100)
    return live(demo.Classifier(30, 2, (64, 64), learning_rate=0.01, hidden_bias=-20.0), data, 12)


def test_second_inactive_units_stop_learning() -> None:
    """Reason 4: units stuck at zero have flat gradients, weights stay, predictions keep the status quo."""
    features, target, _, _ = data_of(demo.BreastCancer(num_train=300, seed=0))
    model = demo.Classifier(30, 2, (64, 64), hidden_bias=-20.0)
    F.cross_entropy(model(features), target).backward()
    gradients = {name: float(value.grad.abs().sum()) for name, value in model.named_parameters()}
    assert [name for name, size in gradients.items() if size > 0] == ["network.4.bias"]
    series = dead_run().history.series()
    # One class for every row, always; the last bias alone chooses which.
    assert all(record.values["predicted_majority_rate"] == 1 for record in series)
    assert len({record.values["accuracy"] for record in series[4:]}) == 1
    assert series[-1].values["accuracy"] == series[-1].values["majority_rate"]
    assert series[-1].values["nll"] == pytest.approx(0.66, abs=0.02)  # the entropy of the class shares


def test_second_inactive_units_are_named() -> None:
    """Reason 4, on a live run."""
    assert "dead-activations" in causes_of(dead_run().events)


def test_second_relu_dies_and_does_not_saturate() -> None:
    """Not true as said, because a ReLU that is on has slope 1 however large its input; sigmoid and tanh saturate.

    "Activation saturation, especially with functions like ReLU."
    """
    slopes = {}
    for name, activation in (("relu", nn.ReLU()), ("sigmoid", nn.Sigmoid()), ("tanh", nn.Tanh())):
        inputs = torch.tensor([-20.0, 20.0], dtype=torch.float64, requires_grad=True)
        activation(inputs).sum().backward()
        slopes[name] = inputs.grad.tolist()
    assert slopes["relu"] == [0.0, 1.0]
    assert max(slopes["sigmoid"] + slopes["tanh"]) < 1e-8


def descent(rate: float, decay: float = 1.0, steps: int = 200) -> list[dict[str, float]]:
    """Logistic regression by gradient descent on 600 rows that no line separates; one measurement a step."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(600, 6, generator=generator, dtype=torch.float64)
    features[:, 5] = 1
    noise = torch.randn(600, generator=generator, dtype=torch.float64)
    target = (features[:, 0] + 0.5 * features[:, 1] + noise > 0).long()
    weight = torch.zeros(6, 2, dtype=torch.float64)
    measured = []
    for step in range(steps):
        gradient = features.T @ ((features @ weight).softmax(1) - F.one_hot(target, 2)) / 600
        weight -= rate * decay**step * gradient
        if step >= steps - 8:
            measured.append(measure(features @ weight, target))
    return measured


def spread(measured: list[dict[str, float]], key: str) -> float:
    values = [one[key] for one in measured]
    return max(values) - min(values)


def test_second_learning_rate_too_high_fails_to_minimise_the_loss() -> None:
    """Reason 5: too high a rate oscillates around the optimum and fails to minimise the loss."""
    high, sound = descent(8.0), descent(1.0)
    assert spread(high, "nll") > 0.005 and spread(sound, "nll") < 1e-6
    assert min(one["nll"] for one in high) > 1.2 * sound[-1]["nll"]


def test_second_learning_rate_too_high_keeps_no_level_of_accuracy() -> None:
    """Not true, because accuracy swings by 3.5 pp with the loss, and stays 3 pp below what a sound rate reaches.

    "Maintaining a level of accuracy", said of a learning rate that is too high.
    """
    high, sound = descent(8.0), descent(1.0)
    assert spread(high, "accuracy") > 0.03 and spread(sound, "accuracy") == 0
    assert max(one["accuracy"] for one in high) < sound[-1]["accuracy"] - 0.02


@functools.cache
def fast_run() -> LossAccuracyMonitor:
    """A live run at 30 times the usual learning rate."""
    seed_everything(0, verbose=False)
    return live(demo.Classifier(64, 10, (64,), learning_rate=0.1), demo.Digits(num_train=600, batch_size=64), 16)


def test_second_learning_rate_too_high_is_named() -> None:
    """Reason 5, on a live run."""
    losses = fast_run().history.column("nll")
    given(max(losses) > 2 * min(losses))  # the evidence is in the records
    assert "learning-rate-too-high" in causes_of(fast_run().events)


def test_second_learning_rate_too_low_is_named() -> None:
    """Reason 5, the other side: nothing moves because steps are too small."""
    seed_everything(0, verbose=False)
    monitor = live(demo.Classifier(64, 10, (64,), learning_rate=1e-7), demo.Digits(num_train=600, batch_size=64), 10)
    given(spread([record.values for record in monitor.history.series()], "nll") < 0.01)
    assert "learning-rate-too-low" in causes_of(monitor.events)


def test_second_fraud_classifier_at_accuracy_95_and_loss_90() -> None:
    """95 % genuine, 5 % fraud: accuracy 0.95 in training and validation, loss 0.90, at once."""
    train, val = measure(fraud_logits(18.0, 200), shares(190, 10)), measure(fraud_logits(18.0), FRAUD)
    assert train["accuracy"] == val["accuracy"] == 0.95
    assert val["nll"] == pytest.approx(0.90, abs=1e-6) and val["balanced_accuracy"] == 0.5


def test_second_skew_alone_does_not_make_the_loss_high() -> None:
    """Not true, because calling everything genuine at 95 % costs 0.199 nats; 0.90 takes boasting at 99.999998 %.

    "The skew lets it predict class 0 for all; nevertheless the loss remains high": one temperature takes 78 % away.
    """
    honest, boasting = measure(fraud_logits(math.log(19)), FRAUD), measure(fraud_logits(18.0), FRAUD)
    assert honest["nll"] == pytest.approx(0.1985, abs=1e-4) and honest["accuracy"] == 0.95
    assert boasting["confidence"] > 0.9999999
    assert boasting["refinement_nll"] == pytest.approx(honest["nll"], abs=1e-3)
    assert boasting["temperature"] == pytest.approx(18 / math.log(19), rel=0.02)


def test_second_accuracy_does_not_punish_low_confidence() -> None:
    """A right answer with low confidence costs loss and no accuracy."""
    timid, sure = (measure(fraud_logits(margin), shares(2000, 0)) for margin in (0.01, 5.0))
    assert timid["accuracy"] == sure["accuracy"] == 1 and timid["nll"] > 100 * sure["nll"]


def test_second_fraud_classifier_has_two_causes() -> None:
    """Collapsed and over-confident: both must be said of the 0.95 / 0.90 classifier."""
    run = Scripted(num_rows=2000, num_classes=2)
    run.script(FRAUD, lambda epoch: fraud_logits(math.log(19) + 0.5 * max(0, epoch - 5)), 32)
    given("over-confidence" in causes_of(run.events))
    assert {"majority-collapse", "over-confidence"} <= causes_of(run.events)


# -- remedies: what they do --------------------------------------------------------------------------------------------


def regression(weight: float = 1.0, copies: int = 1) -> dict[str, float]:
    """Logistic regression on 95/5 data, frauds weighted or copied, measured on the plain rows."""
    generator = torch.Generator().manual_seed(0)
    target = shares(3800, 200)
    features = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    features[:, 0] += 1.5 * target
    features[:, 2] = 1
    rows = torch.cat([torch.arange(4000), *[torch.arange(3800, 4000)] * (copies - 1)])
    learned = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([learned], max_iter=100, tolerance_grad=1e-10, tolerance_change=1e-14)
    weights = torch.tensor([1.0, weight], dtype=torch.float64)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(features[rows] @ learned, target[rows], weight=weights)
        value.backward()
        return value

    optimizer.step(loss)
    return measure((features @ learned).detach(), target)


@pytest.mark.parametrize("options", [{"weight": 19.0}, {"copies": 19}], ids=["class weights", "over-sampling"])
def test_second_remedy_for_imbalance(options: dict[str, Any]) -> None:
    """Remedy: weights or resampling. Balanced accuracy 56 → 79 %; the price: accuracy 95 → 78 %, NLL 0.15 → 0.46."""
    plain, repaired = regression(), regression(**options)
    assert plain["balanced_accuracy"] < 0.60 < 0.75 < repaired["balanced_accuracy"]
    assert repaired["accuracy"] < plain["accuracy"] - 0.15 and repaired["nll"] > 2 * plain["nll"]


def test_second_remedies_for_imbalance_are_one() -> None:
    """Over-sampling by 19 and weighting by 19 are the same loss, and so the same model."""
    assert regression(weight=19.0) == pytest.approx(regression(copies=19), abs=1e-5)


def test_second_remedy_focal_loss() -> None:
    """Remedy: a loss against confidence, such as the focal one, ends over-confidence (T 2.4 → 1.0), same accuracy."""
    plain, focal = trained("biopsies", 60)[1][-1], trained("biopsies", 60, focal=2.0)[1][-1]
    assert plain["temperature"] > 2 and 0.8 < focal["temperature"] < 1.25
    assert focal["nll"] < 0.75 * plain["nll"] and abs(focal["accuracy"] - plain["accuracy"]) < 0.01


def test_second_remedy_learning_rate_schedule() -> None:
    """Remedy: a schedule that lowers the rate ends the oscillation."""
    constant, decayed = descent(8.0), descent(8.0, decay=0.97)
    assert spread(decayed, "nll") < 1e-3 < spread(constant, "nll")
    assert decayed[-1]["nll"] == pytest.approx(descent(1.0)[-1]["nll"], abs=1e-3)


def test_second_adaptive_optimizer_is_no_remedy_by_itself() -> None:
    """Not true, because Adam, an optimiser with dynamic rates, oscillates at 0.03 and settles at 0.001."""
    jumping = [values["nll"] for values in trained("digits", 8, learning_rate=0.03)[1]]
    settling = [values["nll"] for values in trained("digits", 8, learning_rate=0.001)[1]]
    ups = sum(later > 1.05 * earlier for earlier, later in itertools.pairwise(jumping))
    assert ups >= 2 and min(jumping) > 5 * settling[-1]


SMALL = {"hidden_sizes": (128,), "learning_rate": 2e-3}


@pytest.mark.parametrize(
    "options",
    [{"weight_decay": 0.003}, {"dropout": 0.5}, {"jitter": 1.0}],
    ids=["L2 regularisation", "dropout", "augmentation"],
)
def test_second_remedy_for_overfitting(options: dict[str, Any]) -> None:
    """Remedy: regularisation, dropout, augmentation. Less is left of the overfitting after one temperature."""
    plain, repaired = (trained("noisy digits", 25, **SMALL, **more)[1][-1] for more in ({}, options))
    assert repaired["refinement_nll"] < plain["refinement_nll"] - 0.02
    assert repaired["accuracy"] > plain["accuracy"] + 0.005


def test_second_dropout_is_no_remedy_for_over_confidence() -> None:
    """Not true for every high loss, because on biopsies dropout 0.5 leaves the over-confidence where it was."""
    plain, dropped = trained("biopsies", 60)[1][-1], trained("biopsies", 60, dropout=0.5)[1][-1]
    assert dropped["nll"] > 0.95 * plain["nll"] and dropped["temperature"] > 2


@pytest.mark.parametrize(
    "change", [{"activation": "leaky_relu"}, {"hidden_bias": None}], ids=["leaky", "initial values"]
)
def test_second_remedy_for_dead_units(change: dict[str, Any]) -> None:
    """Remedy: another activation (leaky ReLU), or sound initial values: gradients reach every weight."""
    features, target, _, _ = data_of(demo.BreastCancer(num_train=300, seed=0))
    model = demo.Classifier(30, 2, (64, 64), **({"hidden_bias": -20.0} | change))
    F.cross_entropy(model(features), target).backward()
    assert all(float(parameter.grad.abs().sum()) > 0 for parameter in model.parameters())


def test_second_l2_penalty_gives_smaller_weights() -> None:
    """L2 regularisation penalises large weights and so prefers simpler models."""
    sizes = [
        sum(
            float(parameter.detach().square().sum())
            for parameter in trained("noisy digits", 25, **SMALL, **more)[0].parameters()
        )
        for more in ({}, {"weight_decay": 0.003})
    ]
    assert sizes[1] < 0.8 * sizes[0]


def test_second_penalty_in_the_logged_loss_is_told_apart() -> None:
    """L1 and L2 add a term to the loss that is logged: our NLL is without it, and the opening says by how much."""
    monitor, _, _ = dip()
    record = monitor.history.series()[0]
    penalised = replace(record, logged={"val_loss": record.values["nll"] + 0.25})
    assert "+0.2500 (other terms" in opening(penalised, "F.cross_entropy", "")
    assert "other terms" not in opening(replace(record, logged={"val_loss": record.values["nll"]}), "", "")


def test_second_dropout_switches_units_off_in_training_only() -> None:
    """Dropout switches random units off while training, and none afterwards."""
    model = demo.Classifier(30, 2, dropout=0.5)
    features = torch.randn(64, 30)
    assert not model.train()(features).equal(model(features))
    assert model.eval()(features).equal(model(features))


def test_second_dropout_teaches_redundancy() -> None:
    """Dropout makes units redundant: with half of them off, such a network loses less accuracy."""
    _, _, features, target = data_of(TABLES["noisy digits"]())
    losses = []
    for options in ({}, {"dropout": 0.5}):
        model, measured = trained("noisy digits", 25, **SMALL, **options)
        hidden, activation, last = model.network[0], model.network[1], model.network[-1]
        with torch.no_grad():
            units = activation(hidden(features))
            crippled = [measure(last(2 * units * (torch.rand(128) > 0.5)), target)["accuracy"] for _ in range(20)]
        losses.append(measured[-1]["accuracy"] - sum(crippled) / 20)
    assert losses[1] < 0.7 * losses[0]


# -- remedies: what we say ---------------------------------------------------------------------------------------------


def advice(cause: str) -> str:
    record = record_of(*_calibrated())
    return " ".join(remedies(cause, record, record)).lower()


# Every remedy of the article, by the cause that it is said for.
@pytest.mark.parametrize(
    ("cause", "words"),
    [
        ("class-imbalance", ("resampl", "class weights")),
        ("majority-collapse", ("class weights",)),
        ("overfitting", ("l1", "weight decay", "dropout", "augmentation")),
        ("over-confidence", ("weight decay", "label_smoothing", "logits / t", "focal")),
        ("learning-rate-too-high", ("schedule", "lower")),
        ("dead-activations", ("leaky", "initial")),
    ],
)
def test_second_remedies_that_are_said(cause: str, words: tuple[str, ...]) -> None:
    """Resample, weight, regularise, drop units, augment, schedule, activate, initialise: advice that comes with it."""
    assert all(word in advice(cause) for word in words)


def test_second_the_combination_is_a_diagnostic_tool() -> None:
    """Loss against accuracy points to what is wrong: three runs with a rising loss get three different causes."""
    found = [
        [event.cause for event in run.events if event.event.startswith("loss-up")][-1]
        for run in (confident_run(), forgetful_run(), growing_run())
    ]
    assert found == ["over-confidence", "overfitting", "scale-growth"]
