"""One run of the exam, in whatever process: load, perform, judge, forget the record."""

from __future__ import annotations

import hashlib
import json
import signal
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

import survive
from survive.catalog import Catalog, builtin_root
from survive.chaos.processes import die_with_parent
from survive.contracts import Json
from survive.errors import ExitCode, SurviveError
from survive.exam.cells import Cell, Outcome, Weather, variant
from survive.host.command import RunContext, exam_context
from survive.judge.judge import judge
from survive.judge.verdict import Verdict, Word
from survive.record.reader import Record
from survive.record.writer import LiveView, RecordWriter
from survive.scenario.lengths import LENGTHS
from survive.scenario.loader import load_scenario
from survive.scenario.model import Scenario

MAX_REASONS = 3
PROFILES = ("exam",)  # laid on if the scenario has it
CALM_PROFILES = ("exam", "calm")  # `calm`: where it is the load itself that is the bad weather


@dataclass(frozen=True, slots=True)
class Sitting:
    """Where a cell's scenario is, and on which host to run it. Plain data, for other processes."""

    cell: Cell
    file: Path
    target: str | None  # instead of the scenario's own
    real: bool = False

    @property
    def host(self) -> str:
        """As in a manifest."""
        return "real" if self.real else "virtual"


def in_worker() -> None:
    """Of a process that sits exams: it dies with its parent, which alone hears Ctrl-C."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def read(file: Path, target: str | None, wanted: tuple[str, ...] = PROFILES) -> Scenario:
    """A scenario with those of the profiles that it has; once per process. Raises ScenarioError."""
    return _read(file, target, wanted)


@lru_cache(maxsize=64)
def _read(file: Path, target: str | None, wanted: tuple[str, ...]) -> Scenario:
    plain = load_scenario(file, target=target, catalog=Catalog(file))
    has = plain.raw.get("profiles") or {}
    profiles = [name for name in wanted if name in has]
    if not profiles:
        return plain
    return load_scenario(file, target=target, profile=profiles, catalog=Catalog(file))


def scenario_of(sitting: Sitting) -> Scenario:
    """What a sitting runs. Raises ScenarioError; ValueError if nothing would be judged."""
    calm = sitting.cell.weather is Weather.CALM
    wanted = CALM_PROFILES if calm else PROFILES
    return variant(read(sitting.file, sitting.target, wanted), sitting.cell)


def key_of(sitting: Sitting) -> str:
    """Says the same of two sittings if and only if they would show the same: files and code."""
    try:
        scenario = scenario_of(sitting)
    except ValueError as error:
        return _digest(str(sitting), str(error))
    files = [k.data for k in scenario.requests.values() if k.data and str(k.data) not in LENGTHS]
    texts = [(scenario.folder / file).read_text(encoding="utf-8") for file in files]
    services = _code(scenario.target.folder) if scenario.target.folder.is_dir() else ""
    return _digest(
        sitting.host, *map(_text, (scenario.raw, scenario.raw_target)), *texts, own_code(), services
    )


def _text(raw: object) -> str:
    return json.dumps(raw, sort_keys=True, default=str)


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:24]


def own_code() -> str:
    """The digest of everything that runs and judges, but not of the exam itself."""
    root = builtin_root()
    package = Path(survive.__file__).parent
    return _digest(*(_code(at) for at in (package, root / "faults", root / "targets")))


@lru_cache(maxsize=64)
def _code(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*.py") if path.parent.name != "exam")
    return _digest(*(path.read_text(encoding="utf-8") for path in files))


def sit(sitting: Sitting) -> Outcome:
    """Run and judge. Never raises: what went wrong is an outcome of its own."""
    began_s, cpu_s = time.perf_counter(), time.process_time()
    try:
        word, code, failed, reasons = _told(_performed(sitting))
    except SurviveError as error:
        word, code = "error", int(error.exit_code)
        failed, reasons = (), tuple(error.lines())
    except ValueError as error:  # nothing to judge in calm weather
        word, code, failed, reasons = str(Word.INCONCLUSIVE), 3, (), (str(error),)
    except Exception as error:
        word, code, failed, reasons = "error", int(ExitCode.BUG), (), (repr(error),)
    return Outcome(
        cell=sitting.cell,
        host=sitting.host,
        verdict=word,
        exit_code=code,
        failed=failed,
        reasons=reasons[:MAX_REASONS],
        wall_s=round(time.perf_counter() - began_s, 3),
        cpu_s=round(time.process_time() - cpu_s, 3),
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _told(verdict: Verdict) -> tuple[str, int, tuple[str, ...], tuple[str, ...]]:
    failed = dict.fromkeys(c.name for c in verdict.objectives if c.verdict is Word.FAILED)
    return str(verdict.verdict), int(verdict.exit_code), tuple(failed), verdict.reasons


def _performed(sitting: Sitting) -> Verdict:
    scenario = scenario_of(sitting)
    with tempfile.TemporaryDirectory(prefix="survive-exam-") as scratch:
        folder = Path(scratch)
        virtual = not sitting.real
        context = exam_context(scenario, Catalog(sitting.file), folder, virtual=virtual)
        writer = RecordWriter(folder, context.plan)
        try:
            error = _perform(context, writer, real=sitting.real)
        finally:
            writer.close()
        if error is not None:
            raise error
        return judge(Record.load(folder), scenario)


def _perform(context: RunContext, writer: RecordWriter, *, real: bool) -> SurviveError | None:
    if real:
        from survive.host.real import perform_real

        return perform_real(context, writer, _Unwatched())
    from survive.host.virtual import perform_virtual

    return perform_virtual(context, writer, _Unwatched())


class _Unwatched:
    """A display that nobody looks at."""

    def event(self, name: str, fields: Mapping[str, Json], t_us: int) -> None:
        """See Display."""

    def tick(self, t_us: int, live: LiveView) -> None:
        """See Display."""
