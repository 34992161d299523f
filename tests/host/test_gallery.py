"""The scenarios on pages: in step with the files, and no claim without an objective."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from survive.host.gallery import BEGIN, END, claims, scenarios, table, with_table
from survive.scenario.model import Scenario

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


@pytest.fixture(scope="module")
def found() -> list[Scenario]:
    return scenarios(ROOT)


@pytest.mark.parametrize(("page", "part"), [("README.md", claims), ("docs/scenarios.md", table)])
def test_the_committed_pages_are_current(
    found: list[Scenario], page: str, part: Callable[[list[Scenario], Path], str]
) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text == with_table(text, part(found, ROOT)), "run: make docs"


def test_readme_names_every_claim_and_every_scenario_and_stays_short(
    found: list[Scenario],
) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(claim in text for claim in CLAIMS)
    assert all(f"[{scenario.name}](" in text for scenario in found)
    assert len(text.splitlines()) <= 150


def test_every_claim_is_measured_and_nothing_is_claimed_by_the_way(found: list[Scenario]) -> None:
    assert {claim for scenario in found for claim in scenario.claims} == CLAIMS


def test_a_row_says_what_is_claimed_broken_measured_and_found(found: list[Scenario]) -> None:
    quickstart = next(s for s in found if s.name == "quickstart")
    row = table([quickstart], ROOT).splitlines()[2].replace("\N{NO-BREAK SPACE}", " ")
    assert row.startswith("| [quickstart](../scenarios/quickstart.survive.yaml) | ")
    assert "400M → 6B requests a day" in row and "`gpu.lost`<br>`network.latency`" in row
    assert "success ≥ 90%" in row and row.endswith("| `no_health_checks` |")


def test_a_table_is_replaced_and_the_rest_stays() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert with_table(page, "new") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert with_table(with_table(page, "new"), "new") == with_table(page, "new")


def test_a_page_without_its_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="no markers"):
        with_table(f"{END}\n{BEGIN}\n", "")
