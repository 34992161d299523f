"""What generators say of a server that freezes for two seconds: ``make bench-freeze``.

200 requests a second for 8 seconds against ``survive.load.known freezing`` (5 ms, but nothing is
answered for two seconds from the third on). Truth is played from the schedule. Every tool runs
once, one after the other. Writes docs/coordinated-omission.md and its figure.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.load import PeerError, environment, machine
from survive.load.calibration import calibrate

ROOT = Path(__file__).resolve().parents[1]
RATE, SECONDS = 200, 8


@dataclass
class Said:
    """What one tool printed, in ms."""

    tool: str
    n: int = 0
    p50: float = 0.0
    p90: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    remark: str = ""
    error: str = ""


@contextlib.contextmanager
def freezing() -> Iterator[str]:
    server = subprocess.Popen(
        [sys.executable, "-m", "survive.load.known", "freezing", "7"],
        stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        yield f"http://{json.loads(server.stdout.readline())['address']}"
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=10)


def survive() -> tuple[Said, Said]:
    """(truth, survive with 20 lanes): the realised schedule, and what the load process recorded."""
    found = calibrate("freezing", rate=RATE, seconds=SECONDS)
    true = {f"p{p.percentile:g}": p.true_ms for p in found.points if p.percentile != 99.9}
    ours = {f"p{p.percentile:g}": p.measured_ms for p in found.points if p.percentile != 99.9}
    return (
        Said("truth", found.n, **true, remark="the schedule, played through the freeze"),
        Said("survive, 20 lanes", found.n, **ours, remark="latency from the intended start"),
    )


def k6(peers: Path, folder: Path, users: int) -> Said:
    said = Said(f"k6 constant-arrival-rate, {users} VUs")
    script, summary = folder / "k6.js", folder / "k6.json"
    with freezing() as url:
        script.write_text(
            "import http from 'k6/http';\n"
            "export const options = {discardResponseBodies: true,\n"
            "  summaryTrendStats: ['p(50)', 'p(90)', 'p(95)', 'p(99)'], scenarios: {open: {\n"
            f"  executor: 'constant-arrival-rate', rate: {RATE}, timeUnit: '1s',\n"
            f"  duration: '{SECONDS}s', preAllocatedVUs: {users}, maxVUs: {users}}}}}}};\n"
            f"export default function () {{ http.get('{url}/'); }}\n"
        )
        done = subprocess.run(
            [str(environment(peers, "k6", ["k6"]) / "k6"), "run", "--quiet", "--summary-export",
             str(summary), str(script)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    metrics = json.loads(summary.read_text())["metrics"]
    times = metrics["http_req_duration"]
    said.n = int(metrics["http_reqs"]["count"])
    said.p50, said.p90, said.p95, said.p99 = (times[f"p({p})"] for p in (50, 90, 95, 99))
    dropped = int(metrics.get("dropped_iterations", {}).get("count", 0))
    said.remark = f"{dropped} iterations dropped, exit {done.returncode}"
    return said


def locust(folder: Path, users: int) -> Said:
    each = RATE // users
    said = Said(f"Locust FastHttpUser, {users} users × {each}/s")
    file = folder / "locustfile.py"
    file.write_text(
        "from locust import FastHttpUser, constant_throughput, task\n"
        "class User(FastHttpUser):\n"
        f"    wait_time = constant_throughput({each})\n"
        "    @task\n    def call(self):\n        self.client.get('/')\n"
    )
    with freezing() as url:
        done = subprocess.run(
            [sys.executable, "-m", "locust", "-f", str(file), "--headless", "-u", str(users), "-r",
             str(users), "-t", f"{SECONDS}s", "-H", url, "--csv", str(folder / "locust"),
             "--skip-log"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    lines = (folder / "locust_stats.csv").read_text().splitlines()
    names, values = lines[0].split(","), lines[-1].split(",")
    row = dict(zip(names, values, strict=True))
    said.n = int(row["Request Count"])
    said.p50, said.p90, said.p95, said.p99 = (float(row[f"{p}%"]) for p in (50, 90, 95, 99))
    missing = RATE * SECONDS - said.n
    said.remark = f"{missing} requests were never made, exit {done.returncode}"
    return said


def figure(rows: list[Said]) -> str:
    """p90 of each as a bar; the truth as a line."""
    good = [row for row in rows if not row.error]
    most = max(row.p90 for row in good) or 1.0
    truth = next(row.p90 for row in good if row.tool == "truth")
    height, left, wide = 30, 320, 420
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 {height * len(good) + 60}" '
        'font-family="system-ui, sans-serif" font-size="14" role="img" '
        'aria-label="p90 that each tool reports of a server frozen for two seconds">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        '<text x="16" y="24" font-weight="600">p90 reported of a server that froze for 2 s '
        "(200 requests/s, 8 s)</text>",
    ]
    for number, row in enumerate(good):
        y = 44 + number * height
        width = max(2.0, wide * row.p90 / most)
        near = abs(row.p90 / truth - 1) < 0.05
        colour = "#1a7f37" if near else "#cf222e"
        value = f"{row.p90:,.0f} ms" if row.p90 >= 10 else f"{row.p90:.1f} ms"
        parts += [
            f'<text x="{left - 10}" y="{y + 15}" text-anchor="end">{row.tool}</text>',
            f'<rect x="{left}" y="{y}" width="{width:.1f}" height="20" rx="3" fill="{colour}"/>',
            f'<text x="{left + width + 8:.1f}" y="{y + 15}">{value}</text>',
        ]
    at = left + wide * truth / most
    parts.append(
        f'<line x1="{at:.1f}" x2="{at:.1f}" y1="38" y2="{44 + height * len(good)}" '
        'stroke="#57606a" stroke-dasharray="4 3"/></svg>'
    )
    return "\n".join(parts) + "\n"


def page(rows: list[Said]) -> str:
    lines = [
        "# What a stalled server does to a report",
        "",
        "A server answers in 5 ms and then freezes for two seconds. 200 requests a second are",
        "due all the time, so a quarter of all users wait, up to two seconds: p90 is 1.2 s. A",
        "generator that waits for its users, or drops what it cannot send, never measures them",
        "(coordinated omission).",
        "",
        "![p90 by tool](coordinated-omission.svg)",
        "",
        "| tool | requests | p50 ms | p90 ms | p95 ms | p99 ms | |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row.error:
            lines.append(f"| {row.tool} | did not run: {row.error} | | | | | |")
            continue
        times = " | ".join(f"{v:,.1f}" for v in (row.p50, row.p90, row.p95, row.p99))
        lines.append(f"| {row.tool} | {row.n:,} | {times} | {row.remark} |")
    lines += [
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {machine()}. Made by `make bench-freeze`, each tool once.",
        "survive counts from the intended start, and its 20 lanes are enough: what waits for a lane",
        "waits in the measurement. k6 is right only with as many VUs as the freeze needs, which",
        "nobody knows before it happens.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "docs")
    parser.add_argument("--peers", type=Path, default=Path.home() / ".cache/survive-bench")
    arguments = parser.parse_args()
    rows = [*survive()]
    with tempfile.TemporaryDirectory(prefix="survive-freeze-") as scratch:
        folder = Path(scratch)
        works = [
            *((f"k6, {n} VUs", lambda n=n: k6(arguments.peers, folder, n)) for n in (20, 50, 1000)),
            *((f"Locust, {n} users", lambda n=n: locust(folder, n)) for n in (20, 200)),
        ]
        for name, work in works:
            try:
                rows.append(work())
            except (PeerError, OSError, KeyError, ValueError, subprocess.SubprocessError) as error:
                rows.append(Said(name, error=f"{error!r}"[:160]))
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "coordinated-omission.svg").write_text(figure(rows))
    text = page(rows)
    (arguments.output / "coordinated-omission.md").write_text(text)
    print(text)
    return 1 if any(row.error for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
