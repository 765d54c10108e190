"""Capture reads what the loss was given, exactly once, and leaves no trace.

Proved here: every way to the pair and its order; every place in which a program keeps a loss
function; the arguments in positional and keyword form; sites, loops, recomputation, nesting and
exceptions; compiled code is compiled as often as without us; the parameters of a training are
bit-equal with and without; no tensor outlives its step; nothing that goes wrong is raised, and the
explanation says what was seen.
"""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import pickle
import sys
import threading
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.functional import cross_entropy as bound_by_name
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_lossacc import loss_calls
from lightning_lossacc.capture import Capture, Captured

KEY = ("train", 0)
NAMES = ("cross_entropy", "nll_loss", "binary_cross_entropy_with_logits")
# Not a plain dict: those are searched for references as well.
ORIGINALS = types.MappingProxyType({name: getattr(F, name) for name in NAMES})
TABLE = {"loss": F.cross_entropy}
MODULE = nn.Identity()
HELPER = types.ModuleType("loss_helper_of_the_test")
exec(
    "from torch.nn.functional import cross_entropy as ce\ndef helper_loss(x, y):\n    return ce(x, y)",
    vars(HELPER),
)
sys.modules[HELPER.__name__] = HELPER


@pytest.fixture(autouse=True)
def _restored() -> Any:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    assert {name: getattr(F, name) for name in NAMES} == dict(ORIGINALS)
    assert bound_by_name is ORIGINALS["cross_entropy"] is HELPER.ce is TABLE["loss"]
    assert not loss_calls._listeners and not loss_calls._replaced and not vars(loss_calls._slots)


