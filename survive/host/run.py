"""One run, on either host: the only place where load and faults meet, and they meet in time only.

start target → resolve faults → ready the load → t = 0 → conduct and record → heal, stop → end.
What differs between hosts is behind ``Host``; what may go wrong ends as an event in the record.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from survive.catalog import Catalog
from survive.chaos.conductor import conduct
from survive.chaos.ports import AgentPort
from survive.clock import Clock, sleep_us
from survive.contracts import Json
from survive.errors import HarnessError, SurviveError, UnhealedError
from survive.host.driver import TargetUnhealthyError
from survive.plan.model import Plan
from survive.record.events import EventName
from survive.record.samples import Frame
from survive.record.writer import LiveView, RecordWriter
from survive.scenario.model import Scenario, StopIf
from survive.units import SECOND

T = TypeVar("T")
TICK_US = SECOND // 4
LOAD_END_GRACE_US = 15 * SECOND  # beyond the longest deadline: then the load is called dead


class TellProbe(Protocol):
    """Takes the fields of a ``probe_seen`` event; ``t_us`` None = now."""

    def __call__(self, fields: Mapping[str, Json], t_us: int | None = None) -> None:
        """Into the record."""


class Host(Protocol):
    """Where a run happens."""

    name: str  # real | virtual
    agent: AgentPort

    @property
    def clock(self) -> Clock:
        """The run's clock; t is negative until ``begin``."""

    async def ready_load(self, address: str) -> None:
        """Everything of the load that takes time, so that ``begin`` takes none."""

    async def ready_probes(self, address: str) -> None:
        """The same of the probes, if there are any."""

    async def begin(self) -> None:
        """Fix t = 0 (a little ahead) and let the load go."""

    def frames(self) -> AsyncIterator[Frame]:
        """What the load reports, until its last frame. Raises HarnessError if it dies."""

    async def probe(self, tell: TellProbe) -> None:
        """Tell what the probes find until they are done, or gone: then their last line is missing.

        Returns at once if there is nothing to probe.
        """

    async def stop_load(self) -> None:
        """Ask for the last frame now."""

    async def usage(self) -> Mapping[str, Json]:
        """Cores used since ``begin``: {"target_cores": .., "harness_cores": ..}; {} if unknown.

        Beside them what the machine did to it: ``wake_up_ms_p99``, ``cpu_stalled_share``.
        """

    async def agent_gone(self) -> str:
        """Return, with the reason, when the agent has died on its own; else never."""


class Display(Protocol):
    """Watches a run; never changes it."""

    def event(self, name: str, fields: Mapping[str, Json], t_us: int) -> None:
        """Something happened."""

    def tick(self, t_us: int, live: LiveView) -> None:
        """Four times a second."""


@dataclass(slots=True)
class Stop:
    """A wish to end the run early. The first one counts."""

    asked: asyncio.Event = field(default_factory=asyncio.Event)
    by: str = ""  # signal | stop_if
    detail: dict[str, Json] = field(default_factory=dict)

    def ask(self, by: str, **detail: Json) -> None:
        """Stop, heal, and say why."""
        if not self.asked.is_set():
            self.by, self.detail = by, detail
            self.asked.set()


class _StoppedError(Exception):
    """The stop came while something else was awaited."""


