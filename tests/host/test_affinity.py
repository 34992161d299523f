"""The load on cores of its own: which, and who inherits what."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from survive.host.affinity import Division, confined, divide, siblings

MINE = sorted(os.sched_getaffinity(0))
PAIRS = {0: {0, 4}, 4: {0, 4}, 1: {1, 5}, 5: {1, 5}, 2: {2}, 7: {7, 3}}

SERVER = r"""
import http.server, json, os, subprocess, sys

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        look_for_the_load()
        body = b"ok"
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass

seen = {"mine": sorted(os.sched_getaffinity(0))}
mark = ("SURVIVE_RUN=" + os.environ["SURVIVE_RUN"]).encode()

def look_for_the_load():
    for pid in filter(str.isdigit, os.listdir("/proc") if "load" not in seen else ()):
        try:
            argv, environ = (open(f"/proc/{pid}/{name}", "rb").read().split(b"\0")
                             for name in ("cmdline", "environ"))
        except OSError:
            continue
        if b"survive.load.process" in argv and mark in environ:
            seen["load"] = sorted(os.sched_getaffinity(int(pid)))
    with open(sys.argv[1], "w") as file:
        json.dump(seen, file)

http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""

SCENARIO = """
survive: 1
name: pinned
target:
  driver: process
  entry: web
  services:
    web: {{run: {argv}, health: {{get: /, within: 10s}}}}
  allow: {{hosts: [127.0.0.1]}}
requests: {{page: {{get: /, timeout: 2s}}}}
load:
  affinity: auto
  phases: [{{name: flat, rate: 20/s, for: 2s}}]
objectives: {{answers: {{metric: success, min: 50%, during: run}}}}
"""


@pytest.mark.parametrize(
    ("workers", "cores", "load", "rest"),
    [
        (1, {0, 1}, (1,), (0,)),
        (1, {2, 5, 9}, (9,), (2, 5)),
        (2, {2, 5, 9}, (5, 9), (2,)),
        (1, {3}, (), ()),
        (2, {0, 1}, (), ()),
    ],
)
def test_the_load_gets_the_last_cores_of_our_mask(
    workers: int, cores: set[int], load: tuple[int, ...], rest: tuple[int, ...]
) -> None:
    found = divide(workers, cores, lambda core: {core})
    assert (found.load, found.rest) == (load, rest)
    assert bool(found.why) == (not load)


def test_a_sibling_of_a_worker_stays_empty_if_there_are_cores_enough() -> None:
    def of(core: int) -> set[int]:
        return PAIRS[core]

    assert divide(1, {0, 4, 1, 5}, of) == Division((1,), (0, 4))
    assert divide(1, {0, 4, 1, 5, 2}, of) == Division((2,), (0, 1, 4, 5))
    assert divide(1, {0, 4}, of) == Division((4,), (0,))  # one physical core: better than none
    assert divide(3, {0, 4, 1, 5}, of) == Division((1, 4, 5), (0,))
    assert divide(1, {2, 7}, of) == Division((7,), (2,))  # its sibling is not ours


def test_the_kernel_tells_siblings() -> None:
    assert all(core in siblings(core) for core in MINE)
    assert siblings(1_000_000) == {1_000_000}


def test_our_own_mask_is_put_back() -> None:
    with confined(MINE[:1]):
        assert os.sched_getaffinity(0) == {MINE[0]}
        child = "import os; print(sorted(os.sched_getaffinity(0)))"
        assert subprocess.check_output([sys.executable, "-c", child]).strip() == b"[%d]" % MINE[0]
    assert sorted(os.sched_getaffinity(0)) == MINE
    with confined(()):
        assert sorted(os.sched_getaffinity(0)) == MINE


@pytest.mark.skipif(len(MINE) < 2, reason="one core")
def test_a_target_of_a_run_never_has_the_cores_of_the_load(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    argv = json.dumps([sys.executable, str(tmp_path / "server.py"), str(tmp_path / "mask.json")])
    file = tmp_path / "pinned.survive.yaml"
    file.write_text(SCENARIO.format(argv=argv))
    out = tmp_path / "runs"
    done = subprocess.run(
        [sys.executable, "-m", "survive", "run", str(file), "--out", str(out)],
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    folder = next(out.glob("pinned/2*"), None)
    assert folder is not None, done.stderr
    ended = json.loads((folder / "events.ndjson").read_text().splitlines()[-1])
    assert ended["ended"] == "complete", done.stderr
    asked = ended["usage"]["affinity"]
    seen = json.loads((tmp_path / "mask.json").read_text())
    assert seen == {"mine": asked["rest"], "load": asked["load"]}
    assert sorted([*asked["load"], *asked["rest"]]) == MINE
    assert f"load alone on core {asked['load'][0]}, all else on" in done.stdout
