"""The command line: parse, dispatch, exit. A contract: see docs/stability.md.

Results go to stdout, progress and diagnostics to stderr. Everything heavy is imported inside the
command that needs it, so that ``survive --help`` answers at once.
"""

from __future__ import annotations

import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from survive import __version__
from survive.errors import ExitCode, SurviveError
from survive.output import Unheard

F = TypeVar("F", bound=Callable[..., Any])


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="survive")
def cli() -> None:
    """Drive load and faults on one clock, and say whether the stack survived.

    \b
    exit codes: 0 survived · 1 failed · 2 wrong scenario or command line
                3 inconclusive · 4 stopped by stop_if · 5 a heal is not proven
                6 refused · 70 a bug of ours · 130, 143 interrupted, healed
    """


def scenario_options(command: F) -> F:
    """The options that every command on a scenario file shares."""
    for option in (
        click.argument("file", type=click.Path(path_type=Path)),
        click.option(
            "--target", metavar="NAME", help="Use another target file (targets/NAME.yaml)."
        ),
        click.option(
            "--set",
            "sets",
            multiple=True,
            metavar="PATH=VALUE",
            help="Override one value: load.scale=1/100, target.vars.model=big.",
        ),
        click.option("--profile", metavar="NAME", help="Apply a profile of the scenario file."),
    ):
        command = option(command)
    return command


def run_options(command: F) -> F:
    """Where runs leave what they write, in which form they are told, and on which host they are."""
    for option in (
        click.option(
            "--virtual", is_flag=True, help="One event loop, counted time, grade simulated."
        ),
        click.option(
            "--format",
            "form",
            type=click.Choice(["human", "json"]),
            default="human",
            show_default=True,
        ),
        click.option(
            "--out",
            type=click.Path(path_type=Path),
            default=Path("runs"),
            show_default=True,
            help="Each run makes a directory of its own in here.",
        ),
    ):
        command = option(command)
    return command


def plugins_option(command: F) -> F:
    """Whether code beside the scenario may run."""
    option: Callable[[F], F] = click.option(
        "--plugins", is_flag=True, help="Load faults of your own folders (runs their code)."
    )
    return option(command)


@cli.command(short_help="Write a scenario and its target to begin with.")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path())
@click.option(
    "--target",
    type=click.Choice(["reference", "url", "process", "compose"]),
    help="What is tested: the AI stack of survive (default), what runs already, what it starts.",
)
@click.option("--url", metavar="URL", help="What runs already: http://127.0.0.1:8080/path")
@click.option("--name", help="Of the scenario; default that of the folder.")
@click.option(
    "--ci",
    type=click.Choice(["github", "gitlab", "none"]),
    help="Write a gate, too; default for whose files are there already.",
)
@click.option("--force", is_flag=True, help="Overwrite what is there.")
def init(**asked: Any) -> ExitCode:
    """Write a scenario that runs at once into FOLDER, its target, and what editors and git need."""
    from survive.starter.command import Asked, init_project

    return init_project(Asked(**asked))


