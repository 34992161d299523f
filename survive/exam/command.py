"""``survive exam``: which scenarios, which cells, what is said in the end."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console

from survive.catalog import builtin_root, nearest
from survive.errors import ExitCode, ScenarioError, UsageError
from survive.exam.cells import HEALTHY, Cell, Claim, Outcome, Weather, cells_of
from survive.exam.marks import Report, costs_of, matrix_of, rows_of, unsure_of
from survive.exam.page import page, show, to_json
from survive.exam.sitting import Sitting, read
from survive.exam.store import Store, outcomes
from survive.plan.plan import make_plan
from survive.scenario.model import Scenario
from survive.scenario.target import WEAKNESSES

PRODUCTION = "production"  # the target with every weakness
_SAY_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line asks for. Empty tuples = all."""

    folder: Path | None = None  # of scenarios; None = the built-in ones
    target: str | None = None
    seeds: int = 10
    scenarios: tuple[str, ...] = ()
    weaknesses: tuple[str, ...] = ()
    jobs: int = 2
    real: bool = False
    cells: bool = True
    matrix: bool = True
    once: bool = False  # of the claims on a weakness, only that of the smallest run
    results: Path = Path("runs/exam")
    output: Path | None = None
    form: str = "human"


@dataclass(frozen=True, slots=True)
class _Entry:
    """A scenario that sits the exam."""

    file: Path
    target: str | None  # instead of its own
    scenario: Scenario
    seeds: range


def sit_exam(asked: Asked) -> ExitCode:
    """Run what is not known yet, say what was found."""
    _check_words(asked.weaknesses, WEAKNESSES, "weakness")
    entries, skipped = _entries(asked)
    claims = _claims(asked, entries)
    wanted = _wanted(asked, claims)
    sittings = [
        Sitting(cell, entry.file, entry.target, asked.real)
        for entry in entries.values()
        for cell in _cells(asked, entry, claims, wanted)
    ]
    store = Store(asked.results / "results.ndjson")
    jobs = 1 if asked.real else asked.jobs
    found = outcomes(sittings, store, jobs, _Progress(asked.real).seen)
    report = _report(asked, entries, claims, wanted, found, skipped)
    _say(asked, report)
    return report.exit_code


def claims_asked(asked: Asked) -> list[Claim]:
    """The claims that an exam would sit."""
    return _claims(asked, _entries(asked)[0])


def _check_words(given: Sequence[str], known: Sequence[str], what: str) -> None:
    for word in given:
        if word not in known:
            raise UsageError(f"unknown {what} {word!r}", hint=nearest(word, known))


def _entries(asked: Asked) -> tuple[dict[str, _Entry], dict[str, str]]:
    """By name; and the files that cannot sit, with the reason."""
    folder = asked.folder or builtin_root() / "scenarios"
    found: dict[str, _Entry] = {}
    skipped: dict[str, str] = {}
    for file in sorted(folder.glob("*.survive.yaml")):
        if asked.scenarios and file.name.removesuffix(".survive.yaml") not in asked.scenarios:
            continue
        try:
            entry = _entry(file, asked)
        except ScenarioError as error:
            skipped[file.name] = error.lines()[0]
            continue
        if asked.folder is None and not entry.scenario.kills and not asked.scenarios:
            continue  # claims nothing, and is no team's gate
        name = entry.scenario.name
        if (twin := found.get(name)) is not None:
            raise UsageError(f"{twin.file.name} and {file.name} are both named {name}")
        found[name] = entry
    if not found:
        hint = "; ".join(f"{file}: {why}" for file, why in skipped.items())
        raise UsageError(f"no scenario in {folder} can sit the exam", hint=hint)
    return found, skipped


def _entry(file: Path, asked: Asked) -> _Entry:
    target = asked.target
    scenario = read(file, target)
    if target is None and not any(s.app for s in scenario.target.services.values()):
        target = PRODUCTION
        scenario = read(file, target)
    return _Entry(file, target, scenario, range(scenario.seed, scenario.seed + asked.seeds))


