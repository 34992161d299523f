"""A run directory: written, killed, read, damaged."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic import MS, S, Story, down, scenario

from survive.errors import RecordError
from survive.record.events import read_events
from survive.record.hdr import fold
from survive.record.reader import Record
from survive.record.samples import Counts, Frame, Key, Outcome, Series
from survive.record.table import COLUMN, Table, TableBuilder
from survive.record.writer import RecordWriter

SHORT = scenario(faults=(), objectives=(), end_s=8)
OK = Key(0, "chat", -1, Series.LATENCY, "ok", "inference-0")


def one(value=1000):
    return Counts(*fold([value]))


def judged_part(table):
    return [getattr(table, name).tolist() for name in
            ("rows", "row_counts", "sets", "ends", "index", "count", "who", "why")]  # fmt: skip


def test_the_same_calls_give_the_same_bytes(tmp_path):
    story = Story(SHORT, down(4, 6))
    first, second = story.write(tmp_path / "a"), story.write(tmp_path / "b")
    names = {path.name for path in first.iterdir()}
    assert names == {"plan.json", "events.ndjson", "latency.hlog", "table.npz"}
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_the_table_and_the_log_tell_the_same(tmp_path):
    folder = Story(scenario(), down(20, 31, who="inference-1")).write(tmp_path / "run")
    fast, slow = Record.load(folder), Record.load(folder, from_hlog=True)
    assert fast.table.same(slow.table)
    assert fast.table.total(Outcome.FAILED) > 0
    assert fast.table.who_names == ("inference-1",)
    assert fast.table.why_names == ("reset",)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 1000))
def test_the_order_of_late_deltas_does_not_matter(seed):
    story = Story(scenario(end_s=40, rps=20), down(20, 31))
    plan = story.plan
    sets = [(key, counts) for _, key, counts in story.sets(plan)]
    shuffled = list(sets)
    random.Random(seed).shuffle(shuffled)
    tables = []
    for order in (sets, shuffled):
        builder = TableBuilder(plan)
        for key, counts in order:
            builder.add(key, counts)
        tables.append(builder.finish())
    assert judged_part(tables[0]) == judged_part(tables[1])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.lists(st.integers(1, 10**7), min_size=1)),
                min_size=1, max_size=12))  # fmt: skip
def test_split_deltas_add_up_to_the_whole(parts):
    """Merging is associative: any split of the samples gives the table of all at once."""
    plan = Story(SHORT).plan
    split, together = TableBuilder(plan), TableBuilder(plan)
    whole: dict[int, list[int]] = {}
    for at, values in parts:
        split.add(OK._replace(slice=at), Counts(*fold(values)))
        whole.setdefault(at, []).extend(values)
    for at, values in whole.items():
        together.add(OK._replace(slice=at), Counts(*fold(values)))
    assert split.finish().same(together.finish())


def test_counts_are_those_of_the_truth(tmp_path):
    table = Story(SHORT, down(4, 6, kinds=("search",))).record(tmp_path / "run").table
    plan = Story(SHORT).plan
    assert table.total(Series.SEND_LAG) == sum(map(sum, plan.planned))
    search = plan.kinds.index("search")
    failed = table.row_counts[:, COLUMN["failed"]]
    assert set(table.rows[failed > 0, 0]) == {search}
    assert {plan.slices[at][0] // S for at in table.rows[failed > 0, 1]} == {4, 5}


def test_seconds_for_charts(tmp_path):
    record = Story(SHORT, down(4, 6, kinds=("search",))).record(tmp_path / "run")
    rows = record.seconds(None)
    assert len(rows) == 8
    assert sum(row.n for row in rows) == sum(map(sum, record.plan.planned))
    assert all(row.ok + row.bad == row.n and row.planned_rps == 60 for row in rows)
    assert [row.t_s for row in rows if row.bad] == [4.0, 5.0]
    assert rows[4].p99_ms == "inf" and rows[1].p99_ms == pytest.approx(20, rel=1e-3)
    assert {row.p50_ms for row in record.seconds("search")[4:6]} == {"inf"}
    assert record.seconds("chat")[4].bad == 0
    with pytest.raises(KeyError):
        record.seconds("nobody")


def test_a_record_is_never_written_over(tmp_path):
    Story(SHORT).write(tmp_path / "run")
    with pytest.raises(RecordError, match="already holds a run"):
        RecordWriter(tmp_path / "run", Story(SHORT).plan)


def test_names_from_the_target_cannot_break_the_log(tmp_path):
    hostile = 'a,b:c d\n"e=\x00é' + "x" * 200
    plan = Story(SHORT).plan
    with RecordWriter(tmp_path / "run", plan) as writer:
        writer.event("run_ended", {"ended": "complete"}, 0)
        bad = OK._replace(outcome="failed", who=hostile, why=hostile)
        writer.frame(Frame(S, ((bad, one()),)))
    record = Record.load(tmp_path / "run")
    assert record.table.same(Record.load(tmp_path / "run", from_hlog=True).table)
    assert record.table.total(Outcome.FAILED) == 1
    assert len(record.table.who_names[0]) == 64


def test_a_flood_of_replica_ids_is_bounded(tmp_path):
    with RecordWriter(tmp_path / "run", Story(SHORT).plan) as writer:
        sets = tuple((OK._replace(who=f"r{n}"), one()) for n in range(1000))
        writer.frame(Frame(S, sets))
        writer.event("run_ended", {"ended": "complete"}, 0)
    table = Record.load(tmp_path / "run").table
    assert len(table.who_names) == 257
    assert table.total(Outcome.OK) == 1000 == table.who[:, 5].sum()


@pytest.mark.parametrize(
    "key",
    [
        OK._replace(slice=99),
        OK._replace(kind="nobody"),
        OK._replace(crossed=3),
        OK._replace(outcome=""),
        OK._replace(outcome="fine"),
    ],
)
def test_a_sample_of_another_plan_is_a_bug_and_said(tmp_path, key):
    with (
        RecordWriter(tmp_path / "run", Story(SHORT).plan) as writer,
        pytest.raises(ValueError, match=r"slice|mark|kind|outcome"),
    ):
        writer.frame(Frame(S, ((key, one()),)))


def test_unknown_events_raise_and_infinities_are_text(tmp_path):
    with RecordWriter(tmp_path / "run", Story(SHORT).plan) as writer:
        with pytest.raises(ValueError, match="party"):
            writer.event("party", {}, 0)
        with pytest.raises(ValueError, match="t_us"):
            writer.event("stopped", {"t_us": 1}, 0)
        writer.event("fault_observed", {"value": float("inf")}, -5)
    (event,) = read_events(tmp_path / "run" / "events.ndjson")
    assert (event.t_us, event.fields["value"]) == (-5, "inf")


KILLED = """
import sys, time
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from synthetic import Story, scenario, S
from survive.record.writer import RecordWriter
from survive.record.samples import Frame
from test_record_run_directory import OK, SHORT, one
writer = RecordWriter(Path(sys.argv[1]), Story(SHORT).plan)
writer.event("run_started", {}, -1)
for n in range(5):
    writer.frame(Frame((n + 1) * S, ((OK._replace(slice=n), one()),)))
