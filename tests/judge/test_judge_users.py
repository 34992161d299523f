"""A closed model is judged on what its users asked, if they were there."""

from __future__ import annotations

import io
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from rich.console import Console
from synthetic import MS, S, Story, scenario

from reporters import words
from reporters.episodes import print_episodes
from reporters.terminal import TerminalReporter
from survive.judge.judge import judge
from survive.judge.verdict import People, Verdict, Word
from survive.record.hdr import fold
from survive.record.reader import Record
from survive.record.samples import Counts, Key, Outcome, Series
from survive.scenario.model import LoadSpec, Metric, Objective, Phase, Scenario, Users

SHARES = {"chat": 0.5, "search": 0.5}
EACH = 40  # requests of a kind in a second


def closed() -> Scenario:
    nothing = Fraction(0)
    phases = (
        Phase("come", 0, 4 * S, nothing, nothing, shares=SHARES, users=Users(1, 10, S)),
        Phase("stay", 4 * S, 24 * S, nothing, nothing, shares=SHARES, users=Users(10, 10, S)),
    )
    good = Objective("good", Metric.SUCCESS, 0.99, None, ("chat", "search"), "steady")
    fast = Objective("fast", Metric.LATENCY, 50 * MS, 0.95, ("chat",), "steady")
    made = scenario(phases, faults=(), objectives=(good, fast))
    return replace(made, load=LoadSpec("poisson", Fraction(1), 10, 10, phases))


def asked(failed: int = 0, unanswered: int = 0) -> tuple[tuple[Key, Counts], ...]:
    found = []
    for second in range(24):
        for kind in SHARES:
            fates = {Outcome.OK: EACH - failed - unanswered, Outcome.FAILED: failed}
            for outcome, n in fates.items():
                key = Key(second, kind, -1, Series.LATENCY, outcome)
                found += [(key, Counts(*fold([20 * MS] * n)))] * bool(n)
            for series in (Series.LANE_WAIT, Series.SEND_LAG, Series.ATTEMPT):
                found.append((Key(second, kind, -1, series), Counts(*fold([10] * EACH))))
    return tuple(found)


def there(least: int = 10) -> tuple[tuple[int, Series, int], ...]:
    coming = [3, 5, 8, 10]
    return tuple(
        (second * S, Series.USERS, coming[second] if second < 4 else least) for second in range(24)
    )


def judged(folder: Path, story: Story) -> tuple[Record, Verdict]:
    record = story.record(folder)
    return record, judge(record, story.scenario)


def test_sent_is_settled_and_nothing_else_was_planned(tmp_path: Path) -> None:
    record, verdict = judged(tmp_path, Story(closed(), extra=asked(), harness=there()))
    assert verdict.verdict is Word.SURVIVED, verdict.reasons
    assert [cell.n for cell in verdict.objectives] == [20 * EACH] * 3
    load = verdict.load
    assert (load.planned, load.offered_rps, load.model) == (None, None, "closed")
    assert load.users == People(10, 1.0) and load.sent == 24 * 2 * EACH
    written = verdict.to_json()["load"]
    assert isinstance(written, dict)
    assert written["model"] == "closed" and written["planned"] is None
    text = TerminalReporter().render(record, verdict).decode()
    assert "closed loop: latency excludes the time users could not ask; see" in text
    assert "SURVIVED synthetic (closed loop)" in text
    assert "10 at most, there for 100 % of their time" in text
    assert "offered" not in text and "planned" not in text
    page = io.StringIO()
    console = Console(file=page, width=120)
    print_episodes(console, [(1, "a", 0, verdict)])
    assert words.CLOSED in page.getvalue()


def test_failures_break_it(tmp_path: Path) -> None:
    _, verdict = judged(tmp_path, Story(closed(), extra=asked(failed=4), harness=there()))
    assert verdict.verdict is Word.FAILED


def test_users_who_were_not_there_take_away_the_green_and_not_the_red(tmp_path: Path) -> None:
    few = there(least=9)
    _, verdict = judged(tmp_path / "a", Story(closed(), extra=asked(), harness=few))
    assert verdict.verdict is Word.INCONCLUSIVE
    assert "the load was not delivered: 90.0% of the users of stay were there" in verdict.reasons
    _, verdict = judged(tmp_path / "b", Story(closed(), extra=asked(failed=4), harness=few))
    assert verdict.verdict is Word.FAILED
    _, verdict = judged(tmp_path / "c", Story(closed(), extra=asked()))
    assert verdict.verdict is Word.INCONCLUSIVE


def test_what_never_came_to_an_end_does_not_add_up(tmp_path: Path) -> None:
    _, verdict = judged(tmp_path, Story(closed(), extra=asked(unanswered=1), harness=there()))
    assert verdict.verdict is Word.INCONCLUSIVE
    assert "800 sent, yet 780 came to an end" in " ".join(verdict.reasons)
