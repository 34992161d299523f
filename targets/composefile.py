"""Reads the part of a docker compose file that the ``compose`` driver understands, and no more.

A key that means something to ``docker compose`` and nothing here would make a stack that differs
from the one that the file describes, in silence. So every other key is refused, by name; ``x-*``
keys are free, as they are for docker.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from survive.errors import RefusedError

_TOP = {"services", "name"}
_SERVICE = {"image", "command", "environment", "ports", "deploy"}
_PORT = re.compile(r"(?:127\.0\.0\.1::)?([0-9]{1,5})(?:/tcp)?")
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(b|k|kb|m|mb|g|gb)?", re.IGNORECASE)
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


@dataclass(frozen=True, slots=True)
class ComposeService:
    """One service of a compose file."""

    image: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    port: int  # inside; where it is published on 127.0.0.1 is the driver's to choose
    replicas: int | None  # None = the file does not say
    cpus: float  # 0.0 = no limit
    memory: int  # bytes, 0 = no limit


def read_compose(path: Path) -> dict[str, ComposeService]:
    """Every service of the file. Raises RefusedError naming the file and the place in it."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RefusedError(f"compose file {path} cannot be read: {error}") from error
    file = _Place(path, "")
    services = file.map(data, _TOP).get("services")
    return {
        str(name): _service(file.at(f"services.{name}"), body)
        for name, body in file.at("services").map(services).items()
    }


@dataclass(frozen=True, slots=True)
class _Place:
    path: Path
    key: str

    def at(self, key: str) -> _Place:
        return _Place(self.path, f"{self.key}.{key}" if self.key else key)

    def refuse(self, why: str, hint: str = "") -> RefusedError:
        return RefusedError(f"{self.path}: {self.key or 'the file'} {why}", hint=hint)

    def map(self, value: object, known: set[str] | None = None) -> dict[str, Any]:
        """A map with known keys only (None = any)."""
        if not isinstance(value, dict):
            raise self.refuse("is not a map")
        for key in value:
            if known is not None and key not in known and not str(key).startswith("x-"):
                raise self.at(str(key)).refuse(
                    "is not understood by driver compose",
                    f"it knows {', '.join(sorted(known))} here; anything else it would pass over",
                )
        return value

    def text(self, value: object) -> str:
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            raise self.refuse(f"is {value!r}, not text", "put it in quotes")
        if "$" in str(value):
            raise self.refuse("holds a $: variables are not filled in", "write the value itself")
        return str(value)


def _service(place: _Place, body: object) -> ComposeService:
    given = place.map(body, _SERVICE)
    if "image" not in given:
        raise place.refuse("has no image", "nothing is built or pulled here: build it before")
    deploy = place.at("deploy")
    wanted = deploy.map(given.get("deploy", {}), {"replicas", "resources"})
    resources = deploy.at("resources")
    limits = resources.map(wanted.get("resources", {}), {"limits"}).get("limits", {})
    limits = resources.at("limits").map(limits, {"cpus", "memory"})
    replicas = wanted.get("replicas")
    if replicas is not None and (not isinstance(replicas, int) or replicas < 1):
        raise deploy.at("replicas").refuse(f"is {replicas!r}, not a whole number from 1 up")
    return ComposeService(
        image=place.at("image").text(given["image"]),
        command=_command(place.at("command"), given.get("command", [])),
        environment=_environment(place.at("environment"), given.get("environment", {})),
        port=_port(place.at("ports"), given.get("ports")),
        replicas=replicas,
        cpus=_cpus(resources.at("limits.cpus"), limits.get("cpus", 0)),
        memory=_memory(resources.at("limits.memory"), limits.get("memory", 0)),
    )


def _command(place: _Place, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(shlex.split(place.text(value)))
    if not isinstance(value, list):
        raise place.refuse("is neither text nor a list")
    return tuple(place.text(part) for part in value)


def _environment(place: _Place, value: object) -> dict[str, str]:
    if isinstance(value, list):
        pairs = [place.text(entry).partition("=") for entry in value]
        if not all(equals for _, equals, _ in pairs):
            raise place.refuse("has a name without a value", "nothing is taken from your shell")
        return {name: text for name, _, text in pairs}
    return {name: place.at(name).text(entry) for name, entry in place.map(value).items()}


def _port(place: _Place, value: object) -> int:
    """The one port that the service listens at; published on loopback only."""
    if not isinstance(value, list) or len(value) != 1:
        raise place.refuse("must name exactly one port", 'like ["127.0.0.1::8000"]')
    found = _PORT.fullmatch(str(value[0]))
    if found is None or not 0 < int(found[1]) < 65_536:
        raise place.refuse(
            f"holds {value[0]!r}: published on 127.0.0.1 only, at a port of survive's choice",
            'like ["127.0.0.1::8000"]',
        )
    return int(found[1])


def _cpus(place: _Place, value: object) -> float:
    try:
        cpus = float(place.text(value))
    except ValueError:
        cpus = -1.0
    if not 0 <= cpus <= 1024:
        raise place.refuse(f"is {value!r}, not a number of CPUs")
    return cpus


def _memory(place: _Place, value: object) -> int:
    found = _SIZE.fullmatch(place.text(value).strip())
    if found is None:
        raise place.refuse(f"is {value!r}, not a size", "like 256M")
    return round(float(found[1]) * _UNITS[(found[2] or "").lower()[:1]])
