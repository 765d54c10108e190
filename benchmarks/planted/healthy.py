"""Trainings without a fault: data, network, optimiser and schedule drawn at random, and whether they were healthy."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

from torch import nn

from planted import architectures, data, generators, networks, worlds
from planted.networks import Shape
from planted.plan import Plan
from planted.symptoms import Run, floor, rise

Task = tuple[type[data.Source], Callable[..., nn.Module], float]
# Source, network and noise; no pair is in both parts.
TASKS: dict[str, tuple[Task, ...]] = {
    "dev": (
        (data.Vectors, networks.mlp, 0.9),
        (data.Digits, networks.convolution, 0.7),
        (data.Digits, networks.mlp, 0.8),
        (data.DigitRows, networks.Recurrent, 0.4),
        (data.DigitRows, networks.Transformer, 0.4),
        (data.Images, networks.convolution, 1.4),
        (data.Sequences, networks.Transformer, 0.7),
        (data.Wine, networks.mlp, 1.1),
        (data.Cells, networks.mlp, 0.9),
        (data.Sequences, networks.Recurrent, 0.6),
        (data.Images, networks.convolution, 1.2),
        (data.Sequences, networks.Transformer, 0.6),
        (data.Wine, networks.mlp, 0.8),
        (data.Cells, networks.mlp, 1.2),
        (data.Tokens, networks.Transformer, 1.0),
        (generators.Rings, networks.ResidualPerceptron, 0.8),
        (generators.Shapes, networks.residual_convolution, 0.9),
        (generators.Tones, networks.signal_convolution, 0.7),
        (generators.Marks, networks.BothWays, 0.6),
        (generators.Visits, networks.PreNormTransformer, 1.1),
        (generators.Rings, networks.mlp, 0.6),
        (generators.Visits, networks.BothWays, 1.0),
        (generators.Shapes, networks.convolution, 0.6),
        (generators.Marks, networks.PreNormTransformer, 0.5),
        (generators.Tones, networks.signal_convolution, 0.5),
    ),
    "report": (
        (worlds.Clouds, architectures.PointSet, 0.7),
        (worlds.Graphs, architectures.MessagePassing, 1.0),
        (worlds.Mosaics, architectures.Mixer, 0.8),
        (worlds.Choices, architectures.WideAndDeep, 0.9),
        (worlds.Strokes, architectures.CausalConvolution, 0.7),
        (worlds.Mosaics, networks.residual_convolution, 0.8),
        (worlds.Choices, networks.mlp, 0.8),
        (worlds.Strokes, networks.BothWays, 0.6),
        (worlds.Clouds, networks.PreNormTransformer, 0.7),
        (worlds.Mosaics, networks.convolution, 0.9),
    ),
}
FIRST_SEED = {"dev": 0, "report": 12000}
# Long memories, attention, sets, messages, mixing and embeddings are trained with adaptive steps.
ADAPTIVE = (
    networks.BothWays,
    networks.PreNormTransformer,
    architectures.PointSet,
    architectures.MessagePassing,
    architectures.Mixer,
    architectures.WideAndDeep,
)
# These learn all they can in few epochs.
DENSE = (networks.mlp, networks.ResidualPerceptron, architectures.Mixer, architectures.WideAndDeep)
NORMALISED = (
    *DENSE,
    networks.convolution,
    networks.residual_convolution,
    networks.signal_convolution,
    architectures.PointSet,
    architectures.MessagePassing,
    architectures.CausalConvolution,
)


def plan(part: str, number: int) -> Plan:
    """The plan of one run, drawn from its number alone."""
    seed = FIRST_SEED[part] + number
    draw = random.Random(seed)
    source, network, noise = TASKS[part][number % len(TASKS[part])]
    optimizer = draw.choice(("adam", "adamw") if network in ADAPTIVE else ("sgd", "momentum", "adam", "adamw"))
    rates = {"sgd": (0.1, 0.3), "momentum": (0.03, 0.08), "adam": (2e-3, 5e-3), "adamw": (2e-3, 5e-3)}
    low, high = rates[optimizer]
    if network is networks.mlp and source is not generators.Rings:
        low, high = low / 2, high / 2
    shape = Shape(
        width=draw.choice((32, 48, 64)),
        depth=draw.choice((1, 2, 3)),
        dropout=draw.choice((0.0, 0.0, 0.1, 0.2)),
        norm=draw.choice((0.0, 0.0, 0.1)) if network in NORMALISED else 0.0,
        activation=draw.choice((nn.ReLU, nn.GELU, nn.Tanh)),
    )
    return Plan(
        f"{source.__name__.lower()}-{network.__name__.lower()}",
        "healthy",
        seed,
        source,
        network,
        shape,
        noise * draw.uniform(0.7, 1.2),
        rows=draw.choice((1500, 2000)),
        val_rows=draw.choice((400, 800, 1600)),
        epochs=draw.choice(_epochs(source, network)),
        batch=draw.choice((96, 128)),
        optimizer="sgd" if optimizer == "momentum" else optimizer,
        learning_rate=low * (high / low) ** draw.random(),
        momentum=0.9 if optimizer == "momentum" else 0.0,
        weight_decay=draw.choice((0.0, 1e-4, 5e-4)) * (10 if optimizer == "adamw" else 1),
        schedule=draw.choice(("constant", "cosine", "step", "one-cycle", "restarts")),
        augment=draw.choice((0.0, 0.0, 0.1, 0.2)),
    )


def _epochs(source: type[data.Source], network: Callable[..., nn.Module]) -> tuple[int, ...]:
    """Epochs to draw from: rings take longer to tell than what lies apart."""
    if source is generators.Rings:
        return (16, 20, 24)
    return (6, 8, 10) if network in DENSE else (12, 16)


def plans(part: str, count: int) -> list[Plan]:
    """The first `count` plans of a part."""
    return [plan(part, number) for number in range(count)]


def fault(run: Run) -> str:
    """What makes a run unhealthy on fresh rows, "" for a healthy one.

    Healthy: from the evaluation with the lowest validation loss to the end, the loss on fresh rows rose by less than
    the practical floor (5 %, 0.01 nats), the loss after one temperature likewise, and the accuracy fell by less than a
    point; one temperature would save less than two floors; something was learnt (a quarter of the entropy of the
    classes); and no layer is mostly dead.
    """
    truth: dict[str, Any] = run["truth"]
    best, end = truth["best"], truth["end"]
    if not (best["finite"] and end["finite"]):
        return "not finite"
    loss, refined, accuracy = rise(run)
    limit = floor(best["nll"])
    if loss > limit or refined > limit:
        return "loss up"
    if accuracy < -0.01:
        return "accuracy down"
    if end["nll"] - end["refined_nll"] > 2 * limit:
        return "calibration"
    if end["refined_nll"] > 0.75 * math.log(run["classes"]):
        return "little learnt"
    if truth["dead"] > 0.75:
        return "dead units"
    return ""