@cli.command()
@scenario_options
@run_options
@click.option(
    "--allow-privileged",
    "privileged",
    is_flag=True,
    help="Use root where the target's `allow: {privileged: true}` permits it too.",
)
@click.option(
    "--require-grade",
    type=click.Choice(["real", "induced", "reported", "emulated", "simulated"]),
    help="Inconclusive if anything of the run is less real than this.",
)
@click.option(
    "--inconclusive",
    type=click.Choice(["fail", "pass", "extend"]),
    help="Exit 1 or 0, not 3, where only the evidence falls short; or run once more, for longer.",
)
@click.option(
    "--repeat",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="So many runs, each with the next seed; the worst verdict decides.",
)
@click.option(
    "--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Load processes."
)
@click.option(
    "--expect-workers",
    type=click.IntRange(1, 1000),
    metavar="N",
    help="Wait for N `survive worker`s instead.",
)
@click.option(
    "--bind",
    default="127.0.0.1:5557",
    show_default=True,
    metavar="HOST:PORT",
    help="Where expected workers find this run.",
)
@click.option(
    "--report",
    "reports",
    multiple=True,
    metavar="FORMAT=PATH",
    help="Write a report too, whatever the verdict: junit, markdown, hgrm, ... (- is stdout).",
)
@click.option("--no-ci", is_flag=True, help="No summary, no annotations inside GitHub Actions.")
def run(
    file: Path,
    target: str | None,
    sets: tuple[str, ...],
    profile: str | None,
    out: Path,
    form: str,
    virtual: bool,
    privileged: bool,
    require_grade: str | None,
    inconclusive: str | None,
    repeat: int,
    workers: int,
    expect_workers: int | None,
    bind: str,
    reports: tuple[str, ...],
    no_ci: bool,
) -> ExitCode:
    """Run a scenario: load, faults, verdict."""
    from survive.host.command import Workers, run_scenario

    plain = Workers(workers)

    return run_scenario(
        file,
        target=target,
        sets=sets,
        profile=profile,
        out=out,
        form=form,
        virtual=virtual,
        privileged=privileged,
        require_grade=require_grade,
        inconclusive=inconclusive,
        repeat=repeat,
        workers=Workers(workers, expect_workers, bind) if expect_workers else plain,
        reports=reports,
        ci=not no_ci,
    )


@cli.command(short_help="Say how far off every percentile is on this machine.")
@click.option(
    "--rate",
    type=click.IntRange(10, 5000),
    default=200,
    show_default=True,
    help="Requests a second.",
)
@click.option("--seconds", type=click.IntRange(5, 600), default=8, show_default=True)
@click.option("--format", "form", type=click.Choice(["human", "json"]), default="human")
@click.option("--unix", is_flag=True, help="Over a Unix socket: the floor is lower.")
def calibrate(rate: int, seconds: int, form: str, *, unix: bool) -> ExitCode:
    """Measure servers of known latency: how far off is every percentile on this machine?"""
    from survive.host.calibrate import show_calibration

    return show_calibration(rate, seconds, form, unix=unix)


@cli.command()
@click.option("--master", required=True, metavar="HOST[:PORT]", help="Where the run is.")
@click.option(
    "--patience",
    type=click.IntRange(1, 3600),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for it.",
)
def worker(master: str, patience: int) -> ExitCode:
    """Send a part of another machine's load (`run --expect-workers`)."""
    host, colon, port = master.rpartition(":")
    where = (host, port) if colon else (master, "5557")
    argv = [sys.executable, "-m", "survive.load.worker", *where, str(patience)]
    os.execv(sys.executable, argv)  # Locust must be the first import of a process


@cli.command()
@scenario_options
@plugins_option
def validate(
    file: Path, target: str | None, sets: tuple[str, ...], profile: str | None, plugins: bool
) -> ExitCode:
    """Check a scenario and its target file; every problem at once."""
    from survive.catalog import Catalog
    from survive.judge.explain import too_few
    from survive.scenario.loader import load_scenario

    catalog = Catalog(file, plugins=plugins)
    scenario = load_scenario(file, target=target, sets=sets, profile=profile, catalog=catalog)
    for warning in (*scenario.warnings, *too_few(scenario)):
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"{file}: valid ({scenario.name} on {scenario.target.name})")
    return ExitCode.SURVIVED


@cli.command(short_help="Show what a run would do and could tell; changes nothing.")
@scenario_options
@plugins_option
def explain(
    file: Path, target: str | None, sets: tuple[str, ...], profile: str | None, plugins: bool
) -> ExitCode:
    """Show what a run would do, and what each objective could tell; changes nothing."""
    from survive.catalog import Catalog
    from survive.host.machine import machine_warnings
    from survive.judge.explain import explain as explained
    from survive.output import folded
    from survive.plan.plan import make_plan
    from survive.scenario.loader import load_scenario

    catalog = Catalog(file, plugins=plugins)
    scenario = load_scenario(file, target=target, sets=sets, profile=profile, catalog=catalog)
    plan = make_plan(scenario)
    click.echo(folded(explained(scenario, plan, catalog.fault)))
    for warning in machine_warnings(scenario, plan):
        click.echo(f"warning: {warning}")
    return ExitCode.SURVIVED


