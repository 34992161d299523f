"""What ties the keys of a target file together, and the TargetSpec made of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from survive.catalog import Catalog, nearest
from survive.errors import Problem
from survive.scenario.grammar import Draft, read_strings
from survive.scenario.model import Health, Link, Service, TargetSpec
from survive.scenario.models import ServiceModel, Strict, TargetModel
from survive.scenario.tree import Path as Loc

DRIVERS = ("process", "compose", "external", "virtual")
# The planted defects of the reference stack. A service acts on those that it knows.
WEAKNESSES = (
    *("no_health_checks", "no_timeout", "unbounded_queue"),
    *("retry_storm", "thundering_herd", "sticky_dead_replica", "fail_open_auth", "lossy_audit"),
    *("silent_truncation", "metrics_dependency", "prompt_secret_leak"),
    *("lying_health", "unfair_scheduler", "memory_leak", "slow_scale_up"),
    *("no_backpressure", "cross_tenant_cache", "stale_cache", "cold_cache_stampede", "frozen_feed"),
    "plaintext_link",
)
TLS_DRIVERS = ("process", "virtual")  # they start the services, so they can give certificates
OWN_AUTH = ("bearer", "none")  # words of `auth:` that are no identity
LOAD = "load"  # the source of the entry link; no service may be called so

PLUGINS_HINT = "it is in your own folders: allow their code with --plugins"

_ENV = re.compile(r"\$\{([^}]*)\}?")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LINK = re.compile(r"([A-Za-z0-9_-]+) -> ([A-Za-z0-9_-]+)")
_APP = re.compile(r"([^:\x00]+\.py):([A-Za-z_][A-Za-z0-9_]*)")
_URL = re.compile(r"https?://[^/\s?#@]+/?|unix:/[^\s?#]+")


@dataclass(frozen=True, slots=True)
class TargetSource:
    """Where a target came from. ``path`` is its place in the file ("" in a file of its own)."""

    name: str
    folder: Path
    draft: Draft
    prefix: Loc = ()
    stored: bool = False

    def wrong(self, path: Loc, message: str, hint: str = "", *, key: bool = False) -> None:
        """Note a problem at a path inside the target."""
        self.draft.wrong((*self.prefix, *path), message, hint, key=key)

    def sound(self, *path: str | int) -> bool:
        """See Draft.sound."""
        return self.draft.sound(*self.prefix, *path)

    def names(self, section: str) -> list[str]:
        """Names of a section, broken entries included."""
        return self.draft.names(*self.prefix, section)


def check_target(model: TargetModel, source: TargetSource, catalog: Catalog) -> None:
    """Note everything that the file alone shows to be wrong."""
    known = sorted({*catalog.driver_names(), *DRIVERS})
    if model.driver not in known and not source.stored:
        own = not catalog.plugins and model.driver in Catalog(catalog.start).driver_names()
        hint = PLUGINS_HINT if own else nearest(model.driver, known)
        source.wrong(("driver",), f"unknown driver {model.driver!r}", hint)
    _check_names(model, source)
    _check_compose(model, source, catalog)
    for name, service in model.services.items():
        _check_service(name, service, model, source)
    _check_links(model, source)
    _check_tls(model, source)
    for index, weakness in enumerate(model.weaknesses):
        if weakness not in WEAKNESSES:
            source.wrong(
                ("weaknesses", index),
                f"unknown weakness {weakness!r}",
                nearest(weakness, WEAKNESSES),
            )
    if (
        model.weaknesses
        and source.sound("services")
        and not any(service.app for service in model.services.values())
    ):
        source.wrong(
            ("weaknesses",),
            "weaknesses are planted in services that have `app:`",
            "this target has none; remove the key",
            key=True,
        )
    if model.isolation is not None and model.driver != "process":
        source.wrong(
            ("isolation",), f"driver {model.driver} cannot isolate", "only process can", key=True
        )
    if model.auth is not None and model.auth.bearer is not None:
        _check_bearer(model.auth.bearer, source)
    for name, key in model.auth.identities.items() if model.auth is not None else ():
        _check_identity(name, key, source)
    for name, value in model.vars.items():
        if isinstance(value, dict | list):
            source.wrong(("vars", name), "a variable is text, a number or true or false")


def _check_compose(model: TargetModel, source: TargetSource, catalog: Catalog) -> None:
    if model.driver == "compose" and model.compose is None and source.sound("compose"):
        source.wrong(
            ("driver",),
            "driver compose needs a compose file",
            "like `compose: reference` for compose/reference.yaml",
        )
    elif model.driver != "compose" and model.compose is not None:
        source.wrong(("compose",), f"driver {model.driver} reads no compose file", key=True)
    elif model.compose and not source.stored and catalog.compose_file(model.compose) is None:
        hint = nearest(model.compose, catalog.compose_names())
        source.wrong(("compose",), f"there is no compose/{model.compose}.yaml", hint)


def _check_names(model: TargetModel, source: TargetSource) -> None:
    services = source.names("services")
    if model.entry not in services:
        source.wrong(("entry",), f"unknown service {model.entry!r}", nearest(model.entry, services))
    for name in model.prices:
        if name not in services:
            source.wrong(
                ("prices", name), f"unknown service {name!r}", nearest(name, services), key=True
            )
    if LOAD in services:
        source.wrong(
            ("services", LOAD),
            "'load' is the harness itself",
            "give the service another name",
            key=True,
        )


def _check_service(
    name: str, service: ServiceModel, model: TargetModel, source: TargetSource
) -> None:
    path = ("services", name)
    ways = [way for way in ("app", "run", "url") if getattr(service, way) is not None]
    sound = all(source.sound(*path, way) for way in ("app", "run", "url"))
    if model.driver == "compose":
        for way in ways:
            hint = "remove the key"
            source.wrong((*path, way), "the compose file says what runs", hint, key=True)
    elif sound and len(ways) != 1:
        given = " and ".join(ways)
        source.wrong(
            path,
            f"service {name!r} has {given or 'no app, run or url'}",
            "exactly one of app, run, url says what it is",
            key=True,
        )
    if source.sound("driver"):
        _check_driver(name, service, model.driver, source)
    if service.app is not None:
        _check_app(service.app, (*path, "app"), source)
    if service.url is not None and not _ENV.search(service.url) and not _URL.fullmatch(service.url):
        source.wrong(
            (*path, "url"),
            f"{service.url!r} is not a base address",
            "like http://127.0.0.1:8080, without a path, or unix:/run/it.sock",
        )
    if service.ca is not None:
        _check_ca(service, path, source)
    if service.standby >= service.replicas:
        source.wrong((*path, "standby"), "one replica at least is no spare", "write less")
    if service.url is not None and service.replicas != 1:
        source.wrong(
            (*path, "replicas"), "replicas behind an address cannot be told apart", "remove the key"
        )
    for key in service.env:
        if not _ENV_NAME.fullmatch(key):
            source.wrong((*path, "env", key), f"{key!r} is not the name of a variable", key=True)


def _check_driver(name: str, service: ServiceModel, driver: str, source: TargetSource) -> None:
    path = ("services", name)
    if driver == "external":
        for key in ("app", "run", "restart", "gpu"):
            if getattr(service, key) is not None:
                source.wrong(
                    (*path, key),
                    f"driver external starts nothing, so {key!r} means nothing",
                    "give the service a url",
                    key=True,
                )
    elif service.url is not None:
        source.wrong(
            (*path, "url"),
            f"'url' is for driver external, not {driver}",
            "say how to start the service: app or run",
            key=True,
        )


def _check_ca(service: ServiceModel, path: Loc, source: TargetSource) -> None:
    assert service.ca is not None
    if service.url is None or service.url.startswith(("http://", "unix:")):
        source.wrong((*path, "ca"), "only an https url has an authority", "remove it", key=True)
    elif not source.stored and not (source.folder / service.ca).is_file():
        source.wrong((*path, "ca"), f"there is no file {service.ca!r} in {source.folder}")


def _check_app(app: str, path: Loc, source: TargetSource) -> None:
    found = _APP.fullmatch(app)
    if found is None:
        source.wrong(path, f"{app!r} is not a file and a function", "like gateway.py:make_app")
    elif not source.stored and not (source.folder / found[1]).resolve().is_file():
        source.wrong(path, f"there is no file {found[1]!r} in {source.folder}")


def _check_links(model: TargetModel, source: TargetSource) -> None:
    services = source.names("services")
    for name in model.links:
        ends = _LINK.fullmatch(name)
        if ends is None:
            source.wrong(
                ("links", name),
                f"{name!r} is not a link",
                "write it like gateway -> inference",
                key=True,
            )
            continue
        if ends[1] == LOAD:
            source.wrong(
                ("links", name),
                f"the link {LOAD} -> {model.entry} is implied",
                "remove it",
                key=True,
            )
        for end in (ends[1], ends[2]):
            if end not in services and end != LOAD:
                source.wrong(
                    ("links", name), f"unknown service {end!r}", nearest(end, services), key=True
                )
        if ends[1] == ends[2]:
            source.wrong(("links", name), "a service has no link to itself", key=True)


def _check_tls(model: TargetModel, source: TargetSource) -> None:
    """A replica that speaks TLS speaks nothing else, so all who call it have to."""
    secure = {name: link.tls for name, link in model.links.items() if _LINK.fullmatch(name)}
    destinations = {name.partition(" -> ")[2] for name, tls in secure.items() if tls}
    for name, tls in secure.items():
        path = ("links", name, "tls") if tls else ("links", name)
        dest = name.partition(" -> ")[2]
        if tls and model.driver not in TLS_DRIVERS:
            hint = f"only {' and '.join(TLS_DRIVERS)} can"
            source.wrong(path, f"driver {model.driver} makes no certificates", hint)
        elif tls and model.isolation is not None:
            source.wrong(path, "services in namespaces of their own have no certificates", "")
        elif tls and dest == model.entry:
            source.wrong(path, "the entry is called by the load, in plain text", "remove the key")
        elif not tls and dest in destinations:
            said = f"{dest} speaks TLS only, for another link to it has `tls: true`"
            source.wrong(path, said, "give this link `tls: true` too", key=True)


def _check_bearer(bearer: str, source: TargetSource) -> None:
    if not re.fullmatch(r"\$\{[^}]*\}", bearer):
        source.wrong(
            ("auth", "bearer"),
            "a secret must not stand in a file",
            'take it from the environment: "${NAME}"',
        )


def _check_identity(name: str, key: str, source: TargetSource) -> None:
    path = ("auth", "identities", name)
    if name in OWN_AUTH:
        source.wrong(path, f"{name!r} is a word of its own in `auth:`", "choose another", key=True)
    if not _ENV.search(key):
        source.wrong(
            path,
            "a secret must not stand in a file",
            'take it from the environment, like "${NAME}.acme"',
        )


def check_env(draft: Draft, kind: type[Strict], target_prefix: tuple[str, ...] | None) -> None:
    """``${ENV}`` only where secrets may be, and never with a default.

    ``target_prefix`` is where the target's map begins in this file; None = it is not here.
    """
    for path, node in read_strings(draft.root, kind):
        text = str(node.value)
        if "${" not in text or _is_of_an_activity(path):
            continue
        inside = None if target_prefix is None else _below(target_prefix, path)
        if inside is None or not _may_hold_env(inside):
            note = Problem(
                node.where,
                f"{_first_env(text)} cannot stand here",
                "only in a target's auth, url and service env",
            )
            draft.problems.append(note)
            continue
        for name in _ENV.finditer(text):
            if not _ENV_NAME.fullmatch(name[1]) or not name[0].endswith("}"):
                wrong = f"{name[0]} is not the name of a variable"
                hint = "secrets have no defaults; write ${NAME}"
                draft.problems.append(Problem(node.where, wrong, hint))


def _below(prefix: Loc, path: tuple[str, ...]) -> tuple[str, ...] | None:
    return path[len(prefix) :] if path[: len(prefix)] == prefix else None


def _is_of_an_activity(path: tuple[str, ...]) -> bool:
    """Below a setting of a fault: ``${name}`` there is Chaos Toolkit's, and checked by the kind."""
    return path[:1] == ("faults",) and path[2:3] == ("with",) and len(path) > 4


