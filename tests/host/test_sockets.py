from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from survive.host.sockets import HIGH_WATER, MAX_IDLE, SocketTransport, encode
from survive.transport import Broken, CallFailedError, Request, read_all

GET = Request("GET", "/")
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"

Serve = Callable[["Wire"], Awaitable[None]]


class Wire:
    """The server's side of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def request(self) -> bytes:
        """Head and body of the next request; b"" at the end of the connection."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                head += await self.reader.readexactly(int(line.split(b":")[1]))
        return head

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def saw_end(self) -> bool:
        """The client went away."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True


class Server:
    """Serves each connection by a script; counts connections and requests."""

    def __init__(self, serve: Serve) -> None:
        self.connections = 0
        self.address = ""
        self._serve = serve

    async def start(self) -> asyncio.Server:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return server

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._serve(Wire(reader, writer))
        except ConnectionError:
            pass  # the client hung up on a script that went on writing
        finally:
            writer.close()


def play(
    serve: Serve, main: Callable[[SocketTransport, Server], Coroutine[Any, Any, None]]
) -> None:
    async def run() -> None:
        scripted, transport = Server(serve), SocketTransport()
        server = await scripted.start()
        try:
            async with asyncio.timeout(10):
                await main(transport, scripted)
        finally:
            await transport.close()
            server.close()
            await server.wait_closed()
            await asyncio.sleep(0.01)

    asyncio.run(run())


def answers(*replies: bytes) -> Serve:
    """Each request of a connection gets the next reply; then the connection is closed."""

    async def serve(wire: Wire) -> None:
        for reply in replies:
            if not await wire.request():
                return
            await wire.send(reply)

    return serve


async def forever(wire: Wire) -> None:
    while await wire.request():
        await wire.send(OK)


async def fetch(transport: SocketTransport, server: Server, request: Request = GET) -> bytes:
    return await read_all(await transport.call(server.address, request, timeout_s=2))


async def broken(awaitable: Awaitable[Any]) -> Broken:
    with pytest.raises(CallFailedError) as caught:
        await awaitable
    return caught.value.how


# ------------------------------------------------------------------------------------- whole calls


def test_calls_one_after_the_other_share_a_connection() -> None:
    async def main(transport: SocketTransport, server: Server) -> None:
        for _ in range(5):
            response = await transport.call(server.address, GET, timeout_s=2)
            assert (response.status, response.headers) == (200, {"content-length": "2"})
            assert await read_all(response) == b"ok"
        assert server.connections == 1

    play(forever, main)


def test_calls_at_once_have_a_connection_each_and_the_pool_is_bounded() -> None:
    async def serve(wire: Wire) -> None:
        while await wire.request():
            await asyncio.sleep(0.05)
            await wire.send(OK)

    async def main(transport: SocketTransport, server: Server) -> None:
        count = MAX_IDLE + 6
        assert await asyncio.gather(*(fetch(transport, server) for _ in range(count))) == (
            [b"ok"] * count
        )
        assert server.connections == count
        assert [len(idle) for idle in transport._idle.values()] == [MAX_IDLE]

    play(serve, main)


def test_a_request_is_sent_as_asked() -> None:
    seen = []

    async def serve(wire: Wire) -> None:
        while request := await wire.request():
            seen.append(request)
            await wire.send(OK)

    async def main(transport: SocketTransport, server: Server) -> None:
        await fetch(transport, server, Request("POST", "/a?b=c", (("x-y", "z"),), b"body"))
        await fetch(transport, server, Request("POST", "/"))
        host = server.address.encode()
        assert seen[0] == (
            b"POST /a?b=c HTTP/1.1\r\nx-y: z\r\nhost: "
            + host
            + b"\r\ncontent-length: 4\r\n\r\nbody"
        )
        assert b"content-length: 0\r\n" in seen[1]

    play(serve, main)


@pytest.mark.parametrize(
    "request_",
    [
        Request("GET", "/a b"),
        Request("GET", "/a\r\nx: y"),
        Request("GET", ""),
        Request("GET", "/é"),
        Request("G T", "/"),
        Request("GET", "/", (("x", "a\r\nb: c"),)),
        Request("GET", "/", (("x:y", "a"),)),
        Request("GET", "/", (("x", "\u20ac"),)),
    ],
)
def test_what_would_break_out_of_a_request_is_refused(request_: Request) -> None:
    with pytest.raises(CallFailedError) as caught:
        encode("127.0.0.1:1", request_)
    assert caught.value.how == Broken.PROTOCOL


@pytest.mark.parametrize(
    ("reply", "body"),
    [
        (OK, b"ok"),
        (CHUNKED + b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", b"abc"),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", b"until the end"),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 103 Early Hints\r\nx: y\r\n\r\n" + OK, b"ok"),
        (b"HTTP/1.1 200 OK\r\nX-A: 1\r\nx-a: 2\r\ncontent-length: 0\r\n\r\n", b""),
    ],
)
@pytest.mark.parametrize("pieces", ["whole", "bytewise"])
def test_all_kinds_of_bodies(reply: bytes, body: bytes, pieces: str) -> None:
    async def serve(wire: Wire) -> None:
        await wire.request()
        for piece in [reply] if pieces == "whole" else [bytes([b]) for b in reply]:
            await wire.send(piece)
            await asyncio.sleep(0)

    async def main(transport: SocketTransport, server: Server) -> None:
        response = await transport.call(server.address, GET, timeout_s=2)
        assert await read_all(response) == body
        assert response.headers.get("x", "") == ""
        assert response.headers.get("x-a", "2") == "2"

    play(serve, main)


def test_head_has_no_body_whatever_it_says() -> None:
    async def main(transport: SocketTransport, server: Server) -> None:
        response = await transport.call(server.address, Request("HEAD", "/"), timeout_s=2)
        assert response.headers["content-length"] == "9"
        assert await read_all(response) == b""

    play(answers(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n"), main)


def test_connection_close_is_honoured() -> None:
    async def main(transport: SocketTransport, server: Server) -> None:
        assert [await fetch(transport, server) for _ in range(2)] == [b"ok", b"ok"]
        assert (server.connections, transport.stale_retries) == (2, 0)

    async def serve(wire: Wire) -> None:
        await wire.request()
        await wire.send(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok")
        await wire.saw_end()

    play(serve, main)


# ------------------------------------------------------------------------------------------ streams


def test_chunks_come_as_they_are_sent() -> None:
    go_on = asyncio.Event()

    async def serve(wire: Wire) -> None:
        await wire.request()
        await wire.send(CHUNKED)
        for text in (b"one", b"two", b"three"):
            await wire.send(b"%x\r\n%b\r\n" % (len(text), text))
            await go_on.wait()
            go_on.clear()
        await wire.send(b"0\r\n\r\n")

    async def main(transport: SocketTransport, server: Server) -> None:
        response = await transport.call(server.address, GET, timeout_s=2)
        seen = []
        async for chunk in response.chunks():
            seen.append(chunk)
            go_on.set()
        assert seen == [b"one", b"two", b"three"]

    play(serve, main)


def test_leaving_early_closes_the_connection_and_the_server_sees_it() -> None:
    ended = asyncio.Event()

    async def serve(wire: Wire) -> None:
        await wire.request()
        await wire.send(CHUNKED + b"1\r\na\r\n")
        if await wire.saw_end():
            ended.set()

    async def main(transport: SocketTransport, server: Server) -> None:
        response = await transport.call(server.address, GET, timeout_s=2)
        assert await anext(response.chunks()) == b"a"
        await response.close()
        await response.close()
        await ended.wait()
        assert await broken(anext(response.chunks())) == Broken.CLOSED

    play(serve, main)


def test_a_slow_reader_holds_the_writer_back() -> None:
    sent = 0
    size = 64 * HIGH_WATER

    async def serve(wire: Wire) -> None:
        nonlocal sent
        await wire.request()
        await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        for _ in range(64):
            await wire.send(b"x" * HIGH_WATER)
            sent += HIGH_WATER

    async def main(transport: SocketTransport, server: Server) -> None:
        response = await transport.call(server.address, GET, timeout_s=2)
        await asyncio.sleep(0.2)
        assert sent < size  # not all of it went into our memory
        assert len(await read_all(response)) == size
        assert await fetch(transport, server) == b"ok"

    async def both(wire: Wire) -> None:
        await serve(wire)
        await forever(wire)

    play(both, main)


# ----------------------------------------------------------------------------------------- failures


def test_nobody_listens() -> None:
    async def main(transport: SocketTransport, server: Server) -> None:
        closed = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
        port = closed.sockets[0].getsockname()[1]
        closed.close()
        await closed.wait_closed()
        call = transport.call(f"127.0.0.1:{port}", GET, timeout_s=2)
        assert await broken(call) == Broken.REFUSED
        assert await broken(transport.call("nonsense", GET, timeout_s=2)) == Broken.REFUSED

    play(forever, main)


def test_no_answer_in_time() -> None:
    async def serve(wire: Wire) -> None:
        await wire.request()
        await wire.saw_end()

    async def main(transport: SocketTransport, server: Server) -> None:
        began = asyncio.get_running_loop().time()
        call = transport.call(server.address, GET, timeout_s=0.1)
        assert await broken(call) == Broken.TIMEOUT
        assert 0.09 < asyncio.get_running_loop().time() - began < 1

    play(serve, main)


@pytest.mark.parametrize(
    ("reply", "how"),
    [
        (b"", Broken.CLOSED),
        (b"HTTP/1.1 200", Broken.CLOSED),
        (b"SSH-2.0-OpenSSH\r\n", Broken.PROTOCOL),
        (b"HTTP/1.1 200 OK\r\ncontent-length: nine\r\n\r\n", Broken.PROTOCOL),
    ],
)
def test_answers_that_are_none(reply: bytes, how: Broken) -> None:
    async def main(transport: SocketTransport, server: Server) -> None:
        assert await broken(fetch(transport, server)) == how
        assert transport.stale_retries == 0  # the connection was fresh: no second try
        assert server.connections == 1

    play(answers(reply), main)


@pytest.mark.parametrize(
    "reply",
    [CHUNKED + b"1\r\na\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\na"],
)
def test_a_body_that_ends_early_is_broken_after_what_came(reply: bytes) -> None:
    async def main(transport: SocketTransport, server: Server) -> None:
        response = await transport.call(server.address, GET, timeout_s=2)
        chunks = response.chunks()
        assert await anext(chunks) == b"a"
        assert await broken(anext(chunks)) == Broken.CLOSED

    play(answers(reply), main)


def test_a_reset_is_a_reset() -> None:
    async def serve(wire: Wire) -> None:
        await wire.request()
        await wire.send(CHUNKED + b"1\r\na\r\n")
        await asyncio.sleep(0.05)
        linger = struct.pack("ii", 1, 0)
        wire.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        wire.writer.transport.abort()

    async def main(transport: SocketTransport, server: Server) -> None:
        response = await transport.call(server.address, GET, timeout_s=2)
        assert await anext(response.chunks()) == b"a"
        assert await broken(anext(response.chunks())) == Broken.RESET

    play(serve, main)


def test_a_pooled_connection_that_was_closed_is_replaced_once() -> None:
    async def serve(wire: Wire) -> None:
        # Answers one request, then hangs up on the second without a byte: the keep-alive race.
        await wire.request()
        await wire.send(OK)
        await wire.request()

    async def main(transport: SocketTransport, server: Server) -> None:
        assert await fetch(transport, server) == b"ok"
        assert await fetch(transport, server) == b"ok"
        assert (server.connections, transport.stale_retries) == (2, 1)

    play(serve, main)


def test_a_pooled_connection_that_broke_inside_an_answer_is_a_failure() -> None:
    async def main(transport: SocketTransport, server: Server) -> None:
        assert await fetch(transport, server) == b"ok"
        assert await broken(fetch(transport, server)) == Broken.CLOSED
        assert (server.connections, transport.stale_retries) == (1, 0)

    play(answers(OK, b"HTTP/1.1 200"), main)


def test_bytes_that_nobody_asked_for_spoil_the_connection() -> None:
    async def serve(wire: Wire) -> None:
        await wire.request()
        await wire.send(OK + b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison")
        await wire.saw_end()

    async def main(transport: SocketTransport, server: Server) -> None:
        assert await fetch(transport, server) == b"ok"
        assert await fetch(transport, server) == b"ok"
        assert server.connections == 2

    play(serve, main)


def test_a_cancelled_call_leaves_nothing_behind() -> None:
    ended = asyncio.Event()

    async def serve(wire: Wire) -> None:
        await wire.request()
        if await wire.saw_end():
            ended.set()

    async def main(transport: SocketTransport, server: Server) -> None:
        call = asyncio.create_task(fetch(transport, server))
        await asyncio.sleep(0.05)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await ended.wait()
        assert not transport._open

    play(serve, main)


def test_a_closed_transport_calls_no_more() -> None:
    async def main(transport: SocketTransport, server: Server) -> None:
        assert await fetch(transport, server) == b"ok"
        await transport.close()
        await transport.close()
        assert await broken(fetch(transport, server)) == Broken.CLOSED

    play(forever, main)
