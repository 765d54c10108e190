"""The README's section "How good is it?", made from the result files of the benchmarks that exist.

    python benchmarks/readme_numbers.py            prints it
    python benchmarks/readme_numbers.py --write    puts it between the markers of README.md

Each part names the machine, the versions and the commit where its file holds them, gives 95 % intervals, and says in
the same breath what falls short of the bar. `tests/test_readme.py` holds the README to this output.
"""

from __future__ import annotations

import argparse
import ast
import json
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
BEGIN, END = "<!-- numbers:begin -->", "<!-- numbers:end -->"
WIDTH = 125

Row = dict[str, Any]
# Of right verdicts among those given, of abstentions, and of healthy runs with a warning.
RIGHT, ABSTAINED, FALSE_ALARM = 0.95, 0.10, 0.01
# Simulated series whose noise nobody can tell from a trend at once: by part of the name.
EASIER = {"AR(0.5)": 0.03, "spikes": 0.03, "AR(0.8)": 0.10}
POWER = 0.95
# The rises that are to be found within 30 evaluations: 0.2 standard deviations an evaluation, and steeper.
SLOPES = ("slope 0.2 sd", "slope 0.5 sd", "slope 1 sd")
COMPARED_LENGTH = 100  # evaluations; rules that ask whether to stop alarm in every longer series
OURS = "find_rise"
COVERED = 0.85


def markdown(results: Path = RESULTS) -> str:
    """The whole section; parts whose file is missing are left out."""
    parts = []
    for name, write in PARTS.items():
        path = results / f"{name}.jsonl"
        if path.is_file():
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            parts += [wrapped(piece) for piece in write(rows)]
            parts.append(f"<sub>{source(name, rows)}</sub>")
    return "\n\n".join(parts)


def inserted(text: str, section: str, begin: str = BEGIN, end: str = END) -> str:
    """A text with the section between its markers.

    Raises:
        ValueError: if the text does not hold each marker once, in order.
    """
    if [text.count(mark) for mark in (begin, end)] != [1, 1] or text.index(begin) > text.index(end):
        raise ValueError(f"Expected the text to hold {begin} and {end} once and in this order.")
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n\n{section}\n\n{end}{rest.partition(end)[2]}"


def source(name: str, rows: Sequence[Row]) -> str:
    """Where the numbers are from: file, machine, versions, commit."""
    stamp: Row = next((row for row in rows if "processor" in row), {})
    parts = [f"`benchmarks/results/{name}.jsonl`"]
    if stamp:
        parts.append(f"{stamp['processor']}, {stamp['cores']} cores, load {stamp['load']:g}")
        versions = [f"{package} {stamp[package]}" for package in ("torch", "lightning", "numpy") if package in stamp]
        parts.append(", ".join([f"Python {stamp['python']}", *versions]))
        if stamp.get("commit"):
            parts.append(f"commit {stamp['commit'][:7]}{' and changes' if stamp.get('dirty') else ''}")
    else:
        seeds = sorted({row["seed"] for row in rows if row.get("table") == "run" and "seed" in row})
        python = next((f", Python {row['python']}" for row in rows if "python" in row), "")
        parts.append("computed, not timed" + python + "".join(f", seed {seed}" for seed in seeds))
    return " · ".join(parts)


# -- words ---------------------------------------------------------------------------------------------------------


def percent(share: float) -> str:
    """A share in percent with at most one decimal, without the sign: 0.0852 is 8.5."""
    return f"{100 * share:.1f}".removesuffix(".0")


def between(low: float, high: float) -> str:
    """An interval of shares in percent."""
    return f"{percent(low)} … {percent(high)}"


