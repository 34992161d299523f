"""Runs a fault's verbs, each within its time: in this loop (virtual), or in a child process (real).

On the real host every injection has one child, started before it is needed. A child that is late
on a verb is killed and the next verb gets a fresh one, which takes over from the injection's own
data: nothing of an injection lives in a child.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from survive.catalog import Catalog
from survive.chaos import processes
from survive.clock import Clock
from survive.contracts import (
    OBSERVE_S,
    Active,
    Fault,
    FaultFailedError,
    Handle,
    Injection,
    Observation,
)
from survive.host.driver import Driver
from survive.transport import CallFailedError, Transport

INJECT_S = 2.0
HEAL_S = 3.0
_LIMITS_S = {"inject": INJECT_S, "heal": HEAL_S, "observe": OBSERVE_S, "round_trip": OBSERVE_S}
START_S = 5.0  # a loaded machine; 60 ms is usual
_LONGEST_LINE = 1 << 20


class Executor(Protocol):
    """Four verbs, each bounded, and the life of what runs them."""

    def expect(self, injections: int) -> None:
        """So many will be prepared soon: start what takes time."""

    async def prepare(self, injection: Injection) -> None:
        """Get ready to run verbs on it at once. Raises FaultFailedError."""

    async def inject(self, injection: Injection) -> None:
        """Raises FaultFailedError, also if it is late (2 s)."""

    async def observe(
        self, injection: Injection, before: float | None, within_s: float = OBSERVE_S
    ) -> Observation:
        """One look; late or raised = unknown."""

    async def heal(self, injection: Injection) -> None:
        """Raises FaultFailedError, also if it is late (3 s)."""

    async def round_trip(self, injection: Injection) -> bool:
        """One positive answer within 1 s."""

    def cpu_s(self) -> float:
        """CPU seconds used so far by processes of its own."""

    async def close(self) -> None:
        """End whatever still runs. Idempotent."""


async def perform(
    fault: Fault, verb: str, injection: Injection, handle: Handle, before: float | None
) -> Observation | bool | None:
    """One verb, unbounded. Raises FaultFailedError, whatever the fault raises.

    A bug of a fault must not end a run with the fault on: it is evidence too, and says where.
    """
    try:
        if verb == "inject":
            await fault.inject(injection, handle)
            return None
        if verb == "heal":
            await fault.heal(injection, handle)
            return None
        if verb == "round_trip":
            return await fault.round_trip(injection, handle)
        return await fault.observe(injection, handle, before)
    except (CallFailedError, OSError) as error:
        raise FaultFailedError(f"{type(error).__name__}: {error}") from error
    except FaultFailedError:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise FaultFailedError(
            f"a bug in {injection.kind}: {type(error).__name__}: {error} "
            f"({Path(place.filename).name}:{place.lineno})"
        ) from error


async def get_ready(fault: Fault, injection: Injection) -> None:
    """What some faults have to start before they can act in time (an optional ``get_ready``).

    Bounded by the caller; changes nothing outside. Raises FaultFailedError.
    """
    start: Callable[[Injection], Awaitable[None]] | None = getattr(fault, "get_ready", None)
    if start is not None:
        await start(injection)


class _Verbs:
    """The four verbs in terms of one bounded ``_run``; shared by both executors."""

    async def _run(
        self,
        verb: str,
        injection: Injection,
        before: float | None = None,
        within_s: float | None = None,
    ) -> Observation | bool | None:
        raise NotImplementedError

    async def inject(self, injection: Injection) -> None:
        """See Executor."""
        await self._run("inject", injection)

    async def heal(self, injection: Injection) -> None:
        """See Executor."""
        await self._run("heal", injection)

    async def observe(
        self, injection: Injection, before: float | None, within_s: float = OBSERVE_S
    ) -> Observation:
        """See Executor."""
        try:
            seen = await self._run("observe", injection, before, within_s)
        except FaultFailedError as error:
            return Observation(Active.UNKNOWN, str(error))
        if not isinstance(seen, Observation):
            return Observation(Active.UNKNOWN, f"{injection.kind} observed nothing")
        return seen

    async def round_trip(self, injection: Injection) -> bool:
        """See Executor."""
        try:
            return await self._run("round_trip", injection) is True
        except FaultFailedError:
            return False  # no positive answer: that is all the question was


class InLoopExecutor(_Verbs):
    """The virtual host: the same faults in this very loop, on the driver's own handles."""

    def __init__(
        self, catalog: Catalog, driver: Driver, clock: Clock, transport: Transport
    ) -> None:
        self._catalog = catalog
        self._driver = driver
        self._faults: dict[str, Fault] = {}

    def expect(self, injections: int) -> None:
        """See Executor. Nothing to start."""

    async def prepare(self, injection: Injection) -> None:
        """See Executor. Nothing to start."""
        await get_ready(self._fault(injection.kind), injection)

    def _fault(self, kind: str) -> Fault:
        if kind not in self._faults:
            self._faults[kind] = self._catalog.fault(kind)
        return self._faults[kind]

    async def _run(
        self,
        verb: str,
        injection: Injection,
        before: float | None = None,
        within_s: float | None = None,
    ) -> Observation | bool | None:
        fault = self._fault(injection.kind)
        handle = self._driver.open(injection.handle, fault.needs)
        limit_s = within_s or _LIMITS_S[verb]
        try:
            async with asyncio.timeout(limit_s):
                return await perform(fault, verb, injection, handle, before)
        except TimeoutError as error:
            raise FaultFailedError(f"{verb} was not done within {limit_s:g} s") from error

    def cpu_s(self) -> float:
        """See Executor."""
        return 0.0

    async def close(self) -> None:
        """See Executor."""


