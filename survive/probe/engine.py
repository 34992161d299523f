"""The prober: keeps every probe's schedule and tells one event for each finding.

Findings are told in the order in which they end. A probing is never begun late by more than its
period, nor beside too many of its own kind: such a slot is *missed*, which is the harness's fault
and not a finding. The last event says that it is the last, and how many went before it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from survive.clock import Clock, sleep_us
from survive.contracts import HandleSpec, Json
from survive.probe import findings
from survive.probe.audit import Audited, Log, read_log, reconcile
from survive.probe.calls import Caller, canary_of
from survive.probe.findings import Finding, Said
from survive.probe.scrape import Scraped, scrape
from survive.scenario.model import Metric, Probe, ProbeCall
from survive.transport import Transport
from survive.units import SECOND

SETTLE_US = 2 * SECOND  # after the last call, for its audit record
_SPARE = 3
_CALLS_AT_MOST = 8  # of one probing, each within the probe's deadline
_MOST = 64  # probings of one probe at once

Tell: TypeAlias = Callable[[Mapping[str, Json]], None]
# Connections that a link's proxy has seen since it began: {"tls": n, "plain": n}.
Look: TypeAlias = Callable[[str], Awaitable[Mapping[str, int]]]


@dataclass(frozen=True, slots=True)
class Slots:
    """The intended starts of one probe."""

    probe: Probe
    starts: range


@dataclass(frozen=True, slots=True)
class Job:
    """All that a prober must know; it crosses to the real host's probe process as JSON."""

    seed: int
    entry: str  # host:port of the target
    probes: tuple[Slots, ...]
    variables: Mapping[str, Json] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)  # by identity
    logs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # audit files by service
    scraped: tuple[Scraped, ...] = ()
    scrapes: range = range(0)

    @property
    def longest_us(self) -> int:
        """From the end of the load to the last line, at most."""
        within_us = max((slots.probe.within_us for slots in self.probes), default=0)
        return _CALLS_AT_MOST * within_us + SETTLE_US

    def to_json(self) -> dict[str, Json]:
        """Plain data."""
        return {
            "seed": self.seed,
            "entry": self.entry,
            "probes": [
                {"probe": _probe_to_json(s.probe), "starts": _range_to_json(s.starts)}
                for s in self.probes
            ],
            "variables": dict(self.variables),
            "keys": dict(self.keys),
            "logs": {service: [*files] for service, files in self.logs.items()},
            "scraped": [service.to_json() for service in self.scraped],
            "scrapes": _range_to_json(self.scrapes),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Job:
        """The inverse of to_json."""
        probes = [Slots(_probe_from_json(s["probe"]), range(*s["starts"])) for s in data["probes"]]
        return cls(
            **{
                **data,
                "probes": tuple(probes),
                "logs": {service: tuple(files) for service, files in data["logs"].items()},
                "scraped": tuple(Scraped.from_json(s) for s in data["scraped"]),
                "scrapes": range(*data["scrapes"]),
            }
        )


@dataclass(frozen=True, slots=True)
class Probing:
    """A job, and the listeners by which its links are looked at."""

    job: Job
    listeners: Mapping[str, Sequence[HandleSpec]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Json]:
        """Plain data."""
        listeners: dict[str, Json] = {
            link: [asdict(spec) for spec in specs] for link, specs in self.listeners.items()
        }
        return {"job": self.job.to_json(), "listeners": listeners}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Probing:
        """The inverse of to_json."""
        listeners = {
            link: [HandleSpec(**spec) for spec in specs]
            for link, specs in data["listeners"].items()
        }
        return cls(Job.from_json(data["job"]), listeners)


def _range_to_json(starts: range) -> list[Json]:
    return [starts.start, starts.stop, starts.step]


def _probe_to_json(probe: Probe) -> dict[str, Json]:
    data = asdict(probe)
    for key in ("ask", "write", "read"):
        if data[key] is not None:
            data[key]["status"] = sorted(data[key]["status"])
    return data


def _probe_from_json(data: Mapping[str, Any]) -> Probe:
    calls = {key: _call_from_json(data[key]) for key in ("ask", "write", "read")}
    return Probe(**{**data, **calls, "metric": Metric(data["metric"])})


def _call_from_json(data: Mapping[str, Any] | None) -> ProbeCall | None:
    if data is None:
        return None
    headers = tuple((name, value) for name, value in data["headers"])
    return ProbeCall(**{**data, "headers": headers, "status": frozenset(data["status"])})


class Prober:
    """Runs a job once. ``tell`` gets the fields of each event."""

    def __init__(
        self, job: Job, clock: Clock, transport: Transport, tell: Tell, look: Look
    ) -> None:
        self._job = job
        self._clock = clock
        self._transport = transport
        self._tell = tell
        self._look = look
        self._caller = Caller(transport, job.entry, job.variables, job.keys)
        self._sent = 0
        self._missed: Counter[str] = Counter()
        self._echo: dict[str, int] = {}  # by probe: how often answers repeat the question
        self._audited: list[tuple[str, Audited]] = []  # by service
        self._seen: dict[str, dict[str, int]] = {}  # by probe: at its last look at the link

    async def run(self) -> None:
        """Every slot, the audit, the last line."""
        async with asyncio.TaskGroup() as group:
            for slots in self._job.probes:
                group.create_task(self._keep(slots))
            for service in self._job.scraped:
                group.create_task(self._watch(service))
        await self._audit()
        missed: dict[str, Json] = {**self._missed}
        self._tell({"probe": "", "done": True, "sent": self._sent, "missed": missed})

    async def _keep(self, slots: Slots) -> None:
        probe = slots.probe
        deadline_us = _CALLS_AT_MOST * probe.within_us
        most = min(_MOST, _SPARE + -(-deadline_us // probe.every_us))

        async def probing(number: int, start_us: int) -> None:
            said = await self._probing(probe, number, start_us)
            if said is not None:
                self._found(_finding(probe, start_us, self._clock.now_us(), said))

        await self._at_each(probe.name, slots.starts, most, probing)

    async def _watch(self, service: Scraped) -> None:
        async def look(_number: int, start_us: int) -> None:
            values: dict[str, Json] = {**await scrape(self._transport, service)}
            self._sent += 1
            told: dict[str, Json] = {"probe": "scrape", "service": service.service}
            self._tell({**told, "start_us": start_us, "values": values})

        await self._at_each("scrape", self._job.scrapes, _SPARE, look)

    async def _at_each(
        self, name: str, starts: range, most: int, work: Callable[[int, int], Awaitable[None]]
    ) -> None:
        """Begin work at each start, side by side; what it raises ends the prober."""
        running = 0

        async def one(number: int, start_us: int) -> None:
            nonlocal running
            running += 1
            try:
                await work(number, start_us)
            finally:
                running -= 1

        async with asyncio.TaskGroup() as group:
            for number, start_us in enumerate(starts):
                await self._clock.sleep_until(start_us)
                late = self._clock.now_us() - start_us > starts.step
                if late or running >= most:
                    self._missed[name] += 1
                else:
                    group.create_task(one(number, start_us))

    async def _probing(self, probe: Probe, number: int, start_us: int) -> Said | None:
        """What one probing found; None if that is known only after the run."""
        canary = canary_of(self._job.seed, probe.name, number)
        match probe.metric:
            case Metric.DENIED:
                return await findings.denied(self._caller, probe, canary)
            case Metric.LEAKED:
                return await findings.leaked(self._caller, probe, canary)
            case Metric.ENCRYPTED:
                return await self._encrypted(probe)
            case Metric.AUDITED:
                await self._call_audited(probe, number, start_us, canary)
                return None
        return await self._canary(probe, number, canary)

    async def _canary(self, probe: Probe, number: int, canary: str) -> Said:
        if probe.name not in self._echo:
            word = canary_of(self._job.seed, probe.name, number, "echo")
            echo, answer = await findings.echoes(self._caller, probe, word)
            if echo is None:  # unreadable is not fresh; of isolation it says nothing
                ok = False if probe.metric is Metric.FRESHNESS else None
                return Said(ok, f"a read before the write: {answer.said()}")
            self._echo[probe.name] = echo
        find = findings.fresh if probe.metric is Metric.FRESHNESS else findings.isolated
        return await find(self._caller, probe, canary, self._clock, self._echo[probe.name])

    async def _encrypted(self, probe: Probe) -> Said:
        try:
            async with asyncio.timeout(probe.within_us / 1e6):
                now = dict(await self._look(probe.link))
        except (Exception, TimeoutError) as error:  # of a proxy's API: whatever it is, not seen
            return Said(None, f"the link cannot be looked at: {error}")
        before = self._seen.get(probe.name, {})
        self._seen[probe.name] = now
        return findings.encrypted(before, now)

    async def _call_audited(self, probe: Probe, number: int, start_us: int, canary: str) -> None:
        assert probe.ask is not None
        request_id = f"probe-{probe.name}-{number}-{canary}"
        answer = await self._caller.ask(
            probe.ask, probe.within_us, canary=canary, headers=(("x-request-id", request_id),)
        )
        call = Audited(
            probe.name, request_id, start_us, self._clock.now_us(), answer.status, answer.said()
        )
        self._audited.append((probe.service, call))

    async def _audit(self) -> None:
        """What the audit logs say of our calls, once they had time to be written."""
        if not self._audited:
            return
        await sleep_us(self._clock, SETTLE_US)
        for service in dict.fromkeys(service for service, _ in self._audited):
            calls = [call for of, call in self._audited if of == service]
            for finding in reconcile(calls, _read_logs(self._job.logs.get(service, ()))):
                self._found(finding)

    def _found(self, finding: Finding) -> None:
        self._sent += 1
        self._tell(finding.to_json())


def _finding(probe: Probe, start_us: int, end_us: int, said: Said) -> Finding:
    return Finding(probe.name, probe.metric, start_us, end_us, said.ok, said.why, said.value_us)


def _read_logs(files: tuple[str, ...]) -> list[Log] | None:
    """None if there is not one that can be read. A log that was never begun has no records."""
    logs = []
    for file in map(Path, files):
        try:
            text = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
        except OSError:
            continue
        if file.parent.is_dir():
            logs.append(read_log(text))
    return logs or None
