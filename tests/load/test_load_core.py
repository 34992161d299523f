"""The sans-IO core under a clock made of numbers."""

from __future__ import annotations

import gzip
import subprocess
import sys
import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loadtools import Tally, make_kind, make_plan, planned

from survive.load.checks import AnswerCheck
from survive.load.core import MAX_BODY_BYTES, Cursor, Exchange, Filing, Job, LanePool, Rule, buckets
from survive.load.retries import retry_after_us, wait_us
from survive.plan.arrivals import Schedule
from survive.record.hdr import HIGHEST_US, highest_of, index_of
from survive.record.samples import Key, Outcome, Series
from survive.scenario.model import Retries
from survive.transport import Broken
from survive.units import MS, SECOND

OK = b'data: {"choices":[{"delta":{"content":"x"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'

USAGE = b'data: {"choices":[],"usage":{"completion_tokens":7}}\n\n'
ANSWER = b'{"choices":[{"message":{"content":"x"},"nothing":null}],"usage":{"completion_tokens":7}}'


def rule(**changes: object) -> Rule:
    fields: dict[str, object] = {
        "timeout_us": 1000 * MS, "gives_up_us": None, "streamed": False,
        "expect_status": frozenset({200}), "stream_complete": False,
    }  # fmt: skip
    return Rule(**(fields | changes))  # type: ignore[arg-type]


def begin(
    filing: Filing, its_rule: Rule, *, intended: int = 0, free: int = 0, sent: int = 0
) -> Exchange:
    job = Job(0, intended, 0, 0, filing.slice_of(intended), free)
    exchange = Exchange(filing, its_rule, job)
    exchange.on_sent(sent)
    exchange.on_attempt(sent)
    return exchange


def new_filing(marks: tuple[int, ...] = ()) -> Filing:
    return Filing(make_plan([make_kind()], for_us=3 * SECOND, marks=marks))


def tally_of(filing: Filing, done: bool = True) -> Tally:
    tally = Tally()
    tally.add(filing.cut(0, done))
    return tally


def test_a_stall_is_filed_in_each_slice_that_it_touches() -> None:
    filing = new_filing()
    filing.away(-20 * MS, 30 * MS)  # begun before the load
    filing.away(900 * MS, 3_200 * MS)  # over whole slices, and on into the drain
    counts = tally_of(filing).counts
    found = {
        key.slice: sorted(highest_of(index) for index in count)
        for key, count in counts.items()
        if key.series is Series.AWAY
    }
    assert [[round(us / 1000) for us in found[at]] for at in range(3)] == [
        [30, 100], [1000], [1200],
    ]  # fmt: skip


# ------------------------------------------------------------------------------- outcomes


def test_times_of_an_ok_request() -> None:
    filing = new_filing()
    exchange = begin(filing, rule(), intended=100, free=300, sent=340)
    exchange.on_head(200, {"x-replica-id": "inference-1"}, 900)
    exchange.on_end(1000)
    tally = tally_of(filing)
    shown = {key.series: highest_of(next(iter(c))) for key, c in tally.counts.items()}
    assert shown == {
        Series.LATENCY: 900, Series.LANE_WAIT: 200, Series.SEND_LAG: 40,
        Series.SERVICE_TIME: 660, Series.ATTEMPT: 660,
    }  # fmt: skip
    (latency,) = [key for key in tally.counts if key.series is Series.LATENCY]
    assert latency == Key(0, "chat", -1, Series.LATENCY, "ok", "inference-1", "")


def test_a_lane_that_was_free_is_no_wait_and_all_lateness_is_ours() -> None:
    filing = new_filing()
    begin(filing, rule(), intended=500, free=100, sent=640).on_stopped(700)
    tally = tally_of(filing)
    assert tally.quantile(Series.LANE_WAIT, 1.0) == 1  # 0, in the lowest bucket
    assert tally.quantile(Series.SEND_LAG, 1.0) == 140


