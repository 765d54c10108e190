"""Causes in the labels and their shares: what the accuracy is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lightning_lossacc.attribution import accuracy_spread, interval
from lightning_lossacc.diagnosis.event import Cause
from lightning_lossacc.diagnosis.evidence import Evidence, accuracy_of
from lightning_lossacc.history import Record
from lightning_lossacc.renaming import one_to_one

COLLAPSED = 0.99  # share of predictions in one class
# Fewer items than this can be too few; more are never called too few.
SMALL_SET = 200
TINY_SET = 50  # so few are always too few
BALANCED_RISE, PAYS_TOO = 0.05, 0.2
KNOWN_RECALL = 0.03  # by which the mean recall is above 1 / C
NAMED_APART, MOST_MOVED = 0.8, 0.75
# Without a confusion table: predicted in so large a part of its rows, right in less than this share of what chance
# brings, which is so many rows at least.
BELOW_PREDICTED, BELOW_SHARE, BELOW_ROWS, TRAINING_AHEAD = 0.3, 0.2, 30, 0.05
RENAMED = 2.5  # times as many rows under the other name; 2.1 where a long step shook a network
# By which training rows beat the share of their largest class when they were seen for the first time, at least and in
# standard errors of as many independent rows.
FIRST_SIGHT, FIRST_SCORE = 0.05, 5.0


def majority_collapse(evidence: Evidence) -> Cause | None:
    """Every row is given to one class, so that accuracy is the share of that class.

    What it finds: at least 99 % of the predictions are one class, in the last five evaluations.
    Why it matters: accuracy says how frequent that class is and nothing about the model.
    Evidence it needs: counts of predicted classes.
    What to do: class weights or resampling; start the last bias at the log shares of the classes; check the learning
        rate and dead units.
    When it is wrong: at the very start of training it is normal; it is a warning when it stays.
    Reference: He and Garcia 2009; Johnson and Khoshgoftaar 2019.
    """
    predicted = evidence.current.arrays.get("classes", {}).get("predicted", [])
    if evidence.current.arrays.get("looks_like") == "probabilities":
        # A sigmoid applied twice is above one half for every row.
        return None
    share = evidence.value("predicted_majority_rate")
    last = [record.values.get("predicted_majority_rate", 0.0) for record in evidence.series[-5:]]
    if not predicted or not min([share, *last]) >= COLLAPSED:
        return None
    place = max(range(len(predicted)), key=predicted.__getitem__)
    name = evidence.current.arrays["classes"]["class"][place]
    rows = evidence.class_rows
    return Cause(
        "majority-collapse",
        share=math.nan,
        evidence=(
            f"{100 * share:.1f} % of the predictions are class {name}, which {100 * rows[place] / sum(rows):.1f} % of "
            "the rows are",
            f"balanced accuracy {100 * evidence.value('balanced_accuracy'):.1f} %",
        ),
    )


def class_imbalance(evidence: Evidence) -> Cause | None:
    """Frequent classes carry the accuracy; rare ones are mostly missed.

    What it finds: the most frequent class is at least 5 times as frequent as the rarest, fewer than half of the rows of
        such rare classes are found, and balanced accuracy is at least 15 pp below accuracy.
    Why it matters: accuracy hides what happens to the rare classes, which are often the ones that matter.
    Evidence it needs: the class table.
    What to do: class weights, resampling, logit adjustment; watch balanced accuracy.
    When it is wrong: if the rare classes cannot be told from the frequent ones by any model.
    Reference: He and Garcia 2009; Menon et al. 2021.
    """
    table = evidence.current.arrays.get("classes", {})
    occurring = [place for place, rows in enumerate(table.get("rows", [])) if rows > 0 and table["class"][place] >= 0]
    if len(occurring) < 2:
        return None
    rows = [table["rows"][place] for place in occurring]
    ratio = max(rows) / min(rows)
    rarest = min(occurring, key=table["rows"].__getitem__)
    rare = [place for place in occurring if 5 * table["rows"][place] <= max(rows)] or [rarest]
    recall = sum(table["correct"][place] for place in rare) / sum(table["rows"][place] for place in rare)
    gap = evidence.value("accuracy") - evidence.value("balanced_accuracy")
    if not (ratio >= 5 and recall < 0.5 and gap >= 0.15):
        return None
    return Cause(
        "class-imbalance",
        share=math.nan,
        evidence=(
            f"balanced accuracy {100 * evidence.value('balanced_accuracy'):.1f} % under accuracy "
            f"{100 * evidence.value('accuracy'):.1f} %",
            f"class {table['class'][rarest]} has {int(table['rows'][rarest])} rows, 1 to {ratio:.0f} of the most "
            f"frequent; of all rare classes {100 * recall:.0f} % are found",
        ),
    )


def class_trade_off(evidence: Evidence) -> Cause | None:
    """Rows moved from one class to another: one class gains accuracy, another loses it.

    What it finds: the counts of predicted classes moved by at least 2 pp, the class whose accuracy fell most lost
        rows to classes that are predicted more often now, and of the one that gained most more rows are found; where
        the loss rose, balanced accuracy rose by 5 pp and more while accuracy fell, and the loss of training rows rose
        by a fifth as much at least.
    Why it matters: overall accuracy fell although the model learned; a bias a class decides where the boundary lies.
    Evidence it needs: the class table.
    What to do: logit adjustment or thresholds; balanced accuracy if classes matter alike.
    When it is wrong: if all classes lose alike, it is not a trade-off.
    Reference: Menon et al. 2021.
    """
    before, after = (record.arrays.get("classes", {}) for record in (evidence.reference, evidence.current))
    if not before or not after or before["class"] != after["class"] or evidence.is_static:
        return None
    total = sum(after["rows"])
    moved = [(new - old) / total for old, new in zip(before["predicted"], after["predicted"], strict=True)]
    change = [(new - old) / total for old, new in zip(before["correct"], after["correct"], strict=True)]
    distance = sum(abs(value) for value in moved) / 2
    gained = max(range(len(moved)), key=moved.__getitem__)
    lost = min(range(len(change)), key=change.__getitem__)
    if not (distance >= 0.02 and change[lost] < 0 < change[gained] and moved[lost] < 0):
        return None
    # Weights for rare classes cost loss and accuracy on all rows, those of training among them.
    if evidence.nll_change > 0 and not (
        evidence.difference("balanced_accuracy") >= BALANCED_RISE
        and evidence.accuracy.change < 0
        and evidence.training_rise > PAYS_TOO * evidence.nll_change
    ):
        return None
    names = after["class"]
    return Cause(
        "class-trade-off",
        share=min(1.0, distance / max(-sum(change), 1e-9)),
        evidence=(
            f"class {names[gained]} is predicted {100 * moved[gained]:+.1f} pp more often, class {names[lost]} "
            f"{100 * moved[lost]:+.1f} pp",
            f"class {names[lost]} lost {-100 * change[lost]:.1f} pp of accuracy, class {names[gained]} changed by "
            f"{100 * change[gained]:+.1f} pp",
        ),
    )


def nothing_learned(evidence: Evidence) -> Cause | None:
    """Inputs say nothing about the labels, as far as the model has found out.

    What it finds: the loss after one temperature is not below the entropy of the class shares, nor was it at the
        reference, so that no more than the shares was learnt, accuracy is at most that of the most frequent class, and
        the mean recall of the classes is not above that of guessing.
    Why it matters: accuracy at chance has reasons outside of the network: shuffled labels, broken or constant inputs.
    Evidence it needs: the class table and the temperature grid.
    What to do: overfit a single batch; look at a batch as the network gets it (order of labels, normalisation).
    When it is wrong: a learning rate that is too low, dead units or too much regularisation look the same, and are
        named first when they are measured. Where training rows were told apart at first sight, these rows or their
        weights are others: `validation-mismatch`.
    Reference: Zhang et al. 2017; Karpathy 2019.
    """
    refined, prior = evidence.value("refinement_nll"), evidence.label_entropy
    highest, occurring = evidence.value("majority_rate"), sum(rows > 0 for rows in evidence.class_rows)
    collapsed = evidence.value("predicted_majority_rate") >= COLLAPSED
    if collapsed and highest > 1.5 / max(occurring, 1):
        # To give every row to a class that is the most frequent by far has a name of its own.
        return None
    best = min(refined, evidence.reference.values.get("refinement_nll", math.inf))
    if not best >= prior - unlearned_spread(evidence.current, prior):
        return None
    if not evidence.value("accuracy") <= highest + 2.58 * evidence.value("accuracy_standard_error"):
        return None
    if knows_classes(evidence.current) or is_renamed(evidence.current) or is_left_behind(evidence):
        return None
    lines = [
        f"NLL after one temperature {refined:.4f}, entropy of the class shares {prior:.4f}",
        f"accuracy {100 * evidence.value('accuracy'):.1f} %, share of the most frequent class {100 * highest:.1f} %",
    ]
    against = ()
    if evidence.train_accuracy > min(highest + 0.1, (1 + highest) / 2):
        text = f"accuracy on training rows {100 * evidence.train_accuracy:.1f} %: learnt by heart, or these rows are"
        lines.insert(0, f"{text} prepared otherwise, or their labels are")
        against = evidence.train_doubt
    return Cause("nothing-learned", share=math.nan, evidence=tuple(lines), against=against)


def knows_classes(record: Record) -> bool:
    """Whether the mean recall of the classes is certainly above that of guessing, 1 / C.

    Weights in the loss, or rows drawn for balance, teach another prior than that of these rows: the loss then stays
    above their label entropy whatever the temperature, and accuracy below the share of the most frequent class.
    """
    table = record.arrays.get("classes", {})
    found = [
        (right / rows, rows)
        for name, rows, right in zip(*(table.get(key, ()) for key in ("class", "rows", "correct")), strict=True)
        if name >= 0 and rows > 0
    ]
    if len(found) < 2:
        return False
    mean = sum(recall for recall, _ in found) / len(found)
    # With one row more of each kind, or a class of one row had no error at all.
    smoothed = [((recall * rows + 1) / (rows + 2), rows) for recall, rows in found]
    error = math.sqrt(sum(recall * (1 - recall) / rows for recall, rows in smoothed)) / len(found)
    return mean - 1 / len(found) > max(3 * error, KNOWN_RECALL)


def first_sight(evidence: Evidence) -> tuple[float, float]:
    """Accuracy of the training steps of the first epoch, and the share of the largest class among their rows; NaN if
    unknown or not certainly higher.

    No row of the first epoch had been seen before, so that nothing was known by heart: the accuracy is one on new rows
    of the training distribution, of weights that were mostly worse than those at the end of the epoch, and with
    dropout and augmentation on top (Dawid 1984, prequential analysis).
    """
    first = [record for record in evidence.series if record.epoch == 0]
    if not first:
        return math.nan, math.nan
    rows = first[-1].arrays.get("train_classes") or []
    accuracy = first[-1].context.get("train_accuracy", math.nan)
    if not sum(rows) > 0:
        return math.nan, math.nan
    share = max(rows) / sum(rows)
    lead = max(FIRST_SIGHT, FIRST_SCORE * math.sqrt(share * (1 - share) / sum(rows)))
    return (accuracy, share) if accuracy >= share + lead else (math.nan, math.nan)


def is_left_behind(evidence: Evidence) -> bool:
    """Whether these rows have, for three evaluations, not come half the way from the share of the largest class to the
    accuracy that training rows had at first sight, and training rows have kept theirs.
    """
    last, probes = evidence.series[-3:], evidence.train_probe[-3:]
    accuracy, share = first_sight(evidence)
    if len(last) < 3 or math.isnan(accuracy) or is_renamed(evidence.current):
        return False
    half = (accuracy + share) / 2
    here = [accuracy_of(record) + 2.58 * record.values.get("accuracy_standard_error", math.nan) for record in last]
    kept = [record.context.get("train_accuracy", math.nan) for record in last] + [accuracy_of(row) for row in probes]
    return all(value < half for value in here) and all(value >= accuracy for value in kept)


def class_shares(drawn: Sequence[float], table: Mapping[str, Sequence[float]]) -> list[tuple[float, float]]:
    """Share of each class of a table among the rows that were drawn in training, and among those of the table.

    Args:
        drawn: (C,) rows by class number.
        table: classes and their rows, as an evaluation keeps them.

    Returns:
        Empty where either is not known, or the table holds the rest of many classes as one.
    """
    names, rows = table.get("class", ()), table.get("rows", ())
    if len(drawn) != len(rows) or -1 in names or not (sum(drawn) and sum(rows)):
        return []
    return [(drawn[name] / sum(drawn), count / sum(rows)) for name, count in zip(names, rows, strict=True)]


def shares_apart(shares: Sequence[tuple[float, float]]) -> float:
    """Total variation distance, 0 ... 1."""
    return sum(abs(first - second) for first, second in shares) / 2


def unlearned_spread(record: Record, prior: float) -> float:
    """How far below the entropy of the class shares a loss may lie by chance, nats: 2 … 5 % of it by its error."""
    return min(0.05 * prior, max(0.02 * prior, 2.58 * record.values.get("nll_standard_error", 0.0)))


def label_mapping_mismatch(evidence: Evidence) -> Cause | None:
    """The model knows the classes, but under other numbers than this data set.

    What it finds: with the classes renamed, each to another one and most rows to the class that they are given to,
        accuracy would be at least 10 pp (or 1 / C) higher: of the rows whose class is renamed 2.5 times as many would
        be right, certainly, and at most 20 % of what the model keeps apart is lost by it.
        Without that table, of 50 items and more: two classes or more that are predicted in 30 % of their rows at least,
        and right less than a fifth as often as chance brings, which is 30 rows or more, while training rows are 5 pp
        more accurate.
    Why it matters: nothing is wrong with the model; the order of the classes differs between training and validation.
    Evidence it needs: the confusion table of the probe (C <= 64), or of pixels and tokens the class table.
    What to do: build the class-to-index mapping once, on training data, and use it everywhere.
    When it is wrong: with two classes, a model that has learned the opposite shows the same.
    Reference: Northcutt et al. 2021.
    """
    if not is_renamed(evidence.current):
        return None
    confusion = evidence.current.arrays.get("confusion")
    if not confusion:
        names = _below_chance(evidence.current)
        listed = ", ".join(map(str, list(names)[:5])) + (", …" if len(names) > 5 else "")
        given, found, chance = (sum(column) for column in zip(*names.values(), strict=True))
        return Cause(
            "label-mapping-mismatch",
            share=math.nan,
            evidence=(
                f"classes {listed} are predicted in {given:.0f} rows and right in {found:.0f} of them; by chance they "
                f"were in {chance:.0f}",
                f"accuracy {100 * evidence.value('accuracy'):.1f} % here, {100 * evidence.train_accuracy:.1f} % on "
                "training rows",
            ),
        )
    total, naming = sum(map(sum, confusion)), _naming(confusion)
    renamed = sum(confusion[place][name] for place, name in naming.items())
    right = sum(row[place] for place, row in enumerate(confusion))
    moved = [f"{place}→{name}" for place, name in sorted(naming.items()) if place != name]
    names = ", ".join(moved[:5])
    return Cause(
        "label-mapping-mismatch",
        share=math.nan,
        evidence=(
            f"with the classes renamed ({names}) accuracy would be {100 * renamed / total:.1f} instead of "
            f"{100 * right / total:.1f} %",
        ),
    )


def is_renamed(record: Record) -> bool:
    """Whether far more rows of the probe were right with the classes renamed, each to another one, and next to none of
    what the model keeps apart is lost by it.
    """
    confusion = record.arrays.get("confusion") or []
    if not confusion:
        return bool(_below_chance(record))
    total, classes = sum(map(sum, confusion)), sum(sum(row) > 0 for row in confusion)
    least = max(min(0.10, 1 / max(classes, 1)) * total, 1)
    # No naming gains more than this, and to find one takes 9 ms for 64 classes.
    if sum(max(row) - row[place] for place, row in enumerate(confusion)) < least:
        return False
    naming = _naming(confusion)
    kept = sum(confusion[place][name] for place, name in naming.items())
    unnamed = any(place != name and not confusion[place][name] for place, name in naming.items())
    if total < 30 or unnamed or kept < NAMED_APART * sum(map(max, confusion)):
        return False
    # Rows that are right under one naming only are the discordant pairs of McNemar's test.
    moved = {place: name for place, name in naming.items() if place != name}
    # Where a class goes to another one's name, most of them must have moved: one that spills over has no other name.
    spills = any(confusion[place][name] < max(confusion[place]) for place, name in naming.items())
    if spills and len(moved) < MOST_MOVED * len(naming):
        return False
    gained = sum(confusion[place][name] for place, name in moved.items())
    lost = sum(confusion[place][place] for place in moved)
    return gained - lost >= least and (gained - lost) ** 2 > 25 * (gained + lost) and gained > RENAMED * lost


def _below_chance(record: Record) -> dict[int, tuple[float, float, float]]:
    """Classes that are predicted often and are right far less often than if that had been drawn by lot: rows given to
    the class, rows right among them, and as many as chance brings. Empty unless there are several.

    Whoever cannot tell a class is right by chance; to be wrong more often takes knowing it under another name.
    """
    table = record.arrays.get("classes", {})
    if record.num_items < TINY_SET or not record.num_rows:
        return {}
    # Training must show that these classes can be told.
    if not record.context.get("train_accuracy", math.nan) >= accuracy_of(record) + TRAINING_AHEAD:
        return {}
    columns = zip(*(table.get(key, ()) for key in ("class", "rows", "predicted", "correct")), strict=True)
    found = {
        int(name): (predicted, correct, predicted * rows / record.num_rows)
        for name, rows, predicted, correct in columns
        if name >= 0 and rows > 0 and predicted >= BELOW_PREDICTED * rows
    }
    below = {
        name: (predicted, correct, chance)
        for name, (predicted, correct, chance) in found.items()
        if chance >= BELOW_ROWS and correct < BELOW_SHARE * chance
    }
    return below if len(below) > 1 else {}


def _naming(confusion: list[list[int]]) -> dict[int, int]:
    """Under which name each class with rows is known, see `one_to_one`."""
    return {place: name for place, name in enumerate(one_to_one(confusion)) if sum(confusion[place])}


def validation_too_small(evidence: Evidence) -> Cause | None:
    """So few items that what moved may be these items alone.

    What it finds: fewer than 200 items and a change that is within 3 standard errors of its paired difference; fewer
        than 50 items always.
    Why it matters: on other rows of the same kind the curve may go the other way.
    Evidence it needs: paired rows; under 50 items only their number.
    What to do: a larger validation set, or cross-validation; at least as many items as the message names.
    When it is wrong: a strong effect can be real on few items; then the paired difference shows it.
    Reference: Jordan 2023; Cameron and Miller 2015.
    """
    items = evidence.current.num_items
    if not 0 < items < SMALL_SET or "nll" not in evidence.current.values:
        return None
    if evidence.paired is not None and not evidence.is_static:
        if abs(evidence.nll_score) >= 3:
            return None
        low, high = interval(evidence.nll_change, evidence.paired["nll_change_error"])
        line = (
            f"{items} items: the change of {evidence.nll_change:+.4f} is known to {low:+.4f} … {high:+.4f} nats (99 %)"
        )
    elif items < TINY_SET:
        spread = 100 * accuracy_spread(evidence.value("accuracy_standard_error"), items)
        line = f"{items} items: accuracy on new data is known to ±{spread:.0f} pp (99 %)"
    else:
        return None
    step = 100 / max(evidence.current.num_rows, 1)
    return Cause(
        "validation-too-small",
        share=math.nan,
        evidence=(line, f"one row is {step:.1f} pp of accuracy ({100 * accuracy_of(evidence.current):.1f} %)"),
    )
