"""Does `survive diff` call a change where there is none, and does it find one that is planted?

On the virtual host, where nothing but the seed differs between runs of the same stack:

- *unchanged*: many runs of one scenario; 200 comparisons of five a side, and 200 of ten, from
  fresh shuffles: within one shuffle no run is in two comparisons. Every `worse` is a false alarm.
- *planted*: every claim of the exam, the sound stack against the weak one, five seeds a side.

    python benchmarks/diff.py -o benchmarks/results-diff.md      (an hour on one core)
"""

from __future__ import annotations

import argparse
import pickle
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from survive.catalog import Catalog, builtin_root
from survive.exam.cells import HEALTHY, Cell, Claim, Weather
from survive.exam.command import Asked, claims_asked
from survive.exam.sitting import Sitting, in_worker, scenario_of
from survive.host.command import exam_context
from survive.host.virtual import perform_virtual
from survive.judge.compare import Episode, Given, compare
from survive.judge.comparison import Change, Comparison
from survive.judge.judge import judge
from survive.judge.statistics import ALPHA, binomial_cdf
from survive.plan.chance import bits
from survive.record.reader import Record
from survive.record.writer import RecordWriter
from survive.scenario.loader import load_scenario
from survive.scenario.model import Scenario

SCENARIOS = builtin_root() / "scenarios"
COMPARISONS = 200
# The quickstart's, and more that vary: a success of 100 % in every run cannot raise an alarm.
OBJECTIVES = """objectives={
    answers: {metric: success, min: 95%, during: steady},
    fast-first-token: {metric: ttft.p95, max: 800ms, of: chat, during: steady},
    typical-first-token: {metric: ttft.p50, max: 800ms, of: chat, during: steady},
    whole-answer: {metric: latency.p90, max: 5s, of: chat, during: steady},
    degrade-not-die: {metric: success, min: 85%, during: each fault},
    slower-not-dead: {metric: latency.p75, max: 5s, of: chat, during: each fault},
    work: {metric: goodput, min: 1/s, of: chat, during: run},
    comes-back: {metric: recovery, max: 2s, stable_for: 1500ms}}"""


class Unwatched:
    def event(self, name, fields, t_us): ...

    def tick(self, t_us, live): ...


def perform(scenario: Scenario, file: Path) -> Episode:
    """One virtual run as a comparison sees it, without its histograms."""
    with tempfile.TemporaryDirectory(prefix="survive-diff-") as scratch:
        folder = Path(scratch)
        context = exam_context(scenario, Catalog(file), folder, virtual=True)
        with RecordWriter(folder, context.plan) as writer:
            error = perform_virtual(context, writer, Unwatched())
        if error is not None:
            raise error
        record = replace(Record.load(folder), manifest={"host": "virtual"})
        return replace(Episode.of(record, scenario, judge(record, scenario)), spectra={})


def kept(folder: Path | None, name: str, make: Callable[[], Episode]) -> Episode:
    """From an earlier run of this benchmark, if it was told to keep what it made."""
    path = folder / f"{name}.pickle" if folder else None
    if path is not None and path.exists():
        found: Episode = pickle.loads(path.read_bytes())
        return found
    made = make()
    if path is not None:
        path.write_bytes(pickle.dumps(made))
    return made


def unchanged(folder: Path | None, seed: int) -> Episode:
    return kept(folder, f"unchanged-{seed}", lambda: _unchanged(seed))


def _unchanged(seed: int) -> Episode:
    file = SCENARIOS / "quickstart.survive.yaml"
    scenario = load_scenario(
        file, sets=(f"seed={seed}", OBJECTIVES), profile="ci", catalog=Catalog(file)
    )
    return perform(scenario, file)


def planted(folder: Path | None, asked: tuple[str, str, int]) -> Episode:
    return kept(folder, "-".join(map(str, asked)), lambda: _planted(*asked))


def _planted(name: str, weakness: str, seed: int) -> Episode:
    file = SCENARIOS / f"{name}.survive.yaml"
    sitting = Sitting(Cell(name, weakness, Weather.FAULT, seed), file, None)
    return perform(scenario_of(sitting), file)


def said(now: int, of: int, what: str, began_s: float) -> None:
    if now % 50 == 0 or now == of:
        took = time.monotonic() - began_s
        print(f"{what}: {now} of {of} runs, {took:.0f} s", file=sys.stderr, flush=True)


# -------------------------------------------------------------------------------- no change


@dataclass
class Alarms:
    """Of many comparisons without a change."""

    side: int
    comparisons: int = 0
    cells: int = 0
    words: Counter[Change] = field(default_factory=Counter)
    objectives: Counter[str] = field(default_factory=Counter)  # with a cell that is "worse"
    alone: Counter[str] = field(default_factory=Counter)  # with one that would be, unadjusted
    any_alone: int = 0

    def see(self, found: Comparison) -> None:
        self.comparisons += 1
        self.cells = len(found.cells)
        self.words[found.change] += 1
        self.objectives.update({c.name for c in found.cells if c.change is Change.WORSE})
        single = {c.name for c in found.cells if c.worse and c.worse.alone <= ALPHA}
        self.alone.update(single)
        self.any_alone += bool(single)


def shuffled(episodes: Sequence[Episode], deal: int) -> list[Episode]:
    words = [bits(deal, 1, at, 1)[0] for at in range(len(episodes))]
    return [episodes[at] for at in sorted(range(len(words)), key=lambda at: words[at])]


