"""A fault that does nothing and says it did, a heal that does nothing and says it did.

For every kind, through the whole pipeline: the first can never end as survived (3), the second
must end in exit 5. The same fault unsabotaged is the control: proven, healed, no such exit.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from survive.catalog import Catalog
from survive.chaos.ledger import LEDGER, Ledger, folders
from survive.errors import ExitCode
from survive.host.command import run_scenario

KINDS = {
    "network.latency": "link: gateway -> inference, with: {latency: 300ms}",
    "network.down": "link: gateway -> retrieval",
    "node.kill": "service: inference",
    "node.pause": "service: inference",
    "node.down": "service: retrieval",
    "node.restart": "service: inference",
    "node.rolling_restart": "service: inference",
    "gpu.lost": "service: inference",
    "gpu.throttle": "service: inference, with: {slow_down: 3x}",
}
HELD = sorted(kind for kind in KINDS if Catalog().fault(kind).held)

PLUGIN = """
from survive.catalog import Catalog
from survive.chaos.ledger import LEDGER, Ledger, folders

Honest = type(Catalog().fault({kind!r}))


class Saboteur(Honest):
    kind = "sabotage.it"

    async def {verb}(self, injection, handle):
        \"\"\"Reports success, does nothing.\"\"\"
"""

SCENARIO = """
survive: 1
name: sabotage
target: reference
seed: 5
requests:
  search: {{get: "/v1/search?q=gpu", timeout: 2s}}
load:
  phases: [{{name: flat, rate: 40/s, for: 14s}}]
faults:
  it: {{kind: {kind}, at: 4s, {held} {rest}}}
objectives:
  answers: {{metric: success, min: 20%, during: each fault}}
"""


def run(tmp_path: Path, kind: str, verb: str | None) -> tuple[ExitCode, dict]:
    (tmp_path / ".git").mkdir()
    (tmp_path / "faults").mkdir()
    used = kind
    if verb:
        used = "sabotage.it"
        (tmp_path / "faults" / "sabotage.py").write_text(PLUGIN.format(kind=kind, verb=verb))
    file = tmp_path / "sabotage.survive.yaml"
    held = "for: 3s," if kind in HELD else ""
    file.write_text(SCENARIO.format(kind=used, held=held, rest=KINDS[kind]))
    code = run_scenario(
        file,
        target=None,
        sets=["target.allow.faults=[network, node, gpu, sabotage]"],
        profile=None,
        out=tmp_path / "runs",
        form="json",
        virtual=True,
    )
    folder = next((tmp_path / "runs" / "sabotage").glob("2*"))
    return code, json.loads((folder / "verdict.json").read_text())


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_honest_fault_is_proven_and_healed(tmp_path, kind):
    _, verdict = run(tmp_path, kind, None)
    (fault,) = verdict["faults"]
    assert fault["proof"] == "proven"
    assert fault["heal_proof"] == ("proven" if kind in HELD else "none (one-shot)")
    assert verdict["exit_code"] in {0, 1}
    (folder,) = folders()
    assert Ledger.read(folder / LEDGER).damage == []  # what a killed run leaves can be read


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_an_inject_that_does_nothing_is_never_survived(tmp_path, kind):
    code, verdict = run(tmp_path, kind, "inject")
    assert code == ExitCode.INCONCLUSIVE
    assert verdict["verdict"] == "inconclusive"
    assert verdict["faults"][0]["proof"] != "proven"


@pytest.mark.parametrize("kind", HELD)
def test_a_heal_that_does_nothing_is_exit_5(tmp_path, kind, monkeypatch):
    if Catalog().fault(kind).keeps_down:
        # The heal of what the supervisor was told to keep down is the supervisor's release.
        driver = Catalog().driver("virtual")
        monkeypatch.setattr(driver, "release", lambda self, spec: None)
    code, verdict = run(tmp_path, kind, "heal")
    assert code == ExitCode.HEAL_UNPROVEN
    assert verdict["verdict"] == "inconclusive"
    assert verdict["faults"][0]["heal_proof"] != "proven"
    assert any("heal" in reason for reason in verdict["reasons"])
