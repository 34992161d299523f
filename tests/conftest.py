"""Rules for every test: a state directory of its own, and no silent skip of a live test in CI."""

from __future__ import annotations

import os

import pytest

# Files whose tests must not run beside each other: they share a daemon, namespaces, or the time of
# a processor. (xdist's own groups need an item's name to be changed, which pytest 9 ignores.)
TOGETHER = (
    "tests/live/",
    "tests/faults/test_link_faults.py",
    "tests/faults/test_protocol_faults.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Test by test over the workers, but for files that stay together."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return file if file.startswith(TOGETHER) else nodeid

    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def state_home(tmp_path, monkeypatch):
    """Ledgers and locks of one test never meet those of another, nor the user's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.skipped and item.get_closest_marker("live") and os.environ.get("SURVIVE_LIVE"):
        report.outcome = "failed"
        report.longrepr = f"a live test was skipped where all must run: {report.longrepr}"