@pytest.mark.parametrize(
    ("status", "body", "changes", "expected"),
    [
        (200, b"hello", {}, "ok"),
        (502, b"", {}, "failed:status:502"),
        (201, b"", {"expect_status": frozenset({200, 201})}, "ok"),
        (200, b'{"error": {"message": "no"}}', {}, "failed:error_in_body"),
        (200, b'{"error": null, "n": 1}', {}, "ok"),
        (200, OK, {"streamed": True, "stream_complete": True}, "ok"),
        (200, OK[:-12], {"streamed": True, "stream_complete": True}, "failed:incomplete"),
        (200, OK[:-12], {"streamed": True}, "ok"),
        (200, b'data: {"error": "x"}\n\n' + OK, {"streamed": True}, "failed:error_in_stream"),
        (503, OK, {"streamed": True, "stream_complete": True}, "failed:status:503"),
        (200, b"{}", {"stream_complete": True}, "failed:incomplete"),
        (200, OK, {"streamed": True, "check": AnswerCheck(tokens=1)}, "ok"),
        (200, OK, {"streamed": True, "check": AnswerCheck(tokens=2)}, "failed:truncated"),
        (200, OK + OK, {"streamed": True, "check": AnswerCheck(tokens=1)}, "failed:overlong"),
        (200, OK + USAGE, {"streamed": True, "check": AnswerCheck(tokens=7)}, "ok"),
        (200, ANSWER, {"check": AnswerCheck(tokens=7, json=True)}, "ok"),
        (200, ANSWER, {"check": AnswerCheck(tokens=8)}, "failed:truncated"),
        (200, ANSWER, {"check": AnswerCheck(tokens=6)}, "failed:overlong"),
        (200, b"{}", {"check": AnswerCheck(tokens=7)}, "failed:uncounted"),
        (200, b"[7]", {"check": AnswerCheck(tokens=7)}, "failed:uncounted"),
        (200, b"{} x", {"check": AnswerCheck(json=True)}, "failed:not_json"),
        (200, b"\xff", {"check": AnswerCheck(json=True)}, "failed:not_json"),
        (200, b"[" * 100_000, {"check": AnswerCheck(json=True)}, "failed:not_json"),
        (200, ANSWER, {"check": AnswerCheck(has=("choices.0.message.content",))}, "ok"),
        (200, ANSWER, {"check": AnswerCheck(has=("choices.1",))}, "failed:missing"),
        (200, ANSWER, {"check": AnswerCheck(has=("choices.0.nothing",))}, "failed:missing"),
        (200, b'{"error":"no"}', {"check": AnswerCheck(json=True)}, "failed:error_in_body"),
        (200, b'"' + b"x" * 9000 + b'"', {"check": AnswerCheck(json=True)}, "ok"),
        (200, b" " * (5 << 20), {"check": AnswerCheck(json=True)}, "failed:oversized"),
        (503, b"", {"check": AnswerCheck(json=True)}, "failed:status:503"),
    ],
)
def test_what_an_answer_means(
    status: int, body: bytes, changes: dict[str, object], expected: str
) -> None:
    filing = new_filing()
    exchange = begin(filing, rule(**changes))
    exchange.on_head(status, {"content-type": "application/json"}, 10)
    exchange.on_body(body, 20)
    exchange.on_end(30)
    assert tally_of(filing).outcomes() == {expected: 1}


@pytest.mark.parametrize(
    ("encoding", "body", "expected"),
    [  # without a time of its own: bodies name these tests, and all workers must collect the same
        ("gzip", gzip.compress(ANSWER, mtime=0), "ok"),
        ("x-gzip", gzip.compress(ANSWER, mtime=0), "ok"),
        ("deflate", zlib.compress(ANSWER), "ok"),
        ("identity", ANSWER, "ok"),
        ("gzip", gzip.compress(ANSWER[:9], mtime=0) + gzip.compress(ANSWER[9:], mtime=0), "ok"),
        ("gzip", gzip.compress(b'{"error":"x"}', mtime=0), "failed:error_in_body"),
        ("gzip", gzip.compress(ANSWER, mtime=0)[:-9], "failed:encoding"),
        ("gzip", ANSWER, "failed:encoding"),
        ("br", b"\x0b\x02\x80", "failed:encoding"),
        ("gzip", gzip.compress(bytes(MAX_BODY_BYTES + 1), mtime=0), "failed:oversized"),
    ],
)
@pytest.mark.parametrize("step", [1, 1 << 20])
def test_compressed_answers(encoding: str, body: bytes, expected: str, step: int) -> None:
    if step == 1 and expected == "failed:oversized":
        step = 999
    filing = new_filing()
    exchange = begin(filing, rule(timeout_us=10**9))
    exchange.on_head(200, {"content-type": "application/json", "content-encoding": encoding}, 1)
    for at in range(0, len(body), step):
        exchange.on_body(body[at : at + step], 2)
    exchange.on_end(3)
    assert tally_of(filing).outcomes() == {expected: 1}


