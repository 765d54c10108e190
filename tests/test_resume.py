"""A run that was stopped and resumed says what the uninterrupted run would have said, bit for bit.

Proved here: records and events after a resume from any point equal those of the run that was not stopped, with the
paired comparisons and the sums of a begun training epoch; what Lightning leaves out is left out and never counted
twice; a checkpoint holds primitives and tensors, stays small, and cannot hurt a run when it is foreign or broken; after
an exception or a signal nothing is added over ranks; files of a resumed run go on in their own folder.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint, OnExceptionCheckpoint

from lightning_lossacc import Event, History, LossAccuracyMonitor, Record, resume
from lightning_lossacc.stages import Sampling, Settings, StageState
from tests.modules import QUIET, Plain, Resumable, assert_identical, dataset, loader, monitor, safely, trainer

# Parts of an attribution that come from the paired rows, whose references a checkpoint keeps.
PAIRED_PARTS = ("nll_change", "full_nll_change", "by_group", "by_temperature", "by_margin", "flips", "worst")

pytestmark = QUIET
EPOCHS, BATCHES = 10, 6
SIZE_LIMIT = 256 * 1024


class Keep(Checkpoint):
    """Saves at every point at which a checkpoint callback may."""

    def __init__(self, path: Path, within_validation: bool = False) -> None:
        self.path = path
        self.within_validation = within_validation

    def save(self, trainer: Trainer, point: str) -> None:
        trainer.save_checkpoint(self.path / f"{point}-{trainer.global_step}.ckpt", weights_only=False)

    def on_train_batch_end(self, trainer: Trainer, *rest: Any) -> None:
        self.save(trainer, "batch")

    def on_validation_batch_end(self, trainer: Trainer, *rest: Any) -> None:
        if self.within_validation:
            self.save(trainer, "within")

    def on_validation_end(self, trainer: Trainer, *rest: Any) -> None:
        self.save(trainer, "validation")

    def on_train_epoch_end(self, trainer: Trainer, *rest: Any) -> None:
        self.save(trainer, "epoch")


class Ran(NamedTuple):
    """One run and where its checkpoints are."""

    watch: LossAccuracyMonitor
    path: Path
    module: Plain


def run(path: Path, *callbacks: Callback, point: Path | None = None, watch: Any = None, **options: Any) -> Ran:
    """One seeded run, from the start or from a checkpoint that is read with `weights_only`."""
    seed_everything(7, verbose=False)
    # What is sampled within an epoch begins anew after a resume.
    watch = watch or monitor(watch=False)
    module = Plain(drop=0.0, rate=0.3)
    made = trainer(
        path, watch, *callbacks, **{"max_epochs": EPOCHS, "enable_checkpointing": bool(callbacks), **options}
    )
    made.fit(
        module,
        Resumable(dataset(), batch_size=8),
        loader(64, seed=3, batch_size=24),
        **safely(point),
    )
    return Ran(watch, path, module)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A run that is neither stopped nor saved; the checkpoints beside it are of its twin."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    path = tmp_path_factory.mktemp("uninterrupted")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(path, Keep(path))
        return run(path)


def comparable(record: Record) -> dict[str, Any]:
    # Lightning forgets the first part of its own epoch means of the training.
    return asdict(replace(record, time=0.0, logged={} if record.stage == "train" else record.logged))


def kept(record: Record) -> dict[str, Any]:
    """What a checkpoint keeps of a record."""
    values = {
        key: record.values[key] for key in resume.KEYS if record.values.get(key, float("nan")) == record.values.get(key)
    }
    context = {key: record.context[key] for key in resume.CONTEXT_KEYS if key in record.context}
    return comparable(replace(record, values=values, arrays={}, logged={}, paired={}, context=context))


def place(record: Record) -> tuple[str, int, int]:
    return record.stage, record.epoch, record.global_step


def assert_goes_on(resumed: LossAccuracyMonitor, full: LossAccuracyMonitor, missing: tuple[Any, ...] = ()) -> None:
    """Equal to the run that was not stopped, but for validations that Lightning skips on resume."""
    expected = [record for record in full.history if place(record) not in missing]
    assert [place(record) for record in resumed.history] == [place(record) for record in expected]
    fresh = 0
    for found, record in zip(resumed.history, expected, strict=True):
        # A save counts the waiting rows of a begun training epoch, so that its sums are added in another order.
        relative = 1e-12 if record.stage == "train" else 0.0
        wanted = comparable(record) if found.arrays else kept(record)
        fresh += bool(found.arrays)
        assert found.arrays or fresh == 0, "what was measured after the resume is whole"
        given = comparable(found)
        training = [
            {key: it["context"].pop(key) for key in list(it["context"]) if "train" in key} for it in (given, wanted)
        ]
        assert_identical(*training, str(place(record)), 1e-12)
        assert_identical(given, wanted, str(place(record)), relative)
    assert 0 < fresh < len(expected)


# In the middle of an epoch (first, third and last but one batch), after a validation, after an epoch; early, late.
POINTS = ["batch-7", "batch-9", "batch-11", "validation-12", "epoch-12", "batch-31", "validation-36", "epoch-54"]


@pytest.mark.parametrize("point", POINTS)
def test_a_resumed_run_says_what_the_uninterrupted_run_says(point: str, uninterrupted: Ran, tmp_path: Path) -> None:
    resumed = run(tmp_path, point=uninterrupted.path / f"{point}.ckpt")
    assert_goes_on(resumed.watch, uninterrupted.watch)
    assert [_without_tables(event) for event in resumed.watch.events] == [
        _without_tables(event) for event in uninterrupted.watch.events
    ]
    assert uninterrupted.watch.events and all(record.complete for record in resumed.watch.history)
    assert all(len(record.paired) == 2 for record in resumed.watch.history.series("val") if record.arrays)
    assert_identical(list(resumed.module.state_dict().values()), list(uninterrupted.module.state_dict().values()))


def _without_tables(event: Event) -> str:
    """An event without the identities that need tables of the reference, which only `history.jsonl` gives back."""
    parts = {key: part for key, part in event.attribution.items() if key in PAIRED_PARTS}
    return replace(event, attribution=parts).to_json()


def test_the_run_has_events_before_and_after_the_points(uninterrupted: Ran) -> None:
    epochs = [event.epoch for event in uninterrupted.watch.events]
    assert min(epochs) < 5 <= max(epochs), epochs


def test_a_validation_that_lightning_skips_is_not_made_up(uninterrupted: Ran, tmp_path: Path) -> None:
    """Saved after an epoch's last batch and before its validation: neither that nor the epoch's end comes again."""
    resumed = run(tmp_path, point=uninterrupted.path / "batch-12.ckpt").watch
    assert_goes_on_without_references(resumed, uninterrupted.watch, (("val", 1, 12), ("train", 1, 12)))
    assert all(record.num_rows == 41 and record.complete for record in resumed.history.series("train"))


def assert_goes_on_without_references(resumed: Any, full: Any, missing: tuple[Any, ...]) -> None:
    expected = [record for record in full.history if place(record) not in missing]
    assert [place(record) for record in resumed.history] == [place(record) for record in expected]
    for found, record in zip(resumed.history, expected, strict=True):
        values = record.values if found.arrays else kept(record)["values"]
        assert_identical(found.values, values, str(place(record)), relative=1e-12)


def test_a_checkpoint_from_within_a_validation(tmp_path: Path) -> None:
    """Lightning goes on with the batches that are left, or skips them; a part is never a point of the curve."""
    (tmp_path / "first").mkdir()
    full = run(tmp_path / "first", Keep(tmp_path / "first", within_validation=True), max_epochs=4)
    resumed = run(tmp_path, point=tmp_path / "first" / "within-12.ckpt", max_epochs=4).watch
    for record in resumed.history.series("val", complete=False):
        assert record.complete == (record.num_rows == 64), place(record)
    whole = {place(record): record.values["nll"] for record in full.watch.history.series("val")}
    assert all(whole[place(record)] == record.values["nll"] for record in resumed.history.series("val"))


def test_a_short_evaluation_stays_out_of_trends(tmp_path: Path) -> None:
    """Fewer batches than there are, as Lightning's evaluation loop may hand out after a resume."""

    class Skips(Callback):
        def on_validation_batch_end(self, trainer: Trainer, *rest: Any) -> None:
            if trainer.current_epoch == 2:
                raise StopIteration

    watch = monitor()
    run(tmp_path, Skips(), watch=watch, max_epochs=4, enable_checkpointing=False)
    records = watch.history.series("val", complete=False)
    assert [(record.num_rows, record.complete) for record in records] == [
        (64, True),
        (64, True),
        (24, False),
        (64, True),
    ]
    assert [record.epoch for record in watch.history.series("val")] == [0, 1, 3]
    assert watch.history.series("val")[-1].paired["nll"]["reference_epoch"] != 2


