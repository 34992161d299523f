from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

from survive.clock import LoopClock, sleep_us
from survive.contracts import AsgiApp, Receive, Scope, Send, Toxic
from survive.host.loop import virtual_run
from survive.host.memory import (
    MemoryNetwork,
    MemoryResponse,
    MemoryTransport,
    Node,
)
from survive.transport import Broken, CallFailedError, Request, read_all

T = TypeVar("T")
GET = Request("GET", "/")
CLOCK = LoopClock(0.0)


async def respond(send: Send, *chunks: bytes, status: int = 200, gap_us: int = 0) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"X-A", b"1")]})
    for chunk in chunks:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if gap_us:
            await sleep_us(CLOCK, gap_us)
    await send({"type": "http.response.body", "body": b""})


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    await respond(send, b"hello")


async def stream(scope: Scope, receive: Receive, send: Send) -> None:
    await respond(send, *(b"%d" % n for n in range(10)), gap_us=100_000)


class World:
    """One network, one node at one address."""

    def __init__(self, app: AsgiApp) -> None:
        self.network = MemoryNetwork(CLOCK)
        self.transport = MemoryTransport(self.network)
        self.address = self.network.address()
        self.node = self.boot(app)

    def boot(self, app: AsgiApp) -> Node:
        node = self.network.node("a-0")
        node.mount(lambda: app)
        self.network.listen(self.address, node)
        return node

    async def call(
        self, request: Request = GET, *, timeout_s: float = 5.0, address: str = ""
    ) -> MemoryResponse:
        return await self.transport.call(address or self.address, request, timeout_s=timeout_s)

    async def body(self, address: str = "") -> bytes:
        return await read_all(await self.call(address=address))


def in_world(app: AsgiApp, test: Callable[[World], Coroutine[Any, Any, T]]) -> T:
    async def main() -> T:
        return await test(World(app))

    return virtual_run(main())


async def arrivals(response: MemoryResponse) -> list[tuple[int, bytes]]:
    return [(CLOCK.now_us(), chunk) async for chunk in response.chunks()]


def test_a_call_carries_everything() -> None:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope["method"], scope["path"], scope["query_string"], dict(scope["headers"])))
        seen.append(await receive())
        await respond(send, b"a", b"b", status=201)

    async def test(world: World) -> None:
        request = Request("POST", "/x%20y?q=1", (("x-b", "2"),), b"body")
        response = await world.call(request)
        assert (response.status, response.headers) == (201, {"x-a": "1"})
        assert await read_all(response) == b"ab"

    in_world(app, test)
    headers = {b"host": b"127.0.0.1", b"x-b": b"2", b"content-length": b"4"}
    assert seen[0] == ("POST", "/x y", b"q=1", headers)
    assert seen[1] == {"type": "http.request", "body": b"body", "more_body": False}


def test_nobody_listens() -> None:
    async def test(world: World) -> None:
        with pytest.raises(CallFailedError) as caught:
            await world.call(address="127.0.0.1:1")
        assert caught.value.how is Broken.REFUSED

    in_world(hello, test)


def test_a_stream_arrives_when_it_is_sent() -> None:
    async def test(world: World) -> None:
        seen = await arrivals(await world.call())
        assert seen == [(n * 100_000, b"%d" % n) for n in range(10)]

    in_world(stream, test)


def test_a_late_head_is_a_timeout_at_that_time() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await sleep_us(CLOCK, 2_000_000)
        await respond(send, b"late")

    async def test(world: World) -> None:
        with pytest.raises(CallFailedError) as caught:
            await world.call(timeout_s=1.5)
        assert caught.value.how is Broken.TIMEOUT
        assert CLOCK.now_us() == 1_500_000

    in_world(app, test)


