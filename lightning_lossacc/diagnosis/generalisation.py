"""Causes in what was learned: the answers themselves get worse, or look better than they are, on new data."""

from __future__ import annotations

import math

from lightning_lossacc.diagnosis.confidence import OVERCONFIDENCE_SHARE, OVERFITTING_SHARE
from lightning_lossacc.diagnosis.data import class_imbalance
from lightning_lossacc.diagnosis.event import Cause
from lightning_lossacc.diagnosis.evidence import Evidence, accuracy_of, loss_of
from lightning_lossacc.diagnosis.sets import leakage
from lightning_lossacc.floors import labels_contradict

# Share of the probe's training rows that must have been learnt against the model's own confident answer, and the least
# difference of both shares in standard errors.
MEMORISED_SHARE, MEMORISED_SCORE = 0.02, 3.0
# Over the share of validation rows that were as wrong: 0 … 1 in trainings without label noise, 1.5 … 35 with 20 … 30 %.
HARDER = 1.25
NEVER_LEARNT = 0.10  # by which training rows are less accurate than validation rows, at the reference and now
# What was memorised once has been; the share of rows that are right at the moment flickers about its limit.
REMEMBERED = 5
BEHIND_SCORE = 1.645  # one-sided 5 %: the rise after one temperature is shown besides
EARLY_BEHIND, EARLY_SCORE = 0.08, 3.0
# What training rows pay as well, in the steps of both epochs, is no matter of new rows.
TRAIN_ROSE = 0.5
LASTING_GAP = 5  # evaluations
# Share of rows that may be a tail, and how much of the rise, or of the loss, they must carry.
TAIL_SHARES, TAIL_CARRIES = (0.003, 0.35), 0.5
# Beyond the first share, tails of networks that are wrong by themselves carry 0.25 … 0.7 of the loss; 23 … 29 % wrong
# labels carried 0.83 … 1.0 of it, at a temperature of the others of 0.4 … 1.5 and 2.5 times the ratio.
LARGE_TAIL, LARGE_CARRIES, LARGE_TEMPERATURE, LARGE_SCORE, LARGE_AHEAD = 0.12, 0.8, 1.6, 2.5, 0.6
# Best temperature without the tail: 0.07 … 1.7 where labels were wrong, 2.9 … 4.4 where all rows were over-confident.
TAIL_TEMPERATURE = 2.0
# Up to this one where the ratio is so many times as large: 8 … 20 with 3 … 10 % wrong labels, 1.1 … 4.8 without.
CERTAIN_TEMPERATURE, CERTAIN_TAIL = 3.0, 6.25
MOSTLY_FROZEN = 0.5
STILL_FALLS = 0.01  # of the loss, in the last four evaluations
# Training is on the level of validation if its loss is at least this part of it and its accuracy so near.
LEVEL_SHARE, LEVEL_ACCURACY = 0.60, 0.15


def overfitting(evidence: Evidence) -> Cause | None:
    """The loss rose and no temperature takes it back: the ranking of the classes got worse.

    What it finds: more than 50 % of the rise is left after one temperature, the 99 % interval of that share stays
        above 25 %, and the loss of the training steps, or of the train probe, has not risen by half as much. From a log
        of scalars: accuracy is down while the training loss still falls.
    Why it matters: the model at the reference epoch is better, whatever is done to its probabilities.
    Evidence it needs: paired rows and the temperature grid; in a log of scalars accuracy and the training loss.
    What to do: keep the checkpoint with the lowest loss after one temperature; regularise, augment, more data.
    When it is wrong: label noise that is being memorised looks the same from the validation side alone, and class-wise
        miscalibration is not repaired by one temperature.
    Reference: Berta et al. 2025; Prechelt 1998.
    """
    if "nll" not in evidence.current.values:
        return _scalar_overfitting(evidence)
    change, low, high = evidence.refinement_change
    share, lowest_share, _ = evidence.refinement_share
    if evidence.is_static or not (share > OVERFITTING_SHARE and lowest_share > OVERCONFIDENCE_SHARE):
        return None
    if evidence.training_rise > TRAIN_ROSE * evidence.nll_change:
        return None
    lines = [f"after one temperature the loss still rose by {change:.4f} nats ({low:+.4f} … {high:+.4f})"]
    against = []
    if evidence.accuracy.kind == "down":
        lines.append(f"accuracy fell by {-100 * evidence.accuracy.change:.1f} pp")
    else:
        against.append(f"accuracy is {evidence.accuracy.kind}")
    if math.isfinite(evidence.train_nll):
        lines.append(f"NLL {evidence.train_nll:.4f} on training rows, {evidence.value('nll'):.4f} here")
    if not evidence.train_probe:
        against.append("memorised wrong labels are not excluded without `train_probe=`")
    if evidence.at_edge:
        against.append("the best temperature lies outside the grid, so that the rest is an upper bound")
    return Cause("overfitting", share=min(1.0, share), evidence=tuple(lines), against=tuple(against))


