from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import Any, TypeVar

import pytest
from reference_world import (
    BEARER,
    Answer,
    Fake,
    World,
    asgi,
    chat,
    gateway,
    play,
    replica,
    retrieval,
    upstreams,
)

from survive.clock import seeded
from survive.contracts import MakeApp, Receive, Scope, Send, ServiceContext, Toxic
from survive.transport import Broken, CallFailedError, Request

GATE = "gateway-0"
NAMES = ("inference-0", "inference-1", "inference-2")
T = TypeVar("T")


class Stage(World):
    """A gateway before scripted upstreams."""

    fakes: dict[str, Fake]

    async def set_up(self, count: int = 3, *, weak: str = "", make: MakeApp | None = None) -> None:
        self.fakes = {name: Fake() for name in NAMES[:count]}
        for name, fake in self.fakes.items():
            self.boot(name, fake.make)
        self.boot_gateway(*self.fakes, weak=weak, make=make)
        await self.sleep(0.2)

    def calls(self) -> list[int]:
        return [fake.calls for fake in self.fakes.values()]

    async def chat(self, **options: Any) -> Answer:
        return await self.ask(GATE, chat(**options))


def staged(main: Callable[[Stage], Coroutine[Any, Any, T]], **options: Any) -> T:
    async def run(world: World) -> T:
        stage = Stage()
        world.nodes = stage.nodes  # so that play ends them
        await stage.set_up(**options)
        return await main(stage)

    return play(run)


def with_limits(**limits: Any) -> MakeApp:
    def make(context: ServiceContext) -> Any:
        return gateway.make_gateway(context, gateway.Limits(**limits))

    return make


# ------------------------------------------------------------------------------------- the door


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (("authorization", "Bearer wrong"),),
        (("authorization", "Basic secret"),),
        (("key", ""),),
    ],
)
def test_without_the_key_nothing_reaches_an_upstream(headers: tuple[tuple[str, str], ...]) -> None:
    async def main(stage: Stage) -> tuple[list[Answer], list[int]]:
        paths = [("POST", "/v1/chat/completions"), ("GET", "/v1/search?q=a")]
        requests = [Request(method, path, headers) for method, path in paths]
        return [await stage.ask(GATE, request) for request in requests], stage.calls()

    answers, calls = staged(main)
    assert [answer.status for answer in answers] == [401, 401]
    assert answers[0].headers["www-authenticate"] == "Bearer"
    assert calls == [0, 0, 0]


def test_bad_bodies_and_paths_are_the_clients_fault() -> None:
    async def main(stage: Stage) -> tuple[list[int], list[int]]:
        path = "/v1/chat/completions"
        requests = [
            Request("POST", path, (BEARER,), b"nonsense"),
            Request("POST", path, (BEARER,), b"x" * (asgi.MAX_BODY + 1)),
            Request("GET", path, (BEARER,)),
            Request("GET", "/nope", (BEARER,)),
        ]
        return [(await stage.ask(GATE, r)).status for r in requests], stage.calls()

    assert staged(main) == ([400, 413, 405, 404], [0, 0, 0])


def test_it_is_healthy_once_one_replica_is() -> None:
    async def main(world: World) -> list[int]:
        fake = Fake()
        fake.healthy = False
        world.boot(NAMES[0], fake.make)
        world.boot_gateway(NAMES[0])
        healthz = Request("GET", "/healthz")
        await world.sleep(1.0)
        before = (await world.ask(GATE, healthz)).status
        unserved = await world.ask(GATE, chat())
        fake.healthy = True
        await world.sleep(0.2)
        return [before, unserved.status, (await world.ask(GATE, healthz)).status]

    assert play(main) == [503, 503, 200]


# ---------------------------------------------------------------------------------- the real way


