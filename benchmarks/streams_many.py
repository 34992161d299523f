"""Thousands of streams at once: ``python benchmarks/streams_many.py``; results-streams.md is of it.

The load process on one core, the stream server on the other; each stream takes 7 gaps, so rate x
duration are open at a time. Counted are the load's own descriptors (what is really open), and its
resident size with all lanes open less its size when it was ready: the memory of a lane.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.load import CLIENT, SERVER, STREAM_PORT, machine, scenario
from benchmarks.memory import load_process, resident_mb

GAPS = 7  # between the server's eight writes


class Watch(threading.Thread):
    """The load process's size and open sockets, four times a second."""

    def __init__(self) -> None:
        super().__init__()
        self.over = threading.Event()
        self.first_mb = self.most_mb = 0.0
        self.most_open = 0

    def run(self) -> None:
        """Until told to stop."""
        pid = None
        while not self.over.wait(0.1):
            pid = pid or load_process()
            if pid is None:
                continue
            with contextlib.suppress(OSError):
                found = len(list(Path(f"/proc/{pid}/fd").iterdir()))
                self.most_open = max(self.most_open, found)
            size = resident_mb(pid)
            self.first_mb = size if self.most_open < 50 else self.first_mb
            self.most_mb = max(self.most_mb, size)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=5_500)
    parser.add_argument("--gap", type=float, default=2.5, help="seconds between a stream's writes")
    arguments = parser.parse_args()
    lasts = arguments.gap * GAPS
    rate = round(arguments.streams / lasts)
    lanes = arguments.streams * 6 // 5  # room for chance
    seconds = 2.5 * lasts
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (hard, hard)
    )  # the server's; the load raises its own
    kind = (
        "chat: {post: /v1/chat/completions, json: {model: demo, stream: true, max_tokens: 64, "
        "messages: [{role: user, content: hello}]}, expect: {stream: complete}, "
        f"timeout: {lasts * 2:.0f}s}}"
    )
    watch = Watch()
    with tempfile.TemporaryDirectory(prefix="survive-streams-") as scratch:
        folder = Path(scratch)
        server = subprocess.Popen(
            ["taskset", "-c", SERVER, sys.executable, str(HERE / "peers/streams.py"),
             str(STREAM_PORT), str(arguments.gap)]
        )  # fmt: skip
        try:
            time.sleep(1.0)
            file = scenario(folder, f"http://127.0.0.1:{STREAM_PORT}", kind, rate, seconds, lanes)
            watch.start()
            done = subprocess.run(
                ["taskset", "-c", CLIENT, sys.executable, "-m", "survive", "run", str(file),
                 "--out", str(folder / "runs"), "--format", "json"],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
        finally:
            watch.over.set()
            server.terminate()
            server.wait(10)
    watch.join()
    if not done.stdout:
        print(done.stderr)
        return 1
    verdict = json.loads(done.stdout)
    load = verdict["load"]
    per_lane_kb = (watch.most_mb - watch.first_mb) * 1024 / max(1, watch.most_open)
    print(f"{machine()}")
    print(f"{rate} streams/s of {lasts:.1f} s for {seconds:.0f} s; verdict {verdict['verdict']}")
    print(f"open at once: {watch.most_open:,} descriptors; planned {load['planned']:,}, "
          f"ok {load['ok']:,}, sent {load['sent']:,}")  # fmt: skip
    print(f"memory: {watch.first_mb:.0f} MB when ready, {watch.most_mb:.0f} MB at most, "
          f"{per_lane_kb:.1f} kB a lane")  # fmt: skip
    print(f"send lag p99 {load['send_lag_ms']['p99']} ms")
    return 0 if watch.most_open >= 5_000 and load["ok"] == load["planned"] else 1


if __name__ == "__main__":
    sys.exit(main())
