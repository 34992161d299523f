"""What ``run``, ``judge``, ``report`` and ``heal`` do, between the parser and the core."""

from __future__ import annotations

import errno
import io
import json
import os
import platform
import re
import secrets
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from survive import __version__
from survive.catalog import Catalog
from survive.chaos.permission import permitted
from survive.contracts import Json
from survive.errors import ExitCode, HarnessError, RefusedError, SurviveError, UsageError
from survive.host.machine import compiled_lanes, machine_warnings
from survive.host.reports import (
    Delivery,
    chosen,
    in_repository,
    renew_own_reports,
    write_own_reports,
)
from survive.judge.explain import too_few
from survive.judge.extend import extended, extension_us
from survive.judge.faults import heals_owed
from survive.judge.judge import judge
from survive.judge.repeated import ENDS_ALL, worst
from survive.judge.verdict import Verdict
from survive.output import Unheard, program, to_nowhere
from survive.plan.model import Plan
from survive.plan.plan import make_plan
from survive.record.reader import Record
from survive.record.writer import RecordWriter
from survive.scenario.loader import dump_scenario, load_scenario, load_stored
from survive.scenario.model import Scenario, TargetSpec
from survive.units import SECOND

if TYPE_CHECKING:
    from rich.console import Console

    from survive.host.run import Display


# Of a disk, not of our code: full, over quota, a file too long, read-only, broken.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})


_ENV_NAME = re.compile(r"\$\{([^}]*)\}")


@dataclass(frozen=True, slots=True)
class Workers:
    """Who sends the load: this many forks here, or machines that are expected to come."""

    count: int = 1
    expected: int = 0  # `survive worker`s; 0 = none
    bind: str = "127.0.0.1:0"  # where they find the master

    def __post_init__(self) -> None:
        if self.count > 1 and self.expected:
            raise UsageError("--workers starts workers here, --expect-workers waits for others")

    @property
    def options(self) -> list[str]:
        """For the load process."""
        if self.expected:
            return ["--expect", str(self.expected), "--bind", self.bind]
        return ["--workers", str(self.count)]


@dataclass(frozen=True, slots=True)
class RunContext:
    """What both hosts need to perform a run."""

    run_id: str
    scenario: Scenario
    plan: Plan
    catalog: Catalog
    folder: Path
    key: str  # bearer key of the target, "" = none
    token: str  # of the simulated GPU's control channel
    env: Mapping[str, str]
    privileged: bool = False  # see survive.chaos.permission
    asked: Mapping[str, str] = field(default_factory=dict)  # see survive.judge.grades.asked_of
    identities: Mapping[str, str] = field(default_factory=dict)  # the keys of others, by name
    workers: Workers = Workers()


def run_scenario(
    file: Path,
    *,
    target: str | None,
    sets: Sequence[str],
    profile: str | None,
    out: Path,
    form: str,
    virtual: bool,
    privileged: bool = False,
    require_grade: str | None = None,
    inconclusive: str | None = None,
    workers: Workers = Workers(),
    repeat: int = 1,
    reports: Sequence[str] = (),
    ci: bool = False,
) -> ExitCode:
    """Load, plan, perform, judge, show. Errors before the run are raised; see ``survive.cli``.

    ``repeat`` > 1: that many runs with seeds of their own, from the scenario's upward; the worst
    verdict decides. ``reports`` are as of ``--report``; ``ci``: tell the CI system that this runs
    in, if it is known.
    """
    delivery = Delivery.of(reports, file, Catalog(file), ci=ci)
    if delivery.takes_stdout and (form == "json" or repeat > 1):
        raise UsageError("stdout holds the result already", hint="give the report a file")
    delivery.clear()
    asked = {"require_grade": require_grade, "inconclusive": inconclusive}
    if virtual and workers != Workers():
        raise UsageError("the virtual host has one load and no workers")
    catalog = Catalog(file)
    scenario = load_scenario(file, target=target, sets=sets, profile=profile, catalog=catalog)
    if scenario.load.locustfile is not None and workers != Workers():
        raise UsageError("a locustfile's users are in one load process; others can have workers")
    if virtual and scenario.load.locustfile is not None:
        raise RefusedError(
            f"{scenario.load.locustfile} cannot run in virtual time: Locust's users wait by the "
            "clock of the machine and speak through its sockets",
            hint="leave --virtual out, or describe `requests:` for users of our own",
        )
    plan = make_plan(scenario)
    limits = [] if virtual else machine_warnings(scenario, plan)
    for warning in (*scenario.warnings, *too_few(scenario, plan), *limits):
        click.echo(f"warning: {warning}", err=True)
    conditions = Conditions(
        catalog,
        out / scenario.name,
        virtual,
        permitted(scenario, catalog.fault, flagged=privileged, virtual=virtual),
        {option: value for option, value in asked.items() if value},
        workers,
        delivery,
    )
    if repeat > 1:
        return _run_repeated(scenario, conditions, repeat, form)
    episode = _run_decided(scenario, conditions, plan)
    if episode.record is not None and episode.verdict is not None:
        said = delivery.deliver(catalog, episode.record, episode.verdict, os.environ)
        if said is None:
            _show(episode.record, episode.verdict, form)
        else:
            say(said)
    return episode.code


