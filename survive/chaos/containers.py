"""Docker containers of this host: what faults act on, and what removes those that a run left.

Driven by the docker package, whose calls block: each runs in a daemon thread that is left behind
at its deadline, as the fault proxy's library does. What a call reports decides nothing: the state
is read back from the daemon, and faults prove themselves by the kernel (survive.chaos.cgroups).

All that a heal must know stands in labels on the container itself, so a name and the ledger are
enough. Only the daemon of this very host will do (``unix://``): proof needs its pids.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import docker
import docker.constants
from docker.errors import APIError, DockerException, NotFound

from survive.chaos import processes
from survive.chaos.cgroups import Cgroups, Limit, interfaces
from survive.clock import Clock
from survive.contracts import FaultFailedError, HandleSpec
from survive.errors import RefusedError
from survive.transport import Transport

DEFAULT_URL = "unix:///var/run/docker.sock"
RUN = "survive.run"  # label: the run's id, on every container and network
NETWORK = "survive.network"  # label: its network, which a cut container must find again
ADDRESS = "survive.address"  # label: its fixed address there
CPUS = "survive.cpus"  # label: the compose file's limit, "" = none
MEMORY = "survive.memory"  # label: the same in bytes

CALL_S = 1.5  # of one call by a fault: 20-150 ms are usual, and an inject has 2 s
REMOVE_S = 5.0  # of one container or network, a busy daemon's time included
READ_EVERY_S = 0.02
STOP_GRACE_S = 1  # whole seconds are all that docker knows
PERIOD_US = 100_000  # of the CPU limit: the kernel's own default
_LOOK_AGAIN_S = 0.2  # a container that was being created while we listed

_OLDEST = docker.constants.MINIMUM_DOCKER_API_VERSION  # asks for the daemon's own, unversioned
_NEWEST = docker.constants.DEFAULT_DOCKER_API_VERSION

T = TypeVar("T")


class GoneError(FaultFailedError):
    """The container or network does not exist."""


def engine_url(env: Mapping[str, str]) -> str:
    """The docker daemon of this host. Raises RefusedError if DOCKER_HOST names another's."""
    url = env.get("DOCKER_HOST", "") or DEFAULT_URL
    if not url.startswith("unix://"):
        raise RefusedError(
            f"DOCKER_HOST is {url!r}: containers can be broken on this host only",
            hint="a fault is proven by the kernel that runs its victim; use a unix:// socket",
        )
    return url


class Engine:
    """A docker daemon, each call of which ends in time."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._version = ""  # until the daemon has told, once

    async def ask(
        self, what: str, call: Callable[[docker.APIClient], T], within_s: float = CALL_S
    ) -> T:
        """Raises GoneError, FaultFailedError (refused, failed, late)."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def tell(result: T | None, error: Exception | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)  # type: ignore[arg-type]

        def work() -> None:
            result: T | None = None
            error: Exception | None = None
            try:
                result = self._call(call, within_s)
            except NotFound as missing:
                error = GoneError(f"{what}: {missing.explanation or missing}")
            except Exception as failed:  # requests' and urllib3's own come through unwrapped
                error = FaultFailedError(f"{what}: {_words(failed)}")
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(tell, result, error)

        threading.Thread(target=work, name="docker", daemon=True).start()
        try:
            async with asyncio.timeout(within_s):
                return await answer
        except TimeoutError:
            raise FaultFailedError(f"{what}: docker did not answer in {within_s:g} s") from None

    def _call(self, call: Callable[[docker.APIClient], T], within_s: float) -> T:
        """A client per call: none is shared by threads, none hangs on another's connection."""
        if not self._version:
            with _client(self.url, _OLDEST, within_s) as client:
                told = client.version(api_version=False)
                self._version = min(str(told["ApiVersion"]), _NEWEST, key=_ordered)
        with _client(self.url, self._version, within_s) as client:
            return call(client)

    async def state(self, name: str) -> dict[str, Any]:
        """Everything that docker knows of a container. Raises GoneError, FaultFailedError."""
        found: dict[str, Any] = await self.ask(
            f"inspect {name}", lambda c: c.inspect_container(name)
        )
        return found

    async def until(
        self, name: str, what: str, holds: Callable[[dict[str, Any]], bool], within_s: float
    ) -> dict[str, Any]:
        """Read back until it holds; FaultFailedError with what was read if it does not in time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within_s
        while True:
            seen = await self.state(name)
            if holds(seen):
                return seen
            if loop.time() > deadline:
                raise FaultFailedError(f"{what} {name}: not done; docker says {_status(seen)}")
            await asyncio.sleep(READ_EVERY_S)


@contextlib.contextmanager
def _client(url: str, version: str, within_s: float) -> Iterator[docker.APIClient]:
    """Not with version "auto": if nobody answers that leaves its socket open."""
    client = docker.APIClient(base_url=url, timeout=within_s, version=version)
    try:
        yield client
    finally:
        client.close()


def _ordered(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _words(error: Exception) -> str:
    if isinstance(error, APIError):
        return str(error.explanation or error)
    if isinstance(error, DockerException):
        return f"{type(error).__name__}: {error}"
    return str(_cause(error))


def _cause(error: BaseException) -> BaseException:
    """The system's own word, which requests and urllib3 wrap in theirs."""
    inner = next((part for part in error.args if isinstance(part, BaseException)), None)
    return error if inner is None else _cause(inner)


