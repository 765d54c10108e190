"""The report is one whole page that stands alone, says what the records and events say, shows hostile names as text,
and stays small; nobody needs a mouse, colours or eyes to read it."""

from __future__ import annotations

import itertools
import math
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

import lightning_lossacc
from lightning_lossacc import report
from lightning_lossacc.diagnosis.event import Cause
from lightning_lossacc.figures import FIGURES, alt_text
from lightning_lossacc.figures.canvas import DARK, LIGHT
from lightning_lossacc.history import History, Record
from lightning_lossacc.report.drawings import DARK_VARIABLES, LIGHT_VARIABLES, inline
from lightning_lossacc.report.references import METHODS, REFERENCES, cited
from lightning_lossacc.report.tables import number
from tests.made_up import event, record
from tests.made_up_run import ROWS, full_record, full_run
from tests.page import read
from tests.test_figures_gallery import contrast

RUN = full_run()
EVIDENCE = {
    "nll_before": 0.25,
    "nll_after": 0.298,
    "accuracy_before": 0.92,
    "accuracy_after": 0.921,
    "temperature_before": 1.0,
    "temperature_after": 1.48,
    "items_needed_to_show": 3307,
}
ATTRIBUTION = {
    "nll_change": 0.048,
    "full_nll_change": 0.048,
    "by_group": {"right both times": -0.02, "wrong both times": 0.068},
    "by_temperature": {"after one temperature": 0.001, "confidence (one temperature)": 0.047},
    "flips": {"to_right": 12, "to_wrong": 8, "accuracy_change": 0.004, "error": 0.001, "p_value": 0.5},
}
CAUSES = (
    Cause("over-confidence", 0.9, ("best temperature 1.00 → 1.48",), ("flips are many",)),
    Cause("hard-tail", math.nan, ("29 rows carry the rise",)),
)
REMEDIES = ("logits / T with T = 1.48 saves 0.047 nats", "`AdamW(weight_decay=0.05)` (Loshchilov and Hutter 2019)")
EVENT = event(2100, evidence=EVIDENCE, attribution=ATTRIBUTION, causes=CAUSES, remedies=REMEDIES, num_rows=ROWS)
EVENTS = [EVENT, replace(EVENT, status="doubled", epoch=30, global_step=3100, generalises="not-shown")]
HOSTILE = "</title></style><script>alert('1')</script> \"quoted\" & {{ 7 * 7 }} `好` \u202e\x00\ud800"


def page(history=RUN, events=EVENTS, drawn=False, **options):
    """The report, read, with its drawings only where they are looked at; what a strict reader minds is an error."""
    with nullcontext() if drawn else mock.patch.object(report, "draw", lambda *arguments, **options: None):
        html = report.render(history, events, **{"title": "my run"} | options)
    found = read(html)
    assert not found.problems, found.problems[:5]
    return found


def drawings(found):
    """The drawings for wide windows."""
    return [element for element in found.all("div") if element.attributes.get("class") == "wide"]


@pytest.fixture(scope="module")
def full():
    return page(drawn=True, configuration={"probe_items": 8192})


@pytest.fixture(scope="module")
def html():
    return report.render(RUN, EVENTS, title="my run")


def rows(found, caption):
    """Cells of the table with a caption: a list of rows of texts, heads first."""
    start = next(i for i, element in enumerate(found.elements) if element.tag == "caption" and caption in element.text)
    table = []
    for element in found.elements[start + 1 :]:
        if element.tag == "table":
            break
        if element.tag == "tr":
            table.append([])
        elif element.tag in ("th", "td"):
            table[-1].append(element.text)
    return table


