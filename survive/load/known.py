"""A server whose latency is known: ``python -m survive.load.known MODE SEED [SOCKET]``.

It prints ``{"address": …}`` (``unix:SOCKET`` if it was given one), answers every request after a
delay of its mode, and on SIGTERM prints what it really did, on CLOCK_MONOTONIC:
``{"holds_us": […], "frozen_us": [from, until] | null}``.

modes: ``constant`` 20 ms; ``bimodal`` 5 ms, and 80 ms for one in ten; ``long-tailed`` log-normal
with median 8 ms and sigma 0.9; ``freezing`` 5 ms, but for two seconds from the third on nothing is
answered, and then everything at once; ``instant`` at once: what is measured is the floor.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import signal
import sys
import time
from collections.abc import Callable

MODES = ("instant", "constant", "bimodal", "long-tailed", "freezing")
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok"
FREEZE_AFTER_S, FREEZE_FOR_S = 2.0, 2.0


def delays(mode: str, seed: int) -> Callable[[], float]:
    """Seconds that the next answer is held back."""
    chance = random.Random(seed)
    if mode == "instant":
        return lambda: 0.0
    if mode == "constant":
        return lambda: 0.020
    if mode == "bimodal":
        return lambda: 0.080 if chance.random() < 0.1 else 0.005
    if mode == "long-tailed":
        return lambda: chance.lognormvariate(math.log(0.008), 0.9)
    return lambda: 0.005


class Known(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol. Requests here have no body."""
        self._data += data
        while b"\r\n\r\n" in self._data:
            _, _, self._data = self._data.partition(b"\r\n\r\n")
            self._server.heard(self.transport)


class Server:
    """Holds answers back, and remembers for how long."""

    def __init__(self, mode: str, seed: int) -> None:
        self._mode, self._delay = mode, delays(mode, seed)
        self._holds_us: list[int] = []
        self._frozen_us: list[int] | None = None

    def heard(self, transport: asyncio.Transport) -> None:
        """A request came."""
        now = time.monotonic_ns() // 1000
        if self._mode == "freezing" and self._frozen_us is None:
            start = now + round(FREEZE_AFTER_S * 1e6)
            self._frozen_us = [start, start + round(FREEZE_FOR_S * 1e6)]
        answer_us = now + round(self._delay() * 1e6)
        if self._frozen_us is not None and self._frozen_us[0] <= answer_us < self._frozen_us[1]:
            answer_us = self._frozen_us[1]
        if answer_us == now:
            self._answer(transport, now)
        else:
            loop = asyncio.get_running_loop()
            loop.call_later((answer_us - now) / 1e6, self._answer, transport, now)

    def _answer(self, transport: asyncio.Transport, heard_us: int) -> None:
        if not transport.is_closing():
            transport.write(ANSWER)
            self._holds_us.append(time.monotonic_ns() // 1000 - heard_us)

    async def serve(self, path: str = "") -> None:
        """Until SIGTERM; on a Unix socket, or on loopback."""
        loop = asyncio.get_running_loop()
        over = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, over.set)
        if path:
            server: asyncio.Server = await loop.create_unix_server(lambda: Known(self), path)
            address = f"unix:{path}"
        else:
            server = await loop.create_server(lambda: Known(self), "127.0.0.1", 0)
            address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        print(json.dumps({"address": address}), flush=True)
        await over.wait()
        print(json.dumps({"holds_us": self._holds_us, "frozen_us": self._frozen_us}), flush=True)
        server.close()


if __name__ == "__main__":
    asyncio.run(Server(sys.argv[1], int(sys.argv[2])).serve(*sys.argv[3:]))
