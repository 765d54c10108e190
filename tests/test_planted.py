"""The planted faults of the benchmarks: each is what it says, the truth tells them apart, a kept run is judged."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from planted import symptoms
from planted.data import Cells, Digits, Images, Sequences, Tokens, Vectors, Wine
from planted.faults import FAULTS, IMPOSSIBLE, PROGRAMS, plans
from planted.judge import judge
from planted.module import PROBE_ROWS, loaders, rows_of
from planted.plan import Plan
from planted.run import keep, kept, train
from planted.truth import measure, refined

# From Lightning 2.6 with torch 2.13, once a data loader is set up.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*")


def plan(cause: str, **changes: Any) -> Plan:
    """The plan of a cause in the smallest program."""
    return replace(FAULTS[cause](replace(PROGRAMS["dev"]["vectors-mlp"], cause=cause)), **changes)


def test_every_cause_has_a_symptom_and_enough_runs() -> None:
    """At least 18 causes, each with 20 runs or more in the part that is reported."""
    assert set(FAULTS) == set(symptoms.SYMPTOMS) and len(FAULTS) >= 18
    found = plans("report", list(FAULTS), 5)
    counts = {cause: sum(item.cause == cause for item in found) for cause in FAULTS}
    assert min(counts.values()) >= 20, counts
    assert len({item.name for item in found}) == len(found)
    assert not any((item.cause, item.program) in IMPOSSIBLE for item in found)


def test_the_two_parts_share_nothing() -> None:
    """No data set, no program and no seed is in both parts."""
    parts = {part: plans(part, list(FAULTS), 6) for part in ("dev", "report")}
    for field in ("program", "seed", "source"):
        dev, report = ({getattr(item, field) for item in parts[part]} for part in ("dev", "report"))
        assert not dev & report, field


@pytest.mark.parametrize("source", [Vectors, Images, Sequences, Tokens, Digits, Wine, Cells])
def test_sources_give_new_rows_of_one_task(source: type[Vectors]) -> None:
    """Rows have the promised shape and shares, differ between draws, and belong to the task of the seed."""
    task = source(3, 1.2)
    share = (0.7, *[0.3 / (task.num_classes - 1)] * (task.num_classes - 1))
    inputs, target = task.sample(2000, torch.Generator().manual_seed(0), share)
    again, _ = task.sample(2000, torch.Generator().manual_seed(1), share)
    assert inputs.shape == (2000, *task.shape) and inputs.dtype == torch.float32
    assert (target == 0).float().mean().item() == pytest.approx(0.7, abs=0.05)
    assert not torch.equal(inputs, again)
    same, _ = source(3, 1.2).sample(2000, torch.Generator().manual_seed(0), share)
    assert torch.equal(inputs, same)


def test_refined_finds_the_temperature() -> None:
    """Logits times three have three times the temperature and the same loss after it."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(5000, 4, generator=generator, dtype=torch.float64)
    target = torch.distributions.Categorical(logits=logits).sample()
    loss, temperature = refined(logits, target)
    scaled_loss, scaled = refined(3 * logits, target)
    assert scaled == pytest.approx(3 * temperature, rel=1e-4) and scaled_loss == pytest.approx(loss, abs=1e-6)
    assert temperature == pytest.approx(1.0, abs=0.1) and loss <= F.cross_entropy(logits, target).item() + 1e-9


def test_measure_counts_by_class() -> None:
    """Accuracy, mean recall and the share of the commonest prediction, by hand."""
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    found = measure(logits, torch.tensor([0, 0, 1, 1]))
    assert (found["accuracy"], found["balanced_accuracy"], found["largest_predicted"]) == (0.75, 0.75, 0.75)
    assert measure(torch.tensor([[math.nan, 0.0]]), torch.tensor([0])) == {"finite": 0.0}


def test_rows_carry_their_fault() -> None:
    """Label noise, a tail, a leak and shifted classes touch the rows that they name, and as many."""
    for cause in ("label-noise", "hard-tail", "label-mapping-mismatch"):
        item = plan(cause)
        source = item.source(0, item.noise)
        for pool, rows in (("train", item.rows), ("fresh", 1000)):
            _, labels, clean = rows_of(item, source, pool, rows)
            wrong = (labels != clean).float().mean().item()
            shares = {"label-noise": (0.3, 0.0), "hard-tail": (0.0, 0.03), "label-mapping-mismatch": (0.0, 1.0)}
            assert wrong == pytest.approx(shares[cause][pool == "fresh"], abs=1e-3), (cause, pool)
    leaky = plan("leakage")
    trained, val, known = loaders(leaky, leaky.source(0, leaky.noise))
    assert torch.equal(trained.dataset.inputs[: leaky.val_rows], val.dataset.inputs)
    assert len(known.dataset) == PROBE_ROWS


def made_run(best: tuple[float, float], end: tuple[float, float], clean: float = 0.0) -> dict[str, Any]:
    """A run that ends with loss and refined loss `end` after `best`."""
    points = [
        {"finite": 1.0, "nll": nll, "refined_nll": low, "accuracy": 0.8, "clean_nll": nll - clean * place}
        for place, (nll, low) in enumerate((best, end))
    ]
    return {"truth": {"best": points[0], "end": points[1], "path": points}}


def test_the_truth_separates_confidence_from_overfitting() -> None:
    """The share of the rise that a temperature leaves decides; without a rise none of them is true."""
    confident, overfitted = made_run((0.5, 0.5), (0.7, 0.51)), made_run((0.5, 0.5), (0.7, 0.65))
    assert symptoms.over_confidence(confident) and not symptoms.overfitting(confident)
    assert symptoms.overfitting(overfitted) and not symptoms.over_confidence(overfitted)
    still = made_run((0.5, 0.5), (0.51, 0.5))
    assert not symptoms.over_confidence(still) and not symptoms.overfitting(still)
    assert symptoms.hard_tail(made_run((0.5, 0.5), (0.7, 0.5), clean=0.18))
    assert not symptoms.hard_tail(made_run((0.5, 0.5), (0.7, 0.5), clean=0.05))


def test_a_run_is_trained_kept_and_judged(tmp_path: Path) -> None:
    """Dead units show on fresh rows and are named; without the fault the same program shows nothing of it."""
    run = train(plan("dead-activations", epochs=12, rows=256))
    assert symptoms.shown(run) and run["truth"]["dead"] == 1.0
    keep(run, tmp_path, "dead")
    judged = judge(kept(tmp_path / "dead.json.gz"))
    assert judged.verdict == "right" and judged.named[0] == "dead-activations", judged
    sound = plan("dead-activations", epochs=12, rows=256)
    sound = replace(sound, shape=replace(sound.shape, hidden_bias=0.0))
    assert not symptoms.shown(train(sound))
