"""Logs of other programs become runs: each format, each disorder that real logs have, and one clear line for the rest.

Proved here: columns are guessed by their words, and what is another quantity is not taken for one; units are decided a
column, never a value; sparse, unsorted, resumed and appended logs; TensorBoard files against the tensorboard package;
one run once, however often it was written.
"""

from __future__ import annotations

import gzip
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lightning_lossacc.history import History, Record
from lightning_lossacc.readers import (
    Columns,
    Run,
    Sharpening,
    UnreadableError,
    cannot_say,
    find_sources,
    loss_and_accuracy,
    read_runs,
)
from lightning_lossacc.readers.columns import guess, words_of
from tests.made_up import record


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(path: str | Path, columns: Columns | None = None, **known: int) -> list[Run]:
    sources, missing = find_sources([path])
    assert not missing
    return [run for source in sources for run in read_runs(source, columns, Sharpening(**known))]


def one(path: str | Path, text: str = "", columns: Columns | None = None, **known: int) -> Run:
    if text:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")
    (run,) = read(path, columns, **known)
    return run


def numbers(run: Run) -> list[tuple[int, float, float]]:
    return [(record.epoch, *loss_and_accuracy(record)) for record in run.history.series(run.stage)]


# -- columns -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("epoch,accuracy,loss,val_accuracy,val_loss", "val_loss,val_accuracy,loss,accuracy"),
        ("epoch,train_loss,valid_loss,accuracy,time", "valid_loss,accuracy,train_loss,"),
        ("epoch,train_loss,valid_loss,error_rate,time", "valid_loss,error_rate,train_loss,"),
        ("epoch,train_loss,eval_loss,eval_top1,eval_top5,lr", "eval_loss,eval_top1,train_loss,"),
        ("Train Loss,Valid Loss,Train Acc.,Valid Acc.", "Valid Loss,Valid Acc.,Train Loss,Train Acc."),
        ("loss/train,loss/val,Acc@1/train,Acc@1/val,Acc@5/val", "loss/val,Acc@1/val,loss/train,Acc@1/train"),
        ("trainLoss,testLoss,trainAcc,testAcc", "testLoss,testAcc,trainLoss,trainAcc"),
        ("train_loss_step,train_loss_epoch,val_loss_step,val_loss_epoch", "val_loss_epoch,,train_loss_epoch,"),
        ("val_loss,test_loss,test_acc,val_acc", "val_loss,val_acc,,"),
        ("vloss,vacc,tloss,tacc", "vloss,vacc,tloss,tacc"),
        ("validation/epoch_loss,validation/epoch_accuracy", "validation/epoch_loss,validation/epoch_accuracy,,"),
        ("val_sparse_categorical_accuracy,val_loss,val_balanced_acc", "val_loss,val_sparse_categorical_accuracy,,"),
        ("lossacc/val/nll,lossacc/val/refinement_nll", "lossacc/val/nll,,,"),
        ("val_loss/dataloader_idx_1,val_loss/dataloader_idx_0", "val_loss/dataloader_idx_0,,,"),
        ("val_box_loss,val_cls_loss,val_f1,val_mse,val_kl_loss,val_loss_std", "val_cls_loss,,,"),
        ("val_acc_class_3,val_loss_best,val_top5_acc", ",,,"),
        ("val_loss,val_acc_ci,val_acc_count,n_val_acc", "val_loss,,,"),
        ("val_loss,val_top1_err,val_acc", "val_loss,val_acc,,"),
        ("validation_0/logloss,validation_1/logloss", "validation_1/logloss,,validation_0/logloss,"),
        ("validation_0/logloss,validation_0/error", "validation_0/logloss,validation_0/error,,"),
    ],
)
def test_columns_are_guessed_by_their_words(names: str, found: str) -> None:
    columns = guess(names.split(","))
    roles = (columns.loss, columns.accuracy, columns.train_loss, columns.train_accuracy)
    assert roles == tuple(name or None for name in found.split(","))


def test_words_of_glued_and_camel_case_names() -> None:
    assert words_of("valTop-1Acc") == ("val", "top1", "acc")
    assert words_of("testloss") == ("test", "loss")
    assert words_of("lossval") == ("val", "loss")
    assert words_of("Acc@1 (%)") == ("acc1", "percent")