def test_verdict_comes_first_in_two_sentences(full):
    """What happened since when with its numbers, and what to do about it; then picture and checkpoints."""
    order = [
        element
        for element in full.elements
        if element.tag in ("h2", "svg", "table") or "verdict" in element.attributes.get("class", "")
    ]
    assert [element.tag for element in order[:5]] == ["h2", "div", "svg", "svg", "table"] and order[1].attributes[
        "class"
    ] == "verdict warns"
    sentences = [element.text for element in full.elements if element.tag == "p" and element.inside[-1] == "div"][:2]
    assert sentences == [
        "Over-confidence: since epoch 8 the loss rose and accuracy stayed within its margin (NLL 0.2500 → 0.2980 nats, "
        "accuracy 92.00 → 92.10 % at epoch 30).",
        "First thing to do: logits / T with T = 1.48 saves 0.047 nats.",
    ]


def test_checkpoint_table_holds_the_best_evaluations(full):
    found = rows(full, "Which checkpoint")
    assert found[0][:5] == ["best by", "epoch", "step", "NLL (nats)", "accuracy (%)"]
    assert [row[:2] for row in found[1:]] == [["NLL", "8"], ["accuracy", "8"], ["refined NLL", "8"], ["last", "39"]]
    assert found[4][3:8] == ["0.3740", "92.00", "91.00", "0.2400", "2.24"]


def test_event_tells_evidence_attribution_other_causes_and_remedies(full):
    assert rows(full, "Reference and now")[1:] == [
        ["NLL (nats)", "0.2500", "0.2980", "+0.0480"],
        ["accuracy (%)", "92.00", "92.10", "+0.10"],
        ["best temperature", "1.00", "1.48", "+0.48"],
    ]
    parts = {row[0]: row[1] for row in rows(full, "Where the change came from")[1:]}
    assert parts["wrong both times"] == "+0.0680" and parts["together"] == "+0.0480"
    for text in (
        "opened at epoch 20, doubled at epoch 30",
        "best temperature 1.00 → 1.48",
        "flips are many",
        "hard-tail: 29 rows carry the rise",
        "Holds on new data: not shown; about 3307 items would show a change of this size.",
        "flips: 12 to right, 8 to wrong",
        "The loss rose because the probabilities became too large",
    ):
        assert text in full.text, text
    items = [element.text for element in full.all("li") if element.inside[-1] == "ol"]
    assert items[0] == REMEDIES[0] and len(items) == 2
    assert "AdamW(weight_decay=0.05)" in [element.text for element in full.all("code")]


def test_closed_events_come_last_and_keep_their_remedies():
    gone = replace(EVENT, id="gone", event="spike", status="closed", epoch=35, global_step=3600, remedies=())
    found = page(events=[replace(EVENT, id="gone", event="spike"), gone, *EVENTS])
    assert [element.text for element in found.all("h3")] == [
        "Loss up, accuracy flat: over-confidence",
        "Spike: over-confidence",
    ]
    classes = [
        element.attributes["class"]
        for element in found.all("section")
        if "event" in element.attributes.get("class", "")
    ]
    assert classes == ["event warning doubled", "event warning closed"]
    assert len([element for element in found.all("li") if element.inside[-1] == "ol"]) == 4


def test_numbers_by_epoch_mark_the_best_and_worst_items_are_listed(full):
    found = rows(full, "Quantities by evaluation")
    assert found[0][:4] == ["epoch", "step", "train NLL", "train accuracy (%)"] and len(found) == 41
    assert found[9][0] == "8ᴸᴬᴿ" and found[40][4] == "0.3740"
    worst = rows(full, "Items whose loss rose most from epoch 8 to 39")
    assert worst[1] == ["#0", "0", "1", "5.0000", "6.0000", "+0.00100"] and len(worst) == 4
    facts = dict(row for row in rows(full, "Settings and facts")[1:])
    assert facts["probe_items"] == "8192" and facts["the loss has as well"] == "smoothing 0.1"
    assert facts["evaluations, val"] == "40, 1000 rows in 1000 items" and facts["rows left out or tied"] == "ignored 3"
    assert facts["logged by the module"] == "val_loss 0.3740"
    assert facts["first evaluation"] == "2023-11-14 22:13:20 UTC"


