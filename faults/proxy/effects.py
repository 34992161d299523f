"""What may happen to an HTTP answer: whom it hits, and what becomes of the body. No framing here.

Both hosts use this very file: the embedded proxy frames it for the wire (``http1.py``), the virtual
host for ASGI. How to write the next one: a dataclass whose fields are the API's attributes, with
``applies`` (which answers it can act on) and ``effect``, and a line in ``HTTP_TOXICS``.

Every request that a toxic is meant for is drawn once, in the order of arrival, by a generator of
its own: the same seed and the same number of the request give the same draw, whatever the
connection, on either host. A control share is drawn apart and never hit.

A toxic for the ``first`` so many requests keeps the looks of a proof out of the sum: a request
whose header LOOK names it is drawn apart, as long as the toxic stands, whatever it has hit already.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from random import Random
from typing import Any, ClassVar, TypeAlias

HELD = math.inf  # until the toxic is taken off
HELD_MAX = 1024  # pieces held back before the service has to wait
WHOLE_MAX = 1 << 20  # bytes of one event or document that are kept together; longer ones pass
TICK_S = 1e-6  # a timer may fire so much before its time, a virtual clock being in whole ns
PACE_S = 0.05  # a paced answer leaves in pieces of this time
PPM = 1_000_000
LOOK = "x-survive-look"


class Mark(Enum):
    """What an answer may end with."""

    END = "end"  # its regular end
    CUT = "cut"  # the connection closes before it


Item: TypeAlias = "bytes | Mark"
Outs: TypeAlias = Sequence[tuple[float, Item]]  # (when it leaves, loop seconds; what)
Headers: TypeAlias = Mapping[str, str]  # lower-case names


class Effect:
    """What happens to one body. This one: nothing."""

    def body(self, data: bytes, at: float) -> Outs:
        """A piece came ``at``."""
        return [(at, data)]

    def end(self, at: float) -> Outs:
        """The body is whole."""
        return [*((at, rest) for rest in (self.rest(),) if rest), (at, Mark.END)]

    def rest(self) -> bytes:
        """Take what is kept for want of its other half."""
        return b""


class _Late(Effect):
    """The first piece leaves later, and so does what follows."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s

    def body(self, data: bytes, at: float) -> Outs:
        delay_s, self._delay_s = self._delay_s, 0.0
        return [(at + delay_s, data)]


class _Paced(Effect):
    """So many bytes a second, in small pieces."""

    def __init__(self, bytes_per_s: int) -> None:
        self._rate = bytes_per_s
        self._free = 0.0

    def body(self, data: bytes, at: float) -> Outs:
        size = max(1, round(self._rate * PACE_S))
        outs: list[tuple[float, Item]] = []
        self._free = max(self._free, at)
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            self._free += len(piece) / self._rate
            outs.append((self._free, piece))
        return outs


