"""A stream server for benchmarks: ``python streams.py PORT [GAP]``; 64 events in 8 writes, GAP
seconds (2 ms) apart.

As light as asyncio allows, for it must not be what limits the client.
"""

from __future__ import annotations

import asyncio
import sys

TOKENS, WRITES = 64, 8
GAP_S = float(sys.argv[2]) if len(sys.argv) > 2 else 0.002
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def event(delta: str, finish: str = "null") -> bytes:
    return (
        'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"demo","choices":'
        f'[{{"index":0,"delta":{{{delta}}},"finish_reason":{finish}}}]}}\n\n'
    ).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def pieces() -> list[bytes]:
    token = event('"content":" word"')
    per = TOKENS // WRITES
    found = [b"".join(chunk(token) for _ in range(per)) for _ in range(WRITES)]
    usage = (
        b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"demo","choices":[],'
        b'"usage":{"prompt_tokens":1,"completion_tokens":%d,"total_tokens":%d}}\n\n'
        % (TOKENS, TOKENS + 1)
    )
    found[-1] += (
        chunk(event("", '"stop"')) + chunk(usage) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    )
    found[0] = HEAD + found[0]
    return found


PIECES = pieces()
MODELS = b'{"object":"list","data":[{"id":"demo","object":"model"}]}'
PLAIN = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(MODELS), MODELS,
)  # fmt: skip


class Stream(asyncio.Protocol):
    """One connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.data = b""

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, found, body = self.data.partition(b"\r\n\r\n")
        if not found:
            return
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line[15:])
        if len(body) < length:
            return
        self.data = body[length:]
        if head.startswith(b"POST"):
            self.piece(0)
        else:
            self.transport.write(PLAIN)

    def piece(self, number: int) -> None:
        if self.transport.is_closing():
            return
        self.transport.write(PIECES[number])
        if number + 1 < len(PIECES):
            asyncio.get_running_loop().call_later(GAP_S, self.piece, number + 1)


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(
        Stream, "127.0.0.1", int(sys.argv[1]), backlog=4096
    )
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
