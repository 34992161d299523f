"""The embedded fault proxy beside a real Toxiproxy server, in one go: ``make bench-proxy``.

Throughput: one connection of bulk bytes, each proxy on one core (taskset), its peers on the other.
Added latency: pings at a fixed rate over 32 connections, through the proxy and straight, in turn;
the difference of their 99th percentiles. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LANES = 32
CHUNK = bytes(64 * 1024)


async def serve(reader, writer):
    """``B<n>``: n MB back; else echo."""
    with contextlib.suppress(ConnectionError, EOFError, asyncio.CancelledError):
        while head := await reader.readexactly(8):
            if head[:1] == b"B":
                for _ in range(int(head[1:]) * 16):
                    writer.write(CHUNK)
                    await writer.drain()
            else:
                writer.write(head)
    writer.close()


async def throughput(address, megabytes):
    """MB/s of one connection."""
    reader, writer = await asyncio.open_connection(*address, limit=1 << 20)
    began = time.perf_counter()
    writer.write(b"B%07d" % megabytes)
    left = megabytes * 16 * len(CHUNK)
    while left:
        left -= len(await reader.read(1 << 20))
    writer.close()
    return megabytes / (time.perf_counter() - began)


async def p99_ms(address, rate, seconds):
    """Of pings, from their intended starts."""
    took = []

    async def lane(number):
        reader, writer = await asyncio.open_connection(*address)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        step = LANES / rate
        due = start + number / rate
        while due < start + seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            sent = time.perf_counter()
            writer.write(b"pingping")
            await reader.readexactly(8)
            took.append(time.perf_counter() - sent)
            due += step
        writer.close()

    start = time.perf_counter() + 0.1
    await asyncio.gather(*(lane(number) for number in range(LANES)))
    took.sort()
    return took[len(took) * 99 // 100] * 1e3, len(took) / seconds


def free_port():
    with socket.socket() as end:
        end.bind(("127.0.0.1", 0))
        return end.getsockname()[1]


@contextlib.contextmanager
def proxy(argv, upstream):
    """The listener of a proxy of that program, pinned to one core."""
    port = free_port()
    argv = ["taskset", "-c", str(max(os.sched_getaffinity(0))), *argv, str(port)]
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        body = {"name": "b", "upstream": upstream, "listen": "127.0.0.1:0", "enabled": True}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/proxies",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=5) as answer:
            host, _, listen = json.load(answer)["listen"].rpartition(":")
        yield host, int(listen)
    finally:
        process.kill()
        process.wait(5)
        process.stdin.close()


async def main(options):
    """Measure all, print the table."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    straight = server.sockets[0].getsockname()
    upstream = f"127.0.0.1:{straight[1]}"
    embedded = [sys.executable, "-I", "-S", str(ROOT / "faults/proxy/server.py"), "--port"]
    programs = {"embedded": embedded}
    if options.toxiproxy:
        programs["Toxiproxy"] = [options.toxiproxy, "-host", "127.0.0.1", "-port"]
    print("| proxy | MB/s (1 connection, 1 core) | p99 ms | straight p99 ms | pings/s |")
    print("|---|---|---|---|---|")
    for name, argv in programs.items():
        with proxy(argv, upstream) as address:
            speed = max([await throughput(address, options.megabytes) for _ in range(3)])
            plain, _ = await p99_ms(straight, options.rate, options.seconds)
            p99, rate = await p99_ms(address, options.rate, options.seconds)
        print(f"| {name} | {speed:.0f} | {p99:.2f} | {plain:.2f} | {rate:.0f} |", flush=True)
    server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    built = Path.home() / "go/bin/server"
    parser.add_argument("--toxiproxy", default=shutil.which("toxiproxy-server")
                        or (str(built) if built.is_file() else ""))  # fmt: skip
    parser.add_argument("--rate", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--megabytes", type=int, default=200)
    asyncio.run(main(parser.parse_args()))
