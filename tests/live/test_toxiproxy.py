"""A real Toxiproxy server: one suite for it and the embedded proxy, faults, a whole run."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from survive.catalog import Catalog, builtin_root
from survive.chaos.lent import LentProxies, clean, left
from survive.chaos.toxiproxy import ProxyLink
from survive.clock import LoopClock
from survive.contracts import Active, FaultFailedError, HandleSpec, Injection, Toxic
from survive.errors import HarnessError, RefusedError
from survive.host.sockets import SocketTransport
from survive.transport import Broken, CallFailedError, Request, read_all


def _binary():
    named = os.environ.get("SURVIVE_TOXIPROXY_BIN")
    if named:
        return named
    go = shutil.which("go") or "/usr/local/go/bin/go"
    try:
        path = subprocess.run([go, "env", "GOPATH"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return shutil.which("toxiproxy-server") or ""
    built = Path(path.stdout.strip()) / "bin" / "server"
    return str(built) if built.is_file() else shutil.which("toxiproxy-server") or ""


BINARY = _binary()
pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(not BINARY, reason="no Toxiproxy server (see .ci/run)"),
]


def free_port():
    with socket.socket() as end:
        end.bind(("127.0.0.1", 0))
        return end.getsockname()[1]


@contextlib.contextmanager
def serving(which):
    """host:port of the API of a server of its own."""
    if which == "toxiproxy":
        port = free_port()
        argv = [BINARY, "-host", "127.0.0.1", "-port", str(port)]
    else:
        port, program = free_port(), builtin_root() / "faults" / "proxy" / "server.py"
        argv = [sys.executable, "-I", "-S", str(program), "--port", str(port)]
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None
            time.sleep(0.02)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(5)
        process.stdin.close()


class World:
    """One service behind one proxy of the run."""

    def __init__(self, link, transport):
        self.link, self.transport = link, transport

    async def get(self, path="/", timeout_s=3.0, address=None, headers=()):
        began = time.monotonic()
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self.transport.call(
                    address or self.link.spec.via, Request("GET", path, headers),
                    timeout_s=timeout_s)  # fmt: skip
                body = await read_all(answer)
        except (CallFailedError, TimeoutError) as error:
            return getattr(error, "how", Broken.TIMEOUT), time.monotonic() - began
        return len(body), time.monotonic() - began

    async def put(self, type_, stream="downstream", **attributes):
        await self.link.add(Toxic("t", type_, stream, attributes=attributes))


async def _serve(reader, writer):
    """GET /N answers N bytes; connections are kept unless asked otherwise."""
    gone = (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError)
    with contextlib.suppress(*gone):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.split()[1].lstrip(b"/") or b"2") if head[5:6].isdigit() else 2
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size)
            await writer.drain()
            if b"connection: close" in head.lower():
                break
    writer.close()


def play(which, test):
    """Run ``test(world)`` against a proxy of one run on a server of its own."""

    async def main(api):
        behind = await asyncio.start_server(_serve, "127.0.0.1", 0)
        address = "{}:{}".format(*behind.sockets[0].getsockname())
        transport = SocketTransport()
        told = []
        proxies = await LentProxies.start(
            "contract", api, ("127.0.0.1",), lambda *entry: told.append(entry)
        )
        assert told == [("toxiproxy", api)]
        try:
            name = "sv-contract-a-b-0"
            via = await proxies.create(name, address)
            spec = HandleSpec("process", "b", 0, address, "/", link="a -> b", via=via, proxy=api,
                              proxy_name=name, lent=True)  # fmt: skip
            return await test(World(ProxyLink(spec, LoopClock(0.0), transport), transport))
        finally:
            try:
                await proxies.stop()
                assert await left("contract", api) == []
            finally:
                await transport.close()
                behind.close()

    with serving(which) as api:
        return asyncio.run(main(api))


both = pytest.mark.parametrize("which", ["embedded", "toxiproxy"])


@both
def test_every_toxic_does_the_same(which):
    async def test(world):
        plain, took = await world.get("/2000")
        assert plain == 2000 and took < 0.5
        await world.put("latency", latency=150)
        assert 0.15 <= (await world.get())[1] < 0.6
        await world.put("bandwidth", rate=20)  # 4000 bytes: 200 ms
        assert 0.18 <= (await world.get("/4000"))[1] < 0.8
        await world.put("slicer", average_size=500, size_variation=50, delay=20_000)
        assert 0.12 <= (await world.get("/4000"))[1] < 1.2
        await world.put("slow_close", delay=250)
        lag = await world.transport.linger(world.link.spec.via, Request("GET", "/"), timeout_s=3)
        assert 0.2 <= lag < 1
        await world.put("limit_data", bytes=1000)
        assert (await world.get("/4000"))[0] in {Broken.CLOSED, Broken.RESET}
        await world.put("timeout", timeout=0)
        assert (await world.get(timeout_s=0.4))[0] is Broken.TIMEOUT
        await world.put("timeout", timeout=300)
        how, took = await world.get()
        assert how in {Broken.CLOSED, Broken.RESET} and 0.25 <= took < 1
        await world.put("reset_peer", timeout=0)
        assert (await world.get())[0] is Broken.RESET
        await world.link.remove("t")
        await world.link.remove("t")
        assert (await world.get("/2000"))[0] == 2000

    play(which, test)


@both
def test_down_refuses_those_that_kept_their_connection_too(which):
    async def test(world):
        assert (await world.get())[0] == 2
        await world.link.enable(False)
        assert (await world.get())[0] is Broken.REFUSED
        await world.link.enable(True)
        assert (await world.get())[0] == 2

    play(which, test)


@both
def test_a_toxic_leaves_within_a_heal_though_bytes_pour_to_a_client_that_does_not_read(which):
    async def test(world):
        await world.put("latency", latency=50)
        host, port = world.link.spec.via.rsplit(":", 1)
        ends = [await asyncio.open_connection(host, int(port), limit=4096) for _ in range(4)]
        for _, writer in ends:
            writer.write(b"GET /50000000 HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.sleep(0.5)
        began = time.monotonic()
        try:
            await world.link.remove("t")
            healed = True
        except FaultFailedError:  # the real server's API hangs, all of it: that is told in time
            healed = False
            assert which == "toxiproxy"
        assert time.monotonic() - began < 3
        for _, writer in ends:
            writer.transport.abort()
        assert not healed or (await world.get())[0] == 2

    try:
        play(which, test)
    except HarnessError:  # its proxies cannot be removed either: told too; its process ends here
        assert which == "toxiproxy"


FAULTS = {
    "network.latency": {"latency": "120ms"}, "network.down": {}, "network.timeout": {},
    "network.bandwidth": {"kb_per_s": 20}, "network.slow_close": {"delay": "200ms"},
    "network.reset_peer": {}, "network.slicer": {"average_bytes": 100, "delay": "10ms"},
    "network.limit_data": {"bytes": 900}, "network.partition": {},
    "network.flapping": {"every": "500ms", "down": "200ms"},
}  # fmt: skip


LOADED = {kind: Catalog().fault(kind) for kind in FAULTS}


@both
@pytest.mark.parametrize("kind", FAULTS)
def test_every_fault_bites_and_is_gone(which, kind):
    async def test(world):
        fault, link = LOADED[kind], world.link
        injection = Injection("f#1", "f", kind, FAULTS[kind], link.spec, 0, 2_000_000)
        assert (await fault.observe(injection, link, None)).active is Active.NO
        await fault.inject(injection, link)
        for _ in range(2):
            seen = await fault.observe(injection, link, None)
            assert seen.active is Active.YES, seen
        await fault.heal(injection, link)
        await fault.heal(injection, link)
        seen = await fault.observe(injection, link, None)
        assert seen.active is Active.NO, seen
        assert await fault.round_trip(injection, link)

    play(which, test)


def test_whoever_holds_the_ledger_removes_a_runs_proxies_and_nobody_elses():
    async def main(api):
        mine = await LentProxies.start("run-mine", api, ("127.0.0.1",), lambda *_: None)
        other = await LentProxies.start("run-other", api, ("127.0.0.1",), lambda *_: None)
        await mine.create("sv-run-mine-a-b-0", "127.0.0.1:9")
        await other.create("sv-run-othe-a-b-0", "127.0.0.1:9")
        assert len(await left("run-mine", api)) == 1
        assert await clean("run-mine", api) == [] == await clean("run-mine", api)
        assert len(await left("run-other", api)) == 1
        await other.stop()
        await mine.stop()
        with pytest.raises(RefusedError, match="not allowed"):
            await LentProxies.start("r", api, ("10.0.0.1",), lambda *_: None)

    with serving("toxiproxy") as api:
        asyncio.run(main(api))
    assert asyncio.run(left("run-mine", api)) == []  # the server has ended: nothing is left
    with pytest.raises(RefusedError, match="no Toxiproxy"):
        asyncio.run(LentProxies.start("r", api, ("127.0.0.1",), lambda *_: None))


SCENARIO = """\
survive: 1
name: through-toxiproxy
target:
  driver: process
  entry: web
  proxy: {{toxiproxy: "${{TOXIPROXY}}"}}
  services:
    web: {{run: [{python}, {server}, "{{port}}"], health: {{get: /health, within: 10s}}}}
  allow: {{hosts: [127.0.0.1], faults: [network]}}
