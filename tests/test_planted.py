"""The planted faults of the benchmarks: each is what it says, the truth tells them apart, a kept run is judged."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import bench_diagnosis
from measure import after_earlier_looks, beside_first_look
from planted import healthy, symptoms
from planted.data import Cells, Digits, Images, Sequences, Source, Tokens, Vectors, Wine
from planted.faults import FAULTS, IMPOSSIBLE, PROGRAMS, plans
from planted.inquiries import Lenses, Loans, Players, Poses, Siblings
from planted.judge import judge
from planted.module import PROBE_ROWS, loaders, rows_of
from planted.networks import LogitScale
from planted.observations import Ballots, BrainWaves, Catches, Micrographs, Stars
from planted.plan import Plan
from planted.run import keep, kept, train
from planted.surveys import Smears, Soils, Spectra, Spikes, Winds
from planted.terrains import Calls, Claims, Echoes, Letters, Responses
from planted.truth import dead_share, measure, refined
from planted.worlds import Choices, Clouds, Graphs, Mosaics, Strokes

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


LOOKED_AT = [Vectors, Images, Sequences, Tokens, Digits, Wine, Cells, Clouds, Graphs, Mosaics, Choices, Strokes]
LOOKED_AT += [Letters, Calls, Echoes, Responses, Claims, Smears, Spectra, Winds, Soils, Spikes]
LOOKED_AT += [Ballots, BrainWaves, Stars, Catches, Micrographs]
DRAWN = [source for source in LOOKED_AT if source not in (Images, Digits, Wine, Cells)]
NEW = [Siblings, Loans, Players, Lenses, Poses]


@pytest.mark.parametrize("source", [*LOOKED_AT, *NEW])
def test_sources_give_new_rows_of_one_task(source: type[Source]) -> None:
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


@pytest.mark.parametrize("source", [*DRAWN, *NEW])
def test_the_seed_draws_the_task(source: type[Source]) -> None:
    """The same draws of two seeds are rows of two tasks."""
    first, second = (source(seed, 0.1).sample(50, torch.Generator().manual_seed(0))[0] for seed in (1, 2))
    assert (first - second).abs().mean() > 0.01


LATEST = ("clouds-set", "graphs-messages", "mosaics-mixer", "choices-wide", "strokes-causal", "letters-words")
LATEST += ("calls-squeeze", "echoes-siamese", "responses-states", "claims-splines", "smears-pooling")
LATEST += ("spectra-connections", "winds-perceiver", "soils-fourier", "spikes-gates")
LATEST += ("ballots-cross", "brainwaves-power", "stars-attentive", "catches-experts", "micrographs-shuffle")


@pytest.mark.parametrize(
    ("part", "name"), [*(("dev", name) for name in LATEST), *(("report", name) for name in PROGRAMS["report"])]
)
def test_networks_obey_their_shape(part: str, name: str) -> None:
    """Every field of `Shape` is obeyed, and all weights learn; units that start dead are seen."""
    item = PROGRAMS[part][name]
    source = item.source(0, item.noise)
    inputs, _ = source.sample(200, torch.Generator().manual_seed(0))

    def built(**changes: Any) -> nn.Module:
        torch.manual_seed(0)
        return item.network(source.shape, source.num_classes, replace(item.shape, **changes))

    def found(network: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
        return [module for module in network.modules() if isinstance(module, kind)]

    plain = built()
    assert plain(inputs).shape == (200, source.num_classes) and len(found(plain, item.shape.activation)) >= 2
    assert not found(plain, _BatchNorm) and not found(plain, nn.Dropout)
    plain(inputs).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in plain.parameters())
    sizes = [sum(weight.numel() for weight in built(**changes).parameters()) for changes in ({}, {"depth": 3})]
    wide = sum(weight.numel() for weight in built(width=2 * item.shape.width).parameters())
    assert sizes[0] < min(sizes[1], wide)
    normed = built(norm=0.03, dropout=0.3, activation=nn.Tanh)
    momenta = [layer.momentum for layer in found(normed, _BatchNorm)]
    assert len(momenta) >= 2 and set(momenta) == {0.03}
    assert {layer.p for layer in found(normed, nn.Dropout)} == {0.3}
    assert found(normed, nn.Tanh) and not found(normed, nn.ReLU)
    assert dead_share(plain, inputs) < 0.75
    assert dead_share(built(hidden_bias=-20.0), inputs) == 1.0
    assert dead_share(built(hidden_bias=1e3, hidden_gain=200.0, activation=nn.Tanh), inputs) > 0.75
    narrow = built(bottleneck=1, softmax=True)
    assert torch.allclose(narrow(inputs).sum(1), torch.ones(200))
    assert min(layer.out_features for layer in found(narrow, nn.Linear)) == 1
    assert len(found(built(logit_scale=2.0), LogitScale)) == 1
    assert (built(frequent=2.0).eval()(inputs).argmax(1) == 0).all()


def test_sets_and_graphs_know_no_order() -> None:
    """Points, vertices and cells in another order have the same logits."""
    order = torch.randperm(14, generator=torch.Generator().manual_seed(1))
    for name in ("clouds-set", "graphs-messages", "smears-pooling"):
        item = PROGRAMS["dev"][name]
        inputs, _ = item.source(0, 1.0).sample(20, torch.Generator().manual_seed(0))
        network = item.network(item.source.shape, item.source.num_classes, item.shape)
        inputs = inputs[:, :14]
        moved = inputs[:, order]
        if name == "graphs-messages":
            moved = torch.cat((moved[:, :, :2], moved[:, :, 2:][:, :, order]), dim=2)
        assert torch.allclose(network(inputs), network(moved), atol=1e-5)


def test_causal_states_know_no_future() -> None:
    """What comes later changes no earlier state."""
    item = PROGRAMS["dev"]["strokes-causal"]
    network = item.network(Strokes.shape, Strokes.num_classes, item.shape)
    steps = torch.randn(2, 3, Strokes.shape[0])
    later = steps.clone()
    later[:, :, 10:] += 1
    states = [network.layers[2](network.embed(part)) for part in (steps, later)]
    assert torch.equal(states[0][:, :, :10], states[1][:, :, :10])
    assert not torch.equal(states[0], states[1])


@pytest.mark.parametrize("part", ["dev", "report"])
def test_healthy_tasks_fit_their_networks(part: str) -> None:
    """Every pair of source and network gives logits, and no source or seed is in both parts."""
    found = healthy.plans(part, len(healthy.TASKS[part]))
    for item in found:
        source = item.source(item.seed, item.noise)
        inputs, _ = source.sample(8, torch.Generator().manual_seed(0))
        assert item.network(source.shape, source.num_classes, item.shape)(inputs).shape == (8, source.num_classes)
    other = healthy.plans("report" if part == "dev" else "dev", 300)
    assert not {item.seed for item in healthy.plans(part, 300)} & {item.seed for item in other}
    assert not {item.source for item in found} & {item.source for item in other}


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


def test_a_static_temperature_and_a_trade_are_true_without_a_phase() -> None:
    """Over-confidence of every evaluation, and classes that trade rows while loss and accuracy fall."""
    points = [
        {"finite": 1.0, "nll": 0.6, "refined_nll": 0.45, "temperature": 2.0, "accuracy": 0.9, "recalls": [0.95, 0.7]},
        {"finite": 1.0, "nll": 0.5, "refined_nll": 0.40, "temperature": 2.0, "accuracy": 0.8, "recalls": [0.75, 0.9]},
    ]
    run = {"truth": {"path": points, "best": points[1], "end": points[1]}, "plan": {"later": None}}
    assert symptoms.over_confidence(run, symptoms.HOLDS) and not symptoms.over_confidence(run)
    assert symptoms.class_trade_off(run, symptoms.HOLDS) and not symptoms.class_trade_off(run)
    calm = [point | {"temperature": 1.05, "refined_nll": point["nll"], "recalls": [0.9, 0.9]} for point in points]
    run["truth"] = {"path": calm, "best": calm[1], "end": calm[1]}
    assert not symptoms.over_confidence(run, symptoms.HOLDS) and not symptoms.class_trade_off(run, symptoms.HOLDS)


def test_dealt_labels_that_carry_half_of_the_loss_are_a_tail() -> None:
    """Without a rise as well; 20 % of the rows are dealt among four classes, so that 15 % contradict."""
    run = made_run((0.5, 0.5), (0.5, 0.5), clean=0.25) | {"plan": {"tail": 0.0, "blur": 0.2, "val_prior": None}}
    run |= {"classes": 4}
    # 0.5 - 0.85 * 0.25 = 0.2875 of 0.5 nats.
    assert symptoms.hard_tail(run, symptoms.HOLDS) and not symptoms.hard_tail(run)
    run["truth"]["end"]["clean_nll"] = 0.4
    assert not symptoms.hard_tail(run, symptoms.HOLDS)


def test_label_noise_shows_against_right_labels() -> None:
    """A loss that rises as much with right labels is not the wrong labels' doing."""
    run = made_run((0.5, 0.5), (0.7, 0.6)) | {"plan": {"label_noise": 0.2}}
    run["truth"]["without"] = {"nll": 0.3, "rise": 0.02}
    assert symptoms.label_noise(run)
    run["truth"]["without"]["rise"] = 0.15
    assert not symptoms.label_noise(run)


