"""The reference services as processes, on real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from survive.catalog import builtin_root
from survive.host.serve import load_app, main
from survive.host.sockets import SocketTransport
from survive.transport import Broken, CallFailedError, Request, Response, read_all

REFERENCE = builtin_root() / "targets" / "reference"
ROOT = builtin_root()
BEARER = ("authorization", "Bearer secret")


class Processes:
    """Starts services; ends all of them."""

    def __init__(self) -> None:
        self.all: list[subprocess.Popen[str]] = []

    def start(self, app: str, **env: str) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "survive.host.serve", app, "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "SURVIVE_SEED": "42", **env},
        )
        self.all.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        return process, line.removeprefix("listening on ").strip()

    def end(self) -> None:
        for process in self.all:
            process.kill()
            process.communicate(timeout=10)


@pytest.fixture
def processes() -> Iterator[Processes]:
    started = Processes()
    yield started
    started.end()


def service(name: str) -> str:
    return f"{REFERENCE / name}.py:make_app"


def chat(tokens: int) -> Request:
    body = {"stream": True, "max_tokens": tokens, "messages": [{"role": "user", "content": "hi"}]}
    return Request("POST", "/v1/chat/completions", (BEARER,), json.dumps(body).encode())


async def until(transport: SocketTransport, address: str, path: str, line: str) -> None:
    """Ask until the answer holds the line; ends with the test's timeout."""
    async with asyncio.timeout(5):
        while True:
            response = await transport.call(address, Request("GET", path), timeout_s=2)
            if line.encode() in await read_all(response):
                return
            await asyncio.sleep(0.02)


async def broken(response: Response) -> tuple[bytes, str]:
    body = b""
    try:
        async for chunk in response.chunks():
            body += chunk
    except CallFailedError as error:
        return body, str(error.how)
    return body, ""


def test_the_stack_on_sockets(processes: Processes) -> None:
    replicas = [
        processes.start(service("replica"), SURVIVE_REPLICA=f"inference-{n}", SURVIVE_GPU_TOKEN="t")
        for n in range(2)
    ]
    addresses = [address for _, address in replicas]
    _, retrieval = processes.start(service("retrieval"), SURVIVE_REPLICA="retrieval-0")
    gateway, entry = processes.start(
        service("gateway"),
        UPSTREAMS=",".join(addresses),
        RETRIEVAL=retrieval,
        SURVIVE_KEY="secret",
    )

    async def use() -> None:
        transport = SocketTransport()
        await until(transport, entry, "/healthz", '"ok"')

        response = await transport.call(entry, chat(5), timeout_s=5)
        body = await read_all(response)
        assert response.status == 200 and body.endswith(b"data: [DONE]\n\n")
        assert body.count(b'"content":"') == 6  # the role's empty one, and five tokens

        denied = await transport.call(entry, Request("GET", "/v1/search?q=gpu"), timeout_s=5)
        assert denied.status == 401
        await denied.close()
        search = Request("GET", "/v1/search?q=gpu", (BEARER,))
        response = await transport.call(entry, search, timeout_s=5)
        assert len(json.loads(await read_all(response))["results"]) == 5
        assert response.headers["x-replica-id"] == "retrieval-0"

        # A client that leaves frees its place in the batch, two hops away.
        response = await transport.call(entry, chat(4000), timeout_s=5)
        at = addresses[int(response.headers["x-replica-id"][-1])]
        running = 'vllm:num_requests_running{model_name="demo",engine="0",device="simulated"}'
        await until(transport, at, "/metrics", f"{running} 1")
        await response.close()
        await until(transport, at, "/metrics", f"{running} 0")

        # A GPU lost under a stream: it breaks, and is seen as broken, two hops away.
        response = await transport.call(entry, chat(4000), timeout_s=5)
        at = addresses[int(response.headers["x-replica-id"][-1])]
        lose = Request("POST", "/admin/gpu", (("x-gpu-token", "t"),), b'{"lost": true}')
        assert (await transport.call(at, lose, timeout_s=2)).status == 200
        body, how = await broken(response)
        assert body and b"[DONE]" not in body and how == Broken.CLOSED

        # A dead replica: the rest goes on, and nobody sees an error.
        victim = next(p for p, address in replicas if address == at)
        victim.kill()
        victim.wait(timeout=5)
        for _ in range(6):
            response = await transport.call(entry, chat(1), timeout_s=5)
            assert response.status == 200 and await read_all(response)
        await transport.close()

    asyncio.run(use())
    gateway.send_signal(signal.SIGTERM)
    assert gateway.wait(timeout=3) == -signal.SIGTERM


def test_a_background_task_that_dies_takes_the_service_with_it(
    processes: Processes, tmp_path: Path
) -> None:
    app = tmp_path / "dying.py"
    app.write_text(
        "async def die(context):\n"
        "    await context.clock.sleep_until(context.clock.now_us() + 100_000)\n"
        "    raise ValueError('the reason')\n"
        "def make_app(context):\n"
        "    context.spawn(die(context))\n"
        "    async def app(scope, receive, send): ...\n"
        "    return app\n"
    )
    process, _ = processes.start(f"{app}:make_app")
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 70
    assert "the reason" in errors


@pytest.mark.parametrize("app", ["nowhere.py:make_app", "make_app", f"{service('gateway')}_no"])
def test_an_app_that_is_not_there(app: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([app, "--port", "0"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_port_that_is_taken(processes: Processes) -> None:
    _, address = processes.start(service("retrieval"))
    argv = [sys.executable, "-m", "survive.host.serve", service("retrieval"), "--port"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    second = subprocess.run(
        [*argv, address.rpartition(":")[2]],
        capture_output=True,
        text=True,
        timeout=20,
        env=environment,
        check=False,
    )
    assert second.returncode == 2
    assert "address already in use" in second.stderr.lower()
    assert "Traceback" not in second.stderr


def test_load_app_finds_the_callable() -> None:
    assert load_app(service("replica")).__name__ == "make_app"


def test_small_answers_do_not_wait_for_a_delayed_ack(processes: Processes) -> None:
    _, address = processes.start(service("retrieval"))

    async def use() -> float:
        transport, loop = SocketTransport(), asyncio.get_running_loop()
        times = []
        for _ in range(21):
            began = loop.time()
            await read_all(await transport.call(address, Request("GET", "/health"), timeout_s=5))
            times.append(loop.time() - began)
        await transport.close()
        return sorted(times)[10]

    # Linux delays an ACK by 40 ms; without TCP_NODELAY head and body would wait for it.
    assert asyncio.run(use()) < 0.02
