"""verdict.json: whole, ordered, and readable by anything."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import reporter_fakes as fakes

reporter = fakes.module("json").reporter


def test_it_is_the_verdict_and_nothing_else():
    verdict = fakes.failed()
    document = json.loads(reporter.render(fakes.run(), verdict))
    assert document == verdict.to_json()
    assert document["verdict"] == "failed"
    assert document["exit_code"] == 1
    assert document["objectives"][-1]["observed"] == "inf"


def test_the_bytes_do_not_depend_on_chance_nor_on_the_locale():
    verdict = replace(fakes.verdict(), reasons=("résumé\ud800",))
    first = reporter.render(fakes.run(), verdict)
    assert first == reporter.render(fakes.run(), verdict)
    assert first.isascii()
    assert first.endswith(b"}\n")
    keys = list(json.loads(first))
    assert keys == sorted(keys)


def test_a_number_that_json_lacks_is_an_error_not_a_lie():
    broken = replace(fakes.verdict(), objectives=(fakes.cell("a", "run", observed=float("nan")),))
    with pytest.raises(ValueError, match="not JSON compliant"):
        reporter.render(fakes.run(), broken)
