"""Verdicts of `lossacc scan` on real learning curves against labels by eye, beside common rules on the same runs.

Run from the repository root: `PYTHONPATH=. python benchmarks/bench_curves.py --curves DIR [--half development]`.
The curves were published without a licence, so they are not part of the project: without the folder the benchmark says
"skipped". `curve_labels.json` holds the labels, made before any detector ran, and two halves by hash of the file name:
thresholds were set on `development`. Prints tables, lists every disagreement and writes one JSON line a number to
`benchmarks/results/curves.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import StatisticsError, correlation

from scipy.stats import beta

from lightning_lossacc import __version__
from lightning_lossacc.history import Record
from lightning_lossacc.readers import find_sources, loss_and_accuracy, read_runs
from lightning_lossacc.scan import VERDICTS, Scanned, scan_source

LABELS = Path(__file__).parent / "curve_labels.json"
RESULTS = Path(__file__).parent / "results" / "curves.jsonl"
HALVES = ("development", "held-out")
BAD = ("diverging", "stuck", "unstable")
# An onset is right within so many epochs or this share of the run.
ONSET_EPOCHS, ONSET_SHARE = 5, 0.1

Series = list[float]
Rule = Callable[[Series, Series, Series], bool]


def patience(losses: Series, train: Series, accuracies: Series, checks: int = 10) -> bool:
    """The lowest loss was not improved for so many evaluations, at any time."""
    best, waited = math.inf, 0
    for value in losses:
        best, waited = (value, 0) if value < best else (best, waited + 1)
        if waited >= checks:
            return True
    return False


def generalisation_loss(losses: Series, train: Series, accuracies: Series, percent: float = 5.0) -> bool:
    """GL of Prechelt 1998: the loss stands above its minimum by so many percent, at any time."""
    best = math.inf
    for value in losses:
        best = min(best, value)
        if 100 * (value / best - 1) > percent:
            return True
    return False


def successive_strips(losses: Series, train: Series, accuracies: Series, strips: int = 4, length: int = 5) -> bool:
    """UP of Prechelt 1998: the loss at the end of strips of five rose so many times in a row."""
    ends = losses[length - 1 :: length]
    risen = 0
    for before, after in pairwise(ends):
        risen = risen + 1 if after > before else 0
        if risen >= strips:
            return True
    return False


def sagemaker_overfit(losses: Series, train: Series, accuracies: Series) -> bool:
    """Amazon SageMaker Debugger, Overfit: (val - train) / train above 0.1 more than once in a row."""
    above = 0
    for value, during in zip(losses, train, strict=True):
        above = above + 1 if during > 0 and (value - during) / during > 0.1 else 0
        if above > 1:
            return True
    return False


def sagemaker_overtraining(losses: Series, train: Series, accuracies: Series) -> bool:
    """Amazon SageMaker Debugger, Overtraining: 10 validation checks without an improvement of 0.01."""
    best, waited = math.inf, 0
    for value in losses:
        best, waited = (value, 0) if value < best - 0.01 else (best, waited + 1)
        if waited >= 10:
            return True
    return False


def umlaut(losses: Series, train: Series, accuracies: Series) -> bool:
    """UMLAUT (Schoop et al. 2021): the validation loss above that of one epoch ago and the training loss not."""
    return any(
        after > before and later <= earlier
        for before, after, earlier, later in zip(losses, losses[1:], train, train[1:], strict=False)
    )


def low_correlation(losses: Series, train: Series, accuracies: Series) -> bool:
    """TheDeepChecker (Ben Braiek and Khomh 2022): |Pearson correlation of loss and accuracy| below 0.5."""
    try:
        return abs(correlation(losses, accuracies)) < 0.5
    except StatisticsError:
        return True


RULES: dict[str, Rule] = {
    "patience 10": patience,
    "GL 5 %": generalisation_loss,
    "UP4": successive_strips,
    "SageMaker overfit": sagemaker_overfit,
    "SageMaker overtraining": sagemaker_overtraining,
    "UMLAUT": umlaut,
    "|correlation| < 0.5": low_correlation,
}


def kappa(pairs: Sequence[tuple[str, str]]) -> float:
    """Cohen's kappa of two readers: agreement beyond that of their marginals; NaN if that is perfect."""
    count = len(pairs)
    ours, theirs = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    expected = sum(ours[word] * theirs[word] for word in ours) / count**2
    observed = sum(a == b for a, b in pairs) / count
    return (observed - expected) / (1 - expected) if expected < 1 else math.nan


