"""How does the optimisation go? Gradients, updates, hidden units and normalisation, sampled so that nobody can feel it.

One step in every `every` is looked at, fewer in long windows, and the first few. Everything stays on the device until
`Watcher.values` reads it. No random number is drawn and nothing of the training is written, so that it is bitwise the
same with and without. Which steps are looked at depends on their number alone, never on a clock.
"""

from __future__ import annotations

import math
import statistics
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lightning_lossacc.activations import Activations
from lightning_lossacc.modes import dropout_rate, frozen_share, training_layers
from lightning_lossacc.normalisation import Normalisation
from lightning_lossacc.readings import Reading
from lightning_lossacc.training import is_decoupled
from lightning_lossacc.units import MIN_ROWS, shares

# The first steps are the ones where learning fails soonest.
_FIRST_STEPS = 2
# Looking at a few layers of units is cheap, and short windows need their rows: more often, until there are enough.
_FEW_LAYERS, _MORE_OFTEN = 4, 4
# Forward passes in a row that are looked at when training begins, until there are rows for a first statement.
_FIRST_FORWARDS = 16
# A median of fewer sampled steps is no median: short windows reach back to earlier samples.
_MIN_SAMPLES = 4
# Samples of a window after which half as many are taken: a median of 8 is good, and a long window costs less.
_MANY_SAMPLES = 8
# Layers are searched for in the first sampled forward pass, and again now and then: some are unfrozen, or used, later.
_SEARCH_AGAIN = 64
# Of a larger weight, evenly spaced runs stand for it: |dw| / |w| is then an estimate.
_RUNS, _RUN_LENGTH = 64, 256


def next_sampled(number: int, every: int) -> int:
    """The first step from `number` on that is looked at: one of the first ones, or one in each block of `every`.

    Its place moves evenly over the block: with a fixed one, data in a fixed order would show the same batches again
    and again.
    """
    if number < _FIRST_STEPS:
        return number
    block = number // every
    places = [place * every + int(every * (place * 0.6180339887498949 % 1)) for place in (block, block + 1)]
    return places[places[0] < number]


@dataclass(slots=True)
class _Sample:
    """One sampled update, on the device; one entry an optimizer.

    Attributes:
        gradients: global norms of its gradients, ().
        weights: norms of weights before the update (T,).
        updates: norms of what was added to them (T,).
    """

    gradients: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    updates: list[Tensor] = field(default_factory=list)