def test_given_columns_go_before_guesses_and_must_exist() -> None:
    text = "round,a,b,val_loss,val_acc\n1,2.0,0.1,9,0.9\n2,1.0,0.2,9,0.9\n"
    run = one("log.csv", text, Columns(loss="a", accuracy="b", epoch="round"))
    assert numbers(run) == [(1, 2.0, 0.1), (2, 1.0, 0.2)]
    assert run.matched == {"loss": "a", "accuracy": "b", "epoch": "round"}
    with pytest.raises(UnreadableError, match="no column 'c'; there are: round, a, b, val_loss, val_acc"):
        read("log.csv", Columns(loss="c"))


# -- CSV ---------------------------------------------------------------------------------------------------------------


def test_lightning_metrics_with_sparse_rows() -> None:
    text = (
        "epoch,lr-SGD,step,train_acc_epoch,train_loss_epoch,train_loss_step,val_acc,val_loss\n"
        ",0.1,9,,,,,\n0,,9,,,1.9,,\n0,,19,,,1.7,,\n0,,19,,,,0.4,1.5\n0,,19,0.35,1.8,,,\n"
        "1,,29,,,1.4,,\n1,,39,,,,0.5,1.2\n1,,39,0.45,1.4,,,\n"
    )
    run = one("logs/version_0/metrics.csv", text)
    assert numbers(run) == [(0, 1.5, 0.4), (1, 1.2, 0.5)]
    first, second = run.history
    assert (first.global_step, second.global_step) == (19, 39)
    assert first.values == {} and first.logged == {"loss": 1.5, "accuracy": 0.4} and first.stage == "val"
    assert first.context == {"train_loss": 1.8, "train_accuracy": 0.35, "learning_rate": 0.1}
    assert second.context["train_loss"] == 1.4


def test_several_evaluations_an_epoch_and_training_between_them() -> None:
    text = "epoch,step,train_loss,val_loss,val_acc\n"
    for step in range(10, 90, 10):
        text += f"{(step - 1) // 40},{step},{100 - step},,\n"
        if step % 20 == 0:
            text += f"{(step - 1) // 40},{step},,{200 - step},0.5\n"
    run = one("metrics.csv", text)
    assert [(epoch, loss) for epoch, loss, _ in numbers(run)] == [(0, 180), (0, 160), (1, 140), (1, 120)]
    # By epoch: without a value on its own row an evaluation gets the mean of its epoch's training rows.
    assert [record.context["train_loss"] for record in run.history] == [75, 75, 35, 35]


def test_keras_logger_in_percent_from_epoch_1_with_tabs_and_a_byte_order_mark() -> None:
    rows = "\n".join(
        f"{epoch}\t{50 + epoch}\t{2 - epoch / 10}\t{40 + epoch}\t{2.1 - epoch / 10}" for epoch in (1, 2, 3)
    )
    run = one("training.log", f"\ufeffepoch\taccuracy\tloss\tval_accuracy\tval_loss\n{rows}\n")
    assert [epoch for epoch, _, _ in numbers(run)] == [1, 2, 3]
    assert [round(accuracy, 6) for _, _, accuracy in numbers(run)] == [0.41, 0.42, 0.43]
    assert run.history.records[0].context["train_accuracy"] == pytest.approx(0.51)
    assert "val_accuracy read as percent" in run.notes


