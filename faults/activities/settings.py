"""The settings of both Chaos Toolkit kinds, and what no scenario may ask of them."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path

from survive.units import UnitError

from .shape import Activity, Block

NO_BLOCK = Block()
ROLES = ("inject", "heal", "verify")


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


def missing(settings: Held | Once) -> str:
    """An extension or a program that is not installed here, "" if there is none. Runs no code."""
    for role in ROLES:
        activity: Activity | None = getattr(settings, role, None)
        provider = activity.raw["provider"] if activity else {"type": ""}
        if provider["type"] == "python" and not _installed(provider["module"]):
            return f"{role}: module {provider['module']!r} is not installed here"
        if provider["type"] == "process" and shutil.which(provider["path"]) is None:
            return f"{role}: there is no program {provider['path']!r} here"
    return ""


def _installed(module: str) -> bool:
    """Its package is there to import, or a file beside where survive was started."""
    package = module.partition(".")[0]
    beside = (Path(f"{package}.py"), Path(package))
    return any(path.exists() for path in beside) or importlib.util.find_spec(package) is not None
