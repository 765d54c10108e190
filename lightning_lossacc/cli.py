"""The command `lossacc`: `demo` shows the main case, `scan` judges logs that exist, `report` makes a page of one, `fit`
runs a configuration.

`scan` and `explain` start without waiting for torch or Lightning. `fit`, `validate` and `test` are LightningCLI's:
modules and data by class path, every argument on the command line or in YAML. A configuration that comes with the
package may be named without its folder: `lossacc fit --config digits`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

RUNS = ("fit", "validate", "test")
DEMOS = ("digits", "breast_cancer")
# By the extra of the package that brings them.
NEEDED = {"demo": ("sklearn", "jsonargparse", "matplotlib", "tensorboard"), "cli": ("jsonargparse",)}


# Fewer logs are read before a bar could be drawn.
MIN_PROGRESS = 10
# Logs after which the remaining time can be told: before, none of the processes may have come back.
MIN_TIMED = 32
INTERRUPTED = 130  # 128 + SIGINT, as shells count


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand; 0 if it went through, 2 if it was called wrongly or something is not installed.

    `scan` says 1 if a warning still stands at the end of a run, or a run is diverging, stuck or unstable; 130 is an
    interrupt.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in RUNS:
        return _missing("cli") or _run(words)
    options = _parser().parse_args(words)
    if options.command == "demo":
        return _missing("demo") or _demo(Path(options.dir), options.wandb, options.max_epochs)
    try:
        commands = {"scan": _scan, "explain": _explain, "analyze": _analyze, "report": _report}
        return commands[options.command](options)
    except KeyboardInterrupt:
        print("lossacc: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; Python would complain again when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lossacc",
        description="Why do loss and accuracy disagree?",
        epilog="lossacc fit --help lists the arguments of LightningCLI; configurations that come with the package: "
        + ", ".join(sorted(path.stem for path in _bundled().glob("*.yaml"))),
    )
    names = "demo | fit | validate | test | scan | explain | analyze | report"
    commands = parser.add_subparsers(dest="command", required=True, metavar=names)
    demo = commands.add_parser("demo", help="train on bundled data until loss and accuracy part, and say why")
    demo.add_argument("--dir", default="runs", help="folder of logs, events and pictures (default: runs)")
    demo.add_argument("--wandb", action="store_true", help="write to W&B as well, offline (needs wandb)")
    demo.add_argument("--max-epochs", type=int, default=None, help="fewer epochs than the configurations say")
    for name, help_text in (
        ("fit", "train a configuration"),
        ("validate", "one pass over the validation data"),
        ("test", "one pass over the test data"),
    ):
        commands.add_parser(name, help=f"{help_text} (LightningCLI)", add_help=False)
    scan = commands.add_parser(
        "scan",
        help="judge training logs that exist: CSV, TensorBoard, trainer_state.json, JSON, history.jsonl",
        description="One verdict a run: diverging, stuck, unstable, healthy or undecided. Exit status: 0 no trouble, "
        "1 a warning that still stands at the end of a run, or one that is diverging, stuck or unstable, "
        "2 nothing could be read, 130 interrupted.",
    )
    scan.add_argument("paths", nargs="+", metavar="PATH", help="a log, or a folder that is searched for logs")
    scan.add_argument("--json", action="store_true", help="one JSON object a line and run")
    scan.add_argument("--details", action="store_true", help="a block for each run, also of many")
    scan.add_argument("--num-classes", type=_count(2), metavar="N", help="gives the chance level and ln N")
    scan.add_argument("--val-size", type=_count(1), metavar="N", help="rows of the validation set: its sampling error")
    for option in ("--loss", "--accuracy", "--train-loss", "--train-accuracy", "--epoch"):
        scan.add_argument(option, metavar="COLUMN", help="name of that column, if the guess is wrong")
    explain = commands.add_parser("explain", help="what a cause or an event means, and what to do")
    explain.add_argument("name", nargs="?", help="over-confidence, loss-up-accuracy-flat … (default: list all)")
    analyze = commands.add_parser(
        "analyze", help="all quantities of saved logits and targets; what changed between two"
    )
    analyze.add_argument("files", nargs="+", metavar="FILE.npz", help="one file, or two: before and after")
    analyze.add_argument("--json", action="store_true", help="one JSON object")
    report = commands.add_parser(
        "report",
        help="one HTML file about a run: verdict, pictures, events, numbers",
        description="Rebuilds report.html from the files of a run, or from any log that `lossacc scan` reads; beside "
        "the log unless --output says where. Exit status: 0 written, 2 something could not be read or written.",
    )
    report.add_argument("paths", nargs="+", metavar="RUN", help="the folder of a run, or a log")
    report.add_argument("--output", "-o", metavar="FILE.html", help="the file, for a single run")
    return parser


def _count(least: int) -> Callable[[str], int]:
    """A whole number from `least` on, as argparse wants it."""

    def number(word: str) -> int:
        if not word.isdecimal() or int(word) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} on, but got {word!r}")
        return int(word)

    return number


def config_path(name: str) -> str:
    """A configuration file: the path as given if it exists, else the bundled one of that name.

    Raises:
        FileNotFoundError: if there is neither; the message lists the bundled ones.
    """
    if Path(name).is_file():
        return name
    bundled = _bundled() / f"{Path(name).stem}.yaml"
    if Path(name).parent in (Path(), Path("configs")) and bundled.is_file():
        return str(bundled)
    known = ", ".join(sorted(path.stem for path in _bundled().glob("*.yaml")))
    raise FileNotFoundError(f"Expected `--config` to name a file or one of {known}, but got {name!r}.")


def _bundled() -> Path:
    """`configs/` inside the installed package, or beside it in a clone."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"


