"""The page of a run: what stands on it, that nothing a target says can change it, and its size.

``SURVIVE_UPDATE_GOLDEN=1 pytest tests/reporters`` rewrites the golden page; look at it.
"""

from __future__ import annotations

import dataclasses
import html
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import reporter_fakes as fakes
from reporter_fakes import module
from synthetic import (
    ANSWERS,
    BACK,
    DEGRADE,
    FAST,
    MS,
    Fate,
    S,
    Story,
    down,
    findings,
    phase,
    scenario,
    scrapes,
)

from survive.catalog import Catalog
from survive.judge.judge import judge
from survive.judge.verdict import Word
from survive.plan.plan import make_plan
from survive.record.hdr import fold
from survive.record.reader import Record
from survive.record.samples import BAD, Counts, Frame, Key, Outcome, Series
from survive.record.writer import RecordWriter
from survive.scenario.model import FaultPlan, Metric, Objective, Probe, RequestKind

page = module("html")
measured = module("measured")
GOLDEN = Path(__file__).parent / "golden" / "page.html"
EVIL = "\x1b[2J</td></svg><script>alert(1)</script><img src=x onerror=alert(1)>\"' &amp; {}"

ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "main", "header", "section", "h1", "h2", "h3",
    "p", "ul", "li", "dl", "dt", "dd", "strong", "b", "br", "small", "code", "div", "table",
    "caption", "thead", "tbody", "tr", "th", "td", "svg", "desc", "g", "path", "line", "text",
    "tspan",
}  # fmt: skip


