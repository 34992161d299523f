"""A stack of one small app under the virtual clock, and a prober on it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from survive.clock import LoopClock, sleep_us
from survive.contracts import Json, Receive, Scope, Send
from survive.host.loop import virtual_run
from survive.host.memory import MemoryNetwork, MemoryTransport
from survive.probe.engine import Job, Prober, Slots
from survive.probe.scrape import Scraped
from survive.scenario.model import Metric, Probe, ProbeCall

S = 1_000_000
KEYS = {"bearer": "k", "acme": "k.acme", "globex": "k.globex"}
WHO = {"Bearer k": "bearer", "Bearer k.acme": "acme", "Bearer k.globex": "globex"}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as the fake stack sees it."""

    method: str
    path: str
    query: str
    who: str  # identity, "" = a stranger
    request_id: str
    body: Json


Answering = Callable[[Asked], Awaitable[tuple[int, list[bytes]]]]


@dataclass
class Stack:
    """Answers by ``answering``; ``None`` = never. Every request is noted."""

    answering: Answering
    asked: list[Asked] = field(default_factory=list)

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI app."""
        asked = await _asked(scope, receive)
        self.asked.append(asked)
        status, chunks = await self.answering(asked)
        await send({"type": "http.response.start", "status": status, "headers": []})
        for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _asked(scope: Scope, receive: Receive) -> Asked:
    body = b"".join([part async for part in _body(receive)])
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    url = urlsplit(scope["path"] + "?" + scope["query_string"].decode())
    return Asked(
        scope["method"],
        url.path,
        parse_qs(url.query).get("q", [""])[0],
        WHO.get(headers.get("authorization", ""), ""),
        headers.get("x-request-id", ""),
        json.loads(body) if body else None,
    )


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        yield message.get("body", b"")
        more = bool(message.get("more_body"))


def always(status: int, *chunks: bytes, after_us: int = 0) -> Answering:
    """The same answer to everybody."""

    async def answer(_: Asked) -> tuple[int, list[bytes]]:
        await sleep_us(LoopClock(0.0), after_us)
        return status, list(chunks)

    return answer


async def never(_: Asked) -> tuple[int, list[bytes]]:
    """No answer."""
    await asyncio.Event().wait()
    raise AssertionError


async def no_link(link: str) -> Mapping[str, int]:
    """No link can be looked at."""
    raise LookupError(link)


ASK = ProbeCall("GET", "/v1/search?q=gpu")
WRITE = ProbeCall("POST", "/v1/documents", json={"text": "canary {{ canary }}"}, auth="acme")
READ = ProbeCall("GET", "/v1/search?q={{ canary }}", auth="acme")


def probe(metric: Metric, **keys: Any) -> Probe:
    """A probe that is due every second and waits two."""
    return Probe("p", metric, **{"every_us": S, "within_us": 2 * S, **keys})


def play(
    answering: Answering,
    *probes: Probe,
    times: int = 1,
    logs: Mapping[str, tuple[str, ...]] | None = None,
    look: Any = no_link,
    scraped: Scraped | None = None,
    stack: Stack | None = None,
) -> list[dict[str, Any]]:
    """The events of probes on a stack, without the last one, which must say how many there are."""
    told: list[dict[str, Any]] = []
    used = stack or Stack(answering)
    used.answering = answering

    async def main() -> None:
        clock = LoopClock(asyncio.get_running_loop().time() + 1)
        network = MemoryNetwork(clock)
        node, address = network.node("stack-0"), network.address()
        node.mount(lambda: used.app)
        network.listen(address, node)
        job = Job(
            seed=7,
            entry=address,
            probes=tuple(Slots(p, range(0, times * p.every_us, p.every_us)) for p in probes),
            variables={"secret": "Blue-Heron"},
            keys=KEYS,
            logs=logs or {},
            scraped=(Scraped(scraped.service, scraped.health, scraped.metrics, (address,)),)
            if scraped
            else (),
            scrapes=range(0, times * S, S) if scraped else range(0),
        )
        copied = Job.from_json(json.loads(json.dumps(job.to_json())))  # as to a process
        assert copied == job

        def tell(fields: Mapping[str, Json]) -> None:
            told.append(dict(fields))

        await Prober(copied, clock, MemoryTransport(network), tell, look).run()

    virtual_run(main())
    last = told.pop()
    assert last["done"] is True and last["sent"] == len(told)
    if last["missed"]:
        told.append({"missed": last["missed"]})
    return told


def one(answering: Answering, looked: Probe, **keys: Any) -> tuple[bool | None, str]:
    """What a single probing found, and why."""
    (found,) = play(answering, looked, **keys)
    assert found["metric"] == str(looked.metric) and found["start_us"] == 0
    return found["ok"], found["why"]
