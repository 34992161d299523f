"""Faults on the very process that computes on a real NVIDIA card for its victim.

Servers have one process that listens and others that compute (vLLM's engine core): a dead or hung
one behind a listener that says it is well is a failure of its own kind, which node.* do not make.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from survive.contracts import (
    Active,
    FaultFailedError,
    Grade,
    HandleSpec,
    Injection,
    Json,
    Observation,
    ProcessHandle,
)
from survive.errors import RefusedError
from survive.transport import Broken

from .cards import OnCard
from .chat_looks import one_token
from .common import OneShot, asked
from .nvml import Who, card_of, card_or_refused, send, sm_use, started, tree, workers


@dataclass(frozen=True, slots=True)
class OnDevice:
    """Settings: the ``device`` by NVML's number."""

    device: int = 0


@dataclass(frozen=True, slots=True)
class Served:
    """Settings: the ``model`` that a chat must name; the ``device`` by NVML's number."""

    model: str = "probe"
    device: int = 0


class _OnWorker(OnCard):
    """What both faults share: whom they hit, which is in the ledger before."""

    grade: ClassVar[Grade] = Grade.REAL

    def preflight(self, settings: Any, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """Victims that compute on the card, by NVML. Raises RefusedError (6) for any other."""
        for victim in victims:
            self.check_host(settings, victim)
            if not self.remember(settings, victim)["workers"]:
                raise RefusedError(
                    f"{victim.replica_id}: NVML lists no process of it on GPU {settings.device}",
                    hint="in a PID namespace of its own NVML shows other pids",
                )
        return list(victims)

    def remember(self, settings: Any, victim: HandleSpec) -> dict[str, Json]:
        """Its processes on the card: pid and start time."""
        with card_or_refused(self.kind, settings.device) as (nvml, it):
            return {"workers": [list(who) for who in workers(nvml, it, victim)]}


class NvidiaWorkerStop(_OnWorker):
    """``nvidia.worker_stop``: the victim's process on the card hangs; its listener does not."""

    kind: ClassVar[str] = "nvidia.worker_stop"
    settings: ClassVar[type] = Served
    certifies: ClassVar[str] = (
        "requests survive a worker that hangs on its card while its server still listens"
    )
    does_not_certify: ClassVar[str] = (
        "a hung card or driver: the worker is stopped, the card is well; a server without a chat "
        "route, or a card without per-process samples (MIG): never proven; no virtual twin"
    )

    async def inject(self, injection: Injection, handle: ProcessHandle) -> None:
        """SIGSTOP to those that compute now: the victim may have restarted since it was chosen."""
        with card_of(injection) as (nvml, it):
            found = workers(nvml, it, handle.spec)
        if not [who for who in found if send(who, signal.SIGSTOP)]:
            raise FaultFailedError(f"NVML lists no process of {handle.spec.replica_id} now")

    async def observe(
        self, injection: Injection, handle: ProcessHandle, before: float | None
    ) -> Observation:
        """Active if a chat gets no answer and NVML saw its living workers use no SM for 1 s.

        A worker that is only slow uses the multiprocessors, so that load is not taken for a hang.
        """
        said = await one_token(handle, asked(Served, injection).model)
        with card_of(injection) as (nvml, it):
            there = workers(nvml, it, handle.spec)
            used = sm_use(nvml, it, {pid for pid, _ in there}) if there else None
        text = f"a chat: {said}; by NVML {len(there)} workers on the card use {used} % of its SMs"
        if said == 200:
            return Observation(Active.NO, text)
        hung = said is Broken.TIMEOUT and there and used == 0
        return Observation(Active.YES if hung else Active.UNKNOWN, text)

    async def heal(self, injection: Injection, handle: ProcessHandle) -> None:
        """SIGCONT to all of the victim's processes, and to those that were first chosen."""
        for who in tree(handle.spec) | set(_chosen(injection)):
            send(who, signal.SIGCONT)

    async def round_trip(self, injection: Injection, handle: ProcessHandle) -> bool:
        """A chat is answered: the listener alone would have answered all the time."""
        return await one_token(handle, asked(Served, injection).model) == 200


class NvidiaWorkerKill(OneShot, _OnWorker):
    """``nvidia.worker_kill``: the victim's process on the card dies, once; no other does."""

    kind: ClassVar[str] = "nvidia.worker_kill"
    settings: ClassVar[type] = OnDevice
    certifies: ClassVar[str] = "requests survive the sudden death of the worker behind a server"
    does_not_certify: ClassVar[str] = (
        "a lost card; whether the server's health route tells the truth: objectives do; no "
        "virtual twin"
    )

    async def inject(self, injection: Injection, handle: ProcessHandle) -> None:
        """SIGKILL to the very processes that were chosen."""
        if not [who for who in _chosen(injection) if send(who, signal.SIGKILL)]:
            raise FaultFailedError(f"the workers of {handle.spec.replica_id} were gone before")

    async def observe(
        self, injection: Injection, handle: ProcessHandle, before: float | None
    ) -> Observation:
        """Active once NVML lists none of those that were hit; a successor does not count."""
        with card_of(injection) as (nvml, it):
            there = {p.pid for p in nvml.nvmlDeviceGetComputeRunningProcesses(it)}
        chosen = _chosen(injection)
        left = [pid for pid, began in chosen if pid in there and started(pid) == began]
        text = f"{len(left)} of {len(chosen)} workers are still on the card by NVML"
        return Observation(Active.NO if left or not chosen else Active.YES, text)


def _chosen(injection: Injection) -> list[Who]:
    """As the ledger has them."""
    found: Any = injection.settings.get("workers", [])
    return [(int(pid), int(began)) for pid, began in found]