def test_a_chat_and_a_search_pass_through_whole() -> None:
    async def main(world: World) -> tuple[Answer, Answer, Answer, Answer]:
        for name in NAMES:
            world.boot(name, replica.make_app)
        world.boot("retrieval-0", retrieval.make_app)
        world.boot_gateway(*NAMES)
        await world.sleep(0.2)
        search = Request("GET", "/v1/search?q=gpu%20%22replica", (BEARER,))
        wild = Request("GET", "/v1/search?q=\x7f<a b>\u00e9", (BEARER,))
        return (
            await world.ask(GATE, chat(tokens=5)),
            await world.ask(GATE, chat(tokens=5, stream=False)),
            await world.ask(GATE, search),
            await world.ask(GATE, wild),
        )

    stream, whole, search, wild = play(main)
    assert stream.complete and stream.replica in NAMES
    assert stream.headers["content-type"] == "text/event-stream"
    assert stream.events[-1]["usage"]["completion_tokens"] == 5
    assert whole.json["usage"] == stream.events[-1]["usage"]
    assert search.replica == "retrieval-0" and search.json["query"] == 'gpu "replica'
    assert len(search.json["results"]) == 5
    assert wild.status == 200


def test_chunks_are_passed_on_as_they_come() -> None:
    async def main(world: World) -> list[float]:
        world.boot(NAMES[0], replica.make_app)
        world.boot_gateway(NAMES[0])
        await world.sleep(0.2)
        response = await world.open(GATE, chat(tokens=10))
        return [world.now_s() async for _ in response.chunks()]

    times = play(main)
    assert len(times) == 10
    assert all(b > a for a, b in pairwise(times))


# --------------------------------------------------------------------------------------- routing


def test_ties_go_round_and_load_goes_to_the_least_loaded() -> None:
    async def main(stage: Stage) -> tuple[list[int], list[int]]:
        for _ in range(9):
            await stage.chat()
        even = stage.calls()
        stage.fakes[NAMES[1]].script = stage.fakes[NAMES[1]].hang
        stuck = [asyncio.create_task(stage.chat()) for _ in range(3)]
        await stage.sleep(0.1)
        for _ in range(8):
            await stage.chat()
        loaded = stage.calls()
        for task in stuck:
            task.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)
        return even, loaded

    even, loaded = staged(main)
    assert even == [3, 3, 3]
    assert loaded[1] == 4  # one of three at once, and none while it hung
    assert loaded[0] + loaded[2] == 6 + 10


def test_a_failing_replica_is_retried_elsewhere_then_ejected_then_readmitted() -> None:
    async def main(stage: Stage) -> None:
        sick = stage.fakes[NAMES[1]]
        sick.status(500)
        answers = [await stage.chat() for _ in range(30)]
        assert {answer.status for answer in answers} == {200}
        assert sick.calls == upstreams.FAILURES_TO_EJECT
        assert all(answer.replica != NAMES[1] for answer in answers)
        sick.script = sick.fine
        await stage.sleep(upstreams.CHECK_EVERY_US / 1e6 + 0.1)
        for _ in range(3):
            await stage.chat()
        assert sick.calls == upstreams.FAILURES_TO_EJECT + 1
        failed = await stage.metric(GATE, 'gateway_upstream_failures_total{replica="inference-1"')
        assert failed == upstreams.FAILURES_TO_EJECT

    staged(main)


def test_two_failed_checks_eject_and_one_passed_readmits() -> None:
    async def main(stage: Stage) -> list[float]:
        healthy = 'gateway_upstream_healthy{replica="inference-0"}'
        stage.fakes[NAMES[0]].healthy = False
        seen = []
        for _ in range(2):
            await stage.sleep(0.5)
            seen.append(await stage.metric(GATE, healthy))
        stage.fakes[NAMES[0]].healthy = True
        await stage.sleep(0.5)
        return [*seen, await stage.metric(GATE, healthy)]

    assert staged(main) == [1, 0, 1]


def test_a_dead_replica_costs_one_attempt_and_no_request() -> None:
    async def main(stage: Stage) -> tuple[list[int], float]:
        stage.nodes[NAMES[2]].kill()
        statuses = [(await stage.chat()).status for _ in range(10)]
        return statuses, await stage.metric(
            GATE, 'gateway_upstream_failures_total{replica="inference-2",why="refused"}'
        )

    assert staged(main) == ([200] * 10, 1)


