"""``survive envelope``: how much load does the target take and still survive?

Every level is a run like any other, with a run directory, a seed and a verdict of its own; what to
play next is of ``survive.judge.search``, what follows of ``survive.judge.capacity``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import click

from survive.catalog import Catalog
from survive.chaos.permission import permitted
from survive.errors import ExitCode, SurviveError, UsageError
from survive.host.command import (
    Conditions,
    Episode,
    Workers,
    new_folder,
    run_once,
    show,
    write_json,
)
from survive.host.machine import machine_warnings
from survive.host.reports import Delivery
from survive.judge.capacity import Envelope, Finished, LevelRun, exit_of, finding_of
from survive.judge.explain import too_few
from survive.judge.repeated import ENDS_ALL
from survive.judge.search import HIGHEST, Grid, Search
from survive.plan.plan import make_plan
from survive.scenario.loader import load_scenario
from survive.scenario.model import Scenario
from survive.scenario.traffic import MAX_RPS
from survive.scenario.variants import calm, peak_rps, with_factor
from survive.units import UnitError, factor, rate_rps, share, show_rps

FILE = "envelope.json"
FINEST = 0.005  # a finer one asks for more than chance between runs lets anybody see
_INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line. Loads are as written: ``2x`` or ``500/s``."""

    file: Path
    target: str | None = None
    sets: tuple[str, ...] = ()
    profile: str | None = None
    out: Path = Path("runs")
    form: str = "human"
    virtual: bool = False
    privileged: bool = False
    workers: int = 1
    start: str | None = None
    to: str | None = None
    at: str | None = None
    least: str | None = None
    repeat: int = 1
    resolution: str = "10%"
    runs: int = 40
    without_faults: bool = False
    headroom: bool = False


def find_envelope(asked: Asked) -> ExitCode:
    """Play, tell, exit. Errors before the first run are raised; see ``survive.cli``."""
    if asked.at and (asked.start or asked.to):
        raise UsageError("--at plays its own loads: leave --from and --to out")
    if asked.without_faults and asked.headroom:
        raise UsageError("--headroom injects the faults, --without-faults does not: one of them")
    catalog = Catalog(asked.file)
    scenario = load_scenario(
        asked.file, target=asked.target, sets=asked.sets, profile=asked.profile, catalog=catalog
    )
    if scenario.load.closed:
        raise UsageError(
            f"the users of {scenario.name} have no rate",
            hint="users ask no faster than they are answered: give the phases `rate:`",
        )
    wanted, variants = _wanted(asked, scenario), _variants(asked, scenario)
    folder = new_folder(asked.out / scenario.name / "envelope", scenario.seed)
    finding = _Finding(asked, catalog, wanted, folder, _start(asked, scenario, wanted))
    return finding.play(variants)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The factors of the command line, and the rate of factor 1."""

    one_rps: Fraction
    search: Search | Grid
    least: Fraction | None
    resolution: float


def _wanted(asked: Asked, scenario: Scenario) -> _Wanted:
    one = peak_rps(scenario.load)

    def read(option: str, text: str | None) -> Fraction | None:
        return None if text is None else _factor(option, text, one)

    least = read("--min", asked.least)
    start = read("--from", asked.start) or least or min(Fraction(1), MAX_RPS / one)
    most = read("--to", asked.to) or min(start * HIGHEST, MAX_RPS / one)
    resolution = _resolution(asked.resolution)
    if asked.at is not None:
        texts = [text.strip() for text in asked.at.split(",")]
        grid = [_factor("--at", text, one) for text in texts]
        return _Wanted(one, Grid(tuple(sorted(set(grid))), asked.repeat), least, resolution)
    if start > most:
        raise UsageError("--from is above --to")
    search = Search(start, most, resolution, least, asked.repeat)
    return _Wanted(one, search, least, resolution)


def _resolution(text: str) -> float:
    try:
        found = share(text)
    except UnitError as error:
        raise UsageError(f"--resolution: {error}") from None
    if found < FINEST:
        raise UsageError(f"--resolution {text} is finer than {FINEST:.1%}")
    return found


def _factor(option: str, text: str, one_rps: Fraction) -> Fraction:
    """``2x`` or ``500/s`` as a factor on the scenario's load. Raises UsageError."""
    try:
        if text.rstrip().endswith("x"):
            found = Fraction(factor(text)).limit_denominator(10**6)
        else:
            found = rate_rps(text) / one_rps
    except UnitError:
        raise UsageError(
            f"{option} {text!r} is no load", hint="write it like 2x or like 500/s"
        ) from None
    if found <= 0:
        raise UsageError(f"{option} {text!r} is no load at all")
    if found * one_rps > MAX_RPS:
        raise UsageError(f"{option} {text!r} is {show_rps(float(found * one_rps))}, over 10M/s")
    return found


def _variants(asked: Asked, scenario: Scenario) -> list[tuple[bool, Scenario]]:
    """(with its faults, scenario) of each envelope that is asked for."""
    if not asked.without_faults and not asked.headroom:
        return [(True, scenario)]
    if asked.headroom and not scenario.faults:
        raise UsageError(f"{scenario.name} has no faults that could cost anything")
    try:
        without = (False, calm(scenario))
    except ValueError as error:
        raise UsageError(str(error)) from error
    return [without] if asked.without_faults else [(True, scenario), without]


