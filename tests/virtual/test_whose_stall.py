"""A load that stands still and a target that does, in the same place of the same run.

The whole pipeline on the virtual host; only the load is put to sleep from outside, as SIGSTOP does,
and tells of it as a real load worker's loop does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from survive.host import virtual
from survive.host.command import run_scenario
from survive.load.memory import MemoryLoad
from survive.units import SECOND

SCENARIO = """
survive: 1
name: stalls
target: reference
seed: {seed}
requests:
  search: {{get: "/v1/search?q=gpu", timeout: 2s}}
load:
  phases:
    - {{name: flat, rate: 40/s, for: 3s}}
    - {{name: rise, ramp_to: 60/s, for: 12s}}
faults:
  it: {{{fault}, at: rise + 1s, for: 6s}}
objectives:
  quick: {{metric: latency.p90, max: 400ms, during: each fault}}
"""
HARMLESS = "kind: network.latency, link: gateway -> retrieval, with: {latency: 20ms}"
FROZEN = "kind: node.pause, service: gateway"
SLOW = "kind: network.latency, link: gateway -> retrieval, with: {latency: 700ms}"
SHORT, LONG = (6.2, 7.9), (4.1, 9.9)  # of the fault's 4 to 10 s


@dataclass
class Asleep:
    """Clock and transport of who notices nothing between two moments."""

    inner: object
    clock: object
    span_us: tuple[int, int]

    async def wake(self):
        if self.span_us[0] <= self.clock.now_us() < self.span_us[1]:
            await self.clock.sleep_until(self.span_us[1])

    def now_us(self):
        return self.clock.now_us()

    async def sleep_until(self, t_us):
        await self.clock.sleep_until(t_us)
        await self.wake()

    async def call(self, *args, **more):
        await self.wake()
        answer = await self.inner.call(*args, **more)
        await self.wake()
        return Answer(answer, self.wake)


@dataclass
class Answer:
    inner: object
    wake: object

    def __getattr__(self, name):
        return getattr(self.inner, name)

    async def chunks(self):
        async for chunk in self.inner.chunks():
            await self.wake()
            yield chunk


def stalled(span_s):
    span_us = tuple(round(s * SECOND) for s in span_s)

    class Stalled(MemoryLoad):
        def __init__(self, plan, kinds, transport, clock, address):
            sleeper = Asleep(transport, clock, span_us)
            super().__init__(plan, kinds, sleeper, sleeper, address)
            self._filing.away(*span_us)

    return Stalled


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    ("fault", "asleep", "code"),
    [
        (HARMLESS, None, 0),
        (HARMLESS, SHORT, 3),
        (HARMLESS, LONG, 3),
        (FROZEN, None, 1),
        (FROZEN, SHORT, 1),  # the rest of its 6 s was seen by a load that was awake
        (FROZEN, LONG, 3),  # nobody was awake to see it
        (SLOW, None, 1),
        (SLOW, SHORT, 1),
    ],
)
def test_whose_stall_it_was(fault, asleep, code, seed, tmp_path, monkeypatch):
    if asleep:
        monkeypatch.setattr(virtual, "MemoryLoad", stalled(asleep))
    (tmp_path / ".git").mkdir()
    file = tmp_path / "stalls.survive.yaml"
    file.write_text(SCENARIO.format(seed=seed, fault=fault))
    found = run_scenario(
        file, target=None, sets=[], profile=None, out=tmp_path / "runs", form="json", virtual=True
    )
    (folder,) = (tmp_path / "runs" / "stalls").glob("2*")
    verdict = json.loads((folder / "verdict.json").read_text())
    assert (found, verdict["faults"][0]["proof"]) == (code, "proven"), verdict["reasons"]
