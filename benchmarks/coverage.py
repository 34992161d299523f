"""How often the judge is right, on runs whose truth is known: ``python -m benchmarks.coverage``.

Each trial is one steady window: requests a second, a process that makes some of them bad, and the
true long-run share of bad that the process has by construction. The limit is put *at* the truth,
where a verdict of either kind is an error and at most 5 % of trials may survive and 5 % fail; then
at two and four times the truth, where survival is right (power), and at half, where failing is.

Processes, all at a stated mean share of bad requests:

- iid: each request by itself;
- seconds: whole seconds go bad (or well) by themselves;
- bursts L: outages that begin by chance and last a geometric number of seconds, L on average;
- overload: each second has a share of its own, gamma distributed (CV 2).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from survive.judge.dispersion import design_effect
from survive.judge.statistics import decide
from survive.judge.verdict import Word

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
Process = Callable[[np.random.Generator, int, float], F64]
PAGE = Path(__file__).resolve().parent.parent / "docs" / "coverage.md"
SHARE = 0.01
RPS = 50.0


def _iid(_: np.random.Generator, seconds: int, share: float) -> F64:
    return np.full(seconds, share)


def _seconds(random: np.random.Generator, seconds: int, share: float) -> F64:
    return (random.random(seconds) < share).astype(np.float64)


def _bursts(length: float) -> Process:
    def process(random: np.random.Generator, seconds: int, share: float) -> F64:
        """A two-state chain in its stationary state: bad a ``share`` of the time."""
        ends = 1 / length
        begins = share * ends / (1 - share)
        state = random.random() < share
        found = np.zeros(seconds)
        chances = random.random(seconds)
        for at in range(seconds):
            found[at] = state
            state = chances[at] >= ends if state else chances[at] < begins
        return found

    return process


def _overload(random: np.random.Generator, seconds: int, share: float) -> F64:
    return np.minimum(random.gamma(0.25, share / 0.25, seconds), 1.0)


PROCESSES: dict[str, Process] = {
    "iid": _iid,
    "seconds": _seconds,
    "bursts 3 s": _bursts(3.0),
    "bursts 10 s": _bursts(10.0),
    "overload, CV 2": _overload,
}


@dataclass(frozen=True, slots=True)
class Row:
    """Shares of trials. ``plain`` = without the design effect, as a binomial would have it."""

    process: str
    seconds: int
    survived: float  # at the truth: false greens
    failed: float  # at the truth: false reds
    plain_survived: float
    plain_failed: float
    power_2: float  # survives a limit of twice the truth
    power_4: float
    power_half: float  # fails a limit of half the truth


def trial(random: np.random.Generator, process: Process, seconds: int) -> tuple[I64, I64]:
    """(requests, bad ones) of every second."""
    n = random.poisson(RPS, seconds)
    return n, random.binomial(n, process(random, seconds, SHARE))


def row(name: str, seconds: int, trials: int, seed: int) -> Row:
    """One line of the table, by simulation."""
    random = np.random.default_rng([seed, seconds, *name.encode()])
    words: list[tuple[Word, ...]] = []
    for _ in range(trials):
        n, bad = trial(random, PROCESSES[name], seconds)
        total, broken = int(n.sum()), int(bad.sum())
        effect = design_effect(n, bad) if 0 < broken < total else 1.0
        limits = ((SHARE, effect), (SHARE, 1.0), (2 * SHARE, effect), (4 * SHARE, effect))
        limits = (*limits, (SHARE / 2, effect))
        words.append(tuple(decide(broken, total, a, RPS, e).word for a, e in limits))

    def share(column: int, word: Word) -> float:
        return sum(trial[column] is word for trial in words) / trials

    return Row(
        name,
        seconds,
        share(0, Word.SURVIVED),
        share(0, Word.FAILED),
        share(1, Word.SURVIVED),
        share(1, Word.FAILED),
        share(2, Word.SURVIVED),
        share(3, Word.SURVIVED),
        share(4, Word.FAILED),
    )


def table(trials: int, seed: int = 1) -> Iterator[Row]:
    """Every process over two, ten and sixty minutes."""
    for seconds in (120, 600, 3600):
        for name in PROCESSES:
            yield row(name, seconds, trials, seed)


def page(trials: int) -> str:
    """docs/coverage.md."""
    head = (
        "| process | steady | false green | false red | binomial: green | red | "
        "survives 2 × | survives 4 × | fails ½ × |\n" + "|---|---" + "|---:" * 7 + "|\n"
    )
    rows = list(table(trials))
    lines = "".join(
        f"| {r.process} | {r.seconds // 60} min | "
        + " | ".join(
            f"{value * 100:.1f} %"
            for value in (
                r.survived, r.failed, r.plain_survived, r.plain_failed, r.power_2, r.power_4,
                r.power_half,
            )
        )
        + " |\n"
        for r in rows
    )  # fmt: skip
    return _PAGE.format(
        trials=trials,
        share=f"{SHARE:.0%}",
        rps=f"{RPS:g}",
        table=head + lines,
        red=f"{max(r.failed for r in rows):.1%}".replace("%", " %"),
        plain_red=f"{max(r.plain_failed for r in rows):.1%}".replace("%", " %"),
    )


_PAGE = """# How often the judge is right

Made by `python -m benchmarks.coverage`; do not edit. {trials:,} trials a line, {rps} requests a
second, {share} of them bad in the long run. *False green* and *false red*: the limit lies exactly
at the truth, where every decision is an error; 5 % of each are allowed. *Binomial*: the same
without the design effect of `survive/judge/dispersion.py`. On the right, limits at two and four
times the truth (it should survive) and at half of it (it should fail); what is missing to 100 % is
undecided. Processes: iid; whole seconds that go bad by themselves; outages of 3 s or 10 s on
average; a bad share that differs from second to second with a CV of 2.

{table}
Read it so: where failures come one by one, nothing is lost. Where they come in clusters, a plain
binomial calls nearly every window green or red although the limit is the truth, up to {plain_red}
of them red. With the design effect false reds come down to about what is allowed: at most {red}
here, a little over 5 %, where a window holds only an outage or two to estimate it from. False
greens fall as the window holds more outages. Those that are left are windows with no outage, or
hardly one: no statistics of one window see what did not happen in it (whole seconds at 1 %: three
in ten windows of two minutes have none). Only a longer run, or repeats, do; that is why the report
speaks of this episode.
"""


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    PAGE.write_text(page(count), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))
