"""Causes in what is measured: the numbers are not what their names say."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_lossacc.diagnosis.data import class_shares, first_sight, is_left_behind, shares_apart
from lightning_lossacc.diagnosis.event import Cause
from lightning_lossacc.diagnosis.evidence import Evidence, accuracy_of, loss_of
from lightning_lossacc.floors import double_sigmoid_floor, double_softmax_floor, is_no_nll, smallest_nll
from lightning_lossacc.history import Record

# A logged accuracy is an average over batches; the last, smaller one moves it a little.
ACCURACY_TOLERANCE = 0.02
LOSS_TOLERANCE = 0.05  # of the NLL
LOSS_NATS = 0.02
MIN_SUMMED = 4.0  # rows of a batch; other multiples of a loss are smaller
RESAMPLED = 0.10  # total variation distance between class shares
LAST_BATCH = 0.5  # of the running statistics that one batch is
DRIFT = 0.5  # of the size of a statistic of batch normalisation
KNOWN_ACCURACIES = ("accuracy", "balanced_accuracy", "top_k_accuracy")


def double_softmax(evidence: Evidence) -> Cause | None:
    """The loss gets probabilities where it expects logits, so that softmax is applied twice.

    What it finds: all values given to the loss lie in [0, 1] and every row sums to 1. In a log of scalars: the loss
        stands just above ln(e + C - 1) - 1, below which it cannot fall then, at an accuracy that allows far less.
    Why it matters: the loss has a high floor, gradients vanish as the network gets certain, and every probability is
        too small.
    Evidence it needs: the captured logits; in a log of scalars the number of classes.
    What to do: give the loss the raw logits; drop the softmax or sigmoid at the end of the network.
    When it is wrong: log-probabilities are harmless (softmax leaves them as they are) and are told apart.
    Reference: Goodfellow et al. 2016, section 6.2.2.
    """
    if evidence.current.arrays.get("looks_like") == "probabilities":
        if "F.nll_loss" in evidence.current.arrays.get("loss_terms", ""):
            return Cause("double-softmax", math.nan, ("F.nll_loss got probabilities, and takes their logarithms",))
        line = "every row given to the loss lies in [0, 1] and sums to 1: these are probabilities, not logits"
        if evidence.num_classes == 2:
            line = (
                "all values given to the loss are probabilities (in [0, 1]), not logits: softmax or sigmoid acts twice"
            )
        return Cause("double-softmax", math.nan, (line, *_floor_line(evidence)))
    if "nll" in evidence.current.values or evidence.num_classes is None:
        return None
    loss, error = loss_of(evidence.current), 1 - accuracy_of(evidence.current)
    floor = double_softmax_floor(evidence.num_classes)
    # With a share e of rows wrong and certain, the loss is floor + e: the wrong class has p = 1 instead of 0.
    expected = floor + error
    if not (len(evidence.series) >= 5 and abs(loss - expected) < 0.03 * expected and error < 0.5):
        return None
    return Cause("double-softmax", math.nan, _floor_line(evidence), ("another loss may stand there by chance",))


def _floor_line(evidence: Evidence) -> tuple[str, ...]:
    if evidence.num_classes is None:
        return ()
    rows = evidence.class_rows
    if evidence.current.arrays.get("task") == "binary" and len(rows) == 2 and sum(rows) > 0:
        floor = double_sigmoid_floor(rows[1] / sum(rows))
        return (
            f"with sigmoid applied twice the loss cannot fall below {floor:.4f}; it is {loss_of(evidence.current):.4f}",
        )
    floor = double_softmax_floor(evidence.num_classes)
    return (
        f"with softmax applied twice the loss cannot fall below {floor:.4f}; it is {loss_of(evidence.current):.4f}",
    )


def wrong_accuracy(evidence: Evidence) -> Cause | None:
    """The logged accuracy is not that of these logits, by any usual definition.

    What it finds: a logged accuracy that differs from the accuracy, the balanced and the top-k accuracy of the captured
        logits by more than 2 pp in each of the last three evaluations.
    Why it matters: one of both numbers is computed from something else: a wrong threshold, an argmax over the wrong
        dimension, another data set, or a state that is not reset.
    Evidence it needs: captured logits and a logged accuracy.
    What to do: torchmetrics' accuracy for the task, on the same logits and targets; reset it every epoch.
    When it is wrong: accuracy of other rows (a subset, a running average) differs rightly. With several logged
        accuracies of which one is that of these logits, the others are taken for other heads, classes or k.
    Reference: torchmetrics documentation (Detlefsen et al. 2022).
    """
    last = _with_logs(evidence, "acc")
    if len(last) < 3:
        return None
    # Probabilities of the second of two classes are all above 0, where a logit decides; your accuracy knows better.
    if evidence.num_classes == 2 and last[-1].arrays.get("looks_like") == "probabilities":
        return None
    # With five classes or fewer every row is right in the top five.
    known = KNOWN_ACCURACIES if (evidence.num_classes or 0) > 5 else KNOWN_ACCURACIES[:2]
    # What calls itself top-k is no accuracy that could be wrong.
    keys = [key for key in logged_keys(last[-1], "acc") if "top" not in key.lower()]
    distances = {key: [_accuracy_gap(record, key, known) for record in last] for key in keys}
    if any(all(gap <= ACCURACY_TOLERANCE for gap in gaps) for gaps in distances.values()):
        return None
    for key, gaps in distances.items():
        if all(gap > ACCURACY_TOLERANCE for gap in gaps):
            ours = ", ".join(
                f"{name.replace('_', ' ')} {100 * last[-1].values[name]:.1f} %"
                for name in known
                if name in last[-1].values
            )
            return Cause(
                "wrong-accuracy",
                share=math.nan,
                evidence=(f"your {key} is {100 * _fraction(last[-1].logged[key]):.1f} %; of these logits: {ours}",),
                against=("it may be of other rows or another average",),
            )
    return None


def loss_mismatch(evidence: Evidence) -> Cause | None:
    """The logged loss is not the NLL: weights, smoothing, a penalty or another loss move it another way.

    What it finds: a logged loss that differs from the NLL of the captured logits by more than 5 % and 0.02 nats in each
        of the last three evaluations. From scalars: a loss below e ln 2 cannot be the NLL of answers with error e.
    Why it matters: loss and accuracy seem to part although the NLL agrees with accuracy, or the other way.
    Evidence it needs: captured logits and a logged loss; in a log of scalars loss and accuracy.
    What to do: log the raw NLL beside the training objective, and compare like with like.
    When it is wrong: an average over batches instead of rows differs a little, hence the tolerance; in scans the
        accuracy may be macro or top-k.
    Reference: Szegedy et al. 2016 (smoothing); Lin et al. 2017 (focal loss).
    """
    last = _with_logs(evidence, "loss")
    if len(last) < 3:
        return None
    if "nll" not in last[-1].values:
        return _impossible(evidence)
    for key in logged_keys(last[-1], "loss"):
        gaps = [record.logged.get(key, math.nan) - record.values["nll"] for record in last]
        limits = [max(LOSS_NATS, LOSS_TOLERANCE * record.values["nll"]) for record in last]
        if all(abs(gap) > limit for gap, limit in zip(gaps, limits, strict=True)):
            terms = evidence.current.arrays.get("loss_terms") or _summed(last, key) or "other terms, or another average"
            return Cause(
                "loss-mismatch",
                share=math.nan,
                evidence=(
                    f"your {key} {last[-1].logged[key]:.4f} = NLL {last[-1].values['nll']:.4f} {gaps[-1]:+.4f} "
                    f"({terms})",
                ),
            )
    return None


def _summed(last: Sequence[Record], key: str) -> str:
    """Whether a logged loss is about the same multiple of the NLL at each evaluation, as sums over batches are."""
    times = [record.logged.get(key, math.nan) / record.values["nll"] for record in last if record.values["nll"] > 0]
    if len(times) < len(last) or not min(times) >= MIN_SUMMED or max(times) > 1.05 * min(times):
        return ""
    return f'about {times[-1]:.4g} times the NLL each time: a sum over rows, as of reduction="sum", not their mean'


def _impossible(evidence: Evidence) -> Cause | None:
    last = evidence.series[-3:]
    if not is_no_nll([loss_of(record) for record in last], [accuracy_of(record) for record in last]):
        return None
    error = 1 - accuracy_of(last[-1])
    return Cause(
        "loss-mismatch",
        share=math.nan,
        evidence=(
            f"a loss of {loss_of(last[-1]):.4f} cannot be the NLL of answers of which {100 * error:.1f} % are "
            f"wrong: that is at least {smallest_nll(error):.4f}",
        ),
        against=("or this accuracy is macro or top-k",),
    )


def train_eval_mismatch(evidence: Evidence) -> Cause | None:
    """The same training rows score far worse in eval mode than in train mode.

    What it finds: the NLL of fixed training rows in eval mode is more than 1.5 times and 0.1 nats above that of the
        training steps of the same epoch and their accuracy 5 pp or more below, or the NLL more than 2.5 times and 0.2
        nats above, in each of the last three evaluations, although the weights are later ones; the NLL alone not where
        nothing normalises batches and a temperature above 1 explains it: then the training loss divides the logits.
        Without `train_probe=`: running statistics that stay half their size away from those of the batches, and
        validation far behind. Where the loss swings, a momentum of batch normalisation of 0.5 and more. Or, in any of
        the last evaluations: layers of dropout or batch normalisation were in training mode, or the same training rows
        got other logits when they were asked a second time in eval mode.
    Why it matters: validation suffers from the mode, not from new data: running statistics of batch normalisation that
        lag behind, or layers that act in one mode only.
    Evidence it needs: `train_probe=`, or `watch` for batch normalisation.
    What to do: a higher momentum of batch normalisation, larger batches, SyncBatchNorm, or another normalisation; no
        `self.train()` in an evaluation, and `F.dropout(x, p, self.training)`.
    When it is wrong: with augmentation that makes training rows easier than the plain ones, and where answers are meant
        to be random (Monte Carlo dropout).
    Reference: Ioffe and Szegedy 2015; Wu and Johnson 2021.
    """
    acting = _acting(evidence)
    if acting is not None:
        return Cause("train-eval-mismatch", share=math.nan, evidence=(acting,))
    layers, momentum = evidence.context("batch_norm_layers"), evidence.context("batch_norm_momentum")
    if "swing" in evidence.details and momentum >= LAST_BATCH:
        # Without a swing the last batch is as good as any.
        text = f"batch normalisation has a momentum of {momentum:.3g}: its last batch is {100 * momentum:.3g} % of its"
        return Cause(
            "train-eval-mismatch",
            share=math.nan,
            evidence=(f"{text} running statistics (torch's momentum is the weight of the new batch; 0.1 is usual)",),
        )
    if not evidence.train_probe:
        return _drifting(evidence)
    pairs = list(zip(evidence.series[-3:], evidence.train_probe[-3:], strict=False))
    if len(pairs) < 3 or not all(_is_worse(record, probe) for record, probe in pairs) or _is_resampled(evidence):
        return None
    steps, rows = evidence.context("train_nll"), evidence.train_nll
    lines = [f"training rows: NLL {rows:.4f} in eval mode, {steps:.4f} in the steps of the same epoch"]
    if layers > 0:
        lines.append(f"{layers:.0f} layers of batch normalisation")
    return Cause("train-eval-mismatch", share=math.nan, evidence=tuple(lines))


def _acting(evidence: Evidence) -> str | None:
    """What acts in evaluation that should act in training only, in words."""
    layers = evidence.context("training_layers")
    if layers > 0:
        return f"{layers:.0f} layers of dropout or batch normalisation were in training mode in this evaluation"
    random = evidence.train_probe[-1].context.get("random_rows", 0.0) if evidence.train_probe else 0.0
    if random > 0:
        return (
            f"{100 * random:.0f} % of the same training rows got other logits when asked again in eval mode: the "
            "network answers at random, or keeps something from one call to the next"
        )
    return None


def _drifting(evidence: Evidence) -> Cause | None:
    """Without a train probe: running statistics far from those of the batches, and validation far behind training."""
    last = evidence.series[-3:]
    drifts = [record.context.get("batch_norm_drift", math.nan) for record in last]
    behind = [record.context.get("train_accuracy", math.nan) - accuracy_of(record) for record in last]
    # A training NLL of 0 is no reason to look at batch normalisation.
    worse = [loss_of(record) / (record.context.get("train_nll") or math.nan) for record in last]
    if len(last) < 3 or not (min(drifts) >= DRIFT and min(behind) > 0.05 and min(worse) > 1.5):
        return None
    return Cause(
        "train-eval-mismatch",
        share=math.nan,
        evidence=(
            f"running statistics of batch normalisation differ from those of the batches by up to {drifts[-1]:.2g} of "
            "their size (usual: under 0.1)",
            f"accuracy {100 * evidence.train_accuracy:.1f} % in training steps and "
            f"{100 * evidence.value('accuracy'):.1f} % here",
        ),
        against=("overfitting is not excluded without `train_probe=`",),
    )


def validation_mismatch(evidence: Evidence) -> Cause | None:
    """These rows are unlike training rows: their inputs, their labels or the weights that answer them are others.

    What it finds: training rows were certainly, and by 5 pp, above the share of their largest class in the first epoch,
        when none of them had been seen before, and still are; these rows have not come half as far in each of the last
        three evaluations, certainly.
    Why it matters: what was learnt holds for new rows of the training set's kind, so neither the network nor the labels
        of training are at fault, and no regularisation helps.
    Evidence it needs: accuracy of the training steps and class counts of the first epoch.
    What to do: send training rows through the validation loader; compare mean, standard deviation, range and labels of
        a batch of each; look at what swaps weights before validation, and at `shuffle=True` of training.
    When it is wrong: where a first epoch holds each row many times, or training went on from weights that knew its
        rows. New groups (patients, recordings) that nothing was learnt for look the same, and so do training rows in
        the order of their classes and layers that act in one mode only.
    Reference: Dawid 1984 (prequential analysis); Sculley et al. 2015 (training-serving skew).
    """
    if not is_left_behind(evidence) or train_eval_mismatch(evidence) is not None:
        return None
    accuracy, share = first_sight(evidence)
    others = "other groups (patients, recordings) than those of training look the same"
    if not evidence.train_probe:
        others += ", and weights that are swapped for validation, and training rows in the order of their classes"
    return Cause(
        "validation-mismatch",
        share=math.nan,
        evidence=(
            f"training rows were {100 * accuracy:.1f} % accurate when they were seen for the first time (largest class "
            f"{100 * share:.1f} %), these are {100 * accuracy_of(evidence.current):.1f} % accurate now",
        ),
        against=(others,),
    )


def _is_worse(record: Record, probe: Record) -> bool:
    """Whether training rows are worse in eval mode than in the steps of the same epoch, by far."""
    steps, rows = record.context.get("train_nll", math.nan), loss_of(probe)
    lost = record.context.get("train_accuracy", math.nan) - accuracy_of(probe)
    if rows > 1.5 * steps and rows - steps > 0.1 and lost > 0.05:
        return True
    return rows > 2.5 * steps and rows - steps > 0.2 and not _is_scale(record, probe)


def _is_scale(record: Record, probe: Record) -> bool:
    """Whether the logits of training rows are only too large for their own labels, and no layer acts on their size.

    A loss that divides the logits trains them to be so; batch normalisation may be the reason where there is some.
    """
    refined, steps = probe.values.get("refinement_nll", math.nan), record.context.get("train_nll", math.nan)
    scaled = probe.values.get("temperature", 1.0) > 1 and refined <= 1.5 * steps
    return scaled and record.context.get("batch_norm_layers") == 0


def _is_resampled(evidence: Evidence) -> bool:
    """Whether the training steps have other class shares than the probe's rows: then a sampler is the reason."""
    drawn, table = (
        evidence.current.arrays.get("train_classes") or [],
        evidence.train_probe[-1].arrays.get("classes", {}),
    )
    return shares_apart(class_shares(drawn, table)) > RESAMPLED


def logged_keys(record: Record, word: str) -> list[str]:
    """Names under which the user logged a loss or an accuracy of this loader; of several loaders one without a number
    is of nobody knows which.
    """
    several = any("/dataloader_idx_" in key for key in record.logged)
    end = f"/dataloader_idx_{max(record.loader, 0)}" if several else ""
    return [key for key in record.logged if word in key.lower() and key.endswith(end)]


def _with_logs(evidence: Evidence, word: str) -> Sequence[Record]:
    """The last three evaluations of which the user's own number can be known: what is logged when an epoch ends is
    known of the one before only.
    """
    series = evidence.series
    known = [set(logged_keys(record, word)) for record in series[-2:]]
    return series[-4:-1] if len(known) == 2 and known[0] - known[1] else series[-3:]


def _fraction(value: float) -> float:
    return value / 100 if value > 1.5 else value


def _accuracy_gap(record: Record, key: str, known: tuple[str, ...]) -> float:
    """Distance of a logged accuracy from the nearest of the accuracies of the captured logits."""
    logged = _fraction(record.logged.get(key, math.nan))
    return min((abs(logged - record.values[name]) for name in known if name in record.values), default=math.nan)
