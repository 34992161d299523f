"""The faults that one ``chaos run`` has on: ledger first, proven on, proven gone.

Every verb runs in a loop of its own, so that actions, background actions and controls may call
from any thread. Another process (keeper.py) holds the ledger too: it heals what is still on when
this process ends, however it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from survive.catalog import Catalog
from survive.chaos import processes
from survive.chaos.executor import HEAL_S, INJECT_S, perform
from survive.chaos.handles import by_hand, open_handle
from survive.chaos.ledger import Ledger
from survive.clock import LoopClock
from survive.contracts import (
    OBSERVE_S,
    Active,
    Fault,
    FaultFailedError,
    HandleSpec,
    Injection,
    Json,
    Needs,
    Observation,
    look_s,
)
from survive.errors import RefusedError, SurviveError
from survive.host.sockets import SocketTransport
from survive.scenario.settings import parse_settings

T = TypeVar("T")
PROOF_S = 3.0
LOOKS = 3
_EVERY_S = 0.1
_AT = {f.name for f in fields(HandleSpec)} - {"driver", "start_time", "link"}


@dataclass(slots=True)
class _On:
    """One injection of ours."""

    injection: Injection
    fault: Fault
    before: float | None = None
    healed: bool = False
    busy: threading.Lock = field(default_factory=threading.Lock)  # one deed at a time


@dataclass(slots=True)
class Experiment:
    """All of one process. ``failed`` tells of injects and heals that did not do their work."""

    on: dict[str, _On] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    ledger: Ledger | None = None
    keeper: subprocess.Popen[bytes] | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)
    begun: int = 0
    stopping: threading.Event = field(default_factory=threading.Event)

    def inject(
        self, name: str, kind: str, at: Mapping[str, Any], settings: Mapping[str, Json]
    ) -> str:
        """Break it and see it broken; the evidence. Raises FaultFailedError, SurviveError."""
        try:
            with self.lock:
                one = self._announce(name, kind, at, settings)
            return _run(one, _begin(one, self.stopping))
        except (FaultFailedError, SurviveError) as error:
            self.failed.append(f"{name}: {error}")
            raise

    def _announce(
        self, name: str, kind: str, at: Mapping[str, Any], settings: Mapping[str, Json]
    ) -> _On:
        if name in self.on and not self.on[name].healed:
            raise RefusedError(f"fault {name!r} is on already")
        fault = Catalog(Path.cwd()).fault(kind)
        parsed = parse_settings(fault.settings, settings)
        spec = _spec(fault, at)
        if not fault.preflight(parsed, [spec]):
            raise RefusedError(f"{kind} matches nothing at {spec.address}")
        self.begun += 1
        until = 0 if fault.held else None
        planned = Injection(f"{name}#{self.begun}", name, kind, dict(settings), spec, 0, until)
        one = _On(planned, fault)
        self._open().inject([one.injection])
        self.on[name] = one
        return one

    def _open(self) -> Ledger:
        if self.ledger is None:
            run_id = f"chaos-{os.getpid()}-{os.urandom(3).hex()}"
            self.ledger = Ledger.create(run_id, run_id, start=Path.cwd())
            self.keeper = subprocess.Popen(
                [sys.executable, "-m", "survive.chaostoolkit.keeper", str(self.ledger.path)],
                stdin=subprocess.PIPE,
                start_new_session=True,  # a Ctrl-C or a kill of our group is not meant for it
            )
        return self.ledger

    def active(self, name: str) -> Observation:
        """One look at a fault. Raises RefusedError if it was never begun."""
        if name not in self.on:
            raise RefusedError(f"no fault {name!r} was begun here")
        return _run(None, _look(self.on[name]))

    def heal(self, name: str) -> str:
        """Mend it and see it gone; the evidence. Idempotent. Raises FaultFailedError."""
        one = self.on.get(name)
        if one is None or one.healed or not one.fault.held:
            return "nothing to heal"
        try:
            evidence = _run(one, _end(one))
        except FaultFailedError as error:
            self.failed.append(f"{name}: {error}")
            self._note(one, proven=False)
            raise FaultFailedError(f"{error}; by hand: {by_hand(one.injection)}") from error
        one.healed = True
        self._note(one, proven=True)
        return evidence

    def _note(self, one: _On, *, proven: bool) -> None:
        if self.ledger is not None:
            self.ledger.healed(one.injection.id, proven=proven, rung="undo")

    def heal_all(self) -> list[str]:
        """Mend everything; what could not be."""
        self.stopping.set()  # an inject that is under way gives up, one that is late never begins
        left = []
        for name in list(self.on):
            try:
                self.heal(name)
            except FaultFailedError as error:
                left.append(f"{name}: {error}")
        return left

    def close(self) -> list[str]:
        """heal_all, and the ledger's last word; the keeper ends and finds nothing to do."""
        left = self.heal_all()
        with self.lock:
            ledger, self.ledger = self.ledger, None
            keeper, self.keeper = self.keeper, None
        if ledger is not None:
            if not left:
                ledger.ended(clean=True)
            ledger.close()
        if keeper is not None and keeper.stdin is not None:
            keeper.stdin.close()
            keeper.wait(3 * (HEAL_S + OBSERVE_S))
        return left


