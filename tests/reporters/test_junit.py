"""junit.xml, against golden files, its shape, and every text that might break XML.

``SURVIVE_UPDATE_GOLDEN=1 pytest tests/reporters`` rewrites the files; look at the difference.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import reporter_fakes as fakes
from reporter_fakes import FakeEvent, S, cell, module

from survive.errors import ExitCode
from survive.judge.verdict import Word

junit = module("junit").reporter
GOLDEN = Path(__file__).parent / "golden"
VERDICTS = {
    "survived": fakes.verdict,
    "failed": fakes.failed,
    "inconclusive": fakes.inconclusive,
}
MANIFEST = {
    "survive": "0.1.0",
    "file": "scenarios/quickstart.survive.yaml",
    "lines": {"answers": 43, "fast-first-token": 44, "degrade-not-die": 45, "comes-back": 46},
}
HOSTILE = "a]]><&\"'\x00\x1b[31m\x85\ud800\ufffe\r\n::error::b\u2028%0A\U0001f600 é"

# What the schema of Jenkins' xUnit plug-in (junit-10.xsd) has of each element, as far as we use it:
# attributes that must be there, those that may, and what stands inside, in our order. ``file`` and
# ``line`` of a case are in no schema; most readers know them. GitLab shows what stands inside of a
# failure, an error or a skip, Jenkins the message too: no such element is empty.
SHAPE = {
    "testsuites": (set(), {"name", "tests", "failures", "errors", "time"}, ["testsuite"]),
    "testsuite": (
        {"name", "tests", "failures", "errors"},
        {"skipped", "time"},
        ["properties", "testcase"],
    ),
    "properties": (set(), set(), ["property"]),
    "property": ({"name", "value"}, set(), []),
    "testcase": (
        {"name", "classname"},
        {"time", "file", "line"},
        ["skipped", "error", "failure", "system-out"],
    ),
    "skipped": (set(), {"message"}, []),
    "error": ({"message"}, set(), []),
    "failure": ({"message"}, set(), []),
    "system-out": (set(), set(), []),
}


def parsed(run=None, verdict=None) -> ElementTree.Element:
    run = run or fakes.run(manifest=MANIFEST)
    root = ElementTree.fromstring(junit.render(run, verdict or fakes.verdict()))
    check(root)
    return root


def check(element: ElementTree.Element) -> None:
    must, may, inside = SHAPE[element.tag]
    assert must <= set(element.attrib) <= must | may, element.attrib
    tags = [child.tag for child in element]
    assert set(tags) <= set(inside), tags
    assert tags == sorted(tags, key=inside.index)
    if element.tag in {"testsuites", "testsuite"}:
        cases = list(element.iter("testcase"))
        assert int(element.get("tests")) == len(cases)
        for attribute, tag in (("failures", "failure"), ("errors", "error")):
            assert int(element.get(attribute)) == sum(c.find(tag) is not None for c in cases)
        names = [case.get("name") for case in cases]
        assert len(set(names)) == len(names)
    if element.tag == "testcase":
        assert float(element.get("time")) >= 0
        assert sum(tag in {"failure", "error", "skipped"} for tag in tags) <= 1
    if element.tag in {"failure", "error", "skipped"}:
        assert element.text and element.text.strip()
    for child in element:
        check(child)


def bad(root: ElementTree.Element) -> dict[str, str]:
    """Case → what is bad about it."""
    return {
        case.get("name"): child.tag
        for case in root.iter("testcase")
        for child in case
        if child.tag != "system-out"
    }


@pytest.mark.parametrize("name", VERDICTS)
def test_golden(name):
    report = junit.render(fakes.run(manifest=MANIFEST), VERDICTS[name]())
    check(ElementTree.fromstring(report))
    path = GOLDEN / f"{name}.junit.xml"
    if os.environ.get("SURVIVE_UPDATE_GOLDEN"):
        path.write_bytes(report)
    assert report == path.read_bytes()


def test_a_cell_is_a_case_and_names_its_line():
    root = parsed()
    case = next(c for c in root.iter("testcase") if "fast-first-token" in c.get("name"))
    assert case.get("name") == "fast-first-token for chat during steady"
    assert case.get("classname") == "quickstart.steady"
    assert (case.get("file"), case.get("line")) == ("scenarios/quickstart.survive.yaml", "44")
    assert len(list(root.iter("testcase"))) == 1 + len(fakes.cells())
    assert bad(root) == {}


def test_red_is_a_failure_and_unknown_is_an_error_also_of_the_run():
    assert set(bad(parsed(verdict=fakes.failed())).values()) == {"failure"}
    undecided = bad(parsed(verdict=fakes.inconclusive()))
    assert set(undecided.values()) == {"error"}
    assert "the run" in undecided


def test_a_run_that_stop_if_ended_has_a_failure_though_no_cell_failed():
    stopped = replace(
        fakes.verdict(),
        verdict=Word.FAILED,
        exit_code=ExitCode.STOPPED,
        reasons=("stopped by meltdown",),
    )
    assert bad(parsed(verdict=stopped)) == {"the run": "failure"}


@pytest.mark.parametrize("code", [ExitCode.HEAL_UNPROVEN, ExitCode.INTERRUPTED])
def test_no_green_for_a_run_that_ended_badly_with_all_cells_green(code):
    ended = replace(
        fakes.verdict(), verdict=Word.INCONCLUSIVE, exit_code=code, reasons=("it was so",)
    )
    assert bad(parsed(verdict=ended)) == {"the run": "error"}


def test_what_the_run_did_not_reach_was_skipped_and_what_it_left_unfinished_was_not():
    events = (FakeEvent(34 * S, "stopped", {"by": "signal"}), FakeEvent(35 * S, "run_ended", {}))
    nothing = {"verdict": Word.INCONCLUSIVE, "n": 0, "why": "the run was stopped"}
    verdict = replace(
        fakes.verdict(),
        verdict=Word.INCONCLUSIVE,
        exit_code=ExitCode.INTERRUPTED,
        reasons=("interrupted by SIGINT",),
        objectives=tuple(
            cell("a", window, **nothing)
            for window in ("fault:gpu-loss", "fault:slow-network", "recovery:gpu-loss")
        ),
    )
    found = bad(parsed(fakes.run(manifest=MANIFEST, events=events), verdict))
    assert found == {
        "the run": "error",
        "a for chat during fault:gpu-loss": "error",
        "a for chat during fault:slow-network": "skipped",
        "a for chat during recovery:gpu-loss": "skipped",
    }


def test_hostile_text_stays_text_and_twins_are_told_apart():
    broken = cell("answers", "steady", HOSTILE, verdict=Word.FAILED, why=HOSTILE)
    verdict = replace(
        fakes.verdict(),
        verdict=Word.INCONCLUSIVE,
        reasons=(HOSTILE,),
        objectives=(broken, broken, replace(broken, verdict=Word.INCONCLUSIVE)),
        grade=HOSTILE,
    )
    run = fakes.run(plan=fakes.plan(name=HOSTILE, target=HOSTILE), manifest={"file": HOSTILE})
    root = parsed(run, verdict)
    names = [case.get("name") for case in root.iter("testcase")]
    assert names[1].startswith("answers for a]]><&\"'??[31m")
    assert [name[-4:] for name in names[2:]] == [" (2)", " (3)"]
    for element in root.iter():
        for text in element.attrib.values():
            assert "\n" not in text and text.isprintable()
        assert all(line.isprintable() for line in (element.text or "").splitlines())


def test_a_record_of_before_that_knows_no_file_is_told_without():
    case = next(parsed(fakes.run(manifest={})).iter("testcase"))
    assert case.get("file") is None and case.get("line") is None
