"""What the tests of the fault proxy share. SURVIVE_TOXIPROXY=host:port names a real Toxiproxy."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import subprocess
import sys
import time

from survive.catalog import builtin_root

REAL = os.environ.get("SURVIVE_TOXIPROXY", "")
SERVER = builtin_root() / "faults" / "proxy" / "server.py"


@contextlib.contextmanager
def server(seed=0):
    """host:port of a Toxiproxy API: the real one if given, else an embedded one just for this."""
    if REAL:
        yield REAL, 0
        return
    argv = [sys.executable, "-I", "-S", str(SERVER), "--port", "0", "--seed", str(seed)]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        word, address = process.stdout.readline().decode().split()
        assert word == "listening"
        yield address, process.pid
    finally:
        process.stdin.close()
        process.stdout.close()
        assert process.wait(5) == 0


def ask(api, method, path, body=None, agent="survive-tests"):
    """(status, JSON or text or None) of one raw call."""
    connection = http.client.HTTPConnection(api, timeout=5)
    try:
        content = body if isinstance(body, str | None) else json.dumps(body)
        connection.request(method, path, content, {"User-Agent": agent})
        response = connection.getresponse()
        text = response.read().decode()
    finally:
        connection.close()
    try:
        return response.status, json.loads(text)
    except ValueError:
        return response.status, text or None


async def call(api, method, path, body=None):
    """The same, beside the loop."""
    return await asyncio.to_thread(ask, api, method, path, body)


async def upstream(handle):
    """A server for ``handle(reader, writer)``; its host:port and the server."""

    async def served(reader, writer):
        """Ends well with its loop, too: Python 3.12.1 asks a cancelled task for its exception."""
        try:
            await handle(reader, writer)
        except asyncio.CancelledError:
            pass
        finally:
            writer.close()

    made = await asyncio.start_server(served, "127.0.0.1", 0)
    host, port = made.sockets[0].getsockname()
    return f"{host}:{port}", made


async def echo(reader, writer):
    """Send back what comes, chunk by chunk; end when the peer ends."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    writer.close()


async def proxied(api, name, to, **more):
    """A new proxy on loopback; its listener as (host, port)."""
    body = {"name": name, "upstream": to, "listen": "127.0.0.1:0", **more}
    status, made = await call(api, "POST", "/proxies", body)
    assert status == 201, made
    host, port = made["listen"].rsplit(":", 1)
    return host, int(port)


async def latency(api, name, ms, jitter=0, toxic="slow", **more):
    """Put a latency toxic on a proxy."""
    body = {"name": toxic, "type": "latency", "attributes": {"latency": ms, "jitter": jitter}}
    status, answer = await call(api, "POST", f"/proxies/{name}/toxics", {**body, **more})
    assert status == 200, answer


async def ping(reader, writer, payload=b"ping"):
    """Seconds until the payload is back."""
    began = time.monotonic()
    writer.write(payload)
    assert await asyncio.wait_for(reader.readexactly(len(payload)), 5) == payload
    return time.monotonic() - began


async def leave(*writers):
    """Close client connections and wait until they are."""
    for writer in writers:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