def test_a_compressed_stream_is_timed_by_what_it_says() -> None:
    filing = new_filing()
    exchange = begin(filing, rule(streamed=True, stream_complete=True))
    exchange.on_head(200, {"content-encoding": "gzip"}, 10)
    packed = zlib.compressobj(wbits=31)
    piece = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
    for at in (200, 500):
        part = packed.compress(piece) + packed.flush(zlib.Z_SYNC_FLUSH)
        exchange.on_body(part, at)
    exchange.on_body(packed.compress(OK) + packed.flush(), 900)
    exchange.on_end(1000)
    tally = tally_of(filing)
    assert tally.outcomes() == {"ok": 1}
    assert tally.quantile(Series.TTFT, 1.0) == 200
    assert sorted(highest_of(i) for i in tally.merged(Series.ITL)) == [300, 400]


def test_a_completion_after_the_deadline_is_timed_out_at_the_deadline() -> None:
    filing = new_filing()
    exchange = begin(filing, rule())
    exchange.on_head(200, {}, 900 * MS)
    exchange.on_end(1001 * MS)
    tally = tally_of(filing)
    assert tally.outcomes() == {"timed_out": 1}
    assert tally.quantile(Series.LATENCY, 1.0) == highest_of(index_of(1000 * MS))
    assert tally.n(Series.SERVICE_TIME) == 0


def test_the_sweep_before_the_deadline_does_nothing() -> None:
    filing = new_filing()
    exchange = begin(filing, rule())
    assert exchange.on_deadline(999 * MS) is None
    assert exchange.on_deadline(1000 * MS) is Outcome.TIMED_OUT


def test_giving_up_ends_with_the_first_token_not_with_the_head() -> None:
    its_rule = rule(streamed=True, gives_up_us=400 * MS)
    filing = new_filing()
    exchange = begin(filing, its_rule)
    exchange.on_head(200, {}, 100 * MS)
    exchange.on_body(b": waiting\n\n", 200 * MS)
    assert exchange.deadline_us == 400 * MS
    exchange.on_body(OK, 300 * MS)
    assert exchange.deadline_us == 1000 * MS

    late = begin(filing, its_rule)
    late.on_head(200, {}, 100 * MS)
    late.on_body(OK, 401 * MS)
    assert late.outcome is Outcome.ABANDONED


def test_giving_up_ends_with_the_head_when_not_streamed() -> None:
    exchange = begin(new_filing(), rule(gives_up_us=400 * MS))
    exchange.on_head(200, {}, 399 * MS)
    assert exchange.deadline_us == 1000 * MS


def test_refused_was_sent_but_never_on_the_wire() -> None:
    filing = new_filing()
    begin(filing, rule()).on_broken(Broken.REFUSED, 10)
    tally = tally_of(filing)
    assert tally.outcomes() == {"failed:refused": 1}
    assert (tally.n(Series.SEND_LAG), tally.n(Series.ATTEMPT)) == (1, 0)


def test_a_stale_connection_costs_an_attempt_and_no_blame() -> None:
    filing = new_filing()
    exchange = begin(filing, rule())
    exchange.on_stale(5)
    exchange.on_attempt(6)
    exchange.on_head(200, {}, 10)
    exchange.on_end(12)
    tally = tally_of(filing)
    assert tally.outcomes() == {"ok": 1}
    assert (tally.n(Series.SEND_LAG), tally.n(Series.ATTEMPT)) == (1, 2)


