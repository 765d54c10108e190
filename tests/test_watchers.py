"""Watchers name what was planted, change nothing of the training, never wait for the device, and leave no hook."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer
from torch.utils.checkpoint import checkpoint

from lightning_lossacc.units import MIN_ROWS
from lightning_lossacc.watchers import Watcher, next_sampled

NUM_CLASSES = 5
Data = Callable[[int], Tensor]


def rows(features: int, size: int = 32) -> Data:
    return lambda step: torch.randn(size, features, generator=torch.Generator().manual_seed(step))


def images(size: int = 32, side: int = 12) -> Data:
    """Non-negative pictures with a border that is always black."""

    def batch(step: int) -> Tensor:
        pixels = torch.rand(size, 1, side, side, generator=torch.Generator().manual_seed(step))
        return F.pad(pixels[..., 2:-2, 2:-2], (2, 2, 2, 2))

    return batch


def train(
    model: nn.Module,
    data: Data,
    *,
    watcher: Watcher | None = None,
    steps: int = 20,
    optimizer: Optimizer | None = None,
    accumulate: int = 1,
    spoil: Callable[[int], None] | None = None,
) -> None:
    """A training loop that calls the watcher in Lightning's order; `spoil` may change gradients."""
    optimizer = SGD(model.parameters(), 1e-4) if optimizer is None else optimizer
    if watcher is not None:
        watcher.start(model)
    for step in range(steps):
        if watcher is not None:
            watcher.begin_step()
        output = model(data(step))
        target = torch.arange(len(output)) % output.shape[1]
        loss = F.cross_entropy(output, target)
        if watcher is not None:
            watcher.end_forward()
        if step % accumulate == 0:
            optimizer.zero_grad()
        loss.backward()
        if spoil is not None:
            spoil(step)
        if step % accumulate == accumulate - 1:
            if watcher is not None:
                watcher.before_optimizer_step(optimizer)
            optimizer.step()
        if watcher is not None:
            watcher.after_step([optimizer])


def watched(model: nn.Module, data: Data, **options: Any) -> dict[str, float]:
    watcher = Watcher(every=1)
    train(model, data, watcher=watcher, **options)
    assert watcher.reason is None
    assert num_hooks(model) == 0
    return watcher.values()


def num_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def kill(bias: nn.Parameter, units: slice | list[int], value: float = -20.0) -> None:
    with torch.no_grad():
        bias[units] = value


def mlp(activation: nn.Module | None = None, hidden: int = 40) -> nn.Sequential:
    activation = nn.ReLU() if activation is None else activation
    return nn.Sequential(nn.Linear(10, hidden), activation, nn.Linear(hidden, NUM_CLASSES))


class Functional(nn.Module):
    """Activations are calls, which no hook on a module sees; one layer of a convolution and one of features."""

    def __init__(self, features: int = 20) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.hidden = nn.Linear(8 * 5 * 5, features)
        self.out = nn.Linear(features, NUM_CLASSES)

    def forward(self, batch: Tensor) -> Tensor:
        batch = F.max_pool2d(F.relu(self.conv(batch)), 2).flatten(1)
        return self.out(F.dropout(F.relu(self.hidden(batch)), 0.5, training=self.training))


# -- dead units --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.GELU(), nn.SiLU(), nn.ELU()])
def test_units_with_a_bias_of_minus_twenty_are_dead(activation: nn.Module) -> None:
    """The exact share, for every activation that can die."""
    model = mlp(activation)
    kill(model[0].bias, slice(0, 13))
    found = watched(model, rows(10))
    assert found["dead_units"] == found["dead_units_total"] == 13 / 40
    assert found["watched_units"] == 40 and "saturated_units" not in found


def test_units_stuck_at_the_top_of_relu6_are_dead() -> None:
    model = mlp(nn.ReLU6())
    kill(model[0].bias, slice(0, 6), 30.0)
    assert watched(model, rows(10))["dead_units"] == 6 / 40


def test_leaky_units_never_die() -> None:
    """Nothing is watched, so nothing is said."""
    model = mlp(nn.LeakyReLU())
    kill(model[0].bias, slice(0, 13))
    assert not {"dead_units", "dead_units_total", "watched_units"} & set(watched(model, rows(10)))


def test_one_dead_channel_of_eight() -> None:
    """A channel is a unit; its positions at the border, and those of its neighbours, are not."""
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(200, NUM_CLASSES)
    )
    kill(model[1].bias, [5])
    found = watched(model, images())
    assert found["dead_units"] == 1 / 8 and found["watched_units"] == 8 and found["batch_norm_layers"] == 1