def _may_hold_env(path: tuple[str, ...]) -> bool:
    if path in {("auth", "bearer"), ("proxy", "toxiproxy")}:
        return True
    if path[:2] == ("auth", "identities"):
        return len(path) == 3
    return path[:1] == ("services",) and (
        (len(path) == 3 and path[2] == "url") or (len(path) == 4 and path[2] == "env")
    )


def _first_env(text: str) -> str:
    found = _ENV.search(text)
    return found[0][:40] if found else "${"


def make_target(model: TargetModel, source: TargetSource, catalog: Catalog) -> TargetSpec:
    """The spec of a target without problems."""
    services = {name: _service(name, service) for name, service in model.services.items()}
    links = {name: _link(name, link.env, tls=link.tls) for name, link in model.links.items()}
    return TargetSpec(
        name=source.name,
        driver=model.driver,
        entry=model.entry,
        services=services,
        links=links,
        vars=dict(model.vars),
        bearer=(model.auth.bearer or "") if model.auth is not None else "",
        identities=dict(model.auth.identities) if model.auth is not None else {},
        prices=dict(model.prices),
        allow_hosts=tuple(model.allow.hosts),
        allow_faults=tuple(model.allow.faults),
        allow_privileged=model.allow.privileged,
        allow_max_faults=model.allow.max_faults,
        allow_max_duration_us=model.allow.max_duration,
        weaknesses=tuple(model.weaknesses),
        folder=source.folder,
        compose=str(catalog.compose_file(model.compose) or "") if model.compose else "",
        toxiproxy=model.proxy.toxiproxy if model.proxy is not None else "",
        isolation=model.isolation or "",
    )


def _service(name: str, model: ServiceModel) -> Service:
    return Service(
        name=name,
        app=model.app or "",
        run=tuple(model.run or ()),
        url=model.url or "",
        ca=model.ca or "",
        replicas=model.replicas,
        standby=model.standby,
        gpu=model.gpu or "",
        simulates=tuple(model.simulates),
        health=Health(model.health.get, model.health.within),
        metrics=model.metrics or "",
        audit_file=model.audit.file if model.audit is not None else "",
        restart_after_us=model.restart.after if model.restart is not None else None,
        env=dict(model.env),
    )


def _link(name: str, env: str, *, tls: bool) -> Link:
    source, _, dest = name.partition(" -> ")
    return Link(source, dest, env, tls)