class Watcher:
    """Cheap sampled statistics of a training, as plain numbers for each evaluation.

    Args:
        every: one step in so many is looked at, half as often after each 8 samples of a window; 1 begins with all.
        max_layers: layers of hidden units, and weights, that are watched; of more, evenly spaced ones.

    Raises:
        ValueError: if an argument is not positive.
    """

    def __init__(self, every: int = 16, max_layers: int = 64) -> None:
        for name, number in (("every", every), ("max_layers", max_layers)):
            if number < 1:
                raise ValueError(f"Expected `{name}` to be 1 or larger, but got {number!r}.")
        self.every = every
        self.max_layers = max_layers
        self._reset()

    def _reset(self) -> None:
        self._module: weakref.ref[nn.Module] | None = None
        self._activations: Activations | None = None
        self._normalisation: Normalisation | None = None
        self._optimizers: dict[int, weakref.ref[Optimizer]] = {}
        self._forwards = self._updates = 0
        self._next_forward = self._next_update = 0
        self._open = self._updating = self._sampled = False
        self._searches = self._looks = 0
        self._rates: list[float | Tensor] = []
        self._samples: list[_Sample] = []
        self._fresh = 0
        self._before: dict[int, tuple[list[Tensor], list[Tensor]]] = {}

    def __getstate__(self) -> dict[str, int]:
        # The rest belongs to one training, which copies and processes must not carry.
        return {"every": self.every, "max_layers": self.max_layers}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(**state)

    @property
    def reason(self) -> str | None:
        """Why hidden units are not watched, such as compiled code or an error; None while all is well."""
        return self._activations.reason if self._activations is not None else None

    # -- during training -----------------------------------------------------------------------------------------------

    def start(self, module: nn.Module) -> None:
        """Finds what can be watched; again for the same module nothing happens, another one starts anew."""
        if self._module is not None and self._module() is module:
            return
        self.stop()
        self._reset()
        self._module = weakref.ref(module)
        self._activations = Activations(module, self.max_layers)
        self._normalisation = Normalisation(module)

    def begin_step(self) -> None:
        """Before the forward pass of a batch: registers hooks if it is sampled."""
        if self._open:
            self.end_forward()
        number = self._forwards
        self._forwards += 1
        if number != self._next_forward:
            return
        # The first pass is left alone: what it compiles must not know of hooks.
        if self._activations is None:
            return
        if number == 0:
            self._next_forward = 1
            self._activations.first()
            return
        self._open = True
        again = _SEARCH_AGAIN if self._activations.sites else _MIN_SAMPLES
        search = self._searches % again == 0
        self._searches += 1
        self._looks += 1
        self._activations.open(search)
        self._normalisation.begin()

    def end_forward(self) -> None:
        """After the forward pass, at the latest before gradients are used: removes the hooks."""
        if not self._open:
            if self._forwards == 1 and self._activations is not None:
                self._activations.after_first()
            return
        self._open = False
        self._activations.close()
        self._normalisation.end()
        self._choose_forwards()

    def before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Before an optimizer changes the weights; in a closure that is run several times only the first time counts.

        Gradients are taken as they are: before clipping, unscaled by Lightning's mixed precision, but still multiplied
        by the loss scale for optimizers that unscale them on their own (`fused=True`).
        """
        if self._open:
            self.end_forward()
        if not self._updating:
            self._updating = True
            self._sampled = self._updates == self._next_update
            self._rates = []
            self._updates += 1
            if self._sampled:
                self._before.clear()
                self._samples.append(_Sample())
                self._fresh += 1
                self._next_update = next_sampled(self._updates, self.every << self._fresh // _MANY_SAMPLES)
        # A learning rate on the device changes there; what is needed is its value of this step.
        rates = [group.get("lr", 0.0) for group in optimizer.param_groups]
        self._rates += [rate.detach().clone() if isinstance(rate, Tensor) else rate for rate in rates]
        known = self._optimizers.get(id(optimizer))
        if known is None or known() is not optimizer:
            self._optimizers[id(optimizer)] = weakref.ref(optimizer)
        if not self._sampled:
            return
        key = id(optimizer)
        if key in self._before:
            # Several steps in one batch: the first update is complete. That of L-BFGS is still going on.
            if not isinstance(optimizer, LBFGS):
                self._finish(key)
            return
        with torch.no_grad():
            self._look_at_gradients(key, optimizer)

    def after_step(self, optimizers: Sequence[Optimizer]) -> None:
        """At the end of a batch, whether or not there was an update: measures the updates of a sampled step."""
        if self._open:
            self.end_forward()
        if not self._updating:
            return
        self._updating = False
        for key in list(self._before):
            self._finish(key)
        self._before.clear()

    def stop(self) -> None:
        """Removes every hook and forgets what was copied; also after an exception anywhere in a step."""
        self.end_forward()
        self._before.clear()
        self._updating = False

    def _choose_forwards(self) -> None:
        """How often forward passes are looked at from now on."""
        sites = self._activations.sites if self._activations is not None else []
        every = self.every << self._looks // _MANY_SAMPLES
        if min((site.rows for site in sites), default=MIN_ROWS) < MIN_ROWS:
            if self._forwards <= _FIRST_FORWARDS:
                every = 1
            elif len(sites) <= _FEW_LAYERS:
                every = max(1, self.every // _MORE_OFTEN)
        self._next_forward = next_sampled(self._forwards, every)

    def _look_at_gradients(self, key: int, optimizer: Optimizer) -> None:
        parameters = [
            weight for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None
        ]
        if not parameters or not all(map(_is_whole, parameters)):
            self._before[key] = ([], [])
            return
        dense = [weight.grad for weight in parameters if weight.grad.layout == torch.strided]
        sample = self._samples[-1]
        if dense:
            sample.gradients.append(torch.linalg.vector_norm(_norms(dense)))
        weights = [weight for weight in parameters if weight.ndim > 1]
        if len(weights) > self.max_layers:
            weights = [weights[index * len(weights) // self.max_layers] for index in range(self.max_layers)]
        places = [_sampled_view(weight) for weight in weights]
        self._before[key] = (places, [place.clone(memory_format=torch.contiguous_format) for place in places])

    def _finish(self, key: int) -> None:
        places, copies = self._before[key]
        if not places:
            return
        self._before[key] = ([], [])
        sample = self._samples[-1]
        with torch.no_grad():
            sample.weights.append(_norms(copies))
            torch._foreach_sub_(copies, places)
            sample.updates.append(_norms(copies))

    # -- at an evaluation ----------------------------------------------------------------------------------------------

    def values(self) -> dict[str, float]:
        """What was seen since the last call, and begins a new window; the only place that waits for the device.

        A key is absent while nothing is known of it. Norms and ratios are over the sampled steps since the last call,
        or the last four if there were fewer. Layers of units are counted once they have seen 256 inputs, which
        may take several calls; their window begins anew then, and what was counted stands until the next is full.

        Returns:
            learning_rate: largest of the groups at the last step.
            weight_decay: largest of the groups.
            penalty: 1/2 sum of weight decay |w|^2 over all trained parameters, >= 0; 0 where decay is decoupled.
            weight_norm: global norm of all trained parameters.
            gradient_norm, gradient_norm_max: median and largest global norm of finite gradients, without sparse ones.
            non_finite_steps: sampled steps whose gradient was not finite; mixed precision in float16 has some.
            update_ratio, update_ratio_max: median and largest over steps of the median over weights (2 or more
                dimensions) of |dw| / |w|; of weights above 16 384 elements from as many of them.
            dead_units, dead_units_total: share in 0..1 of units that were silent on all sampled inputs, in the worst
                layer and over all; of layers whose units can die.
            saturated_units: the same for the worst layer of bounded activations (|derivative| < 1e-4).
            watched_units: units of all layers behind these shares.
            dropout: largest probability.
            training_layers: layers of dropout and batch normalisation that are in training mode at this call.
            frozen_share: share of the weights that no gradient reaches, or that are in none of the optimizers seen.
            batch_norm_layers, batch_norm_momentum: layers with running statistics, and their smallest momentum.
            batch_norm_drift: largest distance over these layers between the statistics of sampled batches and the
                running ones, see `Normalisation`.
        """
        self.end_forward()
        window = self._samples[-max(self._fresh, _MIN_SAMPLES) :]
        self._samples, self._fresh, self._looks = self._samples[-_MIN_SAMPLES:], 0, 0
        # Also a window much shorter than a block has a sample of its own.
        self._next_update = min(next_sampled(self._updates, self.every), self._updates + self.every // _MORE_OFTEN)
        read = Reading()
        gradients = [[read.add(norm) for norm in sample.gradients] for sample in window]
        ratios = [
            [tuple(map(read.add, pair)) for pair in zip(sample.weights, sample.updates, strict=False)]
            for sample in window
        ]
        rates = [read.add(rate) if isinstance(rate, Tensor) else rate for rate in self._rates]
        groups = [(decay, read.add(_norms(weights))) for decay, weights in self._groups() if weights]
        sites = self._activations.full() if self._activations is not None else []
        silent = [(site, read.add(site.silent())) for site in sites]
        drift = self._normalisation.collect(read.add) if self._normalisation is not None else None
        read.wait()
        found = self._settings()
        if rates:
            found["learning_rate"] = max(float(read(rate)[0]) if isinstance(rate, slice) else rate for rate in rates)
        if groups:
            squares = [(decay, math.fsum(value * value for value in read(place))) for decay, place in groups]
            found["weight_norm"] = math.sqrt(math.fsum(square for _, square in squares))
            found["penalty"] = math.fsum(decay * square for decay, square in squares) / 2
        found |= _of_norms([math.hypot(*(read(place)[0] for place in sample)) for sample in gradients if sample])
        found |= _of_ratios(
            [
                [pair for weights, updates in sample for pair in zip(read(weights), read(updates), strict=True)]
                for sample in ratios
            ]
        )
        for site, place in silent:
            site.last = (round(read(place)[0]), site.units)
            site.clear()
        found |= shares(self._activations.sites if self._activations is not None else [])
        self._choose_forwards()
        if drift is not None and (distance := drift(read)) is not None:
            found["batch_norm_drift"] = distance
        return {name: float(value) for name, value in found.items() if math.isfinite(value)}

    def _living(self) -> list[Optimizer]:
        """The optimizers seen that still exist."""
        return list(filter(None, (reference() for reference in self._optimizers.values())))

    def _groups(self) -> list[tuple[float, list[Tensor]]]:
        """Decay by a penalty and trained parameters of every group of the optimizers seen, each parameter once."""
        seen: set[int] = set()
        found = []
        for optimizer in self._living():
            for group in optimizer.param_groups:
                weights = [weight for weight in group["params"] if weight.requires_grad and id(weight) not in seen]
                seen.update(map(id, weights))
                if not all(map(_is_whole, weights)):
                    return []
                decay = 0.0 if is_decoupled(optimizer, group) else float(group.get("weight_decay") or 0.0)
                found.append((decay, [weight.detach() for weight in weights]))
        return found

    def _settings(self) -> dict[str, float]:
        module = self._module() if self._module is not None else None
        if module is None:
            return {}
        found = {"dropout": max(map(dropout_rate, module.modules())), **self._normalisation.settings()}
        optimizers = self._living()
        found |= {"training_layers": training_layers(module), "frozen_share": frozen_share(module, optimizers)}
        decays = [
            float(group["weight_decay"] or 0.0)
            for optimizer in optimizers
            for group in optimizer.param_groups
            if "weight_decay" in group
        ]
        return found | ({"weight_decay": max(decays)} if decays else {})


def _of_norms(norms: list[float]) -> dict[str, float]:
    """Of the sampled steps' gradients."""
    finite = [norm for norm in norms if math.isfinite(norm)]
    found = {"non_finite_steps": float(len(norms) - len(finite))} if norms else {}
    if finite:
        found |= {"gradient_norm": statistics.median(finite), "gradient_norm_max": max(finite)}
    return found


