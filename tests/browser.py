"""A headless Chromium, spoken to over a pipe: no port, no driver, nothing to install but itself."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_SWITCHES = (
    "--headless",
    "--no-sandbox",  # in a container the kernel may lack what it needs, and the page is ours
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--remote-debugging-pipe",
)


class Page:
    """One tab. Scripts of the page are off; what a test asks is evaluated all the same."""

    def __init__(self, into: int, out: int) -> None:
        self._into, self._out = into, out
        self._rest = b""
        self._asked = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime", "Security"):
            self.ask(f"{domain}.enable")
        self.ask("Emulation.setScriptExecutionDisabled", value=True)

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """One call of the protocol; its events meanwhile are kept."""
        self._asked += 1
        asked = {"id": self._asked, "method": method, "params": params}
        if self._session:
            asked["sessionId"] = self._session
        os.write(self._into, json.dumps(asked).encode() + b"\0")
        while True:
            told = self._told()
            if told.get("id") == self._asked:
                assert "error" not in told, told
                return dict(told["result"])
            self.events.append(told)

    def _told(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._out, 1 << 20)
            assert more, "the browser has gone"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(line))

    def show(self, file: Path, width: int, *, dark: bool = False) -> None:
        """Load a page that wide, and wait until it is there."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=900, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.ask("Page.navigate", url=file.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._told())

    def value(self, expression: str) -> Any:
        """What a JavaScript expression says of the page."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def named(self, method: str) -> list[dict[str, Any]]:
        """Parameters of the events of that name since the page was asked for."""
        return [e["params"] for e in self.events if e.get("method") == method]


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """Start one, end it and all that it started."""
    assert CHROMIUM is not None
    its_in, into = os.pipe()
    out, its_out = os.pipe()
    # It reads from 3 and writes to 4; ours are moved out of the way of both.
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (its_in, its_out)]
    process = subprocess.Popen(
        ["bash", "-c", f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}', "bash", CHROMIUM, *_SWITCHES,
         f"--user-data-dir={profile}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=ends,
        start_new_session=True,
    )  # fmt: skip
    for end in ends:
        os.close(end)
    os.close(its_in)
    os.close(its_out)
    try:
        yield Page(into, out)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        os.close(into)
        os.close(out)
