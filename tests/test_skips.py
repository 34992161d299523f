"""In CI nothing is skipped in silence (the rule stands in conftest.py)."""

from __future__ import annotations

from types import SimpleNamespace

import conftest
import pytest


def skipped(nodeid: str = "tests/a.py::test_a", **more: object) -> SimpleNamespace:
    return SimpleNamespace(
        nodeid=nodeid, skipped=True, outcome="skipped", longrepr=("a.py", 1, "no gcc"), **more
    )


def judged(report: SimpleNamespace) -> str:
    conftest.refuse_skip(report)
    return report.outcome


def test_a_skip_is_a_failure_only_where_all_must_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SURVIVE_LIVE", raising=False)
    assert judged(skipped()) == "skipped"
    monkeypatch.setenv("SURVIVE_LIVE", "1")
    report = skipped()
    assert judged(report) == "failed"
    assert "no gcc" in report.longrepr


def test_what_may_be_skipped_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SURVIVE_LIVE", "1")
    monkeypatch.setattr(conftest, "MAY_BE_SKIPPED", {"tests/a.py": "no such card here"})
    assert judged(skipped()) == "skipped"
    assert judged(skipped("tests/b.py::test_b")) == "failed"
    assert conftest.allowed("tests/a.py::test_a") == "no such card here"


def test_an_expected_failure_is_no_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SURVIVE_LIVE", "1")
    assert judged(skipped(wasxfail="known")) == "skipped"
