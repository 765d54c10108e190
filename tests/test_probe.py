"""The probe compares the same items, its parts add up, and its errors are those of a paired difference."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_lossacc import attribution, kernels
from lightning_lossacc.matches import shared_rows
from lightning_lossacc.probe import Probe, compare
from lightning_lossacc.refinement import refinement
from lightning_lossacc.sums import Layout


def evaluation(num_rows: int, scale: float, separation: float, noise: Tensor, target: Tensor) -> Tensor:
    return scale * (separation * F.one_hot(target, 4).double() + noise)


def temperature_of(logits: Tensor, target: Tensor) -> float:
    layout = Layout(4)
    counts, sums = layout.zeros()
    kernels.row_statistics(logits, target, counts, sums, layout)
    return refinement(counts, sums, layout).temperature


def two_evaluations(num_rows: int = 500) -> tuple[Probe, Tensor, Tensor, Tensor]:
    target, noise = torch.randint(0, 4, (num_rows,)), torch.randn(num_rows, 4, dtype=torch.float64)
    before, after = evaluation(num_rows, 1.5, 2.0, noise, target), evaluation(num_rows, 3.0, 1.9, noise, target)
    probe = Probe(num_rows, Layout(4))
    probe.update(torch.arange(num_rows), before, target)
    probe.keep("nll", 3, 30, temperature_of(before, target), float(F.cross_entropy(before, target)))
    probe.clear()
    for start in range(0, num_rows, 64):
        part = slice(start, min(start + 64, num_rows))
        probe.update(torch.arange(part.start, part.stop), after[part], target[part])
    return probe, before, after, target


def test_change_and_errors_are_those_of_the_rows() -> None:
    probe, before, after, target = two_evaluations()
    fitted = temperature_of(after, target)
    found = probe.compare("nll", fitted)
    change = F.cross_entropy(after, target, reduction="none") - F.cross_entropy(before, target, reduction="none")
    assert found["nll_change"] == pytest.approx(float(change.mean()), rel=1e-12)
    assert found["nll_change_error"] == pytest.approx(float(change.std()) / math.sqrt(500), rel=1e-9)
    assert (found["reference_epoch"], found["reference_step"], found["items"], found["rows"]) == (3, 30, 500, 500)
    hits = (after.argmax(1) == target).double() - (before.argmax(1) == target).double()
    assert found["accuracy_change"] == pytest.approx(float(hits.mean()))
    assert found["accuracy_change_error"] == pytest.approx(float(hits.std()) / math.sqrt(500))
    first = temperature_of(before, target)
    refined = F.cross_entropy(after / fitted, target) - F.cross_entropy(before / first, target)
    assert found["refinement_change"] == pytest.approx(float(refined), abs=1e-5)
    assert found["refinement_change_error"] < found["nll_change_error"]


def test_groups_partition_the_items_and_add_up() -> None:
    probe, before, after, target = two_evaluations()
    found = probe.compare("nll", 1.5)
    assert sum(group["items"] for group in found["groups"]) == 500
    assert math.fsum(attribution.by_group(found).values()) == pytest.approx(found["nll_change"], abs=1e-12)
    assert math.fsum(attribution.by_temperature(found).values()) == pytest.approx(found["nll_change"], abs=1e-12)
    was, is_now = before.argmax(1) == target, after.argmax(1) == target
    sizes = {group["name"]: group["items"] for group in found["groups"]}
    assert sizes == {
        "right both times": int((was & is_now).sum()),
        "wrong both times": int((~was & ~is_now).sum()),
        "wrong to right": int((~was & is_now).sum()),
        "right to wrong": int((was & ~is_now).sum()),
    }


def test_worst_rows_are_named_by_position() -> None:
    probe, before, after, target = two_evaluations()
    change = F.cross_entropy(after, target, reduction="none") - F.cross_entropy(before, target, reduction="none")
    worst = probe.compare("nll", 1.5)["worst"]
    assert [item["index"] for item in worst] == change.argsort(descending=True)[:8].tolist()
    for item in worst:
        assert item["target"] == int(target[item["index"]]) and item["predicted"] == int(after[item["index"]].argmax())
        assert item["change"] == pytest.approx(float(change[item["index"]]) / 500)


def test_nothing_changed_means_nothing_to_say() -> None:
    probe, before, _, target = two_evaluations()
    probe.update(torch.arange(500), before, target)
    found = probe.compare("nll", temperature_of(before, target))
    assert found["nll_change"] == 0 and found["refinement_change"] == 0 and found["worst"] == []


def test_other_labels_or_rows_switch_pairing_off() -> None:
    probe, _, after, target = two_evaluations()
    assert probe.compare("nll", 1.0) is not None and probe.compare("accuracy", 1.0) is None
    changed = target.clone()
    changed[7] = (changed[7] + 1) % 4
    probe.update(torch.arange(500), after, changed)
    assert probe.compare("nll", 1.0) is None
    probe.update(torch.arange(500), after, torch.where(torch.arange(500) == 7, -100, target))
    assert probe.compare("nll", 1.0) is None


def test_large_sets_keep_a_fixed_sample_in_any_order_and_batch() -> None:
    size, layout = 20_000, Layout(4)
    logits, target = torch.randn(size, 4), torch.randint(0, 4, (size,))
    first, second = Probe(size, layout, limit=256), Probe(size, layout, limit=256)
    assert len(first.positions) == 256 and torch.equal(first.positions, second.positions)
    assert first.positions.max() > 15_000 and len(set(first.positions.tolist())) == 256
    first.update(torch.arange(size), logits, target)
    for part in torch.randperm(size).split(777):
        second.update(part, logits[part], target[part])
    assert torch.equal(first.items(1.0), second.items(1.0))
    items = first.items(1.0)
    assert torch.equal(items[:, 3].long(), target[first.positions])
    assert items[:, 0].sum() == 256


def test_items_of_several_rows_group_by_their_right_rows() -> None:
    target = torch.randint(0, 4, (40, 25))
    noise = torch.randn(40, 4, 25, dtype=torch.float64)
    probe = Probe(40, Layout(4))
    hot = F.one_hot(target, 4).double().movedim(-1, 1)
    probe.update(torch.arange(40), 2 * hot + noise, target)
    probe.keep("nll", 0, 0, 1.0, 0.0)
    probe.update(torch.arange(40), 3 * (1.5 * hot + noise), target)
    found = probe.compare("nll", 1.0)
    assert found["items"] == 40 and found["rows"] == 1000
    assert [group["name"].split()[0] for group in found["groups"]] == ["items"] * 3
    assert math.fsum(attribution.by_group(found).values()) == pytest.approx(found["nll_change"], abs=1e-12)
    assert "rows" in attribution.group_sentence(found)


def test_state_survives_and_foreign_sizes_are_dropped() -> None:
    probe, _, after, target = two_evaluations()
    wanted = probe.compare("nll", 1.7)
    other = Probe(500, Layout(4))
    other.load_state(probe.state())
    other.update(torch.arange(500), after, target)
    assert other.compare("nll", 1.7) == wanted
    small = Probe(20, Layout(4))
    small.load_state(probe.state())
    assert small.references == {}


def test_two_items_are_needed() -> None:
    one = torch.tensor([[1.0, 0.3, 1.0, 2.0, 2.0, 0.3, 0.2]], dtype=torch.float64)
    assert compare(one, one, [0]) is None


def test_references_of_an_older_version_are_dropped() -> None:
    """A checkpoint written before a column or a field was added pairs nothing instead of failing."""
    probe, *_ = two_evaluations()
    epoch, step, temperature, nll, bounds, items = probe.state()["nll"]
    other = Probe(500, Layout(4))
    other.load_state({"nll": [epoch, step, temperature, nll, items]})
    other.load_state({"accuracy": [epoch, step, temperature, nll, bounds, items[:, :6]]})
    assert other.references == {}


def test_margin_part_is_the_two_class_loss_of_the_margin() -> None:
    """The margin's part is that of softplus(-margin), and it is the whole loss of a binary classifier."""
    probe, before, after, target = two_evaluations()
    found = probe.compare("nll", 1.5)

    def of_margin(logits: Tensor) -> Tensor:
        others = logits.masked_fill(F.one_hot(target, 4).bool(), -math.inf)
        return F.softplus(others.amax(1) - logits.gather(1, target[:, None])[:, 0])

    change = of_margin(after) - of_margin(before)
    assert found["margin_nll_change"] == pytest.approx(float(change.mean()), abs=1e-12)
    assert found["margin_nll_change_error"] == pytest.approx(float(change.std()) / math.sqrt(500), rel=1e-9)
    # A row that does not count has no part in it.
    ignored = torch.where(torch.arange(500) < 9, -100, target)
    poisoned = [logits.clone().index_fill(0, torch.tensor(9), math.nan) for logits in (before, after)]
    probe.update(torch.arange(500), poisoned[0], ignored)
    probe.keep("part", 0, 0, 1.5, 0.0)
    probe.update(torch.arange(500), poisoned[1], ignored)
    assert probe.compare("part", 1.5)["margin_nll_change"] == pytest.approx(float(change[10:].mean()), abs=1e-12)
    labels, binary = torch.randint(0, 2, (300,)), Probe(300, Layout(2, task="binary"))
    binary.update(torch.arange(300), torch.randn(300), labels)
    binary.keep("nll", 0, 0, 1.0, 0.7)
    binary.update(torch.arange(300), 3 * torch.randn(300), labels)
    found = binary.compare("nll", 1.0)
    assert found["margin_nll_change"] == pytest.approx(found["nll_change"], abs=1e-6)