def test_unit_is_decided_for_the_column_not_for_the_value() -> None:
    # 0.9 % and 1.2 % of a column that later says 61.
    run = one("a.csv", "epoch,val_loss,val_acc\n0,7,0.9\n1,6,1.2\n2,2,61\n")
    assert [accuracy for _, _, accuracy in numbers(run)] == pytest.approx([0.009, 0.012, 0.61])
    run = one("d.csv", "epoch,val_loss,val_acc (%)\n0,5,0.9\n1,5,1.1\n")
    assert [accuracy for _, _, accuracy in numbers(run)] == pytest.approx([0.009, 0.011])
    run = one("e.csv", "epoch,val_loss,val_acc (%)\n0,5,0.6\n1,5,0.7\n")
    assert [accuracy for _, _, accuracy in numbers(run)] == [0.6, 0.7]
    # The training column is in percent, the validation column is not.
    run = one("b.csv", "epoch,loss,accuracy,val_loss,val_accuracy\n0,1,55,1,0.5\n1,1,65,1,1.0\n")
    assert [accuracy for _, _, accuracy in numbers(run)] == [0.5, 1.0]
    assert run.history.records[0].context["train_accuracy"] == 0.55
    run = one("c.csv", 'epoch,"val loss","val acc"\n0,1,"0.5 %"\n1,1,0.7%\n')
    assert [accuracy for _, _, accuracy in numbers(run)] == pytest.approx([0.005, 0.007])


def test_error_rates_are_turned_round() -> None:
    run = one("a.csv", "epoch;val_loss;val_err\n0;1,5;40\n1;1,25;30\n")
    assert [(loss, round(accuracy, 6)) for _, loss, accuracy in numbers(run)] == [(1.5, 0.6), (1.25, 0.7)]
    assert run.matched["accuracy"] == "1 - val_err"


@pytest.mark.parametrize(
    "name", ["val_top1_err", "Val Top1 Error", "val_error_top1", "val_acc_error", "val_top1_acc_err", "eval_err1"]
)
def test_an_error_word_wins_over_an_accuracy_word(name: str) -> None:
    run = one("a.csv", f"epoch,val_loss,{name}\n0,1,0.9\n1,0.5,0.25\n")
    assert run.matched["accuracy"] == f"1 - {name}" and numbers(run)[1] == (1, 0.5, 0.75)


def test_a_stray_accuracy_makes_no_percentages() -> None:
    rows = [f"{epoch},1,0.{epoch + 10}" for epoch in range(19)]
    for stray in ("57", "812", "-3"):
        run = one("a.csv", "\n".join(["epoch,val_loss,val_acc", *rows, f"19,1,{stray}"]))
        found = [accuracy for _, _, accuracy in numbers(run)]
        assert found[:19] == [float(f"0.{epoch + 10}") for epoch in range(19)] and math.isnan(found[19])
        assert any("1 of 20 val_acc" in note for note in run.notes)
    # Few large values that the others lead up to are no strays.
    run = one("b.csv", "epoch,val_loss,val_acc\n" + "\n".join(f"{i},1,{0.1 * i:.1f}" for i in range(18)))
    assert numbers(run)[17][2] == pytest.approx(0.017)


def test_rows_that_are_too_long_are_left_out_and_columns_of_one_name_are_named() -> None:
    run = one("a.csv", "epoch,val_loss,val_acc\n0,1,0.5\n1,9,9,9,9\n2,0.5,0.6,\n")
    assert numbers(run) == [(0, 1, 0.5), (2, 0.5, 0.6)] and any("more cells" in note for note in run.notes)
    with pytest.raises(UnreadableError, match="2 of 2 rows have more cells"):
        one("b.csv", "epoch,val_loss\na,0,1\nb,1,0.5\n")
    run = one("c.csv", "epoch,val_loss,val_loss\n0,1,2\n")
    assert numbers(run)[0][1] == 2 and "column 'val_loss' is there 2 times, the last one is read" in run.notes


TWO_PLACES = ("val_loss", "val_acc", "test_loss", "test_acc")
TWO_SETS = tuple(f"eval_{part}_{kind}" for part in ("matched", "mismatched") for kind in ("loss", "accuracy"))
TWO_LOADERS = tuple(f"{name}/dataloader_idx_{place}" for place in (0, 1) for name in TWO_PLACES[:2])


