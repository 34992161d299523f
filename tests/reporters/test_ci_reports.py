"""What CI systems read besides JUnit: markdown, annotations, metrics. Golden files, and every text
that might become markup, a command or a label of its own.

``SURVIVE_UPDATE_GOLDEN=1 pytest tests/reporters`` rewrites the files; look at the difference.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import reporter_fakes as fakes
from markdown_it import MarkdownIt
from reporter_fakes import cell, module

from survive.errors import ExitCode
from survive.judge.verdict import Word

GOLDEN = Path(__file__).parent / "golden"
SUFFIX = {"markdown": "md", "github": "github.txt", "openmetrics": "metrics.txt"}
VERDICTS = {
    "survived": fakes.verdict,
    "failed": fakes.failed,
    "inconclusive": fakes.inconclusive,
}
MANIFEST = {
    "survive": "0.1.0",
    "argv": ["run", "scenarios/quickstart.survive.yaml", "--set", "seed=42"],
    "file": "scenarios/quickstart.survive.yaml",
    "lines": {"answers": 43, "fast-first-token": 44, "degrade-not-die": 45, "comes-back": 46},
}
HOSTILE = (
    "1. `a` **b** _c_ | <img src=x> [d](e) ~~f~~ $g$ #1 &lt; @all http://h.i www.j.k {l} \\\r\n"
    '::error file=m,line=1::n%0A::debug::o\n# EOF\n"} 1\x00\x1b]0;p\x07\ud800\u202eq```'
)


def rendered(form, verdict=None, **run) -> str:
    run = fakes.run(**{"manifest": MANIFEST, **run})
    return module(form).reporter.render(run, verdict or fakes.verdict()).decode()


def hostile():
    """A verdict and a run in which every text is the target's."""
    broken = cell("answers", "steady", HOSTILE, verdict=Word.FAILED, why=HOSTILE)
    fault = fakes.gpu_loss(
        proof=HOSTILE, evidence=HOSTILE, target=HOSTILE, note=HOSTILE, failures=((HOSTILE, 3),)
    )
    verdict = fakes.verdict(
        verdict=Word.INCONCLUSIVE,
        exit_code=ExitCode.HEAL_UNPROVEN,
        reasons=(HOSTILE, HOSTILE),
        objectives=(broken,),
        faults=(fault,),
        grade=HOSTILE,
    )
    manifest = {"survive": HOSTILE, "argv": [HOSTILE], "file": HOSTILE, "lines": {"answers": 7}}
    return verdict, {"plan": fakes.plan(name=HOSTILE, target=HOSTILE), "manifest": manifest}


@pytest.mark.parametrize("form", SUFFIX)
@pytest.mark.parametrize("name", VERDICTS)
def test_golden(name, form):
    report = rendered(form, VERDICTS[name]())
    path = GOLDEN / f"{name}.{SUFFIX[form]}"
    if os.environ.get("SURVIVE_UPDATE_GOLDEN"):
        path.write_text(report, encoding="utf-8")
    assert report == path.read_text(encoding="utf-8")


# ------------------------------------------------------------------- markdown


def outside_of_fences(report: str) -> list[str]:
    lines, fence = [], ""
    for line in report.splitlines():
        mark = re.match(r"`{3,}", line)
        if fence:
            fence = "" if line == fence else fence
        elif mark:
            fence = mark[0]
        else:
            lines.append(line)
    assert not fence
    return lines


def test_hostile_text_is_no_markup_and_no_link_in_markdown():
    verdict, run = hostile()
    report = rendered("markdown", verdict, **run)
    for line in outside_of_fences(report):
        plain = re.sub(r"\\[!-/:-@\[-`{-~]", "", line).replace("<br>", "")
        frame = re.sub(r"^## |^- |^\| | \| | \|$|\*\*|\| ---:? ", "", plain)
        assert not re.search(r"[`*_\[\]<>|~$#&{}]|!\[", frame), line
        assert not re.search(r"@all|http://h|www\.", plain), line
        assert not re.search(r"^(- )?(1\.|::)", line)
        assert all(c.isprintable() or c in "\u200b\xa0" for c in line), line


