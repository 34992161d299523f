"""What is filed as sent is what a server that we did not write has logged, second by second."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from loadtools import Tally, make_kind, make_plan, run_load

from survive.load.desk import PLAIN
from survive.record.hdr import highest_of
from survive.record.samples import Series
from survive.units import SECOND

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
RATE, SECONDS = 400, 4

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed (apt-get install nginx)"),
]

CONF = """
daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
  log_format moments '$msec'; access_log {folder}/access.log moments;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{ listen 127.0.0.1:{port}; location / {{ return 200 "ok"; }} }}
}}
"""


@pytest.mark.parametrize("plain", [False, True])
def test_sent_is_what_the_servers_log_says_each_second(
    plain: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if plain:
        monkeypatch.setenv(PLAIN, "1")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "conf").write_text(CONF.format(folder=tmp_path, port=port))
    assert NGINX is not None
    server = subprocess.Popen([NGINX, "-c", str(tmp_path / "conf"), "-p", str(tmp_path)])
    plan = make_plan([make_kind()], rps=RATE, for_us=SECONDS * SECOND, lanes=20)
    try:
        _await(port)
        wall_ahead_s = time.time() - time.monotonic()
        tally = asyncio.run(run_load(tmp_path, plan, [make_kind()], f"127.0.0.1:{port}"))
    finally:
        server.terminate()
        server.wait(5)
    assert tally.outcomes() == {"ok": RATE * SECONDS}

    moments = [float(line) for line in (tmp_path / "access.log").read_text().split()]
    assert len(moments) == RATE * SECONDS
    # nginx logs at the end of a request, in ms; uniform arrivals lie 1.25 ms off each second.
    begin_s = tally.origin_us / SECOND + wall_ahead_s
    seen = Counter(int(moment - begin_s) for moment in moments)
    for second in range(SECONDS):
        assert _sent(tally, second) == RATE
        assert abs(seen[second] - RATE) <= 2 + _slower_than_1_ms(tally)


def _sent(tally: Tally, second: int) -> int:
    return sum(
        counts.total()
        for key, counts in tally.counts.items()
        if key.series is Series.SEND_LAG and key.slice == second
    )


def _slower_than_1_ms(tally: Tally) -> int:
    return sum(
        count for index, count in tally.merged(Series.LATENCY).items() if highest_of(index) > 1_000
    )


def _await(port: int) -> None:
    deadline = time.monotonic() + 5
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=0.2).close()
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
