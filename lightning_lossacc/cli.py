"""The command `lossacc`: `demo` shows the main case on bundled data, `fit`, `validate` and `test` run a configuration.

`fit`, `validate` and `test` are LightningCLI's: modules and data by class path, every argument on the command line or
in YAML. A configuration that comes with the package may be named without its folder: `lossacc fit --config digits`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

RUNS = ("fit", "validate", "test")
DEMOS = ("digits", "breast_cancer")
# By the extra of the package that brings them.
NEEDED = {"demo": ("sklearn", "jsonargparse", "matplotlib", "tensorboard"), "cli": ("jsonargparse",)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand; 0 if it went through, 2 if it was called wrongly or something is not installed."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in RUNS:
        return _missing("cli") or _run(words)
    parser = argparse.ArgumentParser(
        prog="lossacc",
        description="Why do loss and accuracy disagree?",
        epilog="lossacc fit --help lists the arguments of LightningCLI; configurations that come with the package: "
        + ", ".join(sorted(path.stem for path in _bundled().glob("*.yaml"))),
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="demo | fit | validate | test")
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
    options = parser.parse_args(words)
    return _missing("demo") or _demo(Path(options.dir), options.wandb, options.max_epochs)


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
        f"\nEverything is in {directory}/: lossacc.png, events.jsonl and history.jsonl of each run.\n"
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
