"""Whom an HTTP toxic hits.

Every request that a toxic is meant for is drawn once, in the order of arrival, by a generator of
its own: the same seed and the same number of the request give the same draw, whatever the
connection, on either host. A control share is drawn apart and never hit.

A toxic for the ``first`` so many requests keeps the looks of a proof out of the sum: a request
whose header LOOK names it is drawn apart, as long as the toxic stands, whatever it has hit already.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any

from .http_toxics import HttpToxic

PPM = 1_000_000
LOOK = "x-survive-look"


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
