"""A stand-in for an NVIDIA card: libcuda in C that keeps a ledger, and NVML that reads it.

No test with it has seen a real card. NVML counts only processes that live, as the real one does;
its samples are of the last second; limits and clocks are what a test or a fault sets. Not a word of
pytest: processes of a run import it too.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import types
from pathlib import Path

TOTAL = 10 << 30
CUDA = r"""
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>
static int note(const char *what, unsigned long n) {
  struct timeval t; gettimeofday(&t, 0);
  FILE *f = fopen(LEDGER, "a");
  fprintf(f, "%d %s %lu %ld\n", getpid(), what, n, t.tv_sec * 1000000L + t.tv_usec);
  fclose(f); return 0; }
int cuInit(unsigned f) { return 0; }
int cuDeviceGet(int *d, int n) { *d = n; return n ? 101 : 0; }
int cuDeviceGetAttribute(int *v, int what, int d) { *v = 7; return what == 16 ? 0 : 1; }
int cuCtxCreate_v2(void **c, unsigned f, int d) { *c = (void *)1; return 0; }
int cuMemAlloc_v2(unsigned long *p, size_t n) {
  if (n > 9UL << 30) return 2; *p = 4096; return note("alloc", n); }
int cuMemAllocHost_v2(void **p, size_t n) { *p = (void *)8192; return note("pinned", n); }
int cuMemsetD8_v2(unsigned long p, unsigned char v, size_t n) { return note("set", n); }
int cuMemcpyDtoD_v2(unsigned long a, unsigned long b, size_t n) { return note("dtod", n); }
int cuMemcpyHtoD_v2(unsigned long a, void *b, size_t n) { return note("htod", n); }
int cuModuleLoadData(void **m, const char *ptx) {
  *m = (void *)3; return strstr(ptx, ".visible .entry spin(") ? 0 : 218; }
int cuModuleGetFunction(void **f, void *m, const char *name) {
  *f = (void *)5; return m == (void *)3 && !strcmp(name, "spin") ? 0 : 500; }
int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void *stream, void **params, void **extra) {
  unsigned long out = *(unsigned long *)params[0]; unsigned trips = *(unsigned *)params[1];
  if (f != (void *)5 || out != 4096 || !trips || trips > 1 << 20 || shared || stream || extra)
    return 1;
  usleep(1000);
  return note("use", (unsigned long)gx * gy * gz * bx * by * bz); }
