"""{every kind} × {every ending}: one run of each, and what it proves or leaves.

Where a kind is played stands in ``stages``.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml
from killtools import Started, heal
from stages import Containers, Stage, missing, stage_of

from survive.catalog import Catalog
from survive.chaos import netns, processes
from survive.chaos.heal import heal_all
from survive.chaos.ledger import PROXY
from survive.contracts import Fault, Needs

HOLD_S = 2.0  # the fault is on
AFTER_S = 2.8  # of load after inject

# Those that stand for a family, or for a way to act, before all others.
USUAL = (
    "network.latency",
    "network.drop",
    "node.pause",
    "gpu.lost",
    "protocol.stall",
    "nvidia.vram_hog",
)

# The fault's own heal never comes back, in the child that runs its verbs, where this is found as
# ``sitecustomize``: whatever else mends it is as it always is.
HUNG = """
import sys
if "survive.chaos.child" in sys.orig_argv:
    import asyncio
    from survive.chaos import executor
    real = executor.perform
    async def perform(fault, verb, *rest):
        if verb == "heal":
            await asyncio.sleep(3600)
        return await real(fault, verb, *rest)
    executor.perform = perform
"""

# What happens when the record takes a frame while the file ``raise`` is there.
RAISING = """
import os
from survive.record.writer import RecordWriter
real = RecordWriter.frame
def frame(self, data):
    if os.path.exists({flag!r}):
        raise RuntimeError("a bug of the matrix")
    return real(self, data)
RecordWriter.frame = frame
"""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of the matrix. ``problem`` is empty if all is as it must be."""

    date: str
    kind: str
    on: str  # what it was played on
    ending: str
    exit: int
    left: list[str]
    clean_ms: float  # from the ending to nothing left; of a normal end from the end of survive
    planned_s: float | None
    injected_s: float | None
    proof_before: str
    proof_during: str
    proof_after: str
    heal_ms: float | None
    problem: str

    def line(self) -> str:
        """One JSON line."""
        return json.dumps(asdict(self), ensure_ascii=False)


# ---------------------------------------------------------------------------------- the kinds


def every_kind() -> list[str]:
    """Every built-in kind."""
    return Catalog(plugins=False).fault_kinds()


def elsewhere() -> dict[str, str]:
    """Kinds that cannot be played on this host, and why."""
    return {kind: why for kind in every_kind() if (why := missing(kind))}


def families() -> dict[str, str]:
    """Family → the kind that stands for it: the usual one, or the first that is held."""
    found: dict[str, str] = {}
    for kind in _ordered(every_kind()):
        found.setdefault(kind.partition(".")[0], kind)
    return found


def ways() -> list[str]:
    """A kind for each way in which something is reached and mended when a heal does not do it.

    Switches of GPUs and of stand-ins are one way; a card, a disk or a clock is reached by the
    replica that uses it.
    """
    catalog, found = Catalog(plugins=False), dict[object, str]()
    for kind in _ordered(every_kind()):
        needs = catalog.fault(kind).needs
        switched = Needs.GPU if needs is Needs.STAND_IN else needs
        found.setdefault(stage_of(kind).carrier or switched, kind)
    return list(found.values())


def _ordered(kinds: list[str]) -> list[str]:
    """Those that stand for others first: the usual ones, then those that are held."""
    catalog = Catalog(plugins=False)
    rank = {kind: number for number, kind in enumerate(USUAL)}
    return sorted(kinds, key=lambda k: (rank.get(k, len(rank)), not catalog.fault(k).held))


def stage_for(kind: str, folder: Path) -> Stage:
    """Its stage, in a folder of its own; nothing is built yet."""
    return stage_of(kind)(Catalog(plugins=False).fault(kind), folder)


