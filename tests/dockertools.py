"""A docker daemon that has the reference image: the one that answers, else one of our own."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from survive.chaos.containers import DEFAULT_URL, Engine
from survive.contracts import FaultFailedError

ROOT = Path(__file__).resolve().parents[1]
DOCKERD = shutil.which("dockerd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
START_S = 20.0

WORKING = """
import os, threading, time

def burn():  # a third of a CPU
    while True:
        end = time.monotonic() + 0.01
        while time.monotonic() < end: pass
        time.sleep(0.02)

def read():  # fills the page cache, which the kernel can take back: nobody is killed for it
    with open("/tmp/sparse", "w+b") as file:
        file.truncate(300 << 20)
        while True:
            file.seek(0)
            while file.read(1 << 20): time.sleep(0.002)

work = {"burn": burn, "read": read}.get(os.environ.get("WORK", ""))
if work: threading.Thread(target=work, daemon=True).start()
"""
"""Put before a program that runs in a container, it does beside it what WORK says."""


def url_of_host() -> str:
    """Where docker is asked for on this host."""
    return os.environ.get("DOCKER_HOST", DEFAULT_URL)


def answers(url: str) -> bool:
    """Somebody accepts there; the package itself leaves its socket open if nobody does."""
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(url.removeprefix("unix://"))
        asyncio.run(Engine(url).ask("ping", lambda client: client.ping(), 2.0))
    except (OSError, FaultFailedError):
        return False
    return True


def usable() -> bool:
    """There is a daemon, or one can be started."""
    return os.geteuid() == 0 and (DOCKERD is not None or answers(url_of_host()))


@contextmanager
def daemon() -> Iterator[str]:
    """Its URL, which DOCKER_HOST holds meanwhile. A daemon of our own is ended by its pid."""
    url, process, before = url_of_host(), None, os.environ.get("DOCKER_HOST")
    # A short path: that of a Unix socket may have 107 bytes.
    folder = Path(f"/tmp/sv-docker-{os.getpid()}")
    if not answers(url):
        url, process = _start(folder)
    os.environ["DOCKER_HOST"] = url
    try:
        build = [sys.executable, str(ROOT / "compose" / "build_image.py")]
        subprocess.run(build, check=True, timeout=90, stdout=subprocess.DEVNULL)
        yield url
    finally:
        os.environ.pop("DOCKER_HOST")
        if before is not None:
            os.environ["DOCKER_HOST"] = before
        if process is not None:
            process.send_signal(signal.SIGTERM)
            process.wait(20)
            shutil.rmtree(folder)


def _start(folder: Path) -> tuple[str, subprocess.Popen[bytes]]:
    assert DOCKERD is not None
    folder.mkdir(mode=0o700)
    url = f"unix://{folder}/docker.sock"
    argv = [DOCKERD, "--host", url, "--data-root", f"{folder}/data", "--exec-root"]
    argv += [f"{folder}/exec", "--pidfile", f"{folder}/pid", "--iptables=true"]
    with (folder / "log").open("wb") as log:
        # Whatever has a test's state directory in its environment is taken for what that test left.
        env = {name: value for name, value in os.environ.items() if name != "XDG_STATE_HOME"}
        process = subprocess.Popen(argv, env=env, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + START_S
    while not answers(url):
        last = (folder / "log").read_text(errors="replace")[-2000:]
        assert process.poll() is None and time.monotonic() < deadline, last
        time.sleep(0.1)
    return url, process
