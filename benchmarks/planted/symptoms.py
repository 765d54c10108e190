"""Which causes are true of a kept run, by its fresh sample: whether the planted one showed, and what came with it.

A fault that was planted need not show (a network may shrug off a long step); such runs are counted apart. And one fault
may bring another (a long step kills units), which the fresh sample shows as well; naming that is not wrong.
Losses in nats.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

Run = dict[str, Any]
RELATIVE_FLOOR, ABSOLUTE_FLOOR = 0.05, 0.01
# Beyond the limits of the definition by so much that 20 000 rows leave no doubt about the side.
SMALL_SHARE, LARGE_SHARE = 0.20, 0.55
# Between these either neighbour is a fair name.
UNCERTAIN = 0.10


def floor(nll: float) -> float:
    """Smallest change of a loss that matters."""
    return max(RELATIVE_FLOOR * nll, ABSOLUTE_FLOOR)


def _limit(run: Run) -> float:
    return floor(run["truth"]["best"].get("nll", math.nan))


def rise(run: Run) -> tuple[float, float, float]:
    """Change of loss, loss after one temperature, and accuracy on fresh rows, from the best evaluation to the end."""
    best, end = run["truth"]["best"], run["truth"]["end"]
    if not (best["finite"] and end["finite"]):
        return math.nan, math.nan, math.nan
    return (
        end["nll"] - best["nll"],
        end["refined_nll"] - best["refined_nll"],
        end["accuracy"] - best["accuracy"],
    )


def share_left(run: Run) -> float:
    """Share of the rise that one temperature does not take back; NaN without a rise worth the name."""
    loss, refined, _ = rise(run)
    if not loss >= _limit(run):
        return math.nan
    return refined / loss


def _paths(run: Run) -> list[dict[str, float]]:
    return [point for point in run["truth"]["path"] if point["finite"]]


def _entropy(run: Run) -> float:
    prior = run["plan"]["val_prior"]
    classes = len(prior) if prior else run["classes"]
    shares = prior or [1 / classes] * classes
    return -sum(share * math.log(share) for share in shares if share)


def _last(run: Run) -> dict[str, Any]:
    return next(json.loads(line) for line in reversed(run["records"]) if json.loads(line)["stage"] == "val")


def _at_phase(run: Run) -> tuple[dict[str, float], dict[str, float]] | None:
    """Fresh measures just before the second phase and at the end."""
    path, later = run["truth"]["path"], run["plan"]["later"]
    if not later or not (path[later[0] - 1]["finite"] and path[-1]["finite"]):
        return None
    return path[later[0] - 1], path[-1]


def _without(run: Run) -> bool:
    """Whether the training without the fault reaches a loss at least a tenth lower."""
    lowest = min((point["nll"] for point in _paths(run)), default=math.inf)
    return run["truth"].get("without", {"nll": math.inf})["nll"] < 0.9 * lowest


def over_confidence(run: Run) -> bool:
    """The loss rose, and less than a fifth of the rise is left after one temperature."""
    return share_left(run) < SMALL_SHARE


def overfitting(run: Run) -> bool:
    """The loss rose, and more than 55 % of the rise is left after one temperature."""
    return share_left(run) > LARGE_SHARE


def label_noise(run: Run) -> bool:
    """Training labels are wrong, and the loss rose on fresh rows with right labels."""
    return run["plan"]["label_noise"] > 0 and rise(run)[0] >= _limit(run)


def hard_tail(run: Run) -> bool:
    """The loss of all rows rose by a floor, and that of the rightly labelled rows by less than a quarter as much."""
    best, end = run["truth"]["best"], run["truth"]["end"]
    loss = rise(run)[0]
    return "clean_nll" in best and loss >= _limit(run) and end["clean_nll"] - best["clean_nll"] < 0.25 * loss


def leakage(run: Run) -> bool:
    """Fresh rows have at least 20 % more loss than the validation rows, and less accuracy."""
    end, last = run["truth"]["end"], _last(run)["values"]
    return run["plan"]["leak"] > 0 and end["nll"] > 1.2 * last["nll"] and end["accuracy"] < last["accuracy"] - 0.02


def prior_shift(run: Run) -> bool:
    """Class shares differ between training and validation, and a bias saves 5 % of the loss beyond one temperature."""
    end = run["truth"]["end"]
    shifted = run["plan"]["train_prior"] != run["plan"]["val_prior"]
    return shifted and end["finite"] == 1 and end["bias_gain"] > floor(end["nll"])


def capacity_limit(run: Run) -> bool:
    """A network without the bottleneck is at least 5 points more accurate, and has a tenth less loss."""
    best = max((point["accuracy"] for point in _paths(run)), default=1.0)
    without = run["truth"].get("without", {"accuracy": 0.0})
    return run["plan"]["shape"]["bottleneck"] > 0 and _without(run) and without["accuracy"] > best + 0.05


def majority_collapse(run: Run) -> bool:
    """Nearly all fresh rows are given one class at the end, or were for three evaluations."""
    collapsed = [point["largest_predicted"] > 0.99 for point in _paths(run)]
    return bool(collapsed) and (collapsed[-1] or sum(collapsed) >= 3)


def class_imbalance(run: Run) -> bool:
    """The mean recall is at least 15 points below the accuracy, and more than one class is predicted."""
    end = run["truth"]["end"]
    several = end["finite"] == 1 and end["largest_predicted"] < 0.99
    return several and end["accuracy"] - end["balanced_accuracy"] > 0.15


def class_trade_off(run: Run) -> bool:
    """From the second phase on the loss fell by a floor and the accuracy by a point."""
    ends = _at_phase(run)
    return ends is not None and _fell(*ends)


def _fell(before: dict[str, float], after: dict[str, float]) -> bool:
    loss = before["nll"] - after["nll"]
    return loss > floor(before["nll"]) and after["accuracy"] < before["accuracy"] - 0.01


def nothing_learned(run: Run) -> bool:
    """Never better than giving the class shares, by 2 % of their entropy and 3 points, or not for three evaluations."""
    entropy, largest = _entropy(run), run["truth"]["end"].get("largest_class", 1.0)
    nothing = [point["refined_nll"] > 0.98 * entropy and point["accuracy"] < largest + 0.03 for point in _paths(run)]
    return all(nothing) or sum(nothing[:-1]) >= 3


def label_mapping_mismatch(run: Run) -> bool:
    """With the training's numbering most rows would be right."""
    end = run["truth"]["end"]
    return end.get("unshifted_accuracy", 0.0) > max(0.5, 2 * end.get("accuracy", 1.0))