def test_bounds_after_one_temperature_hold() -> None:
    """The certified bounds enclose the loss after the best temperature, found here by a fine search."""
    probe, before, after, target = two_evaluations()
    found = probe.compare("nll", temperature_of(after, target))
    steps = torch.linspace(0.3, 6.0, 2000, dtype=torch.float64)
    for logits, name in ((before, "before"), (after, "after")):
        exact = min(float(F.cross_entropy(logits / step, target)) for step in steps)
        lower, upper = found[f"refinement_bounds_{name}"]
        assert lower <= exact <= upper + 1e-9 and upper - lower < 0.02


def test_no_logits_of_many_classes_or_several_rows() -> None:
    """Logits are kept where there are few classes and an item is one row; elsewhere everything else still works."""
    many = Probe(50, Layout(65))
    many.update(torch.arange(50), torch.randn(50, 65), torch.randint(0, 65, (50,)))
    several = Probe(40, Layout(4))
    several.update(torch.arange(40), torch.randn(40, 4, 9), torch.randint(0, 4, (40, 9)))
    # One row that counts of nine: still no logits of its own.
    lone = Probe(40, Layout(4))
    target = torch.full((40, 9), -100).index_fill(1, torch.tensor([8]), 2)
    lone.update(torch.arange(40), torch.randn(40, 4, 9), target)
    for probe in (many, several, lone, Probe(40, Layout(4))):
        assert probe.rows() is None and probe.fits() == {} and probe.confusion() is None
        assert probe.duplicates(probe) is None
        probe.keep("nll", 0, 0, 1.0, 0.0)
        assert "margin_nll_change" not in (probe.compare("nll", 1.0) or {})