@dataclass(frozen=True, slots=True)
class Conditions:
    """What is the same for every episode of one command."""

    catalog: Catalog
    folder: Path  # in which each episode has its run directory
    virtual: bool
    privileged: bool
    asked: Mapping[str, str]
    workers: Workers
    delivery: Delivery


@dataclass(frozen=True, slots=True)
class Episode:
    """One run that has ended. No verdict where it was refused, or where a bug of ours ended it."""

    seed: int
    folder: Path
    code: ExitCode
    record: Record | None = None
    verdict: Verdict | None = None


def _run_repeated(scenario: Scenario, conditions: Conditions, repeat: int, form: str) -> ExitCode:
    """Episodes one after the other, each with a run directory of its own."""
    episodes: list[Episode] = []
    seeds = range(scenario.seed, scenario.seed + repeat)
    conditions.delivery.clear(seeds)
    for seed in seeds:
        seeded = replace(scenario, seed=seed, raw={**scenario.raw, "seed": seed})
        episode = _run_decided(seeded, conditions)
        if episode.record is not None and episode.verdict is not None:
            conditions.delivery.deliver(
                conditions.catalog, episode.record, episode.verdict, os.environ, seed
            )
        episodes.append(replace(episode, record=None))
        if episodes[-1].code in ENDS_ALL:
            break  # nobody starts another fault on a host that is not known to be healed
    _show_episodes(episodes, form)
    return worst(episode.code for episode in episodes)


def _run_decided(scenario: Scenario, conditions: Conditions, plan: Plan | None = None) -> Episode:
    """One episode; with `--inconclusive extend` a longer one after it, if that can decide."""
    first = run_once(scenario, conditions, plan or make_plan(scenario))
    if conditions.asked.get("inconclusive") != "extend" or first.verdict is None:
        return first
    by_us = extension_us(first.verdict, scenario)
    if by_us is None:
        return first
    longer = extended(scenario, by_us)
    click.echo(
        f"undecided for lack of requests: once more, phase {scenario.load.phases[-1].name} "
        f"{by_us // SECOND} s longer ({first.folder} stays as it is)",
        err=True,
    )
    asked = {**conditions.asked, "extends": first.folder.name}
    return run_once(longer, replace(conditions, asked=asked), make_plan(longer))


def run_once(scenario: Scenario, conditions: Conditions, plan: Plan) -> Episode:
    """One episode: perform, judge, write. Raises SurviveError where it cannot begin."""
    key, token = keys_of(scenario.target, scenario.seed, os.environ, conditions.virtual)
    folder = new_folder(conditions.folder, scenario.seed)
    context = RunContext(
        f"{folder.name}-{secrets.token_hex(3)}",
        scenario,
        plan,
        conditions.catalog,
        folder,
        key,
        token,
        dict(os.environ),
        conditions.privileged,
        conditions.asked,
        identity_keys(scenario.target, key, os.environ),
        conditions.workers,
    )
    try:
        return _run_in(context, conditions.virtual)
    except SurviveError:
        raise
    except OSError as error:
        if error.errno not in _NO_ROOM:
            return Episode(scenario.seed, folder, _bug(folder))
        raise HarnessError(
            f"the record cannot be written: {error}", hint=f"what was written is in {folder}"
        ) from error
    except Exception:
        return Episode(scenario.seed, folder, _bug(folder))


def _bug(folder: Path) -> ExitCode:
    """The traceback goes to the run directory; call it while the exception is handled."""
    (folder / "bug.txt").write_text(traceback.format_exc(), encoding="utf-8")
    click.echo(f"a bug of ours: the traceback is in {folder / 'bug.txt'}", err=True)
    return ExitCode.BUG


