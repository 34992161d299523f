"""A machine that runs out of local ports: the harness says that it was the one to fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TRIED = subprocess.run(
    ["unshare", "--net", "ip", "link", "set", "lo", "up"], capture_output=True, check=False
)
pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(TRIED.returncode != 0, reason="may not make network namespaces"),
]

SERVER = """
import asyncio, os

async def serve(reader, writer):
    while (line := await reader.readline()):
        while (await reader.readline()) not in (b"\\r\\n", b""):
            pass
        await asyncio.sleep(0.3 if b"/slow" in line else 0.0)
        writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n\\r\\nok")
        await writer.drain()

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(os.environ["PORT"]))
    await server.serve_forever()

asyncio.run(main())
"""

SCENARIO = """
survive: 1
name: ports
target:
  driver: process
  entry: web
  services:
    web: {{run: {argv}, health: {{get: /, within: 10s}}}}
  allow: {{hosts: [127.0.0.1]}}
requests: {{page: {{get: /slow, timeout: 1s}}}}
load:
  arrivals: uniform
  phases: [{{name: flat, rate: 80/s, for: 3s}}]
objectives: {{answers: {{metric: success, min: 99%, during: run}}}}
"""

# Ten ports, where 80/s that take 0.3 s each need 24.
FEW_PORTS = """
ip link set lo up
echo 50000 50009 > /proc/sys/net/ipv4/ip_local_port_range
exec "$@"
"""


def test_no_ports_are_the_harness_fault_and_explained(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    file = tmp_path / "ports.survive.yaml"
    file.write_text(SCENARIO.format(argv=json.dumps([sys.executable, str(tmp_path / "server.py")])))
    survive = [sys.executable, "-m", "survive", "run", str(file), "--out", str(tmp_path / "runs")]
    done = subprocess.run(
        ["unshare", "--net", "sh", "-ec", FEW_PORTS, "sh", *survive],
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "96 lanes to one address need as many local ports and this machine has 10" in done.stderr
    folder = next((tmp_path / "runs").glob("ports/2*"))
    verdict = json.loads((folder / "verdict.json").read_text())
    assert verdict["verdict"] == "inconclusive"
    assert verdict["reasons"][0].startswith("the harness could not send ")
    assert "no_ports: no local port was free for a new connection" in verdict["reasons"][0]
    assert verdict["load"]["ok"] > 30  # ten at a time went through
    assert verdict["load"]["failed"] > 30
