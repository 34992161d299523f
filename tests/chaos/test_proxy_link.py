"""What the agent is told of the fault proxy is read back, never believed."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import os
import threading
import time

import pytest
from proxytools import call, echo, upstream

from survive.chaos import processes
from survive.chaos.toxiproxy import ProxyLink, ProxyServer, reset_proxy
from survive.clock import LoopClock
from survive.contracts import FaultFailedError, HandleSpec, Toxic
from survive.host.sockets import SocketTransport

SLOW = Toxic("sv-slow#1", "latency", attributes={"latency": 50, "jitter": 5})
AWKWARD = "gateway -> inference#1"
RUN = f"link-{os.getpid()}"  # of its own: a heal elsewhere ends whatever bears its run's mark


@contextlib.asynccontextmanager
async def a_link(tmp_path, name=AWKWARD):
    """(server, link) of a fresh embedded proxy in front of an echo server."""
    started = []
    transport = SocketTransport()
    server = await ProxyServer.start(RUN, lambda *entry: started.append(entry), tmp_path / "log")
    address, behind = await upstream(echo)
    try:
        assert started == [("fault proxy", server.pid, processes.start_time(server.pid))]
        via = await server.create(name, address)
        spec = HandleSpec("process", "inference", 1, address, via=via, proxy=server.api,
                          proxy_name=name)  # fmt: skip
        yield server, ProxyLink(spec, LoopClock(0.0), transport)
    finally:
        await server.stop()
        await transport.close()
        behind.close()
    assert not processes.exists(*started[0][1:])


async def toxics(server, name=AWKWARD):
    _, proxies = await call(server.api, "GET", "/proxies")
    return proxies[name]["toxics"]


def test_toxics_are_added_replaced_and_removed_under_awkward_names(tmp_path):
    async def test():
        async with a_link(tmp_path) as (server, link):
            await link.add(SLOW)
            await link.add(SLOW)  # the same once more
            assert [t["attributes"] for t in await toxics(server)] == [SLOW.attributes]
            other = Toxic(SLOW.name, "latency", "upstream", 0.25, {"latency": 7})
            await link.add(other)
            (seen,) = await toxics(server)
            assert (seen["stream"], seen["toxicity"]) == ("upstream", 0.25)
            await link.remove(SLOW.name)
            await link.remove(SLOW.name)  # absent is fine
            assert await toxics(server) == []

    asyncio.run(test())


def test_the_link_is_closed_and_opened(tmp_path):
    async def test():
        async with a_link(tmp_path) as (_, link):
            host, port = link.spec.via.split(":")
            for _ in range(2):
                await link.enable(False)
                with pytest.raises(ConnectionRefusedError):
                    await asyncio.open_connection(host, int(port))
            await link.enable(True)
            _, writer = await asyncio.open_connection(host, int(port))
            writer.close()

    asyncio.run(test())


def test_a_toxic_that_the_server_does_not_know_is_an_error(tmp_path):
    async def test():
        async with a_link(tmp_path) as (_, link):
            with pytest.raises(FaultFailedError, match="InvalidToxic"):
                await link.add(Toxic("x", "nonsense"))

    asyncio.run(test())


def test_reset_removes_all_toxics_and_opens_the_listener(tmp_path):
    async def test():
        async with a_link(tmp_path) as (server, link):
            await link.add(SLOW)
            await link.add(Toxic("other", "latency", "upstream"))
            await link.enable(False)
            await reset_proxy(server.api, AWKWARD)
            assert await toxics(server) == []
            await link.enable(True)
            with pytest.raises(FaultFailedError, match="no such proxy"):
                await reset_proxy(server.api, "unknown")

    asyncio.run(test())


def test_when_the_proxy_is_gone_removing_is_done_but_opening_and_adding_are_not(tmp_path):
    async def test():
        async with a_link(tmp_path) as (server, link):
            await link.add(SLOW)
            await server.stop()
            await server.stop()
            await link.remove(SLOW.name)
            for attempt in (link.add(SLOW), link.enable(True)):
                with pytest.raises(FaultFailedError):
                    await attempt
            with pytest.raises(FaultFailedError):
                await reset_proxy(server.api, AWKWARD)

    asyncio.run(test())


def test_an_api_that_is_gone_while_the_listener_stands_is_an_error(tmp_path):
    async def test():
        async with a_link(tmp_path) as (server, link):
            await server.stop()
            host, port = link.spec.via.split(":")
            stands = await asyncio.start_server(echo, host, int(port))
            with pytest.raises(FaultFailedError):
                await link.remove(SLOW.name)
            stands.close()

    asyncio.run(test())


def test_the_proxy_dies_with_a_kill_of_its_input(tmp_path):
    async def test():
        began = time.monotonic()
        async with a_link(tmp_path) as (server, _):
            assert server.pid in [pid for pid, _ in processes.marked(RUN)]
        assert time.monotonic() - began < 3

    asyncio.run(test())


class Lying(http.server.BaseHTTPRequestHandler):
    """A Toxiproxy that does nothing of what it is told; ``mode`` says how it answers."""

    mode = ""
    toxics: tuple[dict[str, object], ...] = ()
    enabled = True
    released = threading.Event()

    def _answer(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.mode == "hangs" or (self.mode == "hangs on writes" and self.command != "GET"):
            self.released.wait(10)
            self.close_connection = True
            return
        if self.mode in {"500", "503"} and self.command != "GET":
            self._send(int(self.mode), {"error": "no", "status": int(self.mode)})
        elif self.mode == "nonsense":
            self._send(200, "nonsense")
        else:
            shown = {"name": "p", "enabled": self.enabled, "toxics": list(self.toxics)}
            self._send(200, {"p": shown})

    do_GET = do_POST = do_DELETE = _answer  # noqa: N815

    def _send(self, status, body):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format, *args):
        """Quiet."""


@contextlib.contextmanager
def lying(mode, **state):
    handler = type("Handler", (Lying,), {"mode": mode, "released": threading.Event(), **state})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield "{}:{}".format(*server.server_address)
    finally:
        handler.released.set()
        server.shutdown()
        thread.join(5)
        server.server_close()


HELD = {"name": SLOW.name, "type": "latency", "stream": "downstream", "toxicity": 1,
        "attributes": {"latency": 50, "jitter": 5}}  # fmt: skip


ANSWERS = ["200, not done", "500", "503", "nonsense"]
LIES = [(mode, verb) for mode in ANSWERS for verb in ("add", "remove", "enable", "disable")]
HANGS = [(mode, verb) for mode in ("hangs", "hangs on writes") for verb in ("add", "remove")]


@pytest.mark.parametrize(("mode", "verb"), LIES + HANGS)
def test_a_server_that_lies_is_found_out_within_three_seconds(mode, verb):
    async def test(api):
        transport = SocketTransport()
        spec = HandleSpec("process", "s", 0, "127.0.0.1:9", via=api, proxy=api, proxy_name="p")
        link = ProxyLink(spec, LoopClock(0.0), transport)
        attempt = {"add": lambda: link.add(SLOW), "remove": lambda: link.remove(SLOW.name),
                   "enable": lambda: link.enable(True),
                   "disable": lambda: link.enable(False)}[verb]  # fmt: skip
        began = time.monotonic()
        with pytest.raises(FaultFailedError):
            await attempt()
        assert time.monotonic() - began < 3
        await transport.close()

    state = {"toxics": (HELD,)} if verb == "remove" else {"enabled": verb == "disable"}
    with lying(mode, **state) as api:
        asyncio.run(test(api))


def test_a_toxic_with_other_attributes_than_asked_is_found_out():
    async def test(api):
        transport = SocketTransport()
        spec = HandleSpec("process", "s", 0, "127.0.0.1:9", via=api, proxy=api, proxy_name="p")
        link = ProxyLink(spec, LoopClock(0.0), transport)
        with pytest.raises(FaultFailedError, match="latency"):
            await link.add(Toxic(SLOW.name, "latency", attributes={"latency": 51}))
        await link.add(SLOW)  # this one is shown, so it is there
        await transport.close()

    with lying("200", toxics=(HELD,)) as api:
        asyncio.run(test(api))


def test_a_http_proxy_in_the_environment_is_not_used(tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "example.org")

    async def test():
        async with a_link(tmp_path) as (server, link):
            await link.add(SLOW)
            assert len(await toxics(server)) == 1
        assert "example.org" in os.environ["NO_PROXY"]

    asyncio.run(test())
