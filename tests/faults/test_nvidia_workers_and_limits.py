"""nvidia.*: workers, limits and telemetry, on stand-ins: no test here has seen a real card."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from cards import DCGMI, SERVER, WORKER
from cardtools import fake_card
from faultscene import ROOT, plan, play, spec

from survive.chaos.handles import by_hand
from survive.contracts import HandleSpec, Injection
from survive.errors import RefusedError


@pytest.fixture
def card(tmp_path, monkeypatch, request):
    return fake_card(tmp_path, monkeypatch, request)


def with_worker(tmp_path, card, pieces=0):
    """A target of one such server; a chat takes its worker ``pieces`` times 50 ms."""
    server, worker = tmp_path / "server.py", tmp_path / "worker.py"
    server.write_text(SERVER)
    worker.write_text(WORKER)
    rest = (str(worker), str(card.ledger), str(pieces))
    run = (sys.executable, "-I", "-S", str(server), "{port}", *rest)
    whole = spec(1)
    service = replace(
        whole.services["inference"], app="", run=run, gpu="", simulates=(), metrics=""
    )
    return replace(whole, services={"inference": service}, folder=tmp_path)


# ------------------------------------------------------------------------------- workers


def test_a_stopped_worker_is_seen_by_chat_and_card_while_its_listener_is_well(tmp_path, card):
    target = with_worker(tmp_path, card)
    scene, _, left = play(
        "process", tmp_path, lambda s: s.life(plan("nvidia.worker_stop"), 2.6), target=target
    )
    assert scene.looks("before") == ["no"] * 3
    looks = scene.looks("during")
    assert looks[-1] == "yes" and set(looks) <= {"yes", "unknown"}
    assert scene.named("heal_proven")[0]["by_own_heal"] is True and left == []


def test_a_worker_that_is_only_slow_is_not_taken_for_a_stopped_one(tmp_path, card):
    target = with_worker(tmp_path, card, pieces=40)
    scene, _, _ = play(
        "process",
        tmp_path,
        lambda s: s.life(plan("nvidia.worker_stop"), 2.5),
        target=target,
        sabotage=["inject"],
    )
    assert set(scene.looks("during")) == {"unknown"}


def test_an_inject_that_stops_nobody_is_never_seen_active(tmp_path, card):
    target = with_worker(tmp_path, card)
    for kind, for_s in (("nvidia.worker_stop", 2), ("nvidia.worker_kill", None)):
        scene, _, _ = play(
            "process",
            tmp_path,
            lambda s, kind=kind, for_s=for_s: s.life(plan(kind, for_s), 1.2),
            target=target,
            sabotage=["inject"],
        )
        assert set(scene.looks("during")) == {"no"}


def test_a_heal_that_wakes_nobody_is_seen_through(tmp_path, card):
    target = with_worker(tmp_path, card)
    scene, _, left = play(
        "process",
        tmp_path,
        lambda s: s.life(plan("nvidia.worker_stop"), 2),
        target=target,
        sabotage=["heal"],
    )
    assert scene.named("heal_proven")[0]["by_own_heal"] is False and len(left) == 1


def test_a_killed_worker_is_gone_from_the_card_and_its_listener_stays(tmp_path, card):
    target = with_worker(tmp_path, card)

    async def body(scene):
        one = plan("nvidia.worker_kill", None)
        await scene.life(one, 1)
        return await scene.driver.open(*_victim(scene)).exists()

    def _victim(scene):
        fault = scene.agent._fault("nvidia.worker_kill")
        return scene.driver.replicas("inference")[0], fault.needs

    scene, listens, _ = play("process", tmp_path, body, target=target)
    assert scene.looks("before") == ["no"] * 3
    assert scene.looks("during")[-1] == "yes" and listens
    assert card.living() == set()


@pytest.mark.parametrize("kind", ["nvidia.worker_stop", "nvidia.worker_kill"])
def test_a_victim_without_a_worker_on_the_card_is_refused(kind, tmp_path, card):
    card.ledger.write_text(f"{os.getpid()} alloc 4096 0\n")  # on the card, but nobody of the victim

    async def body(scene):
        with pytest.raises(RefusedError, match="NVML lists no process of it") as refused:
            await scene.agent.preflight(plan(kind, None if "kill" in kind else 2))
        assert refused.value.exit_code == 6

    play("process", tmp_path, body)


# ------------------------------------------------------------------------------- limits

POWER = ("nvidia.power_limit", {"limit": "60%"})
CLOCKS = ("nvidia.locked_clocks", {"share": "50%"})


@pytest.fixture
def root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.mark.parametrize(("kind", "settings"), [POWER, CLOCKS])
def test_a_limit_bites_and_is_given_back(kind, settings, tmp_path, card, root):
    card.limit_mw = 690_000  # somebody's own, not the card's default
    scene, _, left = play("process", tmp_path, lambda s: s.life(plan(kind, **settings)))
    assert scene.looks("before") == ["no"] * 3
    assert set(scene.looks("during")) == {"yes"}
    assert scene.named("heal_proven")[0]["by_own_heal"] is True and left == []
    assert (card.limit_mw, card.locked_mhz) == (690_000, None)


@pytest.mark.parametrize(("kind", "settings"), [POWER, CLOCKS])
def test_a_limit_that_was_never_set_is_never_seen(kind, settings, tmp_path, card, root):
    scene, _, _ = play(
        "process", tmp_path, lambda s: s.life(plan(kind, **settings)), sabotage=["inject"]
    )
    assert set(scene.looks("during")) == {"no"}


def test_a_power_limit_that_no_load_meets_proves_nothing(tmp_path, card, root):
    card.wants_mw = 300_000
    scene, _, left = play("process", tmp_path, lambda s: s.life(plan(POWER[0], **POWER[1])))
    assert set(scene.looks("during")) == {"unknown"} and left == []


def test_an_idle_clock_proves_nothing_and_its_heal_brings_its_own_load(tmp_path, card, root):
    card.busy = False
    scene, _, left = play("process", tmp_path, lambda s: s.life(plan(CLOCKS[0], **CLOCKS[1])))
    assert set(scene.looks("before") + scene.looks("during")) == {"unknown"}
    assert scene.looks("after")[-1] == "no" and left == [] and card.entries("use")


@pytest.mark.parametrize(("kind", "settings"), [POWER, CLOCKS])
def test_a_limit_that_stays_is_told_with_the_line_that_ends_it(
    kind, settings, tmp_path, card, root
):
    scene, _, left = play(
        "process", tmp_path, lambda s: s.life(plan(kind, **settings), 0.5), sabotage=["heal"]
    )
    assert scene.named("heal_proven")[0]["proven"] is False
    line = "nvidia-smi -i 0 -pl 700" if kind == POWER[0] else "nvidia-smi -i 0 -rgc"
    assert [entry["by_hand"] for entry in left] == [line]


def test_limits_are_refused_without_root_and_below_what_the_card_can(
    tmp_path, card, root, monkeypatch
):
    async def body(scene):
        with pytest.raises(RefusedError, match="goes down to 200 W, not 70 W"):
            await scene.agent.preflight(plan(POWER[0], limit="10%"))
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        with pytest.raises(RefusedError, match="needs root"):
            await scene.agent.preflight(plan(CLOCKS[0], **CLOCKS[1]))

    play("process", tmp_path, body)


# ------------------------------------------------------------------------------- telemetry

XID = {"field": 230, "value": 79}


@pytest.fixture
def dcgm(tmp_path, monkeypatch):
    """A host engine of which an injected value lives 2 s, as a real one was reported to."""
    folder = tmp_path / "dcgm"
    folder.mkdir()
    (folder / "engine").touch()
    (folder / "told").touch()
    (folder / "own").write_text("0")
    (folder / "dcgmi").write_text(DCGMI.format(python=sys.executable, folder=str(folder)))
    (folder / "dcgmi").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


def test_a_report_is_told_again_and_again_and_taken_back(tmp_path, dcgm):
    scene, _, left = play(
        "process", tmp_path, lambda s: s.life(plan("nvidia.dcgm_report", **XID), 3.5)
    )
    assert scene.looks("before") == ["no"] * 3
    assert set(scene.looks("during")) == {"yes"}  # also when the first value was long worn off
    assert scene.named("heal_proven")[0]["by_own_heal"] is True and left == []
    told = [line.split()[:2] for line in (dcgm / "told").read_text().splitlines()]
    assert told[-1] == ["230", "0"] and told[:-1] == [["230", "79"]] * (len(told) - 1)
    assert len(told) >= 4


def test_a_report_that_nobody_makes_is_never_seen(tmp_path, dcgm):
    scene, _, _ = play(
        "process",
        tmp_path,
        lambda s: s.life(plan("nvidia.dcgm_report", **XID)),
        sabotage=["inject"],
    )
    assert set(scene.looks("during")) == {"no"}


def test_a_report_that_goes_on_is_seen_through(tmp_path, dcgm):
    scene, _, left = play(
        "process",
        tmp_path,
        lambda s: s.life(plan("nvidia.dcgm_report", **XID), 1),
        sabotage=["heal"],
    )
    assert scene.named("heal_proven")[0]["by_own_heal"] is False and len(left) == 1


def test_without_dcgmi_or_a_host_engine_it_is_refused(tmp_path, dcgm, monkeypatch):
    async def body(scene):
        (dcgm / "engine").unlink()
        with pytest.raises(RefusedError, match=r"no host engine answers: .*unable to establish"):
            await scene.agent.preflight(plan("nvidia.dcgm_report", **XID))
        monkeypatch.setattr(shutil, "which", lambda name: None)
        with pytest.raises(RefusedError, match="dcgmi is not installed"):
            await scene.agent.preflight(plan("nvidia.dcgm_report", **XID))

    play("process", tmp_path, body)


# ------------------------------------------------------------------------------- nowhere to act


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("nvidia.worker_stop", {}),
        ("nvidia.worker_kill", {}),
        POWER,
        CLOCKS,
        ("nvidia.dcgm_report", XID),
    ],
)
def test_virtually_all_are_refused(kind, settings, tmp_path):
    async def body(scene):
        with pytest.raises(RefusedError) as refused:
            await scene.agent.preflight(plan(kind, None if "kill" in kind else 2, **settings))
        assert refused.value.exit_code == 6

    play("virtual", tmp_path, body)


SCENARIO = """
survive: 1
name: no-card
target:
  driver: process
  entry: web
  services:
    web: {{run: [{python}, -m, http.server, "{{port}}"], health: {{get: /, within: 20s}}}}
  allow: {{faults: [nvidia]}}
requests: {{page: {{get: /, timeout: 1s}}}}
load: {{phases: [{{name: flat, rate: 10/s, for: 9s}}]}}
faults: {{one: {{kind: {kind}, service: web, at: 1s, for: 1s, with: {{device: 99}}}}}}
objectives: {{answers: {{metric: success, min: 95%, during: run}}}}
"""


@pytest.mark.parametrize("kind", ["nvidia.sm_contention", "nvidia.worker_stop"])
def test_the_command_refuses_with_6_and_says_why(kind, tmp_path):
    file = tmp_path / "no-card.survive.yaml"
    file.write_text(SCENARIO.format(python=sys.executable, kind=kind))
    done = subprocess.run(
        [sys.executable, "-m", "survive", "run", str(file)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 6, done.stderr + done.stdout
    assert f"{kind} has no NVIDIA GPU to act on" in done.stderr + done.stdout


def test_whoever_has_the_ledger_knows_how_to_wake_a_worker():
    victim = HandleSpec("process", "inference", 1, "127.0.0.1:1", pid=7, start_time=8)
    entry = Injection("one#1", "one", "nvidia.worker_stop", {"workers": [[11, 12]]}, victim, 0, 1)
    assert by_hand(entry) == "kill -CONT -- -7 11"