@cli.command(short_help="Find the highest load at which the scenario survives.")
@scenario_options
@run_options
@click.option("--from", "start", metavar="LOAD", help="Where to begin; 2x, 500/s. Default: 1x.")
@click.option("--to", metavar="LOAD", help="No higher than this. Default: 64 times the beginning.")
@click.option("--at", metavar="LOAD,...", help="These loads and no others.")
@click.option("--min", "least", metavar="LOAD", help="Exit 0 if it survives so much, 1 if not.")
@click.option(
    "--resolution",
    default="10%",
    show_default=True,
    metavar="SHARE",
    help="How near the bounds have to come.",
)
@click.option(
    "--repeat",
    type=click.IntRange(1, 100),
    default=1,
    show_default=True,
    help="So many runs at each load; all have to agree.",
)
@click.option(
    "--max-runs",
    "runs",
    type=click.IntRange(1, 1000),
    default=40,
    show_default=True,
    help="Of one envelope.",
)
@click.option("--without-faults", is_flag=True, help="The same load with no faults injected.")
@click.option("--headroom", is_flag=True, help="With faults and without: what they cost.")
@click.option(
    "--allow-privileged",
    "privileged",
    is_flag=True,
    help="Use root where the target's `allow: {privileged: true}` permits it too.",
)
@click.option(
    "--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Load processes."
)
def envelope(**asked: Any) -> ExitCode:
    """Find the highest load at which a scenario still survives, and what breaks first above it.

    Every rate of the scenario is multiplied by a factor; each load is a run of its own, with its
    faults. It goes up until a run fails and then narrows the interval.

    \b
    exit codes: 0 an interval was found, or --min holds
                1 it fails at every load, or --min does not hold
                3 not decided · 2, 5, 6, 70, 130, 143 as of `run`
    """
    from survive.host.envelope import Asked, find_envelope

    return find_envelope(Asked(**asked))


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="RUN")
@click.option("--from-hlog", is_flag=True, help="Derive the table from latency.hlog again.")
@click.option(
    "--format", "form", type=click.Choice(["human", "json"]), default="human", show_default=True
)
def judge(folder: Path, from_hlog: bool, form: str) -> ExitCode:
    """Judge a stored run again, by the limits in its scenario.yaml."""
    from survive.host.command import judge_run

    return judge_run(folder, from_hlog=from_hlog, form=form)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="RUN")
@click.option("--format", "form", default="terminal", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A file instead of stdout.")
@click.option("--request", default="", help="hgrm: of this request kind only.")
@click.option("--series", default="", help="hgrm: latency, ttft, service_time, ...")
@click.option("--window", default="", help="hgrm: steady, fault:NAME, phase:NAME, ...")
def report(
    folder: Path, form: str, output: Path | None, request: str, series: str, window: str
) -> ExitCode:
    """Render a stored run.

    Formats: terminal, html, markdown, json, junit, github, openmetrics, hgrm (a percentile
    distribution as HdrHistogram prints it), and whatever stands in reporters/ beside the scenario.
    """
    from survive.host.command import report_run

    part = {"request": request, "series": series, "window": window}
    return report_run(folder, form=form, output=output, part=part)


@cli.command(short_help="Say whether runs are worse than others were.")
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["human", "json", "markdown"]),
    default="human",
    show_default=True,
)
@click.option("--fail-on-regression", is_flag=True, help="Exit 1 if worse, 3 if undecided.")
@click.option(
    "--accept",
    multiple=True,
    type=click.Choice(["target", "machine", "version", "grade", "lanes"]),
    help="Judge although this differs.",
)
@click.option(
    "--tolerate",
    default="0%",
    show_default=True,
    metavar="SHARE",
    help="Call nothing worse that is worse by no more than this.",
)
def diff(base: Path, new: Path, **asked: Any) -> ExitCode:
    """Compare NEW with BASE, cell by cell: is it worse than before?

    Each is a run directory, or what `run --repeat N --out DIR` wrote into. Below three runs a side
    nothing is judged, only shown; five decide for most scenarios. docs/diff.md says how.

    \b
    exit codes: 0 compared · 2 no runs, or not comparable
                with --fail-on-regression: 1 something is worse · 3 undecided
    """
    from survive.host.diff import diff_runs

    return diff_runs(base, new, **asked)


