"""Ends what a run left behind, from its ledger alone: processes, then faults, then the last word.

For runs whose owners are gone (``survive heal``), for survive when its agent died, and for the
agent itself when survive died: the same code, so that it is always the tested one. Everything that
carries a fault today is a process that the run started (a replica, the fault proxy); ending it ends
the fault. A fault whose carrier is not ours is undone by its own heal.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

from survive.catalog import Catalog, nearest
from survive.chaos import netns, processes
from survive.chaos.cleaners import CLEAN_S, LOOK_S, cleaner
from survive.chaos.executor import HEAL_S, perform
from survive.chaos.handles import by_hand, open_handle
from survive.chaos.ledger import (
    LEDGER,
    PROXY,
    Ledger,
    LedgerError,
    Named,
    Owner,
    Story,
    folders,
    is_written,
)
from survive.clock import LoopClock
from survive.contracts import OBSERVE_S, Active, FaultFailedError, Injection, Observation
from survive.errors import RefusedError, SurviveError, UsageError
from survive.transport import Transport

KILL_WITHIN_S = 2.0
_POLL_S = 0.01
SCRATCH = "survive-"  # how the names of private folders begin


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a run left, and what became of it."""

    run: str
    what: str  # "inference-1 (pid 4711, paused)", "network.latency on gateway -> x #1"
    gone: bool  # by now
    done: str  # "killed", "healed", "left", ...
    fault: str = ""  # of injections: the scenario's name, and the injection's id
    injection: str = ""
    by_hand: str = ""  # the shell line that remains to be typed

    def line(self) -> str:
        """For people."""
        line = f"{self.run}: {self.what}: {self.done}"
        return line if self.gone or not self.by_hand else f"{line}; by hand: {self.by_hand}"


@dataclass(frozen=True, slots=True)
class HealResult:
    """What ``heal`` saw and did."""

    findings: tuple[Finding, ...]
    running: tuple[str, ...]  # runs whose owner lives; untouched

    @property
    def clean(self) -> bool:
        """Nothing is left of any run whose owner is gone."""
        return all(finding.gone for finding in self.findings)

    def lines(self) -> list[str]:
        """For people; never empty."""
        lines = [finding.line() for finding in self.findings]
        lines += [f"{run}: still running, untouched" for run in self.running]
        left = sum(not finding.gone for finding in self.findings)
        return [*lines, "clean: nothing is left" if not left else f"{left} left"]


def heal_leftovers(
    *,
    run: str | None = None,
    force: bool = False,
    check: bool = False,
    acknowledge: bool = False,
) -> HealResult:
    """Mend the host from every ledger; ``check`` = change nothing, list what is left.

    Touches only runs whose owners (survive and agent) are gone; ``run`` with ``force`` ends the
    agent of that run first, with ``acknowledge`` the unreadable lines of its ledger were looked
    into by a person and keep the host unclean no more. Raises UsageError for an unknown run or
    either of them without a run, RefusedError if the named run still has an owner.
    """
    return asyncio.run(heal_all(run=run, force=force, check=check, acknowledge=acknowledge))


async def heal_all(
    *,
    run: str | None = None,
    force: bool = False,
    check: bool = False,
    acknowledge: bool = False,
) -> HealResult:
    """heal_leftovers for callers that have a loop."""
    findings: list[Finding] = []
    running: list[str] = []
    if acknowledge and (run is None or check):
        raise UsageError(
            "--acknowledge needs --run ID, and no --check",
            hint="it says that a person has looked at what that run may have left",
        )
    for folder in _chosen(run, force):
        path = folder / LEDGER
        try:
            story = Ledger.read(path)
            unnamed = story.owner is None and story.damage and story.ended is None
            orphan = unnamed and is_written(path)
        except OSError as error:
            findings.append(_closed(folder.name, path, error))
            continue
        if orphan:
            findings.append(_nameless(folder.name, path, story))
            continue
        if story.owner is not None and story.owner.alive() and story.ended is None:
            if not force:
                running.append(folder.name)
                continue
            if not check:
                await _end_owner(story)
        findings += await clean_up(path, check=check, acknowledge=acknowledge)
    if run is not None and running:
        raise RefusedError(f"run {run} is still running", hint="stop it, or heal with --force")
    return HealResult(tuple(findings), tuple(running))


