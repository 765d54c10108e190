"""How does a module keep the temperature that makes its probabilities fit?

A callback fits it in every validation and keeps it in the checkpoint; a wrapper divides the logits by it. The formula
is in `temperature.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_lossacc.callback import LossAccuracyMonitor
from lightning_lossacc.capture import Capture
from lightning_lossacc.ranks import fold
from lightning_lossacc.sampling import samplings
from lightning_lossacc.stages import Settings, StageState
from lightning_lossacc.temperature import Temperature
from lightning_lossacc.temperature import fit_temperature as fit_temperature


class ScaledModule(LightningModule):
    """A module whose logits are divided by a temperature, in `forward` and in `predict_step`.

    Args:
        module: returns logits, or a mapping with `"logits"`, from `forward`. Its own `predict_step` runs, and every
            call of the module in it gets scaled logits; it must call `self(...)`, not a part of itself.
        temperature: T > 0.

    Raises:
        ValueError: if the temperature is not positive and finite.
    """

    temperature: Tensor

    def __init__(self, module: nn.Module, temperature: float) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise ValueError(f"Expected `temperature` to be positive and finite, but got {temperature}.")
        self.module = module
        self.register_buffer("temperature", torch.tensor(temperature, dtype=torch.float32))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module returns, with logits / T."""
        return self._scaled(self.module(*args, **kwargs))

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own step, in which calls of the module return logits / T.

        Raises:
            RuntimeError: if that step never calls the module, so that nothing was scaled.
        """
        if not isinstance(self.module, LightningModule):
            return super().predict_step(*args, **kwargs)
        calls = 0

        def scale(module: nn.Module, inputs: Any, outputs: Any) -> Any:
            nonlocal calls
            calls += 1
            return self._scaled(outputs)

        handle = self.module.register_forward_hook(scale)
        try:
            result = self.module.predict_step(*args, **kwargs)
        finally:
            handle.remove()
        if not calls:
            raise RuntimeError(
                f"Expected `{type(self.module).__name__}.predict_step` to call `self(...)`, but it did not, so that "
                "its logits were not divided by the temperature; divide them there."
            )
        return result

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """As the module does it."""
        return self._of_module("on_before_batch_transfer", batch, dataloader_idx)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """As the module does it."""
        return self._of_module("transfer_batch_to_device", batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """As the module does it."""
        return self._of_module("on_after_batch_transfer", batch, dataloader_idx)

    def _of_module(self, hook: str, *args: Any) -> Any:
        owner = self.module if isinstance(self.module, LightningModule) else super()
        return getattr(owner, hook)(*args)

    def _scaled(self, outputs: Any) -> Any:
        if isinstance(outputs, Tensor):
            return outputs / self.temperature.to(outputs.dtype)
        if isinstance(outputs, Mapping) and isinstance(outputs.get("logits"), Tensor):
            # Hugging Face's outputs are mappings with a constructor of keywords, like dict.
            return type(outputs)(**{**outputs, "logits": self._scaled(outputs["logits"])})
        raise TypeError(
            f"Expected the module to return logits, or a mapping with `logits`, but got {type(outputs).__name__}; "
            "divide its logits by `temperature` yourself."
        )


class TemperatureScaling(Callback):
    """Fits the temperature of the validation set in every validation and keeps it in the checkpoint.

    T minimises the NLL of the validation rows with logits / T (Guo et al. 2017). It comes from sums over a grid of
    temperatures (within 0.1 % of the optimum, T in [0.25, 8]) that a `LossAccuracyMonitor` of the same Trainer has at
    hand; without one, the loss call of `validation_step` is watched in the same way. Training is the same with and
    without it. A checkpoint that is saved at a validation holds the T of its own weights, because T is fitted before
    `ModelCheckpoint` saves; loading it in `validate`, `test` or `predict` brings T back. Outside of a fit, `validate`
    fits only where no T is known.

    Args:
        dataloader_idx: which validation loader is used.
        capture: `(outputs, batch) -> (logits, target)`, as for the monitor; without one.
        which: as for the monitor; without one.

    Attributes:
        fitted: the last fit; None before the first one.

    Example::

        scaling = TemperatureScaling()
        trainer = Trainer(callbacks=[LossAccuracyMonitor(), scaling])
        trainer.fit(module, data)
        trainer.predict(scaling.wrap(module), data)
    """

    def __init__(
        self, dataloader_idx: int = 0, capture: Callable[[Any, Any], Any] | None = None, which: int = 0
    ) -> None:
        if dataloader_idx < 0:
            raise ValueError(f"Expected `dataloader_idx` to be 0 or larger, but got {dataloader_idx}.")
        self.dataloader_idx = dataloader_idx
        self.fitted: Temperature | None = None
        self._capture = Capture(capture, which)
        self._state: StageState | None = None  # only without a monitor, and only during an evaluation
        self._failed = False

    @property
    def temperature(self) -> float:
        """T of the last fit.

        Raises:
            RuntimeError: before the first one.
        """
        if self.fitted is None:
            raise RuntimeError(
                "Expected a fitted temperature, but there is none; run `trainer.fit` or `trainer.validate` with this "
                "callback, or load a checkpoint that was saved with it."
            )
        return self.fitted.value

    def wrap(self, module: nn.Module) -> ScaledModule:
        """The module with its logits divided by the fitted temperature; the module itself stays as it is."""
        return ScaledModule(module, self.temperature)

    # -- validation ----------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Without a monitor, empties the sums."""
        self._state = None
        if self._wanted(trainer) and _monitor(trainer) is None:
            self._try(self._begin, trainer)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Without a monitor, begins to watch the loss call."""
        if self._state is not None and dataloader_idx == self.dataloader_idx:
            self._state.begin_batch()
            self._capture.start(("val", dataloader_idx), pl_module, self._state.add)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Without a monitor, ends it."""
        if self._state is not None and dataloader_idx == self.dataloader_idx:
            self._capture.stop(outputs, batch)
            self._state.end_batch()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fits T; every rank takes part, and `ModelCheckpoint`, which Lightning keeps last, saves it."""
        if self._wanted(trainer):
            self._try(self._fit, trainer)
        self._state = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restores every patched function."""
        self._capture.abort()
        self._state = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restores every patched function."""
        self._capture.abort()
        self._state = None

    def _wanted(self, trainer: Trainer) -> bool:
        return not trainer.sanity_checking and (trainer.state.fn == "fit" or self.fitted is None)

    def _begin(self, trainer: Trainer) -> None:
        known = samplings(trainer, "val")
        if self.dataloader_idx < len(known):
            self._state = StageState("val", self.dataloader_idx, Settings(probe_items=0), grid=True)
            self._state.begin_evaluation(known[self.dataloader_idx], {})

    def _fit(self, trainer: Trainer) -> None:
        monitor = _monitor(trainer)
        values = self._summed(trainer) if monitor is None else self._measured(trainer, monitor)
        if not math.isfinite(values.get("temperature", math.nan)):
            self._warn(
                f"lossacc: no temperature was fitted on validation loader {self.dataloader_idx}: "
                f"{'the monitor measured none' if monitor else self._capture.explanation(('val', self.dataloader_idx))}"
            )
            return
        at_edge = bool(values["temperature_at_edge"])
        self.fitted = Temperature(
            value=values["temperature"],
            low=math.nan,
            high=math.nan,
            nll_before=values["nll"],
            nll_after=values["refinement_nll"],
            gain=values["temperature_gain"],
            at_edge=at_edge,
            num_rows=int(values["num_rows"]),
        )
        if at_edge:
            self._warn(
                f"lossacc: the best temperature lies beyond {values['temperature']:g}, the end of the grid; "
                "`lightning_lossacc.scaling.fit_temperature` finds it on saved logits."
            )

    def _measured(self, trainer: Trainer, monitor: LossAccuracyMonitor) -> dict[str, float]:
        """What the monitor has just measured on this loader; empty if nothing, or not all of it."""
        now = trainer.current_epoch, trainer.global_step
        for record in reversed(monitor.history.records):
            if record.stage in ("val", "validate") and record.loader == self.dataloader_idx:
                return record.values if record.complete and (record.epoch, record.global_step) == now else {}
        return {}

    def _summed(self, trainer: Trainer) -> dict[str, float]:
        """The same quantities from this callback's own sums, over all ranks."""
        if self._state is None:
            return {}
        self._state.flush()
        if trainer.world_size > 1 and fold([self._state], trainer.strategy.root_device) is not None:
            return {}
        return self._state.values() if self._state.layout is not None and self._state.complete else {}

    def _try(self, step: Callable[[Trainer], None], trainer: Trainer) -> None:
        """Nothing here may end a training: the first failure gives one warning."""
        try:
            step(trainer)
        except Exception as error:
            self._warn(f"lossacc: TemperatureScaling failed: {type(error).__name__}: {error}; training goes on.")

    def _warn(self, text: str) -> None:
        if not self._failed:
            self._failed = True
            rank_zero_warn(text)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Identifies this callback among those of a checkpoint."""
        return self._generate_state_key(dataloader_idx=self.dataloader_idx)

    def state_dict(self) -> dict[str, Any]:
        """Primitives only, so that it is read with `weights_only`."""
        return {} if self.fitted is None else asdict(self.fitted)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The temperature of a checkpoint's own weights."""
        known = {item.name for item in fields(Temperature)}
        self.fitted = (
            Temperature(**{key: value for key, value in state_dict.items() if key in known}) if state_dict else None
        )


def _monitor(trainer: Trainer) -> LossAccuracyMonitor | None:
    """The monitor of this Trainer that measures, if there is one."""
    monitors = (callback for callback in trainer.callbacks if isinstance(callback, LossAccuracyMonitor))
    return next((monitor for monitor in monitors if not monitor._off), None)
