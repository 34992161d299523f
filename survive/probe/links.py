"""What the fault proxy of a link saw: connections that began with TLS, and plain ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from survive.contracts import HandleSpec
from survive.probe.engine import Look

OpenLink: TypeAlias = Callable[[HandleSpec], Any]  # a LinkHandle


def looker(listeners: Mapping[str, Sequence[HandleSpec]], open_link: OpenLink) -> Look:
    """Looks at all listeners of a link at once, and adds them up."""

    async def look(link: str) -> Mapping[str, int]:
        specs = listeners.get(link, ())
        if not specs:
            raise LookupError("it has no fault proxy")
        seen: Counter[str] = Counter()
        for spec in specs:
            seen.update(await open_link(spec).seen())
        return seen

    return look
