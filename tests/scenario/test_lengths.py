"""The lengths of public traces: as long as they were, answers hanging on prompts as they did."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from survive.errors import ScenarioError
from survive.load.template import compile_requests
from survive.scenario.lengths import (
    BANDS,
    FIELDS,
    INPUT_LEVELS,
    LENGTHS,
    OUTPUT_LEVELS,
    preset_rows,
)
from survive.scenario.loader import load_scenario

# Of the traces themselves (benchmarks/lengths.py): mean, p10, p25, p50, p75, p90, p95, p99.
SHARES = (10, 25, 50, 75, 90, 95, 99)
TRACES = {
    "azure-conv": (
        (1154.7, 207, 396, 1020, 1189, 2734, 4083, 4142),
        (211.1, 54, 85, 129, 395, 424, 451, 601),
    ),
    "azure-code": (
        (2047.8, 147, 578, 1469, 2744, 5188, 7303, 7436),
        (27.9, 7, 9, 13, 24, 55, 90, 251),
    ),
}
SCENARIO = """
survive: 1
name: lengths
target:
  driver: external
  entry: web
  services: {web: {url: "http://127.0.0.1:9"}}
  allow: {hosts: [127.0.0.1]}
requests:
  chat:
    post: /v1/completions
    data: azure-code
    json: {prompt: "{{ row.prompt }}", max_tokens: "{{ row.output_tokens }}"}
load:
  arrivals: azure-code
  phases: [{name: flat, rate: 20/s, for: 4s}]
objectives: {answers: {metric: success, min: 50%, during: run}}
"""


def lengths(name: str) -> np.ndarray:
    return np.array([(row["input_tokens"], row["output_tokens"]) for row in preset_rows(name)])


@pytest.mark.parametrize("name", [*TRACES])
def test_rows_are_as_long_as_the_calls_of_the_trace(name: str) -> None:
    found = lengths(name)
    for column, (mean, *quantiles) in enumerate(TRACES[name]):
        assert found[:, column].mean() == pytest.approx(mean, rel=0.025)
        assert np.percentile(found[:, column], SHARES) == pytest.approx(quantiles, rel=0.06, abs=1)


@pytest.mark.parametrize("name", [*TRACES])
def test_drawn_as_arrivals_draw_them_they_still_are(name: str) -> None:
    drawn = lengths(name)[np.random.default_rng(5).integers(0, 1 << 32, 20_000) % 1_000]
    for column, (mean, *_) in enumerate(TRACES[name]):
        assert drawn[:, column].mean() == pytest.approx(mean, rel=0.06)


def test_answers_hang_on_prompts() -> None:
    prompts, answers = lengths("azure-conv").T
    middle = (prompts > 700) & (prompts < 1_300)
    assert np.median(answers[middle]) == pytest.approx(400, rel=0.06)
    assert np.median(answers[~middle]) == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize("name", [*TRACES])
def test_a_prompt_has_as_many_words_and_no_two_begin_alike(name: str) -> None:
    rows = [*preset_rows(name)]
    assert all(tuple(row) == FIELDS for row in rows)
    assert all(len(str(row["prompt"]).split()) == row["input_tokens"] for row in rows)
    assert len({str(row["prompt"])[:80] for row in rows}) > 990  # the shortest may coincide
    assert rows == [*preset_rows(name)]


def test_the_tables_are_whole() -> None:
    for table in LENGTHS.values():
        assert len(table.inputs) == len(INPUT_LEVELS) and len(table.outputs) == BANDS
        for values in (table.inputs, *table.outputs):
            assert list(values) == sorted(values) and values[0] >= 1
        assert {len(values) for values in table.outputs} == {len(OUTPUT_LEVELS)}


def test_templates_have_them_as_those_of_a_replayed_trace(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    file = tmp_path / "lengths.survive.yaml"
    file.write_text(SCENARIO)
    (chat,) = compile_requests(load_scenario(file), "")
    asked = [json.loads(request.body) for request in chat.requests]
    assert [one["max_tokens"] for one in asked] == lengths("azure-code")[:, 1].tolist()
    assert [len(one["prompt"].split()) for one in asked] == lengths("azure-code")[:, 0].tolist()
    file.write_text(SCENARIO.replace("row.prompt", "row.promt"))
    with pytest.raises(ScenarioError) as refused:
        load_scenario(file)
    assert [p.message for p in refused.value.problems] == ["the rows of azure-code have no 'promt'"]