def test_a_body_without_end_is_oversized() -> None:
    filing = new_filing()
    exchange = begin(filing, rule(timeout_us=10**9))
    exchange.on_head(200, {}, 1)
    for at in range(MAX_BODY_BYTES // (1 << 20) + 1):
        exchange.on_body(bytes(1 << 20), at)
    assert tally_of(filing).outcomes() == {"failed:oversized": 1}


def test_stream_times_count_from_the_intended_start() -> None:
    filing = new_filing()
    exchange = begin(filing, rule(streamed=True), intended=100, sent=200)
    exchange.on_head(200, {}, 300)
    piece = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
    for at in (600, 700, 900):
        exchange.on_body(piece, at)
    exchange.on_body(b'data: {"choices":[],"usage":{"completion_tokens":5}}\n\n', 950)
    exchange.on_end(1000)
    tally = tally_of(filing)
    assert tally.quantile(Series.TTFT, 1.0) == 500
    assert sorted(highest_of(i) for i in tally.merged(Series.ITL)) == [100, 200]
    assert tally.quantile(Series.TPOT, 1.0) == 100


# --------------------------------------------------------------------------------- retries

PATIENT = Retries(most=2, first_us=100 * MS, last_us=300 * MS)


def fail(exchange: Exchange, status: int, now: int, headers: dict[str, str] | None = None) -> None:
    exchange.on_head(status, headers or {}, now)
    exchange.on_end(now)


def test_a_user_asks_again_and_an_ok_at_last_is_ok_from_the_first_start() -> None:
    filing = new_filing()
    exchange = begin(filing, rule(retries=PATIENT), intended=100)
    fail(exchange, 503, 10 * MS, {"x-replica-id": "sick"})
    assert exchange.outcome is None
    assert exchange.again_us is not None
    assert 110 * MS <= exchange.again_us <= 210 * MS
    assert exchange.on_again(200 * MS)
    exchange.on_attempt(200 * MS)
    exchange.on_broken(Broken.REFUSED, 201 * MS)
    assert exchange.again_us is not None
    assert 301 * MS <= exchange.again_us <= 501 * MS
    assert exchange.on_again(450 * MS)
    exchange.on_attempt(450 * MS)
    exchange.on_head(200, {"x-replica-id": "well"}, 455 * MS)
    exchange.on_end(460 * MS)
    tally = tally_of(filing)
    assert tally.outcomes() == {"ok": 1}
    # What was refused was never on the wire: two attempts, of 10 ms each.
    assert (tally.n(Series.SEND_LAG), tally.n(Series.ATTEMPT)) == (1, 2)
    assert tally.quantile(Series.ATTEMPT, 1.0) == highest_of(index_of(10 * MS))
    assert tally.quantile(Series.SERVICE_TIME, 1.0) == highest_of(index_of(10 * MS))
    assert tally.quantile(Series.LATENCY, 1.0) == highest_of(index_of(460 * MS - 100))
    (latency,) = [key for key in tally.counts if key.series is Series.LATENCY]
    assert latency.who == "well"


def test_when_all_tries_are_used_the_last_failure_is_the_fate() -> None:
    filing = new_filing(marks=(150 * MS,))
    exchange = begin(filing, rule(retries=PATIENT, timeout_us=SECOND * 10))
    now = 0
    for status in (500, 502, 429):
        fail(exchange, status, now)
        if exchange.again_us is not None:
            now = exchange.again_us
            exchange.on_again(now)
            exchange.on_attempt(now)
    tally = tally_of(filing)
    assert tally.outcomes() == {"failed:status:429": 1}
    # All attempts are filed where the request ends: beyond the mark that it crossed.
    assert {key.crossed for key in tally.counts if key.series is Series.ATTEMPT} == {0}
    assert tally.n(Series.ATTEMPT) == 3


@pytest.mark.parametrize(
    ("changes", "ending", "again"),
    [
        ({}, "429", True),
        ({}, "500", True),
        ({}, "404", False),
        ({}, "302", False),
        ({"expect_status": frozenset({503})}, "503", False),
        ({}, "refused", True),
        ({}, "reset", True),
        ({}, "closed", True),
        ({}, "protocol", False),
        ({}, "client", False),
        ({}, "error_in_body", False),
        ({"streamed": True}, "closed", True),
        ({"streamed": True}, "closed after content", False),
        ({"streamed": True, "stream_complete": True}, "incomplete", False),
        ({"retries": Retries()}, "503", False),
    ],
)
def test_what_is_tried_again(changes: dict[str, object], ending: str, again: bool) -> None:
    exchange = begin(new_filing(), rule(**({"retries": PATIENT} | changes)))
    if ending.isdigit():
        fail(exchange, int(ending), 1)
    elif ending == "client":
        exchange.on_client_error("no_ports", 1)
    elif ending == "error_in_body":
        exchange.on_head(200, {"content-type": "application/json"}, 1)
        exchange.on_body(b'{"error": "x"}', 1)
        exchange.on_end(1)
    elif ending == "incomplete":
        fail(exchange, 200, 1)
    elif ending == "closed after content":
        exchange.on_head(200, {}, 1)
        exchange.on_body(b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n', 1)
        exchange.on_broken(Broken.CLOSED, 1)
    else:
        exchange.on_broken(Broken(ending), 1)
    assert (exchange.again_us is not None) == again
    assert (exchange.outcome is None) == again


def test_retry_after_is_the_least_wait_and_one_beyond_the_deadline_ends_it() -> None:
    its_rule = rule(retries=PATIENT, timeout_us=10 * SECOND)
    polite = begin(new_filing(), its_rule)
    fail(polite, 429, 0, {"retry-after": "3"})
    assert polite.again_us == 3 * SECOND
    rude = begin(new_filing(), rule(retries=Retries(2, 100 * MS, SECOND, False)))
    fail(rude, 429, 0, {"retry-after": "3"})
    assert rude.again_us is not None
    assert rude.again_us <= 200 * MS
    late = begin(new_filing(), its_rule)
    fail(late, 429, 0, {"retry-after": "10"})
    assert late.outcome is Outcome.FAILED
    assert retry_after_us("Wed, 21 Oct 2015 07:28:00 GMT") == retry_after_us("-1") == 0
    assert retry_after_us("9" * 400) < 1 << 62


def test_patience_holds_through_the_tries() -> None:
    """The head of a failed answer is no first byte of an answer: the user still gives up."""
    its_rule = rule(retries=Retries(5, 100 * MS, 100 * MS), gives_up_us=400 * MS)
    filing = new_filing()
    exchange = begin(filing, its_rule)
    fail(exchange, 503, 200 * MS)
    assert exchange.deadline_us == 400 * MS
    assert exchange.on_again(300 * MS)
    exchange.on_attempt(300 * MS)
    exchange.on_head(200, {}, 401 * MS)
    assert exchange.outcome is Outcome.ABANDONED
    assert tally_of(filing).n(Series.ATTEMPT) == 2


def test_a_try_that_comes_too_late_is_never_sent() -> None:
    filing = new_filing()
    exchange = begin(filing, rule(retries=PATIENT))
    fail(exchange, 503, 10)
    assert not exchange.on_again(2 * SECOND)
    assert exchange.outcome is Outcome.TIMED_OUT
    assert tally_of(filing).n(Series.ATTEMPT) == 1


def test_waits_are_spread_grow_and_repeat() -> None:
    retries = Retries(most=9, first_us=500 * MS, last_us=8 * SECOND)
    firsts = [wait_us(retries, 42, number, 1) for number in range(4000)]
    assert firsts == [wait_us(retries, 42, number, 1) for number in range(4000)]
    assert min(firsts) >= 500 * MS
    assert max(firsts) <= SECOND
    deciles = np.histogram(firsts, bins=10, range=(500 * MS, SECOND))[0]
    assert deciles.min() > 330  # 400 each, 3.7 standard deviations
    assert deciles.max() < 470
    assert abs(float(np.mean([wait_us(retries, 42, n, 3) for n in range(4000)])) - 2.25e6) < 8e4
    assert wait_us(retries, 42, 7, 9) <= 8 * SECOND
    assert wait_us(Retries(1, 2 * SECOND, SECOND), 1, 1, 1) == SECOND
    assert len({wait_us(retries, seed, 1, 1) for seed in range(50)}) > 45


# ---------------------------------------------------------------------------------- filing


def test_crossed_is_the_first_mark_after_the_start_up_to_the_end() -> None:
    filing = new_filing(marks=(100, 200))
    spans = [(0, 99), (0, 100), (100, 150), (100, 500), (99, 500), (200, 900)]
    assert [filing.crossed(*span) for span in spans] == [-1, 0, -1, 1, 0, -1]


def test_a_request_that_is_sent_and_never_settled_breaks_the_sum() -> None:
    filing = new_filing()
    begin(filing, rule()).on_end(10)
    job = Job(1, 0, 0, 0, 0, 0)
    Exchange(filing, rule(), job).on_sent(5)
    with pytest.raises(AssertionError):
        tally_of(filing).assert_conserved(1)


def test_hostile_replica_ids_are_tamed_and_bounded() -> None:
    filing = new_filing()
    assert filing.who("a:b,c d\n") == "a_b_c_d_"
    assert len(filing.who("x" * 10_000)) == 64
    assert len({filing.who(f"r{n}") for n in range(10_000)}) <= 300


@given(st.lists(st.integers(-5, 2 * HIGHEST_US), min_size=1, max_size=50))
def test_buckets_are_those_of_the_record(values: list[int]) -> None:
    assert buckets(np.array(values)).tolist() == [index_of(v) for v in values]


def test_frames_are_deltas_that_add_up() -> None:
    filing = new_filing()
    tally = Tally()
    for number in range(5000):
        exchange = begin(filing, rule(), intended=number)
        exchange.on_head(200, {}, number + 10)
        exchange.on_end(number + 20)
        if number % 700 == 0:
            tally.add(filing.cut(number))
    tally.add(filing.cut(5000, done=True))
    assert tally.outcomes() == {"ok": 5000}
    assert filing.cut(6000, done=True).sets == ()


# --------------------------------------------------------------------------------- lanes


def test_the_pool_is_last_in_first_out_and_knows_since_when_one_was_free() -> None:
    pool: LanePool[str] = LanePool(2)
    assert pool.free_since() is not None
    assert pool.take() is None
    assert pool.take() is None
    assert pool.free_since() is None
    pool.park("a", 10)
    pool.park("b", 20)
    assert pool.free_since() == 10
    assert pool.take() == "b"
    assert pool.free_since() == 10
    assert pool.take() == "a"
    with pytest.raises(RuntimeError):
        pool.take()


FATES = st.lists(
    st.tuples(st.sampled_from(["ok", "broken", "late", "stale", "hang"]), st.integers(0, 400 * MS)),
    min_size=1, max_size=40,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    FATES, st.integers(1, 4), st.integers(1, 300), st.integers(0, 1500 * MS),
    st.builds(Retries, most=st.integers(0, 3), first_us=st.integers(1, 60 * MS)),
)  # fmt: skip
def test_nothing_is_lost(
    fates: list[tuple[str, int]], lanes: int, rps: int, stop_us: int, again: Retries
) -> None:
    """A toy load in simulated time: whatever servers do, the sums of DESIGN law 5 hold."""
    kinds = [make_kind(timeout_us=200 * MS), make_kind(name="slow", timeout_us=500 * MS)]
    plan = make_plan(kinds, rps=rps, lanes=lanes, arrivals="poisson", marks=(300 * MS, 700 * MS),
                     gives_up_us=150 * MS)  # fmt: skip
    filing = Filing(plan)
    cursor = Cursor(plan, Schedule.of(plan).blocks(), filing)
    free = dict.fromkeys(range(lanes), 0)
    busy: dict[int, tuple[int, str, Exchange]] = {}
    fate, now = 0, 0
    while now < stop_us and (busy or cursor.next_due_us() is not None):
        for lane, (end, how, exchange) in list(busy.items()):
            if end <= now and exchange.again_us is not None:
                if exchange.on_again(now):
                    exchange.on_attempt(now)
            elif end <= now:
                _finish(how, exchange, now)
            if end <= now and exchange.again_us is not None:
                busy[lane] = (exchange.again_us, how, exchange)
            elif end <= now and exchange.outcome is not None:
                free[lane] = now
                del busy[lane]
        while free and (job := cursor.take(now, min(free.values()))):
            lane = min(free)
            del free[lane]
            exchange = Exchange(filing, Rule(plan.timeouts_us[job.kind], 150 * MS, False,
                                             frozenset({200}), False, again), job)  # fmt: skip
            exchange.on_sent(now)
            exchange.on_attempt(now)
            how, span = fates[fate % len(fates)]
            fate += 1
            busy[lane] = (now + 1 + span, how, exchange)
        now += 7 * MS
    for _, _, exchange in busy.values():
        exchange.on_stopped(now)
    cursor.stop(now)
    tally = tally_of(filing)
    tally.assert_conserved(planned(plan))
    if not busy and now < stop_us:
        assert "unsent" not in tally.outcomes()
        # A toy server that hangs is left before its deadline here: only then is a fate unknown.
        assert "in_flight" not in tally.outcomes() or "hang" in dict(fates)


def _finish(how: str, exchange: Exchange, now: int) -> None:
    if how == "broken":
        exchange.on_broken(Broken.RESET, now)
    elif how == "hang":
        exchange.on_deadline(now)
        exchange.on_stopped(now)
    else:
        if how == "stale":
            exchange.on_stale(now)
            exchange.on_attempt(now)
        exchange.on_head(200 if how != "late" else 503, {}, now)
        exchange.on_end(now)


def test_expired_is_never_sent_and_ends_at_its_deadline() -> None:
    plan = make_plan([make_kind(timeout_us=100 * MS)], rps=10)
    filing = Filing(plan)
    cursor = Cursor(plan, Schedule.of(plan).blocks(), filing)
    first = cursor.next_due_us()
    assert first == 50 * MS
    assert cursor.take(first - 1, 0) is None
    job = cursor.take(360 * MS, 360 * MS)
    assert job is not None
    assert job.intended_us == 350 * MS
    assert job.number == 3
    tally = tally_of(filing)
    assert tally.outcomes() == {"expired": 3}
    assert tally.quantile(Series.LATENCY, 1.0) == highest_of(index_of(100 * MS))


def test_stopping_splits_what_waits_into_expired_and_unsent() -> None:
    plan = make_plan([make_kind(timeout_us=100 * MS)], rps=10)
    filing = Filing(plan)
    Cursor(plan, Schedule.of(plan).blocks(), filing).stop(500 * MS)
    assert tally_of(filing).outcomes() == {"expired": 4, "unsent": 6}


def test_the_shared_parts_pull_in_neither_locust_nor_gevent() -> None:
    code = (
        "import sys, survive.load.core, survive.load.memory, survive.load.template, "
        "survive.load.wire, survive.load.sse, survive.load.http1;"
        "print(sorted(m for m in sys.modules if m.split('.')[0] in {'locust', 'gevent'}))"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert shown.stdout.strip() == "[]"


def test_counts_of_a_tally_are_sparse_and_sorted() -> None:
    filing = new_filing()
    for end in (500, 10, 500):
        begin(filing, rule()).on_end(end)
    frame = filing.cut(0)
    found = dict(frame.sets)[Key(0, "chat", -1, Series.LATENCY, "failed", "", "status:0")]
    assert found.indices == sorted(found.indices)
    assert Counter(dict(zip(found.indices, found.counts, strict=True))) == {10: 1, 500: 2}


def test_stopping_a_long_run_early_is_quick_and_counts_all_that_was_to_come() -> None:
    kinds = [make_kind(), make_kind(name="other")]
    plan = make_plan(kinds, rps=2_000, for_us=60 * SECOND, arrivals="poisson")
    filing = Filing(plan)
    Cursor(plan, Schedule.of(plan).blocks(), filing).stop(500 * MS)
    tally = tally_of(filing)
    assert tally.outcomes() == {"unsent": planned(plan)}
    assert {key.slice for key in tally.counts} == set(range(60))
    tally.assert_conserved(planned(plan))
