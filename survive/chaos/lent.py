"""A Toxiproxy server that is not ours: ``proxy: {toxiproxy: "127.0.0.1:8474"}`` in a target.

A run makes its own proxies there, each named after it, and removes them at its end; nobody else's
is touched, so ``/reset`` is never asked for. Whoever holds the ledger can remove them: this module
is the cleaner of ``toxiproxy`` entries, whose name is the server's ``host:port``.

What the server is known to do wrong, and what is done about it (``survive.chaos.toxiproxy``):
removing a toxic hangs for 25 s under traffic and then answers 503 (each call has its deadline; the
proxy is closed and opened, and if need be made anew); ``reset_peer`` ends connections that were
open before it politely (they are closed when it is put on); its seed does nothing (a run through it
is not the same twice); it dials within its accept loop (an upstream that drops packets blocks it).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from survive.chaos.toxiproxy import ToxiproxyApi, proxy_path
from survive.contracts import FaultFailedError
from survive.errors import HarnessError, RefusedError
from survive.host.sockets import SocketTransport, split_address
from survive.transport import CallFailedError

RESOURCE = "toxiproxy"


def prefix(run_id: str) -> str:
    """How the names of a run's proxies begin; see targets/wiring.py."""
    return f"sv-{run_id[:8]}-"


class LentProxies:
    """The proxies of one run on a server that is not ours. Made by ``start``."""

    def __init__(self, run_id: str, api: str) -> None:
        self._run_id = run_id
        self._transport = SocketTransport()
        self._api = ToxiproxyApi(api, self._transport)
        self.api = api

    @classmethod
    async def start(
        cls, run_id: str, api: str, hosts: tuple[str, ...], making: Callable[[str, str], None]
    ) -> LentProxies:
        """Ready to create proxies; the ledger is told before. Raises RefusedError (6).

        ``hosts`` are those that the target allows; the server is on one of them.
        """
        host, _ = split_address(api)
        if host not in hosts:
            raise RefusedError(
                f"the Toxiproxy server {api} is on a host that is not allowed",
                hint=f"add {host} to `allow: {{hosts: [...]}}` of the target if it is yours",
            )
        proxies = cls(run_id, api)
        try:
            await _proxies(proxies._api)
        except FaultFailedError as error:
            await proxies._transport.close()
            raise RefusedError(
                f"no Toxiproxy server: {error}", hint=f"start it at {api}"
            ) from error
        making(RESOURCE, api)
        return proxies

    async def create(self, name: str, upstream: str, host: str = "") -> str:
        """A listener that leads to ``upstream``; its ``host:port``. Raises HarnessError.

        ``host``: where it listens, by default where the server's API does.
        """
        listen = f"{host or split_address(self.api)[0]}:0"
        body = {"name": name, "upstream": upstream, "listen": listen, "enabled": True}
        try:
            status, made = await self._api.call("POST", "/proxies", body)
            state = await self._api.state(name)
        except (CallFailedError, FaultFailedError) as error:
            raise HarnessError(f"create proxy {name} at {self.api}: {error}") from error
        if status != 201 or state is None or state.get("upstream") != upstream:
            raise HarnessError(f"create proxy {name} at {self.api}: status {status} {made}")
        return str(state["listen"])

    async def stop(self) -> None:
        """The run's proxies are removed. Idempotent. Raises HarnessError if some are left."""
        try:
            remaining = await _clean(self._run_id, self._api)
        except FaultFailedError as error:
            raise HarnessError(f"the run's proxies may be left: {error}") from error
        finally:
            await self._transport.close()
        if remaining:
            raise HarnessError(f"cannot be removed: {', '.join(remaining)}")


async def left(run: str, name: str) -> list[str]:
    """See survive.chaos.cleaners.Cleaner."""
    return await _with_api(name, lambda api: _left(run, api))


async def clean(run: str, name: str) -> list[str]:
    """See survive.chaos.cleaners.Cleaner."""
    return await _with_api(name, lambda api: _clean(run, api))


def by_hand(run: str, name: str) -> str:
    """See survive.chaos.cleaners.Cleaner."""
    return (
        f"curl -sS http://{name}/proxies | grep -o '{prefix(run)}[A-Za-z0-9-]*' | sort -u | "
        f"xargs -I@ curl -sS -X DELETE http://{name}/proxies/@"
    )


async def _with_api(address: str, work: Callable[[ToxiproxyApi], Any]) -> list[str]:
    transport = SocketTransport()
    try:
        found: list[str] = await work(ToxiproxyApi(address, transport))
        return found
    finally:
        await transport.close()


async def _proxies(api: ToxiproxyApi) -> Mapping[str, Any]:
    """All proxies of the server. Raises FaultFailedError."""
    try:
        status, proxies = await api.call("GET", "/proxies")
    except CallFailedError as error:
        raise FaultFailedError(f"{api.address} cannot be read: {error}") from error
    if status != 200 or not isinstance(proxies, dict):
        raise FaultFailedError(f"{api.address} cannot be read: status {status}")
    return proxies


async def _left(run: str, api: ToxiproxyApi) -> list[str]:
    try:
        names = [name for name in await _proxies(api) if name.startswith(prefix(run))]
    except FaultFailedError:
        if await api.refuses():
            return []  # the server has ended, and its proxies with it
        raise
    return [f"proxy {name} at {api.address}" for name in names]


async def _clean(run: str, api: ToxiproxyApi) -> list[str]:
    for what in await _left(run, api):
        name = what.split()[1]
        try:  # closed first: a proxy whose toxic hangs is deleted no faster than its toxic
            await api.call("POST", proxy_path(name), {"enabled": False})
            await api.call("DELETE", proxy_path(name))
        except CallFailedError:
            await asyncio.sleep(0)  # what is read next decides
    return await _left(run, api)
