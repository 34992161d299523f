from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from itertools import pairwise
from typing import Any

import pytest
from reference_world import (
    TOKEN,
    Answer,
    World,
    asgi,
    chat,
    gpu,
    play,
    post,
    replica,
)

from survive.clock import seeded
from survive.contracts import MakeApp, ServiceContext
from survive.transport import Broken, CallFailedError, Request, read_all

NAME = "inference-1"
WAITING = "vllm:num_requests_waiting"
RUNNING = "vllm:num_requests_running"


def with_profile(**changes: Any) -> MakeApp:
    def make(context: ServiceContext) -> Any:
        return replica.make_replica(context, gpu.Profile(**changes))

    return make


def content(answer: Answer) -> str:
    return "".join(e["choices"][0]["delta"].get("content", "") for e in answer.events[:-1])


def test_a_stream_has_role_tokens_finish_usage_and_done() -> None:
    async def main(world: World) -> Answer:
        world.boot(NAME, replica.make_app)
        return await world.ask(NAME, chat(tokens=5, prompt="four words are here"))

    answer = play(main)
    assert (answer.status, answer.replica) == (200, NAME)
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.complete
    deltas = [event["choices"][0]["delta"] for event in answer.events[:-1]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert [set(delta) for delta in deltas[1:-1]] == [{"content"}] * 5
    reasons = [event["choices"][0]["finish_reason"] for event in answer.events[:-1]]
    assert reasons == [None] * 6 + ["length"]
    assert answer.events[-1]["choices"] == []
    usage = {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9}
    assert answer.events[-1]["usage"] == usage


def test_streamed_and_whole_answers_say_the_same() -> None:
    async def main(world: World) -> tuple[Answer, Answer]:
        world.boot(NAME, replica.make_app)
        whole = await world.ask(NAME, chat(tokens=7, stream=False))
        return whole, await world.ask(NAME, chat(tokens=7))

    whole, stream = play(main)
    message = whole.json["choices"][0]["message"]
    assert message == {"role": "assistant", "content": content(stream)}
    assert len(message["content"].split()) == 7
    assert whole.json["usage"]["completion_tokens"] == 7
    assert whole.json["object"] == "chat.completion"


def test_tokens_come_one_step_apart_and_slow_down_stretches_them() -> None:
    async def gaps(world: World) -> list[float]:
        response = await world.open(NAME, chat(tokens=6))
        times = [world.now_s() async for _ in response.chunks()]
        return [b - a for a, b in pairwise(times)]

    async def main(world: World) -> tuple[list[float], list[float]]:
        world.boot(NAME, replica.make_app)
        before = await gaps(world)
        state = await world.set_gpu(NAME, slow_down=3)
        assert state.json["slow_down"] == 3.0 and state.json["device"] == "simulated"
        return before, await gaps(world)

    before, slow = play(main)
    step_s = gpu.Profile().decode_ms(0.0) / 1000
    assert len(before) == 5 and all(step_s <= gap < 1.1 * step_s for gap in before)
    assert slow == pytest.approx([3 * gap for gap in before], rel=1e-3)


def test_the_curves_are_those_of_the_mocker() -> None:
    profile = gpu.Profile(prefill_scale=1.0, decode_scale=1.0)
    assert profile.prefill_ms(0) == 0.0
    assert profile.prefill_ms(1000) == pytest.approx(0.421 + 15.18 + 16.5)
    assert profile.decode_ms(0.0) == pytest.approx(5.74)
    assert profile.decode_ms(1.0) == pytest.approx(34.01)


def test_a_long_prompt_is_prefilled_in_chunks_while_others_decode() -> None:
    async def main(world: World) -> tuple[float, float, float]:
        world.boot(NAME, with_profile(max_batched_tokens=100))
        short = await world.open(NAME, chat(tokens=40))
        await anext(short.chunks())
        began = world.now_s()
        long = await world.open(NAME, chat(tokens=1, prompt="w " * 1000))
        first = world.now_s() - began
        steps = await world.metric(NAME, "simulated_gpu_steps_total")
        made = await world.metric(NAME, "vllm:generation_tokens_total")
        await read_all(long)
        await read_all(short)
        return first, steps, made

    first, steps, made = play(main)
    profile = gpu.Profile()
    # Ten chunks, and each shares its step with a token of the short answer.
    assert first >= 10 * (profile.prefill_ms(100) + profile.decode_ms(0.0)) / 1000
    assert steps >= 11 and made >= 11


def test_no_more_than_max_sequences_run_and_the_queue_is_capped() -> None:
    async def main(world: World) -> tuple[list[int], Answer, float, float]:
        world.boot(NAME, with_profile(max_sequences=2, max_waiting=3))
        asks = [asyncio.create_task(world.ask(NAME, chat(tokens=20))) for _ in range(5)]
        await world.sleep(0.1)
        refused = await world.ask(NAME, chat())
        running = await world.metric(NAME, RUNNING)
        waiting = await world.metric(NAME, WAITING)
        return [a.status for a in await asyncio.gather(*asks)], refused, running, waiting

    statuses, refused, running, waiting = play(main)
    assert statuses == [200] * 5
    assert (running, waiting) == (2, 3)
    assert refused.status == 503 and refused.headers["retry-after"] == "1"
    assert refused.replica == NAME


def test_the_weakness_takes_the_cap_away() -> None:
    async def main(world: World) -> list[int]:
        make = with_profile(max_sequences=1, max_waiting=1)
        world.boot(NAME, make, SURVIVE_WEAKNESSES="no_timeout,unbounded_queue")
        asks = [world.ask(NAME, chat(tokens=1)) for _ in range(30)]
        return [a.status for a in await asyncio.gather(*asks)]

    assert play(main) == [200] * 30


def test_kv_space_bounds_the_batch_and_too_long_a_context_is_refused() -> None:
    async def main(world: World) -> tuple[float, float, float, int, int]:
        world.boot(NAME, with_profile(kv_tokens=50))  # three blocks; each answer grows to two
        asks = [asyncio.create_task(world.ask(NAME, chat(tokens=20))) for _ in range(3)]
        await world.sleep(0.1)
        used = await world.metric(NAME, "vllm:kv_cache_usage_perc")
        await world.sleep(0.3)
        running = await world.metric(NAME, RUNNING)
        done = [a.status for a in await asyncio.gather(*asks) if a.complete].count(200)
        preempted = await world.metric(NAME, "vllm:num_preemptions_total")
        return used, running, preempted, done, (await world.ask(NAME, chat(tokens=48))).status

    used, running, preempted, done, refused = play(main)
    assert (used, running, preempted, done, refused) == (1, 1, 2, 3, 400)


@pytest.mark.parametrize("stage", ["running", "waiting"])
def test_a_client_that_leaves_frees_its_place(stage: str) -> None:
    async def main(world: World) -> tuple[float, float, Answer]:
        world.boot(NAME, with_profile(max_sequences=1))
        if stage == "running":
            response = await world.open(NAME, chat(tokens=4000))
            await response.close()
        else:
            other = asyncio.create_task(world.ask(NAME, chat(tokens=10)))
            await world.sleep(0.05)
            with pytest.raises(CallFailedError):
                await world.open(NAME, chat(tokens=4000), timeout_s=0.05)
            assert (await other).complete
        await world.sleep(0.1)
        left = await world.metric(NAME, RUNNING), await world.metric(NAME, WAITING)
        return *left, await world.ask(NAME, chat())

    running, waiting, after = play(main)
    assert (running, waiting) == (0, 0)
    assert after.complete


def test_a_lost_gpu_breaks_streams_fails_calls_and_comes_back() -> None:
    async def main(world: World) -> None:
        world.boot(NAME, with_profile(max_sequences=1))
        running = asyncio.create_task(world.ask(NAME, chat(tokens=50)))
        waiting = asyncio.create_task(world.ask(NAME, chat(tokens=50)))
        await world.sleep(0.3)
        lost_at = world.now_s()
        assert (await world.set_gpu(NAME, lost=True)).json["lost"] is True
        broken, refused = await running, await waiting
        assert world.now_s() == pytest.approx(lost_at, abs=0.001)
        assert broken.status == 200 and broken.broken == Broken.CLOSED
        assert content(broken) and b"[DONE]" not in broken.body
        assert refused.status == 500 and refused.replica == NAME
        assert (await world.ask(NAME, chat())).status == 500
        assert (await world.ask(NAME, Request("GET", "/health"))).status == 503
        assert await world.metric(NAME, "simulated_gpu_lost") == 1

        await world.set_gpu(NAME, lost=False)
        assert (await world.ask(NAME, Request("GET", "/health"))).status == 200
        assert (await world.ask(NAME, chat(tokens=3))).complete

    play(main)


def test_the_control_channel_needs_its_token() -> None:
    async def main(world: World) -> list[int]:
        world.boot(NAME, replica.make_app)
        tries = [
            Request("GET", "/admin/gpu"),
            Request("GET", "/admin/gpu", (("x-gpu-token", "wrong"),)),
            post("/admin/gpu", {"lost": True}),
            Request("GET", "/admin/gpu", (("x-gpu-token", TOKEN),)),
        ]
        statuses = [(await world.ask(NAME, request)).status for request in tries]
        assert (await world.ask(NAME, Request("GET", "/health"))).status == 200
        return statuses

    assert play(main) == [403, 403, 403, 200]


def test_without_a_token_the_control_channel_is_shut() -> None:
    async def main(world: World) -> int:
        world.boot(NAME, replica.make_app, SURVIVE_GPU_TOKEN="")
        request = post("/admin/gpu", {"lost": True}, ("x-gpu-token", ""))
        return (await world.ask(NAME, request)).status

    assert play(main) == 403


@pytest.mark.parametrize(
    "state",
    [
        {"lost": 1},
        {"slow_down": 0},
        {"slow_down": -1},
        {"slow_down": True},
        {"slow_down": "3"},
        {"slow_down": 1e9},
        {"lost": True, "slow_down": None},
        {"lots": True},
    ],
)
def test_a_bad_gpu_state_changes_nothing(state: dict[str, Any]) -> None:
    async def main(world: World) -> tuple[int, Any]:
        world.boot(NAME, replica.make_app)
        status = (await world.set_gpu(NAME, **state)).status
        return status, (await world.set_gpu(NAME)).json

    status, after = play(main)
    assert status == 400
    assert (after["lost"], after["slow_down"]) == (False, 1.0)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"[1]",
        b"{}",
        b'{"messages": []}',
        b'{"messages": [1]}',
        b'{"messages": [{"content": 1}]}',
        b'{"messages": [{"content": "a"}], "max_tokens": 0}',
        b'{"messages": [{"content": "a"}], "max_tokens": true}',
        b'{"messages": [{"content": "a"}], "max_tokens": 1e3}',
        b'{"messages": [{"content": "a"}], "stream": "yes"}',
        b'{"messages": [{"content": "a"}], "model": 7}',
        b"[" * 100_000,
    ],
)
def test_bad_chats_are_400(body: bytes) -> None:
    async def main(world: World) -> Answer:
        world.boot(NAME, replica.make_app)
        return await world.ask(NAME, Request("POST", "/v1/chat/completions", (), body))

    answer = play(main)
    assert answer.status == 400
    assert answer.json["error"]["type"] == "invalid_request_error"


