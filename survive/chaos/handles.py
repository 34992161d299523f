"""What faults act on when the target is processes of this host, and the simulated GPU of any host.

Light imports: a fault's child process starts with these in well under 150 ms.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import signal
from typing import Any

from survive.chaos import processes
from survive.chaos.netns import Namespace, NetnsLink
from survive.chaos.pressure import ProcessPressure, undo_by_hand
from survive.clock import Clock
from survive.contracts import FaultFailedError, Handle, HandleSpec, Injection, Json, Needs
from survive.tls import secured, serve_certificate
from survive.transport import CallFailedError, Request, Transport, read_all

ADMIN_TIMEOUT_S = 1.0


class ProcessReplica:
    """One replica that is a process of this host, with the process group that it leads.

    Acts only on the very process that the spec names (pid *and* start time): a recycled pid is
    never touched, and a gone process is no error.
    """

    def __init__(self, spec: HandleSpec, clock: Clock, transport: Transport) -> None:
        self.spec = spec
        self.clock = clock
        self.transport = transport

    async def kill(self) -> None:
        """SIGKILL to its whole group, paused members included."""
        signal_group(self.spec.pid, self.spec.start_time, signal.SIGKILL)

    async def stop(self) -> None:
        """SIGTERM to its whole group."""
        signal_group(self.spec.pid, self.spec.start_time, signal.SIGTERM)

    async def pause(self) -> None:
        """SIGSTOP to its whole group."""
        signal_group(self.spec.pid, self.spec.start_time, signal.SIGSTOP)

    async def resume(self) -> None:
        """SIGCONT to its whole group."""
        signal_group(self.spec.pid, self.spec.start_time, signal.SIGCONT)

    async def exists(self) -> bool:
        """Read from /proc: the very process is there and is no zombie."""
        return processes.exists(self.spec.pid, self.spec.start_time)

    @property
    def inside(self) -> Namespace:
        """The network namespace that it lives in; of a target that is not isolated, the host's."""
        return Namespace(self.spec.netns)

    @property
    def peer(self) -> Namespace:
        """The name server's."""
        return Namespace(self.spec.peer_netns)

    @property
    def pressure(self) -> ProcessPressure:
        """What can be done around it."""
        return ProcessPressure(self.spec)

    async def restore(self, injection_id: str) -> None:
        """Undo whatever that injection can have done but end it: the ladder's second rung."""
        if self.spec.tls:
            await self.certify(expired=False)
        await self.resume()
        await self.pressure.undo(injection_id)

    async def certify(self, *, expired: bool) -> None:
        """See survive.contracts.CertifiedHandle: swap its files, which it reads again."""
        try:
            serve_certificate(self.spec.tls, expired=expired)
        except OSError as error:
            raise FaultFailedError(f"certificate of {self.spec.replica_id}: {error}") from error

    async def os_state(self) -> str:
        """Its state letter in /proc/<pid>/stat (``T`` = stopped); "" if it is gone."""
        return processes.state(self.spec.pid, self.spec.start_time)


class SimulatedGpu:
    """The simulated GPU of one replica, by the replica's admin route. Works on both hosts."""

    def __init__(self, spec: HandleSpec, clock: Clock, transport: Transport) -> None:
        self.spec = spec
        self.clock = clock
        self.transport = transport

    async def set_state(self, **state: Json) -> None:
        """POST /admin/gpu; raises FaultFailedError unless it answers 200."""
        await _admin(self, "/admin/gpu", "x-gpu-token", state)

    async def reset(self) -> None:
        """As new, whatever was set; raises FaultFailedError."""
        await self.set_state(reset=True)


class StandIn:
    """The switches of a reference service, by its admin route. Works on both hosts."""

    def __init__(self, spec: HandleSpec, clock: Clock, transport: Transport) -> None:
        self.spec = spec
        self.clock = clock
        self.transport = transport

    async def set_state(self, **state: Json) -> None:
        """POST /admin/faults; raises FaultFailedError unless it answers 200."""
        await _admin(self, "/admin/faults", "x-admin-token", state)

    async def reset(self) -> None:
        """All switches off; raises FaultFailedError."""
        await self.set_state(reset=True)


class WholeTarget:
    """The target as one thing: what a fault that needs no part of it is given."""

    def __init__(self, spec: HandleSpec, clock: Clock, transport: Transport) -> None:
        self.spec = spec
        self.clock = clock
        self.transport = transport