def rows(count: int = 6, classes: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(count, classes, requires_grad=True), torch.randint(classes, (count,))


def step(
    capture: Capture, body: Callable[[], Any], module: nn.Module | None = None, batch: Any = None
) -> list[Captured]:
    """One step as the callback runs it; a step that raises is aborted and raises."""
    seen: list[Captured] = []
    capture.start(KEY, module or MODULE, seen.append)
    try:
        outputs = body()
    except Exception:
        capture.abort()
        raise
    capture.stop(outputs, batch)
    return seen


def one(call: Callable[[], Any], module: nn.Module | None = None) -> Captured:
    """The same pair must come in the first step, which holds it, and in the second, at the call."""
    capture = Capture()
    first, second = step(capture, call, module), step(capture, call, module)
    assert capture.last_error is None
    assert len(first) == len(second) == 1, capture.explanation(KEY)
    assert torch.equal(first[0].logits, second[0].logits)
    return second[0]


class Model(lightning.LightningModule):
    """Returns only the loss, as most modules do."""

    def __init__(self, loss: Callable[..., Tensor] | None = None, drop: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Dropout(drop), nn.ReLU(), nn.Linear(8, 4))
        self.loss = loss

    def training_step(self, batch: Any, index: int) -> Any:
        loss = F.cross_entropy if self.loss is None else self.loss
        return loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, index: int) -> Any:
        logits = self.net(batch[0])
        return {"loss": F.cross_entropy(logits, batch[1]), "logits": logits, "target": batch[1]}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Watch(lightning.Callback):
    """What the real callback does with a Capture."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.seen: dict[str, list[Captured]] = {"train": [], "val": []}

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        self.capture.start(KEY, module, self.seen["train"].append)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.capture.stop(outputs, batch)

    def on_validation_batch_start(self, trainer: Any, module: Any, batch: Any, *index: int) -> None:
        self.capture.start(("val", 0), module, self.seen["val"].append)

    def on_validation_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, *index: int) -> None:
        self.capture.stop(outputs, batch)

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        self.capture.abort()


def fit(model: lightning.LightningModule, path: Path, *callbacks: Any, **options: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(40, 5, generator=generator)
    target = torch.randint(4, (40,), generator=generator)
    loader = DataLoader(TensorDataset(features, target), batch_size=8)
    trainer = lightning.Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=path,
        callbacks=list(callbacks),
        **options,
    )
    trainer.fit(model, loader, loader if options.get("limit_val_batches", 1) else None)


# Trainer: both stages, because they take different ways; accumulation rescales the returned loss.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_trainer_captures_each_row_of_both_stages_once(tmp_path: Path, accumulate: int) -> None:
    watch = Watch(Capture())
    fit(Model(), tmp_path, watch, accumulate_grad_batches=accumulate, num_sanity_val_steps=0)
    assert watch.capture.last_error is None
    for stage in ("train", "val"):
        assert sum(len(item.target) for item in watch.seen[stage]) == 4 * 40
        assert all(not item.logits.requires_grad for item in watch.seen[stage])
    source = watch.capture.source(KEY)
    assert source is not None and source.startswith("F.cross_entropy at test_capture.py:")
    assert watch.capture.source(("val", 0)) == "logits/target of the step output"


@pytest.mark.filterwarnings("ignore")
def test_parameters_are_bit_equal_after_20_steps_with_dropout(tmp_path: Path) -> None:
    states = []
    for callbacks in ([], [Watch(Capture()), Watch(Capture(which=0))]):
        lightning.seed_everything(3, verbose=False)
        model = Model(drop=0.5)
        fit(model, tmp_path, *callbacks)
        assert model.trainer.global_step == 20
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert len(callbacks[0].seen["train"]) == len(callbacks[1].seen["train"]) == 20


@pytest.mark.filterwarnings("ignore")
def test_exception_in_a_trainer_step_restores_every_function(tmp_path: Path) -> None:
    def failing(logits: Tensor, target: Tensor) -> Tensor:
        F.cross_entropy(logits, target)
        assert F.cross_entropy is not ORIGINALS["cross_entropy"]
        raise ArithmeticError("of the user")

    watch = Watch(Capture())
    with pytest.raises(ArithmeticError, match="of the user"):
        fit(Model(failing), tmp_path, watch, limit_val_batches=0)
    assert watch.seen["train"] == [] and not watch.capture._held


# Rungs.


def test_user_callable_comes_before_keys_and_loss_calls() -> None:
    logits, target = rows()
    capture = Capture(user=lambda outputs, batch: (outputs["mine"], batch[1]))
    for _ in range(2):
        body = lambda: {  # noqa: E731
            "logits": logits + 1,
            "target": target,
            "mine": logits,
            "l": F.cross_entropy(logits, target),
        }
        (seen,) = step(capture, body, batch=(0, target))
        assert torch.equal(seen.logits, logits) and not seen.logits.requires_grad
        assert (seen.source, seen.task, seen.ignore_index) == ("capture=", "multiclass", -100)
    assert capture.source(KEY) == "capture="


def test_user_callable_that_returns_none_skips_the_batch_and_nothing_else_is_tried() -> None:
    logits, target = rows()
    capture = Capture(user=lambda outputs, batch: None)
    assert step(capture, lambda: F.cross_entropy(logits, target)) == []
    assert capture.source(KEY) is None and capture.last_error is None
    assert "`capture=` returned None" in capture.explanation(KEY)


def test_user_callable_that_raises_is_remembered() -> None:
    capture = Capture(user=lambda outputs, batch: outputs["absent"])
    assert step(capture, lambda: {"loss": 1}) == []
    assert capture.last_error == "capture=: KeyError: 'absent'"
    assert "KeyError" in capture.explanation(KEY)


def test_keys_of_the_output_come_before_loss_calls_and_stay() -> None:
    logits, target = rows()
    capture = Capture()

    def both() -> Any:
        loss = F.cross_entropy(logits * 2, target)
        return {"loss": loss, "logits": logits, "target": target}

    for _ in range(2):
        (seen,) = step(capture, both)
        assert torch.equal(seen.logits, logits)
    assert F.cross_entropy is ORIGINALS["cross_entropy"]
    assert step(capture, lambda: {"loss": F.cross_entropy(logits, target)}) == []


def test_locked_on_keys_nothing_is_replaced_any_more() -> None:
    logits, target = rows()
    capture = Capture()
    step(capture, lambda: {"logits": logits, "target": target})
    step(
        capture,
        lambda: pytest.fail("replaced") if F.cross_entropy is not ORIGINALS["cross_entropy"] else None,
    )


def test_hugging_face_labels_are_not_a_target() -> None:
    logits, target = rows()
    capture = Capture()
    (seen,) = step(
        capture,
        lambda: {"l": F.cross_entropy(logits[:-1], target[1:]), "logits": logits, "labels": target},
    )
    assert torch.equal(seen.target, target[1:])


def test_unreadable_keys_fall_back_to_the_loss_call() -> None:
    logits, target = rows()
    capture = Capture()
    (seen,) = step(
        capture,
        lambda: {"l": F.cross_entropy(logits, target), "logits": logits, "target": target[:2]},
    )
    assert torch.equal(seen.target, target)
    assert "target (2,) (torch.int64)" in capture.explanation(KEY)


# Where a program keeps the function: the attribute of F, a module, a name, an attribute of a
# submodule (plain, partial, in a dict, in a list) or class, another module, a dict of a module.


class Holder(nn.Module):
    in_class = staticmethod(F.cross_entropy)

    def __init__(self, how: str) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.plain = F.cross_entropy
        self.inner.partial = functools.partial(F.cross_entropy, label_smoothing=0.1)
        self.inner.dict = {"ce": F.cross_entropy}
        self.inner.list = [F.cross_entropy]
        self.inner.module = nn.CrossEntropyLoss()
        self.how = how

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        match self.how:
            case "F":
                return F.cross_entropy(logits, target)
            case "name":
                return bound_by_name(logits, target)
            case "helper":
                return HELPER.helper_loss(logits, target)
            case "table":
                return TABLE["loss"](logits, target)
            case "class":
                return self.in_class(logits, target)
            case "dict":
                return self.inner.dict["ce"](logits, target)
            case "list":
                return self.inner.list[0](logits, target)
        return getattr(self.inner, self.how)(logits, target)


@pytest.mark.parametrize("how", ["F", "module", "name", "plain", "partial", "dict", "list", "class", "helper", "table"])
def test_every_place_of_the_function_is_found_and_restored(how: str) -> None:
    holder = Holder(how)
    before = {name: dict(vars(child)) for name, child in holder.named_modules()}
    logits, target = rows()
    seen = one(lambda: holder(logits, target), holder)
    assert seen.logits.data_ptr() == logits.data_ptr() and seen.target.data_ptr() == target.data_ptr()
    assert seen.label_smoothing == (0.1 if how == "partial" else 0.0)
    assert {name: dict(vars(child)) for name, child in holder.named_modules()} == before
    assert holder.inner.dict == {"ce": ORIGINALS["cross_entropy"]}
    assert holder.inner.list == [ORIGINALS["cross_entropy"]]
    assert vars(Holder)["in_class"].__func__ is ORIGINALS["cross_entropy"]


def test_a_reference_that_the_user_changes_within_a_step_is_left_to_the_user() -> None:
    holder = Holder("plain")
    capture, mine = Capture(), nn.MSELoss()
    step(capture, lambda: setattr(holder.inner, "plain", mine), holder)
    assert holder.inner.plain is mine
    step(capture, lambda: None, holder)
    assert holder.inner.plain is mine


def test_a_name_bound_during_a_step_still_works_afterwards_and_records_nothing() -> None:
    logits, target = rows()
    leaked: list[Any] = []
    capture = Capture()
    step(capture, lambda: leaked.append(F.cross_entropy))
    assert leaked[0] is not ORIGINALS["cross_entropy"]
    assert torch.equal(leaked[0](logits, target), F.cross_entropy(logits, target))
    assert len(step(capture, lambda: leaked[0](logits, target))) == 1


# Arguments: each function, with all relevant arguments by position and by keyword.


@pytest.mark.parametrize("keyword", [False, True])
def test_arguments_of_cross_entropy(keyword: bool) -> None:
    logits, target = rows()
    weight = torch.rand(4)
    names = loss_calls._NAMES["cross_entropy"]
    values = (logits, target, weight, None, 2, None, "sum", 0.25)
    if keyword:
        seen = one(lambda: F.cross_entropy(**dict(zip(names, values, strict=True))))
    else:
        seen = one(lambda: F.cross_entropy(*values))
    assert (seen.ignore_index, seen.label_smoothing, seen.weighted, seen.task) == (
        2,
        0.25,
        True,
        "multiclass",
    )
    assert one(lambda: F.cross_entropy(logits, target=target)).ignore_index == -100
    assert not one(lambda: F.cross_entropy(logits, target)).weighted


@pytest.mark.parametrize("keyword", [False, True])
def test_arguments_of_nll_loss(keyword: bool) -> None:
    logits, target = rows()
    log_probabilities = logits.log_softmax(1)
    names = loss_calls._NAMES["nll_loss"]
    values = (log_probabilities, target, torch.rand(4), None, 1)
    seen = one(lambda: F.nll_loss(**dict(zip(names, values, strict=False))) if keyword else F.nll_loss(*values))
    assert (seen.ignore_index, seen.label_smoothing, seen.weighted) == (1, 0.0, True)
    assert torch.equal(seen.logits, log_probabilities) and seen.source.startswith("F.nll_loss at ")
    assert not one(lambda: nn.NLLLoss()(log_probabilities, target)).weighted


@pytest.mark.parametrize("shape", [(), (6,), (6, 1), (6, 1, 2, 2)])
@pytest.mark.parametrize("how", ["module", "keyword", "positional"])
def test_arguments_of_binary_cross_entropy(shape: tuple[int, ...], how: str) -> None:
    logits, target = torch.randn(shape), torch.rand(shape)
    weight = torch.tensor(3.0)
    calls = {
        "module": lambda: nn.BCEWithLogitsLoss(pos_weight=weight)(logits, target),
        "keyword": lambda: F.binary_cross_entropy_with_logits(target=target, input=logits, pos_weight=weight),
        "positional": lambda: F.binary_cross_entropy_with_logits(logits, target, None, None, None, "mean", weight),
    }
    seen = one(calls[how])
    assert (seen.task, seen.ignore_index, seen.weighted) == ("binary", None, True)
    assert seen.logits.shape == (shape or (1,)) and torch.equal(seen.target.reshape(shape), target)
    assert not one(lambda: F.binary_cross_entropy_with_logits(logits, target)).weighted


def test_the_parameter_names_are_those_of_torch() -> None:
    for name in NAMES:
        assert loss_calls._NAMES[name] == tuple(inspect.signature(ORIGINALS[name]).parameters)


def test_shapes_of_cross_entropy() -> None:
    seen = one(lambda: F.cross_entropy(torch.ones(4), torch.tensor(2)))
    assert seen.logits.shape == (1, 4) and seen.target.tolist() == [2]
    soft = torch.rand(3, 4).softmax(1)
    assert one(lambda: F.cross_entropy(torch.ones(3, 4), soft)).target is not soft
    assert torch.equal(one(lambda: F.cross_entropy(torch.ones(3, 4), soft)).target, soft)
    image = torch.ones(2, 4, 3, 3)
    assert one(lambda: F.cross_entropy(image, torch.zeros(2, 3, 3).long())).target.shape == (
        2,
        3,
        3,
    )
    small = one(lambda: F.cross_entropy(torch.ones(3, 4), torch.zeros(3, dtype=torch.uint8)))
    assert small.target.dtype == torch.uint8


# Pairs that the user gives carry no function name, so the task follows the shapes.
@pytest.mark.parametrize(
    ("logits", "target", "task"),
    [
        ((6, 4), (6,), "multiclass"),
        ((2, 4, 3), (2, 3), "multiclass"),
        ((4,), (), "multiclass"),
        ((6,), (6,), "binary"),
        ((6, 1), (6,), "binary"),
        ((6, 1), (6, 1), "binary"),
        ((), (), "binary"),
        ((6, 4), (5,), None),
        ((6, 4), (6, 4), None),
        ((6, 1), (5,), None),
    ],
)
def test_task_of_a_given_pair(logits: tuple[int, ...], target: tuple[int, ...], task: str | None) -> None:
    capture = Capture(user=lambda outputs, batch: (torch.zeros(logits), torch.zeros(target).long()))
    seen = step(capture, lambda: None)
    assert [item.task for item in seen] == ([task] if task else [])
    assert task or str(logits) in capture.explanation(KEY)


@pytest.mark.parametrize("pair", [(1, 2), (torch.ones(3, 4).long(), torch.ones(3).long()), torch.ones(3)])
def test_a_pair_of_wrong_types_is_explained(pair: Any) -> None:
    capture = Capture(user=lambda outputs, batch: pair)
    assert step(capture, lambda: None) == []
    assert "Seen: nothing" not in capture.explanation(KEY)


# Refused, and said so.


def test_multilabel_is_refused_with_a_message() -> None:
    capture = Capture()
    logits = torch.randn(6, 5)
    assert step(capture, lambda: {"loss": F.binary_cross_entropy_with_logits(logits, torch.rand(6, 5))}) == []
    text = capture.explanation(KEY)
    assert "5 columns, which is multilabel" in text and "F.binary_cross_entropy_with_logits at test_capture" in text
    assert "a dict with keys ['loss']" in text and "train (data loader 0)" in text
    assert '{"loss": loss, "logits": logits, "target": y}' in text and "LossAccuracyMonitor(capture=" in text
    assert capture.source(KEY) is None and capture.last_error is None


@pytest.mark.parametrize(
    ("outputs", "words"),
    [(None, "None"), ({}, "{}"), (torch.ones(()), "a Tensor"), ({"a": 1, 2: 3}, "['2', 'a']")],
)
def test_explanation_names_the_kind_of_output(outputs: Any, words: str) -> None:
    capture = Capture()
    step(capture, lambda: outputs)
    assert f"the step returned {words}" in capture.explanation(KEY).replace("a dict with keys ", "")
    assert "no call that could be captured" in capture.explanation(KEY)


def test_one_class_and_torch_func_are_refused() -> None:
    capture = Capture()
    assert step(capture, lambda: F.cross_entropy(torch.ones(3, 1), torch.zeros(3).long())) == []
    assert "logits (3, 1) (torch.float32)" in capture.explanation(KEY)
    logits, target = rows()
    capture = Capture()
    gradient = torch.func.grad(lambda x: F.cross_entropy(x, target))
    assert step(capture, lambda: gradient(logits.detach())) == []
    assert step(capture, lambda: torch.vmap(F.cross_entropy)(logits.detach()[:, None], target[:, None])) == []
    assert "tensors of torch.func" in capture.explanation(KEY) and capture.last_error is None


def test_notes_are_bounded() -> None:
    capture = Capture()
    for width in range(2, 30):
        table = torch.ones(3, width)
        step(capture, lambda: F.binary_cross_entropy_with_logits(table, table))
    text = capture.explanation(KEY)
    assert "2 columns" in text and "29 columns" not in text and len(text) < 2000


# Sites.


def test_which_selects_a_site_and_all_of_its_calls() -> None:
    first, second, target = torch.randn(6, 4), torch.randn(6, 3), torch.randint(3, (6,))

    def body() -> Any:
        auxiliary = F.cross_entropy(first, target)
        for chunk in range(3):
            auxiliary = auxiliary + F.cross_entropy(
                second[2 * chunk : 2 * chunk + 2], target[2 * chunk : 2 * chunk + 2]
            )
        return auxiliary

    for which, widths in ((0, [4]), (1, [3, 3, 3])):
        capture = Capture(which=which)
        for _ in range(3):
            assert [item.logits.shape[1] for item in step(capture, body)] == widths
    assert torch.equal(torch.cat([item.logits for item in step(capture, body)]), second)
    capture = Capture(which=2)
    assert step(capture, body) == []
    assert "which=2, but loss calls at test_capture.py:" in capture.explanation(KEY)


def test_two_calls_in_one_line_are_two_sites() -> None:
    first, second, target = torch.randn(6, 4), torch.randn(6, 3), torch.randint(3, (6,))
    capture = Capture(which=1)
    for _ in range(2):
        seen = step(capture, lambda: F.cross_entropy(first, target) + F.cross_entropy(second, target))
        assert [item.logits.shape[1] for item in seen] == [3]


def test_gan_steps_keep_to_the_chosen_site() -> None:
    capture = Capture()
    logits, target = torch.randn(6), torch.ones(6)

    def discriminator() -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, target)

    def generator() -> Tensor:
        return F.binary_cross_entropy_with_logits(-logits, target)

    counts = [len(step(capture, body)) for body in (discriminator, generator, discriminator)]
    assert counts == [1, 0, 1]


def test_which_is_checked() -> None:
    with pytest.raises(ValueError, match="Expected `which` to be 0 or larger, but got -1"):
        Capture(which=-1)


def test_streams_lock_separately() -> None:
    logits, target = rows()
    capture = Capture()
    step(capture, lambda: F.cross_entropy(logits, target))
    capture.start(("val", 1), MODULE, lambda captured: None)
    capture.stop({"logits": logits, "target": target}, None)
    assert capture.source(KEY) != capture.source(("val", 1)) == "logits/target of the step output"
    assert capture.source(("val", 0)) is None


# Recomputation.


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_loss_is_counted_once(reentrant: bool) -> None:
    features, target = torch.randn(6, 5, requires_grad=True), torch.randint(4, (6,))
    layer, runs = nn.Linear(5, 4), []

    def block(x: Tensor) -> Tensor:
        runs.append(1)
        return F.cross_entropy(layer(x), target)

    capture = Capture()
    for number in range(1, 4):
        seen = step(capture, lambda: checkpoint(block, features, use_reentrant=reentrant).backward())
        assert sum(len(item.target) for item in seen) == 6
        assert len(runs) == 2 * number


# Two at once.


@pytest.mark.parametrize("inner_first", [False, True])
def test_two_captures_may_end_in_any_order(inner_first: bool) -> None:
    holder = Holder("partial")
    partial = holder.inner.partial
    logits, target = rows()
    captures = [Capture(), Capture()]
    seen: list[list[Captured]] = [[], []]
    for _ in range(2):
        captures[0].start(KEY, holder, seen[0].append)
        holder(logits, target)
        captures[1].start(KEY, holder, seen[1].append)
        holder(logits, target)
        early, late = captures[::-1] if inner_first else captures
        early.stop(None, None)
        assert F.cross_entropy is not ORIGINALS["cross_entropy"]
        holder(logits, target)
        late.stop(None, None)
        assert holder.inner.partial is partial
    assert [len(item) for item in seen] == ([6, 2] if inner_first else [4, 4])
    assert captures[0].last_error is captures[1].last_error is None


def test_a_step_that_was_never_ended_is_ended_by_the_next() -> None:
    logits, target = rows()
    capture, lost, seen = Capture(), [], []
    capture.start(KEY, MODULE, lost.append)
    F.cross_entropy(logits, target)
    capture.start(KEY, MODULE, seen.append)
    F.cross_entropy(logits, target)
    capture.stop(None, None)
    capture.stop(None, None)
    assert (len(lost), len(seen)) == (0, 1)


def test_exceptions_of_the_loss_are_those_of_torch() -> None:
    capture = Capture()
    for arguments in ((torch.ones(3, 4),), (torch.ones(3, 4), torch.zeros(2).long()), ("a", "b")):
        errors = []
        for watched in (False, True):
            with pytest.raises(Exception) as error:
                step(capture, lambda: F.cross_entropy(*arguments)) if watched else F.cross_entropy(*arguments)
            errors.append((type(error.value), str(error.value)))
        assert errors[0] == errors[1]
    assert capture.last_error is None


def test_a_consumer_that_raises_does_not_stop_the_step() -> None:
    def consume(captured: Captured) -> None:
        raise RuntimeError("full")

    logits, target = rows()
    capture = Capture()
    for _ in range(2):
        capture.start(KEY, MODULE, consume)
        loss = F.cross_entropy(logits, target)
        capture.stop(loss, None)
        assert capture.last_error == "consume: RuntimeError: full"
        capture.last_error = None
        assert torch.equal(loss, F.cross_entropy(logits, target))


def test_an_error_while_recording_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> None:
        raise RuntimeError("broken")

    logits, target = rows()
    for owner, name in ((loss_calls, "_site"), (sys.modules[Capture.__module__], "_check")):
        capture = Capture()
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, broken)
            assert step(capture, lambda: F.cross_entropy(logits, target)) == []
        assert capture.last_error is not None and capture.last_error.endswith("RuntimeError: broken")
        assert "broken" in capture.explanation(KEY)


def test_a_loss_within_the_consumer_or_another_thread_is_not_seen() -> None:
    logits, target = rows()
    capture, seen = Capture(), []

    def consume(captured: Captured) -> None:
        seen.append(captured)
        F.cross_entropy(captured.logits, captured.target)

    for _ in range(2):
        capture.start(KEY, MODULE, consume)
        other = threading.Thread(target=lambda: F.cross_entropy(logits * 2, target))
        other.start()
        other.join()
        F.cross_entropy(logits, target)
        capture.stop(None, None)
    assert [torch.equal(item.logits, logits) for item in seen] == [True, True]
    assert capture.last_error is None


def test_a_function_that_another_library_put_there_is_watched_and_counted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def theirs(*arguments: Any, **options: Any) -> Tensor:
        return 2 * bound_by_name(*arguments, **options)

    logits, target = rows()
    with monkeypatch.context() as patch:
        patch.setattr(F, "cross_entropy", theirs)
        assert len(step(Capture(), lambda: F.cross_entropy(logits, target))) == 1
        assert step(Capture(which=1), lambda: F.cross_entropy(logits, target)) == []
        assert F.cross_entropy is theirs


# Tensors.


def test_no_tensor_outlives_its_step() -> None:
    capture = Capture()
    for number in range(3):
        logits, target = rows()
        hidden = logits * 2
        alive = weakref.ref(hidden)
        storage = weakref.ref(hidden.untyped_storage())
        sizes: list[int] = []
        capture.start(KEY, MODULE, lambda captured: sizes.append(len(captured.target)))
        loss = F.cross_entropy(hidden, target)
        if number:
            assert sizes == [6] and not capture._held
        del hidden
        capture.stop(loss, None)
        del loss
        assert sizes == [6]
        gc.collect()
        assert alive() is None and storage() is None


def test_tensors_changed_in_place_after_the_first_call_are_not_used() -> None:
    logits, target = torch.randn(6, 4), torch.randint(4, (6,))
    capture = Capture()

    def body() -> None:
        F.cross_entropy(logits, target)
        logits.mul_(2)

    assert step(capture, body) == []
    before = logits.clone()
    seen: list[Tensor] = []
    capture.start(KEY, MODULE, lambda captured: seen.append(captured.logits.clone()))
    body()
    capture.stop(None, None)
    assert torch.equal(seen[0], before) and "changed afterwards" in capture.explanation(KEY)


def test_autocast_logits_stay_bfloat16_and_inference_mode_works() -> None:
    layer, target = nn.Linear(5, 4), torch.randint(4, (6,))
    with torch.autocast("cpu", torch.bfloat16):
        assert one(lambda: F.cross_entropy(layer(torch.ones(6, 5)), target)).logits.dtype == torch.bfloat16
    with torch.inference_mode():
        assert one(lambda: F.cross_entropy(layer(torch.ones(6, 5)), target)).logits.is_inference()


def test_subclasses_and_modes_are_told_the_function_they_know() -> None:
    told: list[Any] = []

    class Mine(Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            told.append(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    logits, target = torch.randn(6, 4).as_subclass(Mine), torch.randint(4, (6,))
    assert len(step(Capture(), lambda: F.cross_entropy(logits, target))) == 1
    assert ORIGINALS["cross_entropy"] in told


def test_pickle_and_deepcopy_keep_the_arguments_only() -> None:
    logits, target = rows()
    capture = Capture(user=None, which=1)
    step(capture, lambda: F.cross_entropy(logits, target))
    for other in (pickle.loads(pickle.dumps(capture)), copy.deepcopy(capture)):
        assert other.which == 1 and other.source(KEY) is None and other._references == []


# Compiled code: the loss outside and inside of it, as a function and as a module; with the backend
# that runs the graph in Python (which meets our replacement again) and one that traces it again.


def compilations(run: Callable[[], Any]) -> tuple[int, dict[str, int], int]:
    torch._dynamo.reset()
    counters.clear()
    for _ in range(5):
        run()
    return (
        counters["stats"]["unique_graphs"],
        dict(counters["graph_break"]),
        counters["frames"]["total"],
    )


class Net(nn.Linear):
    """Outside of torch, because Dynamo passes over calls of torch's own modules."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features)