int cuCtxSynchronize(void) { return 0; }
"""


class NVMLError(Exception):
    """As nvidia-ml-py's: ``value`` is NVML's number."""

    def __init__(self, value):
        super().__init__(f"NVML error {value}")
        self.value = value


class Card:
    """The ledger of the stand-in driver, and what NVML shows of the card."""

    limit_mw, locked_mhz, wants_mw = 700_000, None, 650_000
    busy = True  # of the victim's own load
    samples = True  # per process, as MIG has none

    def __init__(self, ledger: Path) -> None:
        self.ledger = ledger

    def rows(self):
        text = self.ledger.read_text() if self.ledger.exists() else ""
        return [
            (int(p), kind, int(n), int(t)) for p, kind, n, t in map(str.split, text.splitlines())
        ]

    def entries(self, what):
        return [(pid, n) for pid, kind, n, _ in self.rows() if kind == what]

    def living(self):
        return {(p, n) for p, n in self.entries("alloc") if Path(f"/proc/{p}/exe").exists()}

    def used(self, since_us):
        return [(pid, t) for pid, kind, _, t in self.rows() if kind == "use" and t >= since_us]

    def lately(self):
        return self.used(time.time_ns() // 1000 - 1_000_000)

    # ---------------------------------------------------------------- NVML's words

    def process_utilization(self, since_us):
        if not self.samples:
            raise NVMLError(3)
        found = self.used(since_us)
        if not found:
            raise NVMLError(6)
        return [types.SimpleNamespace(pid=p, smUtil=40, timeStamp=t) for p, t in found]

    def loaded(self):
        return self.busy or bool(self.lately())

    def drawn(self):
        return min(self.limit_mw, self.wants_mw) if self.loaded() else 70_000

    def set_limit(self, mw):
        self.limit_mw = mw

    def lock(self, low, high):
        assert low == high
        self.locked_mhz = high

    def unlock(self):
        self.locked_mhz = None

    def clock(self):
        return (self.locked_mhz or 1980) if self.loaded() else 345


class StoredCard(Card):
    """A card that processes share: what is set stands in a file beside the ledger."""

    def _told(self):
        file = self.ledger.with_suffix(".set")
        return json.loads(file.read_text()) if file.exists() else {}

    def _tell(self, **what):
        told = {**self._told(), **what}
        new = self.ledger.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps(told))
        new.replace(self.ledger.with_suffix(".set"))

    @property
    def limit_mw(self):
        return self._told().get("limit_mw", Card.limit_mw)

    @limit_mw.setter
    def limit_mw(self, mw):
        self._tell(limit_mw=mw)

    @property
    def locked_mhz(self):
        return self._told().get("locked_mhz")

    @locked_mhz.setter
    def locked_mhz(self, mhz):
        self._tell(locked_mhz=mhz)


def compiled(folder: Path, ledger: Path) -> Path:
    """The stand-in for libcuda, by gcc."""
    source, library = folder / "cuda.c", folder / "libcuda.so.1"
    source.write_text(CUDA)
    define = f'-DLEDGER="{ledger}"'
    subprocess.run(["gcc", "-shared", "-fPIC", define, "-o", library, source], check=True)
    return library


def nvml_of(card: Card) -> types.ModuleType:
    """``pynvml`` as it is with that card."""
    nvml = types.ModuleType("pynvml")
    nvml.NVMLError, nvml.NVML_ERROR_NOT_FOUND, nvml.NVML_CLOCK_SM = NVMLError, 6, 1
    nvml.nvmlClocksThrottleReasonSwPowerCap = 4
    nvml.nvmlInit = nvml.nvmlShutdown = lambda: None
    nvml.nvmlDeviceGetHandleByIndex = lambda n: n
    nvml.nvmlDeviceGetMemoryInfo = lambda c: types.SimpleNamespace(
        total=TOTAL, free=TOTAL - sum(n for _, n in card.living())
    )
    nvml.nvmlDeviceGetComputeRunningProcesses = lambda c: [
        types.SimpleNamespace(pid=p) for p, _ in card.living()
    ]
    nvml.nvmlDeviceGetUtilizationRates = lambda c: types.SimpleNamespace(
        gpu=50 if card.loaded() else 0
    )
    nvml.nvmlDeviceGetProcessUtilization = lambda c, since: card.process_utilization(since)
    nvml.nvmlDeviceGetPowerManagementLimit = lambda c: card.limit_mw
    nvml.nvmlDeviceGetEnforcedPowerLimit = lambda c: card.limit_mw
    nvml.nvmlDeviceGetPowerManagementLimitConstraints = lambda c: [200_000, 700_000]
    nvml.nvmlDeviceSetPowerManagementLimit = lambda c, mw: card.set_limit(mw)
    nvml.nvmlDeviceGetPowerUsage = lambda c: card.drawn()
    nvml.nvmlDeviceGetCurrentClocksThrottleReasons = lambda c: (
        4 if card.loaded() and card.wants_mw > card.limit_mw else 0
    )
    nvml.nvmlDeviceGetMaxClockInfo = lambda c, which: 1980
    nvml.nvmlDeviceGetClockInfo = lambda c, which: card.clock()
    nvml.nvmlDeviceSetGpuLockedClocks = lambda c, low, high: card.lock(low, high)
    nvml.nvmlDeviceResetGpuLockedClocks = lambda c: card.unlock()
    return nvml


# ---------------------------------------------------------------- what a victim is made of

# A listener that is always well, and the worker behind it that has the card.
SERVER = """
import http.server, subprocess, sys, threading
worker = subprocess.Popen([sys.executable, "-I", "-S", sys.argv[2], *sys.argv[3:]],
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE)
worker.stdout.readline()
one = threading.Lock()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.answer(200)
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        try:
            with one:
                worker.stdin.write(b"x\\n"); worker.stdin.flush()
                said = worker.stdout.readline()
        except OSError:
            said = b""
        self.answer(200 if said else 503)
    def answer(self, status):
        try:
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()
        except OSError:
            pass
    def log_message(self, *args):
        pass
class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *args):
        pass
Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
WORKER = """
import os, sys, time
def note(what, n):
    with open(sys.argv[1], "a") as file:
        file.write(f"{os.getpid()} {what} {n} {time.time_ns() // 1000}\\n")
note("alloc", 4096)
print("ready", flush=True)
for line in sys.stdin:
    for _ in range(int(sys.argv[2])):
        note("use", 1)
        time.sleep(0.05)
    note("use", 1)
    print("ok", flush=True)
"""
DCGMI = """#!{python} -IS
import os, sys, time
from pathlib import Path
folder, args = Path({folder!r}), sys.argv[1:]
def after(name):
    return args[args.index(name) + 1]
if not (folder / "engine").exists() or after("--host") != "localhost":
    print("Error: unable to establish a connection to the specified host")
    sys.exit(1)
if args[0] == "test":
    with (folder / "told").open("a") as file:
        print(after("-f"), after("-v"), time.time(), file=file)
elif args[0] == "dmon":
    rows = [r.split() for r in (folder / "told").read_text().splitlines()]
    new = [v for f, v, t in rows if f == after("-e") and float(t) > time.time() - 2]
    value = new[-1] if new else (folder / "own").read_text()
    print("#Entity   XIDER", "ID", "GPU " + after("-i") + "     " + value, sep="\\n")
elif args[0] == "health":
    print("| Overall Health | Healthy |")
"""