def _run_in(context: RunContext, virtual: bool) -> Episode:
    dump_scenario(context.scenario, context.folder)
    _write_manifest(context, virtual)
    writer = RecordWriter(context.folder, context.plan)
    console = console_on(sys.stderr)
    display = _display(console, context)
    display.start()
    try:
        error = _perform(context, writer, display, virtual)
    finally:
        display.stop()
        writer.close()
    if error is not None:
        for line in error.lines():
            click.echo(line, err=True)
    record = Record.load(context.folder)
    never_begun = error is not None and error.exit_code in {ExitCode.REFUSED, ExitCode.INVALID}
    if error is not None and never_begun and not heals_owed(record.plan, record.events):
        return Episode(context.plan.seed, context.folder, error.exit_code)
    verdict = judge(record, context.scenario)
    write_json(context.folder / "verdict.json", verdict.to_json())
    write_own_reports(context.catalog, record, verdict)
    _point_latest(context.folder)
    return Episode(context.plan.seed, context.folder, verdict.exit_code, record, verdict)


def _perform(
    context: RunContext, writer: RecordWriter, display: Display, virtual: bool
) -> SurviveError | None:
    if virtual:
        from survive.host.virtual import perform_virtual

        return perform_virtual(context, writer, display)
    from survive.host.real import perform_real

    return perform_real(context, writer, display)


def judge_run(folder: Path, *, from_hlog: bool, form: str) -> ExitCode:
    """Judge a stored run again; writes verdict.json, and reports that told another verdict."""
    record = Record.load(folder, from_hlog=from_hlog)
    verdict = judge(record, load_stored(folder))
    before = _read_json(folder / "verdict.json")
    try:
        write_json(folder / "verdict.json", verdict.to_json())
    except OSError as error:  # an archive may be read-only, and is judged all the same
        click.echo(f"warning: verdict.json is as it was: {error}", err=True)
    else:
        if before != verdict.to_json():
            renew_own_reports(record, verdict)
    _show(record, verdict, form)
    return verdict.exit_code


def report_run(
    folder: Path, *, form: str, output: Path | None, part: Mapping[str, str] | None = None
) -> ExitCode:
    """Render a stored run. The verdict is computed afresh: a report never outlives its record.

    ``part`` is what a reporter that can choose is asked for: request, series, window.
    """
    reporter = chosen(Catalog(folder).reporter(form), form, part or {})
    record = Record.load(folder)
    verdict = judge(record, load_stored(folder))
    if form == "terminal" and output is None:
        _show(record, verdict, "human")
        return ExitCode.SURVIVED
    rendered = reporter.render(record, verdict)
    if output is None or str(output) == "-":
        say(rendered)
        return ExitCode.SURVIVED
    try:
        output.write_bytes(rendered)
    except OSError as error:
        raise UsageError(f"the report cannot be written: {error}") from error
    return ExitCode.SURVIVED


def heal_host(*, check: bool, run_id: str | None, force: bool, acknowledge: bool) -> ExitCode:
    """Mend, or only look. 0 = a clean host, 5 = something remains, or nobody can know."""
    from survive.chaos.heal import heal_leftovers

    result = heal_leftovers(run=run_id, force=force, check=check, acknowledge=acknowledge)
    for line in result.lines():
        click.echo(line)
    return ExitCode.SURVIVED if result.clean else ExitCode.HEAL_UNPROVEN


def halt_host(*, clear: bool) -> ExitCode:
    """Stop all runs, or lift the halt. 0 = none is left, 5 = something remains."""
    from survive.chaos import halt

    if clear:
        click.echo("runs may begin again" if halt.clear() else "the host was not halted")
        return ExitCode.SURVIVED
    result = halt.halt()
    for line in result.lines():
        click.echo(line)
    return ExitCode.SURVIVED if result.clean else ExitCode.HEAL_UNPROVEN


def exam_context(
    scenario: Scenario, catalog: Catalog, folder: Path, *, virtual: bool
) -> RunContext:
    """Of a run in a folder that is there already, on a stack that it starts itself."""
    key, token = keys_of(scenario.target, scenario.seed, {}, virtual)
    return RunContext(
        f"exam-{secrets.token_hex(6)}",
        scenario,
        make_plan(scenario),
        catalog,
        folder,
        key,
        token,
        dict(os.environ),
        identities=identity_keys(scenario.target, key, {}),
    )


def keys_of(
    target: TargetSpec, seed: int, env: Mapping[str, str], virtual: bool
) -> tuple[str, str]:
    """(bearer key, GPU token). A stack that we start ourselves gets made-up ones."""
    ours = target.driver != "external"
    name = target.bearer.removeprefix("${").removesuffix("}")
    key = env.get(name, "") if name else ""
    if name and not key and not ours:
        raise RefusedError(
            f"the environment variable {name} is not set",
            hint=f"it holds the key of target {target.name!r}",
        )
    if virtual:  # fixed by the seed: the same seed gives the same record
        return (f"virtual-key-{seed}" if name else ""), f"virtual-token-{seed}"
    return key or (secrets.token_hex(16) if name else ""), secrets.token_hex(16)