def dealt(episodes: Sequence[Episode], side: int) -> Iterator[tuple[Given, Given]]:
    """Pairs of sides; within one deal no run is in two."""
    made = deal = 0
    while made < COMPARISONS:
        order = shuffled(episodes, deal)
        for at in range(0, len(order) - 2 * side + 1, 2 * side):
            if made == COMPARISONS:
                return
            base, new = order[at : at + side], order[at + side : at + 2 * side]
            yield Given("base", base), Given("new", new)
            made += 1
        deal += 1


def alarms(episodes: Sequence[Episode], side: int) -> Alarms:
    found = Alarms(side)
    for base, new in dealt(episodes, side):
        found.see(compare(base, new))
    return found


def most_by_chance(n: int) -> int:
    """As many false alarms as an honest 5 % has in 99 of 100 such benchmarks."""
    return next(k for k in range(n + 1) if binomial_cdf(k, n, ALPHA) >= 0.99)


# -------------------------------------------------------------------------------- planted


@dataclass(frozen=True)
class Found:
    claim: Claim
    word: Change
    cells: tuple[str, ...]  # that are worse

    @property
    def by_claim(self) -> bool:
        return any(cell.startswith(f"{self.claim.objective} ") for cell in self.cells)


def find(claim: Claim, healthy: Sequence[Episode], weak: Sequence[Episode]) -> Found:
    found = compare(Given("base", healthy), Given("new", weak))
    worse = [c for c in found.cells if c.change is Change.WORSE]
    named = (f"{c.name} {c.request} {c.window}".replace("  ", " ") for c in worse)
    return Found(claim, found.change, tuple(named))


# ----------------------------------------------------------------------------------- page


def page(seen: Sequence[Alarms], runs: int, found: Sequence[Found], side: int) -> str:
    lines = [
        "# `survive diff` where nothing changed, and where something did",
        "",
        "Virtual host; written by `benchmarks/diff.py`, which says what is compared with what.",
    ]
    if seen:
        lines += list(_of_alarms(seen, runs))
    if found:
        lines += list(_of_planted(found, side))
    return "\n".join(lines) + "\n"


def _of_alarms(seen: Sequence[Alarms], runs: int) -> Iterator[str]:
    yield from ("", "## No change", "")
    yield (
        f"{runs} runs of `quickstart` (profile `ci`, {seen[0].cells} cells), each with a seed of "
        f"its own. At 5 % an honest test has up to {most_by_chance(COMPARISONS)} false alarms of "
        f"{COMPARISONS} in 99 of 100 such tables. The last line is why p-values are adjusted."
    )
    yield from ("", f"| | {' | '.join(f'{one.side} a side' for one in seen)} |")
    yield "|---" * (len(seen) + 1) + "|"
    for word in Change:
        yield _row(f"comparisons that are `{word}`", [one.words[word] for one in seen])
    for name in sorted({name for one in seen for name in one.alone}):
        yield _row(f"`worse` in `{name}`", [one.objectives[name] for one in seen])
    yield _row("a cell worse at 5 % by itself, unadjusted", [one.any_alone for one in seen])


def _row(name: str, values: Sequence[int]) -> str:
    return f"| {name} | {' | '.join(map(str, values))} |"


def _of_planted(found: Sequence[Found], side: int) -> Iterator[str]:
    hits = sum(one.word is Change.WORSE for one in found)
    yield from ("", "## Planted weaknesses", "")
    yield (
        f"{hits} of {len(found)} claims of the exam are found as `worse` with {side} seeds a side, "
        f"{sum(one.by_claim for one in found)} of them by the objective that claims to."
    )
    yield from ("", "| weakness | scenario | answer | claimed objective | cells that are worse |")
    yield "|---|---|---|---|---|"
    for one in found:
        cells = ", ".join(one.cells[:3]) + (f", {len(one.cells) - 3} more" * (len(one.cells) > 3))
        mark = "found" if one.by_claim else "not by it"
        yield (
            f"| {one.claim.weakness} | {one.claim.scenario} | {one.word} | "
            f"{one.claim.objective}: {mark} | {cells} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="of the unchanged stack; 0 = none")
    parser.add_argument("--side", type=int, default=5, help="seeds a side of a planted weakness")
    parser.add_argument("--no-planted", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="A folder for runs, to go on later.")
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    if asked.keep is not None:
        asked.keep.mkdir(parents=True, exist_ok=True)
    claims = [] if asked.no_planted else claims_asked(Asked())
    with ProcessPoolExecutor(asked.jobs, initializer=in_worker) as pool:
        began_s, episodes = time.monotonic(), []
        for one in pool.map(partial(unchanged, asked.keep), range(1, asked.runs + 1)):
            episodes.append(one)
            said(len(episodes), asked.runs, "unchanged", began_s)
        seen = [alarms(episodes, side) for side in (5, 10)] if episodes else []
        jobs = [
            (claim.scenario, weakness, seed)
            for claim in claims
            for weakness in (HEALTHY, claim.weakness)
            for seed in range(1, asked.side + 1)
        ]
        began_s, runs = time.monotonic(), []
        for one in pool.map(partial(planted, asked.keep), jobs):
            runs.append(one)
            said(len(runs), len(jobs), "planted", began_s)
    found = [
        find(claim, runs[at : at + asked.side], runs[at + asked.side : at + 2 * asked.side])
        for claim, at in zip(claims, range(0, len(runs), 2 * asked.side), strict=True)
    ]
    text = page(seen, len(episodes), found, asked.side)
    print(text)
    if asked.output is not None:
        asked.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
