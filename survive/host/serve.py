"""``python -m survive.host.serve replica.py:make_app --port 8001``: one service on sockets.

The process driver starts each replica of a service with this module. Its environment is the
service's ``env``; SURVIVE_SEED and SURVIVE_REPLICA seed its chance. It prints one line,
``listening on host:port``, once it accepts connections (``--port 0`` lets the system choose).
SIGTERM lets running answers end for at most a second. Start-up is kept lean, for five of these
start at once: nothing is imported that serving does not need.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import socket
import sys
import traceback
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import uvicorn

from survive.catalog import load_module
from survive.clock import LoopClock, seeded
from survive.contracts import AsgiApp, MakeApp, ServiceContext
from survive.errors import ExitCode, SurviveError, UsageError
from survive.host.sockets import SocketTransport
from survive.tls import ServedCertificate, Sniffing

KEEP_ALIVE_S = 75  # above SocketTransport's 60 s, so that the client closes idle connections
GRACE_S = 1
BACKLOG = 1024


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; the exit code. Expected errors are one line on stderr."""
    options = _options(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        make_app = load_app(options.app)
        listener = _listen(options.host, options.port)
    except SurviveError as error:
        print("\n".join(error.lines()), file=sys.stderr)
        return error.exit_code
    asyncio.run(_serve(make_app, listener))
    return 0


def load_app(name: str) -> MakeApp:
    """``path/to/replica.py:make_app`` → the callable. Raises UsageError."""
    path, _, attribute = name.rpartition(":")
    if not path or not Path(path).is_file():
        raise UsageError(f"no such app {name!r}", hint="write it like replica.py:make_app")
    found = getattr(load_module(Path(path)), attribute, None)
    if not callable(found):
        raise UsageError(f"{path} does not define {attribute!r}")
    make_app: MakeApp = found
    return make_app


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m survive.host.serve")
    parser.add_argument("app", help="FILE:make_app")
    parser.add_argument("--port", type=int, required=True, help="0 = any free port")
    parser.add_argument("--host", default="127.0.0.1")
    return parser.parse_args(argv)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named asyncio sets TCP_NODELAY on what it accepts; without, every answer
    # in two writes waits 40 ms for the client's delayed ACK.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # A restarted replica takes its old port back, whatever lingers in TIME_WAIT.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise UsageError(f"cannot listen on {host}:{port}: {error}") from error
    return listener


async def _serve(make_app: MakeApp, listener: socket.socket) -> None:
    transport = SocketTransport()
    if authority := os.environ.get("SURVIVE_TLS_CA"):
        transport.trust(authority, os.environ.get("SURVIVE_TLS_CLIENT", ""))
    background = _Background()
    context = ServiceContext(
        clock=LoopClock(asyncio.get_running_loop().time()),
        random=seeded(
            int(os.environ.get("SURVIVE_SEED", "0")), os.environ.get("SURVIVE_REPLICA", "")
        ),
        env=os.environ,
        call=transport.call,
        spawn=background.spawn,
        exit=os._exit,
    )
    server = _Server(_config(make_app(context)))
    if certificate := os.environ.get("SURVIVE_TLS_CERT"):
        _secure(server, certificate)
    try:
        await server.serve(sockets=[listener])
    finally:
        await background.stop()
        await transport.close()


def _config(app: AsgiApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="none",
        http="httptools",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )


def _secure(server: uvicorn.Server, certificate: str) -> None:
    """Serve TLS only, with a certificate that may be renewed, to callers that show theirs."""

    def renew_connections() -> None:
        # Those that idle are closed, the others after their answer: whoever called under the old
        # certificate has to look at the new one.
        for connection in list(server.server_state.connections):
            connection.shutdown()

    key = os.environ.get("SURVIVE_TLS_KEY", certificate)
    authority = os.environ.get("SURVIVE_TLS_CA", "")
    context = ServedCertificate(certificate, key, authority, renew_connections).context
    config = server.config
    config.load()
    if "plaintext_link" in os.environ.get("SURVIVE_WEAKNESSES", "").split(","):
        protocol = config.http_protocol_class
        config.http_protocol_class = lambda **given: Sniffing(lambda: protocol(**given), context)
    else:
        config.ssl = context


class _Server(uvicorn.Server):  # type: ignore[misc]
    """Says on stdout where it listens, once it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn.Server."""
        await super().startup(sockets=sockets)
        for listener in sockets or []:
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            print(f"listening on {shown}:{port}", flush=True)


class _Background:
    """The service's own tasks. One that dies takes the service with it: half a service lies."""

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[None], None] = {}

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """See ServiceContext.spawn."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Cancel all and wait for them."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            print("a background task died:", file=sys.stderr)
            traceback.print_exception(error)
            sys.stderr.flush()
            os._exit(ExitCode.BUG)


if __name__ == "__main__":
    sys.exit(main())
