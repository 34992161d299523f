"""The fault proxy as the agent sees it: its process, its API, one link of it.

The API is driven by the toxiproxy-python package, against the embedded proxy and a real Toxiproxy
server alike. This file is the one place that owns what is peculiar about that package (0.1.1):

- It passes over 500 and 503, and reports what it asked for, not what is: so what it says decides
  nothing. After each call the state is read back with survive's transport, and only that counts.
- It has no timeouts: each call runs in a daemon thread that is left behind at its deadline. A pool
  would wait for that thread when the process ends.
- Host and port are class attributes: calls to different servers take turns (``_Address``).
- It puts names into paths unquoted, so a ``#`` would cut them: it is given quoted names.
- requests, below it, obeys HTTP_PROXY: the API's host is added to NO_PROXY.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import toxiproxy
from toxiproxy.api import APIConsumer
from toxiproxy.proxy import Proxy

from survive.catalog import builtin_root
from survive.chaos import processes
from survive.clock import Clock
from survive.contracts import FaultFailedError, HandleSpec, Toxic
from survive.errors import HarnessError, RefusedError
from survive.host.sockets import SocketTransport
from survive.transport import Broken, CallFailedError, Request, Transport, read_all

START_S = 5.0  # the proxy is up in 0.1 s; a loaded CI runner is slow
STOP_S = 1.0
DRIVE_S = 2.0  # of the library, all calls of one operation together
REMOVE_S = 1.0  # of a removal before its connections are cut: all of it fits in a heal (3 s)
READ_S = 0.6  # of a read-back: an inject that fails is known within 3 s


class _Address:
    """Who may use the library now: any number of calls to one server, never to two at once.

    A server that hangs so keeps others of the same process waiting until their deadline; survive
    has one fault proxy a run.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._calls = 0

    @contextlib.contextmanager
    def at(self, api: str) -> Iterator[None]:
        """Point the library at ``host:port`` for the time of a call. Raises FaultFailedError."""
        host, _, digits = api.rpartition(":")
        port = int(digits)
        with self._changed:
            free = self._changed.wait_for(
                lambda: self._calls == 0 or (APIConsumer.host, APIConsumer.port) == (host, port),
                DRIVE_S,
            )
            if not free:
                raise FaultFailedError("a call to another fault proxy hangs in this process")
            APIConsumer.host, APIConsumer.port = host, port
            self._calls += 1
        try:
            yield
        finally:
            with self._changed:
                self._calls -= 1
                self._changed.notify_all()


_address = _Address()


def _bypass_http_proxy(host: str) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        known = [part for part in os.environ.get(name, "").split(",") if part]
        if host not in known:
            os.environ[name] = ",".join([*known, host])


async def _drive(api: str, call: Callable[[], object]) -> str:
    """Run a call of the library beside the loop; what it said, "" = nothing wrong.

    The caller bounds it: when it is cancelled the thread is left behind.
    """
    loop = asyncio.get_running_loop()
    said: asyncio.Future[str] = loop.create_future()

    def tell(text: str) -> None:
        if not said.done():
            said.set_result(text)

    def work() -> None:
        try:
            with _address.at(api):
                call()
            text = ""
        except Exception as error:  # whatever it raises is only words: the read-back decides
            text = f"{type(error).__name__}: {error}"
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell, text)

    _bypass_http_proxy(api.rpartition(":")[0])
    threading.Thread(target=work, name="toxiproxy-python", daemon=True).start()
    return await said


