"""Two stand-ins, a front and its workers; put your own services in their place.

An ASGI app made from a context that has the service's environment (`context.env`) and its way to
other services (`context.call`) runs in real and in virtual time.
"""

from __future__ import annotations

from survive.clock import sleep_us
from survive.contracts import AsgiApp, Receive, Scope, Send, ServiceContext
from survive.transport import CallFailedError, Request, read_all

TRY_S = 0.8  # of one worker
WORK_US = 5_000


def make_front(context: ServiceContext) -> AsgiApp:
    """`GET /ask` is answered by the first worker that can; the workers take turns."""
    workers = context.env["WORKERS"].split(",")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/health":
            await answer(send, 200, b"ok")
            return
        workers.append(workers.pop(0))
        for address in tuple(workers):
            try:
                found = await context.call(address, Request("GET", "/work"), timeout_s=TRY_S)
                await answer(send, found.status, await read_all(found))
                return
            except CallFailedError:
                continue
        await answer(send, 502, b"no worker")

    return app


def make_worker(context: ServiceContext) -> AsgiApp:
    """Answers whatever it is asked with its own name, after some work."""
    name = context.env.get("SURVIVE_REPLICA", "worker").encode()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != "/health":
            await sleep_us(context.clock, WORK_US)
        await answer(send, 200, name)

    return app


async def answer(send: Send, status: int, body: bytes) -> None:
    """A whole answer."""
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