requests: {{get: {{get: /health, timeout: 2s}}}}
load: {{phases: [{{name: all, rate: 40/s, for: 6s}}]}}
faults:
  slow: {{kind: network.latency, link: load -> web, at: 2s, for: 2s, with: {{latency: 100ms}}}}
objectives: {{fine: {{metric: success, min: 90%, during: run}}}}
"""
SERVER = """\
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class H(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    def do_GET(self):
        self.send_response(200); self.send_header("content-length", "2"); self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *_): pass
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), H).serve_forever()
"""


@pytest.mark.alone
def test_a_whole_run_through_it(tmp_path):
    server = tmp_path / "server.py"
    server.write_text(SERVER)
    file = tmp_path / "t.survive.yaml"
    file.write_text(SCENARIO.format(python=sys.executable, server=server))
    with serving("toxiproxy") as api:
        argv = [sys.executable, "-m", "survive", "run", str(file), "--out", str(tmp_path / "runs"),
                "--format", "json"]  # fmt: skip
        ran = subprocess.run(argv, env={**os.environ, "TOXIPROXY": api}, capture_output=True,
                             text=True, timeout=60, check=False)  # fmt: skip
        assert ran.returncode == 0, ran.stdout[:3000] + ran.stderr[-2000:]
        [fault] = json.loads(ran.stdout)["faults"]
        assert fault["active_share"] == 1.0, fault
        assert asyncio.run(_proxies(api)) == {}


async def _proxies(api):
    transport = SocketTransport()
    try:
        answer = await transport.call(api, Request("GET", "/proxies"), timeout_s=2)
        return json.loads(await read_all(answer))
    finally:
        await transport.close()
