"""Any action of any Chaos Toolkit extension as a fault: run apart, bounded, judged and proven here.

The activities run in ``activities/server.py``; Chaos Toolkit's own word for their success counts
for nothing. What is on is what the ``verify`` probe says from outside.
"""

from __future__ import annotations

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

from .activities.runner import runner
from .activities.settings import ROLES, Held, Once, missing
from .common import Common, OneShot


class _Activities(Common):
    """What both kinds share."""

    grade: ClassVar[Grade] = Grade.EMULATED  # the least that it can be: nobody knows
    layer: ClassVar[str] = "extension"
    needs: ClassVar[Needs] = Needs.TARGET
    certifies: ClassVar[str] = (
        "requests survive what the extension's action did, as the verify probe saw it"
    )
    does_not_certify: ClassVar[str] = (
        "anything that the verify probe does not see; that the probe looks by another channel than "
        "the action (only an identical call is refused); how real the effect is, which is the "
        "extension's, so it is graded low; simulated targets (--virtual refuses)"
    )

    def check_host(self, settings: Held | Once | None, here: HandleSpec) -> None:
        """Refuses if an extension or a program is not installed here. Runs no code."""
        if settings is not None and (what := missing(settings)):
            raise RefusedError(what)

    async def get_ready(self, injection: Injection) -> None:
        """Start the server, import the extensions, check that every activity can be called."""
        activities = [_named(injection, role) for role in ROLES if role in injection.settings]
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
    settings: ClassVar[type] = Held

    async def heal(self, injection: Injection, handle: Any) -> None:
        """Run the heal; of one that complains because nothing is there, the proof decides."""
        await _ask(injection, "act", activity=_named(injection, "heal"))


class ChaosToolkitOnce(OneShot, _Activities):
    """``chaostoolkit.once``: an action that nothing undoes, like the end of a pod."""

    kind: ClassVar[str] = "chaostoolkit.once"
    privileges: ClassVar[str] = "leave to do what cannot be undone"
    settings: ClassVar[type] = Once


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