def rated(row: Row, key: str = "rate") -> str:
    """A share with its interval."""
    return f"{percent(row[key])} % ({between(row['low'], row['high'])})"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in markdown."""
    lines = [head, ["---"] * len(head), *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def folded(summary: str, text: str) -> str:
    """A part that opens on a click."""
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"


def listed(names: Sequence[str]) -> str:
    """Names in one line."""
    return ", ".join(names) if names else "none"


def wrapped(piece: str) -> str:
    """A paragraph in lines; tables and what is folded as they are."""
    if piece.startswith(("|", "<")):
        return piece
    # A number and its sign stay on one line: textwrap does not break at a no-break space.
    joined = piece.replace(" %", "\u00a0%").replace(" … ", "\u00a0…\u00a0")
    return textwrap.fill(joined, WIDTH, break_long_words=False, break_on_hyphens=False).replace("\u00a0", " ")


# -- parts ---------------------------------------------------------------------------------------------------------


def corrected(rows: list[Row], words: Callable[[Row], str]) -> str:
    """What rules that were changed after a first look reach on the same runs, if they were."""
    row = next((row for row in rows if row["table"] == "corrected"), None)
    if row is None:
        return ""
    note = f" ({row['note']})" if row.get("note") else ""
    reached = f"With the rules that were corrected after it, {words(row)}, which is no longer unseen{note}."
    return f" That was the first look. {reached}"


def earlier(rows: list[Row], words: Callable[[Row], str]) -> str:
    """What first looks at other runs found, with the rules as they stood then."""
    found = [f"{words(row)} (commit {row['commit'][:7]})" for row in rows if row["table"] == "earlier"]
    return (
        f" First looks before, at other programs, with the rules and definitions of then: {'; '.join(found)}."
        if found
        else ""
    )


def planted(rows: list[Row]) -> list[str]:
    """Planted faults: abstention first, then how many of the given verdicts are right."""
    whole = next(row for row in rows if row["table"] == "all")
    causes = [row for row in rows if row["table"] == "cause" and row["shown"]]
    programs = [row["name"] for row in rows if row["table"] == "program"]
    short = [f"{row['name']} {percent(row['precision'] or 0)} %" for row in causes if (row["precision"] or 0) < RIGHT]
    silent = [f"{row['name']} {percent(row['abstention'])} %" for row in causes if row["abstention"] > ABSTAINED]
    matrix = {row["planted"]: row["named"] for row in rows if row["table"] == "confusion"}

    def others(name: str) -> str:
        named = sorted(matrix.get(name, {}).items(), key=lambda item: -item[1])
        return ", ".join(f"{other} {count}" for other, count in named if other not in (name, "(none)")) or "-"

    lines = [
        (
            *(row[key] for key in ("name", "shown", "abstained", "right", "half right", "wrong")),
            "-" if row["precision"] is None else rated(row, "precision"),
            others(row["name"]),
        )
        for row in causes
    ]
    head = (
        "planted",
        "shown",
        "abstained",
        "right",
        "half",
        "wrong",
        "right of the given, 95 %",
        "also named, in runs",
    )
    return [
        f"**Does it name the cause?** {len(causes)} faults, planted in {whole['runs']} small trainings of "
        f"{listed(programs)}: programs, networks, data and seeds that nobody had looked at when rules and limits "
        "were set. What is true of a run is decided on 8000 fresh rows of its generator; a fault has shown if it "
        "changed a loss there by two practical floors (10 %, 0.02 nats). Where it showed "
        f"({whole['shown']} runs), **it abstained in "
        f"{percent(whole['abstention'])} %, and of the {whole['shown'] - whole['abstained']} verdicts given "
        f"{rated(whole, 'precision')} are right**: the planted cause is named, and beside it nothing that is not "
        f"true. {whole['half right']} name it beside something untrue, {whole['wrong']} name something else; "
        f"{whole['true warnings']} of {whole['warnings']} warnings name a cause that holds on the fresh rows. The bar "
        f"is {percent(RIGHT)} % right and at most {percent(ABSTAINED)} % abstained. Below it: {listed(short)}. Silent "
        f"too often: {listed(silent)}."
        + corrected(
            rows,
            lambda row: (
                f"on the same runs, {rated(row, 'precision')} are right and {percent(row['abstention'])} % abstained"
            ),
        )
        + earlier(
            rows,
            lambda row: (
                f"{rated(row, 'precision')} of the verdicts right and {percent(row['abstention'])} % abstained, "
                f"{row['shown']} runs"
            ),
        ),
        folded("Each cause, and what was named instead of it or beside it", table(head, lines)),
    ]


def healthy(rows: list[Row]) -> list[str]:
    """Healthy trainings with a warning, beside common rules."""
    counts = next(row for row in rows if row["table"] == "counts")
    alarms = {row["rule"]: row for row in rows if row["table"] == "alarms"}
    ours = alarms["lossacc"]
    kinds = [f"{row['warning']} {row['runs']}" for row in rows if row["table"] == "causes"]
    verdict = "held" if ours["high"] <= FALSE_ALARM else "not shown" if ours["share"] <= FALSE_ALARM else "missed"
    rules = {name: row for name, row in alarms.items() if not name.startswith("lossacc, ") or "unknown" in name}
    parts = {name: row for name, row in alarms.items() if name not in rules}
    lines = [(name, f"{row['alarms']} of {row['runs']}", rated(row, "share")) for name, row in (rules | parts).items()]
    beside = [f"{name} {percent(row['share'])} %" for name, row in rules.items() if not name.startswith("lossacc")]
    return [
        f"**Is it quiet on healthy runs?** Of {counts['runs']} trainings, varied in data, network, optimiser and "
        f"schedule, {counts['healthy']} were healthy on fresh rows. **A warning stood in {rated(ours, 'share')} of "
        f"them**; the bar of {percent(FALSE_ALARM)} % is {verdict}. Warnings, in runs: {listed(kinds)}. Common rules "
        f"on the same losses alarm in: {listed(beside)} (some of them are rules for stopping, not for "
        "warning)."
        + corrected(rows, lambda row: f"a warning stands in {row['alarms']} of {row['runs']} ({rated(row, 'share')})")
        + earlier(rows, lambda row: f"{row['alarms']} of {row['runs']} ({rated(row, 'share')})"),
        folded("Each rule with its interval", table(("rule", "healthy runs with an alarm", "share, 95 %"), lines)),
    ]


def checkpoints(rows: list[Row]) -> list[str]:
    """What the best checkpoint by each rule costs on a test set."""
    found = {(row["group"], row["best"], row["regret"]): row for row in rows if row["table"] == "regret"}
    groups = [group for group in ("all", "ordinary", "over-trained") if (group, "loss", "nll") in found]

    def mean(row: Row, factor: float = 1, digits: int = 4) -> str:
        center, low, high = (f"{factor * row[key]:.{digits}f}" for key in ("mean", "low", "high"))
        return f"{center} ({low} … {high})"

    lines = [
        (
            f"{group} ({found[group, rule, 'nll']['runs']})",
            rule,
            mean(found[group, rule, "accuracy"], 100, 2),
            f"{percent(found[group, rule, 'accuracy']['share'])} %",
            mean(found[group, rule, "nll"]),
            mean(found[group, rule, "tempered_nll"]),
        )
        for group in groups
        for rule in ("loss", "accuracy", "refined loss")
    ]
    first, refined = (found["all", rule, "accuracy"] for rule in ("loss", "refined loss"))
    return [
        f"**Which checkpoint?** **In {percent(first['share'])} % ({between(first['share low'], first['share high'])}) "
        f"of {first['runs']} runs the checkpoint with the lowest validation loss cost a point of test accuracy or "
        "more** against the best one in hindsight; the one with the lowest refined loss did in "
        f"{percent(refined['share'])} % ({between(refined['share low'], refined['share high'])}). Mean regret on 1000 "
        "test rows, which hindsight sees, so that all rules look worse than they are:",
        table(
            ("runs", "best by", "accuracy, pp", "1 pp or more", "NLL, nats", "NLL at the validation temperature, nats"),
            lines,
        ),
    ]


def trends(rows: list[Row]) -> list[str]:
    """False alarms and power of the trend detector on simulated series."""
    run = next(row for row in rows if row["table"] == "run")
    alarms = [row for row in rows if row["table"] == "false alarms" and "floors off" not in row["detector"]]
    power = [row for row in rows if row["table"] == "power"]
    length, longest = COMPARED_LENGTH, max(row["length"] for row in alarms)
    lines, pooled = [], {}
    for detector in dict.fromkeys(row["detector"] for row in alarms):
        here = [row for row in alarms if row["detector"] == detector and row["length"] == length]
        worst = max(here, key=lambda row: row["rate"])
        pooled[detector] = percent(sum(row["hits"] for row in here) / sum(row["runs"] for row in here))
        found = {row["family"]: row for row in power if row["detector"] == detector}
        delay = found[SLOPES[1]]["median_delay"]
        lines.append(
            (
                f"**ours (`{detector}`)**" if detector == OURS else detector,
                f"{pooled[detector]} %",
                f"{rated(worst)}, {worst['family']}",
                *(f"{percent(found[slope]['rate'])} %" for slope in SLOPES),
                "-" if delay is None else f"{delay:g}",
            )
        )
    noisy: dict[str, Row] = {}
    for row in alarms:
        bar = next((limit for part, limit in EASIER.items() if part in row["family"]), FALSE_ALARM)
        worst = noisy.get(row["family"], row)
        if row["detector"] == OURS and row["rate"] > bar and row["rate"] >= worst["rate"]:
            noisy[row["family"]] = row
    above = "; ".join(f"{family} {rated(row)} at {row['length']}" for family, row in noisy.items()) or "none"
    ours = {row["family"]: row for row in power if row["detector"] == OURS}
    missed = [f"{family} {percent(row['rate'])} %" for family, row in ours.items() if row["rate"] < POWER]
    slopes = ", ".join(f"{slope.removeprefix('slope ')} {rated(ours[slope])}" for slope in SLOPES)
    others = ", ".join(f"{name} {share} %" for name, share in pooled.items() if name != OURS)
    long = [row for row in alarms if (row["detector"], row["length"]) == (OURS, longest)]
    late = percent(sum(row["hits"] for row in long) / sum(row["runs"] for row in long))
    head = ("rule", "false alarms", "worst family, 95 %", *(f"found, {slope}" for slope in SLOPES), "delay, 0.5 sd")
    return [
        f"**Does it see a rise, and only a rise?** {run['runs']} simulated series of each of "
        f"{len({row['family'] for row in alarms})} families in which nothing rises for good, {length} evaluations "
        f"long ({run['long_runs']} of {longest}), and a quarter as many of each kind of rise. **False alarms: "
        f"{pooled[OURS]} % of all series, {late} % within {longest} evaluations.** Rises by a slope an evaluation, "
        f"found within 30 evaluations: {slopes}. "
        f"Beside it, false alarms of {others} (asked whether the loss rose; patience and SageMaker's rules ask "
        f"whether to stop). Above the bar ({percent(FALSE_ALARM)} % a run; AR(0.5) and spikes 3 %, AR(0.8) 10 %): "
        f"{above}. Rises found within 30 in less than {percent(POWER)} %, some of them below the practical floor "
        f"until then: {listed(missed)}.",
        folded("Each rule", table(head, lines)),
    ]


def curves(rows: list[Row]) -> list[str]:
    """Verdicts of the scan on real learning curves, against labels by eye."""
    held = [row for row in rows if row["half"] == "held-out"]
    verdict = next(row for row in held if row["what"] == "verdict")
    trouble = next(row for row in held if row["what"] == "any trouble")
    pairs = {tuple(pair.split(" -> ")): count for pair, count in verdict["confusion"].items()}
    different = [f"{mine} → {its} {count}" for (mine, its), count in pairs.items() if mine != its]

    def span(row: Row, key: str) -> str:
        return f"{percent(row[key])} % ({between(*row[f'{key}_interval'])})"

    lines = [
        (
            f"**{row['rule']}**" if row["rule"].startswith("lossacc") else row["rule"],
            row["alarms"],
            span(row, "precision"),
            span(row, "recall"),
            f"{row['kappa']:.2f}",
        )
        for row in held
        if row["what"] == "diverging" and "rule" in row
    ]
    head = ("rule for `diverging`, held-out half", "alarms", "precision, 95 %", "recall, 95 %", "kappa")
    return [
        f"**And on logs of real runs?** `lossacc scan` against a reader's labels of {2 * verdict['of']} published "
        f"learning curves. On the {verdict['of']} held-out ones both say the same in {verdict['same']} (Cohen's kappa "
        f"{verdict['kappa']:.2f}). Any trouble (diverging, stuck or unstable): precision "
        f"{span(trouble, 'precision')}, recall {span(trouble, 'recall')}. Reader → scan where they differ: "
        f"{listed(different)}. **Weak evidence:** the labels were made before the rules existed, but by one reader, "
        "who is the tool's author, and two held-out verdicts were seen during development, so that these figures are "
        "optimistic. The curves carry no licence and are not in the project; the labels are "
        "(`benchmarks/curve_labels.json`).",
        folded("Beside common rules", table(head, lines)),
    ]


def attribution(rows: list[Row]) -> list[str]:
    """Whether planted changes are recovered, and whether intervals keep their level."""
    recovery = [row for row in rows if row["table"] == "recovery"]
    whole = {row["what"]: row for row in recovery if row["plan"] == "all"}
    level = [row for row in rows if row["table"] == "level" and row["nominal"] == 0.01]
    off = max(row["median_absolute"] for row in recovery if row["what"] == "error: temperature, relative")
    by_item = [row["rate"] for row in level if row["errors"] == "by item"]
    by_row = [row["rate"] for row in level if row["errors"] == "by row"]
    late = [
        f"{row['plan']} {percent(row['rate'])} %"
        for row in recovery
        if row["what"] == "already in the first report" and row["rate"] < POWER and row["plan"] != "all"
    ]
    wrong = [
        f"{row['family']} {row['expected']} in {percent(row['rate'])} % ({row['truth']}, {row['classes']} classes)"
        for row in rows
        if row["table"] == "fits"
        and (row.get("expected") == "found" and row["rate"] < POWER)
        | (row.get("expected") == "not found" and row["rate"] > FALSE_ALARM)
    ]
    given = whole["the given cause is the planted one"]
    inside = whole["99 % interval after one temperature holds the population's change"]
    return [
        f"**Are the parts of a change right?** {given['runs']} simulated runs in which scale and separation of the "
        f"logits are set by hand. The planted cause is the given one in {rated(given)}; flips are those of the logits "
        f"in {percent(whole['flips equal those of the logits']['rate'])} %; the parts add up within 1e-9 in "
        f"{percent(whole['parts add up within 1e-9']['rate'])} %; the temperature is off by {percent(off)} % (median "
        f"of the worst plan); the 99 % interval of what one temperature leaves holds the truth in {rated(inside)}. "
        f"Where nothing changed, tests at 1 % reject in {between(min(by_item), max(by_item))} % with our errors by "
        f"item, and in up to {percent(max(by_row))} % with the usual errors by row (150 items of 49 correlated rows). "
        f"Named in the first report already in less than {percent(POWER)} %: {listed(late)}. Bias and prior shift "
        f"against one temperature, told wrongly: {listed(wrong)}.",
    ]


def forecast(rows: list[Row]) -> list[str]:
    """Whether the 90 % interval of a forecast holds what comes."""
    real = [row for row in rows if row["table"] == "real"]
    words = [
        f"{rated(row)} of {row['runs']} forecasts of the {'NLL' if row['key'] == 'nll' else row['key']} (given in "
        f"{percent(row['given'])} % of the cases; the last value ± 1.645 jitter would have held "
        f"{percent(row['plain_rule'])} %)"
        for row in real
        if row["network"] == "all"
    ]
    low = []
    for row in real:
        if row["network"] != "all" and row["rate"] < COVERED:
            data, sizes, optimizer, *_ = ast.literal_eval(row["network"])
            low.append(f"{row['key']} of {data} ({optimizer}, {'-'.join(map(str, sizes))}) {rated(row)}")
    simulated = [row for row in rows if row["table"] == "simulated" and row["rate"] is not None]
    below: dict[str, Row] = {}
    for row in simulated:
        if row["rate"] < COVERED and row["rate"] <= below.get(row["series"], row)["rate"]:
            below[row["series"]] = row
    lowest = [f"{series} {rated(row)}" for series, row in below.items()]
    return [
        f"**Do forecasts hold?** A 90 % interval is given only where its past ones covered {percent(COVERED)} % of "
        f"what came. On small real trainings it then held {'; '.join(words)}. Below {percent(COVERED)} % "
        f"nevertheless: {listed(low)}. Simulated series in which it held less at some length (the worst one): "
        f"{listed(lowest)}.",
    ]


def watchers(rows: list[Row]) -> list[str]:
    """What watching costs a bare training step."""
    found = {(row["network"], row["quantity"]): row for row in rows if row["table"] == "watchers"}
    stamp = next(row for row in rows if row["table"] == "run")
    quantities = {"step without, ms": 1, "own time, us": 0, "own time, %": 1, "overhead, %": 1}

    def cell(network: str, quantity: str, digits: int) -> str:
        middle, low, high = (f"{found[network, quantity][key]:.{digits}f}" for key in ("median", "p20", "p80"))
        return f"{middle} ({low} … {high})"

    lines = [
        (network, *(cell(network, quantity, digits) for quantity, digits in quantities.items()))
        for network in dict.fromkeys(network for network, _ in found)
    ]
    missed = [
        f"{row['target'].partition(' of')[0]} of {row['where']}"
        for row in rows
        if row["table"] == "target" and row["verdict"] == "missed"
    ]
    busy = f" {stamp['cores']} cores carried a load of {stamp['load']:g}, so that differences are noisy."
    return [
        "**What does watching cost?** Processor time of a bare training step, without a Trainer around it (which "
        "would make the shares smaller): median, 20 % … 80 % quantiles. *Own* is the time within the watcher, "
        "*overhead* the difference of watched and unwatched blocks of steps. The bar is 1 % of a step; missed: "
        f"{listed(missed)}." + (busy if stamp["load"] > stamp["cores"] else ""),
        table(("network", "step, ms", "own, µs", "own, %", "overhead, %"), lines),
    ]


PARTS: dict[str, Callable[[list[Row]], list[str]]] = {
    "planted": planted,
    "healthy": healthy,
    "checkpoints": checkpoints,
    "trends": trends,
    "curves": curves,
    "attribution": attribution,
    "forecast": forecast,
    "watchers": watchers,
}


def main() -> None:
    """Command line."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--write", action="store_true", help="into README.md instead of the terminal")
    arguments.add_argument("--results", type=Path, default=RESULTS)
    chosen = arguments.parse_args()
    section = markdown(chosen.results)
    if chosen.write:
        README.write_text(inserted(README.read_text(encoding="utf-8"), section), encoding="utf-8")
    else:
        print(section)


if __name__ == "__main__":
    main()
