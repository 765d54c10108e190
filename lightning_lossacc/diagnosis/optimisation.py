"""Causes in how the weights move: steps too large or too small, units that never answer, penalties that rule."""

from __future__ import annotations

import math
from statistics import median

from lightning_lossacc.diagnosis.data import knows_classes, nothing_learned, unlearned_spread
from lightning_lossacc.diagnosis.dead import BURST_RATIO, died_share, is_clamped, silent_share
from lightning_lossacc.diagnosis.event import Cause
from lightning_lossacc.diagnosis.evidence import Evidence, loss_of
from lightning_lossacc.diagnosis.steps import (
    burst,
    came_down,
    came_suddenly,
    falls_evenly,
    relative_swing,
    shrunk,
    stopped,
)
from lightning_lossacc.floors import label_entropy

HIGH_RATIO = 2e-2  # update over weight: about 1e-3 is usual, above 1e-2 … 1e-1 steps overshoot
# At smaller steps the batches swing as well, mixup by 15 … 35 % of the level at 0.5 … 0.7 %.
RESTLESS_RATIO, RESTLESS_SWING = 7.5e-3, 0.5
JUMPING_RATIO = 1.4e-2
LOW_RATIO, EVEN_RATIO = 3e-4, 6e-4
DEAD_SHARE, DIED_SHARE, MOST_DIED = 0.9, 0.3, 0.5
# Units died after updates of 4 % and more; a first epoch of Adam moves weights by 1 … 4 %, at most 10 % in 824 healthy
# trainings.
KILLING_RATIO = 4e-2
ALIVE_EVALUATIONS = 5  # fewer do not show that living units learn nothing
VANISHED = 1e-3  # of the largest update: 1e-1 … 1e-2 at the end of trainings that went well
RULING_PENALTY = 0.5  # of the loss
# That one temperature saves: 0.005 … 0.011 in trainings that had not ended, 0.04 and more under a rule.
TIMID_NATS = 0.02
RULING_DROPOUT = 0.8  # little is learnt through fewer than a fifth of the units
RECENT = 3  # evaluations whose median stands for now
FORGOTTEN = 1.3  # times the lowest level of the training loss
BLOW_UP = 5.0  # times the smaller of the reference loss and chance


def blow_up(evidence: Evidence) -> Cause | None:
    """The loss explodes on training rows as well, or stops being a number.

    What it finds: rows or gradients that are not finite; a loss of more than three times that of guessing, in training
        as well; or a loss of many times its reference with a training loss that has risen too; or weights whose norm
        leapt by a fifth within one evaluation, after it had been steady, while both losses doubled, and the loss is
        still half as high again.
    Why it matters: the weights have left the region in which they were learning; later epochs seldom come back.
    Evidence it needs: the loss; the training loss where it is known.
    What to do: a lower learning rate, gradient clipping, warm-up; full precision for the loss; look at the batch at
        which it began.
    When it is wrong: a validation loss alone that grows over many epochs is over-confidence or overfitting. A loss that
        began there and has only come down since is that of initial weights which are too large, and is left out.
    Reference: Pascanu et al. 2013; Goodfellow et al. 2016.
    """
    bad = evidence.current.arrays.get("excluded", {}).get("non_finite", 0)
    if bad or not math.isfinite(loss_of(evidence.current)):
        return Cause("blow-up", math.nan, (f"{bad or 'all'} rows have NaN or infinite logits",))
    steps = evidence.context("non_finite_steps")
    if steps > 0:
        return Cause("blow-up", math.nan, (f"{steps:.0f} sampled training steps had a gradient that is not finite",))
    train = evidence.train_losses
    chance = math.log(evidence.num_classes) if evidence.num_classes else math.inf
    now = loss_of(evidence.current)
    if came_down(evidence):
        return None
    leap = burst(evidence)
    if leap is not None:
        return Cause("blow-up", share=math.nan, evidence=leap)
    if train and min(now, train[-1]) > 3 * chance:
        line = f"loss {now:.3g} here and {train[-1]:.3g} in training; guessing costs {chance:.3g}"
        return Cause("blow-up", 1.0, (line,))
    if len(train) < 2 or evidence.is_static:
        return None
    before, lowest = loss_of(evidence.reference), min(train)
    beyond = now > BLOW_UP * before and (now > 2 * chance or chance == math.inf)
    if not (beyond and train[-1] > 2 * lowest and train[-1] > 0.5 * min(chance, now)):
        return None
    return Cause(
        "blow-up",
        share=1.0,
        evidence=(
            f"loss {before:.3g} → {now:.3g}",
            f"training loss {lowest:.3g} → {train[-1]:.3g}",
        ),
    )


