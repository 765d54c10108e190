"""Which causes are true of a kept run, by its fresh sample: whether the planted one showed, and what came with it.

A fault that was planted need not show (a network may shrug off a long step); such runs are counted apart. To count as
shown, a planted fault must change a loss on fresh rows by at least two practical floors; to hold beside it, a cause
needs one. For one fault may bring another (a long step kills units), and naming that is not wrong. Losses in nats.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

Run = dict[str, Any]
RELATIVE_FLOOR, ABSOLUTE_FLOOR = 0.05, 0.01
# Practical floors that a planted fault must reach to be shown, and any cause to hold.
SHOWN, HOLDS = 2.0, 1.0
# Beyond the limits of the definition by so much that 8 000 rows leave no doubt about the side.
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


def rises(run: Run, floors: float) -> bool:
    """Whether the loss rose by so many floors."""
    return rise(run)[0] >= floors * _limit(run)


def share_left(run: Run, floors: float = SHOWN) -> float:
    """Share of the rise that one temperature does not take back; NaN without a rise of so many floors."""
    loss, refined, _ = rise(run)
    return refined / loss if rises(run, floors) else math.nan


def _paths(run: Run) -> list[dict[str, Any]]:
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


def _accuracy_without(run: Run) -> float:
    return run["truth"].get("without", {"accuracy": 0.0})["accuracy"]


def over_confidence(run: Run, floors: float = SHOWN) -> bool:
    """The loss rose, and less than a fifth of the rise is left after one temperature; to hold, one temperature above
    1.18 may save a floor of the loss, at the end or at four evaluations.
    """
    return share_left(run, floors) < SMALL_SHARE or (floors < SHOWN and _saves(run, lambda best: best > 1.18))


def _saves(run: Run, is_far: Callable[[float], bool]) -> bool:
    """Whether such a temperature saves a floor of the loss at the end, or at four evaluations."""
    end = run["truth"]["end"]
    saved = [
        is_far(point["temperature"]) and point["nll"] - point["refined_nll"] > floor(point["nll"])
        for point in (end, *_paths(run))
        if point["finite"]
    ]
    return bool(end["finite"] and saved[0]) or sum(saved) >= 4


def overfitting(run: Run, floors: float = SHOWN) -> bool:
    """The loss rose, and more than 55 % of the rise is left after one temperature."""
    return share_left(run, floors) > LARGE_SHARE


def label_noise(run: Run, floors: float = SHOWN) -> bool:
    """Training labels are wrong, and the loss rose on fresh rows with right labels; in the same training with right
    labels it rises by less than half as much.
    """
    without = run["truth"].get("without", {}).get("rise", 0.0)
    return run["plan"]["label_noise"] > 0 and rises(run, floors) and without < 0.5 * rise(run)[0]


def hard_tail(run: Run, floors: float = SHOWN) -> bool:
    """The loss of all rows rose, and that of the rows whose label is their own by less than a quarter as much; to hold,
    the others may carry half of the last loss.
    """
    best, end = run["truth"]["best"], run["truth"]["end"]
    if floors < SHOWN and "clean_nll" in end:
        carried = end["nll"] - (1 - _foreign(run)) * end["clean_nll"]
        if carried >= 0.5 * end["nll"]:
            return True
    loss = rise(run)[0]
    return "clean_nll" in best and rises(run, floors) and end["clean_nll"] - best["clean_nll"] < 0.25 * loss


def _foreign(run: Run) -> float:
    """Expected share of fresh rows whose label is not their own: planted ones, and those dealt to another class."""
    plan = run["plan"]
    shares = plan["val_prior"] or [1 / run["classes"]] * run["classes"]
    return plan["tail"] + plan["blur"] * (1 - sum(share * share for share in shares) / sum(shares) ** 2)


def leakage(run: Run, floors: float = SHOWN) -> bool:
    """Fresh rows have at least 20 % and two floors more loss than the validation rows, and two points less accuracy."""
    end, last = run["truth"]["end"], _last(run)["values"]
    if not (run["plan"]["leak"] > 0 and end["finite"]):
        return False
    more = end["nll"] - last["nll"] > max(0.2 * last["nll"], 2 * floor(end["nll"]))
    return more and end["accuracy"] < last["accuracy"] - 0.02


def prior_shift(run: Run, floors: float = SHOWN) -> bool:
    """Class shares differ between training and validation, and a bias saves 5 % of the loss beyond one temperature."""
    end = run["truth"]["end"]
    # Rows that are drawn so that all classes are alike are another prior as well.
    shifted = run["plan"]["train_prior"] != run["plan"]["val_prior"] or run["plan"]["balanced"]
    return shifted and end["finite"] == 1 and end["bias_gain"] > floors * floor(end["nll"])


def capacity_limit(run: Run, floors: float = SHOWN) -> bool:
    """A network without the bottleneck is at least 5 points more accurate, and has a tenth less loss."""
    best = max((point["accuracy"] for point in _paths(run)), default=1.0)
    return run["plan"]["shape"]["bottleneck"] > 0 and _without(run) and _accuracy_without(run) > best + 0.05


def majority_collapse(run: Run, floors: float = SHOWN) -> bool:
    """Nearly all fresh rows are given one class at the end; to hold, they may have been so for three evaluations."""
    collapsed = [point["largest_predicted"] > 0.99 for point in _paths(run)]
    return bool(collapsed) and (collapsed[-1] or (floors < SHOWN and sum(collapsed) >= 3))


def class_imbalance(run: Run, floors: float = SHOWN) -> bool:
    """The mean recall is at least 15 points below the accuracy at the end, and more than one class is predicted; to
    hold, it may have been so at three evaluations.
    """
    ends = [run["truth"]["end"], *(_paths(run) if floors < SHOWN else ())]
    hidden = [
        point["finite"] == 1
        and point["largest_predicted"] < 0.99
        and point["accuracy"] - point["balanced_accuracy"] > 0.15
        for point in ends
    ]
    return hidden[0] or sum(hidden) >= 3


def class_trade_off(run: Run, floors: float = SHOWN) -> bool:
    """From the second phase on the loss fell, the accuracy by a point a floor, and the mean recall rose by 5 points;
    to hold, the loss may have fallen below that of the most accurate evaluation so far while accuracy fell by 3
    points and some class gained 10.
    """
    ends = _at_phase(run)
    if ends is not None and _fell(*ends, floors) and _recalls_rose(*ends):
        return True
    return floors < SHOWN and _traded(_paths(run))


def _traded(path: list[dict[str, Any]]) -> bool:
    best = 0
    for place, point in enumerate(path):
        if point["accuracy"] >= path[best]["accuracy"]:
            best = place
            continue
        # Runs that were kept before have no recalls on their path.
        pairs = zip(path[best].get("recalls", ()), point.get("recalls", ()), strict=True)
        gained = any(before is not None and after is not None and after > before + 0.10 for before, after in pairs)
        if gained and _fell(path[best], point, HOLDS) and point["accuracy"] < path[best]["accuracy"] - 0.03:
            return True
    return False


def _fell(before: dict[str, float], after: dict[str, float], floors: float) -> bool:
    return (
        before["nll"] - after["nll"] > floors * floor(before["nll"])
        and after["accuracy"] < before["accuracy"] - 0.01 * floors
    )


def _recalls_rose(before: dict[str, float], after: dict[str, float]) -> bool:
    return after["balanced_accuracy"] > before["balanced_accuracy"] + 0.05


def nothing_learned(run: Run, floors: float = SHOWN) -> bool:
    """Never better than giving the class shares, by 2 % of their entropy and 3 points, or not for three evaluations."""
    entropy, largest = _entropy(run), run["truth"]["end"].get("largest_class", 1.0)
    nothing = [point["refined_nll"] > 0.98 * entropy and point["accuracy"] < largest + 0.03 for point in _paths(run)]
    return all(nothing) or sum(nothing[:-1]) >= 3


def label_mapping_mismatch(run: Run, floors: float = SHOWN) -> bool:
    """With the training's numbering most rows would be right, and a tenth of all more than with validation's."""
    end = run["truth"]["end"]
    return end.get("unshifted_accuracy", 0.0) > max(0.5, end.get("accuracy", 1.0) + 0.1)


def validation_too_small(run: Run, floors: float = SHOWN) -> bool:
    """Fewer than 50 rows."""
    return run["plan"]["val_rows"] < 50


def learning_rate_too_high(run: Run, floors: float = SHOWN) -> bool:
    """With a sound rate the lowest loss is a tenth lower, and the accuracy two points above that at the end; to hold,
    the loss may leave every scale, which is planted as a blow-up.
    """
    if run["cause"] == "blow-up" or blow_up(run):
        return floors < SHOWN and run["cause"] in ("blow-up", "learning-rate-too-high") and blow_up(run)
    accuracy = run["truth"]["end"].get("accuracy", 0.0)
    return run["cause"] == "learning-rate-too-high" and _without(run) and accuracy < _accuracy_without(run) - 0.02


def learning_rate_too_low(run: Run, floors: float = SHOWN) -> bool:
    """With a sound rate the lowest loss is at least a tenth lower."""
    return run["cause"] == "learning-rate-too-low" and _without(run)


def blow_up(run: Run, floors: float = SHOWN) -> bool:
    """Not finite at the end, or far above the loss of knowing nothing."""
    end = run["truth"]["end"]
    return not end["finite"] or (end["nll"] > 3 * _entropy(run) and end["refined_nll"] > 0.5 * _entropy(run))


def dead_activations(run: Run, floors: float = SHOWN) -> bool:
    """Most units of one layer have no slope on fresh rows."""
    return run["truth"]["dead"] > 0.75


def over_regularisation(run: Run, floors: float = SHOWN) -> bool:
    """Without it the lowest loss is at least a tenth lower; and what plants an unconfident shift is nothing else."""
    if run["cause"] == "unconfident-shift":
        return shown(run)
    return run["cause"] == "over-regularisation" and _without(run)


def loss_mismatch(run: Run, floors: float = SHOWN) -> bool:
    """The logged loss is not the NLL of the predictions, by 5 % of it."""
    last = _last(run)
    logged, nll = last["logged"].get("val_loss", math.nan), last["values"].get("nll", math.nan)
    return run["plan"]["logged_loss"] != "nll" and abs(logged - nll) > 0.05 * nll


def double_softmax(run: Run, floors: float = SHOWN) -> bool:
    """The network ends in a softmax."""
    return bool(run["plan"]["shape"]["softmax"])


def wrong_accuracy(run: Run, floors: float = SHOWN) -> bool:
    """The logged accuracy differs from that of the predictions by at least two points."""
    last = _last(run)
    logged, accuracy = last["logged"].get("val_accuracy", math.nan), last["values"].get("accuracy", math.nan)
    return run["plan"]["logged_accuracy"] != "right" and abs(logged - accuracy) > 0.02


def train_eval_mismatch(run: Run, floors: float = SHOWN) -> bool:
    """The same weights and fresh rows have a fifth less loss in training mode; to hold, training may divide logits
    that evaluation does not.
    """
    end = run["truth"]["end"]
    if floors < SHOWN and run["plan"]["train_temperature"] != 1:
        return True
    return "train_mode" in end and end["train_mode"]["finite"] == 1 and end["train_mode"]["nll"] < 0.8 * end["nll"]


def under_confidence(run: Run, floors: float = SHOWN) -> bool:
    """One temperature below 0.8 saves 15 % of the loss at the end; to hold, one below 0.85 a floor, at the end or at
    four evaluations.
    """
    end = run["truth"]["end"]
    if floors < SHOWN:
        return _saves(run, lambda best: best < 0.85)
    return bool(end["finite"]) and end["temperature"] < 0.8 and end["nll"] - end["refined_nll"] > 0.15 * end["nll"]


def scale_growth(run: Run, floors: float = SHOWN) -> bool:
    """The loss rose while the loss after one temperature fell by a floor and accuracy rose by a point; to hold, fell
    and rose at all.
    """
    _, refined, accuracy = rise(run)
    if floors < SHOWN:
        return rises(run, floors) and refined < 0 and accuracy > 0.003
    return rises(run, floors) and refined <= -_limit(run) and accuracy >= 0.01


def confidence_growth(run: Run, floors: float = SHOWN) -> bool:
    """From the first evaluation within half a point of the best accuracy, with eight after it, the loss fell."""
    path = _paths(run)
    if not path:
        return False
    best = max(point["accuracy"] for point in path)
    first = next(place for place, point in enumerate(path) if point["accuracy"] > best - 0.005)
    fell = path[first]["nll"] - min(point["nll"] for point in path)
    lasts = floors < SHOWN or len(path) - 1 - first >= 8
    return lasts and fell > floors * floor(path[first]["nll"]) and path[-1]["accuracy"] > best - 0.01


def unconfident_shift(run: Run, floors: float = SHOWN) -> bool:
    """From the second phase on loss and accuracy fell, and neither loss after one temperature nor recalls gained."""
    ends = _at_phase(run)
    if ends is None or not _fell(*ends, floors) or _recalls_rose(*ends):
        return False
    return ends[1]["refined_nll"] > ends[0]["refined_nll"] - ABSOLUTE_FLOOR


SYMPTOMS: dict[str, Callable[[Run, float], bool]] = {
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


def shown(run: Run) -> bool:
    """Whether the planted fault showed its symptom on fresh rows."""
    return SYMPTOMS[run["cause"]](run, SHOWN)


def _rose_for_a_while(run: Run, low: float, high: float) -> bool:
    """Whether for four evaluations the loss stood two floors high, and the share left after one temperature between."""
    path, best, held = _paths(run), 0, 0
    for place, point in enumerate(path):
        best = place if point["nll"] < path[best]["nll"] else best
        risen = point["nll"] - path[best]["nll"]
        left = (point["refined_nll"] - path[best]["refined_nll"]) / risen if risen > 0 else math.nan
        held = held + 1 if risen > SHOWN * floor(path[best]["nll"]) and low < left < high else 0
        if held >= 4:
            return True
    return False


def true_causes(run: Run) -> set[str]:
    """All causes that hold on the fresh sample, the planted one among them if it showed."""
    found = {name for name, symptom in SYMPTOMS.items() if symptom(run, HOLDS)}
    share = share_left(run, HOLDS)
    # Near a limit of the definitions, or between them; what was so at four evaluations was true then, whatever came.
    if share < 0.25 + UNCERTAIN:
        found.add("over-confidence")
    if share > 0.50 - UNCERTAIN or _rose_for_a_while(run, 0.50 - UNCERTAIN, math.inf):
        found.add("overfitting")
    if 0.25 - UNCERTAIN < share < 0.50 + UNCERTAIN or _rose_for_a_while(run, 0.25 - UNCERTAIN, 0.50 + UNCERTAIN):
        found.add("mixed")
    # Or beside an explosion of confidence a quarter of what had been learnt is gone.
    if share < 0.5 and rise(run)[1] > 0.25 * (_entropy(run) - run["truth"]["best"]["refined_nll"]):
        found.add("mixed")
    return found
