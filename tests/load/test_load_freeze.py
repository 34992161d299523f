"""The promise of the whole tool: a frozen server cannot hide behind waiting clients."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from loadtools import answer, load_process, make_kind, make_plan, planned, raw_server, read_request

from survive.record.samples import Series
from survive.units import SECOND

FREEZE_AT_S, FREEZE_S = 3.0, 2.0


@pytest.mark.alone
def test_a_two_second_freeze_shows_in_latency_and_not_in_service_time(tmp_path: Path) -> None:
    asyncio.run(_freeze(tmp_path))


async def _freeze(tmp_path: Path) -> None:
    kinds = [make_kind(timeout_us=10 * SECOND)]
    plan = make_plan(kinds, rps=200, for_us=8 * SECOND, lanes=20)
    served = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        while True:
            await read_request(reader)
            served += 1
            writer.write(answer(b"hello"))

    async with (
        raw_server(handler) as address,
        load_process(tmp_path, plan, kinds, address) as (load, listening),
    ):
        await asyncio.wait_for(load.ready.wait(), 20)
        load.start(in_us=200_000)
        freeze_at = load.origin_us / 1e6 + FREEZE_AT_S
        await asyncio.sleep(freeze_at - time.monotonic())
        began = time.monotonic()
        time.sleep(freeze_at + FREEZE_S - began)  # noqa: ASYNC251  the freeze is the point
        assert await asyncio.wait_for(load.process.wait(), 20) == 0
        await listening
        tally = load.tally

    total = planned(plan)
    tally.assert_conserved(total)
    assert tally.outcomes() == {"ok": total}
    assert tally.n(Series.ATTEMPT) == served == total
    # Truth of the realised schedule: intended starts are 2.5 + 5k ms; those in the freeze wait to
    # its end, so of 1,600 requests 400 wait 2000 … 0 ms and the 160th worst waits 1,200 ms.
    assert abs(tally.quantile(Series.LATENCY, 0.90) - 1_200_000) <= 12_000
    assert tally.quantile(Series.SERVICE_TIME, 0.90) < 20_000
    # The server's doing, not ours: send lag is a small part of what was waited for a lane.
    waited = tally.quantile(Series.LANE_WAIT, 0.90)
    assert tally.quantile(Series.SEND_LAG, 0.99) < waited / 20
    assert tally.n(Series.STARVED) == 0
