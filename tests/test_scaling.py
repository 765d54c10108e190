"""The temperature is the optimum, its interval and gain are honest, and a checkpoint and a module keep it."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from lightning_lossacc import LossAccuracy, TemperatureScaling
from lightning_lossacc.scaling import ScaledModule, Temperature, fit_temperature
from tests.modules import NUM_CLASSES, QUIET, Plain, assert_identical, everything, loader, monitor, safely, trainer

pytestmark = QUIET


def sampled(rows: int = 4000, classes: int = 4, scale: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Exact log-posteriors of Gaussian classes times `scale`, the best temperature."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, classes, (rows,), generator=generator)
    noise = torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    return scale * 1.5 * (1.5 * F.one_hot(target, classes) + noise), target


# -- the fit -----------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 20), st.floats(0.1, 10))
def test_the_optimum_is_found(seed: int, classes: int, scale: float) -> None:
    """T, and the NLL before and after, are those of a general minimiser of F.cross_entropy in float64."""
    logits, target = sampled(200, classes, scale, seed)
    fitted = fit_temperature(logits, target)

    def nll(log_inverse: float) -> float:
        return float(F.cross_entropy(math.exp(log_inverse) * logits, target))

    best = minimize_scalar(nll, bounds=(-math.log(50), math.log(50)), method="bounded", options={"xatol": 1e-10})
    assert not fitted.at_edge
    assert math.log(fitted.value) == pytest.approx(-best.x, abs=2e-4)
    assert fitted.nll_after == pytest.approx(best.fun, abs=1e-9) and fitted.nll_after <= best.fun + 1e-12
    assert fitted.nll_before == pytest.approx(nll(0.0), abs=1e-12)
    # At the optimum the slope is zero: mean E_p[z] = mean z_y.
    probability = (logits / fitted.value).softmax(1)
    slope = ((probability * logits).sum(1) - logits.gather(1, target[:, None]).squeeze(1)).mean()
    assert abs(float(slope)) < 1e-9 * float(logits.abs().max())


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_agrees_with_the_grid(scale: float) -> None:
    """The streaming metric finds the same temperature within 0.1 % and the same NLL within 1.2e-4 nats."""
    logits, target = sampled(scale=scale)
    metric = LossAccuracy(num_classes=4)
    metric.update(logits, target)
    streamed = metric.compute()
    fitted = fit_temperature(logits, target)
    assert fitted.value == pytest.approx(float(streamed["temperature"]), rel=1e-3)
    assert fitted.nll_after == pytest.approx(float(streamed["refinement_nll"]), abs=1.2e-4)
    assert fitted.gain == pytest.approx(float(streamed["temperature_gain"]), abs=2e-3)


def test_interval_and_gain_hold_on_new_data() -> None:
    """In 100 samples the 99 % interval covers the true T, and the gain has the mean of the gain on new data."""
    covered, gains, on_new = 0, [], []
    fresh, fresh_target = sampled(5000, scale=1.2, seed=10_000)
    for seed in range(100):
        fitted = fit_temperature(*sampled(150, scale=1.2, seed=seed))
        covered += fitted.low <= 1.2 <= fitted.high
        gains.append(fitted.gain)
        new = F.cross_entropy(fresh, fresh_target) - F.cross_entropy(fresh / fitted.value, fresh_target)
        on_new.append(float(new))
    assert covered >= 96  # binomial(100, 0.99): P(< 96) = 0.003
    error = torch.tensor(gains).std() / math.sqrt(100)
    # Fitted on half of the items, so that it promises a little less than it brings.
    assert -4 * float(error) - 0.003 < sum(gains) / 100 - sum(on_new) / 100 < 3 * float(error)
    in_sample = [fit_temperature(*sampled(30, seed=seed)) for seed in range(60)]
    assert sum(one.gain for one in in_sample) < 0 < sum(one.nll_before - one.nll_after for one in in_sample)


def test_rows_of_an_item_are_not_independent() -> None:
    """Pixels of one image that are copies of each other make the interval no narrower."""
    logits, target = sampled(300)
    one = fit_temperature(logits, target)
    copied = fit_temperature(logits[:, :, None].expand(-1, -1, 16), target[:, None].expand(-1, 16))
    assert copied.value == pytest.approx(one.value, rel=1e-9) and copied.num_rows == 16 * one.num_rows
    assert (copied.low, copied.high) == pytest.approx((one.low, one.high), rel=1e-6)


def test_one_logit_is_two_classes() -> None:
    """A binary logit and its two-class form have the same temperature, in any shape and kind of target."""
    logits, target = sampled(500, 2, 2.0)
    two = fit_temperature(logits, target)
    margin = logits[:, 1] - logits[:, 0]
    for one in (
        fit_temperature(margin, target),
        fit_temperature(margin[:, None], target.double()[:, None]),
        fit_temperature(margin[:, None], target),
    ):
        assert one.value == pytest.approx(two.value, rel=1e-9) and one.nll_after == pytest.approx(two.nll_after)


def test_ignored_rows_have_no_say() -> None:
    """Rows with the ignored target may hold anything."""
    logits, target = sampled(100)
    kept = fit_temperature(logits[:80], target[:80])
    target[80:] = -1
    logits[80:] = math.nan
    assert fit_temperature(logits, target, ignore_index=-1).value == pytest.approx(kept.value, rel=1e-12)


def test_masked_classes_are_allowed() -> None:
    """A class at -inf has probability 0 at every temperature."""
    logits, target = sampled(300, 3)
    masked = torch.cat([logits, torch.full((300, 1), -math.inf, dtype=torch.float64)], 1)
    assert fit_temperature(masked, target).value == pytest.approx(fit_temperature(logits, target).value, rel=1e-9)


def test_half_precision_and_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits are taken to float64 in parts, with the same result; bfloat16 costs its own rounding only."""
    logits, target = sampled(500, 7, 2.0)
    whole = fit_temperature(logits, target)
    monkeypatch.setattr("lightning_lossacc.temperature._CHUNK", 64)
    parts = fit_temperature(logits, target)
    assert parts.value == pytest.approx(whole.value, rel=1e-12) and parts.gain == pytest.approx(whole.gain, abs=1e-12)
    assert fit_temperature(logits.bfloat16(), target).value == pytest.approx(whole.value, rel=5e-3)


