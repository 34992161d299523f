"""The simulated GPU itself: its queue, its KV blocks, and the times that they give."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import pytest
from reference_world import FOLDER, gpu

from survive.catalog import load_module
from survive.clock import LoopClock, seeded, sleep_us
from survive.host.loop import virtual_run

kv = load_module(FOLDER / "kv.py")
scheduler = load_module(FOLDER / "scheduler.py")


@dataclass(eq=False)
class Work:
    tenant: str = "a"
    urgent: bool = True
    cost: int = 64


def drained(queue: Any) -> list[Work]:
    return [queue.pop() for _ in range(len(queue))]


def test_interactive_work_goes_first_and_each_tenant_keeps_its_order() -> None:
    queue = scheduler.Fair()
    batch = [Work("b", urgent=False) for _ in range(3)]
    urgent = [Work("a") for _ in range(3)]
    for pair in zip(batch, urgent, strict=True):
        for work in pair:
            queue.push(work)
    assert drained(queue) == [*urgent, *batch]
    assert len(queue) == 0


def test_tenants_share_tokens_evenly_whatever_they_ask_for() -> None:
    queue = scheduler.Fair()
    for _ in range(400):
        queue.push(Work("many", cost=32))
    for _ in range(100):
        queue.push(Work("large", cost=128))
    served = {"many": 0, "large": 0}
    for _ in range(200):
        work = queue.pop()
        served[work.tenant] += work.cost
    assert served["many"] == pytest.approx(served["large"], rel=0.1)


def test_fifo_knows_no_rank() -> None:
    queue = scheduler.Fifo()
    works = [Work("b", urgent=False), Work("a"), Work("b", urgent=False)]
    for work in works:
        queue.push(work)
    assert queue.shed(Work("a")) is None
    assert drained(queue) == works


def test_a_full_queue_gives_up_batch_work_then_the_greediest_tenants() -> None:
    queue = scheduler.Fair()
    greedy = [Work("greedy") for _ in range(3)]
    batch = [Work("b", urgent=False) for _ in range(2)]
    for work in [*greedy, *batch]:
        queue.push(work)
    assert queue.shed(Work("a")) is batch[1]
    assert queue.shed(Work("b", urgent=False)) is None  # its own would be the newest
    assert queue.shed(Work("a")) is batch[0]
    assert queue.shed(Work("a")) is greedy[2]
    assert queue.shed(Work("greedy")) is None
    assert drained(queue) == greedy[:2]


def test_the_prefix_cache_knows_whole_blocks_by_all_that_is_before_them() -> None:
    cache = kv.KvCache(16 * 8)
    words = [f"w{n}" for n in range(40)]
    prefix = kv.prefix_of(words)
    assert len(prefix) == 2  # 8 words are no block
    assert cache.remembered(40, prefix) == 0
    assert cache.remembered(40, prefix) == 32
    other = kv.prefix_of(["other", *words[1:]])
    assert cache.remembered(40, other) == 0  # the second block is the same words after others
    assert (cache.queried_tokens, cache.hit_tokens) == (120, 32)
    assert len(kv.prefix_of(words[:32])) == 1  # the last token is always computed
    for number in range(8):
        cache.remembered(20, kv.prefix_of([f"new{number}"] * 20))
    assert cache.remembered(40, prefix) == 0  # its room was needed


# ------------------------------------------------------------------------------- with time


class Bench:
    """A GPU under virtual time, and when each of its sequences was done."""

    def __init__(self, profile: Any, **how: bool) -> None:
        self.clock = LoopClock(0.0)
        self.gpu = gpu.Gpu(self.clock, profile, seeded(1), **how)
        self.first_us: dict[str, int] = {}
        self.order: list[str] = []
        self._tasks: list[asyncio.Task[None]] = []

    def submit(self, name: str, prompt: int, tokens: int, **who: Any) -> Any:
        sequence = gpu.Generation(prompt, tokens, self.clock.now_us(), **who)
        self.gpu.submit(sequence)
        self._tasks.append(asyncio.create_task(self._follow(name, sequence)))
        return sequence

    async def _follow(self, name: str, sequence: Any) -> None:
        seen = 0
        while seen < sequence.max_tokens:
            now_seen = await sequence.beyond(seen)
            assert now_seen == seen + 1  # each token exactly once, recomputed or not
            if seen == 0:
                self.first_us[name] = self.clock.now_us() - sequence.arrived_us
            seen = now_seen
        self.order.append(name)

    async def all_done(self) -> None:
        await asyncio.gather(*self._tasks)


def bench(main: Callable[[Bench], Coroutine[Any, Any, None]], profile: Any, **how: bool) -> Bench:
    async def run() -> Bench:
        desk = Bench(profile, **how)
        loop = asyncio.create_task(desk.gpu.run())
        try:
            await main(desk)
            return desk
        finally:
            loop.cancel()

    return virtual_run(run())


@pytest.mark.parametrize(("in_flight", "within"), [(4, True), (5, False)])
def test_the_known_knee(in_flight: int, within: bool) -> None:
    """A first token after 80 ms × in flight, bound 360 ms: the capacity is exactly 4."""

    class Knee(gpu.Profile):  # type: ignore[name-defined, misc]
        def prefill_ms(self, tokens: int) -> float:
            return 80.0 * tokens

    async def main(desk: Bench) -> None:
        for number in range(in_flight):
            desk.submit(str(number), 1, 1)
        await desk.all_done()

    slowest_us = max(bench(main, Knee()).first_us.values())
    assert slowest_us == in_flight * 80_000
    assert (slowest_us <= 360_000) is within


def test_the_newest_gives_way_and_is_computed_anew() -> None:
    async def main(desk: Bench) -> None:
        for name in ("old", "middle", "new"):
            desk.submit(name, 10, 30)
        await desk.all_done()

    desk = bench(main, gpu.Profile(kv_tokens=16 * 5))  # three need nine blocks
    assert desk.order == ["old", "middle", "new"]
    assert desk.gpu.preemptions >= 2
    assert (desk.gpu.kv.held, len(desk.gpu.running)) == (0, 0)


def test_interactive_work_takes_the_place_of_batch_work() -> None:
    async def main(desk: Bench) -> None:
        for number in range(4):
            desk.submit(f"batch{number}", 10, 200, tenant="b", urgent=False)
        await sleep_us(desk.clock, 300_000)
        desk.submit("user", 10, 10, tenant="a")
        await desk.all_done()

    fair = bench(main, gpu.Profile(max_sequences=4))
    unfair = bench(main, gpu.Profile(max_sequences=4), fair=False)
    assert (fair.order[0], fair.gpu.preemptions) == ("user", 1)
    assert fair.first_us["user"] < 60_000
    assert (unfair.order[-1], unfair.gpu.preemptions) == ("user", 0)
    assert unfair.first_us["user"] > 3_000_000


def test_a_full_queue_sheds_batch_work_for_users() -> None:
    async def main(desk: Bench) -> None:
        desk.submit("running", 1, 10)
        await sleep_us(desk.clock, 1000)
        batch = gpu.Generation(1, 1, 0, tenant="b", urgent=False)
        desk.gpu.submit(batch)
        desk.submit("user", 1, 1)
        with pytest.raises(gpu.QueueFullError):
            await batch.beyond(0)
        with pytest.raises(gpu.QueueFullError):
            desk.gpu.submit(gpu.Generation(1, 1, 0, tenant="b", urgent=False))
        await desk.all_done()

    assert bench(main, gpu.Profile(max_sequences=1, max_waiting=1)).order == ["running", "user"]


@pytest.mark.parametrize("leaks", [False, True])
def test_a_leak_keeps_what_a_client_that_left_held(leaks: bool) -> None:
    async def main(desk: Bench) -> None:
        whole = desk.submit("whole", 20, 5)
        await desk.all_done()
        desk.gpu.leave(whole)
        assert desk.gpu.kv.used == 0  # in calm weather nothing leaks
        left = gpu.Generation(20, 400, desk.clock.now_us())
        desk.gpu.submit(left)
        await sleep_us(desk.clock, 200_000)
        desk.gpu.leave(left)
        desk.gpu.leave(left)

    cache = bench(main, gpu.Profile(), leaks=leaks).gpu.kv
    assert (cache.held, cache.leaked) == (0, 2 if leaks else 0)


def test_a_prefix_that_is_known_needs_less_prefill() -> None:
    words = [f"w{n}" for n in range(1000)]

    async def main(desk: Bench) -> None:
        for name in ("cold", "warm"):
            desk.submit(name, 1000, 1, prefix=kv.prefix_of(words))
            await desk.all_done()

    profile = gpu.Profile(max_batched_tokens=2000)
    desk = bench(main, profile)
    assert desk.first_us["cold"] == round(profile.prefill_ms(1000) * 1000)
    assert desk.first_us["warm"] == round(profile.prefill_ms(1000 - 992) * 1000)


def test_busy_is_the_share_of_the_last_second_that_was_spent_in_steps() -> None:
    shares: list[float] = []

    async def main(desk: Bench) -> None:
        desk.submit("one", 1, 100)
        await desk.all_done()
        shares.append(desk.gpu.busy_share())
        await sleep_us(desk.clock, 400_000)
        shares.append(desk.gpu.busy_share())
        await sleep_us(desk.clock, 700_000)
        shares.append(desk.gpu.busy_share())

    bench(main, gpu.Profile())
    assert shares == pytest.approx([1.0, 0.6, 0.0], abs=0.01)