def test_dealt_labels_contradict_their_rows() -> None:
    """Rows whose labels were dealt at random are known in the truth, and as many as were dealt to another class."""
    item = replace(plan("leakage"), blur=0.3)
    source = item.source(0, item.noise)
    _, dealt, _ = rows_of(item, source, "fresh", 1000)
    _, _, given = rows_of(replace(item, blur=0.0), source, "fresh", 1000)
    share = (dealt != given).float().mean().item()
    assert share == pytest.approx(0.3 * (1 - 1 / source.num_classes), abs=0.03)


def test_a_cause_is_planted_until_it_has_shown_often_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was said of it; what is kept already counts."""
    trained = []

    def quick(item: Plan) -> dict[str, Any]:
        trained.append(item.name)
        return {"cause": item.cause, "seconds": [0], "shows": len(trained) % 2 == 0}

    monkeypatch.setattr(bench_diagnosis, "train", quick)
    monkeypatch.setattr(bench_diagnosis, "shown", lambda run: run["shows"])
    bench_diagnosis.train_all("dev", ["blow-up"], 1, tmp_path, again=False, enough=3)
    assert len(trained) == 6 and len(list(tmp_path.rglob("*.gz"))) == 6
    bench_diagnosis.train_all("dev", ["blow-up"], 1, tmp_path, again=False, enough=3)
    assert len(trained) == 6


def test_a_new_look_keeps_a_row_of_each_look_before(tmp_path: Path) -> None:
    """Other first seeds are other runs; the same runs judged again are the same look."""
    path = tmp_path / "planted.jsonl"
    for seed, commit, right in ((3000, "a", 0.85), (5000, "b", 0.9), (5000, "c", 0.91), (7000, "d", 0.95)):
        whole = {"table": "all", "name": "all", "precision": right}
        lines = after_earlier_looks(path, [{"table": "run", "first_seed": seed, "commit": commit}, whole], whole)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    found = [(line["precision"], line["commit"]) for line in lines if line["table"] == "earlier"]
    assert found == [(0.85, "a"), (0.91, "c")] and lines[1]["precision"] == 0.95
    beside = beside_first_look(path, {"precision": 0.96}, "with a truth that was completed")
    assert beside[:-1] == lines and beside[-1]["note"] == "with a truth that was completed"
    path.write_text("".join(json.dumps(line) + "\n" for line in beside), encoding="utf-8")
    assert len(beside_first_look(path, {"precision": 0.97})) == len(beside)