def write_scenario(stage: Stage, *, at_s: float | None = None) -> Path:
    """A scenario of one fault, and the target file beside it that allows what the matrix does."""
    fault, folder, at_s = stage.fault, stage.folder, at_s or stage.at_s
    (folder / ".git").mkdir()  # where the search for a team's own folders ends
    (folder / "targets").mkdir()
    allow = {"hosts": ["127.0.0.1"], "faults": [fault.kind.partition(".")[0]]}
    target = {**stage.target(), "allow": {**allow, "privileged": stage.privileged}}
    (folder / "targets" / "stack.yaml").write_text(yaml.safe_dump(target))
    plan = {"kind": fault.kind, "at": _ms(at_s), **stage.where(), "with": stage.settings()}
    if fault.held:
        plan["for"] = _ms(HOLD_S)
    scenario = {
        "survive": 1,
        "name": "matrix",
        "target": "stack",
        "seed": 7,
        "requests": {"get": {"get": stage.get, "timeout": "1s"}},
        "load": {"phases": [{"name": "flat", "rate": "20/s", "for": _ms(at_s + AFTER_S)}]},
        "faults": {"one": plan},
        "objectives": {"answers": {"metric": "success", "min": "1%", "during": "run"}},
    }
    file = folder / "matrix.survive.yaml"
    file.write_text(yaml.safe_dump(scenario, sort_keys=False))
    return file


