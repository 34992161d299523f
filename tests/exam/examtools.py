"""A small scenario of a team's own, for the exam: a GPU is lost, and a second of it is enough."""

from __future__ import annotations

from pathlib import Path

SMALL = """\
survive: 1
name: small
target: reference
seed: 7
requests:
  chat:
    post: /v1/chat/completions
    json:
      model: "{{ target.model }}"
      stream: true
      max_tokens: 2
      messages: [{role: user, content: hi}]
    expect: {status: 200, stream: complete}
    timeout: 3s
load:
  phases:
    - {name: warm-up, rate: 60/s, for: 2s, warm_up: true}
    - {name: steady, rate: 60/s, for: 14s}
faults:
  gpu-loss: {kind: gpu.lost, service: inference, at: steady + 4s, for: 3s}
objectives:
  answers: {metric: success, min: 95%, during: steady}
  degrade: {metric: success, min: 94%, during: each fault}
  back:    {metric: recovery, max: 2s, stable_for: 2s}
kills: {no_health_checks: degrade}
"""


def write_team(folder: Path, text: str = SMALL, name: str = "small") -> Path:
    """The folder of a team's scenarios, with that one in it."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.survive.yaml").write_text(text, encoding="utf-8")
    return folder
