"""nvidia.*: refused without a card; with a stand-in driver, what the helper takes and gives back.

No test here has seen a real card: see cardtools.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from cardtools import TOTAL, fake_card
from faultscene import ROOT, plan, play

from survive.errors import RefusedError

HOG = ("nvidia.vram_hog", {"share": "40%"})
SPIN = ("nvidia.sm_contention", {"duty": "20%"})
COPIES = [("nvidia.membw_contention", {"duty": "20%"}), ("nvidia.pcie_contention", {})]
ALL = [HOG, SPIN, *COPIES]


@pytest.fixture
def card(tmp_path, monkeypatch, request):
    return fake_card(tmp_path, monkeypatch, request)


@pytest.mark.parametrize(("kind", "settings"), ALL)
def test_without_a_card_it_is_refused_and_says_why(kind, settings, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)

    async def body(scene):
        with pytest.raises(RefusedError, match="no NVIDIA GPU to act on: nvidia-ml-py is not"):
            await scene.agent.preflight(plan(kind, **settings))

    play("process", tmp_path, body)


@pytest.mark.parametrize(("kind", "settings"), ALL)
def test_virtually_it_is_refused(kind, settings, tmp_path):
    async def body(scene):
        with pytest.raises(RefusedError, match="real card") as refused:
            await scene.agent.preflight(plan(kind, **settings))
        assert refused.value.exit_code == 6

    play("virtual", tmp_path, body)


@pytest.mark.parametrize(("kind", "settings"), ALL)
def test_it_takes_is_seen_and_gives_all_back(kind, settings, tmp_path, card):
    scene, _, left = play("process", tmp_path, lambda s: s.life(plan(kind, **settings)))
    assert scene.looks("before") == ["no"] * 3
    assert set(scene.looks("during")) == {"yes"}
    assert scene.named("heal_proven")[0]["by_own_heal"] is True and left == []
    assert card.living() == set()
    if kind == HOG[0]:
        assert [n for _, n in card.entries("alloc")] == [int(TOTAL * 0.4)]
        assert card.entries("set") == card.entries("alloc")
    elif kind == SPIN[0]:
        assert {n for _, n in card.entries("use")} == {7 * 8 * 256}
    else:
        assert card.entries("dtod" if "membw" in kind else "htod")


@pytest.mark.parametrize(("kind", "settings"), ALL)
def test_an_inject_that_does_nothing_is_never_seen_active(kind, settings, tmp_path, card):
    scene, _, _ = play(
        "process", tmp_path, lambda s: s.life(plan(kind, **settings)), sabotage=["inject"]
    )
    assert set(scene.looks("during")) == {"no"} and card.entries("alloc") == []


@pytest.mark.parametrize(("kind", "settings"), ALL[:3])
def test_a_heal_that_does_nothing_is_seen_through(kind, settings, tmp_path, card):
    scene, _, left = play(
        "process", tmp_path, lambda s: s.life(plan(kind, **settings), 1), sabotage=["heal"]
    )
    assert scene.named("heal_proven")[0]["by_own_heal"] is False and len(left) == 1
    for pid, _ in card.living():  # started by this very test; a run's own sweep ends it
        os.kill(pid, 9)


def test_a_helper_that_does_not_compute_is_not_taken_for_contention(tmp_path, card):
    kind, settings = SPIN
    card.samples = False
    scene, _, left = play("process", tmp_path, lambda s: s.life(plan(kind, **settings)))
    assert set(scene.looks("during")) == {"unknown"} and left == []


def test_a_card_that_has_not_so_much_says_so(tmp_path, card):
    scene, _, _ = play("process", tmp_path, lambda s: s.life(plan(HOG[0], share="95%"), for_s=0.5))
    assert "did not start" in scene.named("fault_injected")[0]["error"]
    assert set(scene.looks("during")) == {"no"}


def test_the_helper_dies_with_whoever_started_it(tmp_path, card):
    parent = tmp_path / "parent.py"
    parent.write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE)\n"
        "print(child.stdout.readline().decode(), flush=True)\n"
        "time.sleep(60)\n"
    )
    helper = ROOT / "survive" / "chaos" / "helper.py"
    what = ["cuda", "vram", "0", "4096", "0.5", os.environ["SURVIVE_LIBCUDA"], "30"]
    argv = [sys.executable, str(parent), sys.executable, "-I", "-S", str(helper), *what]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        assert len(card.living()) == 1
        process.kill()
    deadline = time.monotonic() + 5
    while card.living() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert card.living() == set()
