"""What the watchers of gradients, updates and hidden units cost a training step on a CPU.

Run from the repository root: `PYTHONPATH=. python benchmarks/bench_watchers.py [--seconds 40]`. Writes
`benchmarks/results/watchers.jsonl`; about two minutes. Says which targets hold and exits with 0 whether they do or not.

Two copies of one network are trained in turn on the same batches, one of them watched with the defaults, in blocks of
64 steps, with sampled ones in every block; the values are read after every fourth block, as at the end of an epoch.
Nothing else surrounds the step, so shares are larger than those of a Trainer's step, which adds half a millisecond. All
times are processor times of the thread, since wall time would count the neighbours of a busy machine:

    overhead     a watched block against the block without just before it
    own time     what was spent within the watcher's calls and hooks, less what the same clocks say around calls that do
                 nothing in the block without; steadier than the difference of two long times

After every block the weights of both copies are compared bit by bit.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import measure
import numpy as np
import torch
import torch.nn.functional as F
from measure import Quantiles, Row, Target
from torch import Tensor, nn

from lightning_lossacc.activations import Activations
from lightning_lossacc.watchers import Watcher

SEED = 20240
LIMIT = 1.0
STEPS = 64
# Blocks after which one evaluation reads the values, which is timed apart.
BLOCKS_PER_EVALUATION = 4


class Tokens(nn.Module):
    """A small transformer: 2 layers of width 128 over 64 tokens."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.1, batch_first=True, norm_first=True)
        self.words = nn.Embedding(1000, 128)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(128, 10)

    def forward(self, batch: Tensor) -> Tensor:
        """Logits (B, 10) of token numbers (B, 64)."""
        return self.head(self.body(self.words(batch)).mean(1))


def convolution() -> nn.Module:
    """Three convolutions with batch normalisation on pictures of 28 x 28."""
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 9, 64), nn.ReLU(), nn.Linear(64, 10))


def small() -> nn.Module:
    """64 -> 256 -> 256 -> 10 with dropout."""
    layers = nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.2), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    return nn.Sequential(*layers)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[torch.Generator], Tensor]]] = {
    "mlp, batch 256": (small, lambda generator: torch.randn(256, 64, generator=generator)),
    "convolution, batch 32": (convolution, lambda generator: torch.rand(32, 1, 28, 28, generator=generator)),
    "transformer, batch 8": (Tokens, lambda generator: torch.randint(1000, (8, 64), generator=generator)),
}


class Idle:
    """A watcher that does nothing, so that the clocks themselves can be taken off."""

    def begin_step(self) -> None:
        """Nothing."""

    def end_forward(self) -> None:
        """Nothing."""

    def before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Nothing."""

    def after_step(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Nothing."""


