"""Which column is the validation loss? Names of logged scalars, guessed by their words.

A name is cut into words (`val/Top-1 Acc` into val, top1, acc). Words that mean nothing here (epoch, avg, categorical …)
cost little; words that make it another quantity (top 5, balanced, per class, box, kl …) rule it out.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from dataclasses import dataclass, fields

# In this order if a log has several: a test set that is logged every epoch is the last choice.
EVALUATION_WORDS = ("val", "valid", "validation", "dev", "eval", "evaluation", "holdout", "heldout", "test", "testing")
TRAINING_WORDS = ("train", "training", "trn", "tr")
LOSS_WORDS = ("loss", "nll", "ce", "bce", "xent", "crossentropy", "criterion", "logloss", "losses")
ACCURACY_WORDS = ("accuracy", "acc", "top1", "acc1", "prec1", "precision1")
ERROR_WORDS = ("error", "err", "err1")
# Costs of words beside the stage and the kind; every other word costs `UNKNOWN_COST`.
COSTS = {
    **dict.fromkeys(("epoch", "mean", "avg", "average", "total", "overall", "end", "log"), 0),
    **dict.fromkeys(("metrics", "metric", "binary", "multiclass", "categorical", "sparse", "cross", "entropy"), 1),
    **dict.fromkeys(("top1", "at", "rate", "score", "classification", "model", "0", "idx", "dataloader", "pct"), 1),
    **dict.fromkeys(("percent", "percentage", "micro", "set", "data"), 1),
    **dict.fromkeys(("lossacc", "cls"), 2),
    **dict.fromkeys(("step", "batch", "iter", "running", "smooth", "smoothed", "vs", "iterations"), 4),
}
UNKNOWN_COST = 3
MAX_COST = 8
OTHER_QUANTITIES = frozenset(
    re.findall(
        r"\S+",
        """
        1 2 3 4 5 6 7 8 9 10 top5 top3 top2 top10 acc5 prec5 err5 balanced macro weighted class classes per std
        var deviation best min max gap diff delta ratio aux auxiliary box obj dfl giou bbox mask rpn reg
        regularization regularisation penalty kl recon reconstruction refinement calibration calibrated expected
        ece mae mse rmse squared absolute scale ema patience lr grad norm time perplexity variance improvement
        threshold gain discriminator generator bits label labels smoothing lower upper memory probe
        ci confidence interval count counts n num number
        """,
    )
)
EPOCH_NAMES = ("epoch", "epochs", "current epoch", "epoch number", "epoch num", "ep")
STEP_NAMES = ("step", "global step", "trainer global step", "iteration", "iter", "iterations", "steps")
PERCENT_WORDS = {"percent", "pct", "percentage"}
_STAGES = "valid|val|validation|test|eval|dev|train|training|trn"
_GLUED = re.compile(rf"(?:({_STAGES}|tr|v|t|te)(loss|nll|accuracy|acc|err|error|top1|acc1)|(loss|acc)({_STAGES}))")
_LOADER = re.compile(r"/dataloader_idx_(\d+)")
_SHORT_STAGES = {"v": "val", "t": "train", "te": "test"}
_NUMBERED = {"top", "acc", "prec", "precision", "err"}


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns of one log; None where there is none, or where it is to be guessed.

    Attributes:
        loss, accuracy: of the validation data (`accuracy` may hold an error rate, see `error`).
        train_loss, train_accuracy: of the training data.
        epoch, step, learning_rate: numbers of the epoch and the optimizer step; learning rate.
    """

    loss: str | None = None
    accuracy: str | None = None
    train_loss: str | None = None
    train_accuracy: str | None = None
    epoch: str | None = None
    step: str | None = None
    learning_rate: str | None = None

    def named(self) -> dict[str, str]:
        """The columns that are known, by their role."""
        return {item.name: name for item in fields(self) if (name := getattr(self, item.name)) is not None}


def words_of(name: str) -> tuple[str, ...]:
    """Lower-case words of a column name; camel case, glued names (`valAcc`, `testloss`) and `Acc@1` are understood."""
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", name.strip().replace("%", " percent "))
    found: list[str] = []
    for word in re.findall(r"[A-Za-z]+[0-9]*|[0-9]+", spaced):
        lower = word.lower()
        glued = _GLUED.fullmatch(lower)
        if lower == "1" and found and found[-1] in _NUMBERED:
            found[-1] += "1"
        elif glued:
            stage, kind = (glued[1], glued[2]) if glued[1] else (glued[4], glued[3])
            found += [_SHORT_STAGES.get(stage, stage), kind]
        else:
            found.append(lower)
    return tuple(found)


def is_error(name: str) -> bool:
    """Whether a column holds an error rate, which is 1 - accuracy; so do `top1_err` and `acc_error`."""
    return bool(set(words_of(name)) & set(ERROR_WORDS))