class Child:
    """One child process that runs verbs of one injection, several at a time."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        writer: asyncio.WriteTransport,
        reader: asyncio.ReadTransport,
        lines: asyncio.StreamReader,
    ) -> None:
        self.process = process
        self.start_time = processes.start_time(process.pid)
        self.ready = asyncio.Event()
        self.loading: asyncio.Task[dict[str, Any]] | None = None  # of the fault, once it is known
        self.loading_since_s = 0.0
        self._writer, self._reader, self._lines = writer, reader, lines
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._pump = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, argv: list[str], env: Mapping[str, str], run_id: str, log: Path) -> Child:
        """Spawn it; it says when it is ready. Raises OSError."""
        loop = asyncio.get_running_loop()
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        try:
            with log.open("ab") as stderr:
                process = processes.spawn(
                    argv, env=env, run_id=run_id, stdin=theirs_in, stdout=theirs_out, stderr=stderr
                )
        except BaseException:
            os.close(ours_in)
            os.close(ours_out)
            raise
        finally:
            os.close(theirs_in)
            os.close(theirs_out)
        lines = asyncio.StreamReader(limit=_LONGEST_LINE)
        reader, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), os.fdopen(ours_in, "rb", 0)
        )
        writer, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(ours_out, "wb"))
        return cls(process, writer, reader, lines)

    async def load(self, injection: Injection) -> dict[str, Any]:
        """Once: what it says when it has started and loaded the fault. Cancelling waits no more."""
        if self.loading is None:
            self.loading_since_s = asyncio.get_running_loop().time()
            self.loading = asyncio.create_task(self._load(injection))
        return await asyncio.shield(self.loading)

    async def _load(self, injection: Injection) -> dict[str, Any]:
        await self.ready.wait()
        return await self.ask({"verb": "load", "injection": injection.to_json()})

    @property
    def starting(self) -> bool:
        """It was asked nothing but to load, and still has time for it."""
        if self.loading is None or self.loading.done():
            return False
        return asyncio.get_running_loop().time() - self.loading_since_s < START_S

    async def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Its answer. Raises FaultFailedError if it dies; unbounded in time."""
        number = next(self._ids)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            if self._pump.done():
                raise FaultFailedError(self._epitaph())
            self._writer.write(json.dumps({"id": number, **question}).encode() + b"\n")
            return await answer
        finally:
            del self._waiting[number]

    async def _read(self) -> None:
        try:
            while line := await self._lines.readline():
                message = json.loads(line)
                if "ready" in message:
                    self.ready.set()
                elif (waiting := self._waiting.get(message["id"])) and not waiting.done():
                    waiting.set_result(message)
        except ValueError as error:
            self._fail(f"the fault's child spoke nonsense: {error}")
        else:
            self._fail(self._epitaph())

    def _fail(self, why: str) -> None:
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(FaultFailedError(why))
        self.ready.set()

    def _epitaph(self) -> str:
        return f"the fault's child (pid {self.process.pid}) is gone"

    @property
    def alive(self) -> bool:
        """It can still be asked."""
        return not self._pump.done()

    def cpu_s(self) -> float:
        """CPU seconds so far; 0.0 once it is gone."""
        return processes.cpu_s(self.process.pid)

    async def kill(self) -> None:
        """SIGKILL its group, reap it, close its pipes. Idempotent."""
        if self.process.poll() is None:
            processes.kill_group(self.process.pid)
        if not self._writer.is_closing():  # a dead child's pipe has closed it already
            self._writer.abort()
        self._reader.close()
        self._pump.cancel()
        await asyncio.gather(self._pump, return_exceptions=True)
        self._fail(self._epitaph())
        if self.loading is not None:
            await asyncio.gather(self.loading, return_exceptions=True)
        for _ in range(200):  # a SIGKILL takes effect within microseconds
            if self.process.poll() is not None:
                return
            await asyncio.sleep(0.005)


