"""Toxiproxy's HTTP API 2.x: the same paths, JSON, status codes and error bodies.

Operations run one at a time; none waits for a connection, so removing a toxic never hangs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeAlias, TypeVar

from .calls import Answer, ApiError, Fields, Json, Request
from .http_toxics import HTTP_TOXICS, made
from .proxies import Proxy, host_port, toxic_json
from .streams import Applied
from .toxics import TOXICS, changed

VERSION = "2.12.0+survive"  # the API that is spoken, and by whom

Make: TypeAlias = Callable[[str, str, str], Proxy]  # (name, listen, upstream)
T = TypeVar("T")


class Api:
    """All proxies of one server, and what can be asked of them."""

    def __init__(self, make: Make) -> None:
        self._make = make
        self._proxies: dict[str, Proxy] = {}
        self._one_at_a_time = asyncio.Lock()

    async def answer(self, request: Request) -> Answer:
        """Do what is asked. Never raises for what a client can send."""
        try:
            async with self._one_at_a_time:
                return await self._route(request)
        except ApiError as error:
            return error.status, {"error": str(error), "status": error.status}

    async def _route(self, request: Request) -> Answer:
        if request.agent.startswith("Mozilla/"):  # no page in a browser may break things
            raise ApiError(403, "User agent not allowed")
        method = "POST" if request.method == "PATCH" else request.method
        match method, request.parts:
            case "GET", ("version",):
                return 200, {"version": VERSION}
            case "POST", ("reset",) if request.method == "POST":
                return await self._reset()
            case "POST", ("populate",) if request.method == "POST":
                return await self._populate(request)
            case "GET", ("proxies",):
                return 200, {name: proxy.to_json() for name, proxy in self._proxies.items()}
            case "POST", ("proxies",) if request.method == "POST":
                return await self._create(request.fields())
            case _, ("proxies", name):
                return await self._one_proxy(method, self._proxy(name), request)
            case "GET", ("proxies", name, "seen"):  # ours: Toxiproxy has no such thing
                return 200, self._proxy(name).seen()
            case _, ("proxies", name, "toxics"):
                return self._all_toxics(request.method, self._proxy(name), request)
            case _, ("proxies", name, "toxics", toxic):
                return self._one_toxic(method, self._proxy(name), toxic, request)
            case _, (("version" | "reset" | "populate" | "proxies"),):
                raise ApiError(405, "method not allowed")
        raise ApiError(404, "page not found")

    def _proxy(self, name: str) -> Proxy:
        if name not in self._proxies:
            raise ApiError(404, "proxy not found")
        return self._proxies[name]

    async def _one_proxy(self, method: str, proxy: Proxy, request: Request) -> Answer:
        match method:
            case "GET":
                return 200, proxy.to_json()
            case "POST":
                return await self._update(proxy, request.fields())
            case "DELETE":
                del self._proxies[proxy.name]
                await proxy.disable(reserve=False)
                return 204, None
        raise ApiError(405, "method not allowed")

    def _all_toxics(self, method: str, proxy: Proxy, request: Request) -> Answer:
        match method:
            case "GET":
                return 200, proxy.toxics_json()
            case "POST":
                fields = request.fields()
                if fields.text("type") in HTTP_TOXICS:
                    return 200, _new_http_toxic(fields, proxy)
                toxic = _new_toxic(fields, proxy)
                proxy.add(toxic)
                return 200, toxic_json(toxic)
        raise ApiError(405, "method not allowed")

    def _one_toxic(self, method: str, proxy: Proxy, name: str, request: Request) -> Answer:
        if name in proxy.http.standing:
            return _one_http_toxic(method, proxy, name, request)
        toxic = proxy.toxic(name)
        if toxic is None:
            raise ApiError(404, "toxic not found")
        match method:
            case "GET":
                return 200, toxic_json(toxic)
            case "POST":
                fields = request.fields()
                toxicity = fields.number("toxicity", toxic.toxicity)
                toxic.settings = _checked(lambda: changed(toxic.settings, fields.attributes()))
                toxic.toxicity = toxicity
                proxy.update(toxic)
                return 200, toxic_json(toxic)
            case "DELETE":
                proxy.remove(toxic)
                return 204, None
        raise ApiError(405, "method not allowed")

    async def _create(self, fields: Fields) -> Answer:
        proxy = _new_proxy(fields, self._make)
        if proxy.name in self._proxies:
            raise ApiError(409, "proxy already exists")
        await _listening(proxy, fields.flag("enabled", True))
        self._proxies[proxy.name] = proxy
        return 201, proxy.to_json()

    async def _update(self, proxy: Proxy, fields: Fields) -> Answer:
        listen = fields.text("listen") or proxy.listen
        upstream = fields.text("upstream") or proxy.upstream
        wanted = fields.flag("enabled", proxy.enabled)
        _checked(lambda: (host_port(listen), host_port(upstream)))
        if (listen, upstream) != (proxy.listen, proxy.upstream):
            await proxy.disable(reserve=False)
            proxy.listen, proxy.upstream = listen, upstream
        await _listening(proxy, wanted)
        return 200, proxy.to_json()

    async def _reset(self) -> Answer:
        for proxy in self._proxies.values():
            await _listening(proxy, True)
            for toxic in list(proxy.toxics):
                proxy.remove(toxic)
            for name in list(proxy.http.standing):
                proxy.remove_http(name)
        return 204, None

    async def _populate(self, request: Request) -> Answer:
        items = request.json()
        if not isinstance(items, list):
            raise ApiError(400, "bad request body: an array is wanted")
        made: list[Json] = []
        try:
            wanted = [(Fields(item), f" at proxy {n}") for n, item in enumerate(items, 1)]
            for fields, proxy in [(f, _new_proxy(f, self._make, where)) for f, where in wanted]:
                made.append((await self._put(proxy, fields.flag("enabled", True))).to_json())
        except ApiError as error:
            return error.status, {"error": str(error), "status": error.status,
                                  "proxies": made or None}  # fmt: skip
        return 201, {"proxies": made}

    async def _put(self, proxy: Proxy, enabled: bool) -> Proxy:
        """Add it, unless one that listens and leads to the same is there: that is kept as it is."""
        existing = self._proxies.get(proxy.name)
        if existing is not None:
            if (existing.listen, existing.upstream) == (proxy.listen, proxy.upstream):
                return existing
            await existing.disable(reserve=False)
            del self._proxies[proxy.name]
        await _listening(proxy, enabled)
        self._proxies[proxy.name] = proxy
        return proxy


def _checked(read: Callable[[], T]) -> T:
    """ValueError of a client's value as 400."""
    try:
        return read()
    except ValueError as error:
        raise ApiError(400, f"bad request body: {error}") from error