def interval(hits: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a share (Clopper and Pearson 1934)."""
    if count == 0:
        return 0.0, 1.0
    tail = (1 - level) / 2
    low = float(beta.ppf(tail, hits, count - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, count - hits)) if hits < count else 1.0
    return low, high


def detection(found: Sequence[bool], truth: Sequence[bool]) -> dict[str, object]:
    """Precision, recall and kappa of a yes or no, with intervals."""
    hits = sum(a and b for a, b in zip(found, truth, strict=True))
    return {
        "precision": hits / max(sum(found), 1),
        "precision_interval": interval(hits, sum(found)),
        "recall": hits / max(sum(truth), 1),
        "recall_interval": interval(hits, sum(truth)),
        "kappa": kappa([(str(a), str(b)) for a, b in zip(found, truth, strict=True)]),
        "alarms": sum(found),
        "of": len(found),
    }


def family(event: str) -> str:
    """Events that a reader of curves can tell apart."""
    return "loss-up" if event.startswith("loss-up") else event


def compare_events(scanned: dict[str, Scanned], labels: dict[str, dict]) -> list[dict[str, object]]:
    """Precision and recall of each kind of event, the share of right onsets and accuracy verdicts."""
    rows = []
    for kind in ("loss-up", "accuracy-stuck", "oscillation", "spike"):
        found = {name: [e for e in run.events if family(e.event) == kind] for name, run in scanned.items()}
        truth = {name: [e for e in labels[name]["events"] if e["event"] == kind] for name in scanned}
        # A rise that went away again is no lasting one.
        if kind == "loss-up":
            found = {name: [e for e in events if e.status != "closed"] for name, events in found.items()}
        names = list(scanned)
        row = {"kind": kind, **detection([bool(found[n]) for n in names], [bool(truth[n]) for n in names])}
        if kind == "loss-up":
            both = [name for name in names if found[name] and truth[name]]
            near = [
                abs(found[n][0].onset_epoch - truth[n][0]["onset"])
                <= max(ONSET_EPOCHS, ONSET_SHARE * scanned[n].evaluations)
                for n in both
            ]
            words = [
                found[n][0].event.removeprefix("loss-up-accuracy-").replace("not-down", "flat")
                == truth[n][0]["accuracy"]
                for n in both
            ]
            row |= {"onset_right": sum(near), "accuracy_word_right": sum(words), "both": len(both)}
        rows.append(row)
    return rows


def series_of(records: Sequence[Record]) -> tuple[Series, Series, Series]:
    """Validation loss, training loss and accuracy where all three are finite."""
    rows = [(*loss_and_accuracy(record), record.context.get("train_loss", math.nan)) for record in records]
    kept = [(loss, during, accuracy) for loss, accuracy, during in rows if math.isfinite(loss + accuracy + during)]
    return tuple(map(list, zip(*kept, strict=True))) if kept else ([], [], [])


def report(half: str, scanned: dict[str, Scanned], series: dict[str, tuple], labels: dict[str, dict]) -> list[dict]:
    """Tables of one half, printed; their numbers."""
    names = list(scanned)
    words = [(scanned[name].verdict, labels[name]["verdict"]) for name in names]
    accepted = [scanned[name].verdict in (labels[name]["verdict"], *labels[name]["also"]) for name in names]
    sure = [name for name in names if labels[name]["sure"]]
    exact = sum(a == b for a, b in words)
    sure_words = [(scanned[name].verdict, labels[name]["verdict"]) for name in sure]
    right = sum(a == b for a, b in sure_words)
    print(f"\n== {half}: {len(names)} runs")
    print(
        f"same verdict {exact}/{len(names)} (kappa {kappa(words):.2f}), verdict that the reader would accept as well "
    )
    print(
        f"{sum(accepted)}/{len(names)}; where the reader was sure {right}/{len(sure)} (kappa {kappa(sure_words):.2f})"
    )
    rows: list[dict] = [
        {
            "half": half,
            "what": "verdict",
            "same": exact,
            "accepted": sum(accepted),
            "of": len(names),
            "kappa": kappa(words),
            "sure_same": right,
            "sure_of": len(sure),
            "sure_kappa": kappa(sure_words),
            "confusion": {f"{b} -> {a}": count for (a, b), count in sorted(Counter(words).items())},
        }
    ]
    print(f"\n{'verdict':<12}{'precision':>11}{'recall':>9}{'kappa':>8}{'alarms':>8}")
    for word in VERDICTS:
        numbers = detection([a == word for a, _ in words], [b == word for _, b in words])
        rows.append({"half": half, "what": "one verdict", "verdict": word, **numbers})
        print(_line(word, numbers))
    truth = [labels[name]["verdict"] == "diverging" for name in names]
    print(f"\n{'diverging by':<24}{'precision':>11}{'recall':>9}{'kappa':>8}{'alarms':>8}")
    ours = detection([scanned[name].verdict == "diverging" for name in names], truth)
    rows.append({"half": half, "what": "diverging", "rule": "lossacc scan", **ours})
    print(_line("lossacc scan", ours, 24))
    for name, rule in RULES.items():
        numbers = detection([rule(*series[run]) for run in names], truth)
        rows.append({"half": half, "what": "diverging", "rule": name, **numbers})
        print(_line(name, numbers, 24))
    bad = detection([scanned[name].warns for name in names], [labels[name]["verdict"] in BAD for name in names])
    rows.append({"half": half, "what": "any trouble", **bad})
    print(_line("any trouble (exit status)", bad, 26))
    print(f"\n{'event':<16}{'precision':>11}{'recall':>9}{'kappa':>8}{'alarms':>8}")
    for row in compare_events(scanned, labels):
        rows.append({"half": half, "what": "event", **row})
        print(_line(str(row["kind"]), row, 16))
        if "both" in row:
            print(f"   onset within {ONSET_EPOCHS} epochs or 10 %: {row['onset_right']}/{row['both']}, ", end="")
            print(f"same word for accuracy: {row['accuracy_word_right']}/{row['both']}")
    print("\ndisagreements (label -> verdict)")
    for name in names:
        label, verdict = labels[name], scanned[name].verdict
        if verdict != label["verdict"]:
            doubt = "" if label["sure"] else f", unsure, also {'/'.join(label['also']) or 'none'}"
            print(f"  {name}: {label['verdict']} -> {verdict}; eye: {label['reason']}{doubt}; {scanned[name].reason}")
    return rows


def _line(name: str, numbers: dict, width: int = 12) -> str:
    return (
        f"{name:<{width}}{numbers['precision']:>11.2f}{numbers['recall']:>9.2f}{numbers['kappa']:>8.2f}"
        f"{numbers['alarms']:>8}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparison; 0 also where it was skipped."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--curves", type=Path, required=True, help="folder of the CSV files")
    parser.add_argument("--half", choices=[*HALVES, "both"], default="both")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if not options.curves.is_dir():
        print(f"skipped: {options.curves} does not exist")
        return 0
    labels = json.loads(LABELS.read_text(encoding="utf-8"))["runs"]
    scanned: dict[str, Scanned] = {}
    series: dict[str, tuple] = {}
    for source in find_sources([options.curves])[0]:
        name = source.path.name
        if name not in labels or (options.half != "both" and labels[name]["half"] != options.half):
            continue
        (result,) = scan_source(source)
        if not isinstance(result, Scanned):
            raise ValueError(f"{name}: {result.reason}")
        scanned[name] = result
        (run,) = read_runs(source)
        series[name] = series_of(run.history.series(run.stage))
    if not scanned:
        print(f"skipped: none of the labelled curves is in {options.curves}")
        return 0
    rows = []
    for half in HALVES:
        chosen = {name: run for name, run in scanned.items() if labels[name]["half"] == half}
        if chosen:
            rows += report(half, chosen, series, labels)
    versions = {"lightning_lossacc": __version__, "python": platform.python_version()}
    options.results.parent.mkdir(exist_ok=True)
    with options.results.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({**row, **versions}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
