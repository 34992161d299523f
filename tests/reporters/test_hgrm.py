"""Percentile distributions as HdrHistogram prints them: read back, and compared with the truth."""

from __future__ import annotations

import math
import random
import re
from dataclasses import replace
from itertools import pairwise

import pytest
import synthetic
from hdrh.histogram import HdrHistogram
from reporter_fakes import module
from synthetic import MS, OUTAGE, Fate, Story, scenario

from survive.errors import RecordError, UsageError
from survive.judge.judge import judge
from survive.record.hdr import HIGHEST_US, fold, highest_of, index_of
from survive.record.samples import Outcome
from survive.scenario.model import Metric, Objective

hgrm = module("hgrm")
LINE = re.compile(r" *(\d+\.\d{3}) (\d\.\d{12}) +(\d+)( +\d+\.\d\d)?")
EVEN = Objective("even", Metric.ITL, 800 * MS, 0.5, ("chat",), "each fault")
SLOW = Objective("slow", Metric.LATENCY, 800 * MS, 0.9, ("chat",), "each fault")


def read(text: str):
    """(rows, numbers of the footer, comments); rows are (ms, level, count, 1/(1-level) or None)."""
    lines = text.splitlines()
    assert lines[0].split() == ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]
    assert lines[1] == ""
    rows = []
    for line in lines[2:]:
        if line.startswith("#"):
            continue
        found = LINE.fullmatch(line)
        assert found, line
        inverse = float(found[4]) if found[4] else None
        rows.append((float(found[1]), float(found[2]), int(found[3]), inverse))
    footer = {
        name: float(value)
        for line in lines
        if line.startswith("#[")
        for name, value in re.findall(r"(\w[\w ]*?) *= +([\d.]+)", line)
    }
    comments = [line[2:] for line in lines if line.startswith("# ")]
    assert lines[-len(comments) :] == [f"# {said}" for said in comments]
    return rows, footer, comments


def drawn(values_us, failed=0) -> str:
    counts = list(zip(*fold(values_us), strict=True))
    found = hgrm._Found(counts, len(values_us), failed)
    lines = ["Value Percentile TotalCount 1/(1-Percentile)", "", *hgrm._rows(found, 1000)]
    return "\n".join([*lines, *hgrm._footer(found, 1000), "# end"])


@pytest.mark.parametrize("n", [1, 2, 3, 10, 99, 5000])
def test_every_row_is_true_of_the_values_and_the_footer_is_the_library_s(n):
    chance = random.Random(n)
    values = [int(chance.lognormvariate(11, 1.5)) + 1 for _ in range(n)]
    library = HdrHistogram(1, HIGHEST_US, 3)
    for value in values:
        library.record_value(value)
    rows, footer, _ = read(drawn(values))
    for value_ms, level, seen, inverse in rows:
        us = round(value_ms * 1000)
        assert seen == sum(v <= us for v in values)
        rank = max(1, math.ceil(round(level * n, 9)))
        assert us == highest_of(index_of(sorted(values)[rank - 1]))
        assert inverse is None or inverse == pytest.approx(1 / (1 - level), abs=0.006)
    assert rows[-1][1:] == (1.0, n, None) and all(row[3] for row in rows[:-1])
    assert round(rows[-1][0] * 1000) == library.get_max_value()
    assert footer["Max"] == rows[-1][0] and footer["Total count"] == n
    assert footer["Mean"] * 1000 == pytest.approx(library.get_mean_value(), rel=1e-3)
    assert footer["StdDeviation"] * 1000 == pytest.approx(library.get_stddev(), rel=1e-3, abs=1)
    assert (footer["Buckets"], footer["SubBuckets"]) == (library.bucket_count, 2048)