def _of_ratios(steps: list[list[tuple[float, float]]]) -> dict[str, float]:
    """Of norms of weights and their updates; a weight that was zero has no ratio, nor a step that was skipped."""
    ratios = [[update / weight for weight, update in step if weight > 0 and math.isfinite(update)] for step in steps]
    medians = [statistics.median(step) for step in ratios if step]
    if not medians:
        return {}
    return {"update_ratio": statistics.median(medians), "update_ratio_max": max(medians)}


def _is_whole(parameter: nn.Parameter) -> bool:
    """Whether this process holds all of a parameter: a norm of one shard is not the norm."""
    return not is_traceable_wrapper_subclass(parameter)


def _norms(tensors: Sequence[Tensor]) -> Tensor:
    """Norms (T,) on the first tensor's device, in float32 for half precision, whose squares overflow at 256."""
    halves = any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in tensors)
    if halves:
        norms = [torch.linalg.vector_norm(tensor, dtype=torch.float32) for tensor in tensors]
    else:
        norms = torch._foreach_norm(tensors)
    device = norms[0].device
    return torch.stack([norm if norm.device == device else norm.to(device) for norm in norms])


def _sampled_view(parameter: nn.Parameter) -> Tensor:
    """The elements of a weight, or of a large one `_RUNS` runs of neighbours, as a view that shows every change."""
    weight = parameter.detach()
    size = weight.numel()
    if size <= _RUNS * _RUN_LENGTH or not weight.is_contiguous():
        return weight
    return weight.as_strided((_RUNS, _RUN_LENGTH), (size // _RUNS, 1), weight.storage_offset())
