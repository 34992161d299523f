"""Name resolution that fails: rules in the caller's own network namespace, on port 53 only.

Only for a process target with ``isolation: netns``, whose services call each other by names of a
name server of the run. Seen by a query from that namespace, beside one from the name server's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from survive.contracts import Active, Grade, HandleSpec, Injection, Needs, Observation
from survive.errors import RefusedError

ANSWER_S = 0.3
# Answers, not queries: a query that is dropped where it is sent fails at once, with EPERM.
_RULES = ("INPUT -p udp --sport 53 -j DROP", "INPUT -p tcp --sport 53 -j DROP")


@dataclass(frozen=True, slots=True)
class Nothing:
    """No settings."""


class _Inside(Protocol):
    async def put(self, mark: str, rules: Sequence[str]) -> None: ...
    async def take(self, mark: str) -> None: ...
    async def lookup(self, server: str, name: str, timeout_s: float) -> str: ...


class _Replica(Protocol):
    spec: HandleSpec
    inside: _Inside
    peer: _Inside  # the name server's own namespace


class NetworkDnsFail:
    """``network.dns_fail``: a replica that can look up no name."""

    kind: ClassVar[str] = "network.dns_fail"
    held: ClassVar[bool] = True
    grade: ClassVar[Grade] = Grade.REAL
    layer: ClassVar[str] = "network"
    needs: ClassVar[Needs] = Needs.REPLICA
    privileges: ClassVar[str] = "root (CAP_NET_ADMIN in the target's own network namespace)"
    keeps_down: ClassVar[bool] = False
    settings: ClassVar[type] = Nothing
    certifies: ClassVar[str] = (
        "a service copes with name servers that fall silent: calls that need a new connection wait "
        "for the resolver's own time-outs (glibc: 5 s a try)"
    )
    does_not_certify: ClassVar[str] = (
        "refused, wrong or stale answers; what the service does over connections that it holds, "
        "which need no name; targets without isolation: netns, and the virtual host (refused)"
    )

    def preflight(self, settings: Nothing, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """Every victim. Raises RefusedError unless each asks a name server of this run."""
        if not victims or not all(victim.netns and victim.resolver for victim in victims):
            raise RefusedError(
                f"{self.kind} needs a target with network namespaces of its own",
                hint="`isolation: netns` in the target file, driver process, without --virtual",
            )
        return list(victims)

    async def inject(self, injection: Injection, handle: _Replica) -> None:
        """Insert the rules, all or none."""
        await handle.inside.put(_mark(injection), _RULES)

    async def observe(
        self, injection: Injection, handle: _Replica, before: float | None
    ) -> Observation:
        """Active if the replica's query gets no answer while the name server answers at home."""
        server, name = handle.spec.resolver.split(" ")
        seen = await handle.inside.lookup(server, name, ANSWER_S)
        text = f"a query from {handle.spec.replica_id}: {seen}"
        if seen == "answered":
            return Observation(Active.NO, text)
        control = await handle.peer.lookup(server, name, ANSWER_S)
        bites = seen == "no answer" and control == "answered"
        text = f"{text}; from the name server's own namespace: {control}"
        return Observation(Active.YES if bites else Active.UNKNOWN, text)

    async def heal(self, injection: Injection, handle: _Replica) -> None:
        """Delete the rules that bear this injection; with the namespace they went too."""
        await handle.inside.take(_mark(injection))

    async def round_trip(self, injection: Injection, handle: _Replica) -> bool:
        """The replica's query is answered."""
        server, name = handle.spec.resolver.split(" ")
        return await handle.inside.lookup(server, name, 2 * ANSWER_S) == "answered"


def _mark(injection: Injection) -> str:
    return f"sv-{injection.id}"