def compiled_step(kind: str, backend: str) -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]:
    net = Net(5, 4)
    if kind == "loss outside":
        net.compile(backend=backend, fullgraph=True)
        return net, lambda x, y: F.cross_entropy(net(x), y)
    if kind == "loss function":
        compiled = torch.compile(lambda x, y: F.cross_entropy(net(x), y), backend=backend, fullgraph=True)
        return net, compiled
    if kind == "name":
        return net, torch.compile(lambda x, y: bound_by_name(net(x), y), backend=backend, fullgraph=True)
    if kind == "loss module":
        loss = torch.compile(nn.CrossEntropyLoss(), backend=backend, fullgraph=True)
        return net, lambda x, y: loss(net(x), y)
    holder = Holder(kind)
    holder.compile(backend=backend, fullgraph=True)
    return holder, lambda x, y: holder(net(x), y)


# Dynamo hides this warning of its own by a hook that "warnings are errors" overrules.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("backend", ["aot_eager", "eager"])
@pytest.mark.parametrize("kind", ["loss outside", "loss function", "name", "loss module", "module", "plain", "partial"])
def test_compiled_code_is_compiled_as_often_as_without(kind: str, backend: str) -> None:
    features, target = torch.randn(6, 5), torch.randint(4, (6,))
    losses: list[Tensor] = []
    module, body = compiled_step(kind, backend)
    alone = compilations(lambda: body(features, target).backward())
    module, body = compiled_step(kind, backend)
    capture = Capture()
    counts: list[int] = []

    def watched() -> None:
        seen = step(capture, lambda: losses.append(body(features, target)) or losses[-1].backward(), module)
        counts.append(len(seen))
        assert torch.allclose(
            F.cross_entropy(seen[0].logits, target, label_smoothing=seen[0].label_smoothing),
            losses[-1],
        )
        assert not seen[0].logits.requires_grad

    assert compilations(watched) == alone
    assert step(Capture(which=1), lambda: body(features, target), module) == []
    assert alone[0] == 1 and alone[1] == {}
    assert counts == [1] * 5 and capture.last_error is None
    source = capture.source(KEY)
    assert source is not None and (kind == "loss module" or "test_capture.py:" in source)