def test_an_overloaded_replica_is_retried_elsewhere_but_not_ejected() -> None:
    async def main(stage: Stage) -> tuple[set[int], list[int]]:
        stage.fakes[NAMES[0]].status(503, (b"retry-after", b"1"))
        statuses = {(await stage.chat()).status for _ in range(12)}
        return statuses, stage.calls()

    statuses, calls = staged(main)
    assert statuses == {200}
    assert calls[0] > upstreams.FAILURES_TO_EJECT


def test_a_replica_that_refuses_the_gateway_is_not_the_callers_fault() -> None:
    async def main(stage: Stage) -> tuple[list[int], list[int], int]:
        stage.fakes[NAMES[0]].status(401)
        let_in = [(await stage.chat()).status for _ in range(12)]
        calls = stage.calls()
        for fake in stage.fakes.values():
            fake.status(403)
        return let_in, calls, (await stage.chat()).status

    let_in, calls, when_all_refuse = staged(main)
    assert let_in == [200] * 12
    assert calls[0] == upstreams.FAILURES_TO_EJECT
    assert when_all_refuse == 502


def test_when_all_fail_the_last_tried_is_named() -> None:
    async def main(stage: Stage) -> tuple[Answer, Answer, Answer]:
        for fake in stage.fakes.values():
            fake.status(503, (b"retry-after", b"7"))
        overloaded = await stage.chat()
        for name in NAMES:
            stage.nodes[name].kill()
        refused = await stage.chat()
        await stage.chat()
        return overloaded, refused, await stage.chat()

    overloaded, refused, nobody = staged(main)
    assert overloaded.status == 503 and overloaded.headers["retry-after"] == "7"
    assert overloaded.replica in NAMES
    assert refused.status == 502 and refused.replica in NAMES
    assert nobody.status == 503 and nobody.replica == ""  # all ejected: nobody was tried


def test_a_write_is_not_repeated() -> None:
    async def main(world: World) -> tuple[Answer, int]:
        fake = Fake()
        world.boot("retrieval-0", fake.make)
        world.boot_gateway()
        await world.sleep(0.2)
        fake.status(500)
        answer = await world.ask(GATE, Request("POST", "/v1/documents", (BEARER,), b"{}"))
        return answer, fake.calls

    answer, calls = play(main)
    assert (answer.status, answer.replica, calls) == (500, "retrieval-0", 1)


# -------------------------------------------------------------------------------------- weaknesses


async def _share_of_the_sick(stage: Stage) -> tuple[float, float]:
    """Part of chats that fail, part of attempts that the failing replica draws."""
    for fake in stage.fakes.values():
        fake.script = _busy
    sick = stage.fakes[NAMES[1]]
    sick.status(500)
    sick.healthy = False
    chats: list[asyncio.Task[Answer]] = []
    for _ in range(60):
        chats.append(asyncio.create_task(stage.chat()))
        await stage.sleep(0.02)
    answers = await asyncio.gather(*chats)
    failed = [answer for answer in answers if answer.status != 200]
    assert all(answer.replica == NAMES[1] for answer in failed)
    return len(failed) / len(answers), sick.calls / sum(stage.calls())