def _closed(run: str, path: Path, error: OSError) -> Finding:
    done = f"cannot be read: {error.strerror or error}"
    return Finding(run, "its ledger", False, done, by_hand=f"less {path}")


def _nameless(run: str, path: Path, story: Story) -> Finding:
    """Its owner lives and cannot be named: to mend now would be to fight it."""
    done = f"{'; '.join(story.damage)}, and its agent lives: untouched"
    return Finding(run, "its ledger", False, done, by_hand=f"fuser -v {path}")


def _chosen(run: str | None, force: bool) -> list[Path]:
    if run is None:
        if force:
            raise UsageError("--force needs --run ID", hint="it takes a run from its living owner")
        return folders()
    known = {folder.name: folder for folder in folders()}
    if run not in known:
        raise UsageError(f"no run {run!r} left a ledger", hint=nearest(run, list(known)))
    return [known[run]]


async def _end_owner(story: Story) -> None:
    """Kill the agent, whose children die with it. survive itself then notices and ends."""
    assert story.owner is not None
    agent = story.owner.agent
    if agent.pid != os.getpid() and agent != story.owner.survive:
        processes.send(agent.pid, agent.start_time, signal.SIGKILL)
        await _until_gone([agent])


async def clean_up(
    path: Path, *, check: bool = False, acknowledge: bool = False, heal_s: float = HEAL_S
) -> list[Finding]:
    """End what one run left. Never touches a process that it cannot name by pid and start time.

    ``heal_s`` bounds each fault's own heal; all run side by side. What stood in unreadable lines
    is not known, so it counts as left until somebody has looked (``acknowledge``).
    """
    story = Ledger.read(path)
    name = path.parent.name
    if story.ended is True:
        # A frozen survive may have held on to its folder. Whatever could not be read before the
        # run's last word was known to who spoke it.
        return _scratch(name, story, check=check)
    if story.owner is None and not story.damage:
        return []  # torn before its first entry was whole: nothing was begun without it
    if story.owner is not None and not story.owner.this_boot():
        # The host was restarted: all that it ran is gone, but not all that it stored.
        found = await _resources(name, story, check=check)
    elif check:
        found = _look(name, story) + await _resources(name, story, check=True)
    else:
        found = await _mend(name, story, heal_s)
    found += _scratch(name, story, check=check)
    found += _unknown(path, name, story, acknowledged=acknowledge)
    if not check:
        found += _last_word(path, name, story, found, acknowledged=acknowledge)
    return found


def _unknown(path: Path, run: str, story: Story, *, acknowledged: bool) -> list[Finding]:
    """What the ledger says no more. Nobody may call the host clean on its word."""
    if not story.damage:
        return []
    what, told = f"its ledger {path}", "; ".join(story.damage)
    if acknowledged:
        return [Finding(run, what, True, f"{told}: acknowledged")]
    done = f"{told}: what was told there is not known, and may still be on"
    look = f"look for what is still on at {story.target or run}"
    by_hand = f"{look}, then survive heal --run {run} --acknowledge"
    return [Finding(run, what, False, done, by_hand=by_hand)]


def _look(run: str, story: Story) -> list[Finding]:
    """What is left, unchanged."""
    found = [
        Finding(run, _described(label, process), False, "left", by_hand=f"kill -9 {process.pid}")
        for label, process in leftovers(run, story)
    ]
    if netns.link_exists(run):
        found.append(_interface(run, gone=False, done="left"))
    return found + [
        Finding(
            run,
            _named(injection),
            False,
            "not healed",
            injection.fault,
            injection.id,
            by_hand(injection),
        )
        for injection in story.open_injections()
        if not _went(injection, story)
    ]


async def _mend(run: str, story: Story, heal_s: float) -> list[Finding]:
    """Processes and resources side by side, then what is still on."""
    ended, resources = await asyncio.gather(
        end_processes(run, story), _resources(run, story, check=False)
    )
    found = [
        Finding(
            run,
            _described(label, process),
            gone,
            "killed" if gone else "cannot be killed",
            by_hand="" if gone else f"kill -9 {process.pid}",
        )
        for label, process, gone in ended
    ]
    if netns.link_exists(run):
        gone = await netns.remove_link(run)
        found.append(_interface(run, gone=gone, done="deleted" if gone else "cannot be deleted"))
    healed = (_heal(run, story, injection, heal_s) for injection in story.open_injections())
    return [*found, *resources, *(await asyncio.gather(*healed))]