def _scalar_overfitting(evidence: Evidence) -> Cause | None:
    train = evidence.train_losses
    if evidence.is_static or evidence.accuracy.kind != "down" or len(train) < 2 or not train[-1] < train[0]:
        return None
    if train[-1] > 1.1 * min(train):
        return None
    return Cause(
        "overfitting",
        share=math.nan,
        evidence=(
            f"accuracy fell by {-100 * evidence.accuracy.change:.1f} pp; the training loss went on to {train[-1]:.4f}",
        ),
        against=("confidence cannot be told apart without logits", *evidence.train_doubt),
    )


def label_noise(evidence: Evidence) -> Cause | None:
    """Training rows with wrong labels are learnt by heart, and the loss on new rows pays for it.

    What it finds: the loss after one temperature rose since the reference, training rows are learnt better than these
        now (or are 10 pp less accurate still, in the same mode), and at the reference they were less accurate: by 5 pp
        in the same mode, or by 8 pp in the steps of the epoch after it where no layer drops out; or at an evaluation
        before it, by 8 pp and three standard errors in the same mode, of which they have caught up 5 pp. Or they are
        10 pp less accurate for five evaluations, and the best temperature here is below 1. Or many training rows
        became right since, to which the model had given another class with confidence (NLL above ln C + 1), more than
        1.25 times the share of validation rows like that, and by three standard errors.
    Why it matters: regularisation treats the symptom; the labels can be corrected.
    Evidence it needs: accuracy on training rows; with `train_probe=` they are followed one by one and listed.
    What to do: look at the listed rows; relabel or drop them; a robust loss; keep the checkpoint of the refinement
        minimum, which comes before the wrong labels are learnt.
    When it is wrong: hard rows that are labelled right look the same, the list decides; without `train_probe=` strong
        augmentation keeps training accuracy low as well. Validation labels that are as wrong hide it.
    Reference: Pleiss et al. 2020 (AUM); Toneva et al. 2019 (forgetting); Arpit et al. 2017.
    """
    memories = [record.arrays.get("memory", {}) for record in evidence.train_probe[-REMEMBERED:]]
    memory = max(memories, key=lambda known: known.get("memorised_share", 0.0), default={})
    if evidence.is_static:
        return _never_learnt(evidence)
    _, low, _ = evidence.refinement_change
    ahead = evidence.train_accuracy - accuracy_of(evidence.current)
    behind, is_behind = _training_behind(evidence)
    # Learnt by heart; or, in the same mode, never learnt: the labels of these rows can be, and those can not.
    learnt = ahead > 0.05 or (evidence.train_probe and (ahead < -NEVER_LEARNT or (is_behind and ahead + behind > 0.05)))
    if not (low > 0 and learnt):
        return None
    share, items = memory.get("memorised_share", 0.0), memory.get("items", 0)
    here = _hard_share(evidence)
    memorised = share >= MEMORISED_SHARE and share * items >= 5 and 0 <= HARDER * here < share
    if memorised:
        rows = 1 / items + 1 / evidence.reference.num_rows
        memorised = share - here > MEMORISED_SCORE * math.sqrt(here * (1 - here) * rows)
    if not (memorised or is_behind):
        return None
    lines = [f"accuracy on training rows {100 * evidence.train_accuracy:.1f} % now"]
    if is_behind:
        text = f"training rows were {100 * behind:.1f} pp less accurate than these, at the reference or before"
        lines.insert(0, text)
    if memorised:
        text = f"{round(share * items)} of {items} training rows ({100 * share:.0f} %) were learnt since epoch"
        beside = f"; of these rows {100 * here:.1f} % were as wrong"
        lines.insert(0, f"{text} {evidence.reference.epoch} against the model's own confident answer{beside}")
    suspects = memory.get("suspects") or []
    if suspects:
        shown = ", ".join(f"#{suspect['index']} {suspect['target']}→{suspect['predicted']}" for suspect in suspects[:5])
        lines.append(f"first suspects {shown}")
    return Cause("label-noise", share=math.nan, evidence=tuple(lines), against=evidence.train_doubt)


