"""Why did the loss move? Identities whose parts add up to the change exactly, from the paired numbers of a probe.

Every function takes the dictionary that `probe.compare` makes and returns parts that sum to its `nll_change` within
1e-9. Only paired groups are used: "more confident" cannot be told from "other rows" by unpaired means.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

LEVEL = 0.99  # of every interval in a message
_QUANTILE = -NormalDist().inv_cdf((1 - LEVEL) / 2)


def interval(change: float, error: float) -> tuple[float, float]:
    """99 % interval of a mean paired difference by its standard error (normal approximation)."""
    return change - _QUANTILE * error, change + _QUANTILE * error


def by_group(paired: dict[str, Any]) -> dict[str, float]:
    """Change of the NLL (nats) by what happened to the item: right both times, wrong both times, flips each way."""
    return {group["name"]: group["change"] for group in paired["groups"]}


def by_temperature(paired: dict[str, Any]) -> dict[str, float]:
    """Change of the NLL as change after one temperature plus change of what one temperature removes.

    L = R + G with R the NLL after the best single temperature and G = L - R >= 0 (Berta et al. 2025), so dL = dR + dG.
    One temperature cannot repair class-wise or prior errors: R is an upper bound of what is left after re-calibration.

    Returns:
        Two parts, or an empty dictionary if the temperature grid was off.
    """
    if "refinement_change" not in paired:
        return {}
    refined = paired["refinement_change"]
    return {"after one temperature": refined, "confidence (one temperature)": paired["nll_change"] - refined}


def attribution(paired: dict[str, Any], full_change: float) -> dict[str, Any]:
    """All identities of one change, with the change of the whole evaluation beside the probe's.

    Args:
        paired: see `probe.compare`.
        full_change: change of the NLL over all rows; equals the probe's when the probe holds all items.
    """
    return {
        "nll_change": paired["nll_change"],
        "full_nll_change": full_change,
        "outside_probe": full_change - paired["nll_change"],
        "by_group": by_group(paired),
        "by_temperature": by_temperature(paired),
        "worst": paired["worst"],
    }


def group_sentence(paired: dict[str, Any]) -> str:
    """The groups as one line: rows, how many have a higher loss, and their part of the change (nats)."""
    groups = {group["name"]: group for group in paired["groups"]}
    if "right both times" not in groups:
        return " · ".join(f"{group['items']} {name}: {group['change']:+.4f}" for name, group in groups.items())
    wrong, right = groups["wrong both times"], groups["right both times"]
    gained, lost = groups["wrong to right"], groups["right to wrong"]
    flips = gained["items"] + lost["items"]
    return (
        f"{wrong['items']} rows wrong both times ({wrong['higher']} with higher loss): {wrong['change']:+.4f} · "
        f"{right['items']} right both times: {right['change']:+.4f} · "
        f"{flips} flips ({gained['items']} to right, {lost['items']} to wrong): "
        f"{gained['change'] + lost['change']:+.4f}"
    )


def temperature_sentence(paired: dict[str, Any]) -> str:
    """What is left of the change after one temperature, and the share of the change that is confidence."""
    refined = paired.get("refinement_change", math.nan)
    low, high = interval(refined, paired.get("refinement_change_error", math.nan))
    text = f"after one temperature: {refined:+.4f} ({low:+.4f} … {high:+.4f})"
    change = paired["nll_change"]
    if change <= 0:
        return text
    least, most = (round(100 * (1 - bound / change)) for bound in (high, low))
    if least >= 100:
        return f"{text}, so all of the rise is confidence"
    if most <= 0:
        return f"{text}, so none of the rise is confidence"
    return f"{text}, so {max(least, 0)} … {min(most, 100)} % of the rise is confidence"


def worst_sentence(paired: dict[str, Any], shown: int = 3) -> str:
    """The items whose loss rose most: position in the data set, target → predicted class."""
    worst = paired["worst"][:shown]
    if not worst:
        return ""
    names = [
        f"#{item['index']} {item['target']}→{item['predicted']}" if item["rows"] == 1 else f"#{item['index']}"
        for item in worst
    ]
    return f"worst rows {', '.join(names)}"