def _missing(extra: str) -> int:
    missing = [name for name in NEEDED[extra] if find_spec(name) is None]
    if not missing:
        return 0
    print(
        f'lossacc: {", ".join(missing)} not installed; try: pip install "lightning-lossacc[{extra}]"', file=sys.stderr
    )
    return 2


def _scan(options: argparse.Namespace) -> int:
    from lightning_lossacc.readers import Columns, Sharpening, find_sources
    from lightning_lossacc.scan import Scanned, scan
    from lightning_lossacc.scan_text import text

    sources, missing = find_sources(options.paths)
    for path, reason in missing:
        print(f"lossacc: {path}: {reason}", file=sys.stderr)
    given = Columns(
        loss=options.loss,
        accuracy=options.accuracy,
        train_loss=options.train_loss,
        train_accuracy=options.train_accuracy,
        epoch=options.epoch,
    )
    results, unread = [], []
    with _progress(len(sources)) as advance:
        for found in scan(sources, given, Sharpening(options.num_classes, options.val_size), advance):
            if not isinstance(found, Scanned):
                unread.append(found)
                continue
            results.append(found)
            if options.json:
                print(found.to_json(), flush=True)
    # After the progress bar, which would be torn apart.
    for one in unread:
        if one.certain:
            print(f"lossacc: {one.run}: {one.reason}", file=sys.stderr)
    others = sum(not one.certain for one in unread)
    if others:
        print(f"lossacc: {others} JSON files hold no loss and no accuracy", file=sys.stderr)
    if results and not options.json:
        print(text(results, options.details))
    if not results:
        return 2
    return int(any(result.warns for result in results))


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], object] | None]:
    """A bar on stderr that is advanced by what it gives; None for a few logs, outside a terminal or without rich."""
    if total < MIN_PROGRESS or not sys.stderr.isatty() or find_spec("rich") is None:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Remaining(TimeRemainingColumn):
        """The remaining time, once it can be told."""

        def render(self, task: Task) -> Text:
            return super().render(task) if task.completed >= min(MIN_TIMED, total) else Text("")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Remaining())
    # rich would send what is printed meanwhile, the JSON lines, to its own console: to stderr.
    quiet = {"transient": True, "redirect_stdout": False, "redirect_stderr": False}
    with Progress(*columns, console=Console(stderr=True), **quiet) as bar:
        task = bar.add_task("reading logs", total=total)
        yield partial(bar.advance, task)


def _explain(options: argparse.Namespace) -> int:
    from lightning_lossacc.diagnosis.catalogue import explain

    try:
        print(explain(options.name))
    except ValueError as error:
        print(f"lossacc: {error}", file=sys.stderr)
        return 2
    return 0


def _analyze(options: argparse.Namespace) -> int:
    from lightning_lossacc.analyze import analyze

    if len(options.files) > 2:
        print(f"lossacc: Expected one file or two, but got {len(options.files)}.", file=sys.stderr)
        return 2
    try:
        print(analyze(options.files, options.json))
    except (ValueError, OSError) as error:
        print(f"lossacc: {error}", file=sys.stderr)
        return 2
    return 0


