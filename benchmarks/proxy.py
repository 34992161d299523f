"""The embedded fault proxy beside a real Toxiproxy server, in one go: ``make bench-proxy``.

Each relay is pinned to one core. This program is client *and* server of every connection, pinned to
another core and never asleep: the only wake-ups that are measured are the relay's. No toxics.

Added p99: pings of 8 bytes go out at moments drawn beforehand (Poisson), over keep-alive
connections, whatever has come back (open loop); each counts from its *intended* start. A round
goes straight, then the same schedule through each relay. A relay's added p99 is its p99 minus that
of the straight round of the same cycle; the median over cycles is what counts. The *floor* is
``peers/relay.c``, the least that a relay in user space can do: the machine's own share.

A round in which this program or the relay had to wait for its core, because other work ran there,
for more than 0.5 % of the time is not used: less cannot move a 99th percentile by itself. What the
relay does itself, its pauses included, is running, not waiting, and always counts. The CPU column
is of all rounds.

Throughput: one connection of bulk bytes, in turn, every round. Two numbers, because client and
server on the other core may be what limits: MB/s, and MB per second of the relay's CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import random
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.load import machine  # noqa: E402

PING = b"pingping"
READ = 1 << 18
BAR_MS = 0.2  # added p99
WAITED = 0.005  # share of a round
ENOUGH = 8  # rounds that can be used


@dataclass
class Round:
    """One round of pings, times in ms, or of bulk bytes."""

    waited: float  # for a core, share of the round: this program or the relay
    cpu_s: float  # of the relay
    p50: float = 0.0
    p99: float = 0.0
    lag_p99: float = 0.0  # sent so much later than intended: ours
    mb_per_s: float = 0.0

    @property
    def usable(self) -> bool:
        """Other work did not disturb these pings."""
        return self.waited <= WAITED


@dataclass
class Relay:
    """One way to the server and back, and what was measured on it."""

    name: str
    address: tuple[str, int]
    pid: int = 0  # 0 = there is none: straight
    rounds: list[Round] = field(default_factory=list)
    bulks: list[Round] = field(default_factory=list)


def connected(address: tuple[str, int], listener: socket.socket) -> tuple[socket.socket, ...]:
    """Both ends of a connection through a relay."""
    client = socket.create_connection(address, 5)
    server, _ = listener.accept()
    for end in (client, server):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client, server


class Pings:
    """Client and server of some connections through one relay, in one loop that never sleeps."""

    def __init__(self, listener: socket.socket, address: tuple[str, int], lanes: int) -> None:
        self._poll = select.epoll()
        self._clients: list[socket.socket] = []
        self._servers: dict[int, socket.socket] = {}
        for _ in range(lanes):
            client, server = connected(address, listener)
            for end in (client, server):
                end.setblocking(False)
                self._poll.register(end, select.EPOLLIN)
            self._clients.append(client)
            self._servers[server.fileno()] = server
        self._by_fd = {client.fileno(): client for client in self._clients}
        self._due = {fd: deque[float]() for fd in self._by_fd}

    def round(self, gaps: list[float]) -> tuple[float, float, float]:
        """One ping after each gap. Their p50 and p99, and the p99 of our own lateness, in ms."""
        took: list[float] = []
        lags: list[float] = []
        clock = time.perf_counter
        due = clock() + 0.01
        for number, gap in enumerate(gaps):
            due += gap
            while (now := clock()) < due:
                self._serve(took)
            client = self._clients[number % len(self._clients)]
            self._due[client.fileno()].append(due)
            client.send(PING)
            lags.append(now - due)
        while len(took) < len(gaps):
            self._serve(took)
            if clock() > due + 10:
                raise TimeoutError(f"{len(gaps) - len(took)} pings were not answered")
        return percentile_ms(took, 50), percentile_ms(took, 99), percentile_ms(lags, 99)

    def _serve(self, took: list[float]) -> None:
        for fd, _ in self._poll.poll(0):
            if fd in self._servers:
                self._servers[fd].send(self._servers[fd].recv(4096))
                continue
            for _ in range(len(self._by_fd[fd].recv(4096)) // len(PING)):
                took.append(time.perf_counter() - self._due[fd].popleft())


def percentile_ms(seconds: list[float], percent: int) -> float:
    return sorted(seconds)[len(seconds) * percent // 100] * 1e3


def bulk(listener: socket.socket, address: tuple[str, int], megabytes: int) -> float:
    """MB/s of one connection."""
    client, server = connected(address, listener)

    def send() -> None:
        piece = bytes(1 << 20)
        for _ in range(megabytes):
            server.sendall(piece)
        server.close()

    sender = threading.Thread(target=send)
    began = time.perf_counter()
    sender.start()
    left = megabytes << 20
    while left:
        left -= len(client.recv(READ))
    took = time.perf_counter() - began
    sender.join()
    client.close()
    return megabytes / took


def ran_and_waited(pid: int) -> tuple[float, float]:
    """Seconds that the threads of a process were on a core, and that they waited for one."""
    files = list(Path(f"/proc/{pid}/task").glob("*/schedstat")) if pid else []
    told = [[int(word) for word in file.read_text().split()] for file in files]
    return sum(one[0] for one in told) / 1e9, sum(one[1] for one in told) / 1e9


@contextlib.contextmanager
def observed(relay: Relay) -> Iterator[Round]:
    """What a round costs the relay, and how long somebody waited for a core."""
    seen = Round(0.0, 0.0)
    began = time.perf_counter()
    before = [ran_and_waited(pid) for pid in (relay.pid, os.getpid())]
    yield seen
    after = [ran_and_waited(pid) for pid in (relay.pid, os.getpid())]
    lasted = time.perf_counter() - began
    seen.cpu_s = after[0][0] - before[0][0]
    seen.waited = max(new[1] - old[1] for new, old in zip(after, before, strict=True)) / lasted


def measure(listener: socket.socket, relays: list[Relay], options: argparse.Namespace) -> None:
    """Cycles of rounds, until enough of them can be used or the time is over."""
    chance = random.Random(7)
    pings = [Pings(listener, relay.address, options.lanes) for relay in relays]
    count = round(options.rate * options.seconds)
    gc.disable()
    stop = time.monotonic() + options.within
    while time.monotonic() < stop and min(usable(one.rounds) for one in relays) < options.rounds:
        gaps = [chance.expovariate(options.rate) for _ in range(count)]
        for relay, lanes in zip(relays, pings, strict=True):
            with observed(relay) as seen:
                seen.p50, seen.p99, seen.lag_p99 = lanes.round(gaps)
            relay.rounds.append(seen)
        gc.collect()
    for _ in range(options.bulks):
        for relay in relays[1:]:
            with observed(relay) as seen:
                seen.mb_per_s = bulk(listener, relay.address, options.megabytes)
            relay.bulks.append(seen)


def usable(rounds: list[Round]) -> int:
    """How many of them."""
    return sum(one.usable for one in rounds)


def free_port() -> int:
    with socket.socket() as end:
        end.bind(("127.0.0.1", 0))
        return end.getsockname()[1]


@contextlib.contextmanager
def started(argv: list[str], core: int) -> Iterator[subprocess.Popen[str]]:
    """A program on one core."""
    process = subprocess.Popen(
        ["taskset", "-c", str(core), *argv], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def toxiproxy_like(name: str, argv: list[str], upstream: int, core: int) -> Iterator[Relay]:
    """A listener of a program that speaks Toxiproxy's API."""
    port = free_port()
    with started([*argv, str(port)], core) as process:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.05)
        body = {"name": "b", "upstream": f"127.0.0.1:{upstream}", "listen": "127.0.0.1:0",
                "enabled": True}  # fmt: skip
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/proxies", json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=5) as answer:
            host, _, listen = json.load(answer)["listen"].rpartition(":")
        yield Relay(name, (host, int(listen)), process.pid)


