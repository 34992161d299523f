"""Against a server that we did not write: nginx from Debian, with its own access log as witness."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed (apt-get install nginx)"),
    pytest.mark.alone,
]

CONF = """
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 2048; }}
http {{
  access_log {log};
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  keepalive_requests 100000000;
  server {{
    listen 127.0.0.1:{port};
    location / {{ return 200 "hello from nginx\\n"; }}
  }}
}}
"""

BOTH = sorted(os.sched_getaffinity(0))


def pinned(core, argv):
    """The command on one core, so that server and harness do not share one."""
    return ["taskset", "-c", str(core), *argv]


@pytest.fixture
def nginx(tmp_path):
    def start(log="off"):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        conf = tmp_path / "nginx.conf"
        conf.write_text(CONF.format(folder=tmp_path, port=port, log=log))
        process = subprocess.Popen(
            pinned(BOTH[0], [NGINX, "-c", str(conf), "-p", str(tmp_path)]),
            stderr=subprocess.DEVNULL,
        )
        started.append(process)
        deadline = time.monotonic() + 5
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=0.2).close()
                return f"http://127.0.0.1:{port}"
            except OSError:
                assert time.monotonic() < deadline, (tmp_path / "error.log").read_text()
                time.sleep(0.02)

    started = []
    yield start
    for process in started:
        process.send_signal(signal.SIGTERM)
        process.wait(5)


def survive(tmp_path, file, url, **environment):
    done = subprocess.run(
        pinned(
            BOTH[-1],
            [sys.executable, "-m", "survive", "run", str(file), "--out", str(tmp_path / "runs")],
        ),
        cwd=ROOT,
        env={**os.environ, "SURVIVE_NGINX_URL": url, **environment},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    folders = sorted((tmp_path / "runs").glob("*/2*"))
    assert folders, done.stdout + done.stderr
    document = json.loads((folders[-1] / "verdict.json").read_text())
    return done.returncode, document, done.stdout + done.stderr


def test_an_external_target_survives_a_slow_link(tmp_path, nginx):
    log = tmp_path / "access.log"
    url = nginx(f"{log}")
    code, verdict, output = survive(tmp_path, ROOT / "scenarios/live/nginx.survive.yaml", url)
    assert code == 0, output
    assert verdict["faults"][0]["proof"] == "proven"
    pages = [line for line in log.read_text().splitlines() if '"GET / ' in line]
    probes = 1_000  # observations use the health path, which is "/" here too
    assert verdict["load"]["attempts"] <= len(pages) <= verdict["load"]["attempts"] + probes


FLOOD = """
survive: 1
name: flood
target:
  driver: external
  entry: web
  services: {{web: {{url: "${{SURVIVE_NGINX_URL}}", health: {{get: /, within: 5s}}}}}}
  links: {{}}
  allow: {{hosts: [127.0.0.1], faults: [network]}}
requests: {{page: {{get: /, timeout: 500ms}}}}
load:
  lanes: 64
  phases: [{{name: flat, rate: {rate}, for: 5s}}]
objectives: {{answers: {{metric: success, min: 95%, during: run}}}}
"""

RATE = "600k/s"  # three times what one core can send, seven times what its Python lanes can

SLOW = """
import asyncio
class Slow(asyncio.Protocol):
    def connection_made(self, transport): self.t = transport
    def data_received(self, data):
        asyncio.get_running_loop().call_later(0.2, self.t.write,
            b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n\\r\\nok")
async def main():
    server = await asyncio.get_running_loop().create_server(Slow, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


def test_a_rate_beyond_the_harness_is_never_blamed_on_the_target(tmp_path, nginx):
    file = tmp_path / "flood.survive.yaml"
    file.write_text(FLOOD.format(rate=RATE))
    # Compiled lanes are nearly as fast as nginx: with little else on its core, it would be slow.
    code, verdict, output = survive(tmp_path, file, nginx(), SURVIVE_PLAIN_LANES="1")
    assert code == 3, output
    assert "the harness was the bottleneck" in " ".join(verdict["reasons"])


def test_the_same_rate_on_a_slow_target_with_an_idle_harness_is_the_targets_doing(tmp_path):
    server = subprocess.Popen(
        pinned(BOTH[0], [sys.executable, "-c", SLOW]), stdout=subprocess.PIPE, text=True
    )
    try:
        port = int(server.stdout.readline())
        file = tmp_path / "flood.survive.yaml"
        file.write_text(FLOOD.format(rate=RATE))
        code, verdict, output = survive(tmp_path, file, f"http://127.0.0.1:{port}")
    finally:
        server.kill()
        server.wait(5)
        server.stdout.close()
    assert code == 1, output
    assert verdict["verdict"] == "failed"