def test_levels_are_five_for_each_half_of_the_way():
    rows, _, _ = read(drawn(range(1, 2000)))
    levels = [round(level, 6) for _, level, _, _ in rows]
    assert levels[:6] == [0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert levels[6:12] == [0.55, 0.6, 0.65, 0.7, 0.75, 0.775]
    steps = [later - level for level, later in pairwise(levels[:-1])]
    assert all(step <= before + 2e-6 for before, step in pairwise(steps))


def test_rows_end_where_the_good_ones_do_on_the_same_levels_for_every_plot():
    """The plotter takes the levels of the first file for all: they must be the same grid."""
    whole, _, _ = read(drawn(range(1, 901)))
    part, footer, _ = read(drawn(range(1, 901), failed=100))
    grid = [row[1] for row in whole if row[3]]
    assert [row[1] for row in part if row[3]] == grid[: len(part) - 1]
    assert part[-1] == (0.900, 0.9, 900, None)
    assert footer["Total count"] == 900
    p50 = next(row for row in part if row[1] == 0.5)
    assert p50[2] == 500  # of a thousand, not of nine hundred


def test_nothing_measured_is_no_row():
    rows, footer, _ = read(drawn([], failed=7))
    assert rows == [] and footer["Total count"] == 0


# ------------------------------------------------------------------ of a record


def fate(t_us, kind):
    if kind == "chat" and OUTAGE.at_us <= t_us < OUTAGE.at_us + OUTAGE.for_us and t_us % 4 == 0:
        return Fate(Outcome.FAILED, after=1 * MS, why="status:502")
    return Fate(after=(30 if kind == "chat" else 5) * MS + t_us % 40 * MS)


@pytest.fixture(scope="module")
def story():
    limits = {o.name: o for o in (SLOW, EVEN, *synthetic.scenario().objectives.values())}
    return Story(scenario(objectives=tuple(limits.values())))


@pytest.fixture(scope="module")
def record(story, tmp_path_factory):
    story.fate = fate
    return story.record(tmp_path_factory.mktemp("hgrm") / "run")


def of(record, **part):
    return read(hgrm.reporter.choose(**part).render(record, None).decode())


def test_a_percentile_read_here_is_the_one_that_was_judged(record, story):
    cell = next(
        c
        for c in judge(record, story.scenario).objectives
        if (c.name, c.request, c.window) == ("slow", "chat", "fault:outage")
    )
    rows, _, comments = of(record, request="chat", window="fault:outage")
    at_90 = [row for row in rows if row[1] >= 0.9]
    assert cell.observed == "inf" and not at_90  # a quarter failed
    assert comments[1].startswith(f"{cell.bad} of {cell.n} failed")
    assert rows[-1][1] == pytest.approx(1 - cell.bad / cell.n, abs=1e-9)
    assert rows[-1][2] == cell.n - cell.bad
    steady, _, comments = of(record, request="chat", window="steady")
    fast = next(c for c in judge(record, story.scenario).objectives if c.name == "fast")
    assert steady[-1][1:3] == (1.0, fast.n) and len(comments) == 1


def test_unasked_it_is_latency_of_all_over_the_run(record):
    rows, footer, comments = read(hgrm.reporter.render(record, None).decode())
    assert comments[0] == "survive: latency in ms of all requests during run; synthetic, seed 11"
    plan, table = record.plan, record.table
    assert footer["Total count"] < table.total(Outcome.OK)  # less those of warm-up
    parts = [of(record, request=kind)[1]["Total count"] for kind in plan.kinds]
    assert footer["Total count"] == sum(parts) and rows[-1][2] == sum(parts)


def test_gaps_are_many_and_a_stream_that_failed_is_one(record, story):
    cell = next(c for c in judge(record, story.scenario).objectives if c.name == "even")
    rows, footer, _ = of(record, series="itl", request="chat", window="fault:outage")
    good = cell.n - cell.bad
    assert footer["Total count"] == 2 * good and rows[-1][2] == 2 * good
    assert rows[-1][1] == pytest.approx(good / cell.n, abs=1e-9)


def test_every_series_and_what_has_none(record):
    assert of(record, series="itl", window="steady")[0][0][0] == pytest.approx(5, rel=1e-3)
    of_chat, all_of_them = (of(record, series="ttft", request=r)[1] for r in ("chat", ""))
    assert of_chat == all_of_them  # searches have no first token and did not fail to give one
    for series in ("service_time", "tpot", "tokens", "lane_wait", "send_lag", "attempt"):
        of(record, series=series)
    for wrong in ({"series": "users"}, {"request": "chart"}):
        with pytest.raises(UsageError) as caught:
            of(record, **wrong)
        assert "known" in caught.value.hint or "'chat'" in caught.value.hint
    with pytest.raises(UsageError, match="search is none of those"):
        of(record, series="ttft", request="search")
    with pytest.raises(RecordError, match="no window 'fault:x'"):
        of(record, window="fault:x")


def test_names_of_others_stay_comments(record):
    named = replace(record, plan=replace(record.plan, name="a\n1 2 3 4\x1b[0m"))
    rows, _, comments = read(hgrm.reporter.render(named, None).decode())
    assert rows and comments == [
        "survive: latency in ms of all requests during run; a?1 2 3 4?[0m, seed 11",
        *comments[1:],
    ]
    assert (1, 2, 3, 4) not in rows