@contextlib.contextmanager
def floor(upstream: int, core: int) -> Iterator[Relay | None]:
    """The least relay; None where it cannot be compiled."""
    with tempfile.TemporaryDirectory() as folder:
        binary, source = f"{folder}/relay", str(ROOT / "benchmarks/peers/relay.c")
        compiler = [shutil.which("cc") or "", "-O2", "-o", binary, source]
        if not compiler[0] or subprocess.run(compiler, check=False).returncode:
            yield None
            return
        with started([binary, str(upstream)], core) as process:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            yield Relay("floor", ("127.0.0.1", port), process.pid)


def middle(values: list[float], digits: int = 0) -> str:
    """The median and the range."""
    if not values:
        return "none"
    low, high = min(values), max(values)
    return f"{statistics.median(values):,.{digits}f} ({low:,.{digits}f}–{high:,.{digits}f})"


def added_ms(relay: Relay, straight: Relay) -> list[float]:
    """How much later the 99th percentile is through the relay, each cycle that can be used."""
    cycles = zip(relay.rounds, straight.rounds, strict=True)
    return [one.p99 - plain.p99 for one, plain in cycles if one.usable and plain.usable]


def report(relays: list[Relay], options: argparse.Namespace) -> str:
    """The page, in Markdown."""
    return "\n".join(
        [
            "# The embedded fault proxy beside Toxiproxy",
            "",
            f"{datetime.now(UTC):%Y-%m-%d}, {machine()}. Made by `make bench-proxy`, whose",
            "docstring (`benchmarks/proxy.py`) says how it is measured and what *added p99* is.",
            "Relays on one core, client and server on the other, no toxics. Medians over rounds,",
            f"with their range. Load average of the machine then: {os.getloadavg()[0]:.1f}.",
            "",
            *judged(relays),
            "",
            f"## Pings: {options.rate:,} a second, {options.lanes} connections, "
            f"rounds of {options.seconds} s",
            "",
            *ping_table(relays, options.rate * options.seconds),
            "",
            f"## Bulk bytes: one connection, rounds of {options.megabytes} MB",
            "",
            *bulk_table(relays[1:], options.megabytes),
            "",
        ]
    )