def _never_learnt(evidence: Evidence) -> Cause | None:
    """Wrong labels of which the confidence knows: too low for rows with right ones, as it fits training rows."""
    if not evidence.temperature < 1:
        return None
    gaps = list(_gaps(evidence).values())[-LASTING_GAP:]
    far = [behind >= NEVER_LEARNT and behind > EARLY_SCORE * error for behind, error in gaps]
    if not (len(far) == LASTING_GAP and all(far)):
        return None
    text = f"for {LASTING_GAP} evaluations training rows have been {100 * min(gap for gap, _ in gaps):.1f} pp and more"
    return Cause(
        "label-noise",
        share=math.nan,
        evidence=(
            f"{text} less accurate than these, in the same mode",
            f"NLL {evidence.train_nll:.4f} on training rows, {evidence.value('nll'):.4f} here; best temperature "
            f"{evidence.temperature:.2f} here",
        ),
        against=evidence.train_doubt,
    )


def _hard_share(evidence: Evidence) -> float:
    """Share of validation rows that the reference gave to another class with confidence (NLL above ln C + 1), by the
    mean of each confidence bin. Labels that are as wrong there, or hard rows, are not noise of the training labels. -1
    where it is not known.
    """
    cells, classes = evidence.reference.arrays.get("cells"), evidence.num_classes
    if cells is None or classes is None:
        return -1.0
    wrong = zip(cells["rows"][0], cells["nll"][0], strict=True)
    hard = sum(rows for rows, nll in wrong if rows and nll > (math.log(classes) + 1) * rows)
    return hard / evidence.reference.num_rows


def _training_behind(evidence: Evidence) -> tuple[float, bool]:
    """By how much training rows were less accurate than validation rows at the reference or before, and whether that
    is far.

    Without a train probe the steps of the next epoch stand in, which come after the weights of the reference; with
    dropout they say nothing.
    """
    reference = evidence.reference
    before = accuracy_of(reference)
    if evidence.train_probe:
        return _probe_behind(evidence)
    after = next((record for record in evidence.series if record.epoch > reference.epoch), None)
    if after is None or evidence.context("dropout") > 0:
        return math.nan, False
    share, rows = (after.context.get(key, math.nan) for key in ("train_accuracy", "train_rows"))
    error = math.hypot(
        math.sqrt(share * (1 - share) / rows) if rows > 0 else math.nan,
        reference.values.get("accuracy_standard_error", math.nan),
    )
    return before - share, before - share >= 0.08 and before - share > 3 * error


