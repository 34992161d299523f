"""Rules for every test: a state directory of its own, and no silent skip in CI."""

from __future__ import annotations

import os

import pytest

# Files whose tests must not run beside each other: they share a daemon, namespaces, the time of a
# processor, or a run that each worker would play for itself. (xdist's own groups need an item's
# name to be changed, which pytest 9 ignores.)
TOGETHER = (
    "tests/cli/test_judge_again.py",
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
            if "[container." in nodeid:
                return "tests/live/test_docker.py"  # one daemon, which that test finds empty
            return file if file.startswith(TOGETHER) else nodeid

    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def state_home(tmp_path, monkeypatch):
    """Ledgers and locks of one test never meet those of another, nor the user's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture(autouse=True)
def no_ci(monkeypatch):
    """Runs of the tests write nothing into the summary of the job that runs the tests."""
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)


# Where SURVIVE_LIVE is set (CI) a test that is skipped has failed. What may be skipped even there,
# by the beginning of its id, and why; each is printed at the end.
MAY_BE_SKIPPED: dict[str, str] = {
    "tests/matrix/test_matrix.py::test_kill_9_with_each_kind[network.netem_latency-": (
        "not every kernel has the queue, and nothing that can be installed brings it"
    )
}
REFUSED = "skipped where all must run (SURVIVE_LIVE)"


def allowed(nodeid: str) -> str | None:
    return next((why for test, why in MAY_BE_SKIPPED.items() if nodeid.startswith(test)), None)


def refuse_skip(report) -> None:
    """A skip becomes a failure, of a test or (importorskip) of a whole file."""
    expected = hasattr(report, "wasxfail")  # pytest reports an expected failure as a skip
    refused = os.environ.get("SURVIVE_LIVE") and not allowed(report.nodeid)
    if report.skipped and not expected and refused:
        report.outcome = "failed"
        report.longrepr = f"{REFUSED}: {report.longrepr}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    refuse_skip(outcome.get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    outcome = yield
    refuse_skip(outcome.get_result())


def pytest_terminal_summary(terminalreporter):
    """Skips are never silent: what was not shown, and why."""
    for report in terminalreporter.stats.get("skipped", []):
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        reason = allowed(report.nodeid)
        terminalreporter.line(f"not run: {report.nodeid}: {why}{f' ({reason})' if reason else ''}")