class Page(HTMLParser):
    """What a parser of Markdown made of a report: its tags, its texts, cells of each row."""

    def __init__(self, report: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.cells: list[int] = []
        reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
        self.feed(reader.render(report))

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.cells += [0] * (tag == "tr")
        if tag in {"td", "th"}:
            self.cells[-1] += 1

    def handle_data(self, data):
        self.texts.append(data)


def test_a_reader_of_markdown_finds_the_frame_and_the_texts_as_they_were():
    verdict, run = hostile()
    for report in (rendered("markdown", verdict, **run), rendered("markdown", fakes.failed())):
        page = Page(report)
        assert page.tags <= {
            *("h2", "p", "strong", "br", "pre", "code", "ul", "li"),
            *("table", "thead", "tbody", "tr", "th", "td"),
        }
        assert set(page.cells) == {7, 4}
    page = Page(rendered("markdown", verdict, **run))
    said = "".join(page.texts).replace("\u200b", "")
    clean = module("glyphs").UNICODE.clean(" ".join(HOSTILE.split()))
    assert said.count(clean) >= 8  # headline, name, why, evidence, target, reasons, command


def test_a_summary_has_room_beside_others_and_keeps_what_broke():
    many = [cell(f"a{i}", "steady", why="x" * 500) for i in range(1000)]
    broken = cell("the-broken", "steady", verdict=Word.FAILED)
    verdict = fakes.verdict(
        objectives=(*many, broken),
        faults=tuple(fakes.gpu_loss(name=f"f{i}", evidence="é" * 5000) for i in range(300)),
        reasons=("r" * 9000,) * 400,
    )
    report = rendered("markdown", verdict)
    assert len(report.encode()) <= 64_100
    assert "the-broken" in report.splitlines()[8]
    assert "and 881 more in verdict.json" in report
    bounded = module("markdown").bounded("ä" * 9 + "\n" + "é\n" * 40_000)
    assert len(bounded) <= 64_100 and bounded.decode().endswith("verdict.json)\n")


def test_a_run_that_was_killed_before_its_load_is_told_too():
    bare = fakes.verdict(objectives=(), faults=(), verdict=Word.INCONCLUSIVE, reasons=("it died",))
    report = rendered("markdown", bare, rows=(), events=(), manifest={})
    assert report.startswith("## INCONCLUSIVE: quickstart on reference\n") and "it died" in report
    assert "verdict | objective" not in report


# --------------------------------------------------------------------- github


def undone(line: str) -> tuple[str, dict[str, str], str]:
    """(command, properties, message), as GitHub's runner reads a line."""
    head, data = line.removeprefix("::").split("::", 1)
    name, _, given = head.partition(" ")
    properties = dict(one.split("=", 1) for one in given.split(","))
    for code, text in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ","), ("%25", "%")):
        properties = {key: value.replace(code, text) for key, value in properties.items()}
        data = data.replace(code, text) if code not in {"%3A", "%2C"} else data
    return name, properties, data


def test_annotations_point_at_the_line_of_the_objective():
    commands = [undone(line) for line in rendered("github", fakes.failed()).splitlines()]
    assert [name for name, _, _ in commands] == ["error"] * 3
    assert commands[0][1] == {
        "file": "scenarios/quickstart.survive.yaml",
        "line": "45",
        "title": "degrade-not-die broke for chat during fault:gpu-loss",
    }
    assert commands[0][2] == "success 61.11 % (56.57..65.51), limit ≥ 90 %, n 342, 133 bad"


def test_what_survived_says_nothing_and_what_is_open_warns_once():
    assert rendered("github") == ""
    ((name, _, message),) = map(undone, rendered("github", fakes.inconclusive()).splitlines())
    assert name == "warning" and message.endswith("(and 1 reason more)")


def test_no_more_annotations_than_github_keeps():
    many = tuple(cell(f"a{i}", "steady", verdict=Word.FAILED) for i in range(30))
    verdict = fakes.verdict(
        objectives=many, verdict=Word.FAILED, exit_code=ExitCode.STOPPED, reasons=("stopped",)
    )
    lines = rendered("github", verdict, manifest={}).splitlines()
    assert len(lines) == 10 and "and 22 more broke" in lines[-1]
    assert undone(lines[0])[2] == "stopped"