def test_unknown_paths_methods_and_huge_bodies_are_refused() -> None:
    async def main(world: World) -> tuple[int, Answer, int]:
        world.boot(NAME, replica.make_app)
        unknown = await world.ask(NAME, Request("GET", "/nope"))
        method = await world.ask(NAME, Request("GET", "/v1/chat/completions"))
        huge = Request("POST", "/v1/chat/completions", (), b"x" * (asgi.MAX_BODY + 1))
        return unknown.status, method, (await world.ask(NAME, huge)).status

    unknown, method, huge = play(main)
    assert (unknown, method.status, huge) == (404, 405, 413)
    assert method.headers["allow"] == "POST"


def test_a_prompt_with_a_lone_surrogate_is_answered() -> None:
    async def main(world: World) -> Answer:
        world.boot(NAME, replica.make_app)
        return await world.ask(NAME, chat(prompt="\ud800 broken"))

    assert play(main).complete


def test_metrics_have_vllm_names_say_simulated_and_count_exactly() -> None:
    async def main(world: World) -> str:
        world.boot(NAME, replica.make_app)
        for _ in range(3):
            await world.ask(NAME, chat(tokens=4, prompt="a b"))
        return (await world.ask(NAME, Request("GET", "/metrics"))).body.decode()

    text = play(main)
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert all('device="simulated"' in line for line in samples)
    values = {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in samples}
    assert values["vllm:prompt_tokens_total"] == 6
    assert values["vllm:generation_tokens_total"] == 12
    assert values["vllm:request_success_total"] == 3
    assert values["vllm:time_to_first_token_seconds_count"] == 3
    assert values["vllm:inter_token_latency_seconds_count"] == 9
    assert values["vllm:num_requests_running"] == values["vllm:num_requests_waiting"] == 0
    assert values["vllm:kv_cache_usage_perc"] == 0
    itl_mean = values["vllm:inter_token_latency_seconds_sum"] / 9
    assert itl_mean == pytest.approx(gpu.Profile().decode_ms(0) / 1000, rel=0.05)