def ping_table(relays: list[Relay], pings: float) -> Iterator[str]:
    yield "| way | p50 ms | p99 ms | added p99 ms | CPU µs a ping | our lag p99 ms | rounds used |"
    yield "|---|---|---|---|---|---|---|"
    for relay in relays:
        used = [one for one in relay.rounds if one.usable]
        cpu = middle([one.cpu_s / pings * 1e6 for one in relay.rounds], 1) if relay.pid else ""
        added = middle(added_ms(relay, relays[0]), 3) if relay.pid else ""
        yield (
            f"| {relay.name} | {middle([one.p50 for one in used], 3)}"
            f" | {middle([one.p99 for one in used], 3)} | {added} | {cpu}"
            f" | {middle([one.lag_p99 for one in used], 3)} | {len(used)} of {len(relay.rounds)} |"
        )


def bulk_table(relays: list[Relay], megabytes: int) -> Iterator[str]:
    yield "| relay | MB/s | MB per second of its CPU |"
    yield "|---|---|---|"
    for relay in relays:
        speeds = middle([one.mb_per_s for one in relay.bulks])
        per_cpu = middle([megabytes / one.cpu_s for one in relay.bulks])
        yield f"| {relay.name} | {speeds} | {per_cpu} |"


def judged(relays: list[Relay]) -> Iterator[str]:
    """What the numbers say of the bars."""
    by_name = {relay.name: relay for relay in relays}
    added = {relay.name: added_ms(relay, relays[0]) for relay in relays[1:]}
    quiet = len(added["embedded"]) >= ENOUGH
    if quiet:
        medians = {name: statistics.median(values) for name, values in added.items() if values}
        word = "met" if medians["embedded"] <= BAR_MS else "**missed**"
        told = ", ".join(f"{name} {value:.3f} ms" for name, value in medians.items())
        yield f"- Added p99 at most {BAR_MS} ms: {word} ({told})."
    else:
        yield (
            f"- Added p99 at most {BAR_MS} ms: **not shown**. Other work ran on these cores: "
            f"{len(added['embedded'])} rounds can be used, {ENOUGH} are wanted."
        )
    if "Toxiproxy" not in by_name:
        yield "- Throughput at least Toxiproxy's: **not measured**, there is none here."
        return
    bulks = [by_name[name].bulks for name in ("embedded", "Toxiproxy")]
    ours, theirs = (statistics.median(one.mb_per_s for one in rounds) for rounds in bulks)
    cost, their_cost = (statistics.median(one.cpu_s for one in rounds) for rounds in bulks)
    word = "**not shown**, for the same reason"
    if quiet:
        word = "met" if ours >= theirs else "**missed**"
    yield (
        f"- Throughput at least Toxiproxy's: {word} ({ours / theirs:.2f} × by the clock, "
        f"{their_cost / cost:.2f} × by the relay's own CPU)."
    )


def main() -> int:
    """Measure all, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    built = Path.home() / "go/bin/server"
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks/results-proxy.md")
    parser.add_argument("--toxiproxy", default=shutil.which("toxiproxy-server")
                        or (str(built) if built.is_file() else ""))  # fmt: skip
    parser.add_argument("--lanes", type=int, default=32)
    parser.add_argument("--rate", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=0.25, help="of a round")
    parser.add_argument("--rounds", type=int, default=60, help="that can be used, of each")
    parser.add_argument("--within", type=float, default=90.0, help="seconds for them")
    parser.add_argument("--bulks", type=int, default=9)
    parser.add_argument("--megabytes", type=int, default=400)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    with contextlib.suppress(PermissionError):
        os.nice(-5)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))
        listener.settimeout(10)
        host, upstream = listener.getsockname()
        relays = [Relay("straight", (host, upstream))]
        if (least := stack.enter_context(floor(upstream, cores[-1]))) is not None:
            relays.append(least)
        program = str(ROOT / "faults/proxy/server.py")
        programs = {"embedded": [sys.executable, "-I", "-S", program, "--port"]}
        if options.toxiproxy:
            programs["Toxiproxy"] = [options.toxiproxy, "-host", "127.0.0.1", "-port"]
        for name, argv in programs.items():
            way = toxiproxy_like(name, argv, upstream, cores[-1])
            relays.append(stack.enter_context(way))
        os.sched_setaffinity(0, {cores[0]})
        measure(listener, relays, options)
    page = report(relays, options)
    options.output.write_text(page)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
