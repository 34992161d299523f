"""One probing of each kind, and what it proves: good, bad, or nothing (``ok`` is None).

Nothing is proven where the probe's own call failed in a way that says neither: a stranger without
an answer was neither let in nor refused. Only freshness is different: data that cannot be written
or read back in time is not fresh, whatever the reason.
"""

from __future__ import annotations

from dataclasses import dataclass

from survive.clock import Clock, sleep_us
from survive.contracts import Json
from survive.load.template import render_text
from survive.probe.calls import Answer, Caller, spoken
from survive.scenario.model import Metric, Probe
from survive.units import SECOND

POLL_US = 50_000
POLL_TIMEOUT_US = 2 * SECOND  # of one look; a canary is asked for again
SECOND_LOOK_US = SECOND  # a leak that needs a cache or a replica to catch up
OWN_LOOKS = 3
OWN_LOOK_EVERY_US = SECOND // 2


@dataclass(frozen=True, slots=True)
class Finding:
    """What one probing found; see docs/decisions/0004."""

    probe: str
    metric: Metric
    start_us: int  # intended
    end_us: int
    ok: bool | None
    why: str = ""
    value_us: int | None = None

    def to_json(self) -> dict[str, Json]:
        """The fields of its event."""
        return {
            "probe": self.probe,
            "metric": str(self.metric),
            "start_us": self.start_us,
            "end_us": self.end_us,
            "ok": self.ok,
            "value_us": self.value_us,
            "why": self.why,
        }


@dataclass(frozen=True, slots=True)
class Said:
    """A finding without its place in time."""

    ok: bool | None
    why: str = ""
    value_us: int | None = None


async def denied(caller: Caller, probe: Probe, canary: str) -> Said:
    """Good: refused as expected. An overloaded or dead target has not answered the question."""
    assert probe.ask is not None
    answer = await caller.ask(probe.ask, probe.within_us, canary=canary)
    if answer.status in probe.ask.status:
        return Said(True)
    if not answer.status or answer.status == 429 or answer.status >= 500:
        return Said(None, f"{answer.said()}: neither let in nor refused")
    wanted = ", ".join(map(str, sorted(probe.ask.status)))
    return Said(False, f"{answer.said()}, not {wanted}")


async def leaked(caller: Caller, probe: Probe, canary: str) -> Said:
    """Good: a whole 200 without the secret. What leaked leaked, however the answer ended."""
    assert probe.ask is not None
    answer = await caller.ask(probe.ask, probe.within_us, canary=canary)
    secret = render_text(probe.forbid, caller.variables)
    if secret.casefold() in spoken(answer.body).casefold():
        return Said(False, f"the answer ({answer.status}) holds what it must not")
    if answer.good:
        return Said(True)
    return Said(None, f"{answer.said()}: nothing was said")


async def echoes(caller: Caller, probe: Probe, word: str) -> tuple[int | None, Answer]:
    """How often an answer repeats a word that was asked for and never written: many search APIs
    repeat the query. A canary is found only where it stands more often. None: no answer told."""
    assert probe.read is not None
    answer = await caller.ask(probe.read, probe.within_us, canary=word)
    return (answer.count(word) if answer.good else None), answer


async def isolated(caller: Caller, probe: Probe, canary: str, clock: Clock, echo: int = 0) -> Said:
    """Good: the other identity is answered and never finds what the writer itself finds."""
    assert probe.write is not None and probe.read is not None
    written = await caller.ask(probe.write, probe.within_us, canary=canary)
    if not _committed(written):
        return Said(None, f"the write: {written.said()}")
    looks = [await caller.ask(probe.read, probe.within_us, canary=canary)]
    await sleep_us(clock, SECOND_LOOK_US)
    found = await _own_look(caller, probe, canary, clock, echo)
    looks.append(await caller.ask(probe.read, probe.within_us, canary=canary))
    if any(look.count(canary) > echo for look in looks):
        return Said(False, f"{probe.read.auth} reads what {probe.write.auth} wrote")
    unanswered = [look for look in looks if not look.good]
    if unanswered:
        return Said(None, f"{probe.read.auth}: {unanswered[0].said()}")
    if not found:
        return Said(None, f"{probe.write.auth} itself cannot find it: its absence proves nothing")
    return Said(True)


async def _own_look(caller: Caller, probe: Probe, canary: str, clock: Clock, echo: int) -> bool:
    """Whether the writer finds its own canary."""
    assert probe.write is not None and probe.read is not None
    read = probe.read.by(probe.write.auth)
    for number in range(OWN_LOOKS):
        if number:
            await sleep_us(clock, OWN_LOOK_EVERY_US)
        if (await caller.ask(read, probe.within_us, canary=canary)).count(canary) > echo:
            return True
    return False


async def fresh(caller: Caller, probe: Probe, canary: str, clock: Clock, echo: int = 0) -> Said:
    """Good: read within the limit from the commit on. The value is right to one look."""
    assert probe.write is not None and probe.read is not None
    written = await caller.ask(probe.write, probe.within_us, canary=canary)
    if not _committed(written):
        return Said(False, f"the write: {written.said()}")
    committed_us = clock.now_us()
    last = Answer(broken="never asked")
    while (left_us := committed_us + probe.within_us - clock.now_us()) > 0:
        began_us = clock.now_us()
        last = await caller.ask(probe.read, min(POLL_TIMEOUT_US, left_us), canary=canary)
        seen_us = clock.now_us()
        if last.count(canary) > echo and seen_us - committed_us <= probe.within_us:
            return Said(True, value_us=seen_us - committed_us)
        await clock.sleep_until(began_us + POLL_US)
    return Said(
        False, f"not read within {probe.within_us / SECOND:g} s; the last look {_end(last)}"
    )


def _end(answer: Answer) -> str:
    return "did not hold it" if answer.good else answer.said()


def _committed(answer: Answer) -> bool:
    return answer.whole and 200 <= answer.status < 300


def encrypted(before: dict[str, int], now: dict[str, int]) -> Said:
    """Good: no plain connection was begun since the last look, and encrypted ones were seen.

    Connections are kept: where none was ever encrypted, the plain ones still carry all there is.
    """
    plain = now.get("plain", 0) - before.get("plain", 0)
    if plain > 0:
        return Said(False, f"{plain} connection{'s' if plain > 1 else ''} in plain text")
    if now.get("tls", 0) > 0:
        return Said(True)
    if now.get("plain", 0) > 0:
        return Said(False, "every connection so far is in plain text")
    return Said(None, "nothing has connected yet")
