"""Several real load workers: one schedule, one owner at a time, losses to the request."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path

from loadtools import (
    LoadProcess,
    Server,
    Tally,
    load_process,
    make_kind,
    make_plan,
    planned,
    raw_server,
)
from test_load_users import users_plan

from survive.chaos import processes
from survive.plan.model import Plan
from survive.record.samples import Outcome, Series
from survive.scenario.model import Users
from survive.units import MS, SECOND


def synchronous(test: Callable[[Path], Coroutine[None, None, None]]) -> Callable[[Path], None]:
    """A test in an event loop of its own."""

    @functools.wraps(test)
    def run(tmp_path: Path) -> None:
        asyncio.run(test(tmp_path))

    return run


@contextlib.asynccontextmanager
async def workers(
    folder: Path, plan: Plan, count: int, cores: Sequence[int] = ()
) -> AsyncIterator[tuple[LoadProcess, Server, Callable[[], list[int]]]]:
    server = Server()
    async with raw_server(server.serve) as address:
        kinds = [make_kind(name=plan.kinds[0], timeout_us=plan.timeouts_us[0])]
        args = ("--workers", str(count))
        async with load_process(folder, plan, kinds, address, args=args, cores=cores) as (
            load,
            listening,
        ):
            async with asyncio.timeout(30):
                await load.ready.wait()

            def children() -> list[int]:
                pid = load.process.pid
                found = Path(f"/proc/{pid}/task/{pid}/children").read_text()
                return sorted(int(child) for child in found.split())

            load.start()
            yield load, server, children
            async with asyncio.timeout(30):
                await load.process.wait()
                await listening


def check(tally: Tally, plan: Plan) -> int:
    """Conservation; how many are lost."""
    tally.assert_conserved(planned(plan))
    return tally.n(Series.LATENCY, Outcome.LOST)


@synchronous
async def test_two_workers_send_the_schedule_once(tmp_path: Path) -> None:
    plan = make_plan([make_kind()], rps=400, for_us=2 * SECOND, arrivals="poisson")
    both = sorted(os.sched_getaffinity(0))
    cores = [both[0], both[-1]]
    async with workers(tmp_path, plan, 2, cores) as (load, server, children):
        assert len(children()) == 2
        assert sorted(c for child in children() for c in os.sched_getaffinity(child)) == cores
        assert sorted(os.sched_getaffinity(load.process.pid)) == both  # the master stays
    assert load.failed is None and load.process.returncode == 0
    assert check(load.tally, plan) == 0
    assert server.heard == planned(plan) == load.tally.n(Series.SEND_LAG)
    assert [frame.done for frame in load.tally.frames].count(True) == 1
    assert load.tally.frames[-1].done


@synchronous
async def test_a_killed_worker_is_replaced_and_its_losses_counted(tmp_path: Path) -> None:
    plan = make_plan([make_kind()], rps=400, for_us=4 * SECOND)
    async with workers(tmp_path, plan, 3) as (load, server, children):
        await asyncio.sleep(1.6)
        os.kill(children()[0], signal.SIGKILL)
    assert load.failed is None and load.process.returncode == 0
    lost = check(load.tally, plan)
    # A third of the rate, for what was unreported (a second at most), notice and detection.
    assert 0 < lost <= 400 / 3 * 1.6
    assert load.tally.n(Series.SEND_LAG) == planned(plan) - lost
    assert planned(plan) - lost <= server.heard < planned(plan)  # unreported ones were heard too


@synchronous
async def test_a_frozen_worker_is_replaced_and_has_to_leave(tmp_path: Path) -> None:
    plan = make_plan([make_kind()], rps=300, for_us=6 * SECOND)
    async with workers(tmp_path, plan, 2) as (load, server, children):
        await asyncio.sleep(1.2)
        frozen = children()[0]
        started = processes.start_time(frozen)
        os.kill(frozen, signal.SIGSTOP)
        await asyncio.sleep(2.8)
        heard = server.heard
        os.kill(frozen, signal.SIGCONT)
        async with asyncio.timeout(10):
            while processes.exists(frozen, started):  # noqa: ASYNC110 - nobody tells us
                await asyncio.sleep(0.02)
        assert heard > 0
    lost = check(load.tally, plan)
    assert 0 < lost <= 150 * 4.0  # half the rate: a second unreported, 2 s of silence, notice
    assert server.heard <= planned(plan)  # nothing was ever sent twice
    assert load.tally.n(Series.SEND_LAG) == planned(plan) - lost


def present(tally: Tally) -> list[int]:
    """Users by second, of all workers."""
    found: Counter[int] = Counter()
    for key, counts in tally.counts.items():
        if key.series is Series.USERS:
            found[key.slice] += sum(index * n for index, n in counts.items())  # exact: below 2,048
    return [found[second] for second in sorted(found)]


@synchronous
async def test_users_are_shared_out_and_each_keeps_a_connection_of_its_own(tmp_path: Path) -> None:
    plan = users_plan(Users(9, 9, 50 * MS), each_s=2)
    async with workers(tmp_path, plan, 2) as (load, server, _):
        pass
    assert load.failed is None and load.process.returncode == 0
    tally = load.tally
    assert server.heard == tally.n(Series.SEND_LAG) == tally.n(Series.LATENCY)
    assert tally.outcomes() == {"ok": server.heard} and server.heard > 9 * 20
    assert server.connections == 9 and present(tally) == [9, 9]


@synchronous
async def test_the_users_of_a_killed_worker_go_with_it_and_are_told(tmp_path: Path) -> None:
    plan = users_plan(Users(9, 9, 50 * MS), each_s=4)
    async with workers(tmp_path, plan, 2) as (load, server, children):
        await asyncio.sleep(1.6)
        os.kill(children()[0], signal.SIGKILL)
    assert load.failed is None and load.process.returncode == 0
    tally = load.tally
    lost = tally.n(Series.LATENCY, Outcome.LOST)
    assert lost in {4, 5}  # one for each user of the worker, whichever it was
    assert tally.n(Series.LATENCY) - lost == tally.n(Series.SEND_LAG)  # sent = settled
    assert present(tally)[0] == 9 and present(tally)[2:] == [9 - lost] * 2
    assert server.connections == 9  # nobody came in their place


@synchronous
async def test_no_worker_outlives_the_load_process(tmp_path: Path) -> None:
    plan = make_plan([make_kind()], rps=50, for_us=5 * SECOND)
    async with workers(tmp_path, plan, 2) as (load, _, children):
        mine = children()
        load.process.kill()
        async with asyncio.timeout(5):
            while any(Path(f"/proc/{pid}").exists() for pid in mine):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@synchronous
async def test_another_version_is_refused(tmp_path: Path) -> None:
    """A worker as `survive worker` makes it, of another version."""
    plan = make_plan([make_kind()], rps=50, for_us=SECOND)
    port = _free_port()
    args = ("--expect", "1", "--bind", f"127.0.0.1:{port}")
    code = (
        "import survive; survive.__version__ = '0.0.0-other'\n"
        "from survive.load.worker import serve\n"
        f"serve('127.0.0.1', {port})"
    )
    async with load_process(tmp_path, plan, [make_kind()], "127.0.0.1:9", args=args):
        worker = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, stderr=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(30):
            _, said = await worker.communicate()
    assert worker.returncode == 6
    assert b"0.0.0-other, the master has" in said


def _free_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
