"""Name resolution that fails: rules in the caller's own network namespace, on port 53 only.

Only for a process target with ``isolation: netns``, whose services call each other by names of a
name server of the run. Seen by a query from that namespace, beside one from the name server's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from survive.contracts import Active, HandleSpec, Injection, Needs, Observation

from .common import Nothing, mark
from .namespaces import InNamespace, Isolated

ANSWER_S = 0.3
# Answers, not queries: a query that is dropped where it is sent fails at once, with EPERM.
_RULES = ("INPUT -p udp --sport 53 -j DROP", "INPUT -p tcp --sport 53 -j DROP")


class NetworkDnsFail(InNamespace):
    """``network.dns_fail``: a replica that can look up no name."""

    kind: ClassVar[str] = "network.dns_fail"
    needs: ClassVar[Needs] = Needs.REPLICA
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
        can = all(victim.resolver for victim in victims)
        return super().preflight(settings, victims if can else [])

    async def inject(self, injection: Injection, handle: Isolated) -> None:
        """Insert the rules, all or none."""
        await handle.inside.put(mark(injection), _RULES)

    async def observe(
        self, injection: Injection, handle: Isolated, before: float | None
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

    async def round_trip(self, injection: Injection, handle: Isolated) -> bool:
        """The replica's query is answered."""
        server, name = handle.spec.resolver.split(" ")
        return await handle.inside.lookup(server, name, 2 * ANSWER_S) == "answered"
