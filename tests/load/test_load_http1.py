"""Framing of one connection's answers, without a socket."""

from __future__ import annotations

import pytest
from loadtools import make_kind, make_plan

from survive.load.core import Exchange, Filing, Job, Rule
from survive.load.http1 import MAX_HEAD_BYTES, AnswerReader, NotHttpError
from survive.record.samples import Outcome


def asked(reader: AnswerReader, *, head_only: bool = False) -> Exchange:
    rule = Rule(1_000_000, None, False, frozenset({200}), False)
    exchange = Exchange(Filing(make_plan([make_kind()])), rule, Job(0, 0, 0, 0, 0, 0))
    exchange.on_sent(0)
    exchange.on_attempt(0)
    reader.expect(exchange, head_only)
    return exchange


def test_three_answers_on_one_connection_in_any_pieces() -> None:
    reader = AnswerReader()
    for data in (
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-Replica-Id: r-1\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    ):
        exchange = asked(reader)
        for byte in data:
            assert not reader.done
            reader.feed(bytes([byte]), 5)
        assert exchange.outcome is Outcome.OK
        assert reader.reusable


def test_a_head_answer_has_no_body_and_spends_the_connection() -> None:
    reader = AnswerReader()
    exchange = asked(reader, head_only=True)
    reader.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 300\r\n\r\n", 5)
    assert exchange.outcome is Outcome.OK
    assert not reader.reusable


def test_an_answer_without_length_ends_with_the_connection_and_others_do_not() -> None:
    reader = AnswerReader()
    exchange = asked(reader)
    reader.feed(b"HTTP/1.1 200 OK\r\n\r\nabc", 5)
    assert exchange.outcome is None
    assert reader.eof(6)
    assert exchange.outcome is Outcome.OK
    assert not reader.reusable

    cut = AnswerReader()
    asked(cut)
    cut.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", 5)
    assert not cut.eof(6)


def test_unasked_bytes_spoil_the_connection_not_the_answer() -> None:
    reader = AnswerReader()
    exchange = asked(reader)
    reader.feed(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nxHTTP/1.1 500 No\r\n\r\n", 5)
    assert exchange.outcome is Outcome.OK
    assert not reader.reusable


@pytest.mark.parametrize("line", [b"x: y\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_a_head_without_end_is_not_http(line: bytes) -> None:
    reader = AnswerReader()
    asked(reader)
    first = b"" if line.startswith(b"HTTP") else b"HTTP/1.1 200 OK\r\n"
    with pytest.raises(NotHttpError):
        for _ in range(MAX_HEAD_BYTES // len(line) + 2):
            reader.feed(first + line, 5)
            first = b""


class _Buggy(Exchange):
    __slots__ = ()

    def on_head(self, status: int, headers: object, now_us: int) -> None:
        raise ZeroDivisionError


def test_a_bug_below_is_not_taken_for_bad_http() -> None:
    reader = AnswerReader()
    plain = asked(reader)
    reader.expect(_Buggy(plain._filing, plain._rule, plain._job), False)
    with pytest.raises(Exception) as caught:
        reader.feed(b"HTTP/1.1 200 OK\r\n\r\n", 5)
    assert not isinstance(caught.value, NotHttpError)
