"""Every scenario is played somewhere in CI: by the exam, by a test of its own, or here as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from survive.catalog import builtin_root
from survive.errors import ExitCode
from survive.exam.command import Asked, claims_asked
from survive.host.command import run_scenario

FOLDER = builtin_root() / "scenarios"
HERE = (
    "cost-per-million",
    "edge-microseconds",
    "evolving-traffic",
    "full-survival",
    "gpu-loss",
    "latency-under-concurrency",
    "throughput-10k-to-100k",
)
ELSEWHERE = {"quickstart", "provider-rate-limits"}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", HERE)
def test_the_healthy_stack_survives_what_no_exam_in_ci_plays(name: str, tmp_path: Path) -> None:
    file = FOLDER / f"{name}.survive.yaml"
    code = run_scenario(
        file, target=None, sets=[], profile=None, out=tmp_path, form="json", virtual=True
    )
    verdict = json.loads((tmp_path / name / "latest" / "verdict.json").read_text())
    assert code is ExitCode.SURVIVED, verdict["reasons"]
    assert (tmp_path / name / "latest" / "report.html").is_file()
    assert {fault["proof"] for fault in verdict["faults"]} == {"proven"}


def test_no_scenario_is_left_out() -> None:
    exam = {claim.scenario for claim in claims_asked(Asked(once=True))}
    names = {file.name.removesuffix(".survive.yaml") for file in FOLDER.glob("*.survive.yaml")}
    assert names == exam | ELSEWHERE | {*HERE}
