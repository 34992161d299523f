"""Runs of our own that are ended in every way there is, and what they leave.

The moment is "while the fault is on", read from the run's own event log. Used by tests/kill and
tests/matrix, and by ``make matrix`` and ``make soak-kill``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from survive.chaos import processes
from survive.chaos.ledger import LEDGER, Ledger, Story

ROOT = Path(__file__).resolve().parents[1]


class Started:
    """A ``survive run`` of our own, in a session of its own.

    ``least``: how many marked processes there must be while it runs, or the looks for what is left
    would see nothing. ``wrapper``: Python code that runs in survive's process before the command.
    """

    def __init__(
        self,
        file: Path,
        *,
        env: Mapping[str, str] | None = None,
        least: int = 3,
        wrapper: str = "",
        arguments: Sequence[str] = (),
    ) -> None:
        self.folder = file.parent
        self.least = least
        self.run_id = ""
        env = {**os.environ, "RUNNER_TRACKING_ID": "github_test", **(env or {})}
        self.state = Path(env["XDG_STATE_HOME"]) / "survive"
        code = f"{wrapper}\nfrom survive.cli import main\nmain()"
        command = ["-c", code] if wrapper else ["-m", "survive"]
        self.log = (self.folder / "stderr.txt").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, *command, *self._run(file, arguments)],
            cwd=ROOT,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
            env=env,
        )

    def _run(self, file: Path, arguments: Sequence[str]) -> list[str]:
        return ["run", str(file), "--out", str(self.folder / "runs"), *arguments]

    # ------------------------------------------------------------------ while it runs

    def until(self, event: str, within_s: float = 30) -> None:
        """Wait for an event in the run's log."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if event in self.events():
                self.run_id = json.loads(self.only("manifest.json").read_text())["run"]
                assert len(processes.marked(self.run_id)) >= self.least
                return
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode}: {self.output()}")
            time.sleep(0.02)
        raise AssertionError(f"no {event} within {within_s} s: {self.output()}")

    def told(self) -> list[dict[str, object]]:
        """The run's events so far; a torn last line is not one yet."""
        try:
            lines = self.only("events.ndjson").read_text().splitlines()
        except (FileNotFoundError, StopIteration):
            return []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def events(self) -> list[str]:
        return [str(event["event"]) for event in self.told()]

    def only(self, name: str) -> Path:
        """The file of that name in its run directory."""
        return next(iter((self.folder / "runs").glob(f"*/[0-9]*/{name}")))

    def agent(self) -> int:
        """The pid of the chaos agent: the child of survive."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        pids = [int(pid) for pid in children.split()]
        found = [p for p in pids if b"agent_process" in Path(f"/proc/{p}/cmdline").read_bytes()]
        assert len(found) == 1, f"agents: {found} of {pids}"
        return found[0]

    def identify(self) -> bool:
        """Learn the run's id, if it has one yet; ``until`` does it by itself."""
        found = sorted(self.state.glob(f"*/{LEDGER}"))
        self.run_id = found[0].parent.name if found else ""
        return bool(found)

    def story(self) -> Story:
        return Ledger.read(self.state / self.run_id / LEDGER)

    def output(self, most: int = 3000) -> str:
        """The end of what it said."""
        return (self.folder / "stderr.txt").read_text(errors="replace")[-most:]

    # ------------------------------------------------------------------ afterwards

    def left(self, within_s: float) -> list[str]:
        """What of the run is alive once the time is over; returns early when nothing is."""
        deadline = time.monotonic() + within_s
        while ((alive := self._alive()) or self._scratch()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return [_described(pid, began) for pid, began in alive] + self._scratch()

    def _scratch(self) -> list[str]:
        """Its private folder, which holds the target's key, once survive itself is gone."""
        folder = self.story().scratch if self.run_id else ""
        over = self.process.poll() is not None
        return [folder] if over and folder and Path(folder).exists() else []

    def _alive(self) -> list[tuple[int, int]]:
        """Everything but survive that inherited our state directory, whatever mark it bears."""
        wanted = f"XDG_STATE_HOME={self.state.parent}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == self.process.pid:
                continue
            try:
                environ = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue  # gone, a zombie, or another user's
            pid = int(entry.name)
            if wanted in environ and processes.exists(pid, began := processes.start_time(pid)):
                found.append((pid, began))
        return found

    def close(self) -> None:
        """End what a failed test left."""
        for pid, started in self._alive():
            processes.send(pid, started, signal.SIGKILL)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(5)
        self.log.close()


def _described(pid: int, began: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")[-80:]
    except OSError:
        command = b"gone meanwhile"
    return f"{pid} {processes.state(pid, began)} {command.decode(errors='replace')}"


def heal(*arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """``survive heal`` as a command of its own."""
    return subprocess.run(
        [sys.executable, "-m", "survive", "heal", *arguments],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