def validation_too_small(run: Run) -> bool:
    """Fewer than 50 rows."""
    return run["plan"]["val_rows"] < 50


def learning_rate_too_high(run: Run) -> bool:
    """With a sound rate the lowest loss is at least a tenth lower."""
    return run["cause"] == "learning-rate-too-high" and _without(run)


def learning_rate_too_low(run: Run) -> bool:
    """With a sound rate the lowest loss is at least a tenth lower."""
    return run["cause"] == "learning-rate-too-low" and _without(run)


def blow_up(run: Run) -> bool:
    """Not finite at the end, or far above the loss of knowing nothing."""
    end = run["truth"]["end"]
    return not end["finite"] or (end["nll"] > 3 * _entropy(run) and end["refined_nll"] > 0.5 * _entropy(run))


def dead_activations(run: Run) -> bool:
    """Most units of one layer give zero for every fresh row."""
    return run["truth"]["dead"] > 0.75


def over_regularisation(run: Run) -> bool:
    """Without it the lowest loss is at least a tenth lower; and what plants an unconfident shift is nothing else."""
    if run["cause"] == "unconfident-shift":
        return shown(run)
    return run["cause"] == "over-regularisation" and _without(run)


def loss_mismatch(run: Run) -> bool:
    """The logged loss is not the NLL of the predictions, by 5 % of it."""
    last = _last(run)
    logged, nll = last["logged"].get("val_loss", math.nan), last["values"].get("nll", math.nan)
    return run["plan"]["logged_loss"] != "nll" and abs(logged - nll) > 0.05 * nll


