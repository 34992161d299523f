"""A scenario while what ties its keys together is checked.

The checks (``traffic``, ``breaking``, ``limits``) note what is wrong and go on with what is left,
so that all problems appear at once. The parts they return are only used when nothing was noted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from survive.catalog import Catalog
from survive.contracts import Fault
from survive.scenario.grammar import Draft
from survive.scenario.model import (
    TargetSpec,
)
from survive.scenario.models import (
    RequestModel,
    ScenarioModel,
)
from survive.scenario.target import TargetSource
from survive.scenario.tree import Path as Loc


@dataclass(slots=True)
class Check:
    """A scenario under check, with the target it runs on (None if that could not be read)."""

    model: ScenarioModel
    draft: Draft
    target: TargetSpec | None
    source: TargetSource | None
    catalog: Catalog
    folder: Path
    stored: bool = False
    warnings: list[str] = field(default_factory=list)
    known_kinds: dict[str, Path] = field(default_factory=dict)  # looked up once
    loaded: dict[str, Fault] = field(default_factory=dict)

    def wrong(self, path: Loc, message: str, hint: str = "", *, key: bool = False) -> None:
        """See Draft.wrong."""
        self.draft.wrong(path, message, hint, key=key)

    @property
    def spec(self) -> TargetSpec:
        """The target; ask only for the parts that it ``knows``."""
        assert self.target is not None
        return self.target

    def knows(self, *part: str) -> bool:
        """The target could be read, and this part of it as it stands."""
        return self.target is not None and self.source is not None and self.source.sound(*part)

    @property
    def services(self) -> list[str]:
        """Names of services, broken ones included."""
        return self.source.names("services") if self.source is not None else []

    @property
    def links(self) -> list[str]:
        """Links that a fault can act on. An external target offers only the way in."""
        if self.target is None or self.source is None:
            return []
        inner = [] if self.target.driver == "external" else self.source.names("links")
        return [*inner, self.target.entry_link]

    @property
    def kinds(self) -> list[str]:
        """Names of request kinds, broken ones included."""
        return self.draft.names("requests")

    @property
    def phases(self) -> list[str]:
        """Names of phases, as written: broken ones are no less known."""
        items = self.draft.node("load", "phases")
        nodes = items.value if items is not None and isinstance(items.value, list) else []
        named = (node.get("name") for node in nodes)
        return [*dict.fromkeys(str(name.value) for name in named if name is not None)]

    @property
    def streamed(self) -> list[str]:
        """Names of the kinds that ask for a stream."""
        return [name for name, model in self.model.requests.items() if is_streamed(model)]


def is_streamed(model: RequestModel) -> bool:
    """The body asks for a stream of server-sent events."""
    return isinstance(model.body, dict) and model.body.get("stream") is True
