"""nvidia.*: refused without a card; with a stand-in driver, what the helper takes and gives back.

No test here has seen a real card: libcuda is a few lines of C that keep a ledger of their own, and
NVML reads that ledger, counting only processes that live, as the real one does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from faultscene import ROOT, plan, play

from survive.errors import RefusedError

HOG = ("nvidia.vram_hog", {"share": "40%"})
COPIES = [("nvidia.membw_contention", {"duty": "20%"}), ("nvidia.pcie_contention", {})]
ALL = [HOG, *COPIES]
TOTAL = 10 << 30
CUDA = r"""
#include <stdio.h>
#include <unistd.h>
static int note(const char *what, unsigned long n) {
  FILE *f = fopen(LEDGER, "a"); fprintf(f, "%d %s %lu\n", getpid(), what, n); fclose(f); return 0; }
int cuInit(unsigned f) { return 0; }
int cuDeviceGet(int *d, int n) { *d = n; return n ? 101 : 0; }
int cuCtxCreate_v2(void **c, unsigned f, int d) { *c = (void *)1; return 0; }
int cuMemAlloc_v2(unsigned long *p, size_t n) {
  if (n > 9UL << 30) return 2; *p = 4096; return note("alloc", n); }
int cuMemAllocHost_v2(void **p, size_t n) { *p = (void *)8192; return note("pinned", n); }
int cuMemsetD8_v2(unsigned long p, unsigned char v, size_t n) { return note("set", n); }
int cuMemcpyDtoD_v2(unsigned long a, unsigned long b, size_t n) { return note("dtod", n); }
int cuMemcpyHtoD_v2(unsigned long a, void *b, size_t n) { return note("htod", n); }
int cuCtxSynchronize(void) { return 0; }
"""


class Card:
    """The ledger of the stand-in driver, as NVML would show it."""

    def __init__(self, ledger: Path) -> None:
        self.ledger = ledger

    def entries(self, what):
        rows = (
            [r.split() for r in self.ledger.read_text().splitlines()]
            if self.ledger.exists()
            else []
        )
        return [(int(pid), int(n)) for pid, kind, n in rows if kind == what]

    def living(self):
        return {(p, n) for p, n in self.entries("alloc") if Path(f"/proc/{p}/exe").exists()}


@pytest.fixture
def card(tmp_path, monkeypatch):
    if shutil.which("gcc") is None:
        pytest.fail("these tests need gcc")
    ledger, source = tmp_path / "driver.txt", tmp_path / "cuda.c"
    source.write_text(CUDA)
    library = tmp_path / "libcuda.so.1"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", f'-DLEDGER="{ledger}"', "-o", library, source], check=True
    )
    found = Card(ledger)
    nvml = types.ModuleType("pynvml")
    nvml.NVMLError = type("NVMLError", (Exception,), {})
    nvml.nvmlInit = nvml.nvmlShutdown = lambda: None
    nvml.nvmlDeviceGetHandleByIndex = lambda n: n
    nvml.nvmlDeviceGetMemoryInfo = lambda c: types.SimpleNamespace(
        total=TOTAL, free=TOTAL - sum(n for _, n in found.living())
    )
    nvml.nvmlDeviceGetComputeRunningProcesses = lambda c: [
        types.SimpleNamespace(pid=p) for p, _ in found.living()
    ]
    nvml.nvmlDeviceGetUtilizationRates = lambda c: types.SimpleNamespace(gpu=50)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setenv("SURVIVE_LIBCUDA", str(library))
    return found


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
    else:
        assert card.entries("dtod" if "membw" in kind else "htod")


@pytest.mark.parametrize(("kind", "settings"), ALL)
def test_an_inject_that_does_nothing_is_never_seen_active(kind, settings, tmp_path, card):
    scene, _, _ = play(
        "process", tmp_path, lambda s: s.life(plan(kind, **settings)), sabotage=["inject"]
    )
    assert set(scene.looks("during")) == {"no"} and card.entries("alloc") == []


@pytest.mark.parametrize(("kind", "settings"), ALL[:2])
def test_a_heal_that_does_nothing_is_seen_through(kind, settings, tmp_path, card):
    scene, _, left = play(
        "process", tmp_path, lambda s: s.life(plan(kind, **settings), 1), sabotage=["heal"]
    )
    assert scene.named("heal_proven")[0]["by_own_heal"] is False and len(left) == 1
    for pid, _ in card.living():  # started by this very test; a run's own sweep ends it
        os.kill(pid, 9)


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