def double_softmax(run: Run) -> bool:
    """The network ends in a softmax."""
    return bool(run["plan"]["shape"]["softmax"])


def wrong_accuracy(run: Run) -> bool:
    """The logged accuracy differs from that of the predictions by at least two points."""
    last = _last(run)
    logged, accuracy = last["logged"].get("val_accuracy", math.nan), last["values"].get("accuracy", math.nan)
    return run["plan"]["logged_accuracy"] != "right" and abs(logged - accuracy) > 0.02


def train_eval_mismatch(run: Run) -> bool:
    """The same weights and fresh rows have a fifth less loss in training mode."""
    end = run["truth"]["end"]
    return "train_mode" in end and end["train_mode"]["finite"] == 1 and end["train_mode"]["nll"] < 0.8 * end["nll"]


def under_confidence(run: Run) -> bool:
    """One temperature below 0.85 saves a floor."""
    end = run["truth"]["end"]
    saved = end["nll"] - end["refined_nll"] if end["finite"] else 0.0
    return end["finite"] == 1 and end["temperature"] < 0.85 and saved > floor(end["nll"])


def scale_growth(run: Run) -> bool:
    """The loss rose by a floor, and the loss after one temperature and the accuracy are better than at its minimum."""
    loss, refined, accuracy = rise(run)
    return loss >= _limit(run) and refined < 0 and accuracy > 0.003


def confidence_growth(run: Run) -> bool:
    """From the first evaluation within half a point of the best accuracy, the loss fell by a floor."""
    path = _paths(run)
    if not path:
        return False
    best = max(point["accuracy"] for point in path)
    first = next(point for point in path if point["accuracy"] > best - 0.005)
    after = min(point["nll"] for point in path)
    return first["nll"] - after > floor(first["nll"]) and path[-1]["accuracy"] > best - 0.01


def unconfident_shift(run: Run) -> bool:
    """From the second phase on loss and accuracy fell, and the loss after one temperature did not."""
    ends = _at_phase(run)
    return ends is not None and _fell(*ends) and ends[1]["refined_nll"] > ends[0]["refined_nll"] - 0.01


SYMPTOMS: dict[str, Callable[[Run], bool]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        over_confidence,
        overfitting,
        label_noise,
        hard_tail,
        leakage,
        prior_shift,
        capacity_limit,
        majority_collapse,
        class_imbalance,
        class_trade_off,
        nothing_learned,
        label_mapping_mismatch,
        validation_too_small,
        learning_rate_too_high,
        learning_rate_too_low,
        blow_up,
        dead_activations,
        over_regularisation,
        loss_mismatch,
        double_softmax,
        wrong_accuracy,
        train_eval_mismatch,
        under_confidence,
        scale_growth,
        confidence_growth,
        unconfident_shift,
    )
}
# Second phases are planted for one of these two; the fresh sample does not tell them apart in every other run.
PHASED = ("class-trade-off", "unconfident-shift")


def shown(run: Run) -> bool:
    """Whether the planted fault showed its symptom on fresh rows."""
    return SYMPTOMS[run["cause"]](run)


def true_causes(run: Run) -> set[str]:
    """All causes that hold on the fresh sample, the planted one among them if it showed."""
    found = {name for name, symptom in SYMPTOMS.items() if name not in PHASED and symptom(run)}
    if run["cause"] in PHASED and shown(run):
        found.add(run["cause"])
    share = share_left(run)
    if share == share:
        # Near a limit of the definitions, or between them.
        if share < 0.25 + UNCERTAIN:
            found.add("over-confidence")
        if share > 0.50 - UNCERTAIN:
            found.add("overfitting")
        if 0.25 - UNCERTAIN < share < 0.50 + UNCERTAIN:
            found.add("mixed")
    return found