@cli.command()
@click.option("--check", is_flag=True, help="Change nothing; exit 0 only on a clean host.")
@click.option("--run", "run_id", help="Only this run.")
@click.option("--force", is_flag=True, help="Even if its owner seems alive (with --run).")
@click.option(
    "--acknowledge",
    is_flag=True,
    help="You looked at what the ledger's unreadable lines may have left (with --run).",
)
def heal(check: bool, run_id: str | None, force: bool, acknowledge: bool) -> ExitCode:
    """Mend what a dead run left behind, from its ledger alone.

    Exits 5 while anything is left, or a ledger has lines that cannot be read: what they told of is
    then not known, until somebody has looked and says so with --acknowledge.
    """
    from survive.host.command import heal_host

    return heal_host(check=check, run_id=run_id, force=force, acknowledge=acknowledge)


@cli.command(short_help="Stop all runs of this user, heal, and refuse new ones.")
@click.option("--clear", is_flag=True, help="Let runs begin again; stops nothing.")
def halt(clear: bool) -> ExitCode:
    """Stop every run of this user, heal, and refuse new ones until --clear."""
    from survive.host.command import halt_host

    return halt_host(clear=clear)


@cli.command(short_help="Say what this host can do and lacks; changes nothing.")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--target", help="Use another target file (targets/NAME.yaml).")
@click.option("--set", "sets", multiple=True, metavar="PATH=VALUE", help="Override one value.")
@click.option("--profile", help="Apply a profile of the scenario file.")
@plugins_option
@click.option(
    "--format", "form", type=click.Choice(["human", "json"]), default="human", show_default=True
)
def doctor(**asked: Any) -> ExitCode:
    """Say what this host can do, what it lacks, and what to do about it; changes nothing.

    With FILE: what that scenario needs of it; exit 6 if its run would be refused. Exit 5 if
    anything is left of a dead run.
    """
    from survive.doctor.command import Asked, show_doctor

    return show_doctor(Asked(**asked))


@cli.command(short_help="List the faults, or show one with its settings and grade.")
@click.argument("kind", required=False)
@click.option(
    "--format", "form", type=click.Choice(["human", "json"]), default="human", show_default=True
)
def faults(kind: str | None, form: str) -> ExitCode:
    """List the faults, all or of a family (gpu), or show one of them whole.

    That is what it does, how it is seen to be active, its grade, the privileges that it needs, what
    it certifies and what not, its settings, and the line to write.
    """
    from survive.host.listing import show_faults

    seen = sys.stdout is not None and sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if seen else None
    click.echo(show_faults(kind, form, width))
    return ExitCode.SURVIVED


@cli.command(short_help="Plant defects in the stack; say which your scenarios miss.")
@click.option(
    "--scenarios",
    "folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A folder of your own scenarios instead of the built-in ones.",
)
@click.option("--target", help="Plant the weaknesses in this target (targets/NAME.yaml).")
@click.option(
    "--seeds",
    type=click.IntRange(1, 1000),
    default=10,
    show_default=True,
    help="So many runs of each case; with --real one.",
)
@click.option("--scenario", "scenarios", multiple=True, metavar="NAME", help="Only this file.")
@click.option("--weakness", "weaknesses", multiple=True, metavar="W", help="Only this one.")
@click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    default=2,
    show_default=True,
    help="So many runs beside each other.",
)
@click.option("--real", is_flag=True, help="In real time, one run after the other, one seed.")
@click.option("--cells", "only", flag_value="cells", help="Claims on all seeds, no matrix.")
@click.option("--matrix", "only", flag_value="matrix", help="The kill matrix on one seed only.")
@click.option("--once", is_flag=True, help="Each weakness by its smallest scenario only.")
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=Path("runs/exam"),
    show_default=True,
    help="What was run is kept here, and not run again.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write a page of it, too.")