def _interface(run: str, *, gone: bool, done: str) -> Finding:
    name = netns.link_name(run)
    what = f"network interface {name}"
    return Finding(run, what, gone, done, by_hand="" if gone else f"ip link delete {name}")


def _last_word(
    path: Path, run: str, story: Story, found: list[Finding], *, acknowledged: bool
) -> list[Finding]:
    """Tell the ledger, so that the next look is short."""
    try:
        ledger = Ledger(path)
        try:
            for injection in story.open_injections():
                told = [f.gone for f in found if f.injection == injection.id]
                ledger.healed(injection.id, proven=all(told), rung="ledger")
            if acknowledged and story.damage:
                ledger.looked(story.damage)
            ledger.ended(clean=all(finding.gone for finding in found))
        finally:
            ledger.close()
    except LedgerError as error:
        return [Finding(run, "its ledger", True, f"could not be told: {error.message}")]
    return []


def _scratch(run: str, story: Story, *, check: bool) -> list[Finding]:
    """The run's private folder, which holds the target's key. A living survive still needs it.

    Only a folder that looks as we make them: whatever else a ledger may say, nothing else is ever
    removed.
    """
    folder = Path(story.scratch)
    ours = (
        folder.name.startswith(SCRATCH)
        and folder.parent == Path(tempfile.gettempdir())
        and folder.is_dir()
        and not folder.is_symlink()
    )
    if not ours or (story.owner is not None and story.owner.survive.alive()):
        return []
    if not check:
        shutil.rmtree(folder, ignore_errors=True)
    gone = not folder.exists()
    done = "removed" if gone else "left"
    return [Finding(run, f"folder {folder}", gone, done, by_hand=f"rm -r {folder}")]


# ------------------------------------------------------------------------------- processes


def leftovers(run: str, story: Story) -> list[tuple[str, Named]]:
    """(label, process) of everything alive that the run started, this process excluded.

    What the ledger names, and whatever bears the run's mark. Where the ledger cannot say who
    wrote it, its pids may be of another boot, and the mark alone counts.
    """
    found = {} if story.owner is None else _recorded(story, story.owner)
    for pid, began in processes.marked(run):
        found.setdefault(Named(pid, began), "process of the run")
    mine = {os.getpid()}
    return [(label, process) for process, label in found.items() if process.pid not in mine]


def _recorded(story: Story, owner: Owner) -> dict[Named, str]:
    """Recorded processes; and what they left in their groups, if it is of the agent's session (a
    group's number alone could be another's by now)."""
    found: dict[Named, str] = {}
    for label, process in story.processes:
        if process.alive():
            found.setdefault(process, label)
        if processes.start_time(process.pid) in {0, process.start_time}:
            for pid, began in processes.group_members(process.pid):
                if processes.session(pid) == owner.agent.pid:
                    found.setdefault(Named(pid, began), f"child of {label}")
    return found