async def _admin(handle: Handle, path: str, token: str, state: dict[str, Json]) -> None:
    spec = handle.spec
    headers = (("content-type", "application/json"), (token, spec.token))
    request = Request("POST", path, headers, json.dumps(state).encode())
    try:
        answer = await handle.transport.call(spec.address, request, timeout_s=ADMIN_TIMEOUT_S)
        body = await read_all(answer)
    except CallFailedError as error:
        raise FaultFailedError(f"admin route of {spec.replica_id}: {error}") from error
    if answer.status != 200:
        said = body[:200].decode(errors="replace")
        raise FaultFailedError(f"admin route of {spec.replica_id}: status {answer.status} {said}")


def open_handle(spec: HandleSpec, needs: Needs, clock: Clock, transport: Transport) -> Handle:
    """The handle for a spec, on a real host."""
    transport = secured(transport, spec)
    if needs is Needs.GPU:
        return SimulatedGpu(spec, clock, transport)
    if needs is Needs.STAND_IN:
        return StandIn(spec, clock, transport)
    if needs is Needs.TARGET:
        return WholeTarget(spec, clock, transport)
    if needs is Needs.LINK and spec.netns:
        return NetnsLink(spec, clock, transport)
    if needs is Needs.LINK:
        from survive.chaos.toxiproxy import ProxyLink  # its library is slow to import

        return ProxyLink(spec, clock, transport)
    if spec.container:
        from survive.chaos.containers import ContainerReplica  # its library is slow to import

        return ContainerReplica(spec, clock, transport)
    return ProcessReplica(spec, clock, transport)


def signal_group(pid: int, started: int, number: signal.Signals) -> bool:
    """Signal the group that exactly this process leads or led; False if there is none left.

    A zombie leader still holds its pid, so its group is still its own. Of a leader that is gone,
    the group is taken for its own only if no other process has the pid now and every member began
    after the leader did: the kernel gives no pid away while a group bears it.
    """
    if pid <= 1:
        return False
    now = processes.start_time(pid)
    if now not in {0, started}:
        return False
    if now == 0:
        members = processes.group_members(pid)
        if not members or any(began < started for _, began in members):
            return False
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _activity_line(activity: Any) -> str:
    """A Chaos Toolkit activity as a shell line; ``${name}`` in it is left to the reader."""
    provider: dict[str, Any] = activity["provider"] if isinstance(activity, dict) else {}
    given: Any = provider.get("arguments") or {}
    match provider.get("type"):
        case "process" if isinstance(given, str):
            return f"{provider['path']} {given}"
        case "process":
            parts = itertools.chain(*given.items()) if isinstance(given, dict) else given
            return shlex.join([provider["path"], *map(str, parts)])
        case "http":
            data = ["-d", json.dumps(given)] if given else []
            method = provider.get("method", "GET")
            return shlex.join(["curl", "-sS", "-X", method, *data, provider["url"]])
        case "python":
            call = f"from {provider['module']} import {provider['func']} as f; f(**{given!r})"
            return shlex.join(["python", "-c", call])
    return ""


def by_hand(injection: Injection) -> str:
    """The exact shell line that undoes an injection on this host; "" if there is none to give."""
    spec = injection.handle
    if spec.driver == "virtual":
        return ""
    if injection.kind == "chaostoolkit":
        return _activity_line(injection.settings.get("heal"))
    if spec.netns and injection.kind.startswith("network."):
        enter = f"nsenter --net=/proc/{spec.netns.partition(':')[0]}/ns/net"
        return f"{enter} sh -c 'iptables -F; tc qdisc del dev eth0 root'"
    if spec.lent:
        return f"curl -sS -X DELETE http://{spec.proxy}/proxies/{spec.proxy_name}"
    if spec.proxy:
        return f"curl -sS -X POST http://{spec.proxy}/reset"
    if injection.kind == "dependency.expired_certificate":
        return f"cp -p {shlex.quote(spec.tls)}/good.pem {shlex.quote(spec.tls)}/serving.pem"
    family = injection.kind.partition(".")[0]
    if spec.token and family in {"gpu", "dependency", "observability"}:
        path, token = ("gpu", "x-gpu-token") if family == "gpu" else ("faults", "x-admin-token")
        body = shlex.quote('{"reset": true}')
        return (
            f"curl -sS -X POST -H '{token}: {spec.token}' -d {body} "
            f"http://{spec.address}/admin/{path}"
        )
    if spec.container:
        from survive.chaos.containers import undo_line

        return undo_line(spec, injection.kind)
    if line := undo_by_hand(injection):
        return line
    return f"kill -CONT -- -{spec.pid}" if spec.pid else ""