def learning_rate_too_high(evidence: Evidence) -> Cause | None:
    """Steps overshoot: the training loss itself swings or rises.

    What it finds: the training loss of the last evaluations is above its own earlier level, stands still far above
        zero, is that of guessing or swings by a large part of it, and an update moves the weights by more than 2 % of
        their size; or it both rises and swings, doubles, or the validation loss swings with it; or it rises by 30 %
        after such updates, or by half of what validation rises while updates are 1 % and more. From updates of 1.4 % on
        the swing is also that of the train probe, the same rows after each epoch. Or the network broke: 30 pp of the
        units of a layer died after updates of 20 %, or of one that is dead after updates of 4 %, or 50 pp of it after
        one of 2 %; the loss stopped being a number after updates of 20 %; or all updates vanished at the same rate
        while the loss is that of guessing.
    Why it matters: what looks like a conflict of loss and accuracy on validation is the same unrest on both sides.
    Evidence it needs: the training loss over several evaluations; `watch` for the update-to-weight ratio.
    What to do: lower the rate by the factor named, a schedule that decays, warm-up, gradient clipping.
    When it is wrong: very small batches make the training loss swing as well; then a larger batch helps alike.
    Reference: Bengio 2012; Smith 2017.
    """
    broken = _broken(evidence)
    if broken is not None:
        return broken
    train = evidence.train_losses
    ratio = evidence.recent_context("update_ratio")
    # A plateau has no unrest; only a network that broke stands still because of its steps.
    if len(train) < 4 or "plateau" in evidence.details or ratio < HIGH_RATIO / 4 or shrunk(evidence):
        return None
    recent, lowest = train[-8:], min(train)
    level = median(recent)
    swing = relative_swing(recent)
    if ratio >= JUMPING_RATIO:
        # The mean over the steps of an epoch smooths what weights that jump do to the very same rows.
        swing = max(swing, relative_swing([loss_of(record) for record in evidence.train_probe[-8:]]))
    prior = evidence.label_entropy
    # A training loss near zero has nothing left to lose; only one that matters can be too high.
    matters = level > 0.05 * prior if math.isfinite(prior) else level > 0.02
    risen = median(recent[-3:]) > 1.25 * min(train[:-3]) + 0.02
    # At twice the level of any three evaluations before, and far from zero: no swing, and nothing that fitting does.
    earlier = min(median(train[at : at + 3]) for at in range(max(1, len(train) - 5)))
    soars = median(recent[-3:]) > max(2 * earlier, 0.15 * prior if math.isfinite(prior) else 0.1)
    # Most of the loss is left, and steps that move the weights a lot bring nothing.
    before = train[-9:-3]
    stalls = len(before) >= 4 and median(recent[-3:]) > 0.9 * median(before) and 0.2 * prior < level < 0.9 * prior
    # Nothing beyond the class shares is learnt, under steps that undo what the one before did.
    guesses = prior > 0 and ratio >= HIGH_RATIO and evidence.value("refinement_nll") >= 0.98 * prior
    drawn = evidence.current.arrays.get("train_classes")
    guesses = guesses and level >= 0.98 * (label_entropy(drawn) if drawn else prior)
    usual = RESTLESS_SWING * median(map(loss_of, evidence.series[-8:])) if ratio < RESTLESS_RATIO else 0.0
    swings = evidence.details.get("swing", 0.0) > usual
    # Without the size of the updates unrest has to be larger to be told from small batches.
    both_swing = swings and swing > (0.15 if math.isfinite(ratio) else 0.4)
    if swings and (ratio >= HIGH_RATIO or (ratio >= HIGH_RATIO / 2 and swing > 0.3)):
        matters = both_swing = True
    # Training pays for the rise as validation does, under steps that are far too large.
    both_rise = evidence.nll_change > 0 and ratio >= HIGH_RATIO / 2
    both_rise = both_rise and evidence.training_rise > max(0.5 * evidence.nll_change, 0.05 * prior)
    if not (matters and (swing > 0.3 or risen or both_swing or stalls or guesses or both_rise)):
        return None
    # After large updates training itself is on its way back.
    largest = max(evidence.context_column("update_ratio"), default=0.0)
    forgets = largest >= HIGH_RATIO and median(recent[-3:]) > max(FORGOTTEN * earlier, 0.3 * prior)
    if not (ratio >= HIGH_RATIO or both_swing or soars or forgets or both_rise or (swing > 0.3 and risen)):
        return None
    lines = [f"training loss {min(recent):.3g} … {max(recent):.3g} in {len(recent)} evaluations, lowest {lowest:.3g}"]
    if math.isfinite(ratio):
        lines.append(f"an update moves the weights by {100 * ratio:.2g} % of their size (usual: 0.1 %)")
    rate = evidence.context("learning_rate")
    if math.isfinite(rate):
        lines.append(f"learning rate {rate:.3g}")
    return Cause("learning-rate-too-high", share=math.nan, evidence=tuple(lines))