@pytest.mark.parametrize("names", [TWO_PLACES, TWO_LOADERS, TWO_SETS], ids=["stages", "loaders", "sets"])
def test_other_stages_and_loaders_are_named_and_a_chosen_loss_brings_its_accuracy(names: tuple[str, ...]) -> None:
    text = f"epoch,{','.join(names)}\n" + "".join(f"{epoch},1,0.5,2,0.25\n" for epoch in range(3))
    run = one("a.csv", text)
    assert run.matched["not_judged"] == ", ".join(names[2:]) and numbers(run)[0] == (0, 1, 0.5)
    assert any(names[3] in note and "--accuracy" in note for note in run.notes)
    other = one("a.csv", columns=Columns(loss=names[2]))
    assert other.matched["accuracy"] == names[3] and numbers(other)[0] == (0, 2, 0.25)
    assert other.matched["not_judged"] == ", ".join(names[:2])


def test_a_test_after_the_training_is_no_curve_that_was_left_out() -> None:
    run = one("a.csv", "epoch,val_loss,test_loss\n0,1,\n1,1,\n2,1,\n2,,0.5\n")
    assert "not_judged" not in run.matched


@pytest.mark.parametrize("stem", ["sky-", "lr 0.1 - seed "])
def test_several_runs_of_one_export_are_taken_apart(stem: str) -> None:
    names = [f"{stem}{run} - {key}{end}" for run in (1, 2) for key in ("val_loss", "val_acc") for end in ("", "__MIN")]
    rows = "0,1,1,0.5,0.5,2,2,0.25,0.25\n1,0.9,0.9,0.6,0.6,,,,\n"
    Path("a.csv").write_text("Step," + ",".join(f'"{name}"' for name in names) + "\n" + rows)
    first, second = read("a.csv")
    assert (first.name, second.name) == (f"a.csv#{stem}1", f"a.csv#{stem}2") and first.matched["loss"] == "val_loss"
    assert numbers(first) == [(0, 1, 0.5), (1, 0.9, 0.6)] and numbers(second) == [(0, 2, 0.25)]


def test_an_accuracy_that_cannot_be_one_is_refused_with_its_values() -> None:
    with pytest.raises(UnreadableError, match=r"'val_acc' was taken for an accuracy, but holds values from 0.5 to 812"):
        one("a.csv", "epoch,val_loss,val_acc\n0,1,0.5\n1,1,812\n")


def test_unsorted_rows_are_sorted() -> None:
    run = one("a.csv", "epoch,val_loss,val_acc\n2,3,0.3\n0,5,0.1\n1,4,0.2\n")
    assert numbers(run) == [(0, 5, 0.1), (1, 4, 0.2), (2, 3, 0.3)]
    assert any("sorted" in note for note in run.notes)


def test_a_resumed_run_keeps_what_was_written_later() -> None:
    # Stopped after epoch 5, resumed from the checkpoint of epoch 2: epochs 3 … 5 of the first attempt are void.
    first = [f"{epoch},{10 + epoch},0.1" for epoch in range(6)]
    second = [f"{epoch},{20 + epoch},0.2" for epoch in (3, 4)]
    run = one("a.csv", "epoch,val_loss,val_acc\n" + "\n".join(first + second))
    assert [(epoch, loss) for epoch, loss, _ in numbers(run)] == [(0, 10), (1, 11), (2, 12), (3, 23), (4, 24)]
    assert any("resumed at 3" in note for note in run.notes)


def test_a_log_that_was_appended_to_holds_two_trainings_or_a_longer_one() -> None:
    header = "epoch,loss,val_loss,val_acc\n"
    fall = [f"{epoch},{3 - epoch},{3 - epoch / 2},0.{epoch + 1}" for epoch in range(5)]
    # The same start again, with the header once more: another training.
    first, second = read(_write("two.csv", header + "\n".join(fall) + "\n" + header + "\n".join(fall[:3])))
    assert len(numbers(first)) == 5 and len(numbers(second)) == 3 and second.name == "two.csv#2"
    # fit() called twice: the count starts again, the training goes on.
    more = [f"{epoch},{-2 - epoch},{0.9 - epoch / 2},0.{epoch + 5}" for epoch in range(3)]
    run = one("on.csv", header + "\n".join(fall + more))
    assert [epoch for epoch, _, _ in numbers(run)] == list(range(8))
    assert [loss for _, loss, _ in numbers(run)][4:6] == [1.0, 0.9]


def _write(path: str, text: str) -> str:
    Path(path).write_text(text)
    return path


