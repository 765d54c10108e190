"""Remedies for classes of unequal size, other class shares, and labels under other numbers."""

from __future__ import annotations

import math

from lightning_lossacc.advice.measured import CONFIRM, SHOWN_CLASSES, Measured, listed, number, percent
from lightning_lossacc.floors import label_entropy
from lightning_lossacc.renaming import one_to_one

AS_WRONG = 0.25  # of what the renaming gains: training rows are so near to these


def class_weights(measured: Measured) -> str:
    """Weights N / (C n_c), by which every class has the same part in the loss (King and Zeng 2001).

    Classes without a row get weight 1, which changes nothing.
    """
    counts, whose = measured.counts
    if "class weights" in measured.loss_terms:
        return _other_weights(measured)
    formula = "weight = counts.sum() / (len(counts) * counts)"
    if not 2 <= len(counts) <= SHOWN_CLASSES:
        rows = f" ({int(min(counts))} … {int(max(counts))} rows a class in {whose})" if counts else ""
        return f"class weights: `{formula}; nn.CrossEntropyLoss(weight=weight)`, counts = rows of each class{rows}"
    weights = balanced_weights(counts)
    binary = ""
    if len(counts) == 2 and counts[1]:
        binary = f", or nn.BCEWithLogitsLoss(pos_weight=torch.tensor({number(counts[0] / counts[1])}))"
    return (
        f"class weights: nn.CrossEntropyLoss(weight=torch.tensor({listed(weights)})){binary}, from the rows of "
        f"{whose}; balanced accuracy rises, plain accuracy and NLL pay{_level(measured)}"
    )


def _other_weights(measured: Measured) -> str:
    """What to do about weights in use: the class that gets too many answers tells on which side they are wrong."""
    counts, whose = measured.counts
    table = measured.current.arrays.get("classes", {})
    predicted = table.get("predicted", [])
    if len(predicted) == len(counts) == len(table.get("rows", [])) >= 2:
        over = max(range(len(counts)), key=lambda place: predicted[place] - table["rows"][place])
        if counts[over] == max(counts) and predicted[over] > table["rows"][over]:
            usual = f", torch.tensor({listed(balanced_weights(counts))})" if len(counts) <= SHOWN_CLASSES else ""
            binary = ""
            if measured.is_single_logit and counts[1]:
                usual, binary = "", f", pos_weight=torch.tensor({number(counts[0] / counts[1])})"
            return (
                f"your loss has class weights already, and the most frequent class ({over}) still gets too many "
                f"answers: a weight must grow as its class gets rarer; balanced are N / (C n_c){usual}{binary} from "
                f"the rows of {whose}{_level(measured)}"
            )
    root = "pos_weight.sqrt()" if measured.is_single_logit else "weight.sqrt()"
    return (
        f"your loss has class weights already: take their square root, `{root}`, or drop them and adjust the "
        f"logits instead{_level(measured)}"
    )


def balanced_weights(counts: list[float]) -> list[float]:
    """N / (C n_c), the weights of scikit-learn's "balanced"; 1 for a class without rows."""
    total, classes = sum(counts), sum(rows > 0 for rows in counts)
    return [total / (classes * rows) if rows else 1.0 for rows in counts]


def _level(measured: Measured) -> str:
    known = {
        "balanced": measured.value("balanced_accuracy"),
        "plain": measured.value("accuracy"),
        "largest class": measured.value("majority_rate"),
    }
    shown = ", ".join(f"{name} {percent(value)}" for name, value in known.items() if math.isfinite(value))
    return f" (now {shown})" if shown else ""


def resampling(measured: Measured) -> str:
    """Over-sampling of rare classes: in expectation the same loss as class weights."""
    counts, whose = measured.counts
    shown = (
        f"torch.tensor({[int(rows) for rows in counts]})"
        if 2 <= len(counts) <= SHOWN_CLASSES
        else "torch.bincount(target)"
    )
    rows = f" ({whose})" if shown != "torch.bincount(target)" else ""
    return (
        f"or resample instead: `sampler = WeightedRandomSampler((1 / {shown})[target], len(target)); "
        f"DataLoader(train_set, batch_size, sampler=sampler)`{rows}; resampling and class weights are the same loss in "
        "expectation, so take one"
    )


def logit_adjustment(measured: Measured) -> str:
    """Subtracts the log class shares after training (Menon et al. 2021): optimal for balanced accuracy.

    Needs no training, and no row of the validation set is used to fit it.
    """
    counts, whose = measured.counts
    if 2 <= len(counts) <= SHOWN_CLASSES and min(counts) > 0:
        shift = f"torch.tensor({listed([math.log(rows / sum(counts)) for rows in counts])})"
        return (
            f"without training: (logits - {shift}).argmax(1), the log shares of the classes in {whose}, aims at "
            f"balanced accuracy{_level(measured)}; {CONFIRM}"
        )
    return (
        "without training: (logits - (counts / counts.sum()).log()).argmax(1), counts = training rows of each class, "
        f"aims at balanced accuracy{_level(measured)}; {CONFIRM}"
    )