class _Half(Effect):
    """The document ends in its middle, and says that it is whole."""

    def __init__(self) -> None:
        self._kept = b""
        self._too_long = False

    def body(self, data: bytes, at: float) -> Outs:
        self._kept += data
        self._too_long = self._too_long or len(self._kept) > WHOLE_MAX
        return [(at, self.rest())] if self._too_long else []

    def end(self, at: float) -> Outs:
        kept = self.rest()
        return [*([(at, kept[: len(kept) // 2])] if len(kept) > 1 else []), (at, Mark.END)]

    def rest(self) -> bytes:
        kept, self._kept = self._kept, b""
        return kept


_BLANK = re.compile(rb"\r\n\r\n|\n\n|\r\r")  # the end of an event, HTML standard 9.2.6
_DATA = re.compile(rb"(?:^|[\r\n])data:")


class _OnEvent(Effect):
    """Something happens at one event of a stream; the others pass, each as a whole."""

    def __init__(self, after: int, act: Callable[[bytes, float], Outs]) -> None:
        self._left = after
        self._act = act
        self._kept = b""
        self._over = False

    def body(self, data: bytes, at: float) -> Outs:
        if self._over:
            return [(at, data)]
        self._kept += data
        outs: list[tuple[float, Item]] = []
        while not self._over and (blank := _BLANK.search(self._kept)):
            event, self._kept = self._kept[: blank.end()], self._kept[blank.end() :]
            outs += self._event(event, at)
        if self._over or len(self._kept) > WHOLE_MAX:
            self._over = True
            outs += [(at, rest) for rest in (self.rest(),) if rest]
        return outs

    def _event(self, event: bytes, at: float) -> Outs:
        if not _DATA.search(event):  # a comment that keeps the connection alive
            return [(at, event)]
        self._left -= 1
        if self._left >= 0:
            return [(at, event)]
        self._over = True
        return self._act(event, at)

    def rest(self) -> bytes:
        kept, self._kept = self._kept, b""
        return kept


@dataclass(frozen=True, slots=True)
class HttpToxic:
    """What all share: which requests are meant, how many are never hit, and how many are at most.

    ``control_ppm`` in millionths of all requests; ``first`` 0 = any number; ``expires_ms`` after
    it was put on, 0 = never. ``resizes``: the body may change its length.
    """

    resizes: ClassVar[bool] = False

    method: str = "POST"
    path: str = "/v1/chat/completions"
    control_ppm: int = 0
    first: int = 0
    expires_ms: int = 0

    def applies(self, status: int, headers: Headers) -> bool:
        """It can act on this answer."""
        return True

    def answer(self) -> tuple[int, dict[str, str], bytes] | None:
        """Status, headers and body of an answer in the service's place; None = it is asked."""
        return None

    def effect(self) -> Effect:
        """A fresh one, for one answer."""
        return Effect()


@dataclass(frozen=True, slots=True)
class HttpStatus(HttpToxic):
    """Answer in the service's place, which never sees the request."""

    status: int = 503
    retry_after_s: int = 0  # 0 = no such header

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """See HttpToxic."""
        body = json.dumps({"error": {"message": "injected", "code": self.status}}).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body))}
        if self.retry_after_s:
            headers["retry-after"] = str(self.retry_after_s)
        return self.status, headers, body


@dataclass(frozen=True, slots=True)
class HttpSlowLoris(HttpToxic):
    """The body leaves at ``bytes_per_s``."""

    bytes_per_s: int = 100

    def effect(self) -> Effect:
        """See HttpToxic."""
        return _Paced(max(1, self.bytes_per_s))


@dataclass(frozen=True, slots=True)
class HttpHalfJson(HttpToxic):
    """A JSON document loses its second half."""

    resizes: ClassVar[bool] = True

    def applies(self, status: int, headers: Headers) -> bool:
        """See HttpToxic."""
        return status == 200 and _plain(headers, "application/json")

    def effect(self) -> Effect:
        """See HttpToxic."""
        return _Half()


@dataclass(frozen=True, slots=True)
class _OnStream(HttpToxic):
    """Of event streams only, and of those that can be read. ``after`` counts data events."""

    after: int = 0

    def applies(self, status: int, headers: Headers) -> bool:
        """See HttpToxic."""
        return status == 200 and _plain(headers, "text/event-stream")

    def effect(self) -> Effect:
        """See HttpToxic."""
        return _OnEvent(self.after, self.act)

    def act(self, event: bytes, at: float) -> Outs:
        """What becomes of the event after ``after`` others."""
        return [(at, event)]


@dataclass(frozen=True, slots=True)
class SseSlowFirst(_OnStream):
    """The head passes at once, the body ``delay`` ms later."""

    delay: int = 0

    def effect(self) -> Effect:
        """See HttpToxic."""
        return _Late(self.delay / 1000)


@dataclass(frozen=True, slots=True)
class SseStall(_OnStream):
    """The stream pauses for ``lasts`` ms; 0 = until the toxic goes."""

    lasts: int = 0

    def act(self, event: bytes, at: float) -> Outs:
        """See _OnStream."""
        return [(at + self.lasts / 1000 if self.lasts else HELD, event)]


@dataclass(frozen=True, slots=True)
class SseCut(_OnStream):
    """The stream breaks off: the connection closes, or (``clean`` 1) the body just ends."""

    resizes: ClassVar[bool] = True
    clean: int = 0

    def act(self, event: bytes, at: float) -> Outs:
        """See _OnStream."""
        return [(at, Mark.END if self.clean else Mark.CUT)]


@dataclass(frozen=True, slots=True)
class SseMalformed(_OnStream):
    """One event loses the second half of its data."""

    resizes: ClassVar[bool] = True

    def act(self, event: bytes, at: float) -> Outs:
        """See _OnStream."""
        text = event.rstrip(b"\r\n")
        return [(at, text[: (len(text) + 6) // 2] + event[len(text) :])]


@dataclass(frozen=True, slots=True)
class SseDuplicate(_OnStream):
    """One event comes twice."""

    resizes: ClassVar[bool] = True

    def act(self, event: bytes, at: float) -> Outs:
        """See _OnStream."""
        return [(at, event), (at, event)]


@dataclass(frozen=True, slots=True)
class SseError(_OnStream):
    """An error object inside the 200, then the end."""

    resizes: ClassVar[bool] = True

    def act(self, event: bytes, at: float) -> Outs:
        """See _OnStream."""
        error = {"error": {"message": "injected", "type": "server_error", "code": 500}}
        return [(at, b"data: " + json.dumps(error).encode() + b"\n\n"), (at, Mark.END)]


HTTP_TOXICS: dict[str, type[HttpToxic]] = {
    "http_status": HttpStatus,
    "http_slow_loris": HttpSlowLoris,
    "http_half_json": HttpHalfJson,
    "sse_slow_first": SseSlowFirst,
    "sse_stall": SseStall,
    "sse_cut": SseCut,
    "sse_malformed": SseMalformed,
    "sse_duplicate": SseDuplicate,
    "sse_error": SseError,
}


def _plain(headers: Headers, kind: str) -> bool:
    coding = headers.get("content-encoding", "identity").strip().lower()
    return headers.get("content-type", "").lower().startswith(kind) and coding == "identity"


def made(type_: str, wanted: Mapping[str, object], old: HttpToxic | None = None) -> HttpToxic:
    """A toxic from the API's attributes; unknown ones are passed over. Raises ValueError."""
    cls = HTTP_TOXICS[type_]
    values = asdict(old or cls())
    for one in fields(cls):
        value = wanted.get(one.name)
        if value is None:
            continue
        if type(value) is not type(values[one.name]) or (isinstance(value, int) and value < 0):
            raise ValueError(f"attribute {one.name} must be like {values[one.name]!r}")
        values[one.name] = value
    return cls(**values)


@dataclass(slots=True)
class Tally:
    """Of the requests that a toxic was meant for: how many came, and what became of them."""

    seen: int = 0
    hits: int = 0
    controls: int = 0  # kept apart, never hit
    missed: int = 0  # hit, yet the answer was none that it can act on
    looks: int = 0  # of the proof, hit beside the first so many


@dataclass(slots=True)
class Standing:
    """One toxic on one listener."""

    name: str
    type: str
    share: float
    toxic: HttpToxic
    chance: Random
    looks: Random
    since: float
    tally: Tally = field(default_factory=Tally)

    def to_json(self) -> dict[str, Any]:
        """As Toxiproxy shows a toxic, with what was counted."""
        return {"name": self.name, "type": self.type, "stream": "downstream",
                "toxicity": self.share, "attributes": asdict(self.toxic),
                "counts": asdict(self.tally)}  # fmt: skip

    def draws(self, method: str, path: str, now: float, look: str) -> bool:
        """Count a request and say whether it is hit. ``look``: whose proof it is of, if any's."""
        toxic = self.toxic
        if (method, path.partition("?")[0]) != (toxic.method, toxic.path) or self.over(now):
            return False
        if toxic.first and look:
            return look == self.name and self.looks.random() < self.share
        if toxic.first and self.tally.hits >= toxic.first:
            return False
        self.tally.seen += 1
        draw = self.chance.random()
        if draw >= 1 - toxic.control_ppm / PPM:
            self.tally.controls += 1
            return False
        return draw < self.share

    def hits(self, look: str) -> None:
        """Count a hit."""
        if self.toxic.first and look:
            self.tally.looks += 1
        else:
            self.tally.hits += 1

    def over(self, now: float) -> bool:
        """Its time is up."""
        lasts_ms = self.toxic.expires_ms
        return bool(lasts_ms) and now - self.since >= lasts_ms / 1000


class Faults:
    """The HTTP toxics of one listener. A request is hit by one of them at most: the eldest."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.standing: dict[str, Standing] = {}

    def put(self, name: str, type_: str, share: float, toxic: HttpToxic) -> None:
        """Add one, or change one in place: its draws and counts go on."""
        old = self.standing.get(name)
        if old is not None and old.type == type_:
            old.toxic, old.share = toxic, share
            return
        now = asyncio.get_running_loop().time()
        chance, looks = Random(f"{self._seed}:{name}"), Random(f"{self._seed}:{name}:looks")
        self.standing[name] = Standing(name, type_, share, toxic, chance, looks, now)

    def draw(self, method: str, path: str, look: str = "") -> Standing | None:
        """The toxic that hits this request. Each one counts and draws, whoever hits."""
        now = asyncio.get_running_loop().time()
        hitting = [one for one in self.standing.values() if one.draws(method, path, now, look)]
        if not hitting:
            return None
        hitting[0].hits(look)
        return hitting[0]

    def to_json(self) -> list[Any]:
        """As Toxiproxy shows toxics, with what was counted."""
        return [one.to_json() for one in self.standing.values()]


class Hit:
    """One answer that is hit: its effect, and what it holds back, in order.

    ``out`` gets what leaves; nothing follows a Mark.
    """

    __slots__ = ("_effect", "_healed", "_held", "_last", "_loop", "_out", "_over", "_timer",
                 "done", "standing")  # fmt: skip

    def __init__(self, standing: Standing, out: Callable[[Item], None]) -> None:
        self.standing = standing
        self.done = False  # its Mark has left
        self._effect = standing.toxic.effect()
        self._out = out
        self._held: deque[tuple[float, Item]] = deque()
        self._last = 0.0
        self._over = False  # its Mark is on the way
        self._healed = False
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def full(self) -> bool:
        """The service has to wait."""
        return len(self._held) >= HELD_MAX

    def body(self, data: bytes) -> None:
        """The service sent this much more."""
        at = self._loop.time()
        self._put([(at, data)] if self._healed else self._effect.body(data, at))

    def end(self) -> None:
        """The service's answer is whole."""
        at = self._loop.time()
        self._put([(at, Mark.END)] if self._healed else self._effect.end(at))

    def broken(self) -> None:
        """The service's answer broke off."""
        rest, at = self._effect.rest(), self._loop.time()
        self._put([*([(at, rest)] if rest else []), (at, Mark.CUT)])

    def heal(self) -> None:
        """The toxic is gone: what was held back leaves at once, what still comes passes."""
        if self._healed or self.done:
            return
        self._healed = True
        held = [item for _, item in self._held]
        if not self._over:
            held.append(self._effect.rest())
        self.drop()
        self._last, self._over = 0.0, False
        at = self._loop.time()
        self._put([(at, item) for item in held if item])

    def drop(self) -> None:
        """All that was held back is lost."""
        self._held.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _put(self, outs: Outs) -> None:
        for due, item in outs:
            if self._over:
                break
            self._last = max(self._last, due)
            self._held.append((self._last, item))
            self._over = isinstance(item, Mark)
        self._release()

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._loop.time() + TICK_S
        while self._held and self._held[0][0] <= now:
            item = self._held.popleft()[1]
            self.done = isinstance(item, Mark)
            self._out(item)
        if self._held and self._held[0][0] < HELD:
            self._timer = self._loop.call_at(self._held[0][0], self._release)