def test_confusion_counts_the_rows() -> None:
    """Target by predicted class, without ignored and non-finite rows; its diagonal is the number of right rows."""
    logits, target = torch.randn(200, 4), torch.randint(0, 4, (200,))
    target[:5], logits[5, 1] = -100, math.nan
    probe = Probe(200, Layout(4))
    probe.update(torch.arange(200), logits, target)
    wanted = torch.zeros(4, 4, dtype=torch.int64)
    for row, label in zip(logits[6:], target[6:], strict=True):
        wanted[label, row.argmax()] += 1
    assert probe.confusion() == wanted.tolist()
    binary = Probe(3, Layout(2, task="binary"))
    binary.update(torch.arange(3), torch.tensor([-1.0, 2.0, 3.0]), torch.tensor([1, 1, 0]))
    assert binary.confusion() == [[0, 1], [1, 1]]


def test_fits_use_the_kept_logits() -> None:
    """The fits see the counted rows: the loss as it is, a planted temperature of 3, and nothing else."""
    probe, _, after, target = two_evaluations()
    found = probe.fits()
    assert found["items"] == 500 and found["nll"] == pytest.approx(float(F.cross_entropy(after, target)))
    assert found["temperature"] < found["nll"] - 2 * found["temperature_gain_error"]
    assert 1 / found["slope"] == pytest.approx(temperature_of(after, target), rel=0.1)
    again = Probe(500, Layout(4))
    for part in torch.randperm(500).split(70):
        again.update(part, after[part], target[part])
    assert again.fits() == found
    labels = torch.randint(0, 2, (900,))
    binary = Probe(900, Layout(2, task="binary"))
    binary.update(torch.arange(900), 4.0 * labels - 2 + torch.randn(900) + 3, labels)
    shifted = binary.fits()
    assert shifted["bias_gain"] > 5 * shifted["bias_gain_error"] and shifted["vector"] == shifted["bias"]