def test_functional_activations() -> None:
    """They are found behind the layer that reads them: a flattened convolution by channel, features under dropout."""
    model = Functional()
    kill(model.conv.bias, [2])
    kill(model.hidden.bias, slice(0, 5))
    found = watched(model, images())
    assert found["watched_units"] == 8 + 20
    assert found["dead_units"] == 5 / 20 and found["dead_units_total"] == 6 / 28


def test_black_borders_are_no_dead_units() -> None:
    """Inputs of the network that are always zero, also where a second branch reads them, or features join them."""

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(144, 20), nn.Linear(164, NUM_CLASSES)

        def forward(self, batch: Tensor) -> Tensor:
            batch = batch.flatten(1)
            return self.second(torch.cat([batch, F.relu(self.first(batch))], 1))

    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 20), nn.ReLU(), nn.Linear(20, NUM_CLASSES))
    assert watched(model, images())["dead_units"] == 0
    assert "dead_units" not in watched(Joined(), images())


def test_sparse_healthy_units_are_alive() -> None:
    """Units that are silent on 95 % of the inputs, and on most whole batches of eight."""
    torch.manual_seed(0)
    model = mlp()
    with torch.no_grad():
        model[0].weight.div_(model[0].weight.norm(dim=1, keepdim=True))
    kill(model[0].bias, slice(None), -1.645)
    hidden = F.relu(model[0](rows(10, 4096)(1)))
    assert (hidden == 0).float().mean() > 0.93
    assert (hidden[:8] == 0).all(0).float().mean() > 0.5
    assert watched(model, rows(10, 8), steps=60)["dead_units"] == 0