@pytest.mark.parametrize(
    ("logits", "value"),
    [(torch.eye(3), 0.02), (1 - torch.eye(3), 50.0), (torch.zeros(3, 3), 1.0)],
    ids=["all right", "all wrong", "all equal"],
)
def test_edges_are_reported(logits: Tensor, value: float) -> None:
    """All rows right: no T is small enough. All wrong: none is large enough. All equal: any does, and none is edge."""
    fitted = fit_temperature(logits, torch.arange(3))
    assert fitted.value == pytest.approx(value) and fitted.at_edge == (value != 1.0)
    assert math.isnan(fitted.low) and math.isnan(fitted.high)


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), "classes 0 ... 2, but 1 of 2"),
        (torch.zeros(2, 3), torch.tensor([-100, -100]), "at least one row"),
        (torch.full((2, 3), math.nan), torch.tensor([0, 1]), "2 of 2 rows are not"),
        (torch.tensor([[0.0, math.inf], [0, 0]]), torch.tensor([0, 1]), "1 of 2 rows are not"),
        (torch.tensor([[-math.inf, 0.0]]), torch.tensor([0]), "1 of 1 rows are not"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.long), "shape"),
        (torch.zeros(2, 3), torch.full((2, 3), 1 / 3), "soft targets"),
        (torch.zeros(4), torch.tensor([0.0, 1.0, 0.3, 1.0]), "1 of 4"),
    ],
)
def test_bad_input_is_refused(logits: Tensor, target: Tensor, message: str) -> None:
    """What has no temperature raises a sentence, and never gives a number."""
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits, target)


def test_bad_arguments_are_refused() -> None:
    """Integer logits, and limits that leave no room."""
    with pytest.raises(TypeError, match="floating-point"):
        fit_temperature(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="`limits`"):
        fit_temperature(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), limits=(2.0, 3.0))
    with pytest.raises(ValueError, match="`dataloader_idx`"):
        TemperatureScaling(dataloader_idx=-1)
    for value in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="`temperature`"):
            ScaledModule(nn.Linear(2, 2), value)


# -- the callback ------------------------------------------------------------------------------------------------------


class Forwards(Plain):
    """Has a `forward`, which what wraps it needs."""

    def forward(self, features: Tensor) -> Tensor:
        return self.net(features)


def validation(module: LightningModule, **options: Any) -> tuple[Tensor, Tensor]:
    """Logits and targets of the validation rows, by hand."""
    features, target = loader(seed=2, **options).dataset.tensors
    module.eval()
    with torch.no_grad():
        return module(features), target


