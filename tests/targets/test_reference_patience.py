"""How long a gateway waits within a stream: each wait, all of them, and who cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from reference_world import FOLDER

from survive.catalog import load_module
from survive.host.loop import virtual_run

asgi = load_module(FOLDER / "asgi.py")


async def _stream(
    waits_s: Sequence[float], until_s: float = 10.0, busy_s: float = 0.0
) -> tuple[str, float]:
    """How a stream ends whose pieces come after such waits, each passed on slowly; and when."""
    loop = asyncio.get_running_loop()
    try:
        async with asgi.Patience(2.0, until_s) as patience:
            for wait_s in waits_s:
                await asyncio.sleep(busy_s)
                patience.wait()
                await asyncio.sleep(wait_s)
                patience.over()
    except TimeoutError:
        return "timeout", loop.time()
    return "whole", loop.time()


@pytest.mark.parametrize(
    ("waits_s", "until_s", "busy_s", "expected"),
    [
        ([1.9, 1.9, 1.9], 10.0, 0.0, ("whole", 5.7)),
        ([1.0, 2.5, 0.1], 10.0, 0.0, ("timeout", 3.0)),  # two seconds after the first piece
        ([0.1] * 50, 3.0, 0.0, ("timeout", 3.0)),
        ([0.1, 0.1], 10.0, 4.0, ("whole", 8.2)),  # a slow reader is no slow writer
        ([0.1, 0.1], 6.0, 4.0, ("timeout", 6.0)),
        ([0.1], 0.0, 0.0, ("timeout", 0.0)),
    ],
)
def test_each_wait_and_the_whole_are_bounded(
    waits_s: list[float], until_s: float, busy_s: float, expected: tuple[str, float]
) -> None:
    how, at_s = virtual_run(_stream(waits_s, until_s, busy_s))
    assert (how, round(at_s, 6)) == expected


def test_a_cancellation_from_elsewhere_stays_one() -> None:
    async def main() -> bool:
        task = asyncio.create_task(_stream([1.5, 1.5]))
        await asyncio.sleep(1.0)
        task.cancel()
        await asyncio.wait({task})
        return task.cancelled()

    assert virtual_run(main())
