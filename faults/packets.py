"""Faults on the packets of a link, by filter rules in the callee's own network namespace.

Only for a process target with ``isolation: netns``: the rules stand in a namespace that the run
made and that goes with it, never in the host's tables. _Seen by calls and pings from the caller's
namespace, beside calls from the callee's own, which no rule touches.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from survive.contracts import (
    Active,
    Grade,
    HandleSpec,
    Injection,
    Needs,
    Observation,
)
from survive.errors import RefusedError
from survive.transport import Broken
from survive.units import MS, Duration, Share, UnitError

CALL_S = 0.4  # two calls fit in a look (1 s)
PINGS = 200
PING_S = 0.45  # with a call around it well within a look
ROOT = "root (CAP_NET_ADMIN in the target's own network namespace)"


class _Seen(Protocol):
    """One call: how long until its end, and its status or how it broke."""

    took_us: int
    status: int
    broken: Broken | None


class _Inside(Protocol):
    """A network namespace: rules in it, and looks from it."""

    async def put(self, mark: str, rules: Sequence[str]) -> None: ...
    async def take(self, mark: str) -> None: ...
    async def run(self, argv: Sequence[str]) -> str: ...
    async def call(self, address: str, path: str, timeout_s: float) -> _Seen: ...
    async def ping(self, address: str, count: int, within_s: float) -> float: ...
    async def lookup(self, server: str, name: str, timeout_s: float) -> str: ...
    def alive(self) -> bool: ...


class _Link(Protocol):
    """One link of an isolated target."""

    spec: HandleSpec
    inside: _Inside  # the callee's namespace
    peer: _Inside  # a caller's; of load, the host's


@dataclass(frozen=True, slots=True)
class Nothing:
    """No settings."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Settings: this share of the packets is lost, in each direction on its own."""

    share: Share

    def __post_init__(self) -> None:
        if not 0.05 <= self.share <= 0.9:
            raise UnitError("a loss below 5% or above 90% cannot be told in one look")


@dataclass(frozen=True, slots=True)
class Delay:
    """Settings: every packet that the callee sends leaves this much later."""

    latency: Duration

    def __post_init__(self) -> None:
        if not 5 * MS <= self.latency <= 300 * MS or self.latency % MS:
            raise UnitError("latency is whole milliseconds from 5ms to 300ms")


