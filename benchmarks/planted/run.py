"""Trains one plan under the monitor, keeps its records and the truth, and judges kept runs again without training."""

from __future__ import annotations

import gzip
import json
import logging
import math
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything

from lightning_lossacc import LossAccuracyMonitor
from lightning_lossacc.history import to_json
from planted.module import Classifier, loaders
from planted.plan import Plan
from planted.truth import Snapshots, find, train_before

CACHE = Path(__file__).resolve().parent.parent / "cache"


def quiet() -> None:
    """For programs that train hundreds of runs: one thread, and none of Lightning's words for each of them."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)


def train(plan: Plan) -> dict[str, Any]:
    """One run: its plan, its records and events as JSON lines, the truth, and its seconds."""
    begin = time.perf_counter()
    source = plan.source(plan.seed, plan.noise)
    seed_everything(plan.seed, verbose=False)
    train_rows, val_rows, known_rows = loaders(plan, source)
    network = plan.network(source.shape, source.num_classes, plan.shape)
    if plan.before:
        train_before(plan, source, network)
    module = Classifier(network, plan)
    monitor, snapshots = LossAccuracyMonitor(dirpath=False, train_probe=known_rows, verbose=False), Snapshots()
    trainer = Trainer(
        max_epochs=plan.epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[monitor, snapshots],
    )
    trainer.fit(module, train_rows, val_rows)
    trained = time.perf_counter() - begin
    evaluations = monitor.history.series("val", complete=False)
    losses = [record.values.get("nll", math.nan) for record in evaluations]
    temperatures = [record.values.get("temperature", math.nan) for record in evaluations]
    finite = [index for index, loss in enumerate(losses) if loss == loss]
    best = min(finite, key=losses.__getitem__) if finite else 0
    return {
        "program": plan.program,
        "cause": plan.cause,
        "seed": plan.seed,
        "classes": source.num_classes,
        "plan": _plain(plan),
        "records": [record.to_json() for record in monitor.history],
        "events": [event.to_json() for event in monitor.events],
        "truth": find(plan, source, network, snapshots.states, best, temperatures),
        "seconds": [round(trained, 2), round(time.perf_counter() - begin, 2)],
    }


def _plain(plan: Plan) -> dict[str, Any]:
    fields = asdict(plan)
    fields["shape"]["activation"] = plan.shape.activation.__name__
    return fields | {"source": plan.source.__name__, "network": plan.network.__name__}


def keep(run: dict[str, Any], folder: Path, name: str) -> None:
    """Writes one run as compressed JSON."""
    path = folder / f"{name}.json.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_bytes(gzip.compress(to_json(run).encode(), 4))
    unfinished.replace(path)


def kept(path: Path) -> dict[str, Any]:
    """The inverse of `keep`."""
    return json.loads(gzip.decompress(path.read_bytes()))
