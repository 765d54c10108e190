"""The user's code: an ordinary LightningModule and data loaders that know no monitor."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

from planted.data import Pool, Source
from planted.networks import LogitScale
from planted.plan import Plan


class Rows(Dataset):
    """Tensors in memory, read a batch at a time; `augment` adds new noise at each reading."""

    def __init__(self, inputs: Tensor, target: Tensor, augment: float = 0.0) -> None:
        self.inputs, self.target, self.augment = inputs, target, augment

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.target[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        inputs = self.inputs[indices]
        if self.augment:
            inputs = inputs + self.augment * torch.randn_like(inputs)
        return inputs, self.target[indices]


def _same(batch: Any) -> Any:
    return batch


class Classifier(LightningModule):
    """A network trained with cross-entropy, as a user writes it, faults included."""

    def __init__(self, network: nn.Module, plan: Plan) -> None:
        super().__init__()
        self.network = network
        self.plan = plan
        self.smoothing, self.mixup = plan.smoothing, plan.mixup
        self.weights = None if plan.class_weights is None else torch.tensor(plan.class_weights)

    def log_dict(self, dictionary: Any, *arguments: Any, **options: Any) -> None:
        """Nothing: no logger listens, and Lightning takes a quarter of the time of such a small run for it."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (N, C)."""
        return self.network(inputs)

    def on_train_epoch_start(self) -> None:
        """The second phase of a training, where there is one."""
        if self.plan.later is None or self.current_epoch != self.plan.later[0]:
            return
        for name, value in self.plan.later[1].items():
            if name in ("learning_rate", "weight_decay"):
                for group in self.optimizers().param_groups:
                    group["lr" if name == "learning_rate" else name] = value
            elif name == "class_weights":
                self.weights = torch.tensor(value)
            elif name == "dropout":
                for module in self.modules():
                    if isinstance(module, nn.Dropout):
                        module.p = value
            else:
                setattr(self, name, value)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        inputs, target = batch
        if self.mixup:
            share = torch.distributions.Beta(self.mixup, self.mixup).sample()
            other = torch.randperm(len(target))
            logits = self(share * inputs + (1 - share) * inputs[other])
            soft = share * F.one_hot(target, logits.shape[1]) + (1 - share) * F.one_hot(target[other], logits.shape[1])
            loss = F.cross_entropy(logits, soft)
        else:
            logits = self(inputs) / self.plan.train_temperature
            loss = F.cross_entropy(logits, target, weight=self.weights, label_smoothing=self.smoothing)
        if self.plan.penalty:
            loss = loss + self._penalty()
        return loss

    def _penalty(self) -> Tensor:
        return 0.5 * self.plan.penalty * sum(weight.square().sum() for weight in self.network.parameters())

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Logs loss and accuracy of one batch."""
        inputs, target = batch
        logits = self(inputs)
        smoothing = self.smoothing if self.plan.logged_loss == "smoothed" else 0.0
        weights = self.weights if self.plan.logged_loss == "weighted" else None
        loss = F.cross_entropy(logits, target, weight=weights, label_smoothing=smoothing)
        if self.plan.logged_loss == "penalised":
            loss = loss + self._penalty()
        self.log("val_loss", loss, batch_size=len(target))
        self.log("val_accuracy", self._accuracy(logits, target), batch_size=len(target))

    def _accuracy(self, logits: Tensor, target: Tensor) -> Tensor:
        kind = self.plan.logged_accuracy
        if kind == "order":
            target = target.roll(1)
        elif kind == "width":
            return (logits.argmax(0)[0] == target).float().mean()
        elif kind == "denominator":
            return (logits.argmax(1) == target).sum() / VAL_BATCH
        return (logits.argmax(1) == target).float().mean()

    def configure_optimizers(self) -> Any:
        """Optimiser and schedule of the plan."""
        plan = self.plan
        scales = [module.log_scale for module in self.modules() if isinstance(module, LogitScale)]
        known = {id(scale) for scale in scales}
        groups: list[dict[str, Any]] = [{"params": [item for item in self.parameters() if id(item) not in known]}]
        if scales:
            groups.append({"params": scales, "lr": plan.scale_rate or plan.learning_rate, "weight_decay": 0.0})
        shared = {"lr": plan.learning_rate, "weight_decay": plan.weight_decay}
        if plan.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, momentum=plan.momentum, **shared)
        else:
            optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[plan.optimizer](groups, **shared)
        schedulers = torch.optim.lr_scheduler
        epochs = plan.epochs
        if plan.schedule == "constant":
            return optimizer
        if plan.schedule == "cosine":
            schedule = schedulers.CosineAnnealingLR(optimizer, epochs)
        elif plan.schedule == "step":
            schedule = schedulers.StepLR(optimizer, max(1, epochs // 3), 0.4)
        elif plan.schedule == "restarts":
            schedule = schedulers.CosineAnnealingWarmRestarts(optimizer, max(1, epochs // 4))
        else:
            steps = epochs * math.ceil(plan.rows / plan.batch)
            cycle = schedulers.OneCycleLR(optimizer, 3 * plan.learning_rate, total_steps=steps)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def wrong_labels(target: Tensor, share: float, classes: int, generator: Generator) -> Tensor:
    """A copy of target (N,) in which round(share N) labels are another class."""
    count = round(share * len(target))
    chosen = torch.randperm(len(target), generator=generator)[:count]
    noisy = target.clone()
    noisy[chosen] = (target[chosen] + torch.randint(1, classes, (count,), generator=generator)) % classes
    return noisy


def rows_of(plan: Plan, source: Source, pool: Pool, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, labels as the user has them, and labels before faults, of one pool."""
    generator = torch.Generator().manual_seed(1000 * plan.seed + ("train", "val", "fresh").index(pool))
    prior = plan.train_prior if pool == "train" else plan.val_prior
    inputs, target = source.sample(rows, generator, prior, pool)
    if plan.blur:
        blurred = torch.randperm(rows, generator=generator)[: round(plan.blur * rows)]
        target[blurred] = target[blurred[torch.randperm(len(blurred), generator=generator)]]
    labels = target
    if pool == "train":
        labels = wrong_labels(target, plan.label_noise, source.num_classes, generator)
    else:
        labels = wrong_labels(target, plan.tail, source.num_classes, generator)
        if plan.shifted:
            labels = (labels + 1) % source.num_classes
        if plan.swapped:
            labels = torch.where(labels < 2, 1 - labels, labels)
    if plan.constant_inputs:
        inputs = torch.zeros_like(inputs)
    if plan.shuffled:
        inputs = inputs[torch.randperm(rows, generator=generator)]
    return inputs, labels, target


def loaders(plan: Plan, source: Source) -> tuple[DataLoader, DataLoader, DataLoader]:
    """Training, validation and train-probe loaders."""
    inputs, labels, _ = rows_of(plan, source, "train", plan.rows)
    val_inputs, val_labels, _ = rows_of(plan, source, "val", plan.val_rows)
    leaked = min(round(plan.leak * plan.val_rows), plan.rows)
    if leaked:
        inputs[:leaked], labels[:leaked] = val_inputs[:leaked], val_labels[:leaked]
    rows = Rows(inputs, labels, plan.augment)
    if plan.balanced:
        weights = (1 / labels.bincount(minlength=source.num_classes).clamp(min=1))[labels]
        train = DataLoader(rows, plan.batch, sampler=WeightedRandomSampler(weights, len(rows)), collate_fn=_same)
    else:
        train = DataLoader(rows, plan.batch, shuffle=True, collate_fn=_same)
    val = DataLoader(Rows(val_inputs, val_labels), VAL_BATCH, collate_fn=_same)
    known = Rows(inputs[:PROBE_ROWS], labels[:PROBE_ROWS])
    return train, val, DataLoader(known, VAL_BATCH, collate_fn=_same)


PROBE_ROWS = 300
VAL_BATCH = 448