class _OnPackets:
    """What all faults of this file share."""

    kind: ClassVar[str]
    held: ClassVar[bool] = True
    grade: ClassVar[Grade] = Grade.REAL
    layer: ClassVar[str] = "network"
    needs: ClassVar[Needs] = Needs.LINK
    privileges: ClassVar[str] = ROOT
    keeps_down: ClassVar[bool] = False

    def preflight(self, settings: Any, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """Every replica behind the link. Raises RefusedError unless each has its own namespace."""
        if not victims or not all(victim.netns for victim in victims):
            raise RefusedError(
                f"{self.kind} needs a target with network namespaces of its own",
                hint="`isolation: netns` in the target file, driver process, without --virtual",
            )
        return list(victims)

    async def heal(self, injection: Injection, handle: _Link) -> None:
        """Delete the rules that bear this injection; with the namespace they went too."""
        await handle.inside.take(_mark(injection))

    async def round_trip(self, injection: Injection, handle: _Link) -> bool:
        """The callee answers 200 to its caller."""
        return (await _through(handle)).status == 200


class _Cut(_OnPackets):
    """A link that carries nothing, and how a caller notices."""

    rules: ClassVar[tuple[str, ...]]  # {peers} are the callers' addresses
    broken: ClassVar[frozenset[Broken]]  # how a call through it ends

    async def inject(self, injection: Injection, handle: _Link) -> None:
        """Insert the rules, all or none."""
        peers = handle.spec.peers
        await handle.inside.put(_mark(injection), [rule.format(peers=peers) for rule in self.rules])

    async def observe(
        self, injection: Injection, handle: _Link, before: float | None
    ) -> Observation:
        """Active if the caller's call breaks as it must while the callee answers itself."""
        through = await _through(handle)
        if through.broken is None:
            return Observation(Active.NO, f"from the caller: status {through.status}")
        around = await _around(handle)
        bites = through.broken in self.broken and around.broken is None
        text = f"from the caller: {through.broken}; from the callee itself: {_said(around)}"
        return Observation(Active.YES if bites else Active.UNKNOWN, text)


class NetworkDrop(_Cut):
    """``network.drop``: a silent partition."""

    kind: ClassVar[str] = "network.drop"
    settings: ClassVar[type] = Nothing
    certifies: ClassVar[str] = (
        "callers cope with a peer whose packets vanish, live connections included: only deadlines "
        "notice"
    )
    does_not_certify: ClassVar[str] = (
        "a switch that fails, routing that heals around it; a target without isolation: netns, and "
        "the virtual host, which have no packets to drop (refused)"
    )
    rules: ClassVar[tuple[str, ...]] = ("INPUT -s {peers} -j DROP", "OUTPUT -d {peers} -j DROP")
    broken: ClassVar[frozenset[Broken]] = frozenset({Broken.TIMEOUT})


class NetworkReject(_Cut):
    """``network.reject``: a firewall that says no."""

    kind: ClassVar[str] = "network.reject"
    settings: ClassVar[type] = Nothing
    certifies: ClassVar[str] = (
        "callers cope with a peer that refuses at once: new connections are refused, live ones "
        "reset at their next packet"
    )
    does_not_certify: ClassVar[str] = (
        "firewalls that answer with ICMP or not at all (network.drop); a target without isolation: "
        "netns, and the virtual host (refused)"
    )
    rules: ClassVar[tuple[str, ...]] = (
        "INPUT -s {peers} -p tcp -j REJECT --reject-with tcp-reset",
    )
    broken: ClassVar[frozenset[Broken]] = frozenset({Broken.REFUSED, Broken.RESET})


class NetworkLoss(_OnPackets):
    """``network.loss``: a lossy link."""

    kind: ClassVar[str] = "network.loss"
    settings: ClassVar[type] = Loss
    certifies: ClassVar[str] = (
        "callers cope with TCP that waits for what was lost: retransmissions, late connections"
    )
    does_not_certify: ClassVar[str] = (
        "bursts of loss, reordering, corruption: each packet is lost by its own throw of the "
        "kernel's dice, which no seed repeats; the virtual host has no packets (refused)"
    )

    async def inject(self, injection: Injection, handle: _Link) -> None:
        """Insert a rule for each direction, both or none."""
        dice = f"-m statistic --mode random --probability {_share(injection):.6f} -j DROP"
        peers = handle.spec.peers
        rules = [f"INPUT -s {peers} {dice}", f"OUTPUT -d {peers} {dice}"]
        await handle.inside.put(_mark(injection), rules)

    async def observe(
        self, injection: Injection, handle: _Link, before: float | None
    ) -> Observation:
        """Active if at least half of the pings get lost that must: an echo passes both directions.

        Of 200 pings 5% lose an eighth of what they must, or less, once in 10⁶ looks.
        """
        lost = await handle.peer.ping(handle.spec.address, PINGS, PING_S)
        expected = 1 - (1 - _share(injection)) ** 2
        text = f"{lost:.1%} of {PINGS} pings from the caller lost, {expected:.1%} expected"
        if lost <= expected / 8:
            return Observation(Active.NO, text, lost)
        if lost < expected / 2:
            return Observation(Active.UNKNOWN, text, lost)
        around = await _around(handle, 0.2)
        active = Active.UNKNOWN if around.broken else Active.YES
        return Observation(active, f"{text}; from the callee itself: {_said(around)}", lost)


class NetworkNetemLatency(_OnPackets):
    """``network.netem_latency``: packets that leave late."""

    kind: ClassVar[str] = "network.netem_latency"
    settings: ClassVar[type] = Delay
    certifies: ClassVar[str] = (
        "callers cope with a distant peer, connection set-up and TCP's own reaction included"
    )
    does_not_certify: ClassVar[str] = (
        "one slow path among several: all that the callee sends is late, whoever asked; kernels "
        "without the netem queue, and the virtual host (refused)"
    )

    def preflight(self, settings: Delay, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """As the others, and the kernel must have the queue: tried in a throw-away namespace."""
        chosen = super().preflight(settings, victims)
        missing = netem_missing()
        if missing:
            raise RefusedError(f"{self.kind} needs the kernel's netem queue (sch_netem): {missing}")
        return chosen

    async def inject(self, injection: Injection, handle: _Link) -> None:
        """Put the queue on the callee's only interface."""
        delay = f"{_latency(injection) // MS}ms"
        limit = ["limit", "100000"]  # packets; the default of 1,000 would be a loss under load
        await handle.inside.run([*_TC, "replace", *_QUEUE, "netem", "delay", delay, *limit])

    async def observe(
        self, injection: Injection, handle: _Link, before: float | None
    ) -> Observation:
        """The caller's call minus the callee's own: yes from the setting on (two packets wait)."""
        around, through = await _around(handle), await _through(handle, 0.6)
        if around.broken or through.broken:
            text = f"from the caller: {_said(through)}; from the callee itself: {_said(around)}"
            return Observation(Active.UNKNOWN, text)
        extra_us = float(through.took_us - around.took_us)
        return Observation(
            Active.YES if extra_us >= _latency(injection) else Active.NO,
            f"a call takes {extra_us / MS:.1f} ms longer from the caller than from the callee",
            extra_us,
        )

    async def heal(self, injection: Injection, handle: _Link) -> None:
        """Take the queue off; one that is not there, or went with its namespace, is fine."""
        if not handle.inside.alive():
            return
        if "netem" in await handle.inside.run([*_TC, "show", "dev", "eth0"]):
            await handle.inside.run([*_TC, "del", *_QUEUE])


_TC = ("tc", "qdisc")
_QUEUE = ("dev", "eth0", "root")


def netem_missing() -> str:
    """Why this kernel has no netem queue; "" if it has."""
    programs = [name for name in ("unshare", "tc") if shutil.which(name) is None]
    if programs:
        return f"no program {programs[0]!r} here (apt-get install iproute2)"
    argv = ["unshare", "--net", "--", *_TC, "add", "dev", "lo", "root", "netem", "delay", "1ms"]
    tried = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=3)
    return (tried.stderr.strip() or "it failed") if tried.returncode else ""


def _mark(injection: Injection) -> str:
    return f"sv-{injection.id}"


def _share(injection: Injection) -> float:
    return float(Share.parse(injection.settings["share"]))


def _latency(injection: Injection) -> Duration:
    return Duration.parse(injection.settings["latency"])


async def _through(handle: _Link, timeout_s: float = CALL_S) -> _Seen:
    return await handle.peer.call(handle.spec.address, handle.spec.probe_path, timeout_s)


async def _around(handle: _Link, timeout_s: float = CALL_S) -> _Seen:
    return await handle.inside.call(handle.spec.address, handle.spec.probe_path, timeout_s)


def _said(seen: _Seen) -> str:
    return str(seen.broken or f"status {seen.status}")