def test_every_figure_is_there_with_its_words_as_a_caption_that_describes_it(full):
    """Read out once: the drawing has a short name, and the caption its numbers."""
    (wide, small, *others), captions = full.all("svg"), full.all("figcaption")
    drawn = [wide, *others]
    told = [alt_text(name, RUN, EVENTS) for name in FIGURES]
    assert [element.text for element in captions] == told
    assert [element.attributes["aria-label"] for element in drawn] == [words.partition(". ")[0] for words in told]
    described = [element.attributes["aria-describedby"] for element in drawn]
    assert described == [element.attributes["id"] for element in captions] and len(set(described)) == len(drawn)
    # The picture once more for narrow windows; of the two only one is seen and read out.
    assert all(small.attributes[name] == wide.attributes[name] for name in ("role", "aria-label", "aria-describedby"))
    assert all(element.attributes["role"] == "img" for element in drawn)


def test_page_needs_no_mouse_no_colours_and_no_eyes(full):
    """Language, title, landmarks, headings in order, scope of every head, a way into every box that scrolls."""
    (html,) = full.all("html")
    assert html.attributes["lang"] == "en" and full.all("title")[0].text == "Loss and accuracy: my run"
    assert [len(full.all(tag)) for tag in ("header", "main", "footer", "nav", "h1")] == [1, 1, 1, 1, 1]
    levels = [int(element.tag[1]) for element in full.elements if re.fullmatch("h[1-6]", element.tag)]
    assert levels[0] == 1 and all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))
    heads = full.all("th")
    assert heads and all(head.attributes["scope"] in ("col", "row") for head in heads)
    assert len(full.all("caption")) == len(full.all("table"))
    for element in full.elements:
        if "scroll" in element.attributes.get("class", ""):
            assert element.attributes["tabindex"] == "0" and element.attributes["aria-label"]
    assert full.all("a")[0].attributes == {"class": "skip", "href": "#verdict"}


def test_page_stands_alone(full, html):
    """No script, no address, no font, no style from elsewhere; nothing but references within the page."""
    assert not full.all("script", "link", "iframe", "object", "embed", "img", "base", "form")
    assert not re.search(r"https?:|//[a-z]|@import|@font-face|javascript:|srcset|[(=]['\"]?data:", html.lower())
    assert set(re.findall(r"url\((.)", html)) == {"#"}


def test_colours_of_the_page_are_readable_on_each_paper():
    css = str(report._css())
    light, dark, paper = re.findall(r":root \{([^}]*)\}", css)
    assert LIGHT_VARIABLES in light and DARK_VARIABLES in dark and LIGHT_VARIABLES in paper
    for block, theme in ((light, LIGHT), (dark, DARK)):
        own = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", block))
        for ground in (theme.paper, own["soft"], own["over"]):
            for ink in (theme.ink, own["link"]):
                assert contrast(ink, ground) >= 4.5, (ink, ground)
        assert contrast(theme.faint, theme.paper) >= 4.5
    assert "prefers-color-scheme: dark" in css and "@media print" in css


def test_drawings_follow_the_theme_of_the_page(html):
    """Not one fixed colour is left in the drawings, and every variable that they use is one of the theme."""
    drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(drawings) == 7 and not [
        color for drawing in drawings for color in re.findall(r"#[0-9a-fA-F]{6}\b", drawing)
    ]
    used = set(re.findall(r"var\((--[\w-]+)\)", "".join(drawings)))
    assert used and used <= set(re.findall(r"(--[\w-]+):", LIGHT_VARIABLES))