class ToxiproxyApi:
    """One Toxiproxy server, embedded or real, at ``host:port``.

    ``call`` and what builds on it never use the library; they raise CallFailedError.
    """

    def __init__(self, address: str, transport: Transport) -> None:
        self.address = address
        self._transport = transport

    async def call(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Status and JSON (None if it is none) within READ_S. Raises CallFailedError."""
        content = b"" if body is None else json.dumps(body).encode()
        headers = (("content-type", "application/json"),) if content else ()
        try:
            async with asyncio.timeout(READ_S):
                response = await self._transport.call(
                    self.address, Request(method, path, headers, content), timeout_s=READ_S
                )
                answer = await read_all(response)
        except TimeoutError as error:
            raise CallFailedError(Broken.TIMEOUT, f"{method} {path}") from error
        try:
            return response.status, json.loads(answer)
        except ValueError:
            return response.status, None

    async def refuses(self) -> bool:
        """Nobody listens there: the server has ended."""
        try:
            await self.call("GET", "/version")
        except CallFailedError as error:
            return error.how is Broken.REFUSED
        return False

    async def is_embedded(self) -> bool:
        """It is ours, by what it says. Raises CallFailedError."""
        _, said = await self.call("GET", "/version")
        return isinstance(said, dict) and "+survive" in str(said.get("version"))

    async def state(self, name: str) -> Mapping[str, Any] | None:
        """A proxy as it is now, None if there is none. Raises FaultFailedError if not to be read.

        Read from the list: a name needs no quoting there.
        """
        try:
            status, proxies = await self.call("GET", "/proxies")
        except CallFailedError as error:
            raise FaultFailedError(f"fault proxy {self.address} cannot be read: {error}") from error
        if status != 200 or not isinstance(proxies, dict):
            raise FaultFailedError(f"fault proxy {self.address} cannot be read: status {status}")
        found = proxies.get(name)
        return found if isinstance(found, dict) else None

    async def ensure(
        self,
        what: str,
        name: str,
        holds: Callable[[Mapping[str, Any]], bool],
        *calls: Callable[[], object],
        within_s: float = DRIVE_S,
    ) -> Mapping[str, Any]:
        """Drive the library until ``holds`` is read back; the proxy's state then.

        Each call is tried in turn while the state is not yet as wanted. Raises FaultFailedError
        with what the library said and what was read.
        """
        said: list[str] = []
        try:
            async with asyncio.timeout(within_s):
                for call in calls:
                    said.append(await _drive(self.address, call) or "reported as done")
                    state = await self.state(name)
                    if state is not None and holds(state):
                        return state
        except TimeoutError:
            said.append(f"no answer within {within_s:g} s")
        state = await self.state(name)
        if state is not None and holds(state):
            return state
        seen = "no such proxy" if state is None else json.dumps(state)
        raise FaultFailedError(f"{what}: {'; then '.join(said)}; read back: {seen}")


class ProxyLink:
    """One listener of a fault proxy: the LinkHandle of real targets."""

    def __init__(self, spec: HandleSpec, clock: Clock, transport: Transport) -> None:
        self.spec = spec
        self.clock = clock
        self.transport = transport
        self._api = ToxiproxyApi(spec.proxy, transport)

    async def add(self, toxic: Toxic) -> None:
        """See LinkHandle. One of the same name that differs is removed first."""
        wanted = {"name": toxic.name, "type": toxic.type, "stream": toxic.stream,
                  "toxicity": toxic.toxicity, "attributes": toxic.attributes}  # fmt: skip

        def replace() -> None:
            self._proxy().destroy_toxic(_quoted(toxic.name))
            self._proxy().add_toxic(**wanted)

        await self._api.ensure(
            f"add toxic {toxic.name} on {self.spec.proxy_name}",
            self.spec.proxy_name,
            lambda state: _shows(_toxics(state).get(toxic.name), wanted),
            lambda: self._proxy().add_toxic(**wanted),
            replace,
        )
        if toxic.type == "reset_peer" and self.spec.lent:
            await self._cut_the_old()

    async def _cut_the_old(self) -> None:
        """A real Toxiproxy resets only connections that are made while the toxic is on.

        Those that were open before would end politely, so they are closed now.
        """
        await self.enable(False)
        await self.enable(True)

    async def remove(self, name: str) -> None:
        """See LinkHandle. A proxy that is gone, listener and all, has taken its toxics with it.

        A real Toxiproxy hangs on it under traffic: then its connections are closed first.
        """
        try:
            await self._api.ensure(
                f"remove toxic {name} from {self.spec.proxy_name}",
                self.spec.proxy_name,
                lambda state: name not in _toxics(state),
                lambda: self._proxy().destroy_toxic(_quoted(name)),
                within_s=REMOVE_S,
            )
        except FaultFailedError:
            if not await self._gone() and not await self._cut_and_remove(name):
                raise

    async def _cut_and_remove(self, name: str) -> bool:
        """Whether the toxic went with its connections; the listener is open again."""
        path = proxy_path(self.spec.proxy_name)
        with contextlib.suppress(CallFailedError):  # the read-back decides
            await self._api.call("POST", path, {"enabled": False})
            await self._api.call("DELETE", f"{path}/toxics/{_quoted(name)}")
            await self._api.call("POST", path, {"enabled": True})
        state = await self._api.state(self.spec.proxy_name)
        return state is not None and name not in _toxics(state) and state.get("enabled") is True

    async def seen(self) -> Mapping[str, int]:
        """See LinkHandle. Only the embedded proxy counts. FaultFailedError if not to be read."""
        try:
            status, body = await self._api.call("GET", f"{proxy_path(self.spec.proxy_name)}/seen")
            if status == 200 and isinstance(body, dict):
                return {kind: int(body[kind]) for kind in ("tls", "plain")}
            if not await self._api.is_embedded():
                raise RefusedError(
                    f"the Toxiproxy server at {self.spec.proxy} does not tell what goes through it",
                    hint="whether a link is encrypted needs the embedded fault proxy: no `proxy:`",
                )
        except CallFailedError as error:
            raise FaultFailedError(f"fault proxy {self.spec.proxy}: {error}") from error
        raise FaultFailedError(f"proxy {self.spec.proxy_name} counts nothing: status {status}")

    async def enable(self, on: bool) -> None:
        """See LinkHandle. A proxy that is gone cannot be opened: that is a FaultFailedError."""
        await self._api.ensure(
            f"{'open' if on else 'close'} {self.spec.proxy_name}",
            self.spec.proxy_name,
            lambda state: state.get("enabled") is on,
            lambda: self._proxy().enable() if on else self._proxy().disable(),
        )

    async def counts(self, name: str) -> Mapping[str, int] | None:
        """See LinkHandle."""
        try:
            state = await self._api.state(self.spec.proxy_name)
        except FaultFailedError:
            return None  # evidence is lacking: the look itself goes by another channel
        counted: Mapping[str, int] = _toxics(state or {}).get(name, {}).get("counts", {})
        return counted

    def _proxy(self) -> Proxy:
        """The library's object, made without asking the server."""
        return Proxy(name=_quoted(self.spec.proxy_name), upstream="", enabled=True, listen="")

    async def _gone(self) -> bool:
        """Neither the API nor the listener accepts: the proxy's process has ended.

        The listener alone being closed says nothing: ``network.down`` closes it too. A server that
        is not ours may live on without the proxy.
        """
        if self.spec.lent and not await self._api.refuses():
            absent = await self._api.state(self.spec.proxy_name) is None
            return absent and await self._refused(self.spec.via)
        ends = (self.spec.proxy, self.spec.via)
        return all(await asyncio.gather(*(self._refused(end) for end in ends)))

    async def _refused(self, address: str) -> bool:
        try:
            response = await self.transport.call(address, Request("GET", "/"), timeout_s=READ_S / 4)
        except CallFailedError as error:
            return error.how is Broken.REFUSED
        await response.close()
        return False


def proxy_path(name: str) -> str:
    """Of a proxy in the API."""
    return f"/proxies/{_quoted(name)}"


def _quoted(name: str) -> str:
    return quote(name, safe="")


def _toxics(state: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {toxic["name"]: toxic for toxic in state.get("toxics") or ()}


def _shows(seen: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> bool:
    """A toxic is as wanted; attributes that were not asked for may stand at their defaults.

    Toxiproxy keeps toxicity in 32 bits.
    """
    if seen is None or abs(seen["toxicity"] - wanted["toxicity"]) > 1e-6:
        return False
    attributes = wanted["attributes"].items()
    return all(seen[key] == wanted[key] for key in ("type", "stream")) and all(
        seen["attributes"].get(key) == value for key, value in attributes
    )


async def reset_proxy(api: str, name: str, transport: Transport | None = None) -> None:
    """All toxics off and the listener open, without the library: the ladder's "disable" rung.

    If toxics do not go (a real Toxiproxy can hang on it under load) the connections that hold them
    are closed first, and at last the proxy is made anew on the same port. Raises FaultFailedError
    unless read-back shows it done; within 5 s.
    """
    if transport is None:
        own = SocketTransport()
        try:
            return await reset_proxy(api, name, own)
        finally:
            await own.close()
    server = ToxiproxyApi(api, transport)
    path = f"/proxies/{_quoted(name)}"
    for cut_first in (False, True):
        state = await server.state(name)
        with contextlib.suppress(CallFailedError):  # the read-back below decides
            if cut_first:
                await server.call("POST", path, {"enabled": False})
            for toxic in _toxics(state or {}):
                await server.call("DELETE", f"{path}/toxics/{_quoted(toxic)}")
            await server.call("POST", path, {"enabled": True})
        state = await server.state(name)
        if _clean(state):
            return None
    state = await _made_anew(server, name, state)
    if _clean(state):
        return None
    seen = "no such proxy" if state is None else json.dumps(state)
    raise FaultFailedError(f"reset {name}: not done; read back: {seen}")


def _clean(state: Mapping[str, Any] | None) -> bool:
    return state is not None and state.get("enabled") is True and not _toxics(state)


async def _made_anew(
    server: ToxiproxyApi, name: str, state: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    """The same proxy without its past; what is there then."""
    if state is not None:
        same = {key: state[key] for key in ("name", "listen", "upstream")}
        with contextlib.suppress(CallFailedError):  # the read-back decides
            await server.call("DELETE", proxy_path(name))
            await server.call("POST", "/proxies", {**same, "enabled": True})
    return await server.state(name)


class ProxyServer:
    """The embedded fault proxy's process. Made by ``start``."""

    def __init__(self, process: subprocess.Popen[bytes], api: str) -> None:
        self._process = process
        self._transport = SocketTransport()
        self._api = ToxiproxyApi(api, self._transport)
        self.api = api

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @classmethod
    async def start(
        cls,
        run_id: str,
        started: Callable[[str, int, int], None],
        log: Path,
        *,
        seed: int = 0,
    ) -> ProxyServer:
        """Up and answering; it dies with this process. ``started`` (the ledger) is told at once.

        Raises HarnessError with its last words if it does not come up within START_S.
        """
        program = builtin_root() / "faults" / "proxy" / "server.py"
        # -I -S: neither the user's nor any installed package can get in its way.
        argv = [sys.executable, "-I", "-S", str(program), "--port", "0", "--seed", str(seed)]
        with log.open("ab") as errors:
            process = processes.spawn(
                argv, env=os.environ, run_id=run_id, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=errors)  # fmt: skip
        started("fault proxy", process.pid, processes.start_time(process.pid))
        try:
            line = await asyncio.wait_for(_first_line(process), START_S)
        except BaseException:
            await _end(process)
            raise
        word, _, api = line.partition(" ")
        if word != "listening":
            await _end(process)
            last = log.read_text(errors="replace").splitlines()[-3:]
            raise HarnessError("the fault proxy did not start", hint="\n".join(last))
        return cls(process, api.strip())

    async def create(self, name: str, upstream: str, *, host: str = "127.0.0.1") -> str:
        """A listener that leads to ``upstream``; its ``host:port``. Raises HarnessError.

        ``host``: an address of this host; another than loopback only on networks that we made.
        """
        try:
            state = await self._api.ensure(
                f"create proxy {name}",
                name,
                lambda state: state.get("upstream") == upstream and state.get("enabled") is True,
                lambda: toxiproxy.Toxiproxy().create(
                    upstream=upstream, name=name, listen=f"{host}:0"
                ),
            )
        except FaultFailedError as error:
            raise HarnessError(str(error)) from error
        return str(state["listen"])

    async def stop(self) -> None:
        """Gone, its connections with it, within about a second. Idempotent."""
        await self._transport.close()
        await _end(self._process)


async def _first_line(process: subprocess.Popen[bytes]) -> str:
    """What the process says first; "" if it ends without a word."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), process.stdout
    )
    try:
        return (await reader.readline()).decode()
    finally:
        transport.close()


async def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask by closing its input, then kill; wait for it."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    if process.poll() is None and not await _exits(process, STOP_S):
        processes.kill_group(process.pid)
        await _exits(process, STOP_S)
    process.poll()


async def _exits(process: subprocess.Popen[bytes], within_s: float) -> bool:
    """Whether the process ends in time; a pidfd wakes the loop, nobody polls."""
    loop = asyncio.get_running_loop()
    fd = os.pidfd_open(process.pid)
    ended = asyncio.Event()
    try:
        loop.add_reader(fd, ended.set)
        await asyncio.wait_for(ended.wait(), within_s)
    except TimeoutError:
        pass
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    return process.poll() is not None
