"""Memory of one load worker at full rate: ``make bench-memory`` (ten minutes).

The load process on one core, nginx on the other, twice the rate that a core can send; its resident
size each ten seconds. Flat means: the last minute is no more than 2 % above the second.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.load import CLIENT, LANES, machine, nginx, scenario

BAR_MB = 120


def load_process() -> int | None:
    """Pid of the load process of a run that this process has started; others may run too."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            argv = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"survive.load.process" in argv and is_ours(int(entry.name)):
            return int(entry.name)
    return None


def is_ours(pid: int) -> bool:
    """Whether this process is an ancestor of another."""
    while pid > 1 and pid != os.getpid():
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return pid == os.getpid()


def resident_mb(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    line = next((line for line in status.splitlines() if line.startswith("VmRSS")), "VmRSS: 0 kB")
    return int(line.split()[1]) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=int, default=150_000)
    arguments = parser.parse_args()
    seconds = arguments.minutes * 60
    seen: list[tuple[float, float]] = []
    over = threading.Event()

    def watch() -> None:
        pid, began = None, 0.0
        while not over.wait(1.0 if pid is None else 10.0):
            if pid is None:
                pid, began = load_process(), time.monotonic()
            elif size := resident_mb(pid):
                seen.append((time.monotonic() - began, size))
                print(f"{seen[-1][0]:6.0f} s  {size:7.1f} MB", flush=True)

    with tempfile.TemporaryDirectory(prefix="survive-memory-") as scratch:
        folder = Path(scratch)
        with nginx(folder) as url:
            kind = "get: {get: /, timeout: 1s}"
            file = scenario(folder, url, kind, arguments.rate, seconds, LANES)
            watching = threading.Thread(target=watch)
            watching.start()
            done = subprocess.run(
                ["taskset", "-c", CLIENT, sys.executable, "-m", "survive", "run", str(file),
                 "--out", str(folder / "runs")],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            over.set()
            watching.join()
    if not seen:
        print(done.stdout, done.stderr, sep="\n")
        return 1
    early = [size for at, size in seen if 60 <= at < 120] or [seen[0][1]]
    late = [size for at, size in seen if at >= seconds - 60] or [seen[-1][1]]
    grown = statistics.mean(late) / statistics.mean(early) - 1
    rate = next((line for line in done.stdout.splitlines() if "achieved" in line), "").strip()
    print(f"{machine()}; {rate}")
    print(f"largest {max(size for _, size in seen):.0f} MB (bar {BAR_MB}), grown {grown:+.1%}")
    return 0 if max(size for _, size in seen) <= BAR_MB and grown <= 0.02 else 1


if __name__ == "__main__":
    sys.exit(main())