def _ms(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"


# -------------------------------------------------------------------------------- the endings


def _signal(*numbers: signal.Signals) -> Callable[[Started], None]:
    def act(run: Started) -> None:
        for number in numbers:
            os.kill(run.process.pid, number)
            time.sleep(0.05 if len(numbers) > 1 else 0)

    return act


def _kill_agent(run: Started) -> None:
    os.kill(run.agent(), signal.SIGKILL)


def _kill_group(run: Started) -> None:
    os.killpg(run.process.pid, signal.SIGKILL)


def _kill_proxy(run: Started) -> None:
    found = [process for name, process in run.story().processes if name == PROXY]
    assert sum(processes.send(p.pid, p.start_time, signal.SIGKILL) for p in found), "no proxy"


def _raise(run: Started) -> None:
    (run.folder / "raise").touch()


def _fill_disk(run: Started) -> None:
    """No more room for the ledger, of the agent only: EFBIG where a disk says ENOSPC."""
    size = (run.state / run.run_id / "ledger.ndjson").stat().st_size
    resource.prlimit(run.agent(), resource.RLIMIT_FSIZE, (size, size))


def _fill_record(run: Started) -> None:
    """No more room for the record: of survive only, so that the agent can still do its work."""
    size = run.only("events.ndjson").stat().st_size
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, (size, size))


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ends. ``exits`` that are right; ``at``: the event after which ``act`` comes."""

    exits: frozenset[int]
    act: Callable[[Started], None] | None = None
    at: str = "fault_injected"


ENDINGS: dict[str, Ending] = {
    "normal": Ending(frozenset({0, 1, 3})),
    "exception": Ending(frozenset({70}), _raise),
    "sigint": Ending(frozenset({130}), _signal(signal.SIGINT)),
    "sigint-twice": Ending(frozenset({130}), _signal(signal.SIGINT, signal.SIGINT)),
    "sigterm": Ending(frozenset({143}), _signal(signal.SIGTERM)),
    "sighup": Ending(frozenset({130}), _signal(signal.SIGHUP)),
    "kill-run": Ending(frozenset({-9}), _signal(signal.SIGKILL)),
    "kill-agent": Ending(frozenset({3}), _kill_agent),
    "kill-group": Ending(frozenset({-9}), _kill_group),
    "hung-heal": Ending(frozenset({5})),
    # A fault whose target or proxy died under it cannot always be proven healed. 0 only if it was
    # done again to the restarted target, see _problem.
    "target-gone": Ending(frozenset({0, 1, 3, 5})),  # ended by its stage
    "backend-gone": Ending(frozenset({1, 3, 5}), _kill_proxy),
    "disk-full": Ending(frozenset({3}), _fill_disk, at="phase_started"),
    "record-full": Ending(frozenset({3}), _fill_record),
}


def applies(kind: str, ending: str) -> bool:
    """A one-shot has no heal to hang; only faults on links have a proxy, packets need none."""
    fault = Catalog(plugins=False).fault(kind)
    if ending == "hung-heal":
        return fault.held
    return ending != "backend-gone" or (fault.needs is Needs.LINK and not stage_of(kind).isolation)


# ------------------------------------------------------------------------------------ one run


def play(kind: str, ending: str, folder: Path, *, at_s: float | None = None) -> Cell:
    """One run of one kind, ended in one way."""
    stage = stage_for(kind, folder)
    file = write_scenario(stage, at_s=at_s)
    stage.build()
    try:
        return _play(stage, ending, file)
    finally:
        stage.close()


def _play(stage: Stage, ending: str, file: Path) -> Cell:
    how = ENDINGS[ending]
    run = Started(
        file,
        env=_environment(stage, ending),
        wrapper=RAISING.format(flag=str(stage.folder / "raise")) if ending == "exception" else "",
        arguments=["--allow-privileged"] if stage.privileged else [],
        least=2 if isinstance(stage, Containers) else 3,
    )
    try:
        run.until(how.at)
        began = time.monotonic()
        acts = how.act is not None or ending == "target-gone"
        if ending == "target-gone":
            assert stage.end_target(run), "there was nothing to kill"
        elif how.act is not None:
            how.act(run)
        code = run.process.wait(stage.ends_s)
        if not acts or code >= 0:
            began = time.monotonic()  # survive had its say; what is left from here on is too much
        if code == 5:
            _by_hand(stage, run)
        left = _left(stage, run)
        clean_ms = (time.monotonic() - began) * 1000
        if code == 5:  # what a hand did no ledger knows
            heal(env={**stage.env(), "XDG_STATE_HOME": str(run.state.parent)})
        return _cell(run, stage.fault.kind, ending, code, [*left, *_not_clean(run)], clean_ms)
    finally:
        run.close()


def _environment(stage: Stage, ending: str) -> dict[str, str]:
    """A state directory and a place for temporary files of its own, so that all is seen."""
    (stage.folder / "tmp").mkdir()
    places = {"XDG_STATE_HOME": str(stage.folder / "state"), "TMPDIR": str(stage.folder / "tmp")}
    env = {**stage.env(), **places}
    if ending == "hung-heal":
        (stage.folder / "hung").mkdir()
        (stage.folder / "hung" / "sitecustomize.py").write_text(HUNG)
        path = env.get("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
        env["PYTHONPATH"] = f"{stage.folder / 'hung'}:{path}"
    return env


def _left(stage: Stage, run: Started) -> list[str]:
    """Processes, and whatever else a fault or a target can leave; early when there is nothing."""
    deadline = time.monotonic() + stage.clean_s
    while (found := _traces(stage, run)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return [*run.left(max(0.0, deadline - time.monotonic())), *found]


def _by_hand(stage: Stage, run: Started) -> None:
    """Do what the run told people to do; a line that it told nobody is not done."""
    said = run.output(100_000)
    for event in run.told():
        line = str(event.get("by_hand", ""))
        if line and f"by hand: {line}" in said:
            env = {**os.environ, **stage.env()}
            subprocess.run(["sh", "-c", line], check=True, env=env)


def _traces(stage: Stage, run: Started) -> list[str]:
    groups = Path("/sys/fs/cgroup")  # ours are at the root of a hierarchy, in both versions
    ours = [str(g) for way in ("", "*/") for g in groups.glob(f"{way}sv-{run.run_id}*")]
    links = [netns.link_name(run.run_id)] if netns.link_exists(run.run_id) else []
    files = [str(path) for path in (stage.folder / "tmp").iterdir()]
    return [*ours, *links, *files, *stage.left(run.run_id)]


def _not_clean(run: Started) -> list[str]:
    """What ``survive heal --check`` would find, beyond processes."""
    before = os.environ.get("XDG_STATE_HOME")
    os.environ["XDG_STATE_HOME"] = str(run.state.parent)
    try:
        found = asyncio.run(heal_all(check=True)).findings
    finally:
        if before is None:
            del os.environ["XDG_STATE_HOME"]
        else:
            os.environ["XDG_STATE_HOME"] = before
    return [finding.line() for finding in found if not finding.gone]


def _cell(
    run: Started, kind: str, ending: str, code: int, left: list[str], clean_ms: float
) -> Cell:
    told = run.told()
    injected = next((e for e in told if e["event"] == "fault_injected"), None)
    looks = {
        stage: [e for e in told if e["event"] == "fault_observed" and e["stage"] == stage]
        for stage in ("before", "during", "after")
    }
    during = [e for e in looks["during"] if e["active"] == "yes"] or looks["during"]
    return Cell(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        kind=kind,
        on=stage_of(kind).said,
        ending=ending,
        exit=code,
        left=left,
        clean_ms=round(clean_ms, 1),
        planned_s=_seconds(injected, "planned_us"),
        injected_s=_seconds(injected, "began_us"),
        proof_before=_said(looks["before"][-1:], run),
        proof_during=_said(during[:1], run),
        proof_after=_said(looks["after"][-1:], run),
        heal_ms=_heal_ms(told),
        problem=_problem(kind, ending, code, left, run),
    )


def _seconds(event: dict[str, object] | None, key: str) -> float | None:
    return None if event is None else round(int(str(event[key])) / 1e6, 4)


def _said(looks: list[dict[str, object]], run: Started) -> str:
    """What was seen, without the run's own folder, which is another each time."""
    said = f"{looks[0]['active']}: {looks[0]['evidence']}" if looks else ""
    return said.replace(f"{run.folder}/", "")


