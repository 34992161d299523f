"""Faults on the packets of a link, by filter rules in the callee's own network namespace.

Seen by calls and pings from the caller's namespace, beside calls from the callee's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from survive.contracts import Active, Injection, Observation
from survive.transport import Broken
from survive.units import Share, UnitError

from .common import asked, mark
from .namespaces import InNamespace, Isolated, from_callee, from_caller, said

PINGS = 200
PING_S = 0.45  # with a call around it well within a look


class _Cut(InNamespace):
    """A link that carries nothing, and how a caller notices."""

    rules: ClassVar[tuple[str, ...]]  # {peers} are the callers' addresses
    broken: ClassVar[frozenset[Broken]]  # how a call through it ends

    async def inject(self, injection: Injection, handle: Isolated) -> None:
        """Insert the rules, all or none."""
        peers = handle.spec.peers
        await handle.inside.put(mark(injection), [rule.format(peers=peers) for rule in self.rules])

    async def observe(
        self, injection: Injection, handle: Isolated, before: float | None
    ) -> Observation:
        """Active if the caller's call breaks as it must while the callee answers itself."""
        through = await from_caller(handle)
        if through.broken is None:
            return Observation(Active.NO, f"from the caller: status {through.status}")
        around = await from_callee(handle)
        bites = through.broken in self.broken and around.broken is None
        text = f"from the caller: {through.broken}; from the callee itself: {said(around)}"
        return Observation(Active.YES if bites else Active.UNKNOWN, text)


class NetworkDrop(_Cut):
    """``network.drop``: a silent partition."""

    kind: ClassVar[str] = "network.drop"
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


@dataclass(frozen=True, slots=True)
class Loss:
    """Settings: this share of the packets is lost, in each direction on its own."""

    share: Share

    def __post_init__(self) -> None:
        if not 0.05 <= self.share <= 0.9:
            raise UnitError("a loss below 5% or above 90% cannot be told in one look")


class NetworkLoss(InNamespace):
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

    async def inject(self, injection: Injection, handle: Isolated) -> None:
        """Insert a rule for each direction, both or none."""
        share = float(asked(Loss, injection).share)
        dice = f"-m statistic --mode random --probability {share:.6f} -j DROP"
        peers = handle.spec.peers
        rules = [f"INPUT -s {peers} {dice}", f"OUTPUT -d {peers} {dice}"]
        await handle.inside.put(mark(injection), rules)

    async def observe(
        self, injection: Injection, handle: Isolated, before: float | None
    ) -> Observation:
        """Active if at least half of the pings get lost that must: an echo passes both directions.

        Of 200 pings 5% lose an eighth of what they must, or less, once in 10⁶ looks.
        """
        lost = await handle.peer.ping(handle.spec.address, PINGS, PING_S)
        expected = 1 - (1 - asked(Loss, injection).share) ** 2
        text = f"{lost:.1%} of {PINGS} pings from the caller lost, {expected:.1%} expected"
        if lost <= expected / 8:
            return Observation(Active.NO, text, lost)
        if lost < expected / 2:
            return Observation(Active.UNKNOWN, text, lost)
        around = await from_callee(handle, 0.2)
        active = Active.UNKNOWN if around.broken else Active.YES
        return Observation(active, f"{text}; from the callee itself: {said(around)}", lost)
