"""``survive import``: a Chaos Toolkit experiment as a scenario, and what could not be carried over.

Steady-state hypothesis → requests and objectives, method → timeline, rollbacks → heals. Times that
an experiment does not state are estimated, and the file says so. Nothing is made up that could
turn a run green: a fault whose effect the experiment never checks gets a probe that always fails.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import yaml

from survive.catalog import Catalog
from survive.chaostoolkit.pairing import pair
from survive.errors import ScenarioError, UsageError
from survive.scenario.loader import load_scenario, to_yaml

RATE = 5  # requests a second of each kind: 95 % can be told from 59 good answers
WARM_UP_S, STEADY_S, AFTER_S = 3, 20, 30
ACT_S = 1  # of an action that does not say how long it takes
RECOVERY = {"metric": "recovery", "max": "15s", "stable_for": "10s"}
_NOT_WRITTEN = {
    "provider": {
        "type": "python",
        "module": "survive.chaostoolkit.probes",
        "func": "not_written_yet",
    },
    "tolerance": True,
}
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_LITERAL = (str, int, float, bool)


@dataclass(slots=True)
class Imported:
    """The scenario as data, and notes for a human."""

    scenario: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The file: the notes stand first, as comments and under ``x-left-out``."""
        head = [
            "Imported from a Chaos Toolkit experiment by `survive import`.",
            "Durations of actions are estimates: look at every `at:` and `for:`.",
            f"The rate of {RATE}/s for each request is ours: write your own.",
            *(f"- {note}" for note in self.notes),
        ]
        lines = [f"# {line}" for text in head for line in text.splitlines()]
        body = to_yaml({**self.scenario, "x-left-out": self.notes}, width=96)
        return "\n".join(lines) + "\n" + body


def import_experiment(path: Path) -> Imported:
    """Raises UsageError if it cannot be read, ScenarioError with why if nothing would run."""
    experiment = _read(path)
    imported = _carry(experiment)
    try:
        _check(imported)
    except ScenarioError:
        # Faults that follow each other closely leave no room to watch each recovery.
        imported.scenario["objectives"].pop("comes-back", None)
        imported.notes.append(
            "no recovery objective: the faults follow each other too closely to watch one"
        )
        _check(imported)
    return imported


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("method", []), list):
        raise UsageError(f"{path} is no Chaos Toolkit experiment", hint="it has a `method` list")
    return data