def identity_keys(target: TargetSpec, key: str, env: Mapping[str, str]) -> dict[str, str]:
    """The keys of the target's identities. A made-up bearer key stands for its variable too.

    Raises RefusedError naming a variable that is not set.
    """
    bearer = _ENV_NAME.fullmatch(target.bearer)
    known = {**env, bearer[1]: key} if bearer else env

    def value(found: re.Match[str]) -> str:
        if found[1] not in known:
            raise RefusedError(
                f"the environment variable {found[1]} is not set",
                hint=f"target {target.name!r} takes an identity's key from it",
            )
        return known[found[1]]

    return {name: _ENV_NAME.sub(value, text) for name, text in target.identities.items()}


def new_folder(parent: Path, seed: int) -> Path:
    """``<parent>/<UTC>-<seed>``, made; a second one in the same second gets a suffix."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    base = parent / f"{stamp}-{seed}"
    for attempt in range(1000):
        folder = base if attempt == 0 else base.with_name(f"{base.name}.{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise RefusedError(f"cannot create the run directory {folder}: {error}") from error
        return folder
    raise RefusedError(f"too many runs in {base.parent} within one second")


def _point_latest(folder: Path) -> None:
    link = folder.parent / "latest"
    fresh = folder.parent / f".latest-{os.getpid()}"
    fresh.symlink_to(folder.name)
    fresh.replace(link)


def _lanes(plan: Plan) -> str:
    """What serves the requests: compiled, python, or locust."""
    if plan.locustfile:
        return "locust"
    return "compiled" if compiled_lanes() and not plan.closed else "python"


def _write_manifest(context: RunContext, virtual: bool) -> None:
    """Everything about a run that is not the same for the same seed."""
    write_json(
        context.folder / "manifest.json",
        {
            "version": 1,
            "survive": __version__,
            "run": context.run_id,
            "started_utc": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "host": "virtual" if virtual else "real",
            "argv": list(sys.argv[1:]),
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
            "lanes": _lanes(context.plan),
            "file": in_repository(context.scenario.file),
            "lines": dict(context.scenario.lines),
        },
    )


def write_json(path: Path, document: Mapping[str, Json]) -> None:
    """Whole or not at all: a reader never sees half a verdict."""
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    fresh.replace(path)


def _read_json(path: Path) -> Json:
    """None if it is not there, or no JSON."""
    try:
        document: Json = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return document


def console_on(stream: Any) -> Console:
    """Cursor movement only on a real terminal, whatever FORCE_COLOR says."""
    from rich.console import Console

    heard: Any = Unheard(stream) if stream is not None else io.StringIO()  # closed: `2>&-`
    return Console(file=heard, force_interactive=heard.isatty(), highlight=False)


def _display(console: Console, context: RunContext) -> Any:
    from survive.catalog import builtin_root, load_module

    live = load_module(builtin_root() / "reporters" / "live.py")
    return live.LiveDisplay(console, context.plan, context.scenario.name)


def _show(record: Record, verdict: Verdict, form: str) -> None:
    show(
        form, verdict.to_json, "terminal",
        lambda page, console: page.print_report(console, record, verdict, program()),
    )  # fmt: skip


def _show_episodes(episodes: Sequence[Episode], form: str) -> None:
    told = [(e.seed, str(e.folder), int(e.code), e.verdict) for e in episodes]

    def document() -> Json:
        return [e.verdict.to_json() if e.verdict is not None else None for e in episodes]

    show(form, document, "episodes", lambda page, console: page.print_episodes(console, told))


def show(
    form: str, document: Callable[[], Json], page: str, drawn: Callable[[Any, Console], None]
) -> None:
    """A result on stdout: its document with ``form`` json, else as reporters/<page>.py has it."""
    if sys.stdout is None:  # closed: `>&-`
        return
    if form == "json":
        say(json.dumps(document(), indent=2).encode() + b"\n")
        return
    from survive.catalog import builtin_root, load_module

    shown = load_module(builtin_root() / "reporters" / f"{page}.py")
    console = console_on(sys.stdout)
    with console.capture() as captured:
        drawn(shown, console)
    say(captured.get().encode(sys.stdout.encoding, "replace"))


def say(text: bytes) -> None:
    """To stdout. A reader that left (`| head`) or a full disk does not change the exit code."""
    try:
        sys.stdout.buffer.write(text)
        sys.stdout.flush()
    except OSError as error:
        to_nowhere(sys.stdout, error)
