"""The fault proxy, a program of its own: ``python server.py --port 0``.

Prints ``listening 127.0.0.1:PORT`` once its API can be called, and ends when its standard input
closes, so that it never outlives whoever started it. Standard library only: it is up in a blink.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import resource
import signal
import sys
from functools import partial
from pathlib import Path

# A program, yet its parts are modules: found from the folder that holds ``faults/``.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from faults.proxy.api import Api
from faults.proxy.calls import serve
from faults.proxy.poller import Loop, Poller
from faults.proxy.proxies import Proxy


async def run(port: int, seed: int, poller: Poller) -> None:
    """Serve until standard input closes or a signal asks to end. Raises OSError on a taken port."""
    api = Api(partial(Proxy, seed=seed, poller=poller))
    server = await asyncio.start_server(lambda r, w: serve(api.answer, r, w), "127.0.0.1", port)
    host, bound = server.sockets[0].getsockname()[:2]
    print(f"listening {host}:{bound}", flush=True)
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, done.set)
    loop.add_reader(sys.stdin.fileno(), _on_input, done)
    await done.wait()


def _on_input(done: asyncio.Event) -> None:
    """Standard input is only there to be closed; what comes by it is passed over."""
    if not os.read(sys.stdin.fileno(), 4096):
        done.set()


def main() -> int:
    """The program. 0 = asked to end, 1 = could not listen or watch standard input."""
    parser = argparse.ArgumentParser(description="Toxiproxy-compatible fault proxy")
    parser.add_argument("--port", type=int, default=8474, help="of the API; 0 = any")
    parser.add_argument("--seed", type=int, default=0, help="of jitter and toxicity")
    chosen = parser.parse_args()
    # A black hole holds two sockets for each caller that gave up: as many as the host allows.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        # What is there now stays: the garbage collector shall not look at it while chunks wait.
        gc.freeze()
        poller = Poller()
        with asyncio.Runner(loop_factory=lambda: Loop(poller)) as runner:
            runner.run(run(chosen.port, chosen.seed, poller))
    except OSError as error:
        print(f"fault proxy: {error} (standard input must be a pipe or a terminal)",
              file=sys.stderr)  # fmt: skip
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
