"""Causes in which rows the sets hold: the same ones, or classes in other shares."""

from __future__ import annotations

import math

from lightning_lossacc.diagnosis.data import COLLAPSED, class_shares, shares_apart
from lightning_lossacc.diagnosis.event import Cause
from lightning_lossacc.diagnosis.evidence import Evidence

# Share of validation rows that may be the same as training rows by chance or harmless repetition.
DUPLICATES_SHARE = 0.05
# Share of rows that may be in both sets because the data set repeats itself; by how much the others must cost more, in
# nats and standard errors, and at how many evaluations.
TWIN_SHARE, TWIN_NATS, TWIN_SCORE, TWIN_EVALUATIONS, TWIN_SERIES = 0.2, 0.05, 2.33, 3, 10
# Total variation distance between the class shares of training and validation that matters.
SHIFT_DISTANCE = 0.10
CERTAIN_DISTANCE = 0.25  # such a distance needs no gain of a bias to matter, if validation is worse than training


def leakage(evidence: Evidence) -> Cause | None:
    """Validation rows are among the training rows, so that validation measures memory.

    What it finds: many validation rows have exactly the logits of a training row with the same target, which only the
        same input has, more of them than rows within either set. Or a fifth of the rows and more have, at every
        evaluation, and cost less than half of what the others do, certainly: copies that were made before the split.
    Why it matters: every number of this validation is too good, and no choice made on it can be trusted.
    Evidence it needs: `train_probe=` and at most 64 classes.
    What to do: remove duplicates before splitting; split by group (patient, user, recording) and by time.
    When it is wrong: a data set that really repeats itself (few discrete features, templates): then new rows are known
        by heart as often.
    Reference: Kapoor and Narayanan 2023.
    """
    paid = _paid(evidence)
    if paid is not None:
        against = ("rows that repeat themselves by nature are in both sets as well; fresh rows tell",)
        return Cause("leakage", share=math.nan, evidence=paid, against=against)
    share = evidence.current.arrays.get("duplicates")
    # The same rows are shared in every evaluation; outputs that coincide by the network's doing are others each time.
    last = [record.arrays["duplicates"] for record in evidence.series[-3:] if "duplicates" in record.arrays]
    if share is None or not min([share, *last]) >= DUPLICATES_SHARE:
        return None
    # A collapsed network gives different rows outputs that differ by next to nothing.
    if evidence.value("predicted_majority_rate") >= COLLAPSED:
        return None
    return Cause(
        "leakage",
        share=math.nan,
        evidence=(
            _in_both(share),
            f"NLL {evidence.value('nll'):.4f} here, {evidence.train_nll:.4f} on training rows",
        ),
    )


def _paid(evidence: Evidence) -> tuple[str, ...] | None:
    """That rows with an equal one in training are known by heart and the others are not, in words.

    Outputs that coincide by the network's doing are other ones at each evaluation.
    """
    known = [record.arrays["twins"] for record in evidence.series if "twins" in record.arrays][-TWIN_SERIES:]
    now = evidence.current.arrays.get("twins")
    if now is None or len(known) < TWIN_EVALUATIONS:
        return None
    shares = [twins["share"] for twins in known]
    if min(shares) < TWIN_SHARE or max(shares) - min(shares) > 0.1 * max(shares):
        return None
    for twins in known[-TWIN_EVALUATIONS:]:
        more = twins["others_nll"] - twins["nll"]
        if not (more > max(twins["nll"], TWIN_NATS) and more > TWIN_SCORE * twins["error"]):
            return None
    return (
        _in_both(now["share"]),
        f"NLL {now['nll']:.4f} on these rows, {now['others_nll']:.4f} on the {now['others']:.0f} without one",
    )


def _in_both(share: float) -> str:
    return f"{100 * share:.0f} % of the validation rows have the logits of a training row with the same target"


def prior_shift(evidence: Evidence) -> Cause | None:
    """Classes occur in other shares than in training; a bias a class repairs it, a temperature does not.

    What it finds: the class shares of training and validation differ by 10 pp or more in total variation, and by 2.5
        times what chance brings, and a bias for each class (cross-fitted) lowers the loss certainly, beyond one
        temperature; or they differ by 25 pp or more, and 4 times what chance brings, and the loss is more than 1.5
        times that of training rows.
    Why it matters: the model is fine for the shares that it was trained on.
    Evidence it needs: class counts of training, and the fits on the probe (C <= 64).
    What to do: add log(new share / old share) to the logits (logit adjustment); split with stratification.
    When it is wrong: training that resamples classes on purpose shows the same numbers: then the adjustment undoes it.
    Reference: Saerens et al. 2002; Menon et al. 2021.
    """
    before, table = evidence.current.arrays.get("train_classes") or [], evidence.current.arrays.get("classes", {})
    fits = evidence.current.arrays.get("fits") or {}
    gain, error = fits.get("bias_gain", math.nan), fits.get("bias_gain_error", math.nan)
    shares = class_shares(before, table)
    if not shares:
        return None
    after, order, distance = table["rows"], table["class"], shares_apart(shares)
    by_chance = _distance_by_chance(shares, sum(before), sum(after))
    is_worse = distance >= max(CERTAIN_DISTANCE, 4 * by_chance) and evidence.value("nll") > 1.5 * evidence.train_nll
    if not distance >= max(SHIFT_DISTANCE, 2.5 * by_chance) or not (gain > 3 * error or is_worse):
        return None
    saved = f"one bias a class saves {gain:.4f} ± {2.58 * error:.4f} nats beyond one temperature"
    if not gain > 3 * error:
        saved = f"NLL {evidence.value('nll'):.4f} here, {evidence.train_nll:.4f} on training rows"
    moved = max(range(len(shares)), key=lambda place: abs(shares[place][0] - shares[place][1]))
    return Cause(
        "prior-shift",
        share=math.nan,
        evidence=(
            f"class shares differ by {100 * distance:.0f} pp (class {order[moved]}: {100 * shares[moved][0]:.0f} % in "
            f"training, {100 * shares[moved][1]:.0f} % here)",
            saved,
        ),
    )


def _distance_by_chance(shares: list[tuple[float, float]], first_rows: float, second_rows: float) -> float:
    """Expected total variation distance of two samples of the same class shares: half the sum of E|difference|."""
    size = 1 / first_rows + 1 / second_rows
    spreads = (math.sqrt(2 / math.pi * share * (1 - share) * size) for share in (sum(pair) / 2 for pair in shares))
    return sum(spreads) / 2