def _probe_behind(evidence: Evidence) -> tuple[float, bool]:
    """`_training_behind` with a train probe: at the reference, or where it was most certain before that."""
    last = evidence.reference.global_step
    gaps = {step: gap for step, gap in _gaps(evidence).items() if step <= last}
    behind, error = gaps.get(last, (math.nan, math.nan))
    if behind >= 0.05 and behind > BEHIND_SCORE * error:
        return behind, True
    # The best of many evaluations needs more certainty than one that was chosen by its loss.
    far = [behind for behind, error in gaps.values() if behind >= EARLY_BEHIND and behind > EARLY_SCORE * error]
    return max(far, default=math.nan), bool(far)


def _gaps(evidence: Evidence) -> dict[int, tuple[float, float]]:
    """By step: how much more accurate validation rows were than those of the train probe, and its standard error."""
    probes = {record.global_step: record for record in evidence.train_probe}
    return {
        here.global_step: (
            accuracy_of(here) - accuracy_of(there),
            math.hypot(*(record.values.get("accuracy_standard_error", math.nan) for record in (here, there))),
        )
        for here in evidence.series
        if (there := probes.get(here.global_step)) is not None
    }


def hard_tail(evidence: Evidence) -> Cause | None:
    """Some rows have labels that contradict the model, and they carry the rise; for the others it is small.

    What it finds: a mixture of the model's probabilities, at their best temperature, and of a small share of arbitrary
        labels (0.3 … 12 %) explains the validation rows far better than a temperature alone (likelihood ratio of 12
        for every 1000 rows, at least 12), the best temperature of the others is at most 2 (3 where that ratio is 75),
        and the rows of that share carry at least half of the rise; of one evaluation, half of the loss. Of a share up
        to 35 % more is asked: a ratio of 30, a temperature of at most 1.6, four fifths, and that training rows are more
        accurate by 0.6 of that share, and were at the reference. Not where rare
        classes are mostly missed or validation rows are training rows, since such rows contradict the model too.
    Why it matters: they may be mislabelled, corrupted or of a kind that training never showed; for the rest the model
        is as good as it was, and a temperature makes all rows pay for a few.
    Evidence it needs: logits of at most 64 classes; paired rows over an interval.
    What to do: look at the listed rows.
    When it is wrong: hard rows that are labelled right look the same, and so do a few rows that are far more
        over-confident than the others. Over-confidence of all rows alike gives no such share: the errors that a model
        may expect are explained by the temperature.
    Reference: Lawrence and Schölkopf 2001 (label noise as a mixture); Northcutt et al. 2021 (errors in test sets).
    """
    tail = evidence.current.arrays.get("tail")
    items = evidence.current.num_items
    if not tail or not TAIL_SHARES[0] <= tail["share"] <= TAIL_SHARES[1]:
        return None
    # Rare classes that are missed contradict the model as well, and so do rows beside others that it knows by heart.
    if class_imbalance(evidence) is not None or leakage(evidence) is not None:
        return None
    is_large = tail["share"] > LARGE_TAIL
    is_certain = tail["temperature"] <= CERTAIN_TEMPERATURE and labels_contradict(tail["score"] / CERTAIN_TAIL, items)
    if is_large:
        ahead = _least_ahead(evidence)
        is_certain = tail["temperature"] <= LARGE_TEMPERATURE and ahead >= LARGE_AHEAD * tail["share"]
        is_certain = is_certain and labels_contradict(tail["score"] / LARGE_SCORE, items)
    if (is_large or tail["temperature"] > TAIL_TEMPERATURE) and not is_certain:
        return None
    # Such rows do not come and go; a checkpoint keeps no tail of earlier evaluations.
    before = evidence.reference.arrays.get("tail", tail)
    if not (labels_contradict(tail["score"], items) and labels_contradict(2 * before["score"], items)):
        return None
    if evidence.is_static:
        carried, whole = tail["loss"], evidence.value("nll")
    else:
        carried, whole = (evidence.paired or {}).get("tail_change", math.nan), evidence.nll_change
    if not (whole > 0 and carried >= (LARGE_CARRIES if is_large else TAIL_CARRIES) * whole):
        return None
    return Cause(
        "hard-tail",
        share=min(1.0, carried / whole),
        evidence=(
            f"about {100 * tail['share']:.1f} % of the rows have a label that contradicts the model (likelihood ratio "
            f"{tail['score']:.0f}); they carry {carried:+.4f} of {whole:+.4f} nats",
            f"best temperature {tail['temperature']:.2f} without them, {evidence.temperature:.2f} with them",
        ),
        against=()
        if evidence.train_probe
        else ("rows look the same if most others are copies of training rows; `train_probe=` tells",),
    )


