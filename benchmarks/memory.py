"""Memory of one load worker at full rate: ``make bench-memory`` (ten minutes).

The load process on one core, nginx on the other. First what a core can send here and now, then 80 %
of that (over it, what is sent is only what is about to expire), and the resident size of the load
process every ten seconds. Flat means: the last minute is no more than 2 % above the second.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.load import LANES, machine, nginx, scenario, survive_load

BAR_MB = 120
FULL = 0.8  # of what was reached in the seconds before
TRY_S, TRY_RPS = 4.0, 200_000
GROWTH = 0.02
WARM_S = 60.0


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


def watched(work: Callable[[], dict]) -> tuple[dict, list[tuple[float, float]]]:
    """What some work returns, and (seconds since there is a load process, MB) meanwhile."""
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

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        return work(), seen
    finally:
        over.set()
        watching.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=int, help="requests a second; default as said above")
    parser.add_argument("-o", "--output", type=Path, help="a Markdown page of it")
    arguments = parser.parse_args()
    seconds = arguments.minutes * 60
    with tempfile.TemporaryDirectory(prefix="survive-memory-") as scratch:
        folder = Path(scratch)
        with nginx(folder) as url:

            def load(rate: int, for_s: float, timeout: str) -> dict:
                kind = f"get: {{get: /, timeout: {timeout}}}"
                file = scenario(folder, url, kind, rate, for_s, LANES)
                return survive_load(file, folder, for_s + 120)

            rate = arguments.rate or round(FULL * load(TRY_RPS, TRY_S, "20s")["achieved_rps"])
            print(f"{rate:,}/s for {seconds:.0f} s", flush=True)
            report, seen = watched(lambda: load(rate, seconds, "1s"))
    early = [size for at, size in seen if WARM_S <= at < 2 * WARM_S] or [seen[0][1]]
    late = [size for at, size in seen if at >= seen[-1][0] - WARM_S]
    grown = statistics.mean(late) / statistics.mean(early) - 1
    largest = max(size for _, size in seen)
    sound = largest <= BAR_MB and grown <= GROWTH
    text = f"""# Memory of a load worker

{datetime.now(UTC):%Y-%m-%d}, {machine()}; {os.getloadavg()[0]:.1f} processes wanted its cores.
`make bench-memory`: the load process on one core, nginx on the other, {seconds / 60:.4g} minutes, all
histograms recorded.

| what | measured | bar |
|---|---|---|
| offered, achieved | {report["offered_rps"]:,.0f}/s, {report["achieved_rps"]:,.0f}/s | |
| requests ok, timed out, expired | {report["ok"]:,}, {report["timed_out"]:,}, {report["expired"]:,} | |
| largest resident size | {largest:.0f} MB | {BAR_MB} MB |
| second minute, last minute | {statistics.mean(early):.1f} MB, {statistics.mean(late):.1f} MB | |
| grown | {grown:+.1%} | {GROWTH:+.0%} |
"""
    print(text)
    if arguments.output:
        arguments.output.write_text(text)
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