def network(num_logits: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, num_logits))


@pytest.mark.parametrize(("task", "classes"), [("multiclass", 10), ("multiclass", 2), ("binary", 2)])
def test_duplicates_are_found_in_other_batches(task: str, classes: int) -> None:
    """60 of 600 rows that the other probe holds too, evaluated in other batches; without them the share is nothing."""
    layout = Layout(classes, task=task)
    model = network(1 if task == "binary" else classes)
    inputs, others = torch.randn(600, 20), torch.randn(2000, 20)
    target, other_target = torch.randint(0, classes, (600,)), torch.randint(0, classes, (2000,))

    def filled(features: Tensor, labels: Tensor, batch: int) -> Probe:
        probe = Probe(len(features), layout)
        with torch.no_grad():
            for part in torch.arange(len(features)).split(batch):
                probe.update(part, model(features[part]), labels[part])
        return probe

    mine = filled(inputs, target, 64)
    assert mine.duplicates(filled(others, other_target, 100)) == pytest.approx(0.0, abs=0.005)
    others[300:360], other_target[300:360] = inputs[:60], target[:60]
    assert mine.duplicates(filled(others, other_target, 7)) == pytest.approx(0.1, abs=0.005)
    # The same inputs under another label are no copies.
    other_target[300:360] = (target[:60] + 1) % classes
    assert mine.duplicates(filled(others, other_target, 7)) == pytest.approx(0.0, abs=0.005)


@pytest.mark.parametrize("output", ["constant", "dead", "rounded"])
def test_collapsed_outputs_are_no_duplicates(output: str) -> None:
    """Where most inputs have one of a few outputs, equal logits say nothing about the inputs."""
    one, two = torch.randn(500, 5, dtype=torch.float64), torch.randn(400, 5, dtype=torch.float64)
    if output == "constant":
        one, two = 0 * one + 0.3, 0 * two + 0.3
    elif output == "dead":
        one[:300], two[:300] = 0.0, 0.0
    else:
        one, two = one.sign(), two.sign()
    assert shared_rows(one, torch.zeros(500).long(), two, torch.zeros(400).long()) is None


def test_a_cluster_of_equal_outputs_is_left_out() -> None:
    """A fifth of the rows saturates to one output, and five real copies are still counted, and only they."""
    one, two = torch.randn(500, 5, dtype=torch.float64), torch.randn(400, 5, dtype=torch.float64)
    one[:100], two[:100] = 1.0, 1.0
    two[200:205] = one[200:205]
    assert shared_rows(one, torch.zeros(500).long(), two, torch.zeros(400).long()) == pytest.approx(0.01)


def test_a_set_that_repeats_itself_gets_no_word() -> None:
    """Half of the rows stand twice in their own set: so do new rows, and equal ones in training are no leak."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(300, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 5, (300,), generator=generator)
    mine, theirs = (torch.randint(0, 300, (400,), generator=generator) for _ in range(2))
    assert shared_rows(logits[mine], target[mine], logits[theirs], target[theirs]) is None


def drawn(seed: int, pool: int, *counts: int) -> list[tuple[Tensor, Tensor]]:
    """Sets of rows drawn with repetition from one pool of logits and targets."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(pool, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 5, (pool,), generator=generator)
    places = [torch.randint(0, pool, (count,), generator=generator) for count in counts]
    return [(logits[place], target[place]) for place in places]