def test_littles_law_holds_for_the_batch() -> None:
    """Mean number in the system = arrival rate × mean time in it, from independent counts."""

    async def main(world: World) -> tuple[float, float]:
        world.boot(NAME, replica.make_app)
        chance, lasted, seen = seeded(7), [], []

        async def one() -> None:
            began = world.now_s()
            assert (await world.ask(NAME, chat(tokens=16))).complete
            lasted.append(world.now_s() - began)

        async def sampler() -> AsyncGenerator[None, None]:
            while True:
                running = await world.metric(NAME, RUNNING)
                seen.append(running + await world.metric(NAME, WAITING))
                await world.sleep(0.053)
                yield

        asks, watch, end_s = [], sampler(), 40.0
        next_at = 0.0
        while world.now_s() < end_s:
            await anext(watch)
            while next_at <= world.now_s():
                asks.append(asyncio.create_task(one()))
                next_at += chance.expovariate(14.0)
        await watch.aclose()
        await asyncio.gather(*asks)
        return sum(seen) / len(seen), len(asks) / end_s * (sum(lasted) / len(lasted))

    in_system, rate_times_time = play(main)
    assert 2 < in_system < 12
    assert in_system == pytest.approx(rate_times_time, rel=0.1)


def test_the_same_calls_give_the_same_bytes_at_the_same_times() -> None:
    async def main(world: World) -> list[tuple[float, bytes]]:
        world.boot(NAME, replica.make_app)
        seen = []

        async def one(number: int) -> None:
            await world.sleep(number * 0.013)
            response = await world.open(NAME, chat(tokens=5, prompt=f"p {number}"))
            async for chunk in response.chunks():
                seen.append((world.now_s(), chunk))

        await asyncio.gather(*(one(n) for n in range(10)))
        return seen

    first = play(main)
    assert len(first) >= 50
    assert first == play(main)
    assert json.loads(first[0][1].split(b"\n\n")[0][6:])["object"] == "chat.completion.chunk"
