"""The probe process of a real run: its whole life, and its ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from probetools import S, probe

from survive.errors import ExitCode
from survive.probe.engine import Job, Probing, Slots
from survive.scenario.model import Metric, ProbeCall

STRANGER = probe(
    Metric.DENIED,
    ask=ProbeCall("GET", "/x", auth="none", status=frozenset({401})),
    every_us=S // 10,
)


class _Refuses(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(401)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture(scope="module")
def entry() -> Iterator[str]:
    """A server on loopback that refuses everybody."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refuses) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class Prober:
    """The process and our ends of its pipes."""

    def __init__(self, folder: Path, entry: str, for_us: int) -> None:
        spec = folder / "probe.json"
        job = Job(7, entry, (Slots(STRANGER, range(0, for_us, STRANGER.every_us)),))
        spec.write_text(json.dumps(Probing(job).to_json()))
        report, report_end = os.pipe()
        control_end, self.control = os.pipe()
        argv = [sys.executable, "-m", "survive.probe.process", "--spec", str(spec)]
        self.process = subprocess.Popen(
            [*argv, "--control", str(control_end), "--report", str(report_end)],
            pass_fds=(control_end, report_end),
        )
        os.close(report_end)
        os.close(control_end)
        self.report = os.fdopen(report)
        assert self.read() == {"ready": True}

    def read(self) -> dict[str, Any]:
        """The next message."""
        message: dict[str, Any] = json.loads(self.report.readline())
        return message

    def start(self) -> None:
        """t = 0 is now."""
        os.write(self.control, b'{"start": %d}\n' % (time.monotonic_ns() // 1000))


@contextmanager
def prober(folder: Path, entry: str, for_us: int) -> Iterator[Prober]:
    """A ready prober, gone afterwards."""
    run = Prober(folder, entry, for_us)
    try:
        yield run
    finally:
        run.process.kill()
        run.process.wait()
        run.report.close()


def test_it_tells_every_finding_and_ends_by_itself(tmp_path: Path, entry: str) -> None:
    with prober(tmp_path, entry, 3 * S // 10) as run:
        run.start()
        *found, last = [json.loads(line) for line in run.report]
        assert [f["fields"]["start_us"] for f in found] == [0, 100_000, 200_000]
        assert all(f["fields"]["ok"] is True for f in found)
        assert last["fields"] == {"probe": "", "done": True, "sent": 3, "missed": {}}
        assert run.process.wait(5) == 0


def test_it_leaves_when_its_parent_is_gone(tmp_path: Path, entry: str) -> None:
    with prober(tmp_path, entry, 600 * S) as run:
        run.start()
        run.read()
        os.close(run.control)
        assert run.process.wait(5) == ExitCode.TERMINATED


def test_killed_it_never_says_that_it_is_done(tmp_path: Path, entry: str) -> None:
    with prober(tmp_path, entry, 600 * S) as run:
        run.start()
        run.read()
        run.process.send_signal(signal.SIGKILL)
        rest = [json.loads(line) for line in run.report if line.endswith("\n")]
        assert not any("done" in message["fields"] for message in rest)