def test_compiled_gradients_are_bit_equal_in_float32() -> None:
    features, target = torch.randn(6, 5), torch.randint(4, (6,))
    gradients = []
    for watch in (False, True):
        torch._dynamo.reset()
        torch.manual_seed(0)
        module, body = compiled_step("loss function", "aot_eager")
        for _ in range(3):
            if watch:
                assert len(step(Capture(), lambda: body(features, target).backward(), module)) == 1
            else:
                body(features, target).backward()
        gradients.append(module.weight.grad)
    assert torch.equal(*gradients)


def test_sites_and_loops_inside_compiled_code() -> None:
    first, second, target = torch.randn(6, 4), torch.randn(6, 3), torch.randint(3, (6,))

    @torch.compile(backend="aot_eager", fullgraph=True)
    def body(first: Tensor, second: Tensor, target: Tensor) -> Tensor:
        loss = F.cross_entropy(first, target)
        for chunk in range(3):
            loss = loss + F.cross_entropy(second[2 * chunk : 2 * chunk + 2], target[2 * chunk : 2 * chunk + 2])
        return loss

    for which, widths in ((0, [4]), (1, [3, 3, 3])):
        capture = Capture(which=which)
        for _ in range(2):
            seen = step(capture, lambda: body(first, second, target))
            assert [item.logits.shape[1] for item in seen] == widths
    assert torch.equal(torch.cat([item.logits for item in seen]), second)


