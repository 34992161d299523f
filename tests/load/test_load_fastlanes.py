"""FastLanes serves what it serves exactly as the lanes' own code would, and hands over the rest."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loadtools import answer, chunked, make_kind, make_plan, raw_server, read_request, run_load

from survive.load import desk
from survive.load.checks import AnswerCheck
from survive.load.core import Exchange, Filing, Job, buckets, rules
from survive.load.http1 import AnswerReader, NotHttpError
from survive.load.template import CompiledKind
from survive.record.samples import Outcome
from survive.transport import Request
from survive.units import SECOND

fastlanes = pytest.importorskip("survive.load._fastlanes")

PAYLOAD = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
CHECK = AnswerCheck(json=True, has=("choices",))
REPLICA = b"x-replica-id: r-1\r\n"


class Scene:
    """FastLanes with one lane on a socket pair; the test is the server."""

    def __init__(
        self, *, check: AnswerCheck | None = None, patience_us: int = 3600 * SECOND,
        marks: tuple[int, ...] = (), intended: tuple[int, ...] = (0,), lanes: int = 1,
        payload: bytes = PAYLOAD,
    ) -> None:  # fmt: skip
        fine = None if check is None else (lambda body: not check.wrong_of_body(body, whole=True))
        kind = (True, patience_us, [200, 201], fine, [payload])
        self.fast = fastlanes.FastLanes(lanes, [kind], list(marks), b"x-replica-id")
        self.fast.origin_ns = time.monotonic_ns() - 10 * 10**9
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.theirs.settimeout(2)
        zero = np.zeros(len(intended), np.int64)
        self.fast.load(0, np.array(intended, np.int64), zero, zero, zero, None)
        new = self.fast.turn(0, 0)  # its first lane is not made yet
        self.first = Job(*new[0][1]) if new else None

    def now_us(self) -> int:
        return (time.monotonic_ns() - self.fast.origin_ns) // 1000

    def begin(self) -> None:
        """Park the lane with its connection, let it take the next arrival and send it."""
        self.fast.park(0, self.ours.fileno(), self.now_us())
        assert self.fast.turn(0, 0) == []
        assert self.theirs.recv(1 << 16) == PAYLOAD

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene(intended=(0, 0, 0))
    yield made
    made.close()


def served(data: bytes, check: AnswerCheck | None = None) -> tuple[int, ...] | None:
    """(replica's number,) if FastLanes takes these bytes for an ordinary answer, else None."""
    scene = Scene(check=check, intended=(0, 0))
    try:
        scene.fast.know(b"r-1")
        scene.begin()
        scene.theirs.sendall(data)
        handed = scene.fast.turn(0, 0)
        groups = scene.fast.cut()
        assert len(handed) + len(groups) == 1
        if handed:
            assert handed[0][5] == data
            return None
        return (groups[0][3],)
    finally:
        scene.close()


def told(data: bytes, check: AnswerCheck | None = None) -> tuple[Outcome | None, str, bool]:
    """What the lanes' own code says of the same bytes: outcome, who, reusable."""
    kind = make_kind(expect_status=frozenset({200, 201}), check=check)
    plan = make_plan([kind])
    exchange = Exchange(Filing(plan), rules(plan, [kind])[0], Job(0, 0, 0, 0, 0, 0))
    exchange.on_sent(0)
    exchange.on_attempt(0)
    reader = AnswerReader()
    reader.expect(exchange, head_only=False)
    try:
        reader.feed(data, 1)
    except NotHttpError:
        return None, "", False
    reusable = reader.reusable
    reader.eof(1)  # an answer without a length ends with the connection
    return exchange.outcome, exchange.who, reusable


ORDINARY = [
    answer(b""),
    answer(b"ok"),
    answer(b"ok", 201),
    answer(b"x" * 60_000),
    answer(b'{"choices": []}', headers={"Content-Type": "application/json; charset=utf-8"}),
    answer(b"ok", headers={"Connection": "Keep-Alive", "date": "now", "x": ""}),
    answer(b"ok", headers={"x-replica-id": "r-1"}),
    answer(b"ok", headers={"X-Replica-Id": "\t r-1 "}),
    answer(b'{"error": 1}', headers={"content-type": "text/plain"}),
    answer(b'{"error": 1}' + b" " * 5_000, headers={"content-type": "application/json"}),
]
NOT_ORDINARY = [
    answer(b"ok", 500),
    answer(b"ok", 404),
    answer(b"", 204),
    answer(b"ok", headers={"connection": "close"}),
    answer(b"ok", headers={"content-encoding": "gzip"}),
    answer(b"ok", headers={"x-replica-id": "never heard of"}),
    answer(b'{"error": 1}', headers={"content-type": "application/json"}),
    answer(b"ok") + b"more",
    answer(b"ok")[:-1],
    answer(b"ok")[:20],
    b"HTTP/1.0 200 X\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 200 X\r\n\r\nok",
    b"HTTP/1.1 200 X\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 200 X\r\ncontent-length: +2\r\n\r\nok",
    b"HTTP/1.1 200 X\r\ncontent-length: 2\r\n folded\r\n\r\nok",
    b"HTTP/1.1 200 X\r\ncontent-length : 2\r\n\r\nok",
    b"HTTP/1.1 200 X\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n" + chunked([b"ok", b""]),
    b"HTTP/1.1 100 Continue\r\n\r\n" + answer(b"ok"),
    b"nonsense",
    b"HTTP/1.1 2000\r\ncontent-length: 2\r\n\r\nok",
]


@pytest.mark.parametrize("data", ORDINARY)
def test_what_is_ordinary_is_served(data: bytes) -> None:
    who = served(data)
    assert who is not None
    assert told(data) == (Outcome.OK, ("", "r-1")[who[0]], True)


@pytest.mark.parametrize("data", NOT_ORDINARY)
def test_what_is_not_is_handed_over_as_it_came(data: bytes) -> None:
    assert served(data) is None


@pytest.mark.parametrize(
    ("body", "fine"),
    [
        (b'{"choices": [1]}', True),
        (b"{}", False),
        (b"no json", False),
        (b'{"choices": null}', False),
    ],
)
def test_checks_decide(body: bytes, fine: bool) -> None:
    assert (served(answer(body), CHECK) is not None) is fine
    assert (told(answer(body), CHECK)[0] is Outcome.OK) is fine


_MUTATIONS = st.lists(
    st.tuples(st.integers(0, 120), st.integers(0, 3), st.binary(min_size=1, max_size=3)),
    max_size=3,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([*ORDINARY[:3], *ORDINARY[4:9], *NOT_ORDINARY]), _MUTATIONS, st.booleans())
def test_it_never_serves_what_the_lanes_own_code_would_not(
    data: bytes, mutations: list[tuple[int, int, bytes]], checked: bool
) -> None:
    for place, cut, put in mutations:
        data = data[:place] + put + data[place + cut :]
    check = CHECK if checked else None
    who = served(data, check) if data else None
    if who is not None:
        assert told(data, check) == (Outcome.OK, ("", "r-1")[who[0]], True)


def test_the_five_spans_are_those_of_the_request() -> None:
    marks = (4 * SECOND, 20 * SECOND)
    scene = Scene(intended=(0, 3 * SECOND), marks=marks)
    try:
        parked = scene.now_us()
        scene.begin()
        sent = scene.now_us()
        time.sleep(0.02)
        before = scene.now_us()
        scene.theirs.sendall(answer(b"ok"))
        assert scene.fast.turn(0, 0) == []
        after = scene.now_us()
        ((where, kind, crossed, who, count, rows),) = scene.fast.cut()
    finally:
        scene.close()
    assert (where, kind, crossed, who, count) == (0, 0, 0, 0, 1)  # marks[0] lies in its span
    latency, wait, lag, attempt, service = np.frombuffer(rows, np.uint16)
    (free,) = buckets(np.array([parked - 3 * SECOND]))
    low, high = buckets(np.array([before - 3 * SECOND, after - 3 * SECOND]))
    assert low <= latency <= high
    assert wait == free  # the lane became free later than it was due
    assert lag <= buckets(np.array([sent - parked]))[0]
    low, high = buckets(np.array([before - sent, after - parked]))
    assert low <= attempt == service <= high
    assert scene.fast.second()[0] == 1  # one that waited for a lane


def test_waiting_for_an_arrival_is_idle_and_waiting_for_a_lane_is_not_spun() -> None:
    soon = 10 * SECOND + 50_000  # a scene begins 10 s after the origin
    scene = Scene(intended=(soon,))
    try:
        scene.fast.park(0, scene.ours.fileno(), scene.now_us())
        began = scene.now_us()
        assert scene.fast.turn(30_000, 100_000) == []  # it is due within the spin
        spent_ns = (scene.now_us() - began) * 1000
        waited, idle_ns = scene.fast.second()
        assert waited == 0
        assert 0 < idle_ns <= spent_ns
        assert scene.fast.second() == (0, 0)
    finally:
        scene.close()
    scene = Scene(intended=(0, 0))
    try:
        scene.begin()  # the only lane is out, and one more is due
        assert scene.fast.turn(30_000, 100_000) == []
        assert scene.fast.second()[1] == 0
    finally:
        scene.close()


def test_who_has_waited_for_longer_than_users_do_has_expired() -> None:
    late, young = tuple(range(0, 5 * SECOND, SECOND)), (9_999_000,)
    scene = Scene(intended=(*late, *young), patience_us=2 * SECOND, marks=(2_500_000,))
    try:
        assert scene.first is not None
        assert scene.first.intended_us == young[0]  # all before it had expired
        found = [group[:5] for group in scene.fast.cut()]
        assert sorted(found) == [(0, 0, -1, -1, 3), (0, 0, 0, -1, 2)]
        # 1 and 2 s end after the mark; 0 s ends before it, 3 and 4 s begin after it
    finally:
        scene.close()


def test_an_idle_connection_that_speaks_is_given_up(scene: Scene) -> None:
    scene.fast.lease_us = 0
    scene.fast.park(0, scene.ours.fileno(), scene.now_us())
    scene.theirs.sendall(b"!")
    ((lane, job, *_),) = scene.fast.turn(0, 0)
    assert (lane, job) == (0, None)
    assert scene.ours.recv(1) == b"!"  # nothing was read of it
    assert scene.fast.turn(0, 0) == []


@pytest.mark.parametrize("how", ["end", "reset", "gone before"])
def test_a_connection_that_breaks_is_handed_over(scene: Scene, how: str) -> None:
    if how == "gone before":
        scene.theirs.close()
        scene.fast.park(0, scene.ours.fileno(), scene.now_us())
    else:
        scene.begin()
        if how == "reset":
            scene.ours.sendall(b"unread")  # a peer that leaves without reading it resets
        scene.theirs.close()
    ((lane, job, _, _, done, data, error),) = scene.fast.turn(0, 0)
    assert (lane, job[0]) == (0, 1)
    handed = desk.Handed(Job(*job), 0, 0, done, data, error)
    if how == "gone before":
        with pytest.raises(BrokenPipeError):
            handed.sent()
        assert not handed.has_read
    elif how == "reset":
        assert handed.has_read
        with pytest.raises(ConnectionResetError):
            handed.read()
    else:
        assert handed.sent() == len(PAYLOAD)
        assert handed.read() == b""


def test_what_the_kernel_takes_only_in_part_is_handed_over() -> None:
    payload = b"x" * (8 << 20)
    scene = Scene(intended=(0, 0), payload=payload)
    try:
        scene.fast.park(0, scene.ours.fileno(), scene.now_us())
        ((_, job, _, _, done, data, error),) = scene.fast.turn(0, 0)
    finally:
        scene.close()
    assert job[0] == 1 and data is None and not error
    assert 0 < done < len(payload)


def test_late_and_busy_requests_come_back(scene: Scene) -> None:
    scene.begin()
    assert scene.fast.busy == 1
    assert scene.fast.late(scene.now_us()) == []
    ((lane, job, _, _, done, data, error),) = scene.fast.all_busy()
    assert (lane, job[0], done, data, error) == (0, 1, len(PAYLOAD), None, 0)
    assert scene.fast.busy == 0
    scene.fast.park(0, scene.ours.fileno(), scene.now_us())
    assert scene.fast.turn(0, 0) == []
    ((_, job, *_),) = scene.fast.late(3601 * SECOND)
    assert job[0] == 2


def test_lanes_that_cannot_be_free_are_refused(scene: Scene) -> None:
    scene.begin()
    for lane in (0, 1, -1):
        with pytest.raises(ValueError, match="cannot be parked"):
            scene.fast.park(lane, -1, 0)


@pytest.mark.parametrize("plain", [False, True])
def test_a_whole_run_is_the_same_with_and_without(
    plain: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that answers by the number in the path: ordinary, odd, wrong, in parts, never."""
    if plain:
        monkeypatch.setenv(desk.PLAIN, "1")
    corpus = [
        *ORDINARY, *(data for data in NOT_ORDINARY if data not in (answer(b"ok")[:-1],
                                                                  answer(b"ok")[:20]))
    ]  # fmt: skip
    heard: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await read_request(reader):
            number = int(request.split()[1][1:])
            heard.append(number)
            if number == len(corpus):
                await asyncio.sleep(3600)  # never
            data = corpus[number % len(corpus)]
            half = len(data) // 2 if number > len(corpus) else len(data)
            writer.write(data[:half])
            await writer.drain()
            if half < len(data):
                await asyncio.sleep(0.002)
                writer.write(data[half:])
            if b"close" in data or told(data)[2] is False:
                return

    requests = [Request("GET", f"/{number}") for number in range(2 * len(corpus))]
    kinds: list[CompiledKind] = [
        # Its server is this very process, which a busy host may stop for half a second.
        make_kind(requests=requests, timeout_us=3 * SECOND, expect_status=frozenset({200, 201}))
    ]
    plan = make_plan(kinds, rps=300, for_us=2 * SECOND, lanes=40)

    async def main() -> dict[str, int]:
        async with raw_server(serve) as address:
            tally = await run_load(tmp_path, plan, kinds, address)
        tally.assert_conserved(600)
        return tally.outcomes()

    found = asyncio.run(main())
    rows = [int(row) % len(requests) for block in _blocks(plan) for row in block.row]
    never = rows.count(len(corpus))
    good = sum(
        told(corpus[row % len(corpus)])[0] is Outcome.OK for row in rows if row != len(corpus)
    )
    assert never and good
    assert found["timed_out"] == never
    assert found["ok"] == good
    assert sorted(set(heard)) == sorted(set(rows))


def _blocks(plan: object) -> list[object]:
    from survive.plan.arrivals import Schedule

    return list(Schedule.of(plan).blocks())


def test_a_lane_that_becomes_free_takes_what_is_overdue_at_once(scene: Scene) -> None:
    now = scene.now_us()
    taken = scene.fast.take(now)
    assert taken is not None
    job = Job(*taken)
    assert (job.number, job.free_us) == (1, now)
    assert scene.fast.second()[0] == 1  # it waited for a lane
    scene.fast.lease_us = 0
    assert scene.fast.take(now) is None


@pytest.mark.parametrize("connected", [True, False])
def test_a_freed_lane_with_a_connection_is_served_here(connected: bool) -> None:
    """Else whoever was late once would be served by the lanes' own code for as long as it is."""
    kinds = [make_kind()]
    plan = make_plan(kinds, rps=100, for_us=SECOND)
    fast = fastlanes.FastLanes(1, [(True, 3600 * SECOND, [200], None, [PAYLOAD])], [], b"")
    fast.origin_ns = time.monotonic_ns() - 2 * 10**9  # all of it is overdue
    filing = Filing(plan)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    class One:
        index = 0

        def lend(self) -> int:
            return ours.fileno() if connected else -1

        def switch(self, work: object) -> None:
            """It is asked for its connection, and has none yet."""

    lane = One()

    def now_us() -> int:
        return int(time.monotonic_ns() - fast.origin_ns) // 1000

    cursor = desk.FastCursor(fast, plan, iter(_blocks(plan)), filing)
    one = desk.FastDesk(fast, cursor, filing, [lane], lambda: lane, now_us, alone=True)
    fast.turn(0, 0)  # makes the lane, which is handed its first arrival
    try:
        taken = one.freed(lane, now_us(), takes=True)
        assert (taken is None) is connected
        if connected:
            one.hand_out()
            assert theirs.recv(1 << 16) == PAYLOAD
    finally:
        ours.close()
        theirs.close()