def _report(options: argparse.Namespace) -> int:
    from lightning_lossacc.report.rebuild import rebuild

    try:
        results = rebuild(options.paths, options.output)
    except ValueError as error:
        print(f"lossacc: {error}", file=sys.stderr)
        return 2
    for result in results:
        if result.path is None:
            print(f"lossacc: {result.name}: {result.problem}", file=sys.stderr)
        else:
            print(result.path)
    return int(not results or any(result.path is None for result in results)) * 2


def _run(words: list[str]) -> int:
    try:
        resolved = [_resolved(earlier, word) for earlier, word in zip(["", *words], words, strict=False)]
    except FileNotFoundError as error:
        print(f"lossacc: {error}", file=sys.stderr)
        return 2

    from lightning.pytorch import LightningDataModule, LightningModule
    from lightning.pytorch.cli import LightningCLI

    # The user's own modules are found by class path from where the command is called.
    sys.path.insert(0, str(Path.cwd()))
    # It fears that arguments were given twice; here they are the command line's.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended")
    LightningCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_kwargs={"overwrite": True},
        args=resolved,
    )
    return 0


def _resolved(earlier: str, word: str) -> str:
    """One word of the command line, with the path of a configuration in place of its name."""
    if earlier in ("--config", "-c"):
        return config_path(word)
    option, equals, name = word.partition("=")
    return f"{option}={config_path(name)}" if option == "--config" and equals else word


def _demo(directory: Path, with_wandb: bool, max_epochs: int | None) -> int:
    if with_wandb and find_spec("wandb") is None:
        print('lossacc: wandb is not installed; try: pip install "lightning-lossacc[wandb]"', file=sys.stderr)
        return 2
    import torch

    # Networks this small wait for a second thread longer than it helps: digits took 55 s with two threads and 29 s with
    # one, beside other work on 2 cores.
    torch.set_num_threads(1)
    print(two_case_table())
    # Lightning sets its own level when it is imported, and the table has imported it.
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Lightning asks torch for a type by its former name; no reader of the demo can do anything about it.
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
    for name in DEMOS:
        print(f"\n=== {name} " + "=" * (74 - len(name)))
        words = ["fit", "--config", config_path(name), f"--trainer.default_root_dir={directory}"]
        if max_epochs is not None:
            words.append(f"--trainer.max_epochs={max_epochs}")
        _run(words + _loggers(name, directory, with_wandb))
        if with_wandb:
            import wandb

            # A run that is still open would take the next one's numbers as well.
            wandb.finish()
    print(
        f"\nEverything is in {directory}/: report.html, events.jsonl and history.jsonl of each run.\n"
        f"The curves, the events as text and the picture: tensorboard --logdir {directory}"
    )
    return 0


def _loggers(name: str, directory: Path, with_wandb: bool) -> list[str]:
    """The loggers of a demo run as LightningCLI arguments, in the folder that was asked for."""
    package = "lightning.pytorch.loggers"
    place = {"save_dir": str(directory), "name": name}
    loggers = [{"class_path": f"{package}.TensorBoardLogger", "init_args": place}]
    if with_wandb:
        more = {"project": "lossacc-demo", "offline": True}
        loggers.append({"class_path": f"{package}.WandbLogger", "init_args": place | more})
    return [f"--trainer.logger={json.dumps(loggers)}"]


def two_case_table() -> str:
    """The first article's table: case 1 has the smaller loss and the worse accuracy, by our metric."""
    import torch

    from lightning_lossacc.demo import two_cases
    from lightning_lossacc.metrics import LossAccuracy

    *cases, target = two_cases()
    lines = [
        "Two classifiers on the same rows: the one with the smaller loss has the worse accuracy.",
        f"{'':<8}{'loss (NLL)':>12}{'accuracy':>10}{'confidence':>12}   probability of the true class, row by row",
    ]
    for number, probabilities in enumerate(cases, start=1):
        metric = LossAccuracy(num_classes=probabilities.shape[1], input_kind="probabilities")
        metric.update(probabilities, target)
        values = metric.compute()
        chosen = probabilities[torch.arange(len(target)), target].tolist()
        lines.append(
            f"case {number:<3}{float(values['nll']):>12.3f}{100 * float(values['accuracy']):>8.0f} %"
            f"{float(values['confidence']):>12.2f}   " + " ".join(f"{value:.2f}" for value in chosen)
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