def test_copies_are_told_from_a_set_that_repeats_itself() -> None:
    """New rows of a set that repeats itself match by chance; where half of them are copied, that half is counted."""
    mine, theirs = drawn(0, 4000, 600, 300)
    assert not shared_rows(*mine, *theirs)
    theirs[0][:150], theirs[1][:150] = mine[0][:150], mine[1][:150]
    assert shared_rows(*mine, *theirs) == pytest.approx(0.25, abs=0.03)


def test_matches_of_other_targets_are_no_copies() -> None:
    """Outputs that coincide by the network's doing have targets of their own: a fifth of them another one."""
    (mine, target), (theirs, labels) = drawn(0, 10**6, 600, 300)
    theirs[:200] = mine[:200]
    labels[:200] = torch.where(torch.arange(200) % 5 > 0, target[:200], (target[:200] + 1) % 5)
    assert shared_rows(mine, target, theirs, labels) == 0
    labels[:200] = target[:200]
    assert shared_rows(mine, target, theirs, labels) == pytest.approx(1 / 3, abs=0.01)


def test_a_small_part_of_training_is_matched_by_chance_more_often_than_in_proportion() -> None:
    """8000 rows of 800 inputs: each has ten of its kind, and a tenth as many rows hold half of the inputs."""
    mine, theirs = drawn(4, 800, 8000, 500)
    assert not shared_rows(*mine, *theirs)


def test_templates_of_one_class_are_no_copies() -> None:
    """A class that comes in sixty forms, some of them often and most seldom, is not copied for balance."""
    generator = torch.Generator().manual_seed(5)
    forms = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    weights = 1 / torch.arange(1, 61)
    drawn_forms = forms[torch.multinomial(weights, 1800, replacement=True, generator=generator)]
    unique = torch.randn(1200, 5, generator=generator, dtype=torch.float64)
    logits, target = torch.cat((drawn_forms, unique)), (torch.arange(3000) >= 1800).long()
    order = torch.randperm(3000, generator=generator)
    one, two = order[:1000], order[1000:]
    assert not shared_rows(logits[one], target[one], logits[two], target[two])


def test_a_tiny_set_is_judged_by_the_repeats_of_the_other_one() -> None:
    """Of 24 rows hardly one repeats another one; how often training rows do says what chance brings."""
    mine, theirs = drawn(1, 2000, 24, 300)
    assert not shared_rows(*mine, *theirs)
    theirs[0][:24], theirs[1][:24] = mine
    assert shared_rows(*mine, *theirs) > 0.7


@pytest.mark.parametrize("copied", ["one class", "all classes", "nothing"])
def test_rows_copied_before_the_split_are_found(copied: str) -> None:
    """A rare class is copied twelve times for balance and then split: its rows are in both sets. Where all classes
    repeat themselves, the set does, and that is no leak.
    """
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(1200, 5, generator=generator, dtype=torch.float64)
    target = (torch.arange(1200) < 600).long()
    if copied == "one class":
        logits[:600] = logits[:50].repeat(12, 1)
    elif copied == "all classes":
        logits = logits[:100].repeat(12, 1)
        target = (torch.arange(1200) % 100 < 50).long()
    order = torch.randperm(1200, generator=generator)
    mine, theirs = order[:300], order[300:]
    found = shared_rows(logits[mine], target[mine], logits[theirs], target[theirs])
    assert found == pytest.approx(0.5, abs=0.05) if copied == "one class" else not found


def test_matches_by_chance_are_taken_off() -> None:
    """On a line of 3000 logits some are equal to the last digit by chance: that many are no copies, 300 others are."""
    one, two = (5 + torch.randn(3000, 1, dtype=torch.float64) for _ in range(2))
    labels = torch.zeros(3000).long()
    assert shared_rows(one, labels, two, labels) == pytest.approx(0, abs=0.008)
    two[:300] = one[300:600]
    assert shared_rows(one, labels, two, labels) == pytest.approx(0.1, abs=0.008)
    # Further from zero the tolerance is wider than the gaps: nothing can be said.
    assert shared_rows(one + 100, labels, two + 100, labels) is None
