"""The driver for processes of this host: ``app:`` files that survive serves, ``run:`` programs.

Every process leads a group, dies with this one (PDEATHSIG) and bears the run's mark. Its output
goes to ``<scratch>/logs/<replica>.log``, bounded. An exit is noticed by a pidfd, in about a
millisecond; what a dead leader left in its group is killed before its pid is given back.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import survive
from survive.chaos import netns, processes
from survive.chaos.handles import open_handle
from survive.chaos.pressure import cpu_group, open_file_limit
from survive.contracts import Handle, HandleSpec, Needs
from survive.errors import HarnessError, RefusedError, SurviveError
from survive.host.authority import Authority
from survive.host.driver import DriverContext, TargetUnhealthyError
from survive.scenario.model import Service, TargetSpec
from survive.tls import AUTHORITY, GOOD, SERVING, secured

from . import isolation, wiring
from .roster import Replica, Roster, healthy_or_gone

_NAME = "process"
_HOST = "127.0.0.1"
_TERM_S = 1.0  # from SIGTERM to SIGKILL
_REAP_S = 0.7  # from SIGKILL to giving up on a process that the kernel does not end
_TAIL_LINES = 20
_TAIL_BYTES = 64 * 1024
_LOG_LIMIT = 8 * 1024 * 1024
_TRIM_EVERY_S = 5.0
_PORTS = range(10_000, 32_000)
_NOT_INHERITED = frozenset(
    {
        "RUNNER_TRACKING_ID",  # GitHub's runner hunts processes that bear it
        "SURVIVE_GPU_TOKEN",
        "SURVIVE_KEY",
        "SURVIVE_REPLICA",
        "SURVIVE_SEED",
        "SURVIVE_TLS_CA",
        "SURVIVE_TLS_CERT",
        "SURVIVE_TLS_CLIENT",
        "SURVIVE_TLS_KEY",
        "SURVIVE_WEAKNESSES",
    }
)


class _Process:
    """One started process: notices its end, reaps it, keeps what CPU it used."""

    def __init__(self, popen: subprocess.Popen[bytes], on_end: Callable[[], None]) -> None:
        self.pid = popen.pid
        self.start_time = processes.start_time(popen.pid)
        self.ended = asyncio.Event()
        self.cpu_s = 0.0
        self.how = ""
        self._before: tuple[int, str] | None = None
        self._popen = popen
        self._on_end = on_end
        self._pidfd = os.pidfd_open(popen.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    def before_faults(self) -> tuple[int, str]:
        """Its limit of open files and its control group, as they were when first asked for."""
        if self._before is None:
            self._before = open_file_limit(self.pid), cpu_group(self.pid)
        return self._before

    def signal(self, number: signal.Signals) -> None:
        """To its whole group; its pid is ours until it is reaped."""
        if not self.ended.is_set():
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                pass  # it is about to be reaped

    def forget(self) -> None:
        """Watch it no longer (the kernel did not end it in time)."""
        if not self.ended.is_set():
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)

    def _reap(self) -> None:
        processes.kill_group(self.pid)  # before the pid is given back: the group is still its
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        if pid == 0:
            return  # not yet; the pidfd stays readable
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        code = os.waitstatus_to_exitcode(status)
        self._popen.returncode = code
        self.cpu_s = usage.ru_utime + usage.ru_stime
        self.how = f"exited with {code}" if code >= 0 else f"was killed by {_signal_name(-code)}"
        self.ended.set()
        self._on_end()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@dataclass(slots=True)
class _Replica(Replica):
    port: int
    log: Path
    host: str = _HOST
    tls: str = ""  # folder of its certificate, if it speaks TLS only
    process: _Process | None = None
    past_cpu_s: float = 0.0

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


class Driver(Roster[_Replica]):
    """See survive.host.driver.Driver."""

    soonest_restart_us: ClassVar[int] = 50_000

    def __init__(self, context: DriverContext) -> None:
        super().__init__(context)
        self._proxy: wiring.FaultProxy | None = None
        self._network: isolation.Network | None = None
        self._stopping = False
        self._stop_lock = asyncio.Lock()

    async def stop(self) -> None:
        """Everything that start made is gone, within 3 s. Idempotent."""
        self._stopping = True
        async with self._stop_lock:
            await self._end_supervisors()
            proxy, self._proxy = self._proxy, None
            try:
                await asyncio.gather(self._end_processes(), *([proxy.stop()] if proxy else []))
            finally:
                self._end_strays()
            network, self._network = self._network, None
            if network is not None:
                await network.stop()

    @staticmethod
    async def lacks(spec: TargetSpec, env: Mapping[str, str]) -> list[SurviveError]:
        """See survive.host.driver.lacks: variables, programs, namespaces."""
        found = wiring.unresolved(spec, env)
        if spec.isolation and (why := netns.unwilling()):
            found.append(RefusedError(why))
        for service in spec.services.values():
            path = service.env.get("PATH", env.get("PATH"))
            if service.run and shutil.which(service.run[0], path=path) is None:
                found.append(RefusedError(f"{_cannot_start(service)}: there is no such program"))
        return found

    def entry(self) -> str:
        """Where load goes to."""
        spec = self._context.spec
        return self._addresses(spec.entry_link, spec.entry)[0]

    def open(self, spec: HandleSpec, needs: Needs) -> Handle:
        """The handle for a spec."""
        return open_handle(spec, needs, self._context.clock, self._context.transport)

    def release(self, spec: HandleSpec) -> None:
        """Restart it now if it is down. Idempotent."""
        replica = self._replica(spec)
        process = replica.process
        down = process is None or not processes.exists(process.pid, process.start_time)
        replica.watch.release(down=down)

    def cpu_s(self) -> float:
        """CPU seconds of all processes, dead ones and (of ``run:`` programs) children included."""
        return sum(_cpu_s(replica) for replica in self._all())

    # ---------------------------------------------------------------------------------- start

    async def _start(self) -> None:
        spec, context = self._context.spec, self._context
        for link in sorted(context.links):
            wiring.destination(spec, link)
        logs = context.scratch / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        ports = iter(free_ports(sum(s.replicas for s in spec.services.values())))
        for service in spec.services.values():
            _refuse_external(service)
            self._replicas[service.name] = [
                _Replica(service, number, next(ports), logs / f"{service.name}-{number}.log")
                for number in range(service.replicas)
            ]
        if spec.isolation:
            await self._isolate()
        elif context.links:
            self._proxy = await wiring.start_proxy(context, logs / "fault-proxy.log")
        self._certify()
        await self._start_in_order()
        if spec.entry_link in context.links and self._network is None:
            await self._put_proxy(spec.entry_link, spec.entry)
        self._supervisors.append(asyncio.create_task(self._trim_logs()))

    def _certify(self) -> None:
        """Both ends of TLS links get certificates of the run's own authority."""
        sources, destinations = wiring.tls_ends(self._context.spec)
        if not destinations:
            return
        authority = Authority(self._context.scratch / "tls")
        for replica in self._all():
            names = [_HOST, "localhost", replica.name]
            if replica.service.name in sources | destinations:
                home = authority.issue(replica.name, names)
                replica.env["SURVIVE_TLS_CA"] = str(authority.folder / AUTHORITY)
            if replica.service.name in sources:
                replica.env["SURVIVE_TLS_CLIENT"] = str(home / GOOD)
            if replica.service.name in destinations:
                replica.tls = str(home)
                replica.env |= {
                    "SURVIVE_TLS_CERT": str(home / SERVING),
                    "SURVIVE_TLS_KEY": str(home / SERVING),
                }

    async def _isolate(self) -> None:
        """Each replica gets an address and a namespace of its own; no proxy stands between them."""
        names = [replica.name for replica in self._all()]
        network = self._network = await isolation.Network.start(self._context, names)
        for replica in self._all():
            replica.host = network.address(replica.name)
        for link in sorted(self._context.links):
            source = link.partition(" -> ")[0]
            callers = [replica.name for replica in self._replicas.get(source, [])]
            self._listeners[link] = [
                HandleSpec(
                    driver=_NAME,
                    service=replica.service.name,
                    replica=replica.number,
                    address=replica.address,
                    probe_path=replica.service.health.path,
                    link=link,
                    netns=network.holder(replica.name),
                    peer_netns=network.holder(callers[0]) if callers else "",
                    peers=",".join(map(network.address, callers)) or network.gateway,
                )
                for replica in self._replicas[wiring.destination(self._context.spec, link)]
            ]

    async def _wire(self, service: Service) -> None:
        """Give a service the addresses of those that it calls."""
        addresses: dict[str, list[str]] = {}
        for link in wiring.links_from(self._context.spec, service.name):
            if link.name in self._context.links and self._network is None:
                await self._put_proxy(link.name, link.dest)
            addresses[link.env] = wiring.spoken(link, self._addresses(link.name, link.dest))
        for replica in self._replicas[service.name]:
            replica.env |= wiring.environment(self._context, service, replica.number, addresses)

    async def _put_proxy(self, link: str, dest: str) -> None:
        assert self._proxy is not None
        behind = [(r.service, r.number, r.address, r.tls) for r in self._replicas[dest]]
        self._listeners[link] = await wiring.put_proxies(
            _NAME, self._context, self._proxy, link, behind
        )

    def _addresses(self, link: str, dest: str) -> list[str]:
        if self._network is not None and link != self._context.spec.entry_link:
            return [
                f"{replica.name}.{isolation.DOMAIN}:{replica.port}"
                for replica in self._replicas[dest]
            ]
        if link in self._listeners and self._network is None:
            return [spec.via for spec in self._listeners[link]]
        return [replica.address for replica in self._replicas[dest]]

    async def _bring_up(self, replica: _Replica) -> None:
        process = self._boot(replica)
        try:
            await self._healthy(replica, process)
        except TargetUnhealthyError:
            # Between our choice of the port and the program's bind somebody may have taken it.
            if not process.ended.is_set() or is_free(replica.port):
                raise
            [replica.port] = free_ports(1)
            replica.log.unlink(missing_ok=True)
            await self._healthy(replica, self._boot(replica))
        self._supervise(replica)

    async def _healthy(self, replica: _Replica, process: _Process) -> None:
        """Return once it answers. Raises TargetUnhealthyError, at once if it exits."""
        health = wiring.await_health(
            secured(self._context.transport, self._spec(replica)),
            replica.service,
            replica.address,
            last_lines=lambda: tail(replica.log),
            name=replica.name,
        )
        if not await healthy_or_gone(health, process.ended):
            raise TargetUnhealthyError(replica.name, f"it {process.how}", tail(replica.log))

    def _boot(self, replica: _Replica) -> _Process:
        if self._stopping:
            raise HarnessError(f"the target was stopped while {replica.name} started")
        argv, env = self._command(replica)
        if self._network is not None:
            argv = [*self._network.enter(replica.name), *argv]
        with replica.log.open("ab") as log:
            try:
                popen = processes.spawn(
                    argv,
                    env=env,
                    run_id=self._context.run_id,
                    cwd=self._context.scratch,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            except OSError as error:
                raise RefusedError(f"{_cannot_start(replica.service)}: {error.strerror}") from error
        if replica.process is not None:
            replica.past_cpu_s += replica.process.cpu_s
        process = replica.process = _Process(popen, replica.watch.gone.set)
        replica.watch.booted()
        try:
            self._context.started(replica.name, process.pid, process.start_time)
        except BaseException:
            process.signal(signal.SIGKILL)  # what the ledger does not know must not run
            raise
        return process

    def _command(self, replica: _Replica) -> tuple[list[str], dict[str, str]]:
        """What to run, and in which environment."""
        service, port = replica.service, str(replica.port)
        env = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
        env["PYTHONUNBUFFERED"] = "1"  # so that a killed program's last lines are in its log
        env |= {name: value.replace("{port}", port) for name, value in replica.env.items()}
        env["PORT"] = port
        if service.run:
            filled = (part.replace("{port}", port) for part in service.run)
            return [part.replace("{host}", replica.host) for part in filled], env
        file, _, function = service.app.partition(":")
        path = (self._context.spec.folder / file).resolve()
        # The program that serves is this very survive, wherever it was imported from.
        home = str(Path(survive.__file__).resolve().parent.parent)
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [home, env.get("PYTHONPATH", "")]))
        module = "survive.host.serve"
        return [sys.executable, "-m", module, f"{path}:{function}", "--port", port,
                "--host", replica.host], env  # fmt: skip

    # ------------------------------------------------------------------------------ supervise

    async def _restart(self, replica: _Replica) -> None:
        try:
            self._boot(replica)
        except RefusedError as error:  # its program went away: it stays down, and is tried again
            with replica.log.open("a", encoding="utf-8") as log:
                log.write(f"survive: {error.message}\n")
            replica.watch.booted()
            replica.watch.gone.set()

    async def _trim_logs(self) -> None:
        while True:
            await asyncio.sleep(_TRIM_EVERY_S)
            for replica in self._all():
                trim(replica.log)

    # ----------------------------------------------------------------------------------- stop

    async def _end_processes(self) -> None:
        alive = [r.process for r in self._all() if r.process and not r.process.ended.is_set()]
        for process in alive:
            process.signal(signal.SIGTERM)
            process.signal(signal.SIGCONT)  # a stopped one hears SIGTERM only when it goes on
        await _all_ended(alive, _TERM_S)
        for process in alive:
            process.signal(signal.SIGKILL)
        await _all_ended(alive, _REAP_S)
        for process in alive:
            process.forget()

    def _end_strays(self) -> None:
        """Kill what left its group: it bears the run's mark and was told which replica it is."""
        names = {
            name for s in self._context.spec.services.values() for name in wiring.replica_names(s)
        }
        for pid, began in processes.marked(self._context.run_id):
            if _variable(pid, "SURVIVE_REPLICA") in names:
                processes.send(pid, began, signal.SIGKILL)

    def _spec(self, replica: _Replica) -> HandleSpec:
        process = replica.process
        nofile, cgroup = process.before_faults() if process else (0, "")
        spec = wiring.replica_spec(
            _NAME,
            replica.service,
            replica.number,
            replica.address,
            self._context.token,
            pid=process.pid if process else 0,
            start_time=process.start_time if process else 0,
            run=self._context.run_id,
            nofile=nofile,
            cgroup=cgroup,
            tls=replica.tls,
        )
        return self._network.told(spec) if self._network else spec