def test_missing_cells_and_values_that_are_not_finite() -> None:
    text = "epoch,loss,val_loss,val_acc\n0,1,,\n1,0.9,1.1,0.5\n2,0.8,,0.6\n3,nan,nan,0.1\n4,nan,inf,\n"
    run = one("a.csv", text)
    found = numbers(run)
    assert [epoch for epoch, _, _ in found] == [1, 2, 3, 4]
    assert math.isnan(found[1][1]) and "loss" not in run.history.records[1].logged
    assert math.isnan(run.history.records[2].logged["loss"]) and math.isinf(found[3][1])
    # pandas writes NaN where nothing was logged: no evaluation at all.
    run = one("b.csv", "epoch,loss,val_loss,val_acc\n0,1,nan,nan\n0,nan,1.5,0.3\n1,0.9,nan,nan\n1,nan,1.4,0.4\n")
    assert numbers(run) == [(0, 1.5, 0.3), (1, 1.4, 0.4)]


def test_only_training_columns_and_no_epoch() -> None:
    run = one("a.csv", ",loss,accuracy\n0,1.0,0.5\n1,0.8,0.6\n")
    assert run.stage == "train" and numbers(run) == [(0, 1.0, 0.5), (1, 0.8, 0.6)]
    assert any("no validation columns" in what for what in cannot_say(run))
    assert any("counted from 0" in note for note in run.notes)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "the file is empty"),
        ("epoch,lr\n0,1\n", "no column that looks like a loss or an accuracy among: epoch, lr"),
        ("1,2,3\n4,5,6\n", "the first line holds numbers, not column names"),
        ("epoch,val_loss\n0,\n", "no column that looks like a loss"),
        ("just a text\n", "the first line has no columns"),
    ],
)
def test_what_is_no_log_says_why_in_one_line(text: str, why: str) -> None:
    Path("a.csv").write_text(text)
    with pytest.raises(UnreadableError) as caught:
        read("a.csv")
    assert why in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("a.csv", bytes(range(256)), "no text"),
        ("a.csv.gz", b"\x1f\x8b no more", "the packed file is damaged"),
        ("a.json", b"[" * 100_000, "nested too deeply"),
        ("a.jsonl", b"[" * 100_000 + b"\n1\n", "nested too deeply"),
        ("a.csv", b'epoch,val_loss\n0,"' + b"x" * 200_000 + b'"\n', "field larger than"),
    ],
)
def test_a_binary_or_unusual_file_says_so_in_one_line(name: str, data: bytes, why: str) -> None:
    Path(name).write_bytes(data)
    with pytest.raises(UnreadableError, match=why) as caught:
        read(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "encode"),
    [
        ("a.csv.gz", lambda text: gzip.compress(text.encode())),
        ("a.csv", lambda text: text.encode("utf-16")),
        ("a.csv", lambda text: text.replace("note", "Größe").encode("latin-1")),
    ],
)
def test_packed_files_and_other_encodings_are_read(name: str, encode: Callable[[str], bytes]) -> None:
    text = "epoch,val_loss,val_acc,note\n" + "".join(f"{epoch},1,0.5,\n" for epoch in range(20))
    Path(name).write_bytes(encode(text))
    assert len(numbers(one("."))) == 20
    data = json.dumps([{"val_loss": 1.0, "val_acc": 0.5}] * 4).encode()
    Path("b.json.gz").write_bytes(gzip.compress(data))
    assert len(numbers(one("b.json.gz"))) == 4


def test_packed_lines_and_our_own_history_are_read() -> None:
    lines = "".join(json.dumps({"epoch": epoch, "val_loss": 1.0, "val_acc": 0.5}) + "\n" for epoch in range(4))
    Path("train.log.gz").write_bytes(gzip.compress(lines.encode()))
    assert len(numbers(one("."))) == 4
    history = "".join(record(epoch, nll=1.0, accuracy=0.5).to_json() + "\n" for epoch in range(3))
    Path("history.jsonl.gz").write_bytes(gzip.compress(history.encode()))
    assert numbers(one("history.jsonl.gz")) == [(epoch, 1.0, 0.5) for epoch in range(3)]