def test_a_run_that_is_resumed_twice_keeps_its_references(uninterrupted: Ran, tmp_path: Path) -> None:
    """The second checkpoint is written before the first batch of a validation could take the references up."""
    run(tmp_path, Keep(tmp_path), point=uninterrupted.path / "batch-31.ckpt", max_epochs=6)
    again = run(tmp_path, point=tmp_path / "batch-32.ckpt")
    assert_goes_on(again.watch, uninterrupted.watch)


def test_references_wait_for_a_batch_and_are_saved_meanwhile() -> None:
    state = StageState("val", 0, Settings(), grid=True)
    references = {"nll": [0, 6, 1.0, 0.5, [0.4, 0.5], torch.zeros(41, 7)]}
    state.begin_evaluation(Sampling(41, 41, 8, known=True, reason=""), references)
    assert state.references() == references
    state.adopt(resume.Layout(num_classes=4), torch.device("cpu"))
    assert_identical(state.references(), references)
    state.begin_evaluation(Sampling(40, 40, 8, known=True, reason=""), {})
    assert state.references() == {}, "another data set has other items"


@pytest.mark.filterwarnings("ignore:.*was called without a model.*", "ignore:.*no last checkpoint available.*")
def test_resume_after_an_exception(uninterrupted: Ran, tmp_path: Path) -> None:
    class Breaks(Callback):
        def on_train_batch_start(self, trainer: Trainer, *rest: Any) -> None:
            if trainer.global_step == 20:
                raise ArithmeticError("of the user")

    with pytest.raises(ArithmeticError, match="of the user"):
        run(tmp_path, Breaks(), OnExceptionCheckpoint(tmp_path, "last"))
    resumed = run(tmp_path, point=tmp_path / "last.ckpt").watch
    # Lightning does not hand out the batch again in which the exception came: that epoch is short and not validated.
    train = resumed.history.series("train", complete=False)
    assert [(record.num_rows, record.complete) for record in train] == [(41, True)] * 3 + [(33, False)] + [
        (41, True)
    ] * 6
    assert [record.epoch for record in resumed.history.series("val")] == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert all(len(record.paired) == 2 for record in resumed.history.series("val")[3:])
    earlier = [kept(record) for record in uninterrupted.watch.history.records[:6]]
    assert [comparable(record) for record in resumed.history.records[:6]] == earlier


