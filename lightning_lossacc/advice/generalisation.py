"""Remedies for answers that get worse on new data: the right checkpoint, regularisation, and better data."""

from __future__ import annotations

import math

from lightning_lossacc.advice.measured import CONFIRM, Measured, described, number, percent, places
from lightning_lossacc.history import Record

MOSTLY_FROZEN = 0.5  # of the weights


def refinement_checkpoint(measured: Measured) -> str:
    """The checkpoint with the lowest loss after one temperature, against the one with the lowest loss.

    Stopping at the loss minimum is a compromise of calibration and refinement; the first is repaired afterwards by one
    temperature (Berta et al. 2025).
    """
    best, by_loss = measured.best_refinement, measured.loss_best
    monitored = 'ModelCheckpoint(monitor="lossacc/val/refinement_nll")'
    if not math.isfinite(best.values.get("refinement_nll", math.nan)):
        return f"keep the checkpoint with the lowest loss after one temperature, which was not logged: {monitored}"
    return (
        f"keep the checkpoint with the lowest loss after one temperature ({described(best)}"
        f"{'; ' + _against(best, by_loss) if by_loss.global_step != best.global_step else ''}; {CONFIRM}): {monitored}"
    )


def _against(best: Record, by_loss: Record) -> str:
    saved = by_loss.values.get("refinement_nll", math.nan) - best.values.get("refinement_nll", math.nan)
    gained = best.values.get("accuracy", math.nan) - by_loss.values.get("accuracy", math.nan)
    return (
        f"the loss minimum is {described(by_loss)}, so that this saves {saved:.4f} nats after one temperature and "
        f"brings {100 * gained:+.1f} pp"
    )


def weight_decay(measured: Measured) -> str:
    """L2 regularisation, decoupled in AdamW (Loshchilov and Hutter 2019)."""
    decay = measured.context("weight_decay")
    proposed = 3 * decay if decay > 0 else 0.05
    now = f"weight decay (L2) {number(decay)} → {number(proposed)}" if math.isfinite(decay) else "weight decay (L2)"
    return f"{now}: torch.optim.AdamW(self.parameters(), ..., weight_decay={number(proposed)})"


def l1_penalty(measured: Measured) -> str:
    """L1 regularisation (Tibshirani 1996) of weights, not of biases."""
    norm = measured.context("weight_norm")
    beside = f" (|w| is {number(norm)} now)" if math.isfinite(norm) else ""
    return (
        "L1 regularisation in training_step: `loss = loss + 1e-5 * sum(p.abs().sum() for p in self.parameters() "
        f"if p.ndim > 1)`{beside}; useless weights become zero"
    )


def dropout(measured: Measured) -> str | None:
    """Dropout (Srivastava et al. 2014) after hidden activations."""
    now = measured.context("dropout")
    if now >= 0.5:
        return None
    if now > 0:
        return f"dropout {number(now)} → {number(min(0.5, now + 0.2))} after each hidden activation"
    return "dropout: nn.Dropout(0.3) after each hidden activation"


def augmentation(measured: Measured) -> str:
    """Variants of the training rows (Shorten and Khoshgoftaar 2019)."""
    return (
        "augmentation of training rows only: RandomCrop(32, padding=4) and RandomHorizontalFlip() of "
        "torchvision.transforms.v2 for images, `x = x + 0.1 * torch.randn_like(x)` for standardised columns"
    )


def more_data(measured: Measured) -> str | None:
    """More training rows, with how many there were."""
    rows = sum(measured.counts[0]) if measured.current.arrays.get("train_classes") else math.nan
    gap = measured.value("nll") - measured.context("train_nll")
    if not gap > 0:
        return None
    counted = f" ({int(rows)} were seen so far, repeats included)" if math.isfinite(rows) else ""
    return (
        f"more training rows{counted}: the NLL is {measured.context('train_nll'):.4f} in training and "
        f"{measured.value('nll'):.4f} here, and that gap is what more rows close"
    )


def early_stopping(measured: Measured) -> str:
    """Stop by the loss after one temperature."""
    return 'EarlyStopping(monitor="lossacc/val/refinement_nll", patience=10) ends the run that only gets worse'