def test_a_chosen_loss_of_averaged_weights_brings_their_accuracy() -> None:
    names = ("val_loss", "val_acc", "val_ema_loss", "val_ema_acc")
    one("a.csv", f"epoch,{','.join(names)}\n" + "".join(f"{epoch},1,0.5,2,0.25\n" for epoch in range(3)))
    assert one("a.csv", columns=Columns(loss="val_ema_loss")).matched["accuracy"] == "val_ema_acc"


def test_a_log_of_the_second_loader_alone_is_judged() -> None:
    names = [f"val_{kind}/dataloader_idx_1" for kind in ("loss", "acc")]
    run = one("a.csv", f"epoch,{','.join(names)}\n" + "".join(f"{epoch},1,0.5\n" for epoch in range(3)))
    assert (run.stage, run.matched["loss"]) == ("val", names[0])


# -- JSON --------------------------------------------------------------------------------------------------------------


def state(epochs: int, shift: float = 0.0) -> str:
    log = []
    for epoch in range(1, epochs + 1):
        log.append({"epoch": epoch - 0.5, "step": 100 * epoch - 50, "loss": 2.0 / epoch, "learning_rate": 1e-5})
        log.append({"epoch": float(epoch), "step": 100 * epoch, "eval_loss": 1 / epoch + shift, "eval_accuracy": 0.5})
    return json.dumps({"log_history": log, "best_metric": None})


def test_trainer_state_and_its_checkpoints_are_one_run() -> None:
    for name, epochs in (("out/checkpoint-100", 1), ("out/checkpoint-1000", 4), ("out/checkpoint-300", 3)):
        Path(name).mkdir(parents=True)
        Path(name, "trainer_state.json").write_text(state(epochs))
    run = one("out")
    assert run.name.endswith("checkpoint-1000/trainer_state.json")
    assert [(epoch, loss) for epoch, loss, _ in numbers(run)] == [(1, 1), (2, 0.5), (3, 1 / 3), (4, 0.25)]
    assert run.history.records[1].context == {"train_loss": 1.0, "learning_rate": 1e-5}
    Path("out/trainer_state.json").write_text(state(5))
    assert len(one("out").history) == 5


@pytest.mark.parametrize(
    "data",
    [
        {"loss": [3, 2], "val_loss": [4, 3], "val_accuracy": [0.1, 0.2]},
        {"params": {"epochs": 2}, "history": {"val_loss": [4, 3], "val_accuracy": [0.1, 0.2]}},
        [{"epoch": 0, "val": {"loss": 4, "acc": 0.1}}, {"epoch": 1, "val": {"loss": 3, "acc": 0.2}}],
        {"val_loss": {"0": 4, "1": 3}, "val_acc": {"0": 0.1, "1": 0.2}},
    ],
)
def test_json_in_its_shapes(data: object) -> None:
    run = one("history.json", json.dumps(data))
    assert numbers(run) == [(0, 4, 0.1), (1, 3, 0.2)]


def test_json_lines_with_a_column_for_the_data_and_a_cut_off_end() -> None:
    lines = []
    for epoch in (1, 2):
        lines.append(json.dumps({"mode": "train", "epoch": epoch, "loss": 3 - epoch, "accuracy": 0.9}))
        lines.append(json.dumps({"mode": "val", "epoch": epoch, "loss": 4 - epoch, "accuracy": epoch / 10}))
    run = one("log.jsonl", "\n".join(lines) + '\n{"mode": "val", "ep')
    assert numbers(run) == [(1, 3, 0.1), (2, 2, 0.2)]
    assert [record.context["train_loss"] for record in run.history] == [2, 1]
    with pytest.raises(UnreadableError, match="line 2 is no JSON"):
        one("bad.jsonl", '{"val_loss": 1}\n{oops\n{"val_loss": 2}\n')


def full(epoch: int, stage: str = "val") -> Record:
    return Record(stage, 0, epoch, epoch, 0.0, True, 100, 100, {"nll": 1.0 + epoch, "accuracy": 0.5})


