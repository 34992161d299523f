"""What the tests of drivers share: a tiny stack of two services, and contexts to drive it."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

from survive.catalog import Catalog
from survive.clock import Clock, LoopClock, sleep_us
from survive.contracts import HandleSpec
from survive.host.driver import Driver, DriverContext
from survive.host.loop import virtual_run
from survive.host.memory import MemoryNetwork, MemoryTransport
from survive.host.sockets import SocketTransport
from survive.scenario.model import Link, Service, TargetSpec
from survive.transport import CallFailedError, Request, Transport, read_all

T = TypeVar("T")
_numbers = itertools.count()

APP = '''
import itertools
import json
import os
from survive.clock import sleep_us
from survive.transport import Request, read_all


def make_app(context):
    """A leaf answers who it is; a front passes the answers of its leaves on."""
    served = {"n": 0}

    async def ticking():
        while True:
            await sleep_us(context.clock, 10_000)

    context.spawn(ticking())

    async def answer(send, status, data):
        body = json.dumps(data).encode()
        head = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": body})

    async def app(scope, receive, send):
        if scope["path"] == "/health":
            await answer(send, 200, {})
        elif scope["path"] == "/env":
            names = [n for n in context.env if n.startswith("SURVIVE_") or n in ("LEAVES", "MY")]
            await answer(send, 200, {name: context.env[name] for name in names})
        elif scope["path"] == "/leaves":
            seen = []
            for address in context.env["LEAVES"].split(","):
                response = await context.call(address, Request("GET", "/me"), timeout_s=2.0)
                seen.append(json.loads(await read_all(response)))
            await answer(send, 200, seen)
        elif scope["path"] == "/stream":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for n in range(100):
                await send({"type": "http.response.body", "body": b"%02d" % n, "more_body": True})
                await sleep_us(context.clock, 50_000)
            await send({"type": "http.response.body", "body": b""})
        elif scope["path"] == "/raise":
            raise ValueError("on purpose")
        else:
            served["n"] += 1
            await answer(send, 200, {"me": context.env["SURVIVE_REPLICA"], "n": served["n"],
                                     "draw": context.random.random()})
    return app
'''


def stack(folder: Path, *, restart_us: int | None = 300_000) -> TargetSpec:
    """``front`` calls two leaves."""
    (folder / "tiny.py").write_text(APP, encoding="utf-8")
    leaf = Service(
        "leaf", app="tiny.py:make_app", replicas=2, restart_after_us=restart_us, gpu="simulated"
    )
    front = Service("front", app="tiny.py:make_app", env={"MY": "${MINE}!"})
    link = Link("front", "leaf", "LEAVES")
    return target({"front": front, "leaf": leaf}, entry="front", links=[link], folder=folder)


def target(
    services: Mapping[str, Service],
    *,
    entry: str,
    links: list[Link] | None = None,
    folder: Path = Path(),
    **more: Any,
) -> TargetSpec:
    by_name = {link.name: link for link in links or []}
    return TargetSpec("tiny", "process", entry, services, by_name, folder=folder, **more)


class Host:
    """One of the two hosts, with one driver."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.folder = folder
        self.run_id = f"test-{os.getpid()}-{next(_numbers)}"
        self.started: list[tuple[str, int, int]] = []
        self.clock: Clock = LoopClock(0.0)
        self.transport: Transport
        self.driver: Driver

    def make(self, spec: TargetSpec, *links: str, env: Mapping[str, str] | None = None) -> Driver:
        """A driver for a target; the loop must run."""
        self.clock = LoopClock(asyncio.get_running_loop().time())
        virtual = self.kind == "virtual"
        self.transport = (
            MemoryTransport(MemoryNetwork(self.clock)) if virtual else SocketTransport()
        )
        scratch = self.folder / "scratch"
        scratch.mkdir(exist_ok=True)
        self.driver = Catalog().driver(self.kind)(
            DriverContext(
                run_id=self.run_id,
                seed=7,
                spec=spec,
                links=frozenset(links),
                key="the-key",
                token="the-token",
                scratch=scratch,
                clock=self.clock,
                transport=self.transport,
                env=env if env is not None else {"MINE": "mine"},
                started=lambda *entry: self.started.append(entry),
            )
        )
        return self.driver

    async def sleep(self, seconds: float) -> None:
        await sleep_us(self.clock, round(seconds * 1e6))

    async def get(self, address: str, path: str = "/me", *, timeout_s: float = 2.0) -> Any:
        response = await self.transport.call(address, Request("GET", path), timeout_s=timeout_s)
        return json.loads(await read_all(response))

    async def until(self, done: Callable[[], Coroutine[Any, Any, bool]], within_s: float) -> float:
        """Seconds until it was so."""
        began = self.clock.now_us()
        while not await done():
            taken = (self.clock.now_us() - began) / 1e6
            assert taken < within_s, f"not within {within_s} s"
            await self.sleep(0.02)
        return (self.clock.now_us() - began) / 1e6

    async def answers(self, spec: HandleSpec) -> bool:
        try:
            await self.get(spec.address, timeout_s=0.5)
        except CallFailedError:
            return False
        return True

    def run(self, main: Callable[[Host], Coroutine[Any, Any, T]]) -> T:
        async def whole() -> T:
            try:
                return await main(self)
            finally:
                if hasattr(self, "driver"):
                    await self.driver.stop()
                    if isinstance(self.transport, SocketTransport):
                        await self.transport.close()

        return virtual_run(whole()) if self.kind == "virtual" else asyncio.run(whole())