def test_hostile_names_are_text():
    """Whatever comes from users or files stands there as they wrote it."""
    hostile = replace(
        EVENT,
        causes=(Cause(HOSTILE, 0.5, (HOSTILE,), (HOSTILE,)), Cause(HOSTILE, 0.1, (HOSTILE,), (HOSTILE,))),
        remedies=(HOSTILE,),
        message=HOSTILE,
        event=HOSTILE,
        status="open",
        attribution={"by_group": {HOSTILE: 0.1}, "nll_change": 0.1},
    )
    paired = [one for one in RUN.series() if one.paired]
    group = {"name": HOSTILE, "items": 3, "higher": 1, "change": 0.1}
    history = History(
        replace(
            one,
            logged={HOSTILE: 0.5},
            arrays=one.arrays | {"loss_terms": HOSTILE},
            paired={"nll": one.paired["nll"] | {"groups": [group]}},
        )
        for one in paired
    )
    found = page(history, [hostile], drawn=True, title=HOSTILE, configuration={HOSTILE: HOSTILE}, notes=[HOSTILE])
    assert not found.all("script") and len(found.all("title")) == 1 and len(found.all("style")) == 1
    shown = HOSTILE[: HOSTILE.index(" `")]
    assert found.all("title")[0].text.startswith(f"Loss and accuracy: {shown}")
    assert found.text.count(shown) > 10 and "49" not in found.all("title")[0].text
    everything = "".join([element.text for element in found.elements])
    assert "\ufffd" in everything and not {"\x00", "\ud800", "\u202e"} & set(everything)
    # In drawings as well, where the figure writes a name.
    assert any(shown[:20] in element.text for element in found.elements if "svg" in element.inside)


