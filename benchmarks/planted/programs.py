"""The programs (data set and network) in which causes are planted.

Programs of the part "dev" served to choose limits, those of older reports among them; those of "report" were only ever
judged. No program, data set or seed is in both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from planted import (
    architectures,
    assemblies,
    constructions,
    data,
    designs,
    generators,
    inquiries,
    networks,
    observations,
    structures,
    surveys,
    terrains,
    worlds,
)
from planted.networks import Shape
from planted.plan import Plan

Part = str


def _program(
    name: str,
    source: type[data.Source],
    network: Callable[..., nn.Module],
    shape: Shape,
    noise: float = 1.0,
    learning_rate: float = 2e-3,
) -> Plan:
    return Plan(name, "healthy", 0, source, network, shape, noise, learning_rate=learning_rate, rows=768, epochs=16)


_DEV = (
    _program("vectors-mlp", data.Vectors, networks.mlp, Shape()),
    _program("digits-conv", data.Digits, networks.convolution, Shape(width=32)),
    _program("images-conv", data.Images, networks.convolution, Shape(width=32), 1.4),
    _program("sequences-gru", data.Sequences, networks.Recurrent, Shape(width=48), learning_rate=6e-3),
    _program("tokens-transformer", data.Tokens, networks.Transformer, Shape(width=32), 1.3),
    _program("cells-mlp", data.Cells, networks.mlp, Shape(width=48, depth=3), 0.7),
    _program("rings-residual", generators.Rings, networks.ResidualPerceptron, Shape(width=48)),
    _program("shapes-residual", generators.Shapes, networks.residual_convolution, Shape(width=32), 1.3),
    _program("tones-conv", generators.Tones, networks.signal_convolution, Shape(width=32)),
    _program("marks-lstm", generators.Marks, networks.BothWays, Shape(width=48), learning_rate=5e-3),
    _program("visits-transformer", generators.Visits, networks.PreNormTransformer, Shape(width=32, depth=1)),
    _program("clouds-set", worlds.Clouds, architectures.PointSet, Shape(width=48), 0.9, 5e-3),
    _program("graphs-messages", worlds.Graphs, architectures.MessagePassing, Shape(), 1.3, 4e-3),
    _program("mosaics-mixer", worlds.Mosaics, architectures.Mixer, Shape(width=32, depth=1), 1.1, 3e-3),
    _program("choices-wide", worlds.Choices, architectures.WideAndDeep, Shape(width=32, depth=1), learning_rate=3e-3),
    _program("strokes-causal", worlds.Strokes, architectures.CausalConvolution, Shape(width=48), 0.85, 5e-3),
    _program("letters-words", terrains.Letters, designs.BagOfWords, Shape(width=64, depth=1), 1.2, 3e-3),
    _program("calls-squeeze", terrains.Calls, designs.squeeze_excite, Shape(width=48), 1.5, 2e-3),
    _program("echoes-siamese", terrains.Echoes, designs.Siamese, Shape(activation=nn.Tanh), 1.7),
    _program("responses-states", terrains.Responses, designs.StateSpace, Shape(width=64), 1.0, 6e-3),
    _program("claims-splines", terrains.Claims, designs.splines, Shape(width=48, depth=1), 1.4, 2e-3),
    _program("smears-pooling", surveys.Smears, structures.GatedPooling, Shape(width=48), 1.5, 1e-3),
    _program("spectra-connections", surveys.Spectra, structures.dense_connections, Shape(width=32), 1.3, 1.2e-3),
    _program("winds-perceiver", surveys.Winds, structures.Perceiver, Shape(width=48, depth=1), 0.8, 1.5e-3),
    _program("soils-fourier", surveys.Soils, structures.FourierFeatures, Shape(width=48, depth=1), 1.0, 1e-3),
    _program("spikes-gates", surveys.Spikes, structures.WaveGates, Shape(width=32), 0.8),
    _program("ballots-cross", observations.Ballots, assemblies.CrossNetwork, Shape(width=48, depth=1), 0.75, 9e-4),
    _program("brainwaves-power", observations.BrainWaves, assemblies.LogPower, Shape(width=32, depth=1), 0.9, 4.5e-4),
    _program("stars-attentive", observations.Stars, assemblies.Attentive, Shape(width=48, depth=1), 0.7, 4.5e-3),
    _program("catches-experts", observations.Catches, assemblies.experts, Shape(width=48, depth=1), 1.5, 2.5e-3),
    _program(
        "micrographs-shuffle", observations.Micrographs, assemblies.shuffled, Shape(width=32, depth=1), 0.6, 3.5e-3
    ),
)
_REPORT = (
    _program("siblings-products", inquiries.Siblings, constructions.SecondOrder, Shape(width=48, depth=1), 1.0, 9e-4),
    _program("loans-trees", inquiries.Loans, constructions.SoftTrees, Shape(width=48, depth=1), 0.6, 9e-4),
    _program(
        "players-memory", inquiries.Players, constructions.LinearAttention, Shape(width=48, depth=1), 0.75, 1.5e-3
    ),
    _program("lenses-scales", inquiries.Lenses, constructions.scales, Shape(width=32, depth=1), 1.1),
    _program("poses-capsules", inquiries.Poses, constructions.Capsules, Shape(width=48, depth=1), 0.85, 3.5e-3),
)
PROGRAMS: dict[Part, dict[str, Plan]] = {
    part: {plan.program: plan for plan in plans} for part, plans in (("dev", _DEV), ("report", _REPORT))
}
# Seeds of one part never meet those of the other.
FIRST_SEED = {"dev": 0, "report": 13013}
VAL_ROWS = (600, 1000, 1600)


def with_seed(plan: Plan, cause: str, seed: int) -> Plan:
    """A program with cause and seed, and as many validation rows as these say."""
    place = seed + len(plan.program) + len(cause)
    return replace(plan, cause=cause, seed=seed, val_rows=VAL_ROWS[place % len(VAL_ROWS)])


def reshaped(plan: Plan, **changes: Any) -> Shape:
    """The shape of a plan with changes."""
    return replace(plan.shape, **changes)


def classes(plan: Plan) -> int:
    """C."""
    return plan.source.num_classes  # type: ignore[attr-defined]


def prior(plan: Plan, first: float) -> tuple[float, ...]:
    """Shares of the classes: `first`, and the rest alike."""
    return (first, *[(1 - first) / (classes(plan) - 1)] * (classes(plan) - 1))
