"""Probes from the file to the verdict, on the production stack of the virtual host."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SCENARIO = """
survive: 1
name: probed
target: production
seed: 7
requests: {search: {get: "/v1/search?q=gpu", timeout: 2s, auth: acme}}
load: {phases: [{name: flat, rate: 5/s, for: 61s}]}
probes:
  stranger: {get: "/v1/search?q=gpu", auth: none, every: 1s}
  revoked: {get: "/v1/search?q=gpu", auth: revoked, every: 1s}
  friend: {get: "/v1/search?q=gpu", auth: globex, every: 1s}
  fresh:
    write: {post: /v1/documents, json: {id: "c-{{ canary }}", text: "a {{ canary }}"}}
    read: {get: "/v1/search?q={{ canary }}"}
    every: 1s
  foreign:
    write: {post: /v1/documents, json: {id: "f-{{ canary }}", text: "a {{ canary }}"}, auth: acme}
    read: {get: "/v1/search?q={{ canary }}", auth: globex}
    every: 1s
  secret:
    post: /v1/chat/completions
    json: {model: demo, messages: [{role: user, content: "who are you?"}], max_tokens: 4}
    every: 1s
    forbid: "{{ target.secret }}"
  audit: {get: "/v1/search?q=x", every: 1s, audit: gateway}
objectives:
  shut: {metric: denied, min: 100%, of: [stranger, revoked], during: run}
  open: {metric: denied, min: 100%, of: friend, during: run}
  fresh: {metric: freshness.p90, max: 2s, during: run}
  apart: {metric: isolated, min: 100%, during: run}
  silent: {metric: leaked, max: 0%, during: run}
  written: {metric: audited, min: 100%, during: run}
  queue: {metric: queue.p90, max: 5, during: run}
"""


def test_a_sound_stack_is_found_sound_and_who_may_call_is_not_denied(tmp_path):
    file = tmp_path / "probed.survive.yaml"
    file.write_text(SCENARIO)
    command = [sys.executable, "-m", "survive", "run", str(file), "--virtual", "--format", "json"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "runs")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr
    cells = {
        (cell["name"], cell["request"]): cell for cell in json.loads(done.stdout)["objectives"]
    }
    failed = [key for key, cell in cells.items() if cell["verdict"] != "survived"]
    assert failed == [("open", "friend")]
    assert cells["open", "friend"]["bad"] == 61
    assert cells["written", "audit"]["n"] == 61
