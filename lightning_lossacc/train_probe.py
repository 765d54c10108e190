"""What does the model say of fixed training rows, in eval mode and without augmentation?

The NLL of the training steps is measured with dropout, augmentation, batch statistics and weights that change from one
batch to the next. Only `forward` on the same rows, as validation does it, tells overfitting from these. The user's step
is never called; modes, buffers and random states are put back, and nothing is logged.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler, default_collate

from lightning_lossacc.capture import Captured, User, from_pair
from lightning_lossacc.probe import Probe
from lightning_lossacc.sampling import Sampling
from lightning_lossacc.stages import StageState
from lightning_lossacc.sums import Layout

STAGE = "train_probe"
LABELS = ("labels", "label", "targets", "target", "y")
BATCH_SIZE = 64
# Their parameters are whole only inside of a forward that the strategy itself starts.
SHARDED = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")


def is_sharded(trainer: Trainer) -> bool:
    """Whether the strategy shares parameters out over processes."""
    return type(trainer.strategy).__name__ in SHARDED


class TrainProbe:
    """A fixed set of training rows, chosen by a hash of their position, read in order and never through a sampler.

    Every rank reads and evaluates all of them on its own replica; rank zero's numbers are used on all.

    Args:
        data: a data set with a length, or a loader of one, for its data set, its batch size and how it collates.
        limit: largest number of rows.
        user: `(outputs, batch) -> (logits, target)` where neither tells them, with what `forward(batch)` returned.

    Attributes:
        notes: what is to be said once.
        failure: why it is off; None while it works.
        random_rows: share in [0, 1] of the first batch's rows that got other logits when asked again in eval mode, by
            1 % of the largest and more; None until it was asked.

    Raises:
        TypeError: if `data` has no length or cannot be indexed.
        ValueError: if it is empty.
    """

    def __init__(self, data: DataLoader[Any] | Dataset[Any], limit: int = 8192, user: User | None = None) -> None:
        is_loader = isinstance(data, DataLoader)
        self._dataset: Any = data.dataset if is_loader else data
        has_parts = hasattr(self._dataset, "__len__") and hasattr(self._dataset, "__getitem__")
        if isinstance(self._dataset, IterableDataset) or not has_parts:
            raise TypeError(
                "Expected `train_probe` to be a Dataset with a length, or a DataLoader of one, but got "
                f"{type(data).__name__}{f' of {type(self._dataset).__name__}' if is_loader else ''}; rows are read by "
                "their number."
            )
        if len(self._dataset) == 0:
            raise ValueError("Expected `train_probe` to hold at least one row, but got an empty data set.")
        self._collate = data.collate_fn if is_loader and data.batch_size is not None else default_collate
        self._batch_size = (data.batch_size if is_loader else None) or BATCH_SIZE
        self._user = user
        self.notes: list[str] = []
        self.failure: str | None = None
        self.random_rows: float | None = None
        self._is_compared = False
        num_items = len(self._dataset)
        self.sampling = Sampling(num_items, num_items, self._batch_size, known=True, reason="")
        # The rows that the state's own probe will choose.
        self.positions = Probe(num_items, Layout(num_classes=2, temperatures=()), limit).positions
        ordered = is_loader and type(data.sampler) is SequentialSampler and type(data.batch_sampler) is BatchSampler
        if is_loader and not ordered:
            self.notes.append(
                f"lossacc never draws from the {type(data.sampler).__name__} of `train_probe`, which would change the "
                "training; rows of its data set are read in order."
            )

    def evaluate(self, trainer: Trainer, module: LightningModule, state: StageState, ignore_index: int) -> None:
        """Fills the state; a failure is remembered in it and in `failure`, and never raised."""
        if self.failure is None and is_sharded(trainer):
            self.failure = f"{type(trainer.strategy).__name__} shares parameters out over processes."
        if self.failure is None:
            try:
                with _undisturbed(module, trainer.strategy.root_device):
                    self._evaluate(trainer, module, state, ignore_index)
                self.failure = state.failure
            except Exception as error:
                self.failure = str(error) if isinstance(error, _Unreadable) else f"{type(error).__name__}: {error}"
        if self.failure is not None:
            state.fail(self.failure)

    def _evaluate(self, trainer: Trainer, module: LightningModule, state: StageState, ignore_index: int) -> None:
        device, precision = trainer.strategy.root_device, trainer.precision_plugin
        for position in self.positions.split(self._batch_size):
            batch = self._batch(position)
            batch = precision.convert_input(move_data_to_device(batch, device))
            with torch.no_grad(), precision.val_step_context():
                captured = self._captured(module, batch, ignore_index)
                if self.random_rows is None:
                    self.random_rows = _differing(captured, self._captured(module, batch, ignore_index))
            state.begin_batch()
            state.add(captured, position.to(device))
            state.end_batch()
        state.flush()

    def _batch(self, position: Tensor) -> Any:
        index = position.tolist()
        batch = self._collate(self._read(index))
        if not self._is_compared:
            self._is_compared = True
            if not _equal(batch, self._collate(self._read(index))):
                self.notes.append(
                    "lossacc: `train_probe` gives other inputs each time; give a data set without augmentation."
                )
        return batch

    def _read(self, index: list[int]) -> list[Any]:
        read = getattr(self._dataset, "__getitems__", None)
        return read(index) if callable(read) else [self._dataset[place] for place in index]

    def _captured(self, module: LightningModule, batch: Any, ignore_index: int) -> Captured:
        label = next((key for key in LABELS if isinstance(batch, Mapping) and key in batch), None)
        target: Any = None
        if label is not None:
            target = batch[label]
            outputs = module(**{key: value for key, value in batch.items() if key != label})
        elif isinstance(batch, tuple | list) and len(batch) == 2:
            inputs, target = batch
            outputs = module(inputs)
        elif self._user is not None:
            outputs = module(batch)
        elif isinstance(batch, tuple | list) and len(batch) > 2 and _takes(module, len(batch) - 1):
            *several, target = batch
            outputs = module(*several)
        else:
            parts = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
            raise _Unreadable(
                f"a batch is a {type(batch).__name__}{parts}; expected (inputs, target), (inputs, ..., target) with a "
                f"`forward` of as many inputs, a dict with one of {', '.join(LABELS)}, or `capture=`"
            )
        logits = _logits(outputs)
        if self._user is not None and (logits is None or target is None):
            pair = self._user(outputs, batch)
            logits, target = (None, None) if pair is None else pair
        found = from_pair(logits, target, "forward", ignore_index)
        if isinstance(found, str):
            raise _Unreadable(f"`forward` gave {found}")
        return found


class _Unreadable(Exception):
    """Words that need no name of an exception."""


def _differing(first: Captured, second: Captured) -> float:
    """Share of rows whose logits differ by 1 % of the largest and more; rounding is far less, dropout far more."""
    one, two = first.logits.float(), second.logits.float()
    if one.shape != two.shape:
        return 1.0
    if not one.numel():
        return 0.0
    far = (one - two).abs() > 1e-2 * one.abs().nan_to_num(0.0, 0.0, 0.0).max()
    return far.flatten(1).any(1).float().mean().item() if far.ndim > 1 else far.float().mean().item()


def _takes(module: LightningModule, count: int) -> bool:
    """Whether `forward` names so many inputs; `*args` names none."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return False
    named = [item for item in parameters if item.kind in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD)]
    return sum(item.default is item.empty for item in named) <= count <= len(named)


