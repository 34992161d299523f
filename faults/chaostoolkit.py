"""Any action of any Chaos Toolkit extension as a fault: run apart, bounded, judged and proven here.

The activities run in ``activities/server.py``; Chaos Toolkit's own word for their success counts
for nothing. What is on is what the ``verify`` probe says from outside.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from survive.contracts import (
    Active,
    FaultFailedError,
    Grade,
    HandleSpec,
    Injection,
    Needs,
    Observation,
)
from survive.errors import RefusedError
from survive.units import UnitError

from .activities.runner import runner
from .activities.shape import Activity, Block

NO_BLOCK = Block()


@dataclass(frozen=True, slots=True)
class Held:
    """Settings: what breaks, what mends, and the probe whose tolerance holds while it is broken."""

    inject: Activity
    heal: Activity
    verify: Activity
    configuration: Block = NO_BLOCK
    secrets: Block = NO_BLOCK

    def __post_init__(self) -> None:
        _check(self.verify, [self.inject, self.heal], self.configuration, self.secrets)


@dataclass(frozen=True, slots=True)
class Once:
    """Settings: ``irreversible: true`` is written out, so that nobody forgets a heal."""

    inject: Activity
    verify: Activity
    irreversible: bool
    configuration: Block = NO_BLOCK
    secrets: Block = NO_BLOCK

    def __post_init__(self) -> None:
        if not self.irreversible:
            raise UnitError("what can be undone is kind `chaostoolkit`, with `heal:` and `for:`")
        _check(self.verify, [self.inject], self.configuration, self.secrets)


def _check(verify: Activity, acts: list[Activity], configuration: Block, secrets: Block) -> None:
    if "tolerance" not in verify.raw:
        raise UnitError("verify needs `tolerance:`: what its output is while the fault is on")
    for act in acts:
        if act.call() == verify.call() and act.raw["provider"]["type"] != "process":
            raise UnitError("verify makes the same call as what it proves: use another channel")
    known = configuration.names() | secrets.names()
    for name in sorted(set().union(*(activity.names() for activity in [verify, *acts])) - known):
        raise UnitError(f"${{{name}}} is declared in neither `configuration:` nor `secrets:`")
    for name in secrets.literals():
        raise UnitError(f"secret {name!r} is written out; write {{type: env, key: NAME}}")


class _Activities:
    """What both kinds share."""

    grade: ClassVar[Grade] = Grade.EMULATED  # the least that it can be: nobody knows
    layer: ClassVar[str] = "extension"
    needs: ClassVar[Needs] = Needs.TARGET
    keeps_down: ClassVar[bool] = False
    certifies: ClassVar[str] = (
        "requests survive what the extension's action did, as the verify probe saw it"
    )
    does_not_certify: ClassVar[str] = (
        "anything that the verify probe does not see; that the probe looks by another channel than "
        "the action (only an identical call is refused); how real the effect is, which is the "
        "extension's, so it is graded low; simulated targets (--virtual refuses)"
    )

    def preflight(self, settings: Held | Once, victims: Sequence[HandleSpec]) -> list[HandleSpec]:
        """The target; refuses if an extension or a program is not installed here. Runs no code."""
        for name, activity in _activities(settings):
            provider = activity.raw["provider"]
            if provider["type"] == "python" and not _installed(provider["module"]):
                raise RefusedError(f"{name}: module {provider['module']!r} is not installed here")
            if provider["type"] == "process" and shutil.which(provider["path"]) is None:
                raise RefusedError(f"{name}: there is no program {provider['path']!r} here")
        return list(victims)

    async def get_ready(self, injection: Injection) -> None:
        """Start the server, import the extensions, check that every activity can be called."""
        activities = [_named(injection, name) for name in _roles(injection)]
        modules = [a["provider"]["module"] for a in activities if "module" in a["provider"]]
        await _ask(injection, "check", activities=activities, **{"import": modules})

    async def inject(self, injection: Injection, handle: Any) -> None:
        """Run the action."""
        await _ask(injection, "act", activity=_named(injection, "inject"))

    async def observe(self, injection: Injection, handle: Any, before: float | None) -> Observation:
        """Active while the verify probe's output is within its tolerance."""
        try:
            seen = await _ask(injection, "look", activity=_named(injection, "verify"))
        except FaultFailedError as error:
            return Observation(Active.UNKNOWN, str(error))
        active = Active.YES if seen["within"] else Active.NO
        return Observation(active, f"verify: {seen['said']}")

    async def round_trip(self, injection: Injection, handle: Any) -> bool:
        """The probe itself works, and says once more that the fault is off."""
        seen = await self.observe(injection, handle, None)
        return seen.active is Active.NO


class ChaosToolkit(_Activities):
    """``chaostoolkit``: an action, and the action that undoes it."""

    kind: ClassVar[str] = "chaostoolkit"
    held: ClassVar[bool] = True
    privileges: ClassVar[str] = ""
    settings: ClassVar[type] = Held

    async def heal(self, injection: Injection, handle: Any) -> None:
        """Run the heal; of one that complains because nothing is there, the proof decides."""
        await _ask(injection, "act", activity=_named(injection, "heal"))


class ChaosToolkitOnce(_Activities):
    """``chaostoolkit.once``: an action that nothing undoes, like the end of a pod."""

    kind: ClassVar[str] = "chaostoolkit.once"
    held: ClassVar[bool] = False
    privileges: ClassVar[str] = "leave to do what cannot be undone"
    settings: ClassVar[type] = Once

    async def heal(self, injection: Injection, handle: Any) -> None:
        """Nothing to undo: a one-shot."""


def _installed(module: str) -> bool:
    """Its package is there to import, or a file beside where survive was started."""
    package = module.partition(".")[0]
    beside = (Path(f"{package}.py"), Path(package))
    return any(path.exists() for path in beside) or importlib.util.find_spec(package) is not None


def _activities(settings: Held | Once) -> list[tuple[str, Activity]]:
    found = [(name, getattr(settings, name, None)) for name in ("inject", "heal", "verify")]
    return [(name, activity) for name, activity in found if activity is not None]


def _roles(injection: Injection) -> list[str]:
    return [name for name in ("inject", "heal", "verify") if name in injection.settings]


def _named(injection: Injection, role: str) -> dict[str, Any]:
    """The activity with the name and type that Chaos Toolkit wants."""
    raw: Any = injection.settings[role]
    kind = "probe" if role == "verify" else "action"
    return {"name": f"{injection.id} {role}", **raw, "type": kind}


async def _ask(injection: Injection, verb: str, **question: Any) -> dict[str, Any]:
    """The server's answer. Raises FaultFailedError if the activity did not do its work."""
    blocks = {name: injection.settings.get(name) for name in ("configuration", "secrets")}
    answer = await runner(injection.id).ask({"verb": verb, **question, **blocks})
    if answer["wrong"]:
        raise FaultFailedError(answer["wrong"])
    return answer