def test_two_calls_in_one_line_of_compiled_code_are_two_sites() -> None:
    first, second, target = torch.randn(6, 4), torch.randn(6, 3), torch.randint(3, (6,))

    def plain(first: Tensor, second: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(first, target) + F.cross_entropy(second, target)

    body = torch.compile(plain, backend="aot_eager", fullgraph=True)
    for which, width in ((0, 4), (1, 3)):
        capture = Capture(which=which)
        for _ in range(2):
            seen = step(capture, lambda: body(first, second, target))
            assert [item.logits.shape[1] for item in seen] == [width]
        seen = step(capture, lambda: plain(first, second, target))
        assert [item.logits.shape[1] for item in seen] == [width]


def test_compiled_code_that_falls_back_to_python_stays_the_same_site() -> None:
    torch._dynamo.reset()
    features, target = torch.randn(6, 5), torch.randint(4, (6,))
    module, body = compiled_step("loss function", "aot_eager")
    capture = Capture()
    assert len(step(capture, lambda: body(features, target), module)) == 1
    with torch.compiler.set_stance("force_eager"):
        assert len(step(capture, lambda: body(features, target), module)) == 1


@pytest.mark.parametrize("captures", [1, 2])
def test_compiled_loss_beside_keys_of_the_output_is_compiled_once(captures: int) -> None:
    features, target = torch.randn(6, 5), torch.randint(4, (6,))
    module, body = compiled_step("loss function", "aot_eager")
    by_keys, others = Capture(), [Capture() for _ in range(captures - 1)]
    counts: list[list[Captured]] = [[] for _ in range(captures)]

    def watched() -> None:
        for capture, count in zip([by_keys, *others], counts, strict=True):
            capture.start(KEY, module, count.append)
        loss = body(features, target)
        by_keys.stop({"loss": loss, "logits": torch.ones(6, 4), "target": target}, None)
        for capture in others:
            capture.stop(loss, None)

    assert compilations(watched)[0] == 1
    assert [len(count) for count in counts] == [5] * captures
    assert by_keys.source(KEY) == "logits/target of the step output"


def test_slots_of_compiled_code_are_dropped_after_the_step() -> None:
    features, target = torch.randn(6, 5), torch.randint(4, (6,))
    module, body = compiled_step("loss function", "aot_eager")
    capture = Capture()
    for _ in range(3):
        kept: list[Any] = []
        capture.start(KEY, module, lambda captured: kept.append(weakref.ref(captured.logits)))
        loss = body(features, target)
        capture.stop(loss, None)
        del loss
        gc.collect()
        assert len(kept) == 1 and kept[0]() is None


@pytest.mark.filterwarnings("ignore")
def test_trainer_with_a_compiled_module(tmp_path: Path) -> None:
    torch._dynamo.reset()
    model = Model()
    model.compile(backend="aot_eager")
    watch = Watch(Capture())
    fit(model, tmp_path, watch, limit_val_batches=0)
    assert sum(len(item.target) for item in watch.seen["train"]) == 4 * 40
    assert watch.capture.last_error is None
