"""What a remedy may use: the numbers of the evaluation at hand, of the best one, and of training up to it.

A number that was not measured is NaN, and a list is empty; a sentence then says the formula instead of the number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_lossacc.history import Record

CONFIRM = "confirm on a test set"
# So many numbers can be read and typed; beyond, a formula is shorter.
SHOWN_CLASSES = 12


@dataclass(frozen=True, slots=True)
class Measured:
    """Records that a remedy is computed from.

    Attributes:
        current: the evaluation at which the cause was found.
        best_refinement: the evaluation with the lowest loss after one temperature so far.
        series: all comparable evaluations so far, oldest first, and records of training probes; may be empty.
    """

    current: Record
    best_refinement: Record
    series: tuple[Record, ...] = ()

    def value(self, key: str) -> float:
        """A quantity of the current evaluation."""
        return float(self.current.values.get(key, math.nan))

    def context(self, key: str) -> float:
        """What training looked like up to the current evaluation."""
        return float(self.current.context.get(key, math.nan))

    @property
    def train_probe(self) -> Record | None:
        """The last evaluation of the training probe; None without one."""
        return next((record for record in reversed(self.series) if record.stage == "train_probe"), None)

    @property
    def num_classes(self) -> int:
        """C; 0 if unknown."""
        known = self.current.context.get("num_classes")
        if known is not None and math.isfinite(known):
            return int(known)
        return len(self.counts[0]) or len(self.val_counts)

    @property
    def counts(self) -> tuple[list[float], str]:
        """Rows of each class, of training where they were seen, and whose rows they are; empty if unknown."""
        seen = self.current.arrays.get("train_classes")
        if seen and sum(seen) > 0:
            return [float(rows) for rows in seen], "training"
        return self.val_counts, "validation (those of training were not counted)"

    @property
    def val_counts(self) -> list[float]:
        """Rows of each class in this evaluation; empty if only the largest classes were kept."""
        table = self.current.arrays.get("classes", {})
        rows = table.get("rows", [])
        return [float(count) for count in rows] if list(table.get("class", [])) == list(range(len(rows))) else []

    @property
    def fits(self) -> dict[str, float]:
        """Cross-fitted NLL (nats) of the probe as it is and after one temperature, a bias, a vector; may be empty."""
        fits = self.current.arrays.get("fits", {})
        return {key: float(value) for key, value in fits.items() if isinstance(value, int | float)}

    @property
    def correction(self) -> str:
        """The fitted scale and bias a class as code on `logits`; empty if unknown or of too many classes to type."""
        found = self.current.arrays.get("fits", {})
        values = found.get("bias_values", [])
        if not 2 <= len(values) <= SHOWN_CLASSES or "slope" not in found:
            return ""
        return f"`logits.log_softmax(1) * {number(found['slope'])} + torch.tensor({listed(values)})`"

    @property
    def is_single_logit(self) -> bool:
        """Whether a row has one logit for two classes, under binary cross-entropy."""
        return self.current.arrays.get("task") == "binary"

    @property
    def loss_terms(self) -> str:
        """What the captured loss has beside the NLL, in words."""
        return str(self.current.arrays.get("loss_terms", ""))

    @property
    def loss_best(self) -> Record:
        """The evaluation with the lowest NLL."""
        return min(
            (record for record in self.evaluations if math.isfinite(record.values.get("nll", math.nan))),
            key=lambda record: record.values["nll"],
            default=self.current,
        )

    @property
    def evaluations(self) -> list[Record]:
        """Records of the current one's stage and loader, itself last; those of training probes are left out."""
        now = self.current
        same = [record for record in self.series if (record.stage, record.loader) == (now.stage, now.loader)]
        return [record for record in same if record.global_step != now.global_step] + [now]

    @property
    def suspects(self) -> list[int]:
        """Positions of training items that look mislabelled, from the newest record that has any."""
        for record in (self.current, *reversed(self.series)):
            found = record.arrays.get("memory", {}).get("suspects", [])
            if found:
                return [_index(item) for item in found]
        return []

    @property
    def worst(self) -> list[int]:
        """Positions of the evaluated items whose loss rose most against the loss minimum."""
        return [_index(item) for item in self.current.paired.get("nll", {}).get("worst", [])]


def _index(item: Any) -> int:
    return int(item["index"] if isinstance(item, dict) else item)


def number(value: float) -> str:
    """Three significant digits, as Python reads a float."""
    text = f"{value:.3g}"
    return text if any(sign in text for sign in ".einf") else f"{text}.0"


def described(record: Record) -> str:
    """Epoch, NLL, NLL after one temperature and accuracy; of a log of scalars, the loss and accuracy in it."""
    known = {key: value for key, value in record.values.items() if math.isfinite(value)}
    shown = [f"NLL {known['nll']:.4f}"] if "nll" in known else []
    shown += [f"refined {known['refinement_nll']:.4f}"] if "refinement_nll" in known else []
    shown += [f"accuracy {percent(known['accuracy'])}"] if "accuracy" in known else []
    shown = shown or [f"{name} {value:.4f}" for name, value in record.logged.items() if math.isfinite(value)]
    return ", ".join([f"epoch {record.epoch}", *shown])


def listed(values: Sequence[float]) -> str:
    """A Python list of floats."""
    return f"[{', '.join(number(value) for value in values)}]"


def percent(share: float) -> str:
    """A share in percent with one decimal."""
    return f"{100 * share:.1f} %"


def places(indexes: Sequence[int], shown: int = 8) -> str:
    """Positions in a data set, `#3, #8, …`."""
    names = ", ".join(f"#{index}" for index in indexes[:shown])
    return names + (f" and {len(indexes) - shown} more" if len(indexes) > shown else "")
