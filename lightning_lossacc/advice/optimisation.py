"""Remedies for training itself: learning rate, schedule, clipping, activations, initial values, penalties."""

from __future__ import annotations

import math

from lightning_lossacc.advice.measured import Measured, described, number, percent

# Size of an update over that of the weight (medians over weight tensors) at which networks usually learn well.
USUAL_UPDATE = 1e-3
ENDED = 1e-3  # of the largest rate: what is left moves nothing
LEAP = 2.0  # of the training loss from one epoch to the next
_STEPS = (1.0, 3.0)
# Clipping cuts steps rather than spikes where its norm is below this part of the median norm.
CLIPPED = 0.1
NEVER_ALIVE = 0.9  # of a layer's units


def learning_rate_factor(update_ratio: float, higher: bool) -> float:
    """By what the learning rate should be multiplied: 1e-3 / ratio, rounded to …, 1/10, 1/3, 3, 10, ….

    Args:
        update_ratio: median of |dw| / |w|; NaN or out of range counts as unknown, and gives one step of 3.
        higher: whether a raise is asked for; a factor on the other side of 1 becomes one step of 3.
    """
    wanted = USUAL_UPDATE / update_ratio if update_ratio > 0 else math.nan
    if not math.isfinite(wanted):
        wanted = 1.0
    size = max(wanted if higher else 1 / wanted, 3.0)
    candidates = [base * 10.0**power for power in range(5) for base in _STEPS][1:]
    nearest = min(candidates, key=lambda candidate: abs(math.log(candidate / size)))
    return nearest if higher else 1 / nearest


def lower_learning_rate(measured: Measured) -> str:
    """By the size of an update: one of about a thousandth of the weight is usual (Karpathy, CS231n)."""
    return _other_learning_rate(measured, higher=False)


def _clip_less(measured: Measured) -> str | None:
    """Clipping that cuts every step: a plain step is shorter by as much; None where gradients are hardly cut."""
    usual, limit = measured.context("gradient_norm"), measured.context("gradient_clip")
    largest = measured.context("gradient_norm_max")
    wider, cut = (min(largest, 10 * usual), "few") if math.isfinite(largest) else (usual, "half")
    if not 0 < limit < CLIPPED * usual:
        return None
    return (
        f"clip less: Trainer(gradient_clip_val={number(limit)}) cuts gradients whose median norm is {number(usual)}, "
        f"by {usual / limit:.0f} times each; gradient_clip_val={number(wider)} would cut {cut} of the sampled ones"
    )


def raise_learning_rate(measured: Measured) -> str:
    """The other side; where clipping is what makes steps small, it says so instead."""
    return _clip_less(measured) or _other_learning_rate(measured, higher=True)


def _other_learning_rate(measured: Measured, higher: bool) -> str:
    ratio, rate = measured.context("update_ratio"), measured.context("learning_rate")
    ratios = [record.context.get("update_ratio", math.nan) for record in measured.evaluations]
    highest = max(filter(math.isfinite, ratios), default=math.nan)
    # A network that large steps broke hardly moves any more: what broke it is to be lowered.
    broke = not higher and ratio < USUAL_UPDATE < highest
    # A step beyond the weights' own size is that of a loss which had left every scale.
    ratio = min(highest if broke else ratio, 1.0)
    rates = [record.context.get("learning_rate", math.nan) for record in measured.evaluations]
    first = max(filter(math.isfinite, rates), default=math.nan)
    if higher and 0 < rate <= ENDED * first:
        return (
            f"let the schedule last: the rate fell from {number(first)} to {number(rate)} in {len(rates)} evaluations; "
            'a scheduler of epochs needs {"scheduler": scheduler, "interval": "epoch"} in `configure_optimizers`, one '
            "of steps total_steps=self.trainer.estimated_stepping_batches"
        )
    factor = learning_rate_factor(ratio, higher)
    times = f"{factor:.0f} times" if higher else f"1/{1 / factor:.0f} of"
    rates = f" from {number(rate)} to {number(rate * factor)} ({times} it)" if rate > 0 else f" to {times} what it is"
    if rate == 0:
        rates = ": it is 0, so that the schedule has ended"
    why = "updates were not measured"
    if math.isfinite(ratio):
        why = (
            f"a step {'changed' if broke else 'changes'} a weight tensor by {number(100 * ratio)} % of its size "
            f"(median{', at most' if broke else ''}), and about 0.1 % is usual"
        )
    return f"{'raise' if higher else 'lower'} the learning rate{rates}: {why}"