async def _listening(proxy: Proxy, wanted: bool) -> None:
    try:
        await (proxy.enable() if wanted else proxy.disable())
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise ApiError(500, f"listen tcp {proxy.listen}: {why}") from error


def _new_proxy(fields: Fields, make: Make, where: str = "") -> Proxy:
    name, upstream = fields.text("name"), fields.text("upstream")
    for field, value in (("name", name), ("upstream", upstream)):
        if not value:
            raise ApiError(400, f"missing required field: {field}{where}")
    proxy = make(name, fields.text("listen"), upstream)
    _checked(lambda: (host_port(proxy.listen), host_port(upstream)))
    return proxy


def _new_toxic(fields: Fields, proxy: Proxy) -> Applied:
    stream, type_ = fields.text("stream", "downstream"), fields.text("type")
    if stream.lower() not in {"upstream", "downstream"}:
        raise ApiError(400, "stream was invalid, can be either upstream or downstream")
    name = fields.text("name") or f"{type_}_{stream}"
    if type_ not in TOXICS:
        raise ApiError(400, "invalid toxic type")
    _refuse_taken(name, proxy)
    settings = _checked(lambda: changed(TOXICS[type_](), fields.attributes()))
    return Applied(name, type_, stream.lower(), fields.number("toxicity", 1), settings)


def _refuse_taken(name: str, proxy: Proxy) -> None:
    if proxy.toxic(name) is not None or name in proxy.http.standing:
        raise ApiError(409, "toxic already exists")


def _new_http_toxic(fields: Fields, proxy: Proxy) -> Json:
    """One of our own types: it acts on answers, so on the stream that carries them."""
    type_ = fields.text("type")
    if fields.text("stream", "downstream").lower() != "downstream":
        raise ApiError(400, f"{type_} acts downstream only")
    name = fields.text("name") or f"{type_}_downstream"
    _refuse_taken(name, proxy)
    toxic = _checked(lambda: made(type_, fields.attributes()))
    proxy.put_http(name, type_, fields.number("toxicity", 1), toxic)
    return proxy.http.standing[name].to_json()


def _one_http_toxic(method: str, proxy: Proxy, name: str, request: Request) -> Answer:
    standing = proxy.http.standing[name]
    match method:
        case "GET":
            return 200, standing.to_json()
        case "POST":
            fields = request.fields()
            toxic = _checked(lambda: made(standing.type, fields.attributes(), standing.toxic))
            proxy.put_http(name, standing.type, fields.number("toxicity", standing.share), toxic)
            return 200, standing.to_json()
        case "DELETE":
            proxy.remove_http(name)
            return 204, None
    raise ApiError(405, "method not allowed")