def _status(seen: Mapping[str, Any]) -> str:
    return f"{seen['State']['Status']}, pid {seen['State']['Pid']}"


class ContainerReplica:
    """One replica that is a container: the ReplicaHandle and ContainerHandle of ``compose``.

    ``spec.pid`` and ``start_time`` name its first process as the host sees it, so that a verb
    meant for one boot never hits the next. A container that is gone is no error for any undo.
    """

    def __init__(self, spec: HandleSpec, clock: Clock, transport: Transport) -> None:
        self.spec = spec
        self.clock = clock
        self.transport = transport
        self._engine = Engine(spec.engine)

    # -------------------------------------------------------------------- as any replica

    async def kill(self) -> None:
        """SIGKILL to all that runs in it, paused or not."""
        await self._end("kill", lambda c: c.kill(self.spec.container))

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL after a second of grace."""
        await self._end("stop", lambda c: c.stop(self.spec.container, timeout=STOP_GRACE_S))

    async def pause(self) -> None:
        """Freeze all that runs in it."""
        if await self._same_boot():
            await self._do("pause", lambda c: c.pause(self.spec.container), _paused)

    async def resume(self) -> None:
        """Let it go on, whichever boot it is."""
        with contextlib.suppress(GoneError):
            if _paused(await self._engine.state(self.spec.container)):
                await self._do(
                    "unpause", lambda c: c.unpause(self.spec.container), lambda s: not _paused(s)
                )

    async def exists(self) -> bool:
        """Read from /proc: the very process is there and is no zombie."""
        return processes.exists(self.spec.pid, self.spec.start_time)

    async def os_state(self) -> str:
        """``T`` if the kernel has frozen its control group, else its letter in /proc; "" = gone.

        A frozen process shows as ``D``, which says nothing.
        """
        letter = processes.state(self.spec.pid, self.spec.start_time)
        return "T" if letter and Cgroups(self.spec.pid).frozen() else letter

    # -------------------------------------------------------------------- as a container

    async def disconnect(self) -> None:
        """Take it off its network; its processes go on."""
        if await self._same_boot():
            network = await self._label(NETWORK)
            await self._do(
                "disconnect",
                lambda c: c.disconnect_container_from_network(self.spec.container, network),
                lambda seen: network not in _networks(seen),
            )

    async def connect(self) -> None:
        """Back on its network, with its old address and port."""
        with contextlib.suppress(GoneError):
            network, address = await self._label(NETWORK), await self._label(ADDRESS)
            if network not in _networks(await self._engine.state(self.spec.container)):
                await self._do(
                    "connect",
                    lambda c: c.connect_container_to_network(
                        self.spec.container, network, ipv4_address=address
                    ),
                    lambda seen: network in _networks(seen),
                )

    async def limit_cpu(self, cpus: float | None) -> None:
        """At most so many CPUs; None = what the compose file says."""
        if cpus is None:
            cpus = float(await self._label(CPUS) or 0) or None
        quota = -1 if cpus is None else max(1_000, round(cpus * PERIOD_US))
        await self._update("CpuQuota", quota, cpu_period=PERIOD_US, cpu_quota=quota)

    async def limit_memory(self, limit: int | None) -> None:
        """At most so many bytes, swap included; None = what the compose file says.

        docker cannot take a limit away again: without one in the file it becomes the host's whole
        memory, which limits nothing.
        """
        if limit is None:
            info = await self._engine.ask("info", lambda c: c.info())
            limit = int(await self._label(MEMORY) or 0) or int(info["MemTotal"])
        await self._update("Memory", limit, mem_limit=limit, memswap_limit=limit)

    async def restore(self) -> None:
        """Undo whatever a fault can have done to it but end it: the ladder's second rung."""
        with contextlib.suppress(GoneError):
            await self.resume()
            await self.connect()
            seen = (await self._engine.state(self.spec.container))["HostConfig"]
            if seen["CpuQuota"] > 0:
                await self.limit_cpu(None)
            if seen["Memory"] > 0:
                await self.limit_memory(None)

    # -------------------------------------------------------------------- as the kernel sees it

    async def interfaces(self) -> list[str] | None:
        """Its network interfaces but loopback; None if that very process is gone."""
        return interfaces(self.spec.pid) if await self.exists() else None

    async def cpu_seen(self) -> Limit | None:
        """The CPU limit in force and its hits; None if that very process is gone."""
        return Cgroups(self.spec.pid).cpu() if await self.exists() else None

    async def memory_seen(self) -> Limit | None:
        """The same of memory, in bytes."""
        return Cgroups(self.spec.pid).memory() if await self.exists() else None

    # -------------------------------------------------------------------- inside

    async def _same_boot(self) -> bool:
        try:
            seen = await self._engine.state(self.spec.container)
        except GoneError:
            return False
        return bool(seen["State"]["Pid"] == self.spec.pid) and await self.exists()

    async def _end(self, what: str, call: Callable[[docker.APIClient], object]) -> None:
        if await self._same_boot():
            pid = self.spec.pid
            await self._do(what, call, lambda seen: seen["State"]["Pid"] != pid)

    async def _do(
        self,
        what: str,
        call: Callable[[docker.APIClient], object],
        holds: Callable[[dict[str, Any]], bool],
    ) -> None:
        """One call, read back. An error of the call does not count if its aim is reached."""
        said = "reported as done"
        try:
            within_s = CALL_S + (STOP_GRACE_S if what == "stop" else 0)
            await self._engine.ask(f"{what} {self.spec.container}", call, within_s)
        except GoneError:
            raise
        except FaultFailedError as error:
            said = str(error)
        try:
            await self._engine.until(self.spec.container, what, holds, 0.4)
        except GoneError:
            raise
        except FaultFailedError as error:
            raise FaultFailedError(f"{said}; {error}") from error

    async def _update(self, key: str, wanted: int, **settings: int) -> None:
        """A gone container has no limit to mend."""
        with contextlib.suppress(GoneError):
            await self._do(
                f"update {key} of",
                lambda c: c.update_container(self.spec.container, **settings),
                lambda seen: seen["HostConfig"][key] == wanted,
            )

    async def _label(self, name: str) -> str:
        seen = await self._engine.state(self.spec.container)
        return str(seen["Config"]["Labels"].get(name, ""))