@dataclass(slots=True)
class Pair:
    """Two copies of a network in training, the second one watched.

    Attributes:
        name: which network.
        plain, watched: by block, processor time (s).
        idle, own: by block, what of it was within the calls of the idle and of the real watcher and its hooks (s).
        evaluations: times (s) of reading the values.
        found: the values read last.
    """

    name: str
    networks: list[nn.Module] = field(default_factory=list)
    optimizers: list[torch.optim.Optimizer] = field(default_factory=list)
    batches: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    watcher: Watcher = field(default_factory=Watcher)
    plain: list[float] = field(default_factory=list)
    watched: list[float] = field(default_factory=list)
    idle: list[float] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    spent: float = 0.0
    evaluations: list[float] = field(default_factory=list)
    found: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        build, draw = NETWORKS[self.name]
        torch.manual_seed(SEED)
        network = build()
        self.networks = [network, copy.deepcopy(network)]
        self.optimizers = [torch.optim.Adam(one.parameters(), 1e-3) for one in self.networks]
        generator = torch.Generator().manual_seed(SEED)
        inputs = [draw(generator) for _ in range(8)]
        self.batches = [(batch, torch.randint(10, (len(batch),), generator=generator)) for batch in inputs]
        self.watcher.start(self.networks[1])

    def run_plain(self) -> None:
        """A block of steps without the watcher."""
        self.plain.append(self._block(0, Idle()))
        self.idle.append(self.spent)

    def run_watched(self) -> None:
        """The same block with it."""
        self.watched.append(self._block(1, self.watcher))
        self.own.append(self.spent)

    def _block(self, which: int, watcher: Watcher | Idle) -> float:
        """Processor time (s) of a block, with the calls in the order of Lightning's hooks."""
        torch.manual_seed(len(self.own))
        network, optimizer = self.networks[which], self.optimizers[which]
        self.spent = 0.0
        began = time.thread_time()
        for step in range(STEPS):
            batch, target = self.batches[step % len(self.batches)]
            self._timed(watcher.begin_step)
            loss = F.cross_entropy(network(batch), target)
            self._timed(watcher.end_forward)
            optimizer.zero_grad()
            loss.backward()
            self._timed(watcher.before_optimizer_step, optimizer)
            optimizer.step()
            self._timed(watcher.after_step, [optimizer])
        return time.thread_time() - began

    def _timed(self, call: Callable[..., None], *arguments: object) -> None:
        began = time.thread_time()
        call(*arguments)
        self.spent += time.thread_time() - began

    def time_hooks(self) -> None:
        """Lets the hooks, which the network calls, count as the watcher's own time."""
        look = Activations.look

        def timed_look(*arguments: object) -> None:
            self._timed(look, *arguments)

        Activations.look = timed_look

    def between(self) -> None:
        """Compares the weights, and now and then reads the values as an evaluation does.

        Raises:
            RuntimeError: if the watcher has changed the training, or has seen nothing.
        """
        same = [torch.equal(*both) for both in zip(*(one.parameters() for one in self.networks), strict=True)]
        if not all(same):
            raise RuntimeError(f"Expected the same weights with the watcher, but got other ones of {self.name}.")
        if self.watched and len(self.watched) % BLOCKS_PER_EVALUATION == 0:
            began = time.perf_counter()
            self.found = self.watcher.values()
            self.evaluations.append(time.perf_counter() - began)
            missing = {"gradient_norm", "update_ratio", "dead_units"} - set(self.found)
            if missing:
                raise RuntimeError(f"Expected the watcher to see everything, but got no {', '.join(sorted(missing))}.")


def measure_network(name: str, budget: float) -> tuple[list[Row], list[Target]]:
    """Rows and targets of one network; prints a table."""
    pair, look = Pair(name), Activations.look
    pair.time_hooks()
    try:
        measure.interleave(
            {"without": pair.run_plain, "with": pair.run_watched},
            prepare=pair.between,
            seconds=budget,
            least=BLOCKS_PER_EVALUATION,
            most=400,
        )
    finally:
        Activations.look = look
    pair.between()
    # The first round has the imports, and the search for what can be watched.
    plain, watched = np.array(pair.plain[1:]), np.array(pair.watched[1:])
    own = np.array(pair.own[1:]) - np.array(pair.idle[1:])
    percent, share = Quantiles.of(100 * (watched / plain - 1)), Quantiles.of(100 * own / plain)
    shared = {"table": "watchers", "network": name}
    found = {
        "step without, ms": Quantiles.of(1e3 * plain / STEPS),
        "step with, ms": Quantiles.of(1e3 * watched / STEPS),
        "overhead, %": percent,
        "own time, us": Quantiles.of(1e6 * own / STEPS),
        "own time, %": share,
        "an evaluation's values, ms": Quantiles.of(1e3 * np.array(pair.evaluations)),
    }
    rows: list[Row] = [{**shared, "quantity": quantity, **value.row()} for quantity, value in found.items()]
    rows.append({"table": "seen", "network": name, **pair.found})
    measure.print_table([{name: quantity, "median (20 … 80 %)": str(value)} for quantity, value in found.items()])
    bars = [
        Target("overhead of a training step, %", name, LIMIT, percent),
        Target("own time of a training step, %", name, LIMIT, share),
    ]
    return rows, bars


def main() -> None:
    """Measures every network, prints the tables and writes the file."""
    chosen = measure.parser(__doc__.partition("\n")[0], 40.0, "one network").parse_args()
    torch.set_num_threads(1)
    stamp = measure.environment()
    print(json.dumps(stamp), end="\n\n")
    rows: list[Row] = []
    bars: list[Target] = []
    for name in NETWORKS:
        more_rows, more_bars = measure_network(name, chosen.seconds)
        rows += more_rows
        bars += more_bars
    measure.report("watchers", rows, bars, stamp, chosen.results)


if __name__ == "__main__":
    main()