def guess(names: Iterable[str], given: Columns | None = None) -> Columns:
    """The columns of a log by their names; those of `given` are taken as they are.

    An accuracy without a stage belongs to the validation data if the losses of both stages have one (fastai's
    `epoch, train_loss, valid_loss, accuracy`), else to the training data (Keras' `accuracy, val_accuracy`). A log
    without any validation column leaves `loss` and `accuracy` empty. Beside a column that was named stands the one of
    the same stage and loader, with the same words of its own (`eval_mismatched_loss, eval_mismatched_accuracy`).

    Raises:
        KeyError: if a name of `given` is not among `names`.
    """
    names = list(names)
    chosen = dict((given or Columns()).named())
    for name in chosen.values():
        if name not in names:
            raise KeyError(name)
    place = next((place for role in ("loss", "accuracy") if (place := _place(chosen.get(role, "")))[0]), None)
    own = {word for role in ("loss", "accuracy") for word in words_of(chosen.get(role, ""))}
    is_boosted = _is_boosted(names)
    first = min((_place(name)[1] for name in names if _describe(name, is_boosted)), default=0)
    best: dict[tuple[str, str], tuple[int, str]] = {}
    for name in names:
        found = _describe(name, is_boosted, own)
        if found is not None and name not in chosen.values():
            stage, kind, cost = found
            if stage == "val" and not _belongs(name, place, first):
                continue
            cost += len((own & OTHER_QUANTITIES).difference(words_of(name)))
            if cost < best.get((stage, kind), (MAX_COST + 1, ""))[0]:
                best[stage, kind] = (cost, name)
    picked = {place: name for place, (_, name) in best.items()}
    loss, accuracy = picked.get(("val", "loss")), picked.get(("val", "accuracy"))
    train_loss, train_accuracy = picked.get(("train", "loss")), picked.get(("train", "accuracy"))
    bare_loss, bare_accuracy = picked.get(("", "loss")), picked.get(("", "accuracy"))
    if accuracy is None and loss is not None and train_loss is not None and train_accuracy is None:
        accuracy, bare_accuracy = bare_accuracy, None
    if loss is None and train_loss is not None and accuracy is not None:
        loss, bare_loss = bare_loss, None
    guessed = {
        "loss": loss,
        "accuracy": accuracy,
        "train_loss": train_loss or bare_loss,
        "train_accuracy": train_accuracy or bare_accuracy,
        "epoch": _first_of(EPOCH_NAMES, names),
        "step": _first_of(STEP_NAMES, names),
        "learning_rate": _learning_rate(names),
    }
    for role, name in guessed.items():
        if name is not None and name not in chosen.values():
            chosen.setdefault(role, name)
    return Columns(**chosen)


def not_judged(names: Iterable[str], columns: Columns) -> list[str]:
    """Losses and accuracies of evaluation data that are as good a choice as the chosen columns.

    Those of another loader or stage, and those whose names fit as well (`eval_matched_loss, eval_mismatched_loss`).
    """
    names = list(names)
    is_boosted = _is_boosted(names)
    chosen = [name for name in (columns.loss, columns.accuracy) if name is not None]
    places = {_place(name) for name in chosen}
    equals = {_describe(name, is_boosted) for name in chosen}
    found = []
    for name in names:
        described = _describe(name, is_boosted)
        if described is None or described[0] != "val" or name in chosen:
            continue
        if _place(name) not in places or described in equals:
            found.append(name)
    return found if any(stage for stage, _ in places) else []


def _place(name: str) -> tuple[str, int]:
    """The data that an evaluation was on: stage (empty if the name does not say) and number of the loader."""
    loader = _LOADER.search(name)
    found = words_of(name)
    stage = next((word for word in found if word in EVALUATION_WORDS), "")
    stages = {"testing": "test", "test": "test", "": ""}
    return stages.get(stage, "val"), int(loader[1]) if loader else 0


def _belongs(name: str, place: tuple[str, int] | None, first: int) -> bool:
    """Whether a column is of the data that the user named, or else of the first loader that there is."""
    return _place(name)[1] == first if place is None else _place(name) == place


def _is_boosted(names: list[str]) -> bool:
    """Whether the sets are numbered as boosting libraries do: the first one is that of the training."""
    firsts = {words_of(name)[:2] for name in names}
    return ("validation", "0") in firsts and ("validation", "1") in firsts


def _describe(name: str, is_boosted: bool = False, free: Container[str] = ()) -> tuple[str, str, int] | None:
    """Stage, kind and cost of a column, or None if it is neither a loss nor an accuracy; `free` words cost nothing."""
    rest = list(words_of(_LOADER.sub("", name)))
    if is_boosted and rest[:2] in (["validation", "0"], ["validation", "1"]):
        rest[:2] = ["train" if rest[1] == "0" else "validation"]
    if any(word in OTHER_QUANTITIES and word not in free for word in rest):
        return None
    cost, stage = 0, ""
    for word in rest:
        if word in EVALUATION_WORDS:
            # Validation before test: half a step of cost each, so that it never outweighs another word.
            stage, cost = "val", cost + (2 if word in ("test", "testing") else 0)
        elif word in TRAINING_WORDS and not stage:
            stage = "train"
    rest = [word for word in rest if word not in EVALUATION_WORDS and word not in TRAINING_WORDS]
    is_accuracy = any(word in ACCURACY_WORDS for word in rest)
    is_loss = any(word in LOSS_WORDS for word in rest) or {"cross", "entropy"} <= set(rest)
    is_wrong = any(word in ERROR_WORDS for word in rest)
    if is_accuracy + is_loss != 1 and not (is_wrong and not is_loss):
        return None
    known = {*LOSS_WORDS, *ACCURACY_WORDS, *ERROR_WORDS}
    cost += sum(COSTS.get(word, UNKNOWN_COST) for word in rest if word not in known and word not in free)
    # An error rate is the last choice, after every accuracy.
    cost += 3 if is_wrong else 0
    if cost > MAX_COST:
        return None
    return stage, "loss" if is_loss else "accuracy", cost


def _first_of(wanted: tuple[str, ...], names: list[str]) -> str | None:
    by_words = {" ".join(words_of(name)): name for name in reversed(names)}
    return next((by_words[words] for words in wanted if words in by_words), None)


def _learning_rate(names: list[str]) -> str | None:
    return next((name for name in names if "lr" in (found := words_of(name)) or {"learning", "rate"} <= {*found}), None)