def prior_correction(measured: Measured) -> str:
    """Adds the log ratio of class shares here and in training (Saerens et al. 2002), with its gain on the probe."""
    seen, here = measured.current.arrays.get("train_classes") or [], measured.val_counts
    gain = _bias_gain(measured)
    unseen = [place for place, (rows, before) in enumerate(zip(here, seen, strict=False)) if rows > 0 == before]
    if len(seen) == len(here) and unseen:
        names = ", ".join(map(str, unseen[:5]))
        return (
            f"class{'es' if len(unseen) > 1 else ''} {names}{' …' if len(unseen) > 5 else ''} never occurred in "
            "training, so that no shift of the logits can name it: train with such rows (does a sampler leave them "
            "out?), or leave them out here"
        )
    if len(seen) == len(here) and 2 <= len(here) <= SHOWN_CLASSES and min(*seen, *here) > 0:
        shift = listed(
            [math.log(rows / sum(here)) - math.log(before / sum(seen)) for rows, before in zip(here, seen, strict=True)]
        )
        return f"logits + torch.tensor({shift}), the log ratio of class shares here and in training{gain}"
    return f"logits + (shares_here / shares_in_training).log(), the log ratio of class shares{gain}"


def _bias_gain(measured: Measured) -> str:
    fits = measured.fits
    saved = fits.get("nll", math.nan) - fits.get("bias", math.nan)
    if not saved > 0:
        return ""
    against = fits["nll"] - fits.get("temperature", math.nan)
    beside = f" where one temperature saves {max(against, 0.0):.4f}" if math.isfinite(against) else ""
    return (
        f"; a fitted bias saves {saved:.4f} nats{beside} on {int(fits.get('items', 0))} items (cross-fitted; {CONFIRM})"
    )


def bias_correction(measured: Measured) -> str | None:
    """One bias a class, fitted on validation logits, only where it saves something."""
    gain = _bias_gain(measured)
    fitted = measured.correction or "logits * scale + bias"
    return f"{fitted}, one scale and a bias a class fitted on validation logits{gain}" if gain else None


def stratify(measured: Measured) -> str:
    """The same class shares on both sides."""
    return (
        "split with the same class shares on both sides: sklearn.model_selection.train_test_split(x, y, stratify=y), "
        "unless the shares in use differ from those of training for good"
    )


def output_bias(measured: Measured) -> str:
    """Output bias at the log class shares, so that training starts at the label entropy (Karpathy 2019)."""
    counts, whose = measured.counts
    if len(counts) < 2 or min(counts) <= 0:
        return (
            "initial bias of the last layer: `layer.bias.data = (counts / counts.sum()).log()`, counts = rows a class"
        )
    shares, entropy = [rows / sum(counts) for rows in counts], label_entropy(counts)
    saved = math.log(len(shares)) - entropy
    value = (
        f"torch.tensor({listed([math.log(share) for share in shares])})"
        if len(shares) <= SHOWN_CLASSES
        else "(counts / counts.sum()).log()"
    )
    return (
        f"initial bias of the last layer: `layer.bias.data = {value}`, the log shares in {whose}: training then starts "
        f"at NLL {entropy:.4f}, {saved:.4f} nats below equal shares"
    )


def balanced_monitor(measured: Measured) -> str:
    """A measure that no majority can flatter."""
    return (
        f"judge by balanced accuracy{_level(measured)}: "
        'ModelCheckpoint(monitor="lossacc/val/balanced_accuracy", mode="max")'
    )


def weakest_class(measured: Measured) -> str | None:
    """The class that pays."""
    table = measured.current.arrays.get("classes", {})
    recalls = [
        (right / rows, int(name), int(rows))
        for name, rows, right in zip(
            table.get("class", ()), table.get("rows", ()), table.get("correct", ()), strict=True
        )
        if rows > 0 and name >= 0
    ]
    if not recalls:
        return None
    recall, name, rows = min(recalls)
    return f"look at class {name} first: {percent(recall)} of its {rows} rows are right, the lowest of all classes"


def remap_labels(measured: Measured) -> str:
    """Which class is which, from the confusion matrix, with the accuracy under the best one-to-one mapping found."""
    found = label_mapping(measured.current.arrays.get("confusion") or [])
    if found is None:
        return "print `train_set.class_to_idx` and `val_set.class_to_idx`: the same class must have the same number"
    mapping, accuracy = found
    moved = [(target, predicted) for target, predicted in enumerate(mapping) if target != predicted]
    shown = ", ".join(f"{target} → {predicted}" for target, predicted in moved[:SHOWN_CLASSES])
    more = f" and {len(moved) - SHOWN_CLASSES} more" if len(moved) > SHOWN_CLASSES else ""
    gain = accuracy - measured.value("accuracy")
    if abs(measured.context("train_accuracy") - measured.value("accuracy")) <= AS_WRONG * gain:
        return (
            f"renumber what training learns from, a teacher's classes or pseudo-labels: {shown}{more} gives accuracy "
            f"{percent(accuracy)} instead of {percent(measured.value('accuracy'))} here, and training rows are "
            f"{percent(measured.context('train_accuracy'))} accurate, as wrong as these"
        )
    return (
        f"renumber the labels of this set: {shown}{more} gives accuracy {percent(accuracy)} instead of "
        f"{percent(measured.value('accuracy'))}; compare `train_set.class_to_idx` with `val_set.class_to_idx`"
    )


def label_mapping(confusion: list[list[float]]) -> tuple[list[int], float] | None:
    """One-to-one mapping of target to predicted class, largest cells first, and the accuracy under it.

    Args:
        confusion: (C, C) rows by target and predicted class.

    Returns:
        None without rows, or if no class would get another number.
    """
    total, ordered = sum(map(sum, confusion)), one_to_one(confusion)
    if not total or ordered == list(range(len(confusion))):
        return None
    return ordered, sum(confusion[target][predicted] for target, predicted in enumerate(ordered)) / total