def schedule(measured: Measured) -> str:
    """A learning rate that falls ends an oscillation; an adaptive optimiser alone does not."""
    return (
        'a learning-rate schedule: `return {"optimizer": optimizer, "lr_scheduler": '
        "torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.trainer.max_epochs)}` in "
        "configure_optimizers; an adaptive optimiser alone does not end an oscillation"
    )


def restart_schedule(measured: Measured) -> str:
    """A schedule that ended too early."""
    return (
        "start the schedule again or stretch it: CosineAnnealingWarmRestarts(optimizer, T_0=10), or OneCycleLR with "
        "total_steps=self.trainer.estimated_stepping_batches"
    )


def warm_up(measured: Measured) -> str:
    """A linear warm-up (Goyal et al. 2017) over about one epoch."""
    steps = measured.context("steps")
    total = f"{max(int(steps), 1)}" if steps > 0 else "steps_of_one_epoch"
    return (
        f"warm-up over one epoch: torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters={total}) "
        'with "interval": "step"'
    )


def clip_gradients(measured: Measured) -> str:
    """Clipping by norm (Pascanu et al. 2013), at the usual norm where it was measured."""
    usual, largest = measured.context("gradient_norm"), measured.context("gradient_norm_max")
    if not usual > 0:
        return "clip gradients: Trainer(gradient_clip_val=1.0)"
    beside = f", and the largest {number(largest)}" if math.isfinite(largest) else ""
    return f"clip gradients: Trainer(gradient_clip_val={number(usual)}); their median norm{beside}"


def larger_batches(measured: Measured) -> str:
    """Less noise in a step."""
    return (
        "average over more rows: Trainer(accumulate_grad_batches=4) takes a quarter of the steps with half their noise"
    )


def precision(measured: Measured) -> str:
    """Where numbers overflow."""
    steps = measured.context("non_finite_steps")
    counted = f" ({int(steps)} sampled steps had NaN or infinite gradients)" if steps > 0 else ""
    return (
        f'Trainer(precision="bf16-mixed") instead of "16-mixed", and Trainer(detect_anomaly=True) names the operation '
        f"that made the first NaN{counted}"
    )


def look_at_batches(measured: Measured) -> str | None:
    """Where training itself leapt; None where it did not."""
    series = measured.evaluations
    losses = [record.context.get("train_nll", math.nan) for record in series]
    leaps = [
        (after / before, record.epoch)
        for before, after, record in zip(losses, losses[1:], series[1:], strict=False)
        if after > LEAP * before > 0
    ]
    if not leaps:
        return None
    size, epoch = max(leaps)
    return (
        f"look at the batches of epoch {epoch}, whose training loss is {number(size)} times that of the evaluation "
        "before: print batch_idx and the range of the inputs where a step's loss exceeds ten times its usual size"
    )


def last_good_checkpoint(measured: Measured) -> str:
    """Where to go on from."""
    best = measured.loss_best
    if not math.isfinite(best.values.get("nll", math.nan)):
        return "no evaluation had a finite loss, so that there is no checkpoint to go on from: start again"
    return (
        f"go on from the checkpoint of step {best.global_step} ({described(best)}) with the lower learning rate: "
        "trainer.fit(module, ckpt_path=...)"
    )


def find_learning_rate(measured: Measured) -> str:
    """A range test (Smith 2017)."""
    return "find the learning rate by a range test: lightning.pytorch.tuner.Tuner(trainer).lr_find(module).suggestion()"


