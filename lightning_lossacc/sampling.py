"""Which items of a data set this rank sees, in which order, and how many batches a whole evaluation has.

Read from data loaders and samplers, which are never iterated: that would draw from the random number generator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler, SequentialSampler

# The second is Lightning's, around a sampler of the user; both repeat items at each rank's end.
_PADDING_SAMPLERS = ("DistributedSampler", "DistributedSamplerWrapper")


@dataclass(frozen=True, slots=True)
class Sampling:
    """Which items of a data set this rank sees, as far as the sampler tells without being iterated.

    Attributes:
        num_items: size of the data set; None if unknown.
        owned: number of this rank's items that are not the padding of a `DistributedSampler`, which repeats items so
            that every rank has as many; the padding sits at each rank's end. None if unknown.
        batch_size: items in a full batch; None if unknown.
        first, stride: position of this rank's k-th item is first + stride * k.
        known: whether the order is known, so that items can be paired across evaluations.
        reason: why it is not, in words.
    """

    num_items: int | None = None
    owned: int | None = None
    batch_size: int | None = None
    first: int = 0
    stride: int = 1
    known: bool = False
    reason: str = "the data loader is unknown"

    @classmethod
    def of(cls, loader: Any, num_processes: int = 1) -> Sampling:
        """Reads a data loader of one of several processes.

        Its sampler is never iterated, which would draw from the random number generator. Classes are compared exactly:
        a subclass may order items as it likes.
        """
        if not isinstance(loader, DataLoader):
            return cls(reason=f"{type(loader).__name__} is no torch DataLoader")
        sampler, batches = loader.sampler, loader.batch_sampler
        if type(batches) is not BatchSampler or not hasattr(loader.dataset, "__len__"):
            return cls(reason="the data set is iterable or the batch sampler is the user's own")
        size = len(loader.dataset)
        if type(sampler) is SequentialSampler:
            reason = "each process reads a whole data set of its own" if num_processes > 1 else ""
            return cls(size, size, batches.batch_size, known=not reason, reason=reason)
        kind = type(sampler).__name__
        if isinstance(sampler, DistributedSampler) and not sampler.drop_last and kind in _PADDING_SAMPLERS:
            rank, world, size = sampler.rank, sampler.num_replicas, len(sampler.dataset)
            owned = max(0, math.ceil((size - rank) / world))
            known = kind == "DistributedSampler" and not sampler.shuffle
            reason = "" if known else "the distributed sampler shuffles, or wraps the user's own"
            return cls(size, owned, batches.batch_size, rank, world, known, reason)
        if type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == size:
            return cls(size, size, batches.batch_size, reason="the sampler shuffles")
        return cls(reason=f"the order of {kind} is unknown")


def _combined(trainer: Any, stage: str) -> Any:
    """Lightning's `CombinedLoader` of an evaluation; `trainer.val_dataloaders` names those of an earlier fit first."""
    if stage == "test":
        loop = trainer.test_loop
    else:
        loop = trainer.fit_loop.epoch_loop.val_loop if trainer.state.fn == "fit" else trainer.validate_loop
    return loop._combined_loader


def samplings(trainer: Any, stage: str) -> list[Sampling]:
    """How the items of each loader of an evaluation are ordered."""
    combined = _combined(trainer, stage)
    if len(combined.flattened) > 1 and combined._mode != "sequential":
        return [Sampling(reason=f"batches come from several loaders ({combined._mode})")]
    return [Sampling.of(loader, trainer.world_size) for loader in combined.flattened]


def expected_batches(trainer: Any, stage: str) -> list[int | float]:
    """Batches of a whole evaluation, for each loader that has batches of its own."""
    if stage == "train":
        return [trainer.num_training_batches]
    batches = trainer.num_test_batches if stage == "test" else trainer.num_val_batches
    mode = _combined(trainer, stage)._mode
    if len(batches) > 1 and mode != "sequential":
        return [min(batches) if mode == "min_size" else max(batches)]
    return list(batches)


def train_sampling(trainer: Any) -> Sampling:
    """How many items a training batch has, so that several rows of one item are told from several items.

    Items that a `DistributedSampler` repeats are trained on, and counted.
    """
    sampling = Sampling.of(trainer.train_dataloader, trainer.world_size)
    if sampling.num_items is None or sampling.owned is None:
        return Sampling()
    drawn = math.ceil(sampling.num_items / sampling.stride)
    return replace(sampling, owned=drawn, known=False, reason="training batches are not paired")
