"""``isolation: netns``: each replica of a process target in a network namespace of its own.

One bridge, in a namespace of its own, joins them; a name server beside it knows the replicas as
``inference-0.survive.internal``; load and harness enter by one veth pair. All of it is held by
processes of the run and goes with them: see survive.chaos.netns.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from survive.chaos import netns, processes
from survive.contracts import FaultFailedError, HandleSpec
from survive.errors import RefusedError
from survive.host.driver import DriverContext

DOMAIN = "survive.internal"  # a name that ICANN keeps for private use
READY_S = 5.0  # of a holder; 10 ms are usual
_HUB = "hub"
_MOST = 250
_SUBNETS = [
    ipaddress.IPv4Network(f"10.{second}.{third}.0/24")
    for second in range(200, 250)
    for third in range(256)
]

# What holds a namespace: it lets the resolver see our name server, then sleeps.
_HOLD = 'mount --bind "$1" /etc/resolv.conf && ip link set lo up && exec sleep infinity'


class Network:
    """The network of one target. Made by ``start``."""

    def __init__(self, context: DriverContext, names: Sequence[str]) -> None:
        self._context = context
        self._names = list(names)
        self._held: dict[str, subprocess.Popen[bytes]] = {}
        self._server: subprocess.Popen[bytes] | None = None
        self._link = netns.link_name(context.run_id)
        self._log = context.scratch / "logs" / "network.log"
        subnet = _free_subnet(context.run_id)
        self._length = subnet.prefixlen
        self._hosts = [str(ip) for ip in subnet.hosts()]

    @classmethod
    async def start(cls, context: DriverContext, names: Sequence[str]) -> Network:
        """Everything up. Raises RefusedError where this host cannot, having left nothing."""
        if why := netns.lacks():
            raise RefusedError(why)
        if len(names) > _MOST:
            raise RefusedError(f"isolation: netns carries {_MOST} replicas at most")
        network = cls(context, names)
        try:
            await network._start()
        except FaultFailedError as error:
            await network.stop()
            raise RefusedError(f"isolation: netns cannot be had here: {error}") from error
        except BaseException:
            await network.stop()
            raise
        return network

    # ------------------------------------------------------------------------ what it tells

    @property
    def gateway(self) -> str:
        """The harness's own address in it: the source of load."""
        return self._hosts[-1]

    @property
    def server(self) -> str:
        """The name server's address."""
        return self._hosts[0]

    def address(self, name: str) -> str:
        """A replica's address."""
        return self._hosts[1 + self._names.index(name)]

    def holder(self, name: str) -> str:
        """Who holds a replica's namespace: ``pid:start time``."""
        pid = self._held[name].pid
        return f"{pid}:{processes.start_time(pid)}"

    def told(self, spec: HandleSpec) -> HandleSpec:
        """A replica's spec, with where it lives and whom it asks for names."""
        return replace(
            spec,
            netns=self.holder(spec.replica_id),
            peer_netns=self.holder(_HUB),
            resolver=f"{self.server} {spec.replica_id}.{DOMAIN}",
        )

    def enter(self, name: str) -> list[str]:
        """What a replica's command line begins with; the program keeps its pid."""
        pid = self._held[name].pid
        return ["nsenter", f"--net=/proc/{pid}/ns/net", f"--mount=/proc/{pid}/ns/mnt", "--"]

    # ------------------------------------------------------------------------ life

    async def _start(self) -> None:
        resolver = self._context.scratch / "resolv.conf"
        resolver.write_text(f"nameserver {self.server}\n", encoding="utf-8")
        for name in [_HUB, *self._names]:
            self._hold(name, resolver)
        for name in self._held:
            await self._until_held(name)
        hub = self._held[_HUB].pid
        await _batch(
            [],
            [
                f"link add {self._link} type veth peer name host0 netns {hub}",
                f"address add {self.gateway}/{self._length} dev {self._link}",
                f"link set {self._link} up",
            ],
        )
        await _batch(self.enter(_HUB), self._wires())
        for name in self._names:
            own = f"address add {self.address(name)}/{self._length} dev eth0"
            await _batch(self.enter(name), [own, "link set eth0 up"])
        self._server = self._serve_names()
        await self._until_named()

    def _hold(self, name: str, resolver: Path) -> None:
        """Start a holder; the ledger is told at once."""
        shell = ["sh", "-c", _HOLD, "hold", str(resolver)]
        process = self._spawn(["unshare", "--net", "--mount", "--", *shell])
        self._held[name] = process
        self._context.started(f"network of {name}", process.pid, processes.start_time(process.pid))

    def _spawn(self, argv: list[str]) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            try:
                return processes.spawn(
                    argv, env=os.environ, run_id=self._context.run_id, stdout=log, stderr=log
                )
            except OSError as error:
                raise FaultFailedError(f"cannot start {argv[0]}: {error.strerror}") from error

    async def _until_held(self, name: str) -> None:
        """It has entered its namespaces and sleeps."""
        process = self._held[name]
        for _ in range(round(READY_S / 0.005)):
            if process.poll() is not None:
                raise FaultFailedError(f"no namespace: {self._last_line()}")
            if _program(process.pid) == "sleep":
                return
            await asyncio.sleep(0.005)
        raise FaultFailedError(f"no namespace within {READY_S:g} s")

    def _wires(self) -> list[str]:
        """A bridge, and a pair to each replica."""
        lines = [
            "link add name hub0 type bridge",
            f"address add {self.server}/{self._length} dev hub0",
            "link set hub0 up",
            "link set host0 master hub0 up",
        ]
        for number, name in enumerate(self._names):
            pid = self._held[name].pid
            lines.append(f"link add p{number} type veth peer name eth0 netns {pid}")
            lines.append(f"link set p{number} master hub0 up")
        return lines

    def _serve_names(self) -> subprocess.Popen[bytes]:
        program = Path(__file__).with_name("nameserver.py")
        zone = [f"{name}.{DOMAIN}={self.address(name)}" for name in self._names]
        argv = [sys.executable, "-I", "-S", str(program), self.server, *zone]
        process = self._spawn([*self.enter(_HUB), *argv])
        self._context.started("name server", process.pid, processes.start_time(process.pid))
        return process

    async def _until_named(self) -> None:
        """A replica gets an answer of the name server: the whole way works."""
        inside = netns.Namespace(self.holder(self._names[0]))
        said = "it was never asked"
        for _ in range(round(READY_S / 0.25)):
            said = await inside.lookup(self.server, f"{self._names[0]}.{DOMAIN}", 0.2)
            if said == "answered":
                return
            await asyncio.sleep(0.05)
        raise FaultFailedError(f"its name server: {said}; {self._last_line()}")

    def _last_line(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        return lines[-1] if lines else "no word"

    async def stop(self) -> None:
        """Gone, the interface on the host too. Idempotent. After the replicas were ended."""
        ours = [*self._held.values(), *([self._server] if self._server else [])]
        for process in ours:
            if process.poll() is None:
                processes.kill_group(process.pid)
        for process in ours:
            await asyncio.to_thread(process.wait, 2)
        await netns.remove_link(self._context.run_id)


def _program(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


async def _batch(enter: list[str], lines: Sequence[str]) -> None:
    """Several ``ip`` commands by one process. Raises FaultFailedError."""
    await netns.tool([*enter, "ip", "-batch", "-"], "\n".join([*lines, ""]))


def _free_subnet(run_id: str) -> ipaddress.IPv4Network:
    """A private /24 that this host has no route into. Raises RefusedError."""
    listed = subprocess.run(
        ["ip", "-4", "-json", "route", "show", "table", "all"],
        capture_output=True, check=False, timeout=5)  # fmt: skip
    routes = json.loads(listed.stdout or b"[]") if listed.returncode == 0 else []
    known = [_network(route.get("dst", "")) for route in routes]
    taken = [network for network in known if network is not None]
    first = int.from_bytes(hashlib.sha256(run_id.encode()).digest()[:4], "big")
    for step in range(len(_SUBNETS)):
        subnet = _SUBNETS[(first + step) % len(_SUBNETS)]
        if not any(subnet.overlaps(network) for network in taken):
            return subnet
    raise RefusedError("isolation: netns finds no free subnet in 10.200.0.0 - 10.249.255.0")


def _network(destination: str) -> ipaddress.IPv4Network | None:
    """A route's destination; None for the default route, which takes nothing."""
    try:
        return ipaddress.IPv4Network(destination, strict=False)
    except ValueError:
        return None