def _broken(evidence: Evidence) -> Cause | None:
    """Large updates after which nothing moves any more: units died in training, or no gradient passes."""
    # Medians: the first step of a weight that starts at zero is as large as one likes.
    highest = max(evidence.context_column("update_ratio"), default=math.nan)
    if not highest >= HIGH_RATIO / 2 or shrunk(evidence):
        return None
    moved = f"updates of {100 * highest:.2g} % of the weights' size (usual: 0.1 %)"
    if highest >= BURST_RATIO and not math.isfinite(loss_of(evidence.current)):
        return Cause("learning-rate-too-high", math.nan, (f"the loss stopped being a number after {moved}",))
    shares, died = _silent_shares(evidence), died_share(evidence.series, 2)
    # A few sampled steps may miss the one that killed; then more units must have died, and the largest step counts.
    largest = max((*evidence.context_column("update_ratio_max"), highest))
    if died >= DIED_SHARE and (
        highest >= BURST_RATIO
        or (_is_dead(evidence) and (highest >= KILLING_RATIO or (died >= MOST_DIED and largest >= HIGH_RATIO)))
    ):
        line = (
            f"{100 * min(shares):.0f} % of the units of the worst layer were dead before, {100 * shares[-1]:.0f} % now"
        )
        return Cause("learning-rate-too-high", math.nan, (f"units died after {moved}", line))
    ratio, rates = evidence.recent_context("update_ratio"), evidence.context_column("learning_rate")
    still = bool(rates) and rates[-1] > 0.5 * max(rates)
    if (
        still
        and highest >= HIGH_RATIO
        and ratio < VANISHED * highest
        and evidence.value("refinement_nll") > 0.9 * evidence.label_entropy
    ):
        line = f"an update moves the weights by {100 * ratio:.2g} % of their size now, at a rate of {rates[-1]:.3g}"
        return Cause("learning-rate-too-high", math.nan, (f"after {moved} no gradient passes", line))
    return None