def test_our_own_history_keeps_its_records_and_goes_before_other_logs_of_the_run() -> None:
    run_folder = Path("runs/version_0")
    (run_folder / "lossacc").mkdir(parents=True)
    history = History([full(0), full(0, "train"), full(1)])
    history.write(run_folder / "lossacc" / "history.jsonl")
    (run_folder / "metrics.csv").write_text("epoch,val_loss,val_acc\n0,1,0.5\n")
    _events(run_folder, {"val_loss": [(0, 1.0)]})
    _events(run_folder / "lossacc", {"layout": [(0, 1.0)]})
    run = one("runs", num_classes=7)
    assert [record.values for record in run.history] == [record.values for record in history]
    assert run.history.records[0].context["num_classes"] == 7.0
    assert numbers(run) == [(0, 1.0, 0.5), (1, 2.0, 0.5)]


# -- TensorBoard -------------------------------------------------------------------------------------------------------


def _events(folder: Path | str, tags: dict[str, list[tuple[int, float]]], as_tensor: bool = False) -> None:
    """Event files as the tensorboard package writes them; scalars as Keras does where `as_tensor`."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter
    from tensorboard.util import tensor_util

    writer = EventFileWriter(str(folder))
    time = 1e9 + len(list(Path(folder).iterdir()))
    for step, tag, value in sorted((step, tag, value) for tag, points in tags.items() for step, value in points):
        if as_tensor:
            entry = Summary.Value(tag=tag, tensor=tensor_util.make_tensor_proto(value, dtype="float32"))
        else:
            entry = Summary.Value(tag=tag, simple_value=value)
        writer.add_event(Event(wall_time=time + step, step=step, summary=Summary(value=[entry])))
    writer.close()


def test_tensorboard_gives_every_point_as_its_own_reader_does() -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # Its own reader keeps a sample of 10 000 unless it is told otherwise.
    points = [(step, 1 / (step + 1)) for step in range(10_100)]
    _events("run", {"val_loss": points})
    run = one("run")
    accumulator = EventAccumulator("run", size_guidance={"scalars": 0}).Reload()
    expected = [event.value for event in accumulator.Scalars("val_loss")]
    assert len(expected) == 10_100 and [loss for _, loss, _ in numbers(run)] == expected
    assert [record.global_step for record in run.history] == [step for step, _ in points]


def test_keras_sub_runs_with_tensors_belong_together() -> None:
    for name, shift in (("train", 0.0), ("validation", 1.0)):
        tags = {"epoch_loss": [(0, 2 + shift), (1, 1 + shift)], "epoch_accuracy": [(0, 0.25), (1, 0.5)]}
        _events(Path("logs/fit", name), tags, as_tensor=True)
    run = one("logs")
    assert run.name == "logs/fit" and numbers(run) == [(0, 3.0, 0.25), (1, 2.0, 0.5)]
    assert run.matched["loss"] == "validation/epoch_loss"
    assert run.history.records[1].context == {"train_loss": 1.0, "train_accuracy": 0.5}


def test_folders_of_add_scalars_belong_to_their_run() -> None:
    _events("run", {"epoch": [(0, 0.0)]})
    _events("run/Loss_train", {"Loss": [(0, 2.0), (1, 1.0)]})
    _events("run/Loss_val", {"Loss": [(0, 3.0), (1, 2.5)]})
    _events("run/Acc_val", {"Acc": [(0, 0.5), (1, 0.75)]})
    assert numbers(one("run")) == [(0, 3.0, 0.5), (1, 2.5, 0.75)]


def test_the_folder_of_add_hparams_is_no_run_of_its_own() -> None:
    _events("run", {"val_loss": [(0, 3.0), (1, 2.5)]})
    _events("run/1795358597.05", {"val_loss": [(0, 2.5)]})
    assert numbers(one("run"))[0][1] == 3.0


def test_a_resumed_tensorboard_run_counts_what_was_written_later() -> None:
    _events("run", {"val_loss": [(step, 10 + step) for step in (10, 20, 30, 40)], "val_acc": [(10, 0.5)]})
    _events("run", {"val_loss": [(step, 20 + step) for step in (30, 40, 50)]})
    run = one("run")
    assert [loss for _, loss, _ in numbers(run)] == [20, 30, 50, 60, 70]


def test_a_damaged_or_empty_event_file() -> None:
    _events("run", {"val_loss": [(step, 1.0 + step) for step in range(5)], "val_acc": [(0, 0.5)]})
    (path,) = Path("run").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])  # cut off by a crash
    assert [loss for _, loss, _ in numbers(one("run"))] == [1, 2, 3, 4]
    path.write_bytes(whole[:60] + b"\xff" * 40 + whole[100:])
    with pytest.raises(UnreadableError, match="damaged"):
        read("run")
    # A byte of one record: the others count. A byte of its length: nothing from there on can be found.
    name = whole.index(b"val_loss", 220)
    for place, left, words in ((name - 1, [1, 2, 4, 5], "1 of 7 records"), (name - 29, [1, 2], "from there on")):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x40]) + whole[place + 1 :])
        run = one("run")
        assert [loss for _, loss, _ in numbers(run) if loss == loss] == left
        assert any(words in note for note in run.notes)
    path.write_bytes(b"")
    with pytest.raises(UnreadableError, match="no event in the file"):
        read("run")


# -- many runs ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """Three runs of several formats, and files that are no logs."""
    root = tmp_path / "tree"
    for version in (10, 2):
        folder = root / "lightning_logs" / f"version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(f"epoch,step,val_loss,val_acc\n0,1,{version},0.5\n")
        (folder / "hparams.yaml").write_text("lr: 1\n")
        _events(folder, {"val_loss": [(1, float(version))], "val_acc": [(1, 0.5)]})
    (root / "keras.csv").write_text("epoch,val_loss,val_accuracy\n0,1,0.5\n")
    (root / "package.json").write_text("{}")
    (root / "notes.txt").write_text("the epoch of loss\n")
    (root / "link").symlink_to(root / "lightning_logs")
    yield root


def test_a_folder_is_searched_and_each_run_comes_once(tree: Path) -> None:
    sources, missing = find_sources([tree, tree / "keras.csv", tree / "lightning_logs" / "version_2"])
    assert not missing
    assert [source.path.relative_to(tree).as_posix() for source in sources] == [
        "keras.csv",
        "lightning_logs/version_2/metrics.csv",
        "lightning_logs/version_10/metrics.csv",
    ]


def test_paths_without_a_log_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    sources, missing = find_sources(["empty", "nowhere"])
    assert not sources
    assert missing == [("empty", "no training log in this folder"), ("nowhere", "no such file or folder")]
    os.mkfifo("pipe")
    assert find_sources(["-", "pipe"]) == (
        [],
        [(name, "no stream can be read; write it to a file") for name in ("-", "pipe")],
    )


def test_what_cannot_be_said_follows_from_what_was_logged() -> None:
    rows = "\n".join(f"{epoch},1,1,0.5" for epoch in range(9))
    whole = cannot_say(one("a.csv", f"epoch,loss,val_loss,val_acc\n{rows}\n", num_classes=3, val_size=50))
    assert len(whole) == 1 and whole[0].startswith("the cause")
    less = " · ".join(cannot_say(one("b.csv", "epoch,val_loss\n0,1\n1,1\n")))
    for words in ("no accuracy was logged", "2 evaluations", "--num-classes", "--val-size", "no training loss"):
        assert words in less
    assert one("a.csv", num_classes=3, val_size=50).history.records[0].num_items == 50


def test_json_lines_in_a_text_file_are_read(tmp_path: Path) -> None:
    """`log.txt` of JSON lines, as many vision repositories write it."""
    rows = [
        {"train_loss": 1 / (1 + epoch), "test_loss": 1.1 / (1 + epoch), "test_acc1": 50 + epoch, "epoch": epoch}
        for epoch in range(6)
    ]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "log.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "notes.txt").write_text('{"a": 1}\n')
    sources, missing = find_sources([tmp_path])
    assert [source.format for source in sources] == ["json-lines"] and not missing
    (run,) = read_runs(sources[0])
    assert len(run.history) == 6 and run.matched["loss"] == "test_loss" and run.matched["accuracy"] == "test_acc1"
