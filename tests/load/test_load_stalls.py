"""A load worker notices that its loop stood still, and whose doing it was."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from loadtools import Server, load_process, make_kind, make_plan, raw_server

from survive.load.stalls import Stalls
from survive.record.samples import Series
from survive.units import MS, SECOND

# Above every ordinary process of one core, for so many seconds.
HOG = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    pass
"""


def may_hog() -> bool:
    done = subprocess.run(
        [sys.executable, "-c", HOG, str(min(os.sched_getaffinity(0))), "0"],
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


def test_a_stall_is_others_doing_if_most_of_it_was_a_wait_for_a_core(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = iter([0, 100, 21_000_100, 21_000_200, 30_000_000])
    monkeypatch.setattr(Stalls, "_run_delay_ns", lambda _: next(told))
    stalls = Stalls()
    stalls.look()  # what was waited before is not the stall's
    stalls.seen(40_000_000)
    stalls.look()
    stalls.seen(20_000_000)
    assert stalls.take() == ([20_000], [40_000])
    assert stalls.take() == ([], [])


def test_a_kernel_that_does_not_say_leaves_all_stalls_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("survive.load.stalls._SCHEDSTAT", "/nowhere")
    stalls = Stalls()
    stalls.seen(20_000_000)
    assert stalls.take() == ([20_000], [])


@pytest.mark.skipif(not may_hog(), reason="may not use real-time scheduling")
def test_a_frozen_worker_and_one_whose_core_was_taken_are_told_apart(tmp_path: Path) -> None:
    asyncio.run(_stopped_and_preempted(tmp_path))


async def _stopped_and_preempted(tmp_path: Path) -> None:
    kinds = [make_kind(timeout_us=5 * SECOND)]
    plan = make_plan(kinds, rps=200, for_us=2 * SECOND)
    core = max(os.sched_getaffinity(0))
    async with (
        raw_server(Server().serve) as address,
        load_process(tmp_path, plan, kinds, address, lambda: os.sched_setaffinity(0, {core})) as (
            load,
            listening,
        ),
    ):
        await asyncio.wait_for(load.ready.wait(), 20)
        load.start()
        await asyncio.sleep(load.origin_us / 1e6 + 0.3 - time.monotonic())
        load.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(0.35)
        load.process.send_signal(signal.SIGCONT)
        await asyncio.sleep(0.4)
        hog = await asyncio.create_subprocess_exec(sys.executable, "-c", HOG, str(core), "0.25")
        assert await asyncio.wait_for(hog.wait(), 20) == 0
        assert await asyncio.wait_for(load.process.wait(), 20) == 0
        await listening
    assert load.tally.quantile(Series.STALL, 1.0) >= 290 * MS
    assert load.tally.quantile(Series.AWAY, 1.0) >= 290 * MS
    assert load.tally.quantile(Series.PREEMPTED, 1.0) >= 150 * MS