def _logits(outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return outputs
    return outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)


def _equal(first: Any, second: Any) -> bool:
    leaves = zip(tree_leaves(first), tree_leaves(second), strict=False)
    return all(torch.equal(one, two) for one, two in leaves if isinstance(one, Tensor) and isinstance(two, Tensor))


@contextmanager
def _undisturbed(module: LightningModule, device: torch.device) -> Iterator[None]:
    """Eval mode, fixed random numbers and no logging; afterwards everything is as it was, buffers too."""
    modes = [(child, child.training) for child in module.modules()]
    buffers = [
        (child._buffers, name, buffer, buffer.clone())
        for child in module.modules()
        for name, buffer in child._buffers.items()
        if buffer is not None
    ]
    own = vars(module)
    had_log, log = "log" in own, own.get("log")
    states = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        # A data set that draws random numbers after all must draw the same ones each time.
        random.seed(0)
        numpy.random.seed(0)
        torch.random.default_generator.manual_seed(0)
        for child, _ in modes:
            child.training = False
        own["log"] = lambda *args, **options: None
        yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_device is not None:
            torch.cuda.set_rng_state(on_device, device)
        if had_log:
            own["log"] = log
        else:
            del own["log"]
        for child, mode in modes:
            child.training = mode
        with torch.no_grad():
            for owner, name, buffer, value in buffers:
                owner[name] = buffer
                # Written to only where it changed, since a write counts as a new version of the buffer.
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