def relabel(measured: Measured) -> str:
    """Look at the rows whose labels speak against the model's memory (Pleiss et al. 2020; Toneva et al. 2019)."""
    if measured.suspects:
        return (
            f"look at the labels of training items {places(measured.suspects)} ({len(measured.suspects)} in all): they "
            "were learnt last and against their own class"
        )
    return "look at the labels of the training rows with the lowest mean margin; `train_probe=` lists them"


def robust_loss(measured: Measured) -> str:
    """A loss that one wrong label cannot dominate (Zhang and Sabuncu 2018)."""
    return (
        "a bounded loss: `p = logits.softmax(1).gather(1, y[:, None]); loss = ((1 - p ** 0.7) / 0.7).mean()` "
        "(generalised cross-entropy), so that no wrong label costs more than 1.43"
    )


def worst_items(measured: Measured) -> str:
    """The few items that carry the rise."""
    paired = measured.current.paired.get("nll", {})
    listed = places(measured.worst) if measured.worst else "in `paired` of history.jsonl"
    change, without = paired.get("nll_change", math.nan), paired.get("nll_change_winsorised", math.nan)
    beside = f" (the NLL changed by {change:+.4f}, and by {without:+.4f} with the tails cut)"
    tail = measured.current.arrays.get("tail", {})
    many = f", about {tail['share'] * measured.current.num_items:.0f} in all" if tail.get("share") else ""
    return f"look at items {listed}{many}: their label, or what they lack{beside if math.isfinite(without) else ''}"


def drop_duplicates(measured: Measured) -> str:
    """Rows that stand in training and validation alike."""
    share = measured.current.arrays.get("duplicates", math.nan)
    counted = f"at least {percent(share)} of these items are training items: " if share > 0 else ""
    return (
        f"{counted}drop the copies: `train = {{hash(x.numpy().tobytes()) for x, _ in train_set}}; "
        "keep = [i for i, (x, _) in enumerate(val_set) if hash(x.numpy().tobytes()) not in train]`, then "
        "Subset(val_set, keep)"
    )


def split_by_group(measured: Measured) -> str:
    """Rows of one patient, speaker or video on one side only."""
    return (
        "split by group, so that rows of one person or recording stand on one side: "
        "sklearn.model_selection.GroupShuffleSplit(test_size=0.2).split(x, y, groups)"
    )


def unfreeze(measured: Measured) -> str | None:
    """Weights that were frozen and may know nothing of this task; None where few are."""
    frozen = measured.context("frozen_share")
    if not frozen >= MOSTLY_FROZEN:
        return None
    return (
        f"let more of the network learn: {100 * frozen:.3g} % of its weights are frozen or in no optimizer; "
        "`for weight in backbone.parameters(): weight.requires_grad_(True)`, all of them in the optimizer, those of "
        "a pre-trained part with a tenth of the rate, and make sure that its values were loaded"
    )


def more_capacity(measured: Measured) -> str:
    """A larger network, where training stands on the level of validation; or what of it does not learn."""
    train, here = measured.context("train_nll"), measured.value("nll")
    beside = f": training stands at NLL {train:.4f}, validation at {here:.4f}" if math.isfinite(train) else ""
    return unfreeze(measured) or (
        f"more capacity (twice the width, or one more layer){beside}; "
        "if a wider network stops on the same level, the inputs lack it"
    )


def better_features(measured: Measured) -> str:
    """Inputs that tell the classes apart."""
    level = measured.value("accuracy")
    return (
        "more informative inputs: k-nearest neighbours on them, sklearn.neighbors.KNeighborsClassifier(15), tell in a "
        f"minute whether {percent(level) if math.isfinite(level) else 'this accuracy'} is their ceiling"
    )


def confirm_on_test(measured: Measured) -> str:
    """Where no cause is shown."""
    best = measured.best_refinement
    return "compare the checkpoints of the epochs on a test set: " + " and ".join(
        dict.fromkeys((described(best), described(measured.current)))
    )