@click.option(
    "--format", "form", type=click.Choice(["human", "json"]), default="human", show_default=True
)
def exam(only: str | None, seeds: int, real: bool, **asked: Any) -> ExitCode:
    """Plant known weaknesses in the stack; say which of them your scenarios would miss."""
    from survive.exam.command import Asked, sit_exam

    return sit_exam(
        Asked(
            seeds=1 if real else seeds,
            real=real,
            cells=only != "matrix",
            matrix=only != "cells",
            **asked,
        )
    )


@cli.command("import", short_help="Turn a Chaos Toolkit experiment into a scenario.")
@click.argument("file", type=click.Path(path_type=Path), metavar="EXPERIMENT")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A file instead of stdout.")
def import_(file: Path, output: Path | None) -> ExitCode:
    """Turn a Chaos Toolkit experiment (.json, .yaml) into a scenario; runs none of its code."""
    from survive.chaostoolkit.importer import import_experiment

    imported = import_experiment(file)
    for note in imported.notes:
        click.echo(f"note: {note}", err=True)
    if output is None:
        click.echo(imported.text(), nl=False)
    else:
        output.write_text(imported.text(), encoding="utf-8")
        click.echo(f"{output}: written, valid; {len(imported.notes)} notes to look at", err=True)
    return ExitCode.SURVIVED


@cli.command()
def targets() -> ExitCode:
    """List the targets that a scenario here can name."""
    from survive.catalog import Catalog

    catalog = Catalog(Path.cwd())
    for name in catalog.target_names():
        click.echo(f"{name:20} {catalog.target_file(name)}")
    return ExitCode.SURVIVED


@cli.command(short_help="Print the JSON Schema of a file, for editors and hooks.")
@click.argument(
    "what",
    type=click.Choice(["scenario", "target", "verdict", "envelope", "diff"]),
    default="scenario",
)
def schema(what: str) -> ExitCode:
    """Print the JSON Schema (draft 7) of a file, for editors and hooks.

    Of what people write: scenario, target. Of what we write: verdict (verdict.json), envelope
    (envelope.json), diff (diff --format json).
    """
    if what == "envelope":  # written by hand
        from survive.catalog import builtin_root

        file = builtin_root() / "schema" / "envelope.v1.json"
        click.echo(file.read_text(encoding="utf-8"), nl=False)
        return ExitCode.SURVIVED
    from survive.scenario.schema import file_text, scenario_schema, target_schema

    if what in {"scenario", "target"}:
        found = scenario_schema() if what == "scenario" else target_schema()
    else:
        from survive.judge.schema import document_schema

        found = document_schema(what)
    click.echo(file_text(found), nl=False)
    return ExitCode.SURVIVED


def main(argv: list[str] | None = None) -> None:
    """The console script. Ends the process with an ExitCode, never with a bare traceback."""
    if sys.stdout is not None:  # closed: `>&-`
        sys.stdout = Unheard(sys.stdout)  # click would end with 1, whatever the command found
    sys.exit(int(_guarded(lambda: cli.main(argv, standalone_mode=False))))


def _guarded(command: Callable[[], Any]) -> ExitCode:
    try:
        code = command()
    except SurviveError as error:
        for line in error.lines():
            click.echo(line, err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return ExitCode.INVALID
    except (click.Abort, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    except Exception:
        return _bug()
    return ExitCode(code) if isinstance(code, int) else ExitCode.SURVIVED


def _bug() -> ExitCode:
    import tempfile

    text = traceback.format_exc()
    with tempfile.NamedTemporaryFile(
        "w", prefix="survive-bug-", suffix=".txt", delete=False
    ) as file:
        file.write(text)
    click.echo(f"a bug of ours: {text.strip().splitlines()[-1]}", err=True)
    click.echo(f"  hint: please report it with {file.name}", err=True)
    return ExitCode.BUG
