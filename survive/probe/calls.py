"""One call of a probe, whole, and what it came to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from survive.clock import seeded
from survive.contracts import Json
from survive.load.template import render_call
from survive.scenario.model import ProbeCall
from survive.transport import CallFailedError, Headers, Request, Transport

MAX_BODY = 1 << 20  # of an answer; what is longer is no answer to a probe
CANARY_LETTERS = 12
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"


@dataclass(slots=True)
class Answer:
    """What came back. ``status`` 0 = no answer at all; ``broken`` says why it is not whole."""

    status: int = 0
    body: bytes = b""
    broken: str = ""

    @property
    def whole(self) -> bool:
        """Head and body came to their end."""
        return self.status != 0 and not self.broken

    @property
    def good(self) -> bool:
        """A whole 200."""
        return self.whole and self.status == 200

    def count(self, word: str) -> int:
        """How often a whole 200 holds a word."""
        return self.body.count(word.encode()) if self.good else 0

    def said(self) -> str:
        """For people: ``answered 503``, ``no answer: timeout``."""
        if not self.status:
            return f"no answer: {self.broken}"
        return f"answered {self.status}" + (f", then {self.broken}" if self.broken else "")


@dataclass(frozen=True, slots=True)
class Caller:
    """The way of probes to the target. ``keys`` by identity, ``bearer`` among them."""

    transport: Transport
    entry: str
    variables: Mapping[str, Json] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)

    async def ask(
        self, call: ProbeCall, within_us: int, *, canary: str = "", headers: Headers = ()
    ) -> Answer:
        """One call to the target's entry; never raises for what the target does."""
        rendered = render_call(call, self.variables, self.keys, canary)
        request = Request(
            rendered.method, rendered.path, (*rendered.headers, *headers), rendered.body
        )
        return await fetch(self.transport, self.entry, request, within_us)


async def fetch(transport: Transport, address: str, request: Request, within_us: int) -> Answer:
    """A request and its whole answer, within a time."""
    answer = Answer()
    try:
        async with asyncio.timeout(within_us / 1e6):
            await _read(transport, address, request, within_us / 1e6, answer)
    except CallFailedError as error:
        answer.broken = str(error.how)
    except TimeoutError:
        answer.broken = "timeout"
    return answer


async def _read(
    transport: Transport, address: str, request: Request, timeout_s: float, answer: Answer
) -> None:
    response = await transport.call(address, request, timeout_s=timeout_s)
    answer.status = response.status
    body = bytearray()
    try:
        async for chunk in response.chunks():
            body += chunk
            answer.body = bytes(body[:MAX_BODY])
            if len(body) > MAX_BODY:
                answer.broken = f"more than {MAX_BODY >> 20} MiB"
                return
    finally:
        await response.close()


def canary_of(seed: int, probe: str, number: int, kind: str = "canary") -> str:
    """A word that nobody else says: letters only, so that a full-text search finds it as one."""
    chance = seeded(seed, kind, probe, number)
    return "".join(chance.choices(_ALPHABET, k=CANARY_LETTERS))


def spoken(body: bytes) -> str:
    """What an answer says in words: its bytes, and all text of its JSON or events, joined.

    The pieces of a stream are joined, since a word may be cut anywhere between them; JSON escapes
    are undone.
    """
    text = body.decode("utf-8", "replace")
    events = [line[5:].strip() for line in text.splitlines() if line.startswith("data:")]
    pieces: list[str] = []
    for part in events or [text]:
        try:
            pieces += _content(json.loads(part))
        except (ValueError, RecursionError):
            continue
    return "\n".join((text, "".join(pieces)))


def _content(value: Json) -> Iterator[str]:
    """Every text of a JSON value; of an event only its content, so that pieces join."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        choices = value.get("choices")
        for item in (choices,) if choices else value.values():
            yield from _content(item)
        return
    elif isinstance(value, list):
        for item in value:
            yield from _content(item)
