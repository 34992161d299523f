"""What a target driver does, on either host. Drivers live in ``targets/<driver>.py``.

A driver starts the services that a target file names, in their order, hands each the addresses of
the services it calls, waits until all are healthy, restarts what dies (``restart.after``) unless
it is held down, and stops everything. It runs inside the chaos agent (real) or in the virtual
loop, and never knows that a fault is on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from survive.clock import Clock
from survive.contracts import Handle, HandleSpec, Needs
from survive.errors import ExitCode, SurviveError
from survive.scenario.model import TargetSpec
from survive.transport import Transport


def data_path(scratch: Path, replica_id: str) -> Path:
    """Where a replica of ours keeps its files (SURVIVE_DATA): its audit log is read there."""
    return scratch / "data" / replica_id


_NO_LINES = "it said nothing; its `health:` in the target file is what was asked, and for how long"


class TargetUnhealthyError(SurviveError):
    """A service that never became healthy. Exit 3: nothing was measured."""

    exit_code = ExitCode.INCONCLUSIVE

    def __init__(self, service: str, why: str, last_lines: list[str]) -> None:
        super().__init__(
            f"{service} never became healthy: {why}",
            hint="its last lines:\n    " + "\n    ".join(last_lines) if last_lines else _NO_LINES,
        )
        self.service = service
        self.last_lines = last_lines


def _nobody_asks(kind: str, name: str) -> None:
    """For contexts without a ledger: tests of drivers that make processes only."""


@dataclass(frozen=True, slots=True)
class DriverContext:
    """All that a driver may use.

    ``links`` names the links that get a fault proxy (``gateway -> inference``).
    ``key`` is the bearer key ("" none), given to services as SURVIVE_KEY. ``started`` must be
    called with (name, pid, start_time) *right after* each process is created: it is the ledger.
    ``making`` must be called with (type, name) *before* anything is made that is no process: see
    survive.chaos.cleaners.
    ``scratch`` is a private folder that lives as long as the run. ``env`` resolves ``${ENV}``.
    """

    run_id: str
    seed: int
    spec: TargetSpec
    links: frozenset[str]
    key: str
    token: str  # of the simulated GPU's control channel
    scratch: Path
    clock: Clock
    transport: Transport
    env: Mapping[str, str]
    started: Callable[[str, int, int], None]
    making: Callable[[str, str], None] = _nobody_asks


async def lacks(driver: object, spec: TargetSpec, env: Mapping[str, str]) -> list[SurviveError]:
    """Why a driver (a class) could not start such a target on this host; all that it can tell now.

    It says so by the static method ``lacks(spec, env)``, optional: RefusedError for what would be
    refused, other errors for what may still come to be. Starts nothing, calls no other host.
    """
    asked: Callable[..., Awaitable[list[SurviveError]]] | None = getattr(driver, "lacks", None)
    return [] if asked is None else await asked(spec, env)


class Driver(Protocol):
    """``Driver(context)`` constructs it; nothing starts before start. See the module."""

    async def start(self) -> None:
        """All services up and healthy. Raises TargetUnhealthyError, RefusedError."""

    async def stop(self) -> None:
        """All that start made is gone, within 3 s, paused processes included. Idempotent."""

    def entry(self) -> str:
        """``host:port`` that load goes to: through the proxy if the entry link has one."""

    def replicas(self, service: str) -> list[HandleSpec]:
        """The replicas of a service as they are now (current pid and start time)."""

    def listeners(self, link: str) -> list[HandleSpec]:
        """The listeners of a proxied link, one per replica of its destination."""

    def open(self, spec: HandleSpec, needs: Needs) -> Handle:
        """The handle for a spec: a ReplicaHandle, GpuHandle or LinkHandle."""

    def hold(self, spec: HandleSpec) -> None:
        """Do not restart this replica until released (a held fault keeps it down)."""

    def release(self, spec: HandleSpec) -> None:
        """Restart it now if it is down. Idempotent."""

    def cpu_s(self) -> float:
        """CPU seconds used by the target's processes so far, dead ones included; 0.0 if unknown."""