def _paused(seen: Mapping[str, Any]) -> bool:
    return bool(seen["State"]["Paused"])


def _networks(seen: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = seen["NetworkSettings"]["Networks"] or {}
    return found


def undo_line(spec: HandleSpec, kind: str) -> str:
    """The shell line that undoes a fault on a container."""
    docker_cli = f"docker -H {shlex.quote(spec.engine)}"
    name = shlex.quote(spec.container)
    if kind == "node.pause":
        return f"{docker_cli} unpause {name}"
    return f"{docker_cli} rm -f {name}"


# ------------------------------------------------------------------------------- cleaner


async def left(run: str, name: str) -> list[str]:
    """See survive.chaos.cleaners: ``name`` is the daemon's URL."""
    containers, networks = await _of_run(Engine(name), run)
    return [
        *(f"container {c['Names'][0].lstrip('/')} ({c['State']})" for c in containers),
        *(f"docker network {n['Name']}" for n in networks),
    ]


async def clean(run: str, name: str) -> list[str]:
    """Remove the run's containers, paused ones too, then its networks; what is still left."""
    engine = Engine(name)
    quiet = 0
    for _ in range(20):
        containers, networks = await _of_run(engine, run)
        if not containers and not networks:
            quiet += 1
            if quiet == 2:
                break
            await asyncio.sleep(_LOOK_AGAIN_S)
            continue
        quiet = 0
        await remove(engine, containers, networks)
    return await left(run, name)


async def remove(
    engine: Engine, containers: list[dict[str, Any]], networks: list[dict[str, Any]]
) -> None:
    """Side by side. Errors do not count: whoever called looks what is left."""
    await asyncio.gather(
        *(_remove_container(engine, found["Id"]) for found in containers), return_exceptions=True
    )
    await asyncio.gather(
        *(_remove_network(engine, found["Id"]) for found in networks), return_exceptions=True
    )


async def _remove_network(engine: Engine, key: str) -> None:
    await engine.ask("remove network", lambda c: c.remove_network(key), REMOVE_S)


async def _remove_container(engine: Engine, key: str) -> None:
    """A frozen process takes no SIGKILL (control groups, version 1): thaw it first."""
    with contextlib.suppress(FaultFailedError):
        if _paused(await engine.state(key)):
            await engine.ask("unpause", lambda c: c.unpause(key))
    await engine.ask("remove", lambda c: c.remove_container(key, force=True, v=True), REMOVE_S)


async def _of_run(engine: Engine, run: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    wanted = {"label": f"{RUN}={run}"}
    containers, networks = await asyncio.gather(
        engine.ask("list containers", lambda c: c.containers(all=True, filters=wanted)),
        engine.ask("list networks", lambda c: c.networks(filters=wanted)),
    )
    return list(containers), list(networks)


def by_hand(run: str, name: str) -> str:
    """See survive.chaos.cleaners."""
    cli, label = f"docker -H {shlex.quote(name)}", shlex.quote(f"label={RUN}={run}")
    return (
        f"{cli} rm -f $({cli} ps -aq --filter {label}); "
        f"{cli} network rm $({cli} network ls -q --filter {label})"
    )