KINDS = {
    "empty": History(),
    "one evaluation": full_run(1),
    "incomplete": History([record(0, complete=False, nll=0.5)]),
    "without arrays": History([record(epoch, nll=0.5, accuracy=0.8) for epoch in range(5)]),
    "not finite": History([record(0, nll=math.nan, accuracy=math.nan), record(1, nll=math.inf, accuracy=0.5)]),
    "training alone": History(one for one in RUN if one.stage == "train"),
    "test alone": History(replace(one, stage="test") for one in RUN.series()),
    "logged alone": History(
        Record("val", 0, epoch, epoch, 0.0, True, 0, 0, {}, logged={"loss": 0.5, "accuracy": 0.8}) for epoch in range(9)
    ),
    "no time": History([replace(full_record(0), time=1e300), replace(full_record(1), time=math.nan)]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_history_has_a_page(kind):
    found = page(KINDS[kind], EVENTS if kind == "one evaluation" else [], drawn=True)
    assert len(found.all("main")) == 1 and found.all("h2")[0].text == "Verdict"
    assert "nan" not in found.text.lower().replace("nanochat", "") and "inf" not in re.sub(
        "[a-z]*info?r?[a-z]*", "", found.text.lower()
    )


def test_nothing_to_warn_of_is_a_verdict_too():
    found = page(events=[])
    sentences = [element.text for element in found.elements if element.tag == "p" and element.inside[-1] == "div"][:2]
    assert sentences == [
        "No event to warn of in 40 evaluations.",
        "The lowest NLL is 0.2500 at epoch 8, the last one 0.3740.",
    ]
    assert page(History()).text.count("Nothing has been measured yet.") == 1
    assert "Over-confidence: since epoch 8" not in page(events=[*EVENTS, replace(EVENT, status="closed")]).text


def test_drawings_beyond_the_budget_leave_their_words(monkeypatch):
    monkeypatch.setattr(report, "BUDGET", 60_000)
    found = page(drawn=True)
    assert 0 < len(drawings(found)) < 6 and len(found.all("figcaption")) == 6
    # Narrow ones take what is left.
    monkeypatch.setattr(report, "BUDGET", max(len(svg) for svg in re.findall("<svg.*?</svg>", report.render(RUN))) + 1)
    assert 'class="narrow"' not in report.render(RUN)
    assert any(element.text.endswith("(Left out, to keep this page small.)") for element in found.all("figcaption"))


def test_figure_that_fails_leaves_its_reason_and_the_rest():
    """Half an array in a file must not cost the whole page."""
    odd = [replace(one, arrays={"reliability": {"rows": [5], "accuracy": [0.5], "confidence": [0.6]}}) for one in RUN]
    found = page(History(odd), drawn=True)
    reasons = [element.text for element in found.all("figcaption") if "could not be drawn" in element.text]
    assert reasons == ["The figure lossacc/reliability could not be drawn: KeyError: 'edges'."]
    assert len(drawings(found)) == 3 and rows(found, "Which checkpoint")


def test_several_loaders_have_a_verdict_each():
    history = History([*RUN, *(replace(one, loader=1) for one in RUN.series())])
    found = page(history, [replace(one, loader=1) for one in EVENTS], drawn=True)
    assert [element.text for element in found.all("h3")][:2] == ["val", "val (loader 1)"]
    assert [
        element.attributes["class"] for element in found.all("div") if "verdict" in element.attributes.get("class", "")
    ] == ["verdict", "verdict warns"]
    assert len(drawings(found)) == 7


def test_without_matplotlib_the_page_has_no_figures_and_says_so(monkeypatch):
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    found = page(drawn=True)
    assert not found.all("svg") and "matplotlib was not installed" in found.text and len(found.all("table")) > 3


def test_equal_runs_have_equal_pages():
    assert report.render(full_run(12), EVENTS, title="a") == report.render(full_run(12), list(EVENTS), title="a")


def test_unfinished_run_says_so():
    assert "The run goes on, or ended without a last word" in page(finished=False).text


def test_write_replaces_the_whole_page_or_nothing(tmp_path, monkeypatch):
    path = report.write(tmp_path / "new" / "report.html", full_run(2), EVENTS)
    before = path.read_bytes()
    assert before.rstrip().endswith(b"</html>")

    def full_disk(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report.os, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        report.write(path, full_run(1), [])
    assert path.read_bytes() == before and [item.name for item in path.parent.iterdir()] == ["report.html"]


def test_references_are_known_for_every_citation_of_the_advice(full):
    """Each "(Author Year)" of a remedy has a full reference, and the page lists those that it uses."""
    source = "\n".join(path.read_text() for path in (Path(lightning_lossacc.__file__).parent / "advice").glob("*.py"))
    short = set(re.findall(r"([A-Z][A-Za-z]+(?: et al\.| and [A-Z][A-Za-z]+)?),? \(?((?:19|20)\d\d)\)?", source))
    unknown = [f"{names} {year}" for names, year in short if f"{names} {year}" not in REFERENCES]
    assert short and not unknown, unknown
    assert set(METHODS.values()) <= set(REFERENCES)
    assert cited(["as in Mukhoti et al. (2020)", "nobody 1999"]) == [REFERENCES["Mukhoti et al. 2020"]]
    listed = "\n".join(element.text for element in full.all("li"))
    assert REFERENCES["Loshchilov and Hutter 2019"] in listed and REFERENCES["Guo et al. 2017"] in listed
    assert REFERENCES["Platt 1999"] not in listed


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.25, "0.2500"),
        (-0.5, "-0.5000"),
        (math.nan, "–"),
        (math.inf, "–"),
        (1e7, "1e+07"),
        (2e-5, "2e-05"),
        (0.0, "0.0000"),
    ],
)
def test_numbers_keep_their_digits(value, text):
    assert number(value) == text


def test_drawing_has_no_names_of_its_own_twice():
    """Only what is referred to has a name, and none that another drawing has."""
    from lightning_lossacc.figures import draw

    one, other = (inline(draw("lossacc", RUN), name, "x", "y") for name in ("a", "b"))
    names, others = (set(re.findall(r'id="([^"]+)"', drawing)) for drawing in (one, other))
    assert names and not names & others
    assert all(f"#{name}" in one for name in names)