def _heal_ms(told: list[dict[str, object]]) -> float | None:
    """From the beginning of the first heal to its proof."""
    began = [int(str(e["began_us"])) for e in told if e["event"] == "fault_healed"]
    proven = [int(str(e["t_us"])) for e in told if e["event"] == "heal_proven" and e["proven"]]
    return round((proven[-1] - began[0]) / 1000, 1) if began and proven else None


def _problem(kind: str, ending: str, code: int, left: list[str], run: Started) -> str:
    fault = Catalog(plugins=False).fault(kind)
    if left:
        return f"left: {'; '.join(left)}"
    exits = ENDINGS[ending].exits
    if ending == "hung-heal" and fault.keeps_down:
        exits |= {0, 1, 3}  # it is the supervisor that brings its victim back
    if code not in exits:
        wanted = ", ".join(map(str, sorted(exits)))
        return f"exit {code}, not {wanted}: {run.output()[-600:]}"
    if ending == "normal" and (why := _unproven(run, fault.held)):
        return why
    if ending == "disk-full" and "fault_injected" in run.events():
        return "it was injected without a word in the ledger"
    if (
        ending == "target-gone"
        and code == 0
        and _goes_along(fault)
        and "fault_reinjected" not in run.events()
    ):
        return "exit 0 although the fault went with the target and was not done again"
    return ""


def _unproven(run: Started, held: bool) -> str:
    """Of a fault that nobody disturbed: what of it was not seen."""
    seen = {(e["stage"], e["active"]) for e in run.told() if e["event"] == "fault_observed"}
    wanted = [("before", "no"), ("during", "yes"), *([("after", "no")] if held else [])]
    missed = [f"{active} {stage}" for stage, active in wanted if (stage, active) not in seen]
    return f"never seen: {', '.join(missed)}" if missed else ""


def _goes_along(fault: Fault) -> bool:
    """It ends with the process that it hit.

    Not what is in a proxy, in a namespace or wherever a whole target has it, nor what keeps down.
    """
    elsewhere = fault.needs in {Needs.LINK, Needs.TARGET} or bool(stage_of(fault.kind).isolation)
    return fault.held and not fault.keeps_down and not elsewhere