def learning_rate_too_low(evidence: Evidence) -> Cause | None:
    """Nothing moves because steps are too small.

    What it finds: an update moves the weights by less than 0.03 % of their size (0.06 % where the loss of ten
        evaluations and more fell in a straight line) although most of the loss is still there, and neither the rate nor
        the updates have ever been large. Or a rate that fell to a thousandth and less has moved nothing (0.001 %) for
        ten evaluations and half of the run.
    Why it matters: the run looks like a plateau and is only slow.
    Evidence it needs: `watch` for the update-to-weight ratio.
    What to do: raise the rate by the factor named; a rate finder.
    When it is wrong: at the end of a schedule small steps are meant; hence the condition on earlier rates.
    Reference: Bengio 2012; Smith 2017.
    """
    ratio, rates = evidence.recent_context("update_ratio"), evidence.context_column("learning_rate")
    prior, loss = evidence.label_entropy, evidence.value("refinement_nll")
    limit = EVEN_RATIO if falls_evenly(evidence) else LOW_RATIO
    ended = stopped(evidence) if loss > 0.5 * prior and evidence.train_nll > 0.5 * prior else None
    if ended is not None:
        return Cause("learning-rate-too-low", share=math.nan, evidence=ended)
    if not (0 < ratio < limit and loss > 0.5 * prior) or _is_dead(evidence) or evidence.train_nll < 0.3 * prior:
        return None
    if rates and max(rates) > 3 * rates[-1]:
        return None
    if max(evidence.context_column("update_ratio")) > 30 * LOW_RATIO:
        # Updates that were large and vanished are those of a network that broke.
        return None
    lines = [f"an update moves the weights by {100 * ratio:.2g} % of their size (usual: 0.1 %)"]
    if rates:
        lines.append(f"learning rate {rates[-1]:.3g}")
    lines.append(f"loss after one temperature {loss:.4f}, entropy of the class shares {prior:.4f}")
    return Cause("learning-rate-too-low", share=math.nan, evidence=tuple(lines))


def dead_activations(evidence: Evidence) -> Cause | None:
    """Units that are zero, or saturated, on every input: no gradient passes, and nothing before them learns.

    What it finds: at least 90 % of the units of a layer gave zero, or a flat end of their activation, on all sampled
        inputs since the last evaluation. Not the reason where nothing was learned at five evaluations before that. Or
        the largest logit of 10 % of the rows belongs to several classes at ten evaluations, of rows that differ.
    Why it matters: with the whole layer dead the output does not depend on the input; only the last biases learn.
    Evidence it needs: `watch`.
    What to do: leaky activations or GELU, initial values fit for the activation, a lower learning rate, a normalisation
        layer.
    When it is wrong: a sparse network has many zeros in a batch; a unit counts only if it is zero on all of them.
    Reference: Lu et al. 2019 (dying ReLU); Glorot and Bengio 2010 (saturation).
    """
    if is_clamped(evidence.series):
        rows = evidence.current.num_rows
        equal = evidence.current.arrays.get("excluded", {}).get("ties", 0)
        line = f"of {equal} of {rows} rows several classes have the same largest logit, to the last bit"
        return Cause(
            "dead-activations", share=math.nan, evidence=(line, "logits that a ReLU or a clamp cuts off are so")
        )
    dead, saturated = evidence.recent_context("dead_units", 2), evidence.recent_context("saturated_units", 2)
    share, what = max(
        ((dead, "zero"), (saturated, "saturated")), key=lambda pair: pair[0] if pair[0] == pair[0] else -1
    )
    if not share >= DEAD_SHARE or ("dead_evaluations" not in evidence.details and _learned_nothing_alive(evidence)):
        return None
    lines = [f"{100 * share:.0f} % of the units of a layer were {what} on every sampled input"]
    if math.isfinite(evidence.context("gradient_norm")):
        lines.append(f"gradient norm {evidence.context('gradient_norm'):.2g}")
    return Cause("dead-activations", share=math.nan, evidence=tuple(lines))