def _cannot_start(service: Service) -> str:
    return f"service {service.name}: cannot start {service.run[0] if service.run else 'python'}"


def _refuse_external(service: Service) -> None:
    if not service.app and not service.run:
        raise RefusedError(
            f"service {service.name} has neither `app:` nor `run:`",
            hint="services with `url:` need `driver: external`",
        )


def _cpu_s(replica: _Replica) -> float:
    process = replica.process
    if process is None:
        return replica.past_cpu_s
    if process.ended.is_set():
        return replica.past_cpu_s + process.cpu_s
    pids = [process.pid]
    if replica.service.run:  # our own server has no children; looking for them costs a scan
        pids = [pid for pid, _ in processes.group_members(process.pid)]
    return replica.past_cpu_s + sum(processes.cpu_s(pid) for pid in pids)


async def _all_ended(alive: list[_Process], within_s: float) -> None:
    try:
        async with asyncio.timeout(within_s):
            for process in alive:
                await process.ended.wait()
    except TimeoutError:
        return  # the caller goes on to the next, harder means


def _variable(pid: int, name: str) -> str:
    """One variable of a process's environment; "" if there is none."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""
    prefix = f"{name}=".encode()
    return next(
        (e[len(prefix) :].decode("utf-8", "replace") for e in entries if e.startswith(prefix)), ""
    )


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at, below those that the kernel gives to outgoing connections.

    An ephemeral port would be lost to some client while its replica is down, and a client that
    calls a dead one may even connect to itself (TCP simultaneous open). Each process begins its
    search elsewhere, so that runs side by side seldom meet.
    """
    first = os.getpid() * 7919 % len(_PORTS)
    found: list[int] = []
    for step in range(len(_PORTS)):
        if len(found) == count:
            break
        port = _PORTS[(first + step) % len(_PORTS)]
        if port not in _given and is_free(port):
            found.append(port)
    if len(found) < count:
        raise HarnessError(f"no {count} free ports in {_PORTS.start}-{_PORTS.stop - 1}")
    _given.update(found)
    return found


_given: set[int] = set()  # by this process, which may run several targets: no two get the same


def is_free(port: int) -> bool:
    """Whether a server could bind it now."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
        return True


def tail(log: Path) -> list[str]:
    """The last lines of a log."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read(_TAIL_BYTES).decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    return text.splitlines()[-_TAIL_LINES:]


def trim(log: Path) -> None:
    """Cut a log that grew too long to its last lines; its writer appends, so it goes on there."""
    try:
        if log.stat().st_size <= _LOG_LIMIT:
            return
    except FileNotFoundError:
        return
    kept = "\n".join(["[... cut by survive ...]", *tail(log), ""]).encode()
    os.truncate(log, 0)
    with log.open("ab") as file:
        file.write(kept)
