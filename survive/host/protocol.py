"""HTTP toxics in memory: the very decisions and effects of the embedded proxy, without its framing.

Files of ``faults/proxy`` are loaded as any built-in is, so a toxic has one meaning on both hosts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from survive.catalog import builtin_root, load_module
from survive.contracts import Toxic
from survive.transport import Broken, Request


@cache
def _proxy(part: str) -> Any:
    return load_module(builtin_root() / "faults" / "proxy" / f"{part}.py")


class HttpFaults:
    """The HTTP toxics of one listener. ``seed`` must be set before the first is added."""

    def __init__(self) -> None:
        self.seed = 0
        self._faults: Any = None
        self._hits: dict[Rewriting, None] = {}  # a dict: sets have no stable order

    def add(self, toxic: Toxic) -> bool:
        """Create or change a toxic; False if it is of another type. Raises ValueError."""
        if toxic.type not in _proxy("http_toxics").HTTP_TOXICS:
            return False
        if toxic.stream != "downstream":
            raise ValueError(f"{toxic.type} acts downstream only")
        if self._faults is None:
            self._faults = _proxy("draws").Faults(self.seed)
        settings = _proxy("http_toxics").made(toxic.type, toxic.attributes)
        self._faults.put(toxic.name, toxic.type, toxic.toxicity, settings)
        return True

    def remove(self, name: str) -> None:
        """It is gone, absent is fine; what it held leaves at once."""
        standing = self._faults.standing.pop(name, None) if self._faults is not None else None
        for hit in list(self._hits):
            if hit.standing is standing:
                hit.heal()

    def counts(self, name: str) -> Mapping[str, int]:
        """See LinkHandle.counts."""
        standing = self._faults.standing.get(name) if self._faults is not None else None
        counted: Mapping[str, int] = {} if standing is None else standing.to_json()["counts"]
        return counted

    def draw(
        self, request: Request, pipe: Any, end: Any, cut: Callable[[], None]
    ) -> Rewriting | None:
        """What hits this call, if anything does. ``end`` is what ends a whole answer in ``pipe``;
        ``cut`` is called when the service is to be left."""
        if self._faults is None:
            return None
        look = dict(request.headers).get(_proxy("draws").LOOK, "")
        if (standing := self._faults.draw(request.method, request.path, look)) is None:
            return None
        return Rewriting(standing, pipe, end, cut, self._hits)


class Rewriting:
    """One call that is hit: stands before the pipe to its caller."""

    def __init__(
        self, standing: Any, pipe: Any, end: Any, cut: Callable[[], None],
        hits: dict[Rewriting, None],
    ) -> None:  # fmt: skip
        self.standing = standing
        self._pipe = pipe
        self._end = end
        self._cut = cut
        self._hits = hits
        self._hit: Any = None

    def answer(self) -> tuple[int, dict[str, str], bytes] | None:
        """Status, headers and body in the service's place; None = it is asked."""
        given: tuple[int, dict[str, str], bytes] | None = self.standing.toxic.answer()
        return given

    def push(self, thing: Any) -> None:
        """The head of the answer, then pieces of its body."""
        if isinstance(thing, bytes):
            self._body(thing)
            return
        toxic = self.standing.toxic
        if toxic.applies(thing.status, thing.headers):
            self._hit = _proxy("hits").Hit(self.standing, self._leaves)
            self._hits[self] = None
            if toxic.resizes:
                kept = {k: v for k, v in thing.headers.items() if k != "content-length"}
                thing = replace(thing, headers=kept)
        else:
            self.standing.tally.missed += 1
        self._pipe.push(thing)

    def finish(self, last: Any) -> None:
        """The service's answer is whole, or broke off."""
        if self._hit is None:
            self._pipe.finish(last)
        elif last is self._end:
            self._hit.end()
        else:
            self._hit.broken()

    def heal(self) -> None:
        """The toxic is gone."""
        self._hit.heal()

    def drop(self) -> None:
        """The connection is gone."""
        self._hits.pop(self, None)
        if self._hit is not None:
            self._hit.drop()

    def _body(self, data: bytes) -> None:
        if self._hit is None:
            self._pipe.push(data)
        else:
            self._hit.body(data)

    def _leaves(self, item: Any) -> None:
        if isinstance(item, bytes):
            self._pipe.push(item)
            return
        self._hits.pop(self, None)
        if item is _proxy("effects").Mark.END:
            self._pipe.push(self._end)
        else:
            self._pipe.finish(Broken.CLOSED)
            self._cut()
