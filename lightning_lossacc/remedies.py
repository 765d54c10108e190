"""Which remedies a cause gets, most specific first, computed from what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lightning_lossacc.advice import confidence, data, generalisation, measurement, optimisation
from lightning_lossacc.advice.measured import Measured
from lightning_lossacc.history import Record

Advice = Callable[[Measured], str | None]

REGULARISATION: tuple[Advice, ...] = (
    generalisation.weight_decay,
    generalisation.dropout,
    generalisation.augmentation,
    generalisation.l1_penalty,
)

# By cause; an advice that does not apply to what was measured returns None and is left out.
REMEDIES: dict[str, tuple[Advice, ...]] = {
    # confidence
    "over-confidence": (
        confidence.temperature,
        confidence.scaling_callback,
        generalisation.refinement_checkpoint,
        confidence.vector_scaling,
        confidence.label_smoothing,
        generalisation.weight_decay,
        confidence.focal_loss,
    ),
    "mixed": (
        confidence.temperature,
        generalisation.refinement_checkpoint,
        confidence.scaling_callback,
        confidence.label_smoothing,
        *REGULARISATION,
    ),
    "under-confidence": (
        confidence.temperature,
        confidence.scaling_callback,
        confidence.less_smoothing,
        confidence.fewer_doubts,
    ),
    "scale-growth": (
        confidence.train_on,
        confidence.temperature,
        confidence.scaling_callback,
        generalisation.refinement_checkpoint,
    ),
    "confidence-growth": (confidence.nothing_to_repair,),
    "unconfident-shift": (
        confidence.both_checkpoints,
        generalisation.refinement_checkpoint,
        confidence.useful_temperature,
    ),
    # generalisation
    "overfitting": (
        generalisation.refinement_checkpoint,
        *REGULARISATION,
        generalisation.more_data,
        generalisation.early_stopping,
        confidence.useful_temperature,
    ),
    "label-noise": (
        generalisation.relabel,
        generalisation.refinement_checkpoint,
        confidence.label_smoothing,
        generalisation.robust_loss,
    ),
    "hard-tail": (
        generalisation.worst_items,
        generalisation.robust_loss,
        confidence.useful_temperature,
        generalisation.refinement_checkpoint,
    ),
    "leakage": (generalisation.drop_duplicates, generalisation.split_by_group, measurement.train_probe),
    "prior-shift": (data.prior_correction, data.stratify, data.class_weights),
    "capacity-limit": (
        generalisation.more_capacity,
        generalisation.better_features,
        optimisation.less_decay,
        optimisation.less_dropout,
    ),
    # data
    "majority-collapse": (
        data.class_weights,
        data.resampling,
        data.output_bias,
        data.logit_adjustment,
        optimisation.lower_learning_rate,
        data.balanced_monitor,
    ),
    "class-imbalance": (
        data.class_weights,
        data.resampling,
        data.logit_adjustment,
        data.balanced_monitor,
        data.weakest_class,
        confidence.focal_loss,
    ),
    "class-trade-off": (
        data.bias_correction,
        data.weakest_class,
        data.logit_adjustment,
        data.balanced_monitor,
        confidence.both_checkpoints,
    ),
    "nothing-learned": (
        generalisation.unfreeze,
        optimisation.overfit_one_batch,
        optimisation.standardise_inputs,
        optimisation.find_learning_rate,
        optimisation.initial_values,
        data.output_bias,
    ),
    "label-mapping-mismatch": (data.remap_labels,),
    "validation-too-small": (measurement.more_items, measurement.cross_validate),
    # optimisation
    "learning-rate-too-high": (
        optimisation.lower_learning_rate,
        optimisation.schedule,
        optimisation.warm_up,
        optimisation.clip_gradients,
        optimisation.larger_batches,
    ),
    "learning-rate-too-low": (
        optimisation.raise_learning_rate,
        optimisation.find_learning_rate,
        optimisation.restart_schedule,
    ),
    "blow-up": (
        optimisation.look_at_batches,
        optimisation.last_good_checkpoint,
        optimisation.lower_learning_rate,
        optimisation.clip_gradients,
        optimisation.warm_up,
        optimisation.precision,
    ),
    "dead-activations": (
        optimisation.free_logits,
        optimisation.never_alive,
        optimisation.leaky_activation,
        optimisation.initial_values,
        optimisation.lower_learning_rate,
        optimisation.normalise,
    ),
    "over-regularisation": (optimisation.less_decay, optimisation.less_dropout, measurement.log_raw_nll),
    # measurement
    "loss-mismatch": (measurement.log_raw_nll,),
    "double-softmax": (measurement.pass_logits,),
    "wrong-accuracy": (measurement.right_accuracy, measurement.compute_over_epoch),
    "train-eval-mismatch": (
        measurement.same_answers,
        measurement.swapped_weights,
        measurement.batch_norm,
        measurement.evaluation_mode,
        measurement.same_preprocessing,
        measurement.train_probe,
    ),
    "validation-mismatch": (
        measurement.compare_sets,
        measurement.same_weights,
        measurement.evaluation_mode,
    ),
    "unknown": (generalisation.confirm_on_test, confidence.useful_temperature),
}


def remedies(cause: str, current: Record, best_refinement: Record, series: Sequence[Record] = ()) -> tuple[str, ...]:
    """What to do about a cause, most specific first, one sentence each.

    Gains are computed from what was measured on the monitored set (temperatures, biases and checkpoints were chosen on
    it, hence "confirm on a test set").

    Args:
        cause: name of the cause; one that is not known gets the remedies of `"unknown"`.
        current: the evaluation at which it was found.
        best_refinement: the evaluation with the lowest loss after one temperature so far.
        series: all comparable evaluations so far, and records of training probes; for the loss minimum and for lists
            of suspect rows.
    """
    measured = Measured(current, best_refinement, tuple(series))
    given = (advice(measured) for advice in REMEDIES.get(cause, REMEDIES["unknown"]))
    return tuple(dict.fromkeys(sentence for sentence in given if sentence))
