"""`lossacc report`: a page about a run that is over, from our own files or from anybody's log, beside the log."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lightning_lossacc import cli, report
from lightning_lossacc.history import History
from tests.made_up_run import full_run
from tests.page import Page, read
from tests.test_report import EVENTS


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawings take longer than all the rest; one test, in a process of its own, has them."""
    monkeypatch.setattr(report, "draw", lambda *arguments, **options: None)


def own_run(folder: Path, epochs: int = 20) -> Path:
    """The files that a monitor leaves."""
    folder.mkdir(parents=True)
    full_run(epochs).write(folder / "history.jsonl")
    (folder / "events.jsonl").write_text("".join(one.to_json() + "\n" for one in EVENTS))
    return folder


def csv(path: Path, epochs: int = 30) -> Path:
    """A log of a loss that falls until epoch 7 and rises, while accuracy rises."""
    lines = ["epoch,train_loss,val_loss,val_acc"]
    for epoch in range(epochs):
        lines.append(
            f"{epoch},{1 / (epoch + 1):.4f},{1.2 / (epoch + 1) + 0.02 * epoch:.4f},{0.9 - 0.5 / (epoch + 1):.4f}"
        )
    path.write_text("\n".join(lines) + "\n")
    return path


def page(path: Path) -> Page:
    found = read(path.read_text(encoding="utf-8"))
    assert not found.problems
    return found


def test_report_of_a_run_stands_beside_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the events as they were reported, and what the picture shows."""
    folder = own_run(tmp_path / "run" / "lossacc")
    assert cli.main(["report", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    found = page(folder / "report.html")
    assert "opened at epoch 20, doubled at epoch 30" in found.text and "Over-confidence: since epoch 8" in found.text
    assert "Judged afterwards" not in found.text


def test_events_are_found_again_where_no_file_holds_them(tmp_path: Path) -> None:
    """A replay of the records gives what a monitor would have reported."""
    folder = own_run(tmp_path / "lossacc", epochs=40)
    (folder / "events.jsonl").unlink()
    assert cli.main(["report", str(folder / "history.jsonl")]) == 0
    found = page(folder / "report.html")
    assert "Judged afterwards, from the log alone: " in found.text
    assert any("over-confidence" in element.text.lower() for element in found.all("h3"))


def test_broken_lines_of_events_are_left_out(tmp_path: Path) -> None:
    folder = own_run(tmp_path / "lossacc")
    with (folder / "events.jsonl").open("a") as file:
        file.write('null\n{"id": 1}\n{"schema": 1, "id": "cut o')
    assert cli.main(["report", str(folder)]) == 0
    assert (
        len([one for one in page(folder / "report.html").all("section") if "event" in one.attributes.get("class", "")])
        == 1
    )


def test_log_of_losses_gets_a_report_that_says_what_it_cannot(tmp_path: Path) -> None:
    assert cli.main(["report", str(csv(tmp_path / "my.csv"))]) == 0
    found = page(tmp_path / "my-report.html")
    assert "Not said here: the cause (over-confidence or overfitting …): that needs logits" in found.text
    assert "Judged afterwards, from the log alone: diverging" in found.text and "column of loss" in found.text
    first = next(element.text for element in found.elements if element.tag == "p" and element.inside[-1] == "div")
    assert first.startswith("Unknown cause: since epoch 7 the loss rose") and "(loss 0.2900 →" in first
    assert "NLL" not in first and "opened at epoch" in found.text
    assert "no method beyond their trends was used" in found.text


def test_hostile_file_names_and_columns_are_text(tmp_path: Path) -> None:
    path = tmp_path / '<script>alert(1)<‖script> & "好".csv'
    csv(path).write_text(path.read_text().replace("train_loss", "train_loss<b>"))
    assert cli.main(["report", str(path), "--output", str(tmp_path / "out.html")]) == 0
    found = page(tmp_path / "out.html")
    assert not found.all("script", "b") and "<script>alert(1)" in found.all("title")[0].text


def test_every_run_of_a_folder_gets_its_own_and_one_output_is_for_one_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own_run(tmp_path / "a" / "lossacc")
    csv(tmp_path / "b.csv")
    assert cli.main(["report", str(tmp_path), "-o", str(tmp_path / "x.html")]) == 2
    assert "Expected one run for one output file, but got" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.html"))
    assert cli.main(["report", str(tmp_path)]) == 0
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.html")) == [
        "a/lossacc/report.html",
        "b-report.html",
    ]
    # What it wrote itself is no log.
    assert cli.main(["report", str(tmp_path)]) == 0 and len(list(tmp_path.rglob("*.html"))) == 2


def test_trainings_in_one_file_are_numbered(tmp_path: Path) -> None:
    path = csv(tmp_path / "my.csv")
    again = path.read_text().splitlines()[1:]
    path.write_text(path.read_text() + "\n".join(again) + "\n")
    assert cli.main(["report", str(path)]) == 0
    assert sorted(one.name for one in tmp_path.glob("*.html")) == ["my-report-2.html", "my-report.html"]


def test_what_cannot_be_read_or_written_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "no.csv").write_text("a,b\n1,2\n")
    assert cli.main(["report", str(tmp_path / "nowhere"), str(tmp_path / "no.csv")]) == 2
    error = capsys.readouterr().err
    assert "no such file or folder" in error and "no column that looks like a loss" in error
    csv(tmp_path / "yes.csv")
    (tmp_path / "file").write_text("")
    assert cli.main(["report", str(tmp_path / "yes.csv"), "-o", str(tmp_path / "file" / "x.html")]) == 2
    assert "x.html: File exists" in capsys.readouterr().err


def test_damaged_history_is_said_and_not_raised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = own_run(tmp_path / "lossacc")
    text = (folder / "history.jsonl").read_text().splitlines()
    (folder / "history.jsonl").write_text("\n".join([text[0][:50], *text[1:]]))
    assert cli.main(["report", str(folder)]) == 2
    assert "line 1" in capsys.readouterr().err
    (folder / "history.jsonl").write_text("\n".join([*text, text[0][:50]]))
    assert cli.main(["report", str(folder)]) == 0, "a last line that a crash cut off is dropped"


def test_report_starts_without_torch(tmp_path: Path) -> None:
    """A page of a log needs no learning framework, and the command line no seconds for one."""
    csv(tmp_path / "my.csv")
    code = (
        "import sys\n"
        "from lightning_lossacc import cli\n"
        f"assert cli.main(['report', {str(tmp_path / 'my.csv')!r}]) == 0\n"
        "assert not {'torch', 'lightning', 'pandas', 'matplotlib.pyplot'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert page(tmp_path / "my-report.html").all("svg")


def test_history_of_one_evaluation_has_a_report(tmp_path: Path) -> None:
    folder = tmp_path / "lossacc"
    folder.mkdir()
    History(full_run(1).records).write(folder / "history.jsonl")
    assert cli.main(["report", str(folder)]) == 0
    assert "No event to warn of in 1 evaluation." in page(folder / "report.html").text