def _check(imported: Imported) -> None:
    """By the loader itself; built-ins only, so no code of a stranger is run."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="survive-import-") as folder:
        file = Path(folder) / "imported.survive.yaml"
        file.write_text(imported.text(), encoding="utf-8")
        load_scenario(file, catalog=Catalog(file, plugins=False))


def _carry(experiment: Mapping[str, Any]) -> Imported:
    notes = [
        f"`{key}` is not carried over"
        for key in ("controls", "runtime", "extensions", "contributions")
        if experiment.get(key)
    ]
    configuration: dict[str, Any] = experiment.get("configuration") or {}
    hypothesis = (experiment.get("steady-state-hypothesis") or {}).get("probes") or []
    site = _Site(configuration, notes)
    requests = dict(_requests(hypothesis, site))
    if not requests:
        raise UsageError(
            "nothing of it would run: its hypothesis has no HTTP probe that could become traffic",
            hint="\n        ".join(notes) or "write a scenario by hand",
        )
    faults, end_s = _timeline(experiment, notes)
    return Imported(_scenario(experiment, site, requests, faults, end_s), notes)


def _scenario(
    experiment: Mapping[str, Any],
    site: _Site,
    requests: dict[str, Any],
    faults: dict[str, Any],
    end_s: float,
) -> dict[str, Any]:
    first = next(iter(requests.values()))
    health = first.get("get", "/")
    allow: dict[str, Any] = {"hosts": site.hosts, "faults": ["chaostoolkit"]}
    if any(fault["kind"] == "chaostoolkit.once" for fault in faults.values()):
        allow["privileged"] = True
    if len(faults) > 3:
        allow["max_faults"] = min(100, len(faults))
    longest = max((_seconds(fault.get("for", "0s")) for fault in faults.values()), default=0)
    if longest > 300:
        allow["max_duration"] = _time(longest)
    objectives: dict[str, Any] = {
        f"{name}-steady": {"metric": "success", "min": "95%", "of": name, "during": "steady"}
        for name in requests
    }
    if faults:
        objectives["comes-back"] = dict(RECOVERY)
    rate = f"{RATE * len(requests)}/s"
    scenario = {
        "survive": 1,
        "name": _slug(str(experiment.get("title") or "imported")),
        "about": " ".join(str(experiment.get("description") or "imported").split())[:400],
        "target": {
            "driver": "external",
            "entry": "service",
            "services": {"service": {"url": site.url, "health": {"get": health, "within": "10s"}}},
            "allow": allow,
        },
        "seed": 1,
        "requests": requests,
        "load": {
            "phases": [
                {"name": "warm-up", "rate": rate, "for": f"{WARM_UP_S}s", "warm_up": True},
                {"name": "method", "rate": rate, "for": _time(end_s + AFTER_S)},
            ]
        },
        "faults": faults,
        "objectives": objectives,
    }
    return scenario if faults else {k: v for k, v in scenario.items() if k != "faults"}


# -------------------------------------------------------------------------- the hypothesis


@dataclass(slots=True)
class _Site:
    """The one service that all requests go to."""

    configuration: Mapping[str, Any]
    notes: list[str]
    url: str = ""
    hosts: list[str] = field(default_factory=lambda: ["127.0.0.1"])

    def path(self, url: str) -> str:
        """The path of a url on this site, or why it is not. Raises ValueError."""
        base, rest = self._split(url)
        if self.url and base != self.url:
            raise ValueError(f"it is not on {self.url}, and load has one entry")
        self.url = base
        return rest

    def _split(self, url: str) -> tuple[str, str]:
        environment = _VARIABLE.match(url)
        if environment:
            known = self.configuration.get(environment[1])
            if isinstance(known, dict) and known.get("type") == "env" and known.get("key"):
                return f"${{{known['key']}}}", self._plain(url[environment.end() :]) or "/"
        parts = urlsplit(self._plain(url))
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError("only http://host:port can be driven yet")
        if parts.hostname not in self.hosts:
            self.hosts.append(parts.hostname)
            self.notes.append(f"host {parts.hostname} is allowed: is it yours to load?")
        query = f"?{parts.query}" if parts.query else ""
        return f"http://{parts.netloc}", (parts.path or "/") + query

    def _plain(self, text: str) -> str:
        def value(match: re.Match[str]) -> str:
            known = self.configuration.get(match[1])
            if not isinstance(known, _LITERAL):
                raise ValueError(f"{match[0]} is only known at run time")
            return str(known)

        return _VARIABLE.sub(value, text)


def _requests(probes: list[Any], site: _Site) -> Iterator[tuple[str, dict[str, Any]]]:
    taken: set[str] = set()
    for probe in probes:
        name = _fresh(_slug(str(probe.get("name") or "probe")), taken)
        provider = probe.get("provider") or {}
        try:
            if provider.get("type") != "http":
                raise ValueError(f"a {provider.get('type') or 'referenced'} probe makes no traffic")
            yield name, _request(provider, probe.get("tolerance"), site, name)
        except ValueError as error:
            site.notes.append(f"hypothesis probe {name!r} is left out: {error}")


def _request(provider: Mapping[str, Any], tolerance: Any, site: _Site, name: str) -> dict[str, Any]:
    """Raises ValueError with why it cannot be carried."""
    method = str(provider.get("method", "GET")).lower()
    if method not in {"get", "post", "put", "patch", "delete"}:
        raise ValueError(f"method {method.upper()} is not sent by load")
    headers = {str(k): str(v) for k, v in (provider.get("headers") or {}).items()}
    if any("${" in value for value in headers.values()):
        raise ValueError("a header holds ${...}: secrets stand in a target's `auth:`")
    path, arguments = site.path(str(provider.get("url"))), provider.get("arguments")
    request: dict[str, Any] = {}
    if arguments and method == "get" and isinstance(arguments, dict):
        path += ("&" if "?" in path else "?") + urlencode(arguments)
    elif arguments:
        if headers.get("Content-Type") != "application/json":
            raise ValueError("its body is no JSON")
        request["json"] = arguments
    headers.pop("Content-Type", None)
    request = {method: path, **request, **({"headers": headers} if headers else {})}
    statuses = _statuses(tolerance)
    if statuses is None:
        site.notes.append(f"the tolerance of {name!r} is more than a status: only 200 is asked")
    request["expect"] = {"status": statuses or [200]}
    timeout = provider.get("timeout")
    if isinstance(timeout, list):
        timeout = sum(timeout)
    request["timeout"] = _time(timeout) if isinstance(timeout, int | float) else "10s"
    return request


def _statuses(tolerance: Any) -> list[int] | None:
    """Statuses that a tolerance asks of an HTTP probe; None if it asks something else."""
    given = tolerance if isinstance(tolerance, list) else [tolerance]
    plain = all(isinstance(s, int) and not isinstance(s, bool) and 100 <= s < 600 for s in given)
    return list(given) if given and plain else None


# ------------------------------------------------------------------------------ the method


def _timeline(experiment: Mapping[str, Any], notes: list[str]) -> tuple[dict[str, Any], float]:
    """Faults by name, and when the method ends, s."""
    method: list[dict[str, Any]] = experiment.get("method") or []
    rollbacks: list[dict[str, Any]] = experiment.get("rollbacks") or []
    configuration: dict[str, Any] = experiment.get("configuration") or {}
    now_s = float(WARM_UP_S + STEADY_S)
    begun: list[tuple[dict[str, Any], dict[str, Any] | None, float]] = []
    for index, activity in enumerate(method):
        pauses = activity.get("pauses") or {}
        now_s += _pause(pauses.get("before"), configuration, notes)
        waits_s = _wait_s(activity)
        if "provider" not in activity:
            notes.append(f"method step {index + 1} is a reference: write it out")
        elif waits_s is not None:
            now_s += 0 if activity.get("background") else waits_s
        elif activity.get("type") == "action":
            begun.append((activity, _following_probe(method, index), now_s))
            now_s += 0 if activity.get("background") else _took_s(activity)
        else:
            name = activity.get("name", f"step {index + 1}")
            notes.append(f"method probe {name!r} is left out: an objective could say it")
        now_s += _pause(pauses.get("after"), configuration, notes)
    end_s = max([now_s, *(at + ACT_S for _, _, at in begun)])
    heals, unused = pair([activity for activity, _, _ in begun], rollbacks)
    notes += [
        f"rollback {_name(one)!r} is left out: no action is clearly its own" for one in unused
    ]
    faults: dict[str, Any] = {}
    for (activity, probe, at), heal in zip(begun, heals, strict=True):
        name = _fresh(_slug(_name(activity)), set(faults))
        faults[name] = _fault(experiment, activity, heal, probe, at, end_s, name, notes)
    return faults, end_s


def _fault(
    experiment: Mapping[str, Any],
    activity: Mapping[str, Any],
    heal: Mapping[str, Any] | None,
    probe: Mapping[str, Any] | None,
    at_s: float,
    end_s: float,
    name: str,
    notes: list[str],
) -> dict[str, Any]:
    settings: dict[str, Any] = {"inject": _activity(activity, name, notes)}
    if heal is not None:
        settings["heal"] = _activity(heal, name, notes)
    else:
        settings["irreversible"] = True
        notes.append(
            f"fault {name!r} has no rollback of its own, so it is irreversible: if something can "
            "undo it, write it as kind chaostoolkit with `heal:` and `for:`"
        )
    if probe is not None:
        settings["verify"] = {**_activity(probe, name, notes), "tolerance": probe["tolerance"]}
    else:
        settings["verify"] = json.loads(json.dumps(_NOT_WRITTEN))
        notes.append(f"fault {name!r} needs a `verify:` probe: until then it is never proven")
    for block in ("configuration", "secrets"):
        if experiment.get(block):
            settings[block] = _no_literals(experiment[block], notes) if block == "secrets" else (
                dict(experiment[block]))  # fmt: skip
    kind = "chaostoolkit" if heal is not None else "chaostoolkit.once"
    held = {"for": _time(max(1.0, end_s - at_s))} if heal is not None else {}
    return {"kind": kind, "at": _time(at_s), **held, "with": settings}


def _activity(activity: Mapping[str, Any], fault: str, notes: list[str]) -> dict[str, Any]:
    """Its provider, less timeouts: ours are in force."""
    provider = dict(activity["provider"])
    if provider.pop("timeout", None) is not None:
        notes.append(f"{fault}: its own timeout is dropped: inject has 2 s, heal 3 s, verify 1 s")
    return {"provider": provider}


def _no_literals(secrets: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """Secrets that are written out become variables of the environment."""
    kept: dict[str, Any] = {}
    for name, value in secrets.items():
        if isinstance(value, dict) and "type" in value:
            kept[name] = value
        elif isinstance(value, dict):
            kept[name] = _no_literals(value, notes)
        else:
            key = re.sub(r"\W", "_", str(name)).upper()
            kept[name] = {"type": "env", "key": key}
            note = f"secret {name!r} was written out: it is now read from the environment, {key}"
            if note not in notes:
                notes.append(note)
    return kept


def _following_probe(method: list[dict[str, Any]], index: int) -> dict[str, Any] | None:
    """The very next step, if it is a probe that says what it expects."""
    after = method[index + 1] if index + 1 < len(method) else {}
    sound = after.get("type") == "probe" and "tolerance" in after and "provider" in after
    return after if sound else None


def _wait_s(activity: Mapping[str, Any]) -> float | None:
    """Seconds of ``sleep N``: a wait, no fault."""
    provider = activity.get("provider") or {}
    given = provider.get("arguments")
    if Path(str(provider.get("path", ""))).name == "sleep":
        text = " ".join(map(str, given)) if isinstance(given, list) else str(given)
        try:
            return float(text)
        except ValueError:
            return None
    return None


def _took_s(activity: Mapping[str, Any]) -> float:
    """How long an action takes: its ``duration`` argument, else a second."""
    arguments = activity["provider"].get("arguments")
    given = arguments.get("duration") if isinstance(arguments, dict) else None
    sound = isinstance(given, int | float) and not isinstance(given, bool) and given > 0
    return float(given) if sound and given is not None else float(ACT_S)


def _pause(given: Any, configuration: Mapping[str, Any], notes: list[str]) -> float:
    """Seconds of a pause."""
    variable = _VARIABLE.fullmatch(given) if isinstance(given, str) else None
    value = configuration.get(variable[1]) if variable else given
    if value is None and given is None:
        return 0.0
    try:
        return float(value)  # type: ignore[arg-type]  # whatever it is, the next line says so
    except (TypeError, ValueError):
        notes.append(f"a pause of {given!r} is only known at run time: taken as 0 s")
        return 0.0


def _name(activity: Mapping[str, Any]) -> str:
    return str(activity.get("name") or "fault")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48] or "imported"


def _fresh(name: str, taken: set[str]) -> str:
    number, fresh = 1, name
    while fresh in taken:
        number += 1
        fresh = f"{name}-{number}"
    taken.add(fresh)
    return fresh


def _time(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms" if seconds % 1 else f"{round(seconds)}s"


def _seconds(text: str) -> float:
    return float(text[:-2]) / 1000 if text.endswith("ms") else float(text[:-1])