def test_hostile_text_is_data_of_one_command_each():
    verdict, run = hostile()
    lines = rendered("github", verdict, **run).splitlines()
    assert len(lines) == 2
    for line in lines:
        name, properties, message = undone(line)
        assert name == "error" and set(properties) <= {"file", "line", "title"}
        assert "%0A::debug::o" in message and "\n" not in message and message.isprintable()


# ---------------------------------------------------------------- openmetrics

SAMPLE = re.compile(r'([a-z_][a-z0-9_]*)(?:\{((?:[a-z_]+="(?:[^"\\]|\\.)*",?)*)\})? (\S+)')
SUFFIXES = {"info": ("_info",), "gauge": ("",), "stateset": ("",)}


def metrics(report: str) -> dict[tuple[str, str], float]:
    """(name, labels) → value, by the rules of OpenMetrics 1.0 that concern us."""
    lines = report.split("\n")
    assert lines[-2:] == ["# EOF", ""] and lines.count("# EOF") == 1
    seen: dict[tuple[str, str], float] = {}
    families: list[str] = []
    kind, about = "", []
    for line in lines[:-2]:
        if line.startswith("# "):
            what, name, text = line[2:].split(" ", 2)
            if what == "TYPE":
                assert name not in families, "families lie together"
                families, kind, about = [*families, name], text, []
            assert name == families[-1] and what not in about
            assert what in {"TYPE", "UNIT", "HELP"}
            assert what != "UNIT" or name.endswith(f"_{text}")
            about.append(what)
            continue
        found = SAMPLE.fullmatch(line)
        assert found, line
        name, labels, value = found.groups()
        assert name in {families[-1] + suffix for suffix in SUFFIXES[kind]}
        assert (name, labels) not in seen
        assert kind != "stateset" or f'{name}="' in labels
        seen[name, labels or ""] = float(value)
    return seen


@pytest.mark.parametrize("name", VERDICTS)
def test_metrics_follow_the_standard(name):
    seen = metrics(rendered("openmetrics", VERDICTS[name]()))
    held = [value for (metric, _), value in seen.items() if metric == "survive_objective_held"]
    expected = {"survived": {1.0}, "failed": {0.0, 1.0}, "inconclusive": {1.0, math.nan}}[name]
    assert {v for v in held if v == v} == {v for v in expected if v == v}
    assert any(v != v for v in held) == (name == "inconclusive")
    states = {k[1]: v for k, v in seen.items() if k[0] == "survive_verdict"}
    assert sum(states.values()) == 1 and states[f'survive_verdict="{name}"'] == 1


def test_numbers_are_short_in_base_units_and_on_their_side_of_the_limit():
    near = (
        cell("a", "run", observed=0.98996, limit=0.99),
        cell("b", "run", observed=0.99513, limit=0.99512),
        cell("c", "run", observed=0.99996, limit=0.9),
        fakes.ttft("run", observed=800.4, limit=800.0),
        fakes.ttft("steady", observed="inf"),
        fakes.ttft("fault:gpu-loss", observed=None),
        cell("d", "run", unit="USD per 1M tokens", metric="cost", observed=1.23456, limit=3.0),
    )
    seen = metrics(rendered("openmetrics", fakes.verdict(objectives=near)))
    shown = {k[1]: v for k, v in seen.items() if k[0].startswith("survive_objective_observed")}
    values = list(shown.values())
    assert values[:5] == [0.98996, 0.99513, 0.99996, 0.8004, math.inf]
    assert math.isnan(values[5]) and values[6] == 1.23
    assert 'unit="USD per 1M tokens"' in list(shown)[6]


def test_hostile_text_is_the_value_of_one_label():
    verdict, run = hostile()
    report = rendered("openmetrics", verdict, **run)
    metrics(report)
    assert '\\"} 1' in report and all(line.isprintable() for line in report.splitlines())


def test_a_closed_model_has_no_plan_to_compare_with():
    load = replace(fakes.load(), planned=None, offered_rps=None, model="closed")
    seen = metrics(rendered("openmetrics", fakes.verdict(load=load)))
    assert ("survive_requests", 'fate="planned"') not in seen
    assert ("survive_requests", 'fate="sent"') in seen