async def end_processes(run: str, story: Story) -> list[tuple[str, Named, bool]]:
    """SIGKILL until nothing is left, at most 2 s: (label, process, gone). They may fork meanwhile.

    SIGKILL ends a stopped process too.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + KILL_WITHIN_S
    seen: dict[Named, str] = {}
    while True:
        found = leftovers(run, story)
        for label, process in found:
            seen.setdefault(process, label)
        # One that is dying shows its mark no more, and is not gone yet.
        left = [process for process in seen if process.alive()]
        if not (found or left) or loop.time() > deadline:
            return [(label, process, process not in left) for process, label in seen.items()]
        for process in left:
            processes.send(process.pid, process.start_time, signal.SIGKILL)
        await asyncio.sleep(_POLL_S)


async def _until_gone(those: list[Named]) -> None:
    for _ in range(round(KILL_WITHIN_S / _POLL_S)):
        if not any(process.alive() for process in those):
            return
        await asyncio.sleep(_POLL_S)


def _described(label: str, process: Named) -> str:
    state = processes.state(process.pid, process.start_time)
    return f"{label} (pid {process.pid}{', paused' if state and state in 'Tt' else ''})"


# ------------------------------------------------------------------------------- resources


async def _resources(run: str, story: Story, *, check: bool) -> list[Finding]:
    """What the run made that is no process: looked at, and removed unless ``check``."""
    looks = (_resource(run, kind, name, check=check) for kind, name in story.resources)
    return [finding for found in await asyncio.gather(*looks) for finding in found]


async def _resource(run: str, kind: str, name: str, *, check: bool) -> list[Finding]:
    """One entry of the ledger. What cannot be looked at is not taken for gone."""
    try:
        owner = cleaner(kind)
        by_hand_line = owner.by_hand(run, name)
        async with asyncio.timeout(LOOK_S):
            before = await owner.left(run, name)
        if check:
            return [Finding(run, what, False, "left", by_hand=by_hand_line) for what in before]
        async with asyncio.timeout(CLEAN_S):
            after = await owner.clean(run, name)
    except TimeoutError:
        return [Finding(run, f"{kind} at {name}", False, "does not answer", by_hand=by_hand_line)]
    except (FaultFailedError, SurviveError, OSError) as error:
        return [Finding(run, f"{kind} at {name}", False, f"cannot be reached: {error}")]
    return [
        Finding(run, what, False, "cannot be removed", by_hand=by_hand_line)
        if what in after
        else Finding(run, what, True, "removed")
        for what in dict.fromkeys([*before, *after])
    ]


# ------------------------------------------------------------------------------- injections


def _named(injection: Injection) -> str:
    spec = injection.handle
    where = f"{spec.link} #{spec.replica}" if spec.link else spec.replica_id
    return f"{injection.kind} on {where}"


def _went(injection: Injection, story: Story) -> bool:
    """The process that carries the fault was ours and is gone, and the fault with it."""
    spec = injection.handle
    if spec.driver == "virtual":
        return True
    if spec.netns and injection.kind.startswith("network."):
        return not netns.Namespace(spec.netns).alive()
    if spec.pid:
        gone = not processes.exists(spec.pid, spec.start_time)
        return gone and not _outlives(injection, story)
    if spec.lent:
        # It went with its proxy, and that is looked for, and told of, as a thing of its own.
        return ("toxiproxy", spec.proxy) in story.resources
    proxies = [process for label, process in story.processes if label == PROXY]
    return bool(spec.proxy and proxies) and not any(process.alive() for process in proxies)


def _outlives(injection: Injection, story: Story) -> bool:
    """The fault says of itself that something of it stays behind a dead victim."""
    try:
        fault = Catalog(Path(story.start) if story.start else None).fault(injection.kind)
    except SurviveError:
        return False  # it cannot be healed by its own means either
    return bool(getattr(fault, "outlives_victim", False))


async def _heal(run: str, story: Story, injection: Injection, heal_s: float) -> Finding:
    """One injection, its carrier ended before if it was ours."""

    def finding(gone: bool, done: str) -> Finding:
        line = "" if gone else by_hand(injection)
        return Finding(run, _named(injection), gone, done, injection.fault, injection.id, line)

    if _went(injection, story):
        return finding(True, "gone with the process that carried it")
    from survive.host.sockets import SocketTransport

    transport = SocketTransport()
    try:
        async with asyncio.timeout(heal_s + OBSERVE_S):
            return finding(*await _undo(story, injection, transport))
    except TimeoutError:
        return finding(False, "its heal hangs")
    except (FaultFailedError, SurviveError) as error:
        return finding(False, f"its heal failed: {error}")
    finally:
        await transport.close()


async def _undo(story: Story, injection: Injection, transport: Transport) -> tuple[bool, str]:
    """(gone, what was seen). Unbounded. Raises FaultFailedError, SurviveError."""
    fault = Catalog(Path(story.start) if story.start else None).fault(injection.kind)
    handle = open_handle(injection.handle, fault.needs, LoopClock(0.0), transport)
    await perform(fault, "heal", injection, handle, None)
    seen = await perform(fault, "observe", injection, handle, None)
    assert isinstance(seen, Observation)
    if seen.active is Active.NO:
        return True, f"healed: {seen.evidence}"
    return False, f"still {seen.active}: {seen.evidence}"