def _start(asked: Asked, scenario: Scenario, wanted: _Wanted) -> Finished:
    return Finished(
        scenario=scenario.name,
        target=scenario.target.name,
        host="virtual" if asked.virtual else "real",
        one_rps=wanted.one_rps,
        resolution=wanted.resolution,
        least=wanted.least,
        envelopes=(),
        exit_code=ExitCode.INCONCLUSIVE,
        span_us=scenario.load.end_us,
    )


@dataclass(slots=True)
class _Finding:
    """One command while it plays. What is known is written after every run."""

    asked: Asked
    catalog: Catalog
    wanted: _Wanted
    folder: Path
    found: Finished
    played: int = 0

    def play(self, variants: list[tuple[bool, Scenario]]) -> ExitCode:
        """All envelopes, or as many as there are before something ends them."""
        ended: ExitCode | None = None
        self.found = replace(self.found, folder=str(self.folder))
        for faults, scenario in variants:
            self._warn(scenario)
            self.found = replace(
                self.found, envelopes=(*self.found.envelopes, Envelope(faults=faults))
            )
            ended = self._search(scenario, faults)
            if ended is not None:
                break
        done = self.found.ended == "complete"
        said = exit_of(self.found.envelopes[0], self.wanted.least, done=done)
        code = said if ended is None else ended
        self._write(code)
        show(
            self.asked.form, self.found.to_json, "envelope",
            lambda page, console: page.print_envelope(console, self.found),
        )  # fmt: skip
        return code

    def _warn(self, scenario: Scenario) -> None:
        first = self.wanted.search.next(Envelope())
        assert first is not None
        scaled = with_factor(scenario, first)
        plan = make_plan(scaled)
        limits = [] if self.asked.virtual else machine_warnings(scaled, plan)
        for warning in (*too_few(scaled, plan), *limits):
            click.echo(f"warning: at {_at(first, self.wanted)}: {warning}", err=True)

    def _search(self, scenario: Scenario, faults: bool) -> ExitCode | None:
        """One envelope; the code of what ended it early."""
        try:
            code = self._levels(scenario, faults)
        except KeyboardInterrupt:
            code = ExitCode.INTERRUPTED
        except SurviveError as error:
            if not self.played:
                raise
            for line in error.lines():
                click.echo(line, err=True)
            code = error.exit_code
        if code is not None:
            signalled = code in {ExitCode.INTERRUPTED, ExitCode.TERMINATED}
            self.found = replace(self.found, ended=_INTERRUPTED if signalled else "stopped")
        return code

    def _levels(self, scenario: Scenario, faults: bool) -> ExitCode | None:
        """Level by level, until the bounds are near enough; the code of a run that ends it."""
        conditions = self._conditions(scenario)
        already = self.played
        while (load := self.wanted.search.next(self.found.envelopes[-1])) is not None:
            if self.played - already >= self.asked.runs:
                self.found = replace(self.found, ended="runs")
                return None
            seed = scenario.seed + self.played - already
            code = self._run(scenario, conditions, load, seed, faults=faults)
            if code is not None:
                return code
        return None

    def _conditions(self, scenario: Scenario) -> Conditions:
        asked = self.asked
        privileged = permitted(
            scenario, self.catalog.fault, flagged=asked.privileged, virtual=asked.virtual
        )
        workers = Workers(asked.workers)
        return Conditions(
            self.catalog, self.folder, asked.virtual, privileged, {}, workers, Delivery({})
        )

    def _run(
        self, scenario: Scenario, conditions: Conditions, load: Fraction, seed: int, *, faults: bool
    ) -> ExitCode | None:
        """One run at one level; the code if no other may follow it."""
        where = _at(load, self.wanted) + ("" if faults else ", without faults")
        click.echo(f"run {self.played + 1}: {where}, seed {seed}", err=True)
        scaled = with_factor(scenario, load)
        seeded = replace(scaled, seed=seed, raw={**scaled.raw, "seed": seed})
        told = replace(conditions, asked={"envelope": f"{float(load):.4g}x"})
        episode = run_once(seeded, told, make_plan(seeded))
        self.played += 1
        # What a virtual run did not heal is gone with its host; on a real one nobody may go on.
        harmless = self.asked.virtual and episode.code is ExitCode.HEAL_UNPROVEN
        if episode.verdict is None or (episode.code in ENDS_ALL and not harmless):
            return episode.code
        run = _told(episode, seeded)
        click.echo(f"  {run.finding}" + (f": {run.why}" if run.why else ""), err=True)
        *others, current = self.found.envelopes
        self.found = replace(self.found, envelopes=(*others, current.with_run(load, run)))
        self._write(ExitCode.INCONCLUSIVE)
        return None

    def _write(self, code: ExitCode) -> None:
        self.found = replace(self.found, exit_code=code)
        write_json(self.folder / FILE, self.found.to_json())


def _told(episode: Episode, scenario: Scenario) -> LevelRun:
    """What is kept of a run in memory."""
    assert episode.verdict is not None
    finding, why = finding_of(episode.verdict, scenario.load.lanes, scenario.load.lanes_needed)
    return LevelRun(
        episode.seed,
        episode.folder.name,
        int(episode.code),
        finding,
        why,
        episode.verdict.objectives,
        episode.verdict.grade,
    )


def _at(load: Fraction, wanted: _Wanted) -> str:
    return f"{float(load):.4g}x, {show_rps(float(load * wanted.one_rps))}"