async def _busy(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.sleep(0.3)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


def test_without_health_checks_a_fast_failing_replica_is_a_black_hole() -> None:
    failed, drawn = staged(_share_of_the_sick, weak="no_health_checks")
    assert failed > 0.6  # a fair share would be a third
    assert drawn > 0.6


def test_with_health_checks_it_is_not() -> None:
    failed, drawn = staged(_share_of_the_sick)
    assert failed == 0
    assert drawn < 0.1


def test_without_timeouts_a_hanging_replica_holds_its_clients() -> None:
    async def main(stage: Stage) -> bool:
        for fake in stage.fakes.values():
            fake.script = fake.hang
        try:
            await stage.ask(GATE, chat(), timeout_s=100)
        except CallFailedError as error:
            return error.how == Broken.TIMEOUT
        return False

    assert staged(main, weak="no_timeout")


# -------------------------------------------------------------------------------------- deadlines


def test_a_hanging_replica_is_left_for_another_after_the_first_byte_deadline() -> None:
    async def main(stage: Stage) -> tuple[Answer, float, int]:
        hanging = stage.fakes[NAMES[0]]
        hanging.script = hanging.hang
        slowest = 0.0
        for _ in range(3):
            began = stage.now_s()
            answer = await stage.chat()
            slowest = max(slowest, stage.now_s() - began)
            assert answer.status == 200
        return answer, slowest, hanging.left

    answer, slowest, left = staged(main)
    assert answer.replica != NAMES[0]
    assert 2.0 <= slowest < 2.1
    assert left == 1


def test_when_all_hang_the_client_hears_504() -> None:
    async def main(stage: Stage) -> tuple[Answer, float]:
        for fake in stage.fakes.values():
            fake.script = fake.hang
        began = stage.now_s()
        return await stage.chat(), stage.now_s() - began

    answer, took = staged(main)
    assert answer.status == 504 and answer.replica in NAMES
    assert took == pytest.approx(4.0, abs=0.1)


def test_an_answer_that_is_not_streamed_may_take_the_whole_deadline() -> None:
    async def main(stage: Stage) -> tuple[int, int, float]:
        fine = (await stage.chat(stream=False)).status
        for fake in stage.fakes.values():
            fake.script = fake.hang
        began = stage.now_s()
        return fine, (await stage.chat(stream=False)).status, stage.now_s() - began

    fine, late, took = staged(main)
    assert (fine, late) == (200, 504)
    assert took == pytest.approx(8.0, abs=0.1)


@pytest.mark.parametrize(
    ("script", "after_s"), [("break_after_first", 0.1), ("stall_after_first", 2.0)]
)
def test_a_stream_that_breaks_or_stalls_ends_without_its_end(script: str, after_s: float) -> None:
    async def main(stage: Stage) -> tuple[Answer, float, int, list[int]]:
        for fake in stage.fakes.values():
            fake.script = getattr(fake, script)
        began = stage.now_s()
        answer = await stage.chat()
        took = stage.now_s() - began
        await stage.sleep(0.1)
        return answer, took, sum(f.left for f in stage.fakes.values()), stage.calls()

    answer, took, left, calls = staged(main)
    assert (answer.status, answer.body, answer.broken) == (200, b"data: 1\n\n", Broken.CLOSED)
    assert answer.replica in NAMES
    assert took == pytest.approx(after_s, abs=0.05)
    assert sum(calls) == 1  # the client has seen a byte: no second try
    assert left == (1 if script == "stall_after_first" else 0)


def test_the_whole_exchange_ends_at_its_deadline() -> None:
    async def main(world: World) -> tuple[Answer, float]:
        world.boot(NAMES[0], replica.make_app)
        world.boot_gateway(NAMES[0])
        await world.sleep(0.2)
        began = world.now_s()
        return await world.ask(GATE, chat(tokens=4000)), world.now_s() - began

    answer, took = play(main)
    assert answer.status == 200 and answer.broken
    assert took == pytest.approx(8.0, abs=0.05)


# ------------------------------------------------------------------------------------ the client


@pytest.mark.parametrize("script", ["hang", "stall_after_first"])
def test_a_client_that_leaves_frees_the_upstream(script: str) -> None:
    async def main(stage: Stage) -> tuple[int, list[float]]:
        for fake in stage.fakes.values():
            fake.script = getattr(fake, script)
        asking = asyncio.create_task(stage.chat())
        await stage.sleep(0.1)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await stage.sleep(0.1)
        line = "gateway_upstream_in_flight"
        busy = [await stage.metric(GATE, f'{line}{{replica="{name}"}}') for name in NAMES]
        return sum(fake.left for fake in stage.fakes.values()), busy

    assert staged(main) == (1, [0, 0, 0])


@pytest.mark.parametrize(("weak", "expected"), [("", 503), ("unbounded_queue", 504)])
def test_the_gateway_bounds_what_is_in_flight(weak: str, expected: int) -> None:
    async def main(stage: Stage) -> tuple[Answer, Counter[int]]:
        for fake in stage.fakes.values():
            fake.script = fake.hang
        stuck = [asyncio.create_task(stage.chat()) for _ in range(4)]
        await stage.sleep(0.1)
        answer = await stage.chat()
        return answer, Counter(a.status for a in await asyncio.gather(*stuck))

    answer, others = staged(main, weak=weak, make=with_limits(in_flight=4))
    assert answer.status == expected
    assert others == {504: 4}


# ------------------------------------------------------------------------------ the quickstart


def _ttfts(world: World, rate: float, seconds: float) -> Coroutine[Any, Any, list[float | None]]:
    """Times to the first token of a steady load; None for each failed or broken chat."""

    async def one() -> float | None:
        began = world.now_s()
        response = await world.open(GATE, chat(tokens=16, prompt="word " * 20), timeout_s=5)
        first, body = None, b""
        try:
            async for chunk in response.chunks():
                first = first or world.now_s() - began
                body += chunk
        except CallFailedError:
            return None
        return first if response.status == 200 and body.endswith(b"[DONE]\n\n") else None

    async def load() -> list[float | None]:
        tasks = []
        for _ in range(round(rate * seconds)):
            tasks.append(asyncio.create_task(one()))
            await world.sleep(1 / rate)
        return list(await asyncio.gather(*tasks))

    return load()


def _p95(values: list[float | None]) -> float:
    ok = sorted(value if value is not None else float("inf") for value in values)
    return ok[int(len(ok) * 0.95)]


def test_the_quickstart_rate_is_carried_with_a_gpu_lost_and_with_a_slow_link() -> None:
    async def main(world: World) -> None:
        for name in NAMES:
            world.boot(name, replica.make_app)
        listeners = [world.network.proxy(world.addresses[name], seeded(1, name)) for name in NAMES]
        for name, listener in zip(NAMES, listeners, strict=True):
            world.addresses[f"via-{name}"] = listener.address
        world.boot_gateway(*(f"via-{name}" for name in NAMES))
        await world.sleep(0.3)

        steady = await _ttfts(world, 42, 5)
        assert None not in steady and _p95(steady) < 0.2

        await world.set_gpu(NAMES[1], lost=True)
        lost = await _ttfts(world, 42, 8)
        assert lost.count(None) / len(lost) < 0.01 and _p95(lost) < 0.3
        await world.set_gpu(NAMES[1], lost=False)
        await world.sleep(1.0)

        for listener in listeners:
            listener.add(Toxic("slow", "latency", attributes={"latency": 300, "jitter": 50}))
        slow = await _ttfts(world, 42, 5)
        assert None not in slow and 0.3 < _p95(slow) < 0.6

    play(main)


def test_a_throttled_replica_gets_less_of_the_load() -> None:
    async def main(world: World) -> list[float]:
        for name in NAMES:
            world.boot(name, replica.make_app)
        world.boot_gateway(*NAMES)
        await world.sleep(0.3)
        await world.set_gpu(NAMES[0], slow_down=4)
        assert None not in await _ttfts(world, 30, 5)
        line = "gateway_upstream_attempts_total"
        return [await world.metric(GATE, f'{line}{{replica="{name}"}}') for name in NAMES]

    slow, *fast = play(main)
    assert slow < 0.6 * min(fast)


def test_the_same_run_twice_is_the_same() -> None:
    async def main(world: World) -> list[float | None]:
        for name in NAMES:
            world.boot(name, replica.make_app)
        world.boot_gateway(*NAMES)
        await world.sleep(0.3)
        return await _ttfts(world, 60, 3)

    first = play(main)
    assert len(first) == 180
    assert first == play(main)


@pytest.mark.parametrize("victim", [GATE, NAMES[0]])
def test_a_node_killed_under_load_ends_without_a_word(victim: str) -> None:
    async def main(world: World) -> list[str]:
        world.boot(NAMES[0], replica.make_app)
        world.boot_gateway(NAMES[0])
        await world.sleep(0.3)
        asking = [asyncio.create_task(world.ask(GATE, chat(tokens=40))) for _ in range(5)]
        await world.sleep(0.3)
        node = world.nodes[victim]
        node.kill()
        answers = await asyncio.gather(*asking)
        assert all(answer.broken and not answer.complete for answer in answers)
        if victim == GATE:
            world.boot_gateway(NAMES[0])
        else:
            world.boot(victim, replica.make_app)
        await world.sleep(1.0)
        assert (await world.ask(GATE, chat())).complete
        return list(node.log)

    assert play(main) == []
