"""TensorBoard's page of hyperparameters: the outcome of a run as metrics beside what the user tunes.

The page shows the metrics that the first hyperparameters of a run name, and their last values. Lightning writes those
of the module when a fit begins, with a placeholder as the only metric; so ours are announced just before it, and get
their values at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning_lossacc.sinks.layouts import holds
from lightning_lossacc.sinks.outcome import NUMBERS

FINAL = "lossacc/final/"
TAG = b"_hparams_/session_start_info"
EXPERIMENT_TAG = b"_hparams_/experiment"


def announce(logger: Any, hyperparameters: Mapping[str, Any], prefixed: Callable[[str], str]) -> None:
    """Names the outcome among the metrics of the hyperparameters that Lightning is about to write.

    Nothing for a logger without Lightning's placeholder, whose user writes hyperparameters and metrics of their own.

    Args:
        logger: a `TensorBoardLogger` of either Lightning package.
        hyperparameters: what Lightning will write.
        prefixed: gives a key as the logger's own methods would write it.
    """
    directory = _directory(logger)
    if not getattr(logger, "_default_hp_metric", False) or directory is None or holds(directory, EXPERIMENT_TAG):
        return
    from lightning.fabric.utilities.logger import _convert_params, _flatten_dict
    from torch.utils.tensorboard.summary import hparams

    settings = logger._sanitize_params(_flatten_dict(_convert_params(dict(hyperparameters))))
    metrics = ["hp_metric", *(prefixed(FINAL + name) for name in NUMBERS)]
    names, *_ = hparams(settings, dict.fromkeys(metrics, 0))
    logger.experiment._get_file_writer().add_summary(names)


def write(
    logger: Any,
    config: Mapping[str, Any],
    outcome: Mapping[str, float | str],
    step: int,
    prefixed: Callable[[str], str],
) -> None:
    """Writes the outcome where it was announced, and with our settings where a run has no hyperparameters at all.

    Those that the user wrote without us stay as they are.

    Args:
        logger, prefixed: see `announce`.
        config: settings of the monitor.
        outcome: see `outcome`.
        step: of the outcome.
    """
    directory = _directory(logger)
    if directory is None:
        return
    metrics = {FINAL + key: value for key, value in outcome.items() if isinstance(value, float)}
    words = {key: value for key, value in outcome.items() if isinstance(value, str)}
    is_new = not holds(directory, TAG)
    if is_new or holds(directory, prefixed(FINAL).encode()):
        logger.log_metrics(metrics, step)
    if is_new:
        from torch.utils.tensorboard.summary import hparams

        settings = {f"lossacc/{key}": value for key, value in {**config, **words}.items()}
        # As the logger itself does; its own method would add our settings to the user's `hparams.yaml`.
        for summary in hparams(settings, {prefixed(key): value for key, value in metrics.items()}):
            logger.experiment._get_file_writer().add_summary(summary, step)


def _directory(logger: Any) -> Path | None:
    """Where the event files are, up to date; None if they cannot be read."""
    logger.experiment.flush()
    directory = Path(logger.log_dir)
    return directory if directory.is_dir() else None