def over_regularisation(evidence: Evidence) -> Cause | None:
    """A penalty or dropout rules the weights: training rows are not learnt either, and confidence is too low.

    What it finds: training and validation stand on one level, a poor one or one under a penalty of twice the loss; and
        either the best temperature is below 0.8 (where the loss swings, here or in the median of three evaluations;
        elsewhere it saves 5 % and 0.02 nats, and no smoothing brings it) beside a penalty of at least 5 % of the loss
        or dropout of at least 0.6; or weight decay has shrunk the weights to less than a third of what they were; or
        nothing was learnt, or next to nothing at ten evaluations, beside a penalty above the loss and ln C, or dropout
        of at least 0.8. Not where the loss rose while the weights grew under the decay and dropout of the reference,
        unless the penalty is half of the loss.
    Why it matters: more epochs do not help; the optimum of the penalised loss has been reached.
    Evidence it needs: `watch` for the penalty and dropout, and the training loss.
    What to do: a smaller weight decay or dropout, by the factor named.
    When it is wrong: if training in eval mode is far better than here, it is not too much regularisation.
    Reference: Krogh and Hertz 1991; Srivastava et al. 2014.
    """
    nll, train = evidence.value("nll"), evidence.train_nll
    if len(evidence.series) < 3:
        return None
    penalty, dropout = evidence.context("penalty"), evidence.context("dropout")
    refined = evidence.value("refinement_nll")
    is_poor = refined > 0.1 * evidence.label_entropy or penalty > 2 * nll
    if not (math.isfinite(nll) and train > 0.7 * nll and is_poor) or (
        penalty < RULING_PENALTY * nll and came_suddenly(evidence)
    ):
        return None
    lines, norms = [], evidence.context_column("weight_norm")
    decay = evidence.context("weight_decay")
    if shrunk(evidence):
        lines.append(f"norm of the weights {max(norms):.3g} → {norms[-1]:.3g}, weight decay {decay:.2g}")
    # What has learnt nothing has no temperature; then only a penalty or a dropout beyond all use tells.
    little = "little_learnt" in evidence.details
    chance = math.log(evidence.num_classes or 1)
    rules = (penalty >= max(nll, chance) or dropout >= RULING_DROPOUT) and (
        little or nothing_learned(evidence) is not None
    )
    if little and not rules:
        return None
    temperature = evidence.temperature
    if "swing" in evidence.details:
        temperature = min(temperature, median(evidence.column("temperature")[-RECENT:] or [math.inf]))
    # A temperature that would save next to nothing is that of a training which has not ended.
    # Smoothing keeps the temperature low by itself.
    is_timid = temperature < 0.8 and not evidence.is_smoothed()
    is_timid = is_timid and (nll - refined > max(0.05 * nll, TIMID_NATS) or "swing" in evidence.details)
    if not (lines or rules or is_timid):
        return None
    if penalty >= 0.05 * nll:
        lines.append(
            f"penalty {penalty:.3g} nats beside an NLL of {nll:.3g}, decay {evidence.context('weight_decay'):.2g}"
        )
    if dropout >= 0.6:
        lines.append(f"dropout {dropout:.2f}")
    if not lines:
        return None
    lines.append(f"NLL {train:.4f} on training rows, best temperature {evidence.temperature:.2f}")
    return Cause("over-regularisation", share=math.nan, evidence=tuple(lines), against=evidence.train_doubt)


def _is_dead(evidence: Evidence) -> bool:
    return any(evidence.recent_context(key, 2) >= DEAD_SHARE for key in ("dead_units", "saturated_units"))


def _learned_nothing_alive(evidence: Evidence) -> bool:
    """Whether nothing was learned for some evaluations at which units still answered: then they died of that, or beside
    it, and are not the reason.
    """
    alive = [record for record in evidence.series if silent_share(record) < DEAD_SHARE]
    prior = evidence.label_entropy
    return (
        len(alive) >= ALIVE_EVALUATIONS
        and prior == prior
        and not any(
            knows_classes(record)
            or record.values.get("refinement_nll", -math.inf) < prior - unlearned_spread(record, prior)
            for record in alive
        )
    )


def _silent_shares(evidence: Evidence) -> list[float]:
    """Share of dead or saturated units in the worst layer at each evaluation that knows it."""
    found = [silent_share(record) for record in evidence.series]
    return [share for share in found if share == share]