print("written", flush=True)
sys.stdin.read()
"""


def test_what_a_killed_run_saw_can_be_read_but_gets_no_verdict(tmp_path):
    here = Path(__file__).resolve()
    root = here.parents[2]
    path = os.pathsep.join(map(str, (root, here.parent, here.parents[1])))
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder), str(here.parents[1])],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    try:
        assert process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    plan = Story(SHORT).plan
    assert json.loads((folder / "plan.json").read_text()) == json.loads(json.dumps(plan.to_json()))
    assert [e.name for e in read_events(folder / "events.ndjson")] == ["run_started"]
    table = Table.from_hlog(folder / "latency.hlog", plan, whole=False)
    assert table.total(Outcome.OK) == 5
    for from_hlog in (False, True):
        with pytest.raises(RecordError, match="cut short"):
            Record.load(folder, from_hlog=from_hlog)


def damage(name, change):
    def apply(folder):
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return apply


def bump(data):
    return data.replace(b'"version": 1', b'"version": 2')


def without_end(data):
    return b"".join(line for line in data.splitlines(keepends=True) if b"run_ended" not in line)


def older_table(folder):
    with np.load(folder / "table.npz") as stored:
        data = dict(stored)
    data["version"] = np.array(0)
    np.savez_compressed(folder / "table.npz", **data)


def remove(name):
    return lambda folder: (folder / name).unlink()


def test_the_folder_of_a_scenario_is_no_run_and_its_last_run_is_named(tmp_path):
    with pytest.raises(RecordError, match="is not a run directory") as caught:
        Record.load(tmp_path)
    assert caught.value.hint == "give one of runs/*/*"
    (tmp_path / "20261122T000000Z-1").mkdir()
    (tmp_path / "latest").symlink_to("20261122T000000Z-1")
    with pytest.raises(RecordError, match="is not a run directory") as caught:
        Record.load(tmp_path)
    assert caught.value.hint == f"its last run is {tmp_path}/latest"


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (remove("plan.json"), "plan.json is missing"),
        (remove("events.ndjson"), "events.ndjson cannot be read"),
        (remove("table.npz"), "table.npz is missing"),
        (damage("plan.json", lambda d: b""), "plan.json is damaged"),
        (damage("plan.json", lambda d: d[: len(d) // 2]), "plan.json is damaged"),
        (damage("plan.json", lambda d: b"[1]"), "not an object"),
        (damage("plan.json", bump), "version 2, not 1"),
        (damage("plan.json", lambda d: d.replace(b'"marks"', b'"marx"')), "plan.json is damaged"),
        (damage("plan.json", lambda d: d.replace(b'"seed": 11', b'"seed": 12')), "not the one"),
        (damage("events.ndjson", lambda d: b""), "cut short"),
        (damage("events.ndjson", lambda d: d[:-5]), "cut short inside line"),
        (damage("events.ndjson", without_end), "no run_ended"),
        (damage("events.ndjson", lambda d: b"{]\n" + d), "events.ndjson:1: not an event"),
        (damage("events.ndjson", lambda d: d.replace(b"run_started", b"party")), "not an event"),
        (damage("events.ndjson", lambda d: d.replace(b"real", b"sham")), "not the one"),
        (damage("table.npz", lambda d: b""), "table.npz is damaged"),
        (damage("table.npz", lambda d: d[: len(d) // 2]), "table.npz is damaged"),
        (damage("table.npz", lambda d: d[:600] + b"\xff\xff\xff" + d[603:]), "is damaged"),
        (older_table, "version 0, not 2"),
        (damage("manifest.json", lambda d: b"{"), "manifest.json is damaged"),
    ],
)
def test_a_record_that_is_not_whole_is_an_error_and_never_a_verdict(tmp_path, break_it, says):
    folder = Story(SHORT).write(tmp_path / "run")
    (folder / "manifest.json").write_text("{}")
    Record.load(folder)
    break_it(folder)
    with pytest.raises(RecordError, match=says):
        Record.load(folder)


def test_random_damage_to_the_table_never_goes_unnoticed(tmp_path):
    folder = Story(SHORT).write(tmp_path / "run")
    whole, _ = Table.load(folder / "table.npz")
    data = (folder / "table.npz").read_bytes()
    rng, refused = random.Random(5), 0
    for _ in range(300):
        broken = bytearray(data)
        for _ in range(rng.choice([1, 1, 3, 20])):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        (folder / "table.npz").write_bytes(broken[: rng.choice([len(broken), 900])])
        try:
            table, _ = Table.load(folder / "table.npz")
        except RecordError:
            refused += 1
        else:  # only a byte that means nothing (a date, a flag) was hit
            assert table.same(whole)
    assert refused > 250


def test_an_empty_or_missing_folder_is_no_record(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(RecordError):
            Record.load(folder)


def test_a_table_of_an_older_version_has_fewer_columns_and_is_read(tmp_path):
    record = Story(scenario()).record(tmp_path / "run")
    table, file = record.table, tmp_path / "table.npz"
    replace(table, row_counts=table.row_counts[:, :-2]).save(file, {})
    assert Table.load(file)[0].same(table)


def test_a_log_of_another_plan_is_refused(tmp_path):
    first = Story(SHORT).write(tmp_path / "a")
    Story(scenario(faults=(), objectives=(), end_s=20)).write(tmp_path / "b")
    (first / "latency.hlog").write_bytes((tmp_path / "b" / "latency.hlog").read_bytes())
    with pytest.raises(RecordError, match="no slice"):
        Record.load(first, from_hlog=True)


def test_live_tells_of_what_settled_lately(tmp_path):
    with RecordWriter(tmp_path / "run", Story(SHORT).plan) as writer:
        assert writer.live(0).n == 0
        bad = OK._replace(outcome="failed", why="reset")
        for second in range(8):
            key = bad if second >= 6 else OK
            ttft = OK._replace(series=Series.TTFT, who="")
            writer.frame(Frame((second + 1) * S, (
                (key._replace(slice=second), Counts(*fold([100 * MS] * 10))),
                (ttft._replace(slice=second), Counts(*fold([50 * MS] * 10))),
            )))  # fmt: skip
        live = writer.live(8 * S)
    assert (live.n, live.bad, live.ok, live.achieved_rps) == (50, 20, 30, 6)
    assert live.offered_rps == 60
    assert live.settled(2 * S) == (20, 20)
    assert live.settled(8 * S, ("chat",)) == (80, 20)
    assert live.settled(8 * S, ("search",)) == (0, 0)
    assert live.kinds["chat"].ttft_p95_ms == pytest.approx(50, rel=1e-3)
    assert live.kinds["search"].latency_p95_ms is None


def test_a_long_run_is_kept_in_columns(tmp_path):
    """Memory per slice and segment: an hour of two kinds stays small while it is written."""
    hour = scenario(faults=(), objectives=(), end_s=3600)
    plan = Story(hour).plan
    builder = TableBuilder(plan)
    counts = Counts(*fold(range(1000, 60_000, 1000)))
    for at in range(len(plan.slices)):
        for kind in plan.kinds:
            builder.add(Key(at, kind, -1, Series.LATENCY, "ok"), counts)
    assert sum(len(entries) for entries in builder._open.values()) < 5_000
    table = builder.finish()
    assert len(table.sets) < 160
    assert table.total(Outcome.OK) == 59 * 2 * len(plan.slices)