def free_logits(measured: Measured) -> str | None:
    """Logits that nothing cuts off."""
    equal = measured.current.arrays.get("excluded", {}).get("ties", 0)
    if not equal >= 0.1 * measured.current.num_rows > 0:
        return None
    return (
        "give the loss what the last linear layer gives: no nn.ReLU, clamp or rounding behind it, which makes several "
        f"logits equal ({equal} of {measured.current.num_rows} rows have more than one largest)"
    )


def leaky_activation(measured: Measured) -> str:
    """Activations with a gradient on both sides (Maas et al. 2013; Hendrycks and Gimpel 2016)."""
    dead, total, saturated = (measured.context(key) for key in ("dead_units", "dead_units_total", "saturated_units"))
    counted = ""
    if dead > 0:
        counted = f": {percent(dead)} of the units of the worst layer were zero on every sampled input"
        counted += f" ({percent(total)} of all)" if math.isfinite(total) else ""
    elif saturated > 0:
        counted = f": {percent(saturated)} of the units of the worst layer are saturated"
    return f"leaky activations, nn.LeakyReLU(0.01) or nn.GELU() instead of nn.ReLU(){counted}"


def never_alive(measured: Measured) -> str | None:
    """A layer that was dead at every evaluation: another activation starts from the same values; None otherwise."""
    shares = [record.context.get("dead_units", 0.0) for record in measured.evaluations]
    return initial_values(measured) if min(shares) >= NEVER_ALIVE else None


def initial_values(measured: Measured) -> str:
    """Initial values that keep the size of activations (He et al. 2015)."""
    return (
        'initial values: `nn.init.kaiming_normal_(layer.weight, nonlinearity="relu"); nn.init.zeros_(layer.bias)` for '
        "every hidden layer; a bias far below zero kills a ReLU before the first step, and where all weights are zero "
        "only the last bias learns"
    )


def normalise(measured: Measured) -> str:
    """Normalised activations (Ioffe and Szegedy 2015; Ba et al. 2016)."""
    return "normalise before the activation: nn.BatchNorm1d(width), or nn.LayerNorm(width) where batches are small"


def standardise_inputs(measured: Measured) -> str:
    """Inputs of mean 0 and standard deviation 1 (LeCun et al. 1998)."""
    return "standardise the inputs with numbers of the training rows: `x = (x - mean) / std`"


def overfit_one_batch(measured: Measured) -> str:
    """Can the network learn anything at all?"""
    floor = measured.num_classes
    learnt, share = measured.context("train_accuracy"), measured.value("majority_rate")
    if learnt > min(share + 0.1, (1 + share) / 2):
        return (
            f"training rows are learnt ({percent(learnt)}), these are not: send rows of training through the "
            "validation loader, LossAccuracyMonitor(train_probe=True), and compare mean, std, range and labels of one "
            "batch of each set; if inputs and labels are prepared alike, the labels of training say nothing of new "
            "rows: look at some of them by eye"
        )
    start = f" far below ln {floor} = {math.log(floor):.3f}" if floor > 1 else " to near 0"
    return (
        f"Trainer(overfit_batches=1) must bring the training NLL{start}; if it does not, the inputs, labels or the "
        "loss are broken, and if it does, look at the learning rate and at shuffled labels"
    )


def less_decay(measured: Measured) -> str | None:
    """A smaller penalty, beside the loss that it is added to; None without any."""
    decay, penalty, nll = measured.context("weight_decay"), measured.context("penalty"), measured.context("train_nll")
    if decay == 0:
        return None
    share = ""
    if penalty > 0 and math.isfinite(nll):
        share = f": the penalty is {number(penalty)} beside a training NLL of {nll:.4f}"
    now = f"from {number(decay)} to {number(decay / 10)}" if decay > 0 else "to a tenth of it"
    return f"lower weight_decay {now}{share}"


def less_dropout(measured: Measured) -> str | None:
    """Less dropout, where there is any."""
    now = measured.context("dropout")
    return f"less dropout: nn.Dropout({number(now)}) → nn.Dropout({number(now / 2)})" if now > 0 else None