def _claims(asked: Asked, entries: dict[str, _Entry]) -> list[Claim]:
    """What is claimed of the weaknesses that are asked for, in the order of their list."""
    found = [
        Claim(name, weakness, objective)
        for name, entry in entries.items()
        for weakness, objective in entry.scenario.kills.items()
        if not asked.weaknesses or weakness in asked.weaknesses
    ]
    if asked.once:
        found = _smallest(found, entries)
    return sorted(found, key=lambda c: (WEAKNESSES.index(c.weakness), c.scenario))


def _smallest(claims: Sequence[Claim], entries: dict[str, _Entry]) -> list[Claim]:
    """Of each weakness the claim whose scenario sends the fewest requests."""
    size = {name: sum(map(sum, make_plan(e.scenario).planned)) for name, e in entries.items()}
    best: dict[str, Claim] = {}
    for claim in sorted(claims, key=lambda c: (size[c.scenario], c.scenario)):
        best.setdefault(claim.weakness, claim)
    return [*best.values()]


def _wanted(asked: Asked, claims: Sequence[Claim]) -> tuple[str, ...]:
    """The weaknesses that must be found."""
    if asked.weaknesses:
        return tuple(w for w in WEAKNESSES if w in asked.weaknesses)
    if asked.scenarios and not asked.matrix:
        return tuple(dict.fromkeys(claim.weakness for claim in claims))
    return WEAKNESSES


def _cells(
    asked: Asked, entry: _Entry, claims: Sequence[Claim], wanted: Sequence[str]
) -> Iterator[Cell]:
    name = entry.scenario.name
    if asked.cells:
        for claim in claims:
            if claim.scenario == name:
                yield from cells_of(claim, entry.seeds)
    if asked.matrix:
        for weakness in (HEALTHY, *wanted):
            yield Cell(name, weakness, Weather.FAULT, entry.seeds.start)


def _report(
    asked: Asked, entries: dict[str, _Entry], claims: Sequence[Claim], wanted: tuple[str, ...],
    found: Sequence[Outcome], skipped: dict[str, str],
) -> Report:  # fmt: skip
    seeds = {name: entry.seeds for name, entry in entries.items()}
    faults = {
        name: ", ".join(dict.fromkeys(f.kind for f in entry.scenario.faults.values()))
        for name, entry in entries.items()
    }
    return Report(
        weaknesses=wanted,
        rows=rows_of(claims, found, seeds, faults) if asked.cells else (),
        matrix=matrix_of(found, seeds) if asked.matrix else {},
        scenarios=tuple(entries),
        skipped=skipped,
        costs=costs_of(found),
        longest_wall_s=max((outcome.wall_s for outcome in found), default=0.0),
        runs=len(found),
        host="real" if asked.real else "virtual",
        seeds=asked.seeds if asked.cells and claims else 1,
        moved=tuple(n for n, e in entries.items() if e.target and asked.target is None),
        finders={} if asked.folder is None else finders(),
        unsure=unsure_of(found, seeds) if asked.matrix else (),
    )


def finders() -> dict[str, tuple[str, ...]]:
    """Which of our own scenarios find a weakness: examples for a team whose gate does not."""
    found: dict[str, tuple[str, ...]] = {}
    for claim in claims_asked(Asked()):
        found[claim.weakness] = (*found.get(claim.weakness, ()), claim.scenario)
    return found


def _say(asked: Asked, report: Report) -> None:
    if asked.form == "json":
        click.echo(json.dumps(to_json(report), indent=2))
    else:
        show(Console(file=sys.stdout, highlight=False), report)
    if asked.output is not None:
        command = " ".join(["survive", *sys.argv[1:]])
        day = datetime.now(UTC).strftime("%Y-%m-%d")
        asked.output.write_text(page(report, command, day), encoding="utf-8")


class _Progress:
    """A line now and then, to stderr."""

    def __init__(self, real: bool) -> None:
        self._every_s = 0.0 if real else _SAY_EVERY_S
        self._began_s = time.monotonic()
        self._said_s = float("-inf")

    def seen(self, done: int, of: int) -> None:
        """As ``outcomes`` calls it."""
        now_s = time.monotonic()
        if done < of and now_s - self._said_s < self._every_s:
            return
        self._said_s = now_s
        click.echo(f"exam: {done} of {of} runs, {now_s - self._began_s:.0f} s", err=True)
