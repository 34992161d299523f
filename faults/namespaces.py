"""What faults in a target's own network namespaces share: rules in them, and looks from them.

Only for a process target with ``isolation: netns``: the rules stand in a namespace that the run
made and that goes with it, never in the host's tables.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar, Protocol

from survive.contracts import Grade, HandleSpec, Injection, Needs
from survive.errors import RefusedError, WrongTargetError
from survive.transport import Broken

from .common import Common, mark

_FILTERS = "iptables-restore"
_PACKAGES = {_FILTERS: "iptables", "tc": "iproute2"}
CALL_S = 0.4  # two calls fit in a look (1 s)


class Seen(Protocol):
    """One call: how long until its end, and its status or how it broke."""

    took_us: int
    status: int
    broken: Broken | None


class Inside(Protocol):
    """A network namespace: rules in it, and looks from it."""

    async def put(self, mark: str, rules: Sequence[str]) -> None:
        """Insert rules that bear the mark, all or none."""

    async def take(self, mark: str) -> None:
        """Delete those that bear it."""

    async def run(self, argv: Sequence[str]) -> str:
        """What a program says that is run inside."""

    async def call(self, address: str, path: str, timeout_s: float) -> Seen:
        """One GET on a connection of its own."""

    async def ping(self, address: str, count: int, within_s: float) -> float:
        """The share of so many echoes that was lost."""

    async def lookup(self, server: str, name: str, timeout_s: float) -> str:
        """``answered``, ``no answer``, or what else came of a query."""

    def alive(self) -> bool:
        """Whether its holder still lives."""


class Isolated(Protocol):
    """A link or a replica of an isolated target."""

    spec: HandleSpec
    inside: Inside  # the callee's namespace; of a replica its own
    peer: Inside  # a caller's, of load the host's; of a replica the name server's


@cache
def _no_filters() -> str:
    """Why rules cannot be set, in a throw-away namespace; "" if they can."""
    rules = "*filter\n-A INPUT -p tcp -j REJECT --reject-with tcp-reset\nCOMMIT\n"
    argv = ["unshare", "--net", "--", _FILTERS]
    try:
        tried = subprocess.run(
            argv, input=rules, capture_output=True, text=True, check=False, timeout=CALL_S * 4
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (tried.stderr.strip() or "it failed") if tried.returncode else ""


class InNamespace(Common):
    """Rules that bear their injection, in the namespace of whom they hit."""

    grade: ClassVar[Grade] = Grade.REAL
    layer: ClassVar[str] = "network"
    needs: ClassVar[Needs] = Needs.LINK
    privileges: ClassVar[str] = "root (CAP_NET_ADMIN in the target's own network namespace)"
    program: ClassVar[str] = _FILTERS  # what sets it

    def check_host(self, settings: Any, here: HandleSpec) -> None:
        """Only what has a namespace of its own, and with the program that sets the rules."""
        if not here.netns:
            raise self._needs_namespaces()
        if shutil.which(self.program) is None:
            raise RefusedError(
                f"{self.kind} needs the program {self.program}",
                hint=f"apt-get install {_PACKAGES[self.program]}",
            )
        if settings is None and self.program == _FILTERS and (why := _no_filters()):
            raise RefusedError(f"{self.kind} needs the kernel's packet filters: {why}")

    def preflight(self, settings: Any, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """Every victim. Raises RefusedError unless each has its own namespace."""
        if not victims:
            raise self._needs_namespaces()
        return super().preflight(settings, victims)

    def _needs_namespaces(self) -> RefusedError:
        return WrongTargetError(
            f"{self.kind} needs a target with network namespaces of its own",
            hint="`isolation: netns` in the target file, driver process, without --virtual",
        )

    async def heal(self, injection: Injection, handle: Isolated) -> None:
        """Delete the rules that bear this injection; with the namespace they went too."""
        await handle.inside.take(mark(injection))

    async def round_trip(self, injection: Injection, handle: Isolated) -> bool:
        """The callee answers 200 to its caller."""
        return (await from_caller(handle)).status == 200


async def from_caller(handle: Isolated, timeout_s: float = CALL_S) -> Seen:
    """A call from the caller's namespace, through the rules."""
    return await handle.peer.call(handle.spec.address, handle.spec.probe_path, timeout_s)


async def from_callee(handle: Isolated, timeout_s: float = CALL_S) -> Seen:
    """A call from the callee's own namespace, which no rule touches."""
    return await handle.inside.call(handle.spec.address, handle.spec.probe_path, timeout_s)


def said(seen: Seen) -> str:
    """How a call ended."""
    return str(seen.broken or f"status {seen.status}")
