"""README.md's table of scenarios: in step with the files, and no claim without an objective."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from survive.host.gallery import BEGIN, END, readme, scenarios, table

ROOT = Path(__file__).resolve().parents[2]

# What is said of AI stacks in production; each must be measured by an objective of a scenario.
CLAIMS = {
    "can your system survive production?",
    "autoscale under unpredictable load",
    "GPU scheduling",
    "latency under concurrency",
    "from 4 s to under a second to first token",
    "400M → 6B requests a day",
    "prototype to production, three orders of magnitude",
    "10k → 100k requests/s",
    "live data connected to the model",
    "fresh data into the pipeline",
    "evolving use cases",
    "distributed compute",
    "high-throughput storage",
    "containerised workloads",
    "observability",
    "protect sensitive data",
    "zero trust",
    "encrypted pipelines",
    "strict IAM",
    "audit logging",
    "prompt injection",
    "edge inference in microseconds",
    "cost",
}


def test_writing_the_table_twice_changes_nothing(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "scenarios", tmp_path / "scenarios")
    (tmp_path / "README.md").write_text(readme(ROOT), encoding="utf-8")
    assert readme(tmp_path) == readme(ROOT)


def test_nothing_is_claimed_by_the_way() -> None:
    found = {claim for scenario in scenarios(ROOT) for claim in scenario.claims}
    assert found and found <= CLAIMS


def test_a_row_says_what_is_claimed_broken_measured_and_found() -> None:
    quickstart = next(s for s in scenarios(ROOT) if s.name == "quickstart")
    row = table([quickstart], ROOT).splitlines()[2].replace("\N{NO-BREAK SPACE}", " ")
    assert row.startswith("| [quickstart](scenarios/quickstart.survive.yaml) | ")
    assert "400M → 6B requests a day" in row and "`gpu.lost`<br>`network.latency`" in row
    assert "success ≥ 90%" in row and row.endswith("| `no_health_checks` |")


def test_a_readme_without_its_markers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"{END}\n{BEGIN}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no markers"):
        readme(tmp_path)