@dataclass(slots=True)
class Run:
    """The state of one run while it happens."""

    scenario: Scenario
    plan: Plan
    catalog: Catalog
    host: Host
    writer: RecordWriter
    display: Display
    stop: Stop
    asked: Mapping[str, str] = field(default_factory=dict)  # of the judge, by the command line

    def emit(self, name: str, fields: Mapping[str, Json], t_us: int | None = None) -> None:
        """To the record and the display. ``t_us`` None = now."""
        at = self.host.clock.now_us() if t_us is None else t_us
        try:
            self.writer.event(name, fields, at)
        except OSError as error:
            raise HarnessError(f"the record cannot be written: {error}") from error
        self.display.event(name, fields, at)

    async def perform(self) -> SurviveError | None:
        """The whole run. Returns the error that ended it before t = 0, if one did.

        Whatever happens, the record says so in ``run_ended`` and the agent has stopped: every
        fault healed, or named as not healed.
        """
        self.emit(
            "run_started",
            {
                "scenario": self.plan.name,
                "target": self.plan.target,
                "seed": self.plan.seed,
                "scale": self.plan.scale,
                "host": self.host.name,
                "faults": {f.name: f.kind for f in self.scenario.faults.values()},
                "grades": {
                    f.name: str(self.catalog.fault(f.kind).grade)
                    for f in self.scenario.faults.values()
                },
                **self.asked,
            },
        )
        try:
            ended, error = await self._guarded()
        except HarnessError as error:  # the record cannot even say why; heal all the same
            raise _worst(error, await self._stop_agent({})) from error
        usage = dict(await self._usage()) if ended["ended"] != "agent_died" else {}
        left = await self._stop_agent(ended)
        try:
            self.emit("run_ended", {**ended, "usage": usage, "unproven_heals": left})
        except HarnessError as failed:
            raise _worst(failed, left) from failed
        return error

    async def _guarded(self) -> tuple[dict[str, Json], SurviveError | None]:
        """(the fields of run_ended, the error to show and to exit with)."""
        try:
            await self._live()
        except _StoppedError:
            self.emit("stopped", {"by": self.stop.by, **self.stop.detail})
            return {"ended": "stopped", "detail": self.stop.by}, None
        except TargetUnhealthyError as error:
            lines: list[Json] = list(error.last_lines)
            return {"ended": "target_unhealthy", "detail": error.message, "lines": lines}, error
        except AgentGoneError as error:
            return {"ended": "agent_died", "detail": error.message}, None
        except HarnessError as error:
            return {"ended": "load_died", "detail": error.message}, None
        except SurviveError as error:
            return {"ended": "refused", "detail": error.message}, error
        return {"ended": "complete", "detail": ""}, None

    async def _live(self) -> None:
        agent = self.host.agent
        address = await self._unless_stopped(agent.start_target())
        for fault in self.scenario.faults.values():
            await self._unless_stopped(agent.preflight(fault))
        await self._unless_stopped(self.host.ready_load(address))
        await self._unless_stopped(self.host.ready_probes(address))
        await self.host.begin()
        conductor = asyncio.create_task(
            conduct(
                self.plan,
                self.scenario.faults,
                agent,
                self.host.clock,
                self.emit,
                self.stop.asked,
            )
        )
        ticker = asyncio.create_task(self._tick())
        load = asyncio.create_task(self._record_load())
        probes = asyncio.create_task(self.host.probe(self._found))
        try:
            await self._unless_stopped(_all(conductor, load, probes))
        except _StoppedError:
            await self.host.stop_load()
            with contextlib.suppress(HarnessError, TimeoutError):
                async with asyncio.timeout(1.5):
                    await load
            raise
        finally:
            await _cancelled(ticker, conductor, load, probes)

    def _found(self, fields: Mapping[str, Json], t_us: int | None = None) -> None:
        self.emit(str(EventName.PROBE_SEEN), fields, t_us)

    async def _record_load(self) -> None:
        async for frame in self.host.frames():
            try:
                self.writer.frame(frame)
            except OSError as error:
                raise HarnessError(f"the record cannot be written: {error}") from error

    async def _tick(self) -> None:
        clock = self.host.clock
        while True:
            await sleep_us(clock, TICK_US)
            live = self.writer.live(clock.now_us())
            self.display.tick(clock.now_us(), live)
            for rule in self.scenario.stop_if.values():
                if tripped(rule, live, clock.now_us()):
                    self.stop.ask("stop_if", rule=rule.name)

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        """Await work, unless a stop or the agent's death comes first."""
        task = asyncio.ensure_future(work)
        stop = asyncio.create_task(self.stop.asked.wait())
        gone = asyncio.create_task(self.host.agent_gone())
        try:
            await asyncio.wait({task, stop, gone}, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                raise AgentGoneError(gone.result())
            if task.done():
                return task.result()
            raise _StoppedError
        finally:
            await _cancelled(task, stop, gone)

    async def _usage(self) -> Mapping[str, Json]:
        try:
            async with asyncio.timeout(1):
                return await self.host.usage()
        except (SurviveError, TimeoutError):
            return {}

    async def _stop_agent(self, ended: dict[str, Json]) -> list[Json]:
        try:
            return list(await self.host.agent.stop())
        except SurviveError as error:
            ended.update(ended="agent_died", detail=error.message)
            return []


def _worst(error: HarnessError, left: list[Json]) -> SurviveError:
    """What a run without a record ends with: an unproven heal goes before all else."""
    unhealed = [entry for entry in left if isinstance(entry, dict)]
    if not unhealed:
        return error
    said = "; ".join(
        f"the heal of {e.get('fault')} is not proven: {e.get('why')}" for e in unhealed
    )
    by_hand = "; ".join(str(e["by_hand"]) for e in unhealed if e.get("by_hand"))
    hint = f"by hand: {by_hand}" if by_hand else "`survive heal --check` tells what is left"
    return UnhealedError(f"{said}; {error.message}", hint=hint)


class AgentGoneError(HarnessError):
    """The chaos agent died on its own."""


def tripped(rule: StopIf, live: LiveView, now_us: int) -> bool:
    """A stop rule holds: over its whole span, with at least 10 settled requests."""
    if now_us < rule.over_us:
        return False
    settled, bad = live.settled(rule.over_us, rule.of)
    return settled >= 10 and 1 - bad / settled < rule.below


async def _all(*tasks: asyncio.Task[None]) -> None:
    """All are done, or the first error of any."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        task.result()


async def _cancelled(*tasks: asyncio.Future[Any]) -> None:
    """End tasks that may still run; their own errors were raised where they belong."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def faulted_links(scenario: Scenario) -> frozenset[str]:
    """Names of the links that need a fault proxy in all windows of this run.

    Those of ``encrypted`` probes too: it is the proxy that sees what passes.
    """
    watched = {probe.link for probe in scenario.probes.values() if probe.link}
    return frozenset(watched.union(*(fault.links for fault in scenario.faults.values())))
