"""The autoscaler: what it decides, and that replicas follow."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from reference_world import FOLDER, TOKEN, World, chat, play, replica

from survive.catalog import load_module

autoscaler = load_module(FOLDER / "autoscaler.py")
NAMES = [f"inference-{number}" for number in range(3)]


def seen(**values: Any) -> Any:
    return autoscaler.Seen("", healthy=True, **values)


@pytest.mark.parametrize(
    ("serving", "wanted"),
    [
        ([], 1),
        ([seen(running=8)], 1),
        ([seen(running=8), seen(running=8)], 2),
        ([seen(running=16, waiting=4), seen(running=16)], 2),
        ([seen(running=16, waiting=9), seen(running=16, waiting=3)], 4),
        ([seen(running=9, kv=0.9), seen(running=9, kv=0.8)], 3),
        ([seen(running=1), seen(running=2)], 1),
    ],
)
def test_what_is_wanted(serving: list[Any], wanted: int) -> None:
    assert autoscaler.wanted_of(serving) == wanted


async def started(world: World, weak: str = "") -> None:
    for name in NAMES:
        world.boot(name, replica.make_app, AWAKE="2", LOAD_TIME="2s")
    world.boot(
        "autoscaler-0",
        autoscaler.make_app,
        INFERENCE=",".join(world.addresses[name] for name in NAMES),
        SURVIVE_ADMIN_TOKEN=TOKEN,
        SURVIVE_WEAKNESSES=weak,
        MIN_REPLICAS="2",
    )
    await world.sleep(3)


async def ready(world: World) -> float:
    return await world.metric("autoscaler-0", "autoscaler_ready_replicas")


async def queue_up(world: World, seconds: float) -> None:
    """More than two replicas can take: each has 16 places."""

    async def one(number: int) -> None:
        await world.ask(NAMES[number % 2], chat(tokens=40))

    async with asyncio.TaskGroup() as group:
        for _ in range(round(seconds)):
            for number in range(60):
                group.create_task(one(number))
            await world.sleep(1)


def test_a_queue_wakes_a_spare_and_calm_puts_it_to_sleep() -> None:
    async def main(world: World) -> None:
        await started(world)
        assert await ready(world) == 2
        await queue_up(world, 3)
        assert await ready(world) == 3
        await world.sleep(14)
        assert await ready(world) == 3  # it cools down first
        await world.sleep(6)
        assert await ready(world) == 2
        await world.sleep(20)
        assert await ready(world) == 2  # never under its least

    play(main)


@pytest.mark.parametrize(("weak", "within_s"), [("", 4.0), ("slow_scale_up", 0.0)])
def test_a_spare_takes_the_place_of_a_lost_one(weak: str, within_s: float) -> None:
    async def main(world: World) -> None:
        await started(world, weak)
        await world.sleep(13)
        assert await ready(world) == 2
        await world.set_gpu(NAMES[0], lost=True)
        await world.sleep(4)
        if within_s:
            assert await ready(world) == 2
            assert (await world.ask(NAMES[2], chat())).complete
            return
        await world.sleep(24)
        assert not (await world.ask(NAMES[2], chat())).complete  # 28 s, and nobody was woken
        await world.sleep(32)
        assert (await world.ask(NAMES[2], chat())).complete

    play(main)


def test_replicas_whose_metrics_hang_keep_their_last_ones() -> None:
    async def main(world: World) -> None:
        await started(world)
        down: Any = ("x-admin-token", TOKEN)
        for name in NAMES:
            world.nodes[name].kill()
            world.boot(name, replica.make_app, AWAKE="2", SURVIVE_ADMIN_TOKEN=TOKEN)
            body = b'{"metrics_down": true}'
            request = type(chat())("POST", "/admin/faults", (down,), body)
            assert (await world.ask(name, request)).status == 200
        await world.sleep(20)
        assert await ready(world) == 2

    play(main)