def test_few_inputs_say_nothing() -> None:
    """Below 256 inputs there is no share; the inputs of later calls count on."""
    model, watcher = mlp(), Watcher(every=1)
    kill(model[0].bias, slice(0, 4))
    # The first pass has no hooks and the second one only finds the layers.
    train(model, rows(10, 8), watcher=watcher, steps=MIN_ROWS // 8 + 1)
    assert not {"dead_units", "watched_units"} & set(watcher.values())
    train(model, rows(10, 8), watcher=watcher, steps=1)
    assert watcher.values()["dead_units"] == 4 / 40
    # What was counted stands while the next window fills, and is replaced by it.
    kill(model[0].bias, slice(0, 8))
    assert watcher.values()["dead_units"] == 4 / 40
    train(model, rows(10, 8), watcher=watcher, steps=16 * MIN_ROWS // 8)
    assert watcher.values()["dead_units"] == 8 / 40


def test_a_dead_layer_is_remembered_while_another_fills_its_window() -> None:
    """A layer over the steps of a sequence has its rows at once, and must not hide a dead one that is still filling."""

    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(10, 12), nn.Linear(12, 16)
            self.act, self.last, self.head = nn.GELU(), nn.ReLU(), nn.Linear(16, NUM_CLASSES)

        def forward(self, batch: Tensor) -> Tensor:
            steps = self.act(self.first(batch[:, None].expand(-1, 64, -1)))  # (B, 64, 12)
            return self.head(self.last(self.second(steps.mean(1))))

    model, watcher = Steps(), Watcher(every=1)
    kill(model.second.bias, slice(None))
    found = []
    for _ in range(10):
        train(model, rows(10, 8), watcher=watcher, steps=8)
        found.append(watcher.values()["dead_units"])
    first = found.index(1.0)
    assert first < 6 and found[first:] == [1.0] * (10 - first)


def test_a_unit_that_comes_back_is_alive_in_the_next_window() -> None:
    model, watcher = mlp(), Watcher(every=1)
    kill(model[0].bias, slice(0, 4))
    train(model, rows(10), watcher=watcher)
    assert watcher.values()["dead_units"] == 0.1
    kill(model[0].bias, slice(0, 4), 0.0)
    train(model, rows(10), watcher=watcher)
    assert watcher.values()["dead_units"] == 0


@pytest.mark.parametrize(("activation", "bias"), [(nn.Tanh(), 12.0), (nn.Sigmoid(), -15.0), (nn.Hardsigmoid(), 15.0)])
def test_saturated_units(activation: nn.Module, bias: float) -> None:
    model = mlp(activation)
    kill(model[0].bias, slice(0, 10), bias)
    found = watched(model, rows(10))
    assert found["saturated_units"] == 10 / 40 and "dead_units" not in found


def test_units_saturated_on_either_side_count() -> None:
    """A tanh that jumps from -1 to 1 passes no gradient at any input."""
    model = mlp(nn.Tanh())
    with torch.no_grad():
        model[0].weight[:3] = 0
        model[0].weight[:3, 0] = 1e4
    assert watched(model, lambda step: rows(10)(step).sign())["saturated_units"] == 3 / 40


def test_an_output_activation_is_not_hidden() -> None:
    """No later layer reads it, with one head or two."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(hidden=16)
            self.heads = nn.ModuleList(nn.Sequential(nn.Linear(NUM_CLASSES, 8), nn.Sigmoid()) for _ in range(2))
            for head in self.heads:
                kill(head[0].bias, slice(None))

        def forward(self, batch: Tensor) -> Tensor:
            return sum(head(self.body(batch)) for head in self.heads)

    found = watched(Heads(), rows(10))
    assert found["watched_units"] == 16 and "saturated_units" not in found


def test_a_shared_activation_is_one_layer_for_each_call() -> None:
    """`self.relu` used twice: units of different layers are not mixed."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(10, 20), nn.Linear(20, 20), nn.Linear(20, NUM_CLASSES)])
            self.relu = nn.ReLU()

        def forward(self, batch: Tensor) -> Tensor:
            for layer in self.layers[:-1]:
                batch = self.relu(layer(batch))
            return self.layers[-1](batch)

    model = Shared()
    kill(model.layers[1].bias, slice(0, 15))
    found = watched(model, rows(10))
    assert found["watched_units"] == 40 and found["dead_units"] == 0.75 and found["dead_units_total"] == 15 / 40


def test_a_recurrent_loop_is_one_layer() -> None:
    """The same weights at every time step: a unit that is alive at one of them is alive."""

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.relu, self.out = nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, NUM_CLASSES)

        def forward(self, batch: Tensor) -> Tensor:
            for _ in range(4):
                batch = self.relu(self.inner(batch))
            return self.out(batch)

    assert watched(Loop(), rows(10))["watched_units"] == 10


def test_a_transformer_is_watched_by_feature() -> None:
    """Its activation is a function; a unit is a feature of a token, whatever the token's place."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.1, batch_first=True)
    kill(layer.linear1.bias, slice(0, 6), -50.0)

    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.out = layer, nn.Linear(16, NUM_CLASSES)

        def forward(self, batch: Tensor) -> Tensor:
            return self.out(self.layer(batch.view(-1, 5, 16)).mean(1))

    found = watched(Sequence(), rows(80))
    assert found["watched_units"] == 24 and found["dead_units"] == 6 / 24 and found["dropout"] == 0.1


def test_convolutions_over_time_and_linear_layers_over_maps() -> None:
    """Three and four dimensions do not say where the units are; what made them does."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.time, self.relu = nn.Conv1d(1, 6, 3), nn.ReLU()
            self.last, self.gelu, self.out = nn.Linear(6, 12), nn.GELU(), nn.Linear(12, NUM_CLASSES)

        def forward(self, batch: Tensor) -> Tensor:
            batch = self.relu(self.time(batch[:, None]))
            batch = self.gelu(self.last(batch.transpose(1, 2)[:, :, None]))
            return self.out(batch).mean((1, 2))

    model = Both()
    kill(model.time.bias, [1])
    kill(model.last.bias, slice(0, 6))
    found = watched(model, rows(16))
    assert found["watched_units"] == 6 + 12 and found["dead_units_total"] == 7 / 18


def test_frozen_layers_are_not_watched_until_they_are_trained() -> None:
    """Dead units of a frozen backbone are no event of this training; unfrozen ones are found by a later search."""
    model, watcher = nn.Sequential(mlp(), nn.ReLU(), nn.Linear(NUM_CLASSES, NUM_CLASSES)), Watcher(every=1)
    model[0].requires_grad_(False)
    kill(model[0][0].bias, slice(0, 30))
    train(model, rows(10), watcher=watcher)
    assert "watched_units" not in watcher.values()
    model[0].requires_grad_(True)
    train(model, rows(10), watcher=watcher, steps=200)
    assert watcher.values()["dead_units"] == 0.75


def test_of_many_layers_some_are_watched() -> None:
    layers = [layer for _ in range(9) for layer in (nn.Linear(10, 10), nn.ReLU())]
    model, watcher = nn.Sequential(*layers, nn.Linear(10, NUM_CLASSES)), Watcher(every=1, max_layers=3)
    train(model, rows(10), watcher=watcher)
    assert watcher.values()["watched_units"] == 30


# -- gradients, updates, settings --------------------------------------------------------------------------------------


def test_learning_rate_decay_and_penalty_are_known() -> None:
    """Two groups: the largest rate and decay, and 1/2 sum of decay |w|^2 in float64."""
    model = mlp()
    optimizer = SGD(
        [
            {"params": model[0].parameters(), "lr": 0.003, "weight_decay": 0.1},
            {"params": model[2].parameters(), "lr": 0.02},
        ],
        lr=0.001,
    )
    found = watched(model, rows(10), optimizer=optimizer)
    norms = [
        sum(weight.detach().double().square().sum().item() for weight in model[part].parameters()) for part in (0, 2)
    ]
    assert found["learning_rate"] == 0.02 and found["weight_decay"] == 0.1
    assert found["penalty"] == pytest.approx(0.05 * norms[0], rel=1e-6)
    assert found["weight_norm"] == pytest.approx(math.sqrt(sum(norms)), rel=1e-6)


class Lion(SGD):
    """Not in torch; only its name is known."""


@pytest.mark.parametrize(
    ("kind", "more", "has_penalty"),
    [(SGD, {}, True), (Adam, {}, True), (AdamW, {}, False), (Lion, {}, False)]
    + [(NAdam, {"decoupled_weight_decay": decoupled}, not decoupled) for decoupled in (False, True)],
)
def test_decoupled_decay_is_no_penalty(kind: type[Optimizer], more: dict[str, bool], has_penalty: bool) -> None:
    """It shrinks the weights by rate times decay a step, and is no part of the loss that is minimised."""
    model = mlp()
    found = watched(model, rows(10), optimizer=kind(model.parameters(), lr=1e-3, weight_decay=0.1, **more))
    assert found["weight_decay"] == 0.1 and (found["penalty"] > 0) is has_penalty


def test_learning_rate_is_that_of_the_last_step() -> None:
    """A scheduler that steps after it does not count, also for a rate that lives on the device."""
    for rate in (0.5, torch.tensor(0.5)):
        model, watcher = mlp(), Watcher()
        optimizer = SGD(model.parameters(), rate)
        train(model, rows(10), watcher=watcher, optimizer=optimizer, steps=3)
        if isinstance(rate, Tensor):
            rate.fill_(0.1)
        else:
            optimizer.param_groups[0]["lr"] = 0.1
        assert watcher.values()["learning_rate"] == 0.5


def test_gradient_norm_and_update_ratio_of_plain_descent() -> None:
    """|dw| = rate |g|: the ratio to 1e-6, in float64, the norm over all parameters."""
    model = mlp().double()
    expected_ratios, expected_norms = [], []

    def note(step: int) -> None:
        gradients = [weight.grad for weight in model.parameters()]
        expected_norms.append(math.sqrt(sum(gradient.square().sum().item() for gradient in gradients)))
        ratios = [0.1 * weight.grad.norm() / weight.norm() for weight in (model[0].weight, model[2].weight)]
        expected_ratios.append(sum(ratios).item() / 2)

    data = rows(10)
    found = watched(
        model, lambda step: data(step).double(), optimizer=SGD(model.parameters(), 0.1), steps=9, spoil=note
    )
    assert found["update_ratio"] == pytest.approx(sorted(expected_ratios)[4], rel=1e-6)
    assert found["update_ratio_max"] == pytest.approx(max(expected_ratios), rel=1e-6)
    assert found["gradient_norm"] == pytest.approx(sorted(expected_norms)[4], rel=1e-6)
    assert found["gradient_norm_max"] == pytest.approx(max(expected_norms), rel=1e-6)


def test_exploding_and_non_finite_gradients() -> None:
    """The median stays, the largest shows it, and steps that are not finite are counted and left out of both."""
    model = mlp()

    def spoil(step: int) -> None:
        if step == 7:
            model[0].weight.grad.mul_(1e6)
        if step in (3, 4):
            model[2].bias.grad[0] = math.nan if step == 3 else math.inf

    class Still(SGD):
        def step(self, closure: Any = None) -> None:
            return None

    found = watched(model, rows(10), spoil=spoil, optimizer=Still(model.parameters(), 0.1))
    assert found["non_finite_steps"] == 2
    assert found["gradient_norm"] < 10 and found["gradient_norm_max"] > 1e4


def test_large_weights_are_estimated_from_runs() -> None:
    """A weight of 4 M elements: the ratio of a sample of 16 384 is within 5 % of the whole."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1000, 4000, bias=False), nn.ReLU(), nn.Linear(4000, NUM_CLASSES, bias=False))
    ratios = []
    found = watched(
        model,
        rows(1000, 8),
        steps=1,
        optimizer=SGD(model.parameters(), 0.1),
        spoil=lambda step: ratios.extend((0.1 * w.grad.norm() / w.norm()).item() for w in model.parameters()),
    )
    assert found["update_ratio"] == pytest.approx(sum(ratios) / 2, rel=0.05)


def test_accumulated_steps_are_counted_by_update() -> None:
    """Sampled batches need not be those before an update."""
    model, watcher = mlp(), Watcher(every=4)
    train(model, rows(10), watcher=watcher, steps=64, accumulate=4)
    found = watcher.values()
    assert found["gradient_norm"] > 0 and found["update_ratio"] > 0


def test_parameters_without_gradients_and_sparse_ones() -> None:
    """An unused layer has no update, rather than one of zero; a sparse gradient stays out of the norm."""

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.ModuleList(nn.Linear(4, 4) for _ in range(5))
            self.words = nn.Embedding(50, 8, sparse=True)
            self.out = nn.Linear(8, NUM_CLASSES)

        def forward(self, batch: Tensor) -> Tensor:
            return self.out(self.words((batch.abs() * 20).long().clamp(max=49)).mean(1))

    model = Words()
    norms: list[float] = []
    found = watched(
        model,
        rows(6),
        optimizer=SGD(model.parameters(), 0.1),
        spoil=lambda step: norms.append(
            torch.cat([model.out.weight.grad.flatten(), model.out.bias.grad]).norm().item()
        ),
    )
    assert found["gradient_norm"] == pytest.approx(sorted(norms)[9], rel=0.1)
    assert found["update_ratio"] > 0 and "watched_units" not in found


def test_several_optimizers_and_several_steps_a_batch() -> None:
    """Manual optimisation: one norm over both, and the update of a single step although there are three."""
    model, watcher = mlp().double(), Watcher(every=1)
    optimizers = [SGD(model[0].parameters(), 0.1), SGD(model[2].parameters(), 0.1)]
    watcher.start(model)
    watcher.begin_step()
    loss = F.cross_entropy(model(rows(10)(0).double()), torch.arange(32) % NUM_CLASSES)
    loss.backward()
    expected = math.sqrt(sum(weight.grad.square().sum().item() for weight in model.parameters()))
    ratios = [(0.1 * weight.grad.norm() / weight.norm()).item() for weight in (model[0].weight, model[2].weight)]
    for _ in range(3):
        for optimizer in optimizers:
            watcher.before_optimizer_step(optimizer)
            optimizer.step()
    watcher.after_step(optimizers)
    found = watcher.values()
    assert found["gradient_norm"] == pytest.approx(expected, rel=1e-9)
    assert found["update_ratio"] == pytest.approx(sum(ratios) / 2, rel=1e-6)


def test_closures_that_run_several_times() -> None:
    """L-BFGS evaluates its closure many times in a step: one sample, whose update is that of the whole step."""
    model, watcher = mlp().double(), Watcher(every=1)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=5)
    before = [model[part].weight.detach().clone() for part in (0, 2)]
    watcher.start(model)
    watcher.begin_step()
    calls = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(rows(10)(0).double()), torch.arange(32) % NUM_CLASSES)
        loss.backward()
        watcher.before_optimizer_step(optimizer)
        calls.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]).norm().item())
        return loss

    optimizer.step(closure)
    watcher.after_step([optimizer])
    found = watcher.values()
    assert len(calls) > 2 and found["gradient_norm"] == found["gradient_norm_max"] == pytest.approx(calls[0], rel=1e-9)
    moved = [(model[part].weight - old).norm() / old.norm() for part, old in zip((0, 2), before, strict=True)]
    assert found["update_ratio"] == pytest.approx(sum(moved).item() / 2, rel=1e-6)


def test_short_windows_reach_back() -> None:
    """The median of an epoch with one sampled step, or none, is over the last four."""
    model, watcher, norms = mlp(), Watcher(every=1), []

    def note(step: int) -> None:
        norms.append(math.sqrt(sum(weight.grad.square().sum().item() for weight in model.parameters())))

    train(model, rows(10), watcher=watcher, steps=6, spoil=note)
    watcher.values()
    train(model, rows(10), watcher=watcher, steps=1, spoil=note)
    assert watcher.values()["gradient_norm"] == pytest.approx(sum(sorted(norms[3:])[1:3]) / 2, rel=1e-5)


def test_every_window_has_a_sample_of_its_own() -> None:
    """Epochs of five steps, one in sixteen of which would be looked at: what happened in an epoch shows in it."""
    model, watcher = mlp(), Watcher(every=16)
    for epoch in range(6):
        scale = 1e6 if epoch == 5 else 1.0
        train(
            model,
            rows(10),
            watcher=watcher,
            steps=5,
            optimizer=SGD(model.parameters(), 0.0),
            spoil=lambda step: [weight.grad.mul_(scale) for weight in model.parameters()],
        )
        assert (watcher.values()["gradient_norm_max"] > 1e4) == (epoch == 5)


def test_nothing_is_known_before_the_first_step() -> None:
    model, watcher = nn.Sequential(mlp(), nn.Dropout(0.3)), Watcher()
    assert watcher.values() == {}
    watcher.start(model)
    assert watcher.values() == {"dropout": 0.3, "batch_norm_layers": 0, "training_layers": 1, "frozen_share": 0}


def test_half_precision_gradients_do_not_overflow() -> None:
    """The norm of float16 gradients of 300 is beyond float16."""
    model = mlp().half()
    optimizer = SGD(model.parameters(), 1e-6)
    watcher = Watcher()
    watcher.start(model)
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, 3000.0)
    watcher.before_optimizer_step(optimizer)
    watcher.after_step([optimizer])
    num_elements = sum(weight.numel() for weight in model.parameters())
    assert watcher.values()["gradient_norm"] == pytest.approx(3000 * math.sqrt(num_elements), rel=1e-3)


@pytest.mark.parametrize(("momentum", "low", "high"), [(0.1, 0.0, 0.5), (1e-4, 1.5, 100.0)])
def test_batch_norm_drift(momentum: float, low: float, high: float) -> None:
    """Running statistics that never arrive are far from the batches; ordinary ones are near."""
    model = nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16, momentum=momentum), nn.Linear(16, NUM_CLASSES))
    data = rows(10, 256)
    found = watched(model, lambda step: 50 + 30 * data(step), steps=60)
    assert low < found["batch_norm_drift"] < high


def test_batch_norm_in_evaluation_mode_has_no_drift() -> None:
    model = nn.Sequential(nn.Linear(10, 16), nn.BatchNorm1d(16).eval(), nn.Linear(16, NUM_CLASSES))
    found = watched(model, rows(10))
    assert "batch_norm_drift" not in found and found["batch_norm_layers"] == 1


# -- it changes nothing ------------------------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 16), nn.ReLU())
        self.out = nn.Linear(16, NUM_CLASSES)

    def forward(self, batch: Tensor) -> Tensor:
        return self.out(checkpoint(self.net, batch, use_reentrant=False))


def _cases() -> dict[str, tuple[Callable[[], nn.Module], Data]]:
    def normalised() -> nn.Module:
        layers = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout2d(0.2), nn.Flatten()
        return nn.Sequential(*layers, nn.Linear(800, NUM_CLASSES))

    return {
        "dropout": (lambda: nn.Sequential(mlp(), nn.Dropout(0.5)), rows(10)),
        "functional": (Functional, images()),
        "batch norm, in place": (normalised, images()),
        "checkpointed": (Checkpointed, rows(10)),
        "half precision": (lambda: mlp(nn.GELU()).bfloat16(), lambda step: rows(10)(step).bfloat16()),
    }


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("case", _cases())
def test_training_is_bitwise_the_same(case: str, accumulate: int) -> None:
    """Weights, buffers, gradients, the optimizer's state and the random generator."""
    build, data = _cases()[case]
    ends = []
    for watcher in (None, Watcher(every=1), Watcher(every=3)):
        torch.manual_seed(1)
        model = build()
        optimizer = torch.optim.AdamW(model.parameters(), 0.01)
        train(model, data, watcher=watcher, optimizer=optimizer, accumulate=accumulate, steps=12)
        state = [value for entry in optimizer.state.values() for value in entry.values()]
        gradients = [weight.grad for weight in model.parameters()]
        ends.append([*model.state_dict().values(), *gradients, *state, torch.random.get_rng_state()])
        if watcher is not None:
            assert "gradient_norm" in watcher.values() and watcher.reason is None
    for end in ends[1:]:
        assert all(torch.equal(value, plain) for value, plain in zip(end, ends[0], strict=True))


@pytest.mark.parametrize("how", ["function", "module", "in place"])
def test_compiled_code_is_left_alone(how: str) -> None:
    """As many graphs as without, also when shapes change in a sampled step; gradients are watched all the same."""
    from torch._dynamo.testing import CompileCounter

    class Net(nn.Sequential):
        def forward(self, batch: Tensor) -> Tensor:
            return self[2](self[1](self[0](batch)))

    ends = []
    for watcher in (None, Watcher(every=2)):
        torch._dynamo.reset()
        torch.manual_seed(1)
        net, counter = Net(*mlp()), CompileCounter()
        model = nn.Module()
        if how == "in place":
            net.compile(backend=counter, fullgraph=True)
            compiled = net
        else:
            compiled = torch.compile(net if how == "module" else net.__call__, backend=counter, fullgraph=True)
        model.net = compiled if how == "module" else net
        model.forward = lambda batch, compiled=compiled: compiled(batch)
        train(model, lambda step: rows(10, 64 if step % 5 else 32)(step), watcher=watcher, steps=12)
        ends.append((counter.frame_count, [weight.detach() for weight in net.parameters()]))
    found = watcher.values()
    assert found["gradient_norm"] > 0 and "dead_units" not in found
    assert ends[0][0] == ends[1][0] > 0
    assert all(torch.equal(plain, value) for plain, value in zip(ends[0][1], ends[1][1], strict=True))


def test_hooks_are_not_compiled_into_anything() -> None:
    """Code that is compiled only after the first pass, while hooks are there: one whole graph, and nothing of ours."""
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    model, watcher, counter = mlp(), Watcher(every=1), CompileCounter()
    train(model, rows(10), watcher=watcher, steps=4)
    seen = watcher._activations.sites[0].rows
    watcher.begin_step()
    assert num_hooks(model) > 0
    torch.compile(lambda batch: model(batch), backend=counter, fullgraph=True)(rows(10)(0)).sum().backward()
    watcher.end_forward()
    # Two linear layers and an activation.
    assert (counter.frame_count, counter.op_count) == (1, 3)
    assert watcher._activations.sites[0].rows == seen and watcher.reason is None


@pytest.fixture
def no_reading(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every way in which Python waits for a device, noted."""
    read: list[str] = []
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero"):

        def noted(self: Tensor, *args: Any, name: str = name, **kwargs: Any) -> Any:
            read.append(name)
            return originals[name](self, *args, **kwargs)

        monkeypatch.setattr(Tensor, name, noted, raising=False)
    yield read


originals = {
    name: getattr(Tensor, name)
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero")
}


def test_only_values_reads_the_device(no_reading: list[str]) -> None:
    """No batch waits for the device, and an evaluation does once, beside the arithmetic on the host."""
    model = nn.Sequential(mlp(), nn.BatchNorm1d(NUM_CLASSES))
    watcher = Watcher(every=1)
    optimizer = SGD(model.parameters(), torch.tensor(0.1), foreach=False)
    watcher.start(model)
    seen: list[str] = []
    for step in range(20):
        watcher.begin_step()
        loss = F.cross_entropy(model(rows(10)(step)), torch.arange(32) % NUM_CLASSES)
        watcher.end_forward()
        optimizer.zero_grad()
        loss.backward()
        no_reading.clear()
        watcher.before_optimizer_step(optimizer)
        seen += no_reading
        optimizer.step()
        no_reading.clear()
        watcher.after_step([optimizer])
        seen += no_reading
    assert seen == []
    found = watcher.values()
    assert no_reading.count("tolist") == 1 and "dead_units" in found and "batch_norm_drift" in found


def test_a_forward_pass_reads_nothing(no_reading: list[str]) -> None:
    model, watcher = Functional(), Watcher(every=1)
    watcher.start(model)
    for step in range(6):
        watcher.begin_step()
        model(images()(step))
        watcher.end_forward()
    assert no_reading == []


def test_unsampled_steps_have_no_hooks() -> None:
    """Only sampled ones do, and only until the forward pass ends."""
    model, watcher = mlp(), Watcher(every=16)
    # Plenty of rows, so that only the ordinary schedule is left.
    train(model, rows(10, 512), watcher=watcher, steps=16)
    sampled = []
    for step in range(16, 176):  # eight samples up to step 112, then every 32 steps
        watcher.begin_step()
        sampled.append(num_hooks(model) > 0)
        watcher.end_forward()
        assert num_hooks(model) == 0, step
    assert sum(sampled[:96]) == 6 and 2 <= sum(sampled[96:]) <= 3
    # Too few rows so far: four times as many passes are looked at.
    model, watcher = mlp(), Watcher(every=16)
    train(model, rows(10, 4), watcher=watcher, steps=20)
    sampled = []
    for _ in range(20, 52):
        watcher.begin_step()
        sampled.append(num_hooks(model) > 0)
        watcher.end_forward()
    assert sum(sampled) == 8


@pytest.mark.parametrize("every", [1, 4, 16])
def test_schedule_has_one_step_in_each_block_and_no_fixed_place(every: int) -> None:
    sampled = {next_sampled(number, every) for number in range(41 * every)}
    places = [sorted(sampled & set(range(block * every, (block + 1) * every))) for block in range(2, 41)]
    assert {len(place) for place in places} == {1}
    assert {place[0] % every for place in places} == set(range(every))
    assert {0, 1} <= sampled
    assert all(next_sampled(number, every) == min(step for step in sampled if step >= number) for number in range(9))


# -- hooks, copies and faults ------------------------------------------------------------------------------------------


def test_stop_removes_every_hook_also_after_an_exception() -> None:
    model, watcher = mlp(), Watcher(every=1)
    train(model, rows(10), watcher=watcher, steps=3)
    watcher.begin_step()
    assert num_hooks(model) > 0
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.ones(3, 7))
    watcher.stop()
    assert num_hooks(model) == 0
    watcher.after_step([])
    train(model, rows(10), watcher=watcher, steps=3)
    assert num_hooks(model) == 0


def test_copies_made_in_a_sampled_step_hold_nothing_of_ours() -> None:
    """Weight averaging copies modules whenever it likes; the copy computes the same and keeps no watcher alive."""
    model, watcher = mlp(), Watcher(every=1)
    train(model, rows(10), watcher=watcher, steps=4)
    watcher.begin_step()
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    counted = watcher._activations.sites[0].rows
    for copied in copies:
        assert torch.equal(copied(rows(10)(0)), nn.Sequential.forward(model, rows(10)(0)))
        assert b"lightning_lossacc.watchers" not in pickle.dumps(copied)
    assert watcher._activations.sites[0].rows == counted + 32 * len(copies), "only the module itself was counted"
    watcher.stop()


def test_a_copied_watcher_is_a_fresh_one() -> None:
    watcher = Watcher(every=4, max_layers=7)
    train(mlp(), rows(10), watcher=watcher, steps=4)
    for copied in (copy.deepcopy(watcher), pickle.loads(pickle.dumps(watcher))):
        assert (copied.every, copied.max_layers) == (4, 7) and copied.values() == {}


def test_module_and_graph_are_not_kept_alive() -> None:
    model, watcher = mlp(), Watcher(every=1)
    train(model, rows(10), watcher=watcher, steps=4)
    watcher.stop()
    alive = weakref.ref(model)
    watcher.start(mlp())
    del model
    gc.collect()
    assert alive() is None


def test_starting_again_goes_on() -> None:
    model, watcher = mlp(), Watcher(every=1)
    train(model, rows(10), watcher=watcher)
    watcher.start(model)
    assert watcher.values()["watched_units"] == 40


def test_an_error_in_a_hook_ends_the_watching_and_not_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model, watcher = mlp(), Watcher(every=1)
    monkeypatch.setattr("lightning_lossacc.units.Site.add", lambda *_: 1 / 0)
    train(model, rows(10), watcher=watcher)
    assert watcher.reason == "ZeroDivisionError: division by zero"
    found = watcher.values()
    assert "dead_units" not in found and found["gradient_norm"] > 0


def test_functional_transforms_are_not_looked_into() -> None:
    """Under `vmap` a module sees tensors of no memory of their own."""
    model, watcher = mlp(), Watcher(every=1)
    train(model, rows(10), watcher=watcher, steps=4)
    watcher.begin_step()
    torch.vmap(model)(torch.randn(3, 2, 10))
    watcher.end_forward()
    assert watcher.reason is None and type(watcher._activations.sites[0].activity) is Tensor
    watcher.values()


def test_long_windows_are_bounded() -> None:
    """Memory grows with the logarithm of the number of steps."""
    model, watcher = mlp(hidden=4), Watcher(every=1)
    optimizer = SGD(model.parameters(), 0.1)
    model(rows(10)(0)).sum().backward()
    for _ in range(4000):
        watcher.before_optimizer_step(optimizer)
        watcher.after_step([optimizer])
    assert 50 < len(watcher._samples) < 120
    assert watcher.values()["gradient_norm"] > 0


@pytest.mark.parametrize("name", ["every", "max_layers"])
def test_says_what_it_expects(name: str) -> None:
    with pytest.raises(ValueError, match=f"Expected `{name}` to be 1 or larger, but got 0"):
        Watcher(**{name: 0})