def _spec(fault: Fault, at: Mapping[str, Any]) -> HandleSpec:
    """Where to act, from an experiment's ``at``. Raises RefusedError."""
    if fault.needs is Needs.TARGET or fault.keeps_down or fault.privileges:
        why = fault.privileges or "a target that survive started"
        raise RefusedError(f"{fault.kind} needs {why}", hint="use it in a scenario of survive run")
    unknown = set(at) - _AT
    if unknown:
        raise RefusedError(f"`at` knows no {', '.join(sorted(unknown))}", hint=", ".join(_AT))
    needed = {Needs.LINK: {"address", "via", "proxy", "proxy_name"}, Needs.GPU: {"address",
              "token"}}.get(fault.needs, {"address", "pid"})  # fmt: skip
    if needed - set(at):
        raise RefusedError(f"{fault.kind} needs `at` with {', '.join(sorted(needed))}")
    for key in ("address", "via", "proxy"):
        _check_loopback(key, str(at.get(key, "")))
    pid = int(at.get("pid", 0))
    began = processes.start_time(pid) if pid else 0
    if pid and not began:
        raise RefusedError(f"there is no process {pid}")
    given = {"service": "service", "replica": 0, **at, "pid": pid, "start_time": began}
    link = str(at.get("proxy_name", "")) if fault.needs is Needs.LINK else ""
    return HandleSpec("external", link=link, **given)


def _check_loopback(key: str, address: str) -> None:
    """Default-deny: an experiment has no ``allow:``."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        local = not address or host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise RefusedError(f"{key} {address} is not on this host",
                           hint="a scenario's target can allow other hosts")  # fmt: skip


# ------------------------------------------------------------------------------- in a loop


def _run(one: _On | None, work: Coroutine[Any, Any, T]) -> T:
    """In a thread of its own: a signal to the main thread must not cut a deed in half.

    Deeds on one fault wait for each other; all are bounded.
    """
    result: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            with one.busy if one is not None else contextlib.nullcontext():
                result.append(asyncio.run(work))
        except BaseException as error:  # handed to the caller below
            errors.append(error)

    thread = threading.Thread(target=body, name="survive fault", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return result[0]


async def _verb(one: _On, verb: str, limit_s: float) -> Any:
    """One verb within its time. Raises FaultFailedError."""
    transport = SocketTransport()
    try:
        handle = open_handle(one.injection.handle, one.fault.needs, LoopClock(0.0), transport)
        async with asyncio.timeout(limit_s):
            return await perform(one.fault, verb, one.injection, handle, one.before)
    except TimeoutError as error:
        raise FaultFailedError(f"{verb} was not done within {limit_s:g} s") from error
    finally:
        await transport.close()


async def _look(one: _On, within_s: float = OBSERVE_S) -> Observation:
    try:
        seen = await _verb(one, "observe", within_s)
    except FaultFailedError as error:
        return Observation(Active.UNKNOWN, str(error))
    assert isinstance(seen, Observation)
    return seen


async def _begin(one: _On, stopping: threading.Event) -> str:
    looks = [await _look(one) for _ in range(LOOKS)]
    for look in looks:
        if look.active is Active.YES:
            raise FaultFailedError(f"it was there before: {look.evidence}")
    values = [look.value for look in looks if look.value is not None]
    one.before = statistics.median(values) if values else None
    if stopping.is_set():
        raise FaultFailedError("the experiment was stopped before it began")
    await _verb(one, "inject", INJECT_S)
    return await _until(one, Active.YES, stopping)


async def _end(one: _On) -> str:
    await _verb(one, "heal", HEAL_S)
    evidence = await _until(one, Active.NO)
    if await _verb(one, "round_trip", OBSERVE_S) is not True:
        raise FaultFailedError(f"no round trip after the heal; {evidence}")
    return evidence


async def _until(one: _On, wanted: Active, stopping: threading.Event | None = None) -> str:
    """Seen so from outside, within 3 s. Raises FaultFailedError with the last evidence."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PROOF_S
    within_s = look_s(one.fault, one.injection.settings) if wanted is Active.YES else OBSERVE_S
    while True:
        seen = await _look(one, within_s)
        if seen.active is wanted:
            return seen.evidence
        if loop.time() > deadline or (stopping is not None and stopping.is_set()):
            word = "on" if wanted is Active.YES else "gone"
            raise FaultFailedError(f"it is not proven {word}: {seen.evidence}")
        await asyncio.sleep(_EVERY_S)


experiment = Experiment()