def test_leaving_is_seen_then_enforced() -> None:
    events: list[tuple[int, str]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        message = await receive()
        events.append((CLOCK.now_us(), message["type"]))
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        try:
            await asyncio.Event().wait()
        finally:
            events.append((CLOCK.now_us(), "cancelled"))

    async def test(world: World) -> None:
        response = await world.call()
        await sleep_us(CLOCK, 10_000)
        await response.close()
        await response.close()
        await sleep_us(CLOCK, 5_000_000)

    in_world(app, test)
    assert events == [(10_000, "http.disconnect"), (1_010_000, "cancelled")]


@pytest.mark.parametrize("how", ["raises", "returns"])
def test_an_app_that_breaks_inside_the_body_ends_the_connection(how: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
        if how == "raises":
            raise ValueError("broken inside")

    async def test(world: World) -> None:
        response = await world.call()
        seen = []
        with pytest.raises(CallFailedError) as caught:
            async for chunk in response.chunks():
                seen.append(chunk)
        assert (seen, caught.value.how) == ([b"part"], Broken.CLOSED)
        assert ("broken inside" in "\n".join(world.node.log)) == (how == "raises")

    in_world(app, test)


@pytest.mark.parametrize("how", ["raises", "returns"])
def test_an_app_without_an_answer_is_a_500_as_under_uvicorn(how: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if how == "raises":
            raise ValueError("before the head")

    async def test(world: World) -> None:
        response = await world.call()
        assert response.status == 500
        assert await read_all(response) == b"Internal Server Error"

    in_world(app, test)


def test_kill_resets_mid_stream_and_nothing_of_the_node_runs_on() -> None:
    ran: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def child() -> None:
            while True:
                await sleep_us(CLOCK, 50_000)
                ran.append("child")

        tasks = [asyncio.create_task(child())]
        try:
            await respond(send, *[b"x"] * 100, gap_us=100_000)
        finally:
            ran.append(f"finally {len(tasks)}")
            await asyncio.sleep(1)
            ran.append("never: a killed process waits for nothing")

    async def test(world: World) -> None:
        reading = asyncio.create_task(arrivals(await world.call()))
        await sleep_us(CLOCK, 250_000)
        world.node.kill()
        world.node.kill()
        with pytest.raises(CallFailedError) as caught:
            await reading
        assert caught.value.how is Broken.RESET
        assert CLOCK.now_us() == 250_000
        before = ran.count("child")
        await world.node.join()
        await sleep_us(CLOCK, 5_000_000)
        assert ran.count("child") == before > 0
        with pytest.raises(CallFailedError) as caught:
            await world.call()
        assert caught.value.how is Broken.REFUSED
        assert [line for line in ran if line != "child"] == ["finally 1"]

    in_world(app, test)


def test_a_new_boot_has_a_new_number_and_no_memory() -> None:
    async def test(world: World) -> None:
        first = world.network.connect(world.address)
        assert world.network.node_of(world.address, first) is world.node
        world.node.kill()
        with pytest.raises(CallFailedError):
            world.network.connect(world.address)
        world.boot(hello)
        second = world.network.connect(world.address)
        assert second > first
        assert world.network.node_of(world.address, first) is None
        assert await world.body() == b"hello"

    in_world(hello, test)


def test_a_failed_background_task_ends_the_node() -> None:
    async def fails() -> None:
        await sleep_us(CLOCK, 1_000)
        raise ValueError("background broke")

    async def test(world: World) -> None:
        reasons: list[str] = []
        world.node.on_end = reasons.append
        world.node.spawn(fails())
        await sleep_us(CLOCK, 2_000)
        assert world.node.dead
        assert len(reasons) == 1 and "background broke" in reasons[0]
        assert "background broke" in "\n".join(world.node.log)

    in_world(hello, test)


def test_a_paused_node_accepts_and_hangs_then_goes_on() -> None:
    ticks: list[int] = []

    async def ticking() -> None:
        while True:
            await sleep_us(CLOCK, 100_000)
            ticks.append(CLOCK.now_us())

    async def test(world: World) -> None:
        world.node.spawn(ticking())
        running = asyncio.create_task(arrivals(await world.call()))
        await sleep_us(CLOCK, 450_000)
        world.node.pause()
        assert world.network.connect(world.address) == world.node.boot
        waiting = asyncio.create_task(world.call(timeout_s=30))
        with pytest.raises(CallFailedError) as caught:
            await world.call(timeout_s=1.0)
        assert caught.value.how is Broken.TIMEOUT
        await sleep_us(CLOCK, 1_000_000)
        assert not waiting.done()
        world.node.resume()
        response = await waiting
        assert CLOCK.now_us() == 2_450_000
        await response.close()
        seen = [t for t, _ in await running]
        # What was due at 0.5 s comes at the resume; gaps of 0.1 s go on from there.
        assert seen[:5] == [0, 100_000, 200_000, 300_000, 400_000]
        assert seen[5:] == [2_450_000 + n * 100_000 for n in range(5)]
        assert ticks[:6] == [100_000, 200_000, 300_000, 400_000, 2_450_000, 2_550_000]

    in_world(stream, test)


def test_timeouts_of_a_paused_node_fire_on_resume() -> None:
    ended: list[tuple[str, int]] = []

    async def impatient() -> None:
        try:
            async with asyncio.timeout(1.0):
                await asyncio.Event().wait()
        except TimeoutError:
            ended.append(("timeout", CLOCK.now_us()))

    async def test(world: World) -> None:
        world.node.spawn(impatient())
        await sleep_us(CLOCK, 1_000)
        world.node.pause()
        await sleep_us(CLOCK, 3_000_000)
        assert ended == []
        world.node.resume()
        await sleep_us(CLOCK, 1_000)
        assert ended == [("timeout", 3_001_000)]

    in_world(hello, test)


def test_a_paused_caller_stands_still_and_a_killed_one_leaves() -> None:
    got: list[int] = []
    left: list[int] = []

    async def upstream(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await receive()
        left.append(CLOCK.now_us())

    async def test(world: World) -> None:
        caller = world.network.node("caller-0")

        async def calls() -> None:
            response = await world.call()
            async for _ in response.chunks():
                got.append(CLOCK.now_us())

        caller.spawn(calls())
        caller.pause()
        await sleep_us(CLOCK, 1_000_000)
        assert got == []
        caller.resume()
        await sleep_us(CLOCK, 1_000)
        assert got == [1_000_000]
        caller.kill()
        await sleep_us(CLOCK, 1_000)
        assert left == [1_001_000]

    in_world(upstream, test)


def test_an_app_waits_for_a_slow_reader() -> None:
    sent: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for n in range(40):
            await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})
            sent.append(n)
        await send({"type": "http.response.body", "body": b""})

    async def test(world: World) -> None:
        response = await world.call()
        await sleep_us(CLOCK, 1_000_000)
        assert len(sent) < 10
        assert len(await read_all(response)) == 40 * 65_536

    in_world(app, test)


# ------------------------------------------------------------------------------- fault proxies


def latency(ms: float, jitter: float = 0, **options: Any) -> Toxic:
    return Toxic("t", "latency", attributes={"latency": ms, "jitter": jitter}, **options)


def test_latency_shifts_every_chunk_and_costs_no_throughput() -> None:
    async def test(world: World) -> None:
        proxy = world.network.proxy(world.address, random.Random(1))
        plain = await arrivals(await world.call(address=proxy.address))
        assert [t for t, _ in plain] == [n * 100_000 for n in range(10)]
        origin = CLOCK.now_us()
        proxy.add(latency(350))
        slow = await arrivals(await world.call(address=proxy.address))
        assert [t - origin for t, _ in slow] == [350_000 + n * 100_000 for n in range(10)]
        assert [chunk for _, chunk in slow] == [chunk for _, chunk in plain]

    in_world(stream, test)


def test_upstream_latency_delays_the_request() -> None:
    async def test(world: World) -> None:
        proxy = world.network.proxy(world.address, random.Random(1))
        proxy.add(latency(200, stream="upstream"))
        assert await world.body(proxy.address) == b"hello"
        assert CLOCK.now_us() == 200_000

    in_world(hello, test)


def test_jitter_is_seeded_and_keeps_the_order() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, *(b"%03d" % n for n in range(200)), gap_us=1_000)

    async def test(world: World) -> list[tuple[int, bytes]]:
        proxy = world.network.proxy(world.address, random.Random(7))
        proxy.add(latency(100, 50))
        return await arrivals(await world.call(address=proxy.address))

    seen = in_world(app, test)
    assert [chunk for _, chunk in seen] == [b"%03d" % n for n in range(200)]
    assert all(at >= n * 1_000 + 50_000 for n, (at, _) in enumerate(seen))
    assert all(at < n * 1_000 + 151_000 + 50_000 for n, (at, _) in enumerate(seen))
    assert len({at - n * 1_000 for n, (at, _) in enumerate(seen)}) > 5
    assert seen == in_world(app, test)


def test_toxicity_is_drawn_for_each_connection() -> None:
    async def test(world: World) -> None:
        proxy = world.network.proxy(world.address, random.Random(3))
        proxy.add(latency(100, toxicity=0.5))
        spans = []
        for _ in range(100):
            began = CLOCK.now_us()
            await world.body(proxy.address)
            spans.append(CLOCK.now_us() - began)
        assert set(spans) == {0, 100_000}
        assert 30 < spans.count(0) < 70

    in_world(hello, test)


def test_removing_a_toxic_lets_go_what_it_held() -> None:
    async def test(world: World) -> None:
        proxy = world.network.proxy(world.address, random.Random(1))
        proxy.add(latency(10_000))
        call = asyncio.create_task(world.body(proxy.address))
        await sleep_us(CLOCK, 2_000_000)
        assert not call.done()
        proxy.remove("t")
        proxy.remove("t")
        assert await call == b"0123456789"
        assert CLOCK.now_us() == 2_000_000

    in_world(stream, test)


def test_disabling_resets_what_runs_and_refuses_what_comes() -> None:
    async def test(world: World) -> None:
        proxy = world.network.proxy(world.address, random.Random(1))
        reading = asyncio.create_task(arrivals(await world.call(address=proxy.address)))
        await sleep_us(CLOCK, 250_000)
        proxy.enable(False)
        with pytest.raises(CallFailedError) as caught:
            await reading
        assert caught.value.how is Broken.RESET
        with pytest.raises(CallFailedError) as caught:
            await world.call(address=proxy.address)
        assert caught.value.how is Broken.REFUSED
        assert len(await world.body()) == 10  # straight to the upstream all is well
        proxy.enable(True)
        assert len(await world.body(proxy.address)) == 10

    in_world(stream, test)


def test_a_proxy_accepts_for_a_dead_upstream_and_closes() -> None:
    async def test(world: World) -> None:
        proxy = world.network.proxy(world.address, random.Random(1))
        world.node.kill()
        with pytest.raises(CallFailedError) as caught:
            await world.call(address=proxy.address)
        assert caught.value.how is Broken.CLOSED

    in_world(hello, test)


def test_an_upstream_killed_behind_a_slow_proxy_delivers_what_it_sent() -> None:
    async def test(world: World) -> None:
        proxy = world.network.proxy(world.address, random.Random(1))
        proxy.add(latency(500))
        response = await world.call(address=proxy.address)
        seen = []
        await sleep_us(CLOCK, -CLOCK.now_us() + 650_000)
        world.node.kill()
        with pytest.raises(CallFailedError) as caught:
            async for chunk in response.chunks():
                seen.append((CLOCK.now_us(), chunk))
        assert caught.value.how is Broken.CLOSED
        assert [chunk for _, chunk in seen] == [b"%d" % n for n in range(7)]
        assert seen[-1][0] == 1_100_000

    in_world(stream, test)


def test_unknown_toxics_are_refused() -> None:
    async def test(world: World) -> None:
        proxy = world.network.proxy(world.address, random.Random(1))
        for toxic in (Toxic("t", "melting"), latency(-1), latency(1, stream="sideways")):
            with pytest.raises(ValueError, match="invalid"):
                proxy.add(toxic)
        assert proxy.toxics == {}

    in_world(hello, test)


def test_same_seed_same_trace() -> None:
    async def test(world: World) -> list[Any]:
        proxy = world.network.proxy(world.address, random.Random(5))
        proxy.add(latency(20, 15))
        seen: list[Any] = []

        async def client(number: int) -> None:
            for _ in range(3):
                response = await world.call(address=proxy.address)
                async for chunk in response.chunks():
                    seen.append((CLOCK.now_us(), number, chunk))

        clients = [asyncio.create_task(client(n)) for n in range(8)]
        await sleep_us(CLOCK, 1_500_000)
        world.node.pause()
        await sleep_us(CLOCK, 300_000)
        world.node.resume()
        await asyncio.gather(*clients)
        return seen

    first, second = in_world(stream, test), in_world(stream, test)
    assert len(first) == 240
    assert first == second