@pytest.mark.parametrize("with_monitor", [True, False], ids=["monitor", "alone"])
def test_fits_the_validation_set(tmp_path: Path, with_monitor: bool) -> None:
    """T and its NLL are those of the full logits, with a monitor and without one."""
    scaling = TemperatureScaling()
    callbacks = [scaling, monitor()] if with_monitor else [scaling]
    torch.manual_seed(0)
    module = Forwards(drop=0.0, rate=0.1)
    trainer(tmp_path, *callbacks, max_epochs=6).fit(module, loader(64), loader(seed=2))
    logits, target = validation(module)
    exact = fit_temperature(logits, target)
    assert not exact.at_edge and scaling.fitted.num_rows == len(target)
    assert scaling.temperature == pytest.approx(exact.value, rel=2e-3)
    assert scaling.fitted.nll_before == pytest.approx(exact.nll_before, abs=1e-6)
    assert scaling.fitted.nll_after == pytest.approx(exact.nll_after, abs=2e-4)


@pytest.mark.parametrize("with_monitor", [True, False], ids=["monitor", "alone"])
def test_training_is_the_same(tmp_path: Path, with_monitor: bool) -> None:
    """Parameters, optimizer and random states are bitwise those of a run without the callback."""
    results = []
    for callbacks in ([], [TemperatureScaling(), *([monitor()] if with_monitor else [])]):
        torch.manual_seed(5)
        module = Plain()
        trainer(tmp_path, *callbacks, max_epochs=3).fit(module, loader(shuffle=True), loader(seed=2))
        results.append(everything(module))
    assert_identical(*results)


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*")
@pytest.mark.parametrize("with_monitor", [True, False], ids=["monitor", "alone"])
def test_a_checkpoint_keeps_its_own_temperature(tmp_path: Path, with_monitor: bool) -> None:
    """Each checkpoint holds the T of its own weights, read with `weights_only`; loading one brings it back."""
    scaling = TemperatureScaling()
    saved = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    callbacks = [saved, scaling] + ([monitor()] if with_monitor else [])
    torch.manual_seed(0)
    module = Forwards(drop=0.0, rate=0.03)
    trainer(tmp_path, *callbacks, max_epochs=4, enable_checkpointing=True).fit(module, loader(300), loader(seed=2))
    found = []
    for epoch in range(4):
        point = torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=True)
        state = point["callbacks"][scaling.state_key]
        other = Forwards()
        other.load_state_dict(point["state_dict"])
        assert state["value"] == pytest.approx(fit_temperature(*validation(other)).value, rel=2e-3)
        found.append(state["value"])
        restored = TemperatureScaling()
        restored.load_state_dict(state)
        assert restored.fitted == Temperature(**state) or math.isnan(restored.fitted.low)
        assert restored.temperature == state["value"]
    assert len(set(found)) == 4 and found[-1] == scaling.temperature
    again = TemperatureScaling()
    trainer(tmp_path, again, max_epochs=4).test(Plain(), loader(seed=2), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert again.temperature == found[1]
    going_on = TemperatureScaling()
    trainer(tmp_path, going_on, max_epochs=2).fit(
        Plain(), loader(64), loader(seed=2), **safely(tmp_path / "epoch=1.ckpt")
    )
    assert going_on.temperature == found[1]


def test_validate_fits_only_where_nothing_is_known(tmp_path: Path) -> None:
    """A validation outside of a fit gives a T to a module that has none, and never replaces one."""
    scaling, module = TemperatureScaling(), Forwards()
    torch.manual_seed(0)
    run = trainer(tmp_path, scaling)
    run.validate(module, loader(seed=2), verbose=False)
    first = scaling.temperature
    assert first == pytest.approx(fit_temperature(*validation(module)).value, rel=2e-3) or scaling.fitted.at_edge
    run.validate(module, loader(seed=3), verbose=False)
    assert scaling.temperature == first


def test_one_of_several_loaders(tmp_path: Path) -> None:
    """Only the rows of the chosen loader are fitted, with and without a monitor."""
    found = []
    for callbacks in ([], [monitor()]):
        scaling = TemperatureScaling(dataloader_idx=1)
        torch.manual_seed(0)
        trainer(tmp_path, scaling, *callbacks, max_epochs=3).fit(
            Plain(), loader(64), [loader(30, seed=5), loader(41, seed=2)]
        )
        assert scaling.fitted.num_rows == 41
        found.append(scaling.temperature)
    assert found[0] == pytest.approx(found[1], rel=1e-12)


def test_says_why_nothing_was_fitted(tmp_path: Path) -> None:
    """No loss call, no temperature, one warning; using it raises a sentence."""

    class Blind(Plain):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.net(batch[0])

    scaling = TemperatureScaling()
    with pytest.warns(UserWarning, match="no temperature was fitted on validation loader 0") as seen:
        trainer(tmp_path, scaling).fit(Blind(), loader(), loader(seed=2))
    assert len([one for one in seen if "no temperature" in str(one.message)]) == 1
    with pytest.raises(RuntimeError, match=r"`trainer.fit` or `trainer.validate`"):
        scaling.wrap(nn.Linear(2, 2))
    assert scaling.state_dict() == {}


def test_a_partial_validation_is_not_fitted(tmp_path: Path) -> None:
    """A loader that is not there, or a monitor that is off, ends in a word or in the callback's own sums."""
    scaling = TemperatureScaling(dataloader_idx=3)
    with pytest.warns(UserWarning, match="validation loader 3"):
        trainer(tmp_path, scaling).fit(Plain(), loader(), loader(seed=2))


def test_works_beside_a_monitor_that_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`LOSSACC=0` switches the monitor off; who asks for a temperature still gets one."""
    monkeypatch.setenv("LOSSACC", "0")
    scaling = TemperatureScaling()
    trainer(tmp_path, scaling, monitor()).fit(Plain(), loader(), loader(seed=2))
    assert scaling.fitted is not None


def test_the_edge_of_the_grid_is_said(tmp_path: Path) -> None:
    """A temperature at the end of the grid is said to be that."""

    class Certain(Plain):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            logits = 100.0 * F.one_hot((batch[1] + 1) % NUM_CLASSES, NUM_CLASSES).float()
            F.cross_entropy(logits, batch[1])

    scaling = TemperatureScaling()
    with pytest.warns(UserWarning, match="lies beyond 8"):
        trainer(tmp_path, scaling).fit(Certain(), loader(), loader(seed=2))
    assert scaling.fitted.at_edge and scaling.temperature == 8


def test_pickles(tmp_path: Path) -> None:
    """Spawned processes take a copy."""
    scaling = TemperatureScaling()
    trainer(tmp_path, scaling).fit(Plain(), loader(), loader(seed=2))
    assert pickle.loads(pickle.dumps(scaling)).temperature == scaling.temperature


# -- the module --------------------------------------------------------------------------------------------------------


class Probabilities(Forwards):
    """Predicts probabilities, and moves its batches in its own way."""

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        return self(batch["features"]).softmax(1)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {"features": batch[0]} if self.trainer.predicting else batch


def test_forward_and_predict_are_scaled(tmp_path: Path) -> None:
    """Logits / T in `forward`, softmax(logits / T) from the module's own `predict_step`; the module stays as it was."""
    torch.manual_seed(0)
    scaling, module = TemperatureScaling(), Probabilities(drop=0.0, rate=0.1)
    run = trainer(tmp_path, scaling, max_epochs=4)
    run.fit(module, loader(64), loader(seed=2))
    logits, target = validation(module)
    wrapped = scaling.wrap(module).eval()
    features = loader(seed=2).dataset.tensors[0]
    temperature = torch.tensor(scaling.temperature, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(wrapped(features), logits / temperature)
        assert torch.equal(module(features), logits) and not module._forward_hooks
    predicted = torch.cat(run.predict(wrapped, loader(seed=2)))
    assert torch.allclose(predicted, (logits / scaling.temperature).softmax(1), atol=1e-6)
    assert torch.equal(predicted.argmax(1), logits.argmax(1))
    assert F.nll_loss(predicted.log(), target) == pytest.approx(scaling.fitted.nll_after, abs=2e-4)


def test_mappings_keep_their_type_and_other_outputs_are_refused() -> None:
    """A mapping's logits are scaled and the rest stays; what has no logits raises a sentence."""

    class Outputs(dict):  # type: ignore[type-arg]
        pass

    class Maps(nn.Module):
        def forward(self, kind: str) -> Any:
            return {"map": Outputs(logits=torch.ones(2), extra=3), "none": (torch.ones(2),)}[kind]

    wrapped = ScaledModule(Maps(), 4.0)
    found = wrapped("map")
    assert type(found) is Outputs and found["extra"] == 3 and torch.equal(found["logits"], torch.full((2,), 0.25))
    with pytest.raises(TypeError, match="tuple"):
        wrapped("none")


def test_half_precision_stays_half_precision() -> None:
    """Division does not promote."""
    wrapped = ScaledModule(nn.Identity(), 2.0)
    assert wrapped(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert "temperature" in wrapped.state_dict()


def test_a_step_that_goes_round_the_module_is_refused() -> None:
    """Nothing is passed off as scaled: a `predict_step` that calls a part of the module raises, and leaves no hook."""

    class Round(Forwards):
        def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.net(batch)

    module = Round()
    with pytest.raises(RuntimeError, match=r"`Round.predict_step` to call `self"):
        ScaledModule(module, 2.0).predict_step(loader().dataset.tensors[0], 0)
    assert not module._forward_hooks