class Parsed(HTMLParser):
    """Elements with their attributes, and the text; every element must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.said = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, name, attributes):
        assert len(dict(attributes)) == len(attributes)
        self.elements.append((name, dict(attributes)))
        if name not in {"meta", "br"}:
            self._open.append(name)

    def handle_endtag(self, name):
        assert self._open.pop() == name

    def handle_data(self, text):
        if self._open and self._open[-1] != "style":
            self.said += text + " "

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.elements}


def rendered(record: Record, verdict) -> str:
    return page.reporter.render(record, verdict).decode()


def parsed(text: str) -> Parsed:
    """What must hold of every page."""
    found = Parsed(text)
    assert found.names <= ALLOWED
    for name, attributes in found.elements:
        assert not any(key.startswith("on") for key in attributes), name
        assert not {"style", "src", "href", "xlink:href"} & set(attributes), name
        assert not any("url(" in value for value in attributes.values()), name
        if name == "svg" and "role" in attributes:
            assert {"aria-labelledby", "width", "height"} <= set(attributes)
        if name == "th":
            assert attributes["scope"] in {"row", "col", "rowgroup"}
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = [a["aria-labelledby"] for _, a in found.elements if "aria-labelledby" in a]
    assert {one for names in named for one in names.split()} <= set(ids)
    assert not re.search(r"https?:|@import|url\(", text)
    return found


def story(tmp_path, name="run", **changes) -> tuple[Record, object]:
    told = Story(**{"scenario": scenario(rps=30, end_s=40), **changes})
    record = told.record(tmp_path / name)
    return record, judge(record, told.scenario)


@pytest.fixture(scope="module")
def outage(tmp_path_factory) -> tuple[Record, object]:
    """Two kinds, one fault that breaks a third of the chats, a gauge, a probe."""

    def fate(t_us, kind):
        if 20 * S <= t_us < 28 * S and kind == "chat" and t_us % 3 == 0:
            return Fate(Outcome.FAILED, 30 * MS, why="status:502", who="inference-1")
        return Fate(after=(20 + t_us % 17) * MS, ttft=(5 + t_us % 7) * MS)

    wanted = scenario(rps=30, end_s=40)
    limits = {**wanted.objectives, "shut": DENIED}
    limited = replace(wanted, objectives=limits, probes={"stranger": STRANGER})
    probed = (
        *findings("stranger", "denied", 500, 40, lambda t_us: not 22 * S < t_us < 23 * S),
        *scrapes("inference", 40, lambda second: {"replicas": 3.0, "queue": second % 5}),
    )
    told = Story(scenario=limited, fate=fate, probed=tuple(probed))
    record = told.record(tmp_path_factory.mktemp("outage") / "run")
    return record, judge(record, told.scenario)


STRANGER = Probe("stranger", Metric.DENIED, 500 * MS)
DENIED = Objective("shut", Metric.DENIED, 1.0, None, ("stranger",), "run")


# ----------------------------------------------------------------- what stands on it


def test_golden(tmp_path):
    record, verdict = story(tmp_path, scenario=scenario(rps=8, end_s=40), fate=down(22, 24))
    text = rendered(record, verdict)
    if os.environ.get("SURVIVE_UPDATE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_the_same_record_gives_the_same_bytes_wherever_it_lies(outage):
    record, verdict = outage
    moved = dataclasses.replace(record, folder=Path("elsewhere"))
    assert page.reporter.render(record, verdict) == page.reporter.render(record, verdict)
    there = Parsed(rendered(moved, verdict)).said
    assert str(record.folder) not in rendered(record, verdict)
    assert (
        "sha256 of plan.json" not in there
        and "sha256 of plan.json" in Parsed(rendered(record, verdict)).said
    )


def test_the_page_says_what_the_verdict_says(outage):
    record, verdict = outage
    said = " ".join(parsed(rendered(record, verdict)).said.split())
    assert said.startswith("failed: synthetic on hand-made, seed 11 FAILED synthetic: ")
    for cell in verdict.objectives:
        assert cell.window in said and cell.name in said
    assert "degrade success ≥ 90 %" in said
    assert "success 6" in said  # of chat during the outage
    for section in ("Objectives", "Survival matrix", "Timeline", "Faults", "Percentiles",
                    "Failures", "Load and the harness's own health"):  # fmt: skip
        assert section in said
    assert "network.down, grade real" in said
    assert "status:502" in said
    assert "replicas ready" in said and "queue" in said and "GPU in use" not in said
    assert "probe stranger: denied: 2 bad" in said
    assert "= sent" in said and "NOT CONSERVED" not in said


def test_an_unproven_fault_is_not_drawn_as_seen(tmp_path):
    sure = story(tmp_path, "sure")
    unsure = story(tmp_path, "unsure", look=lambda fault, t_us, stage: "no")
    texts = [rendered(*told) for told in (sure, unsure)]
    assert unsure[1].verdict is Word.INCONCLUSIVE
    assert "NOT PROVEN" in texts[1] and "NOT PROVEN" not in texts[0]
    lines = [re.findall(r'<path d="([^"]*)"[^>]*stroke-width="5"', text) for text in texts]
    assert [len(found) for found in lines] == [1, 1]
    assert lines[0] != [""] and lines[1] == [""]


def test_the_harness_own_lateness_is_shown_where_time_was_real(tmp_path):
    late = {"fate": lambda t_us, kind: Fate(lag=30 * MS if 9 * S < t_us < 12 * S else 50)}
    record, verdict = story(tmp_path, "real", **late)
    lags = measured.Measured(record).lag()
    assert [at for at, lag in enumerate(lags) if lag > 1] == [9, 10, 11]
    assert lags[9] == pytest.approx(30, rel=0.01)
    title = "the harness&#x27;s own lateness"
    assert title in rendered(record, verdict)
    assert title not in rendered(*story(tmp_path, "virtual", host="virtual", **late))


def test_what_would_decide_is_told(tmp_path):
    few = scenario(rps=3, end_s=40)
    record, verdict = story(tmp_path, scenario=few)
    text = rendered(record, verdict)
    undecided = [cell.why for cell in verdict.objectives if cell.verdict is Word.INCONCLUSIVE]
    assert undecided and all(html.escape(why) in text for why in undecided)
    assert "would decide" in text


# -------------------------------------------------------------- numbers of the picture


def test_percentiles_are_the_judges_own(outage):
    record, verdict = outage
    seen = measured.Measured(record)
    compared = 0
    for cell in verdict.objectives:
        if cell.unit == "ms":
            series = Series(cell.metric.partition(".")[0])
            kind = record.plan.kinds.index(cell.request)
            spread = seen.spread(series, kind, cell.window)
            share = float(cell.metric.rpartition(".p")[2]) / 100
            assert (spread.at(share), spread.n) == (cell.observed, cell.n)
            compared += 1
    assert compared == 1


@pytest.mark.parametrize("series", [Series.LATENCY, Series.TTFT, Series.ITL, Series.TPOT])
def test_percentiles_with_failures_are_the_judges_own(tmp_path, series):
    limits = [
        Objective(f"x{share}", Metric(str(series)), 800 * MS, share, ("chat",), "each fault")
        for share in (0.5, 0.7, 0.9)
    ]
    wanted = scenario(rps=30, end_s=40, objectives=(*limits, BACK, FAST))
    record, verdict = story(tmp_path, scenario=wanted, fate=down(20, 22))
    spread = measured.Measured(record).spread(series, 0, "fault:outage")
    cells = [cell for cell in verdict.objectives if cell.window == "fault:outage"]
    assert [spread.at(limit.percentile) for limit in limits] == [c.observed for c in cells]
    assert cells[0].observed != "inf" and cells[2].observed == "inf"


def test_columns_add_up_to_the_run(outage):
    record, _ = outage
    seen = measured.Measured(record)
    for names in ([Outcome.OK], BAD, [Series.SEND_LAG]):
        assert seen.counted(names).sum() == sum(record.table.total(name) for name in names)
    heat = seen.heat(Series.LATENCY, [0, 1], 20, [])
    spans = np.array([seen.columns.span_s(at) for at in range(seen.columns.count)])
    assert round(float((heat.density.sum(axis=1) * spans).sum())) == record.table.total(Outcome.OK)
    classes = [one for one in seen.classes("run") if one.kind == "chat"]
    assert [one.why for one in classes] == ["status:502"]
    assert sum(one.bad for one in classes) == record.table.total(Outcome.FAILED)


# ---------------------------------------------------------------------- hostile text


def test_nothing_that_a_target_says_becomes_markup(tmp_path):
    record, _ = story(tmp_path)
    evil_plan = replace(record.plan, name=EVIL, target=EVIL)
    events = tuple(
        replace(event, fields={**event.fields, "evidence": EVIL, "detail": EVIL,
                               "unproven_heals": [{"by_hand": EVIL}]})
        for event in record.events
    )  # fmt: skip
    manifest = {"argv": ["run", EVIL], "machine": EVIL, "run": EVIL}
    hostile = dataclasses.replace(record, plan=evil_plan, events=events, manifest=manifest)
    fault = fakes.gpu_loss(
        name="outage", kind=EVIL, grade=EVIL, target=EVIL, proof=EVIL, heal_proof=EVIL, note=EVIL,
        evidence=EVIL, failures=((EVIL, 7),), replicas=(fakes.ReplicaShare(EVIL, 9, 1.0, 0.3),),
    )  # fmt: skip
    cells = (fakes.cell(EVIL, f"fault:{EVIL}", EVIL, metric=EVIL, why=EVIL, verdict=Word.FAILED),)
    verdict = fakes.verdict(
        objectives=cells, faults=(fault,), reasons=(EVIL, EVIL), grade=EVIL,
        verdict=Word.INCONCLUSIVE,
    )  # fmt: skip
    text = rendered(hostile, verdict)
    found = parsed(text)
    assert "<script" not in text and "\x1b" not in text
    assert found.said.count("<script>alert(1)</script>") >= 12


def test_names_of_replicas_kinds_and_classes_are_escaped(tmp_path):
    """Names that the writer would have cleaned: the page does not rely on it."""
    record, verdict = story(tmp_path, fate=down(21, 23))
    table = dataclasses.replace(record.table, why_names=(EVIL,) * len(record.table.why_names))
    plan = replace(record.plan, kinds=(EVIL, "search"))
    text = rendered(dataclasses.replace(record, table=table, plan=plan), verdict)
    assert "<script>alert(1)</script>" in parsed(text).said
    assert "<script" not in text


# ------------------------------------------------------------------ odd runs, many runs


def test_a_run_that_never_began(tmp_path):
    record, verdict = story(
        tmp_path, ended="target_unhealthy", detail="gateway: no answer", mislay=10**9,
        silent=("fault_observed", "fault_injected", "fault_healed", "heal_proven"),
    )  # fmt: skip
    said = parsed(rendered(record, verdict)).said
    assert "gateway: no answer" in said
    assert "No request failed." in said


def test_no_faults_and_one_shots(tmp_path):
    calm = scenario(rps=60, faults=(), end_s=30, objectives=(ANSWERS, FAST))
    record, verdict = story(tmp_path, "calm", scenario=calm)
    said = parsed(rendered(record, verdict)).said
    assert "Survival matrix" not in said and "no faults" in said
    kill = FaultPlan("kill", "node.kill", 10 * S, None, service="inference")
    once = scenario(rps=20, faults=(kill,), end_s=30, objectives=(ANSWERS, DEGRADE, BACK))
    record, verdict = story(tmp_path, "once", scenario=once)
    assert "one-shot" in parsed(rendered(record, verdict)).said


def test_kinds_that_nobody_asked_for_are_no_trouble(tmp_path):
    record, verdict = story(tmp_path)
    plan = replace(record.plan, kinds=(), locustfile="locustfile.py", planned=((),) * 2)
    empty = dataclasses.replace(
        record, plan=plan, table=measured_nothing(record), manifest={}, events=record.events
    )
    parsed(rendered(empty, replace(verdict, objectives=())))


def measured_nothing(record: Record):
    empty = {f.name: getattr(record.table, f.name)[:0] for f in dataclasses.fields(record.table)}
    return dataclasses.replace(record.table, **empty)


def test_ten_minutes_with_five_kinds_and_five_faults_fit_in_250_kb(tmp_path):
    """With more spread in the times than any stack has: noise is what costs bytes."""
    names = ("chat", "long", "plain", "search", "look")
    phases = (
        phase("warm", 0, 10, 50, warm_up=True, shares=dict.fromkeys(names, 0.2)),
        phase("main", 10, 600, 50, shares=dict.fromkeys(names, 0.2)),
    )
    faults = tuple(
        FaultPlan(f"outage-{k}", "network.down", (60 + 100 * k) * S, 30 * S, link="a -> b")
        for k in range(5)
    )
    limits = [
        Objective(f"fast-{name}", Metric.LATENCY, 800 * MS, 0.95, (name,), "steady")
        for name in names
    ]
    wanted = replace(
        scenario(phases, faults, (DEGRADE, BACK, *limits)),
        requests={n: RequestKind(n, 0.2, "GET", f"/{n}", timeout_us=5 * S) for n in names},
        objectives={o.name: replace(o, of=o.of and names) for o in (DEGRADE,)}
        | {o.name: o for o in (BACK, *limits)},
    )
    told = Story(scenario=wanted)
    plan = make_plan(wanted)
    chance = np.random.default_rng(5)
    folder = tmp_path / "long"
    with RecordWriter(folder, plan) as writer:
        for t_us, name, fields in sorted(told._events(plan), key=lambda event: event[0]):
            writer.event(name, fields, t_us)
        for at, (start_us, end_us) in enumerate(plan.slices):
            sets = []
            for kind in names:
                n = round(10 * (end_us - start_us) / S)
                values = chance.lognormal(11, 1.2, n).astype(int).tolist()
                sets.append((Key(at, kind, -1, Series.LATENCY, "ok"), Counts(*fold(values))))
                sets.append((Key(at, kind, -1, Series.SEND_LAG), Counts(*fold([9] * n))))
            writer.frame(Frame(end_us, tuple(sets)))
    record = Record.load(folder)
    text = page.reporter.render(record, judge(record, wanted))
    parsed(text.decode())
    assert 100_000 < len(text) <= 250_000  # and it is all there


def test_more_than_fits_is_said_to_be_missing(tmp_path):
    many = tuple(
        FaultPlan(f"outage-{k}", "network.down", (3 + 3 * k) * S, S, link="a -> b")
        for k in range(30)
    )
    quick = replace(BACK, limit=S, stable_for_us=S)
    wanted = scenario(rps=4, end_s=100, faults=many, objectives=(FAST, ANSWERS, quick))
    record, verdict = story(tmp_path, scenario=wanted)
    text = rendered(record, verdict)
    assert "more pictures would follow" in parsed(text).said
    assert len(text) <= 250_000


def test_what_has_no_strip_is_named(tmp_path):
    names = ("chat", "search", *(f"kind-{k}" for k in range(6)))
    shares = dict.fromkeys(names, 1 / len(names))
    wanted = scenario(
        phases=(phase("main", 0, 30, 40, shares=shares),), faults=(), objectives=(ANSWERS, FAST)
    )
    asked = {n: wanted.requests.get(n, wanted.requests["search"]) for n in names}
    asked = {n: replace(kind, name=n, share=1 / len(names)) for n, kind in asked.items()}
    record, verdict = story(tmp_path, scenario=replace(wanted, requests=asked))
    said = parsed(rendered(record, verdict)).said
    assert "No room above for: latency of kind-4, latency of kind-5." in said


def test_it_is_a_reporter_and_its_helpers_are_none():
    names = Catalog(plugins=False).reporter_names()
    assert "html" in names
    assert not {"told", "markup", "svg", "measured", "timeline", "spectra"} & set(names)