class ChildExecutor(_Verbs):
    """The real host: one child process per injection, ``python -m survive.chaos.child``."""

    def __init__(self, catalog: Catalog, run_id: str, env: Mapping[str, str], logs: Path) -> None:
        self._argv = [
            sys.executable,
            "-m",
            "survive.chaos.child",
            str(catalog.start or ""),
            "plugins" if catalog.plugins else "built-ins",
        ]
        self._run_id = run_id
        self._env = env
        self._logs = logs
        self._children: dict[str, asyncio.Task[Child]] = {}
        self._spares: list[asyncio.Task[Child]] = []  # children are alike until they are asked
        self._ended_cpu_s = 0.0
        self._closed = False

    def expect(self, injections: int) -> None:
        """See Executor."""
        for _ in range(injections):
            log = self._logs / f"fault-spare-{len(self._spares)}.log"
            self._spares.append(asyncio.create_task(self._start(log)))

    async def _start(self, log: Path) -> Child:
        return await Child.start(self._argv, self._env, self._run_id, log)

    async def prepare(self, injection: Injection) -> None:
        """See Executor. Returns once the child has loaded the fault."""
        child = await self._child(injection)
        try:
            async with asyncio.timeout(START_S):
                answer = await child.load(injection)
        except TimeoutError as error:
            await self._drop(injection.id)
            raise FaultFailedError(f"a fault's child was not ready in {START_S:g} s") from error
        _raise_if_failed(answer)

    async def _child(self, injection: Injection) -> Child:
        """The child of an injection, a fresh one if the last is gone."""
        task = self._children.get(injection.id)
        if task is not None and task.done() and _unusable(task):
            await self._drop(injection.id)
            task = None
        if task is None:
            if self._closed:
                raise FaultFailedError("the run is over")
            name = "".join(c if c.isalnum() else "-" for c in injection.id)
            log = self._logs / f"fault-{name}.log"
            task = self._spares.pop() if self._spares else asyncio.create_task(self._start(log))
            self._children[injection.id] = task
        try:
            return await asyncio.shield(task)
        except OSError as error:
            raise FaultFailedError(f"a fault's child cannot be started: {error}") from error

    async def _drop(self, injection_id: str) -> None:
        """Kill a child and forget it."""
        task = self._children.pop(injection_id, None)
        if task is not None:
            started = (await asyncio.gather(task, return_exceptions=True))[0]
            if isinstance(started, Child):
                self._ended_cpu_s += started.cpu_s()
                await started.kill()

    async def _run(
        self,
        verb: str,
        injection: Injection,
        before: float | None = None,
        within_s: float | None = None,
    ) -> Observation | bool | None:
        limit_s = within_s or _LIMITS_S[verb]
        question = {"verb": verb, "injection": injection.to_json(), "before": before}
        try:
            async with asyncio.timeout(limit_s):
                child = await self._child(injection)
                _raise_if_failed(await child.load(injection))
                # Asked before, it would one day do what was given up long ago.
                answer = await child.ask(question)
        except TimeoutError as error:
            if not self._starting(injection.id):
                await self._drop(injection.id)
            raise FaultFailedError(f"{verb} was not done within {limit_s:g} s") from error
        except asyncio.CancelledError:
            if verb in {"inject", "heal"}:  # half a deed must not go on by itself
                await self._drop(injection.id)
            raise
        _raise_if_failed(answer)
        return _answered(verb, answer["result"])

    def _starting(self, injection_id: str) -> bool:
        """Its child has not had its time to start.

        On a loaded host that takes longer than a look may: killed for it, none would ever be ready.
        """
        task = self._children.get(injection_id)
        if task is None or not task.done():
            return task is not None
        return not _unusable(task) and task.result().starting

    def cpu_s(self) -> float:
        """See Executor."""
        return self._ended_cpu_s + sum(child.cpu_s() for child in self._living())

    def _living(self) -> list[Child]:
        every = [*self._children.values(), *self._spares]
        done = [task for task in every if task.done() and not task.cancelled()]
        return [task.result() for task in done if not task.exception()]

    def kill_now(self) -> None:
        """SIGKILL all children without waiting: the harness died."""
        self._closed = True
        for child in self._living():
            processes.send(child.process.pid, child.start_time, signal.SIGKILL)

    async def close(self) -> None:
        """See Executor."""
        self._closed = True
        for number, spare in enumerate(self._spares):
            self._children[f"spare {number}"] = spare
        self._spares.clear()
        await asyncio.gather(*(self._drop(name) for name in list(self._children)))


def _unusable(task: asyncio.Task[Child]) -> bool:
    return task.cancelled() or task.exception() is not None or not task.result().alive


def _answered(verb: str, result: Any) -> Observation | bool | None:
    if verb == "observe":
        return Observation(Active(result["active"]), result["evidence"], result["value"])
    return result is True if verb == "round_trip" else None


def _raise_if_failed(answer: Mapping[str, Any]) -> None:
    if "failed" in answer:
        raise FaultFailedError(str(answer["failed"]))
