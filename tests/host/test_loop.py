from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from survive.clock import LoopClock, seeded, sleep_us
from survive.host import loop as loop_module
from survive.host.loop import DeadlockError, RunawayError, VirtualLoop, virtual_run


def test_an_hour_passes_exactly_and_at_once() -> None:
    async def main() -> tuple[int, float]:
        clock = LoopClock(0.0)
        for _ in range(3600):
            await sleep_us(clock, 1_000_000)
        return clock.now_us(), asyncio.get_running_loop().time()

    began = time.monotonic()
    assert virtual_run(main()) == (3_600_000_000, 3600.0)
    assert time.monotonic() - began < 5


def test_microseconds_never_drift() -> None:
    async def main() -> int:
        clock = LoopClock(0.0)
        for t_us in range(7, 70_000, 7):
            await clock.sleep_until(t_us)
            assert clock.now_us() == t_us
        return clock.now_us()

    assert virtual_run(main()) == 69_993


@pytest.mark.parametrize("wanted_s", [1.0, 0.1 + 0.2, 1 / 3, 1.0 + 3e-10, 2.0 - 4e-10])
def test_who_asks_again_until_its_moment_has_come_is_let_go(wanted_s: float) -> None:
    """A moment between two nanoseconds: time must not stand still just before it."""

    async def main() -> int:
        loop = asyncio.get_running_loop()
        come = asyncio.Event()
        looks = 0

        def look() -> None:
            nonlocal looks
            looks += 1
            assert looks < 10
            if wanted_s > loop.time():
                loop.call_at(wanted_s, look)
            else:
                come.set()

        look()
        await come.wait()
        return round(loop.time() * 1e6)

    assert virtual_run(main()) == round(wanted_s * 1e6)


async def _trace(seed: int) -> list[tuple[int, int]]:
    clock = LoopClock(0.0)
    seen: list[tuple[int, int]] = []
    queue: asyncio.Queue[int] = asyncio.Queue()

    async def worker(number: int) -> None:
        random = seeded(seed, "worker", number)
        for _ in range(20):
            await sleep_us(clock, random.randrange(1, 5_000))
            seen.append((clock.now_us(), number))
            queue.put_nowait(number)

    async def reader() -> None:
        while True:
            number = await queue.get()
            seen.append((clock.now_us(), 100 + number))

    reading = asyncio.create_task(reader())
    await asyncio.gather(*(worker(n) for n in range(10)))
    reading.cancel()
    return seen


def test_same_coroutine_same_order() -> None:
    assert virtual_run(_trace(1)) == virtual_run(_trace(1))
    assert virtual_run(_trace(1)) != virtual_run(_trace(2))


def test_a_deadlock_names_who_waits_and_where() -> None:
    async def waits_for_ever() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.create_task(waits_for_ever(), name="the-waiter")
        await task

    with pytest.raises(DeadlockError, match=r"the-waiter \(.*waits_for_ever at .*test_loop.py:"):
        virtual_run(main())


def test_time_without_end_is_an_error() -> None:
    async def main() -> None:
        while True:  # noqa: ASYNC110 - it must never end
            await asyncio.sleep(10)

    with pytest.raises(RunawayError, match="passed 3600 s"):
        virtual_run(main(), limit_s=3600)


@pytest.mark.parametrize("next_to_nothing_s", [0, 1e-15, 4e-10])
def test_turns_without_time_are_an_error(
    monkeypatch: pytest.MonkeyPatch, next_to_nothing_s: float
) -> None:
    """Be it that somebody spins, or waits again and again for less than a clock can tell."""
    monkeypatch.setattr(loop_module, "MAX_IDLE_TURNS", 900)

    async def main() -> None:
        await asyncio.sleep(5)
        while True:  # noqa: ASYNC110 - it must never end
            await asyncio.sleep(next_to_nothing_s)

    with pytest.raises(RunawayError, match="without time passing"):
        virtual_run(main())


def test_leftovers_are_cancelled() -> None:
    ended: list[str] = []

    async def background() -> None:
        try:
            await asyncio.sleep(1e6)
        finally:
            await asyncio.sleep(1)
            ended.append("background")

    async def main() -> str:
        task = asyncio.create_task(background())
        await asyncio.sleep(1)
        assert not task.done()
        return "done"

    assert virtual_run(main()) == "done"
    assert ended == ["background"]


def test_errors_of_the_coroutine_come_out() -> None:
    async def main() -> None:
        await asyncio.sleep(1)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        virtual_run(main())


def test_timeouts_fire_in_virtual_time() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30):
                await asyncio.sleep(31)
        return asyncio.get_running_loop().time()

    assert virtual_run(main()) == 30.0


def test_a_signal_still_reaches_the_loop() -> None:
    import os
    import signal

    async def main() -> int:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, stop.set)
        os.kill(os.getpid(), signal.SIGUSR1)
        turns = 0
        while not stop.is_set():
            await asyncio.sleep(1)
            turns += 1
        asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR1)
        return turns

    assert 0 < virtual_run(main()) < 1000


def test_cancelled_timers_do_not_pile_up() -> None:
    loop = VirtualLoop()
    loop.call_later(1.0, loop.stop)
    for number in range(1000):
        loop.call_later(1000.0 + number, print).cancel()
    loop.run_forever()
    kept = len(loop._scheduled)
    loop.close()
    assert kept <= 100


def test_a_call_that_raises_is_reported_and_the_loop_goes_on() -> None:
    loop = VirtualLoop()
    reported: list[Any] = []
    loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))
    loop.call_soon(int, "no number")
    cancelled = loop.call_soon(int, "nor this")
    cancelled.cancel()
    loop.call_later(0.5, loop.stop)
    loop.run_forever()
    loop.close()
    assert cancelled.cancelled()
    assert [type(error) for error in reported] == [ValueError]


def test_a_generator_that_is_dropped_half_way_is_closed() -> None:
    """asyncio closes it through ``call_soon_threadsafe``."""
    closed: list[float] = []

    async def frames() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.append(asyncio.get_running_loop().time())

    async def main() -> None:
        async for _ in frames():
            break
        await asyncio.sleep(1)

    virtual_run(main())
    assert closed == [0.0]
