"""What the tests of load share: small plans, a real load process, a scriptable raw server."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import ssl
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from survive.load.template import CompiledKind
from survive.load.wire import LoadFailed, Ready, read_messages
from survive.plan.model import Plan
from survive.record.hdr import highest_of
from survive.record.samples import Frame, Key, Outcome, Series
from survive.scenario.model import Phase
from survive.transport import Request
from survive.units import SECOND

KIND = "chat"


def make_kind(**changes: object) -> CompiledKind:
    """A plain GET that wants 200; any field can be changed."""
    fields: dict[str, object] = {
        "name": KIND,
        "timeout_us": SECOND,
        "streamed": False,
        "expect_status": frozenset({200}),
        "stream_complete": False,
        "requests": [Request("GET", "/")],
    }
    return CompiledKind(**(fields | changes))  # type: ignore[arg-type]


def make_plan(
    kinds: list[CompiledKind],
    *,
    rps: int = 100,
    for_us: int = SECOND,
    lanes: int = 10,
    arrivals: str = "uniform",
    gives_up_us: int | None = None,
    marks: tuple[int, ...] = (),
    seed: int = 7,
) -> Plan:
    """One phase of a constant rate, kinds in equal shares, slices of a second."""
    phase = Phase(
        "p", 0, for_us, Fraction(rps), Fraction(rps),
        shares={kind.name: 1 / len(kinds) for kind in kinds},
    )  # fmt: skip
    edges = [*range(0, for_us, SECOND), for_us]
    return Plan(
        version=1, name="t", target="t", seed=seed, arrivals=arrivals, scale="1/1",
        kinds=tuple(kind.name for kind in kinds),
        timeouts_us=tuple(kind.timeout_us for kind in kinds),
        streamed=tuple(kind.streamed for kind in kinds),
        gives_up_after_us=gives_up_us, lanes=lanes, phases=(phase,), faults=(), marks=marks,
        slices=tuple(itertools.pairwise(edges)), end_us=for_us, planned=((0,),),
    )  # fmt: skip


@dataclass
class Tally:
    """All frames of a run, merged."""

    origin_us: int = 0  # t = 0 on CLOCK_MONOTONIC
    frames: list[Frame] = field(default_factory=list)
    counts: dict[Key, Counter[int]] = field(default_factory=dict)

    def add(self, frame: Frame) -> None:
        self.frames.append(frame)
        for key, found in frame.sets:
            into = self.counts.setdefault(key, Counter())
            for index, count in zip(found.indices, found.counts, strict=True):
                into[index] += count

    def merged(self, series: Series, outcome: str | None = None) -> Counter[int]:
        total: Counter[int] = Counter()
        for key, counts in self.counts.items():
            if key.series is series and outcome in (None, key.outcome):
                total.update(counts)
        return total

    def n(self, series: Series, outcome: str | None = None) -> int:
        return self.merged(series, outcome).total()

    def quantile(self, series: Series, share: float, outcome: str | None = None) -> int:
        counts = self.merged(series, outcome)
        left = share * counts.total()
        for index in sorted(counts):
            left -= counts[index]
            if left <= 0:
                return highest_of(index)
        raise AssertionError(f"no samples of {series}")

    def outcomes(self) -> dict[str, int]:
        """outcome[:why] → requests, from latency."""
        found: Counter[str] = Counter()
        for key, counts in self.counts.items():
            if key.series is Series.LATENCY:
                found[f"{key.outcome}:{key.why}" if key.why else key.outcome] += counts.total()
        return dict(sorted(found.items()))

    def assert_conserved(self, planned: int) -> None:
        """DESIGN law 5, every term from its own samples."""
        count = {outcome: self.n(Series.LATENCY, outcome) for outcome in Outcome}
        sent = self.n(Series.SEND_LAG)
        left = (Outcome.EXPIRED, Outcome.UNSENT, Outcome.LOST)
        assert planned == sent + sum(count[outcome] for outcome in left)
        assert sent == self.n(Series.LANE_WAIT)
        assert sent == sum(
            count[o]
            for o in (Outcome.OK, Outcome.FAILED, Outcome.TIMED_OUT, Outcome.ABANDONED,
                      Outcome.IN_FLIGHT)
        )  # fmt: skip


def planned(plan: Plan) -> int:
    from survive.plan.arrivals import Schedule

    return sum(len(block.kind) for block in Schedule.of(plan).blocks())


# ---------------------------------------------------------------------------- real process


@dataclass
class LoadProcess:
    """A running load process and what it said."""

    process: asyncio.subprocess.Process
    control: int
    reader: asyncio.StreamReader
    transport: asyncio.ReadTransport
    tally: Tally = field(default_factory=Tally)
    failed: LoadFailed | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    origin_us: int = 0

    def order(self, **what: object) -> None:
        os.write(self.control, json.dumps(what).encode() + b"\n")

    def start(self, in_us: int = 50_000) -> None:
        self.origin_us = time.monotonic_ns() // 1000 + in_us
        self.order(start=self.origin_us)

    async def listen(self) -> None:
        async for message in read_messages(self.reader):
            if isinstance(message, Ready):
                self.ready.set()
            elif isinstance(message, Frame):
                self.tally.add(message)
            else:
                self.failed = message


@contextlib.asynccontextmanager
async def load_process(
    folder: Path, plan: Plan, kinds: list[CompiledKind], address: str,
    preexec: Callable[[], None] | None = None, args: Iterable[str] = (), authority: str = "",
    cores: Sequence[int] = (),
) -> AsyncIterator[tuple[LoadProcess, asyncio.Task[None]]]:  # fmt: skip
    spec = folder / "spec.json"
    spec.write_text(json.dumps({
        "plan": plan.to_json(), "kinds": [k.to_json() for k in kinds], "address": address,
        "authority": authority, "cores": [*cores],
    }))  # fmt: skip
    control_read, control_write = os.pipe()
    report_read, report_write = os.pipe()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "survive.load.process", "--spec", str(spec),
        "--control", str(control_read), "--report", str(report_write), *args,
        pass_fds=(control_read, report_write), preexec_fn=preexec,
    )  # fmt: skip
    os.close(control_read)
    os.close(report_write)
    reader = asyncio.StreamReader(limit=1 << 22)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(report_read, "rb")
    )
    load = LoadProcess(process, control_write, reader, transport)
    listening = asyncio.create_task(load.listen())
    try:
        yield load, listening
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await asyncio.gather(listening, return_exceptions=True)
        with contextlib.suppress(OSError):
            os.close(control_write)
        transport.close()


async def run_load(
    folder: Path,
    plan: Plan,
    kinds: list[CompiledKind],
    address: str,
    within_s: float = 30,
    authority: str = "",
) -> Tally:
    """A whole run of the real load process; it must end by itself with exit 0."""
    process = load_process(folder, plan, kinds, address, authority=authority)
    async with process as (load, listening):
        async with asyncio.timeout(within_s):
            await load.ready.wait()
            load.start()
            code = await load.process.wait()
            await listening
        assert load.failed is None, load.failed
        assert code == 0
        assert load.tally.frames[-1].done
        load.tally.origin_us = load.origin_us
        return load.tally


# ------------------------------------------------------------------------------ raw server

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def raw_server(
    handler: Handler, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None, unix: str = ""
) -> AsyncIterator[str]:
    """Bytes in, bytes out on ``host``; every connection is closed at the end."""
    tasks: dict[int, asyncio.Task[None]] = {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks[id(task)] = task
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            del tasks[id(task)]
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    if unix:
        server, address = await asyncio.start_unix_server(serve, unix), f"unix:{unix}"
    else:
        server = await asyncio.start_server(serve, host, 0, ssl=tls)
        address = f"{'https://' if tls else ''}{host}:{server.sockets[0].getsockname()[1]}"
    try:
        yield address
    finally:
        server.close()
        for task in list(tasks.values()):
            task.cancel()
        await asyncio.gather(*list(tasks.values()), return_exceptions=True)
        await server.wait_closed()


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """One request (with its body, if it has a content-length)."""
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return head + await reader.readexactly(int(line.split(b":")[1]))
    return head


def answer(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}"]
    lines += [f"{k}: {v}" for k, v in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(parts: Iterable[bytes]) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in parts)


class Server:
    """Says ok, and counts what reaches it."""

    def __init__(self) -> None:
        self.heard = self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while await read_request(reader):
            self.heard += 1
            writer.write(answer(b"ok"))
            await writer.drain()
