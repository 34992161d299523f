"""How a run ends when its record cannot be written any more."""

from __future__ import annotations

import asyncio
import errno
from types import SimpleNamespace

import pytest

from survive.clock import LoopClock
from survive.errors import ExitCode, SurviveError
from survive.host.run import Run, Stop

UNPROVEN = {"fault": "slow", "why": "still seen active", "by_hand": "toxiproxy-cli reset"}


class FullDisk:
    """A writer that writes the first event and no more."""

    def __init__(self):
        self.written = 0

    def event(self, name, fields, t_us):
        self.written += 1
        if self.written > 1:
            raise OSError(errno.ENOSPC, "no space left on device")


@pytest.mark.parametrize(("left", "code"), [
    ([], ExitCode.INCONCLUSIVE), ([UNPROVEN], ExitCode.HEAL_UNPROVEN),
])  # fmt: skip
def test_an_unproven_heal_is_told_even_without_a_record(left, code):
    stop = Stop()
    stop.ask("signal", signal="SIGINT")
    stops = []

    class Agent:
        async def start_target(self):
            await asyncio.Event().wait()

        async def stop(self):
            stops.append(1)
            return left

    async def never():
        await asyncio.Event().wait()

    async def perform():
        host = SimpleNamespace(name="real", agent=Agent(), clock=LoopClock(0.0), agent_gone=never)
        plan = SimpleNamespace(name="x", target="t", seed=1, scale="1")
        scenario = SimpleNamespace(faults={})
        display = SimpleNamespace(event=lambda *_: None)
        await Run(scenario, plan, None, host, FullDisk(), display, stop).perform()

    with pytest.raises(SurviveError, match="record cannot be written") as caught:
        asyncio.run(perform())
    assert caught.value.exit_code is code
    assert stops == [1]
    if left:
        assert "the heal of slow is not proven: still seen active" in caught.value.message
        assert caught.value.hint == "by hand: toxiproxy-cli reset"
