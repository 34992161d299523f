"""Traces are read with their line numbers, and replayed at the rates of the phases."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from survive.plan.arrivals import Schedule
from survive.scenario.model import Phase
from survive.scenario.traces import read_trace, variation, with_lengths
from survive.units import SECOND

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:46.7805907,396,109
2023-11-16 18:15:50.68059,879,55
"""
MOONCAKE = """{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}
{"timestamp": 100.5, "input_length": 7, "output_length": 5, "hash_ids": [0]}
"""


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_both_public_forms_are_read(tmp_path: Path) -> None:
    azure = read_trace(write(tmp_path, "a.csv", AZURE))
    assert azure == (0, 100_000, 4_000_000)
    assert variation(azure) == 0.95  # gaps of 0.1 s and 3.9 s
    assert read_trace(write(tmp_path, "m.jsonl", MOONCAKE)) == (0, 100_500)


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.csv", AZURE.replace("TIMESTAMP", "WHEN"), "no column TIMESTAMP"),
        ("a.csv", AZURE.replace("18:15:50", "noon"), "line 4: '2023-11-16 noon.68059' is not like"),
        ("a.csv", AZURE.replace("18:15:50", "18:15:40"), "line 4 goes back in time"),
        ("a.csv", "".join(AZURE.splitlines(True)[:2]), "not two arrivals at different times"),
        ("m.jsonl", MOONCAKE + "[]\n", "line 3 has no timestamp"),
        ("m.jsonl", MOONCAKE + '{"timestamp": "x"}\n', "line 3 has no timestamp"),
        ("m.jsonl", "", "not two arrivals"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, name: str, text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_trace(write(tmp_path, name, text))


def test_lengths_have_one_name_and_are_numbers() -> None:
    azure = with_lengths({"TIMESTAMP": "x", "ContextTokens": "374", "GeneratedTokens": "44"})
    assert (azure["input_tokens"], azure["output_tokens"]) == (374, 44)
    assert with_lengths({"input_length": 6, "output_length": 5})["output_tokens"] == 5
    assert with_lengths({"q": "x"}) == {"q": "x"}
    assert "input_tokens" not in with_lengths({"ContextTokens": "many"})


def replay(trace: tuple[int, ...], rps: Fraction, seconds: int) -> tuple[np.ndarray, np.ndarray]:
    phase = Phase("p", 0, seconds * SECOND, rps, rps, shares={"a": 0.5, "b": 0.5})
    blocks = [*Schedule(3, "trace cv 2", [phase], ["a", "b"], trace).blocks()]
    firsts = [block.first for block in blocks]
    assert firsts == [*np.cumsum([0, *(len(block.row) for block in blocks)])][:-1]
    return (
        np.concatenate([block.intended_us for block in blocks]),
        np.concatenate([block.row for block in blocks]),
    )


def bursts(count: int) -> tuple[int, ...]:
    gaps = np.random.default_rng(5).gamma(0.25, 400_000, count)  # cv 2, ten a second
    return tuple(int(x) for x in np.cumsum(gaps) - gaps[0])


def test_at_its_own_rate_a_trace_is_replayed_to_its_own_clock_and_rows_go_with_it() -> None:
    trace = bursts(2000)
    own = Fraction((len(trace) - 1) * SECOND, trace[-1])
    times, rows = replay(trace, own, 30)
    assert 100 < len(times) < 1000
    assert np.max(np.abs(times - np.array(trace[: len(times)]))) <= 1
    assert rows.tolist() == [*range(len(times))]


def test_at_another_rate_it_keeps_its_shape_and_begins_anew() -> None:
    trace = bursts(700)
    times, rows = replay(trace, Fraction(100), 60)
    assert len(times) == pytest.approx(6000, abs=700)
    assert rows.tolist() == [n % 700 for n in range(len(times))]
    own = np.diff(np.array(trace)) / np.mean(np.diff(np.array(trace)))
    got = np.diff(times[:700]) / np.mean(np.diff(times[:700]))
    # The same distribution gap by gap, not only the same mean.
    assert np.max(np.abs(own - got)) < 0.01
    assert times[700] - times[699] == pytest.approx(10_000, abs=2)
    assert variation(tuple((times[:700] - times[0]).tolist())) == variation(trace)