# -- what a checkpoint holds -------------------------------------------------------------------------------------------


def ours(path: Path) -> dict[str, Any]:
    (state,) = [
        state
        for key, state in torch.load(path, weights_only=True)["callbacks"].items()
        if key.startswith("LossAccuracyMonitor")
    ]
    return state


def test_a_checkpoint_holds_primitives_and_tensors(uninterrupted: Ran) -> None:
    def check(value: Any) -> None:
        if type(value) in (dict, list):
            for item in value.values() if isinstance(value, dict) else value:
                check(item)
        else:
            assert type(value) in (int, float, str, bytes, bool, type(None), torch.Tensor), type(value)

    state = ours(uninterrupted.path / "batch-31.ckpt")
    check(state)
    assert state["train"]["batches"] == 1 and len(state["references"]["val/0"]) == 2
    assert ours(uninterrupted.path / "epoch-12.ckpt")["train"] is None


def saved_size(state: dict[str, Any], path: Path) -> int:
    torch.save({**state, "references": {}}, path / "state.pt")
    return (path / "state.pt").stat().st_size


# Around the ring's length; events of every evaluation, and open ones of three loaders.
@pytest.mark.parametrize("evaluations", [0, 1999, 2000, 2001, 5000])
def test_the_state_is_small(evaluations: int, uninterrupted: Ran, tmp_path: Path) -> None:
    watch = monitor()
    source = uninterrupted.watch.history.series("val")[-1]
    records = [replace(source, epoch=epoch, global_step=epoch, time=1.7e9 + epoch / 7) for epoch in range(evaluations)]
    events = [
        replace(event, epoch=epoch, id=f"{event.id}/{epoch}", evidence={**event.evidence, "epoch": epoch * 0.1234567})
        for epoch in range(evaluations // 4)
        for event in uninterrupted.watch.events
    ]
    watch._run.history, watch._run._diagnosis.open = (
        History(records),
        {
            f"val/{loader}/{direction}": (uninterrupted.watch.events[0], 0.1)
            for loader in range(3)
            for direction in ("loss-up", "loss-down", "accuracy-down")
        },
    )
    watch._run.events = events
    state = watch.state_dict()
    assert saved_size(state, tmp_path) <= SIZE_LIMIT
    back = monitor()
    back.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [comparable(record) for record in back.history] == [kept(record) for record in records[-resume.RING :]]
    assert [event.to_json() for event in back.events] == [
        event.to_json() for event in events[-len(back.events) or len(events) :]
    ]
    assert len(back.events) >= min(len(events), 10)
    assert back._run._diagnosis.state() == watch._run._diagnosis.state()


def test_records_survive_in_every_stage_and_loader() -> None:
    records = [
        Record(stage, index, 3, 7, 1.7e9 + 0.1, whole, 5, 4, {"nll": 0.1, "accuracy": 0.3}, context={"train_nll": 0.1})
        for stage in resume.STAGES
        for index in (-1, 0, 1, 12)
        for whole in (True, False)
    ]
    assert resume.load_history(resume.save_history(History(records))).records == records
    for record in records:
        assert resume.load_history(resume.save_history(History([record]))).records == [record]
    assert len(resume.load_history(resume.save_history(History()))) == 0


def test_events_are_dropped_from_the_oldest() -> None:
    lines = [json.dumps({"number": number, "noise": str(hash(number * 1.7))}) for number in range(4000)]
    found = resume.unpack(resume.pack(lines, limit=2000))
    assert len(resume.pack(lines, limit=2000)) <= 2000
    assert found == lines[-len(found) :] and len(found) > 20
    assert resume.unpack(resume.pack([])) == []


# Another version, another program's, and a broken one; the run goes on with one message.
STRANGE = {
    "newer": ({"schema": 3}, "checkpoint of another version"),
    "without a version": ({"history": 1}, "checkpoint of another version"),
    "broken": ({"schema": 2, "history": b"no table"}, "failed in load_state_dict"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_a_strange_state_is_ignored_with_one_message(kind: str, uninterrupted: Ran, tmp_path: Path) -> None:
    state, message = STRANGE[kind]
    checkpoint = torch.load(uninterrupted.path / "epoch-12.ckpt", weights_only=True)
    (key,) = [key for key in checkpoint["callbacks"] if key.startswith("LossAccuracyMonitor")]
    checkpoint["callbacks"][key] = state
    torch.save(checkpoint, tmp_path / "strange.ckpt")
    with pytest.warns(UserWarning, match=message) as caught:
        resumed = run(tmp_path, point=tmp_path / "strange.ckpt", max_epochs=4)
    assert sum("lossacc" in str(warning.message) for warning in caught.list) == 1
    assert [record.epoch for record in resumed.watch.history.series("val")] == [2, 3]


def test_a_checkpoint_without_us_loads(uninterrupted: Ran, tmp_path: Path) -> None:
    checkpoint = torch.load(uninterrupted.path / "epoch-12.ckpt", weights_only=True)
    checkpoint["callbacks"] = {}
    torch.save(checkpoint, tmp_path / "older.ckpt")
    resumed = run(tmp_path, point=tmp_path / "older.ckpt", max_epochs=4)
    assert [record.epoch for record in resumed.watch.history.series("val")] == [2, 3]


def test_a_checkpoint_with_us_loads_without_us(uninterrupted: Ran, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("LOSSACC", "0")
    resumed = run(tmp_path, point=uninterrupted.path / "epoch-54.ckpt")
    assert len(resumed.watch.history) == 0
    assert_identical(list(resumed.module.state_dict().values()), list(uninterrupted.module.state_dict().values()))


# -- nothing is added over ranks after an exception or a signal --------------------------------------------------------


def begun() -> StageState:
    state = StageState("train", 0, Settings(), grid=False)
    state.batches = 3
    return state


def test_only_a_normal_save_adds_over_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def fold(states: list[StageState], device: torch.device) -> None:
        calls.append(len(states))
        for state in states:
            state.adopt(resume.Layout(num_classes=4, temperatures=()), device)

    monkeypatch.setattr(resume, "fold", fold)
    device, state = torch.device("cpu"), begun()
    assert resume.save_train(state, device, 1, interrupted=False) is None and calls == []
    saved = resume.save_train(state, device, 2, interrupted=False)
    assert calls == [1] and saved is not None and saved["complete"] and state.layout is None
    state.adopt(resume.Layout(num_classes=4, temperatures=()), device)
    saved = resume.save_train(state, device, 2, interrupted=True)
    assert calls == [1] and saved is not None and not saved["complete"]
    state.clear()
    assert resume.save_train(state, device, 2, interrupted=False) is None and calls == [1]


def test_an_exception_and_a_signal_are_noticed() -> None:
    assert not resume.is_interrupted()
    try:
        raise ValueError
    except ValueError:
        assert resume.is_interrupted()
    handler: dict[str, Any] = {"ask": resume.is_interrupted}
    exec(compile("def handle():\n    return ask()", "/somewhere/connectors/signal_connector.py", "exec"), handler)
    assert handler["handle"]()


def test_a_callback_before_us_that_saves_on_an_exception_adds_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    seen: list[bool] = []
    original = resume.save_train

    def save_train(state: StageState, device: Any, processes: int, interrupted: bool) -> Any:
        seen.append(interrupted)
        return original(state, device, processes, interrupted)

    class Eager(Callback):
        def on_train_batch_start(self, trainer: Trainer, *rest: Any) -> None:
            if trainer.global_step == 2:
                trainer.save_checkpoint(tmp_path / "before.ckpt", weights_only=False)
                raise ArithmeticError("of the user")

        def on_exception(self, trainer: Trainer, *rest: Any) -> None:
            trainer.save_checkpoint(tmp_path / "after.ckpt", weights_only=False)

    monkeypatch.setattr("lightning_lossacc.run.save_train", save_train)
    watch = monitor()
    with pytest.raises(ArithmeticError):
        trainer(tmp_path, Eager(), watch).fit(Plain(), loader(), loader())
    assert seen == [False, True]


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_lossacc.sinks.reporter.image", lambda *args, **options: None)


@pytest.mark.usefixtures("without_pictures")
def test_files_of_a_resumed_run(tmp_path: Path) -> None:
    """In its own folder it goes on, with all that its records held; elsewhere a folder begins with what it brought."""
    first = run(tmp_path, Keep(tmp_path), watch=monitor(dirpath=None, watch=False), max_epochs=4).watch
    run(tmp_path, watch=monitor(dirpath=None, watch=False), max_epochs=1)
    resumed = run(
        tmp_path, point=tmp_path / "epoch-12.ckpt", watch=monitor(dirpath=None, watch=False), max_epochs=3
    ).watch
    names = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert names == ["lossacc", "lossacc-1"]
    written = History.read(tmp_path / "lossacc" / "history.jsonl")
    # Two epochs of the checkpoint and the third once more; what was given up lies beside.
    assert [record.epoch for record in written.series("val")] == [0, 1, 2]
    assert [record.to_json() for record in resumed.history] == [record.to_json() for record in written]
    given_up = History.read(tmp_path / "lossacc" / "history-abandoned.jsonl")
    assert [record.to_json() for record in given_up] == [record.to_json() for record in first.history.records[4:]]
    assert first.history.records[0].arrays
    elsewhere = tmp_path / "elsewhere"
    moved = run(
        elsewhere, point=tmp_path / "epoch-12.ckpt", watch=monitor(dirpath=None, watch=False), max_epochs=3
    ).watch
    found = History.read(elsewhere / "lossacc" / "history.jsonl")
    assert [(record.stage, record.epoch, record.values) for record in found] == [
        (record.stage, record.epoch, record.values) for record in moved.history
    ]
    assert len(found) == 6, "two epochs that the checkpoint held, and the one that followed"


def test_only_lines_after_the_checkpoint_are_given_up(tmp_path: Path) -> None:
    """A checkpoint holds the newest records only; what is older than these stays in the file."""
    path = tmp_path / "history.jsonl"
    records = [Record("val", 0, epoch, epoch, 100.0 + epoch / 3, True, 5, 5, {"nll": 0.1}) for epoch in range(9)]
    History(records).write(path)
    resume.drop_abandoned(History(records[3:6]), path)
    assert History.read(path).records == records[:6]
    assert History.read(tmp_path / "history-abandoned.jsonl").records == records[6:]
    resume.drop_abandoned(History(records[3:6]), path)
    assert len(History.read(tmp_path / "history-abandoned.jsonl")) == 3, "nothing is given up twice"
    resume.drop_abandoned(History(), tmp_path / "missing.jsonl")
    path.write_text("no record\n" * 3)
    resume.drop_abandoned(History(records), path)
    assert path.read_text() == "no record\n" * 3, "what cannot be read is left as it is"


def test_a_ring_that_does_not_fit_loses_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "RING_BYTES", 5000)
    records = [
        Record(
            "val", 0, epoch, epoch, epoch * 1.7, True, 5, 5, {key: math.sin(epoch * len(key)) for key in resume.KEYS}
        )
        for epoch in range(300)
    ]
    packed = resume.save_history(History(records))
    found = resume.load_history(packed).records
    assert len(packed) <= 5000 and 50 < len(found) < 300 and found == records[-len(found) :]


def test_events_come_back_as_they_were(uninterrupted: Ran) -> None:
    state = ours(uninterrupted.path / "epoch-54.ckpt")
    lines = resume.unpack(state["events"])
    assert lines and [Event.from_json(line).to_json() for line in lines] == lines