def _least_ahead(evidence: Evidence) -> float:
    """By how much training rows are more accurate than these, now or at the reference, where they were not yet learnt
    by heart: whichever is less.
    """
    steps = evidence.reference.context.get("train_accuracy", math.nan)
    place = evidence.reference.global_step
    probe = next((accuracy_of(record) for record in evidence.train_probe if record.global_step == place), steps)
    ends = (evidence.train_accuracy, evidence.current), (probe, evidence.reference)
    found = [there - accuracy_of(here) for there, here in ends]
    return min((gap for gap in found if math.isfinite(gap)), default=math.nan)


def capacity_limit(evidence: Evidence) -> Cause | None:
    """Training and validation stand on one level and neither moves: the model or its features can do no better.

    What it finds: the loss has been flat with a best temperature near 1, or the loss after one temperature has; that of
        training rows is at least 60 % of it and their accuracy within 15 pp; and more than the prior was learnt, though
        far from all. Or next to nothing was learnt at ten evaluations, the loss has fallen by less than 1 % in the last
        four, and half of the weights or more are frozen or in no optimizer.
    Why it matters: more epochs bring nothing; a larger network, other features or less noisy labels may.
    Evidence it needs: a plateau, and the NLL of training rows.
    What to do: a larger model or better features; find out what accuracy the labels allow (repeat labels, people).
    When it is wrong: a plateau does not show incapability: a run may leave it later, and noise in the labels sets the
        same ceiling.
    Reference: Goodfellow et al. 2016, section 5.2.
    """
    nll, train, prior = evidence.value("nll"), evidence.train_nll, evidence.label_entropy
    frozen = evidence.context("frozen_share")
    fell = loss_of(evidence.series[-min(5, len(evidence.series))]) - nll
    if "little_learnt" in evidence.details and frozen >= MOSTLY_FROZEN and not fell > STILL_FALLS * nll:
        return Cause(
            "capacity-limit",
            share=math.nan,
            evidence=(
                f"{100 * frozen:.3g} % of the weights are frozen or in no optimizer, and the rest is not enough",
                f"NLL {nll:.4f} here and {train:.4f} on training rows, label entropy {prior:.4f}",
            ),
        )
    if not (math.isfinite(nll) and math.isfinite(train) and evidence.details.get("plateau")):
        return None
    refined = evidence.value("refinement_nll")
    # Where confidence still grows, it is the loss after one temperature that stands still.
    is_refined = "plateau_refined" in evidence.details
    level = train >= LEVEL_SHARE * nll and (is_refined or evidence.temperature >= 0.6) and evidence.temperature <= 1.6
    near = abs(evidence.train_accuracy - accuracy_of(evidence.current)) <= LEVEL_ACCURACY
    if not (level and near and train > 0.15 * prior and 0.15 * prior < refined < 0.97 * prior):
        return None
    lasts = f"flat for {evidence.details['plateau']:.0f} evaluations"
    lines = (
        f"NLL {nll:.4f} here and {train:.4f} on training rows, both {lasts}",
        f"the best temperature is {evidence.temperature:.2f}, so that confidence is not the reason",
    )
    if is_refined:
        lines = (
            f"the loss after one temperature, {refined:.4f}, has been {lasts}: what the loss still gains is confidence",
            f"NLL {nll:.4f} here and {train:.4f} on training rows",
        )
    return Cause(
        "capacity-limit",
        share=math.nan,
        evidence=lines,
        against=("noise in the labels sets the same ceiling", *evidence.train_doubt),
    )
