"""The time axis: what happened at one moment stands in one column, in every row."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reporter_fakes import FakeSecond, S, module, phase, plan, seconds

axis = module("axis")
glyphs = module("glyphs")
PLAIN, ASCII = glyphs.UNICODE, glyphs.glyphs_for("ascii")


def plain(row):
    return "".join(character for character, _ in row)


@given(st.integers(1, 200), st.integers(1, 90_000_000_000), st.floats(0, 1))
def test_every_moment_has_a_column_and_the_edges_enclose_it(columns, end_us, part):
    made = axis.Axis(end_us, columns)
    at = made.column(part * end_us)
    assert 0 <= at < columns
    assert made.edge_s(at) * S <= part * end_us * (1 + 1e-9) + 1


def test_band_phase_and_strip_agree_on_the_column():
    made = axis.Axis(84 * S, 84)
    band = axis.Band(32 * S, 40 * S, 50 * S, back_us=44 * S)
    row = plain(axis.band_row(made, [band], PLAIN))
    assert row == " " * 32 + "┣━━━━━━━┫┄┄┄●┄┄┄┄┄" + " " * 34
    bad = axis.resample(made, seconds())
    assert [column for column, rows in enumerate(bad) if any(r.bad for r in rows)] == [32, 33]
    assert plain(axis.phase_row(made, plan(), PLAIN)).index("│growth") == 10


def test_back_within_the_column_of_the_heal_is_seen_beside_it():
    made = axis.Axis(84 * S, 42)
    held = axis.Band(32 * S, 40 * S, 50 * S, back_us=40.2 * S)
    killed = axis.Band(60 * S, None, 70 * S, back_us=60.0 * S)
    last = axis.Band(76 * S, 83 * S, 84 * S, back_us=83.5 * S)
    row = plain(axis.band_row(made, [held, killed, last], PLAIN))
    assert row.strip() == "┣━━━┫●┄┄┄     ╋●┄┄┄   ┣━━┫"


def test_one_shot_and_ascii():
    made = axis.Axis(20 * S, 20)
    bands = [axis.Band(3 * S, None, 8 * S), axis.Band(10 * S, 12 * S, 15 * S)]
    assert plain(axis.band_row(made, bands, ASCII)) == "   X....  [=]..     "


def test_a_fault_shorter_than_a_column_is_still_there():
    made = axis.Axis(3600 * S, 60)
    assert "╋" in plain(axis.band_row(made, [axis.Band(100 * S, 101 * S, 101 * S)], PLAIN))


@pytest.mark.parametrize("columns", [20, 84, 168, 500])
def test_no_second_is_lost_or_told_of_the_wrong_time(columns):
    made = axis.Axis(84 * S, columns)
    found = axis.resample(made, seconds())
    if columns <= 84:
        assert [row.t_s for rows in found for row in rows] == [float(t) for t in range(84)]
    for column, rows in enumerate(found):
        assert rows
        for row in rows:
            assert row.t_s < made.edge_s(column + 1)
            assert row.t_s + 1 > made.edge_s(column)


def test_resample_leaves_unknown_seconds_blank():
    found = axis.resample(axis.Axis(4 * S, 4), [FakeSecond(1.0, 3, 3, 0, 1.0, 2.0)])
    assert [len(rows) for rows in found] == [0, 1, 0, 0]


def test_bars():
    assert axis.linear([None, 0.0, 0.1, 50.0, 100.0], 100.0, PLAIN) == [" ", "·", "▁", "▄", "█"]
    assert axis.logarithmic([None, 1.0, 10.0, 100.0, "inf"], PLAIN) == [" ", "▁", "▄", "█", "∞"]
    assert axis.logarithmic([], PLAIN) == []
    assert axis.linear([0.0], 0.0, PLAIN) == ["·"]


def test_a_calm_latency_does_not_fill_its_strip():
    assert set(axis.logarithmic([100.0, 104.0, 109.0], PLAIN)) <= {"▁", "▂"}


@pytest.mark.parametrize("total_s", [1, 7, 84, 600, 3600, 86_400])
def test_ticks_stand_at_their_moment_and_do_not_touch(total_s):
    made = axis.Axis(total_s * S, 53)
    row = plain(axis.tick_row(made, PLAIN))
    assert len(row) == 53
    assert row.startswith("╵0s")
    assert "s╵" not in row


def test_wide_and_long_phase_names_keep_the_columns():
    phases = (phase("負荷試験の長い名前", 0, 5, 1, 1), phase("a" * 99, 5, 10, 1, 1))
    row = axis.text(axis.phase_row(axis.Axis(10 * S, 20), plan(phases=phases), PLAIN))
    assert row.cell_len == 20
    assert row.plain.endswith("│aaaaaaaa…")
