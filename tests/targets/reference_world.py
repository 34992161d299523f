"""The reference stack in memory under virtual time, for tests of its services."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from survive.catalog import builtin_root, load_module
from survive.clock import LoopClock, seeded, sleep_us
from survive.contracts import AsgiApp, Json, MakeApp, Receive, Scope, Send, ServiceContext
from survive.host.loop import virtual_run
from survive.host.memory import MemoryNetwork, MemoryTransport, Node
from survive.transport import CallFailedError, Request, Response

FOLDER = builtin_root() / "targets" / "reference"
gateway = load_module(FOLDER / "gateway.py")
replica = load_module(FOLDER / "replica.py")
retrieval = load_module(FOLDER / "retrieval.py")
gpu = load_module(FOLDER / "gpu.py")
upstreams = load_module(FOLDER / "upstreams.py")
asgi = load_module(FOLDER / "asgi.py")

KEY = "secret"
TOKEN = "gpu-token"
BEARER = ("authorization", f"Bearer {KEY}")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as far as it came; ``broken`` says how it ended early."""

    status: int
    headers: dict[str, str]
    body: bytes
    broken: str = ""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def replica(self) -> str:
        return self.headers.get("x-replica-id", "")

    @property
    def events(self) -> list[Any]:
        """Data of all events but ``[DONE]``."""
        lines = [line[6:] for line in self.body.decode().split("\n\n") if line]
        return [json.loads(line) for line in lines if line != "[DONE]"]

    @property
    def complete(self) -> bool:
        return self.body.endswith(b"data: [DONE]\n\n") and not self.broken


def post(path: str, body: Json, *headers: tuple[str, str]) -> Request:
    return Request("POST", path, headers, json.dumps(body).encode())


def chat(
    *, tokens: int = 4, stream: bool = True, prompt: str = "one two three", key: bool = True
) -> Request:
    message: Json = {"role": "user", "content": prompt}
    body: Json = {"model": "demo", "stream": stream, "max_tokens": tokens, "messages": [message]}
    return post("/v1/chat/completions", body, *([BEARER] if key else []))


class World:
    """Nodes on one network; ``addresses`` by name."""

    def __init__(self) -> None:
        self.clock = LoopClock(0.0)
        self.network = MemoryNetwork(self.clock)
        self.transport = MemoryTransport(self.network)
        self.addresses: dict[str, str] = {}
        self.nodes: dict[str, Node] = {}

    def boot(self, name: str, make: MakeApp, **env: str) -> Node:
        address = self.addresses.setdefault(name, self.network.address())
        node = self.network.node(name)
        context = ServiceContext(
            clock=LoopClock(0.0),
            random=seeded(42, name),
            env={"SURVIVE_REPLICA": name, "SURVIVE_KEY": KEY, "SURVIVE_GPU_TOKEN": TOKEN, **env},
            call=self.transport.call,
            spawn=node.spawn,
        )
        node.mount(lambda: make(context))
        self.network.listen(address, node)
        self.nodes[name] = node
        return node

    def boot_gateway(self, *behind: str, make: MakeApp | None = None, weak: str = "") -> Node:
        inference = [self.addresses[name] for name in behind]
        return self.boot(
            "gateway-0",
            make or gateway.make_app,
            UPSTREAMS=",".join(inference),
            RETRIEVAL=self.addresses.get("retrieval-0", ""),
            SURVIVE_WEAKNESSES=weak,
        )

    async def open(self, name: str, request: Request, timeout_s: float = 60.0) -> Response:
        return await self.transport.call(self.addresses[name], request, timeout_s=timeout_s)

    async def ask(self, name: str, request: Request, timeout_s: float = 60.0) -> Answer:
        return await collect(await self.open(name, request, timeout_s))

    async def set_gpu(self, name: str, **state: Json) -> Answer:
        return await self.ask(name, post("/admin/gpu", dict(state), ("x-gpu-token", TOKEN)))

    async def metric(self, name: str, line: str) -> float:
        """The value of the sample whose text begins with ``line``."""
        text = (await self.ask(name, Request("GET", "/metrics"))).body.decode()
        found = [row for row in text.splitlines() if row.startswith(line)]
        assert len(found) == 1, (line, found)
        return float(found[0].rsplit(" ", 1)[1])

    async def sleep(self, seconds: float) -> None:
        await sleep_us(self.clock, round(seconds * 1e6))

    def now_s(self) -> float:
        return self.clock.now_us() / 1e6


async def collect(response: Response) -> Answer:
    body, broken = b"", ""
    try:
        async for chunk in response.chunks():
            body += chunk
    except CallFailedError as error:
        broken = str(error.how)
    finally:
        await response.close()
    return Answer(response.status, response.headers, body, broken)


def play(main: Callable[[World], Coroutine[Any, Any, T]]) -> T:
    """Run a test's coroutine in a new world under virtual time."""

    async def run() -> T:
        world = World()
        try:
            return await main(world)
        finally:
            for node in world.nodes.values():
                node.kill()
                await node.join()

    return virtual_run(run())


Script = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]


class Fake:
    """An upstream that does as told; healthy unless told otherwise."""

    def __init__(self) -> None:
        self.calls = 0
        self.left = 0
        self.healthy = True
        self.script: Script = self.fine

    def make(self, context: ServiceContext) -> AsgiApp:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["path"] == "/health":
                await answer(send, 200 if self.healthy else 503)
                return
            self.calls += 1
            await self.script(scope, receive, send)

        return app

    async def fine(self, scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, 200, b"fine")

    def status(self, status: int, *headers: tuple[bytes, bytes]) -> None:
        async def script(scope: Scope, receive: Receive, send: Send) -> None:
            await answer(send, status, b"no", *headers)

        self.script = script

    async def hang(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left += 1

    async def stall_after_first(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        await self.hang(scope, receive, send)

    async def break_after_first(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        await asyncio.sleep(0.1)


async def answer(send: Send, status: int, body: bytes = b"", *headers: tuple[bytes, bytes]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})
