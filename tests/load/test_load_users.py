"""Users who wait for their answers: the closed model, in virtual time and over sockets."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from loadtools import Tally, answer, make_kind, make_plan, raw_server, read_request, run_load
from test_load_process import FreezingTransport, ScriptedResponse

from survive.host.loop import VirtualClock, VirtualLoop, virtual_run
from survive.load.core import Filing
from survive.load.memory import MemoryLoad
from survive.load.template import CompiledKind
from survive.load.users import Turns, User
from survive.plan.model import Plan
from survive.record.samples import Series
from survive.scenario.model import Phase, Users
from survive.transport import Request, Response, Transport
from survive.units import MS, SECOND

KIND = make_kind(name="ok", timeout_us=60 * SECOND)


def users_plan(*users: Users, each_s: int, kinds: list[CompiledKind] | None = None) -> Plan:
    """A phase for each, one after the other."""
    kinds = kinds or [KIND]
    plan = make_plan(kinds, for_us=len(users) * each_s * SECOND, lanes=1)
    shares = {kind.name: 1 / len(kinds) for kind in kinds}
    nothing = Fraction(0)
    phases = tuple(
        Phase(f"p{at}", at * each_s * SECOND, (at + 1) * each_s * SECOND, nothing, nothing,
              shares=shares, users=one)
        for at, one in enumerate(users)
    )  # fmt: skip
    return replace(plan, phases=phases, planned=tuple((0,) * len(kinds) for _ in users))


class Servers:
    """So many requests at a time, each for a while; the others wait their turn."""

    def __init__(self, takes_us: int, at_once: int = 1_000_000) -> None:
        self._takes_s = takes_us / SECOND
        self._free = asyncio.Semaphore(at_once)

    async def call(self, address: str, request: Request, *, timeout_s: float) -> Response:
        async with self._free:
            await asyncio.sleep(self._takes_s)
        return ScriptedResponse("ok")

    async def linger(self, address: str, request: Request, *, timeout_s: float) -> float:
        raise AssertionError("load never asks for this")


def run_virtually(plan: Plan, make: type[FreezingTransport] | Servers) -> Tally:
    tally = Tally()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        transport: Transport = make if isinstance(make, Servers) else make()
        clock = VirtualClock(loop, loop.time())
        await MemoryLoad(plan, [KIND], transport, clock, "x:1").run(tally.add, asyncio.Event())

    virtual_run(main())
    assert tally.frames[-1].done
    assert tally.n(Series.SEND_LAG) == tally.n(Series.LATENCY), "sent = settled"
    return tally


@pytest.mark.parametrize(("exponential", "within"), [(False, 0.01), (True, 0.02)])
def test_littles_law(exponential: bool, within: float) -> None:
    """Throughput is users / (service time + think time), whatever the think time is drawn from."""
    people = Users(40, 40, 420 * MS, exponential)
    tally = run_virtually(users_plan(people, each_s=60), Servers(80 * MS))
    assert tally.n(Series.LATENCY) / 60 == pytest.approx(40 / 0.5, rel=within)
    assert abs(tally.quantile(Series.LATENCY, 0.99) - 80 * MS) <= MS


@pytest.mark.parametrize(("users", "waits_ms"), [(100, 1000), (200, 3000)])
def test_more_users_than_capacity_wait_longer_and_get_no_more(users: int, waits_ms: int) -> None:
    """50/s and no more: the response time law, users / throughput - think time."""
    plan = users_plan(Users(users, users, SECOND), Users(users, users, SECOND), each_s=10)
    tally = run_virtually(plan, Servers(20 * MS, at_once=1))
    later = {k: n for k, n in tally.counts.items() if k.slice >= 10}  # the queue has filled up
    tally.counts = later
    assert tally.n(Series.LATENCY) / 10 == pytest.approx(50, rel=0.01)
    assert tally.quantile(Series.LATENCY, 0.5) == pytest.approx(waits_ms * MS, rel=0.03)


def test_a_freeze_hides_from_users_who_wait_and_not_from_a_schedule() -> None:
    """Our own claim: the same server, stalled for 2 s of 8, under 200 requests a second."""
    closed = run_virtually(users_plan(Users(20, 20, 100 * MS), each_s=8), FreezingTransport)
    opened = run_virtually(make_plan([KIND], rps=200, for_us=8 * SECOND), FreezingTransport)
    assert opened.n(Series.LATENCY) == 1600
    assert opened.quantile(Series.LATENCY, 0.9) == pytest.approx(1_200 * MS, rel=0.01)
    assert closed.n(Series.LATENCY) == pytest.approx(1200, rel=0.02), "400 were never asked"
    assert closed.quantile(Series.LATENCY, 0.9) <= 2, "and those that were asked look well"
    assert closed.quantile(Series.LATENCY, 1.0) > 1_900 * MS


def turns(plan: Plan, number: int, takes_us: int) -> list[tuple[int, int, int]]:
    """(due, kind, row) of everything that one user asks."""
    user = User(plan, Filing(plan), number)
    found = []
    job = user.next_turn(0)
    while job is not None:
        found.append((job.intended_us, job.kind, job.row))
        job = user.next_turn(job.intended_us + takes_us)
    return found


def test_the_seed_fixes_what_each_user_asks_however_long_answers_take() -> None:
    kinds = [make_kind(name="a"), make_kind(name="b")]
    plan = users_plan(Users(5, 5, 100 * MS, True), each_s=60, kinds=kinds)
    quick, slow = turns(plan, 3, MS), turns(plan, 3, 300 * MS)
    assert len(quick) > 2 * len(slow) > 200
    assert [turn[1:] for turn in slow] == [turn[1:] for turn in quick[: len(slow)]]
    assert turns(plan, 3, MS) == quick
    assert turns(plan, 2, MS)[:50] != quick[:50]
    assert turns(replace(plan, seed=8), 3, MS)[:50] != quick[:50]
    assert 0.4 < sum(kind for _, kind, _ in quick) / len(quick) < 0.6


def test_users_come_in_the_middle_of_thinking_and_leave_at_the_end() -> None:
    plan = users_plan(Users(100, 100, SECOND), Users(100, 50, SECOND), each_s=4)
    firsts = [turns(plan, number, MS)[0][0] for number in range(100)]
    assert 400 * MS < sum(firsts) / 100 < 600 * MS and max(firsts) < SECOND
    assert all(due < 8 * SECOND for due, _, _ in turns(plan, 0, MS))
    first_to_leave = turns(plan, 99, MS)
    assert len(first_to_leave) == 4 and all(due < 4_040 * MS for due, _, _ in first_to_leave)
    filing = Filing(plan)
    everybody = Turns(plan, filing)
    assert everybody.present(3 * SECOND) == 100
    assert everybody.next_due_us() == min(firsts)


def test_nobody_who_does_not_think_stops_the_clock() -> None:
    user = User(users_plan(Users(1, 1), each_s=1), Filing(make_plan([KIND])), 0)
    first = user.next_turn(0)
    assert first is not None and first.intended_us == 0
    second = user.next_turn(0)
    assert second is not None and second.intended_us == 1


def test_each_user_keeps_a_connection_of_its_own(tmp_path: Path) -> None:
    plan = users_plan(Users(8, 8, 50 * MS), each_s=1)
    connections = served = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections, served
        connections += 1
        while True:
            await read_request(reader)
            served += 1
            await asyncio.sleep(0.01)
            writer.write(answer(b"hello"))

    async def main() -> Tally:
        async with raw_server(handler) as address:
            return await run_load(tmp_path, plan, [KIND], address)

    tally = asyncio.run(main())
    assert connections == 8
    assert tally.outcomes() == {"ok": served}
    assert served == tally.n(Series.ATTEMPT) == tally.n(Series.SEND_LAG)
    assert served == pytest.approx(8 / 0.06, rel=0.2)
    assert tally.merged(Series.USERS) == {8: 1}
