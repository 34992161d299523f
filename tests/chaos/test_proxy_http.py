"""HTTP toxics on the wire: whom they hit, what comes of it, and that all else is untouched."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest
from proxytools import call, leave, proxied, server, upstream

EVENTS = [b'data: {"n": %d}\n\n' % n for n in range(5)] + [b"data: [DONE]\n\n"]
CHAT = "/v1/chat/completions"
JSON = b'{"answer": "forty-two"}'


def chunk(data):
    return b"%x\r\n%b\r\n" % (len(data), data)


class Service:
    """Answers by path: a chunked, counted or unbounded event stream, JSON, or another protocol."""

    def __init__(self):
        self.asked = []
        self.gap_s = 0.0

    async def handle(self, reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next((line[15:] for line in head.lower().split("\r\n")
                               if line.startswith("content-length:")), "0")  # fmt: skip
                body = await reader.readexactly(int(length))
                self.asked.append((head.split(" ")[0], head.split(" ")[1], body))
                await self.answer(head.split(" ")[1], writer)
        writer.close()

    async def answer(self, path, writer):
        kind = path.partition("?")[2]
        sse = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        if kind == "json":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                         b"content-length: %d\r\n\r\n%b" % (len(JSON), JSON))  # fmt: skip
        elif kind == "counted":
            data = b"".join(EVENTS)
            writer.write(sse + b"content-length: %d\r\n\r\n" % len(data) + data)
        elif kind == "toend":
            writer.write(sse + b"\r\n" + b"".join(EVENTS))
            writer.close()
        elif kind == "interim":
            writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n")
            await self.answer(CHAT, writer)
        else:
            writer.write(sse + b"transfer-encoding: chunked\r\n\r\n")
            for event in EVENTS:
                writer.write(chunk(event))
                await asyncio.sleep(self.gap_s)
            writer.write(b"0\r\n\r\n")


def request(path=CHAT, body=b"{}", method="POST", more=""):
    head = f"{method} {path} HTTP/1.1\r\nhost: x\r\n{more}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def answer(reader):
    """(status, headers, body, whole) of the next answer, read as a plain client reads it."""
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).decode()
    line, *rest = head[:-4].split("\r\n")
    headers = {k.lower(): v.strip() for k, _, v in (item.partition(":") for item in rest)}
    status, body = int(line.split(" ")[1]), b""
    if status < 200:
        return status, headers, b"", True
    try:
        if headers.get("transfer-encoding") == "chunked":
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readexactly(2)
        elif "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"]))
        else:
            body = await reader.read(-1)
    except asyncio.IncompleteReadError as error:
        return status, headers, body + error.partial, False
    return status, headers, body, True


class Stand:
    def __init__(self, api, service, address):
        self.api, self.service, self.address = api, service, address

    async def put(self, type_, name="t", share=1, **attributes):
        body = {"name": name, "type": type_, "toxicity": share, "attributes": attributes}
        status, made = await call(self.api, "POST", "/proxies/p/toxics", body)
        assert status == 200, made

    async def off(self, name="t"):
        assert (await call(self.api, "DELETE", f"/proxies/p/toxics/{name}"))[0] == 204

    async def counts(self, name="t"):
        return (await call(self.api, "GET", f"/proxies/p/toxics/{name}"))[1]["counts"]

    async def connect(self):
        return await asyncio.open_connection(*self.address)

    async def one(self, path=CHAT, **more):
        reader, writer = await self.connect()
        writer.write(request(path, **more))
        seen = await answer(reader)
        await leave(writer)
        return seen


def on_stand(test, seed=3):
    async def main():
        service = Service()
        address, behind = await upstream(service.handle)
        try:
            with server(seed) as (api, _):
                await test(Stand(api, service, await proxied(api, "p", address)))
        finally:
            behind.close()

    asyncio.run(asyncio.wait_for(main(), 20))


CLEAN = b"".join(EVENTS)


@pytest.mark.parametrize("framing", ["", "?counted", "?toend", "?interim"])
@pytest.mark.parametrize(("type_", "attributes", "body", "whole"), [
    ("sse_cut", {"after": 2}, b"".join(EVENTS[:2]), False),
    ("sse_cut", {"after": 2, "clean": 1}, b"".join(EVENTS[:2]), True),
    ("sse_cut", {"after": 9}, CLEAN, True),
    ("sse_duplicate", {"after": 1}, b"".join([*EVENTS[:2], *EVENTS[1:]]), True),
    ("sse_malformed", {"after": 1}, EVENTS[0] + b'data: {"n"\n\n' + b"".join(EVENTS[2:]), True),
    ("sse_stall", {"after": 3, "lasts": 60}, CLEAN, True),
    ("sse_slow_first", {"delay": 60}, CLEAN, True),
    ("http_slow_loris", {"bytes_per_s": 1000}, CLEAN, True),
    ("http_half_json", {}, CLEAN, True),
])  # fmt: skip
def test_each_does_what_it_says_in_every_framing_and_the_connection_goes_on(
    framing, type_, attributes, body, whole
):
    async def test(s):
        await s.put(type_, **attributes)
        reader, writer = await s.connect()
        writer.write(request(CHAT + framing))
        seen = await answer(reader)
        if framing == "?interim":
            assert seen[0] == 103
            seen = await answer(reader)
        # Without a frame nobody can tell a cut from an end: that is what such framing costs.
        assert (seen[0], seen[2], seen[3]) == (200, body, whole or framing == "?toend")
        if whole and framing != "?toend":
            writer.write(request("/other"))
            assert (await answer(reader))[2:] == (CLEAN, True)
        await leave(writer)

    on_stand(test)


def test_an_error_comes_inside_the_stream_and_half_a_document_is_whole():
    async def test(s):
        await s.put("sse_error", after=1)
        await s.put("http_half_json", name="u", path="/doc")
        reader, writer = await s.connect()
        writer.write(request())
        _, _, body, whole = await answer(reader)
        events = body.split(b"\n\n")
        assert whole and events[0] + b"\n\n" == EVENTS[0] and len(events) == 3
        assert json.loads(events[1][6:])["error"]
        writer.write(request("/doc?json"))
        _, headers, body, whole = await answer(reader)
        assert body == JSON[: len(JSON) // 2] and whole and "content-length" not in headers
        await leave(writer)

    on_stand(test)


def test_a_status_is_answered_here_and_the_service_never_asked():
    async def test(s):
        await s.put("http_status", status=429, retry_after_s=7)
        reader, writer = await s.connect()
        writer.write(request(body=b"x" * 100_000) + request("/other") + request())
        status, headers, body, _ = await answer(reader)
        assert (status, headers["retry-after"], json.loads(body)["error"]["code"]) == (
            429,
            "7",
            429,
        )
        assert (await answer(reader))[0] == 200
        assert (await answer(reader))[0] == 429
        assert [path for _, path, _ in s.service.asked] == ["/other"]
        assert await s.counts() == {"seen": 2, "hits": 2, "controls": 0, "missed": 0, "looks": 0}
        await leave(writer)

    on_stand(test)


def test_pipelined_answers_keep_their_order_behind_a_stalled_one():
    async def test(s):
        await s.put("sse_stall", after=1, lasts=100)
        reader, writer = await s.connect()
        writer.write(request() + request("/doc?json") + request())
        got = [await answer(reader) for _ in range(3)]
        assert [seen[2] for seen in got] == [CLEAN, JSON, CLEAN]
        await leave(writer)

    on_stand(test)


def test_the_share_is_drawn_per_request_by_seed_and_number_and_controls_are_never_hit():
    seen = {}

    async def test(s):
        await s.put("http_status", share=0.5, status=503, control_ppm=300_000)
        reader, writer = await s.connect()
        got = []
        for n in range(60):
            if n % 7 == 0:  # whatever the connection
                await leave(writer)
                reader, writer = await s.connect()
            writer.write(request())
            got.append((await answer(reader))[0])
        await leave(writer)
        counts = await s.counts()
        assert counts["seen"] == 60 and counts["hits"] == got.count(503)
        assert 18 <= counts["hits"] <= 42 and 7 <= counts["controls"] <= 29
        seen.setdefault("all", []).append(got)

    for seed in (3, 3, 4):
        on_stand(test, seed)
    same, again, other = seen["all"]
    assert same == again != other


def test_a_connection_that_was_there_is_hit_from_its_next_request_and_left_when_healed():
    async def test(s):
        s.service.gap_s = 0.03
        reader, writer = await s.connect()
        writer.write(request())
        await asyncio.sleep(0.06)
        await s.put("sse_cut", after=0, clean=1)  # in the middle of an answer: that is left alone
        assert (await answer(reader))[2] == CLEAN
        writer.write(request())
        assert (await answer(reader))[2] == b""
        writer.write(request())
        await s.off()  # the framing of what was begun is kept
        assert (await answer(reader))[3] is True
        writer.write(request())
        assert (await answer(reader))[2] == CLEAN
        await leave(writer)

    on_stand(test)


def test_a_stall_until_the_heal_ends_with_it_and_nothing_is_lost():
    async def test(s):
        await s.put("sse_stall", after=2)
        reader, writer = await s.connect()
        writer.write(request())
        waiting = asyncio.ensure_future(answer(reader))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        await s.off()
        assert (await waiting)[2:] == (CLEAN, True)
        await leave(writer)

    on_stand(test)


def test_what_is_not_http_passes_untouched_in_both_directions():
    async def banner(reader, writer):
        writer.write(b"220 hello\r\n")
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1000):
                writer.write(data)
        writer.close()

    async def main():
        address, behind = await upstream(banner)
        with server() as (api, _):
            s = Stand(api, None, await proxied(api, "p", address))
            await s.put("http_status", method="GET", path="/")
            for sent in (b"\x16\x03\x01 hello", b"PING\r\n", b"GET / HTTP/1.0\r\n\r\n", b"ge"):
                reader, writer = await s.connect()
                assert await reader.readexactly(11) == b"220 hello\r\n"
                writer.write(sent)
                assert await asyncio.wait_for(reader.readexactly(len(sent)), 2) == sent
                await leave(writer)
        behind.close()

    asyncio.run(asyncio.wait_for(main(), 20))


def test_bytes_that_come_one_by_one_are_the_same_message():
    async def test(s):
        await s.put("sse_duplicate", after=0)
        reader, writer = await s.connect()
        for byte in request():
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        assert (await answer(reader))[2] == EVENTS[0] + CLEAN
        await leave(writer)

    on_stand(test)


def test_the_first_n_are_hit_and_time_runs_out():
    async def test(s):
        await s.put("http_status", first=2)
        await s.put("http_status", name="u", path="/other", expires_ms=50)
        assert [(await s.one())[0] for _ in range(4)] == [503, 503, 200, 200]
        await asyncio.sleep(0.06)
        assert (await s.one("/other"))[0] == 200

    on_stand(test)


def test_looks_are_counted_apart_from_the_first_n_and_only_their_own_toxic_hits_them():
    async def test(s):
        await s.put("http_status", first=1)
        mine, others = ({"more": f"X-Survive-Look: {name}\r\n"} for name in ("t", "u"))
        assert [(await s.one(**mine))[0] for _ in range(3)] == [503] * 3
        assert (await s.one(**others))[0] == 200
        assert [(await s.one())[0] for _ in range(2)] == [503, 200]
        assert (await s.one(**mine))[0] == 503
        assert await s.counts() == {"seen": 1, "hits": 1, "controls": 0, "missed": 0, "looks": 4}
        await s.put("http_status", name="u", path="/other")  # for all: looks are users to it
        assert (await s.one("/other", **mine))[0] == 503
        assert (await s.counts("u"))["hits"] == 1

    on_stand(test)


def test_the_api_shows_changes_and_refuses_nonsense():
    async def test(s):
        await s.put("http_status", status=503)
        path = "/proxies/p/toxics"
        status, _ = await call(s.api, "POST", f"{path}/t", {"attributes": {"status": 429}})
        assert status == 200 and (await s.one())[0] == 429
        for bad in ({"status": "x"}, {"status": -1}, {"path": 1}, {"status": True}):
            body = {"type": "http_status", "name": "v", "attributes": bad}
            assert (await call(s.api, "POST", path, body))[0] == 400
        for more in ({"name": "t"}, {"name": "v", "stream": "upstream"}):
            status, _ = await call(s.api, "POST", path, {"type": "http_status", **more})
            assert status in {400, 409}
        assert (await call(s.api, "POST", "/reset"))[0] == 204
        assert (await call(s.api, "GET", path))[1] == []
        assert (await s.one())[0] == 200

    on_stand(test)
