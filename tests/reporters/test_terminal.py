"""The survival report, against golden files and against everything that might spoil it.

``SURVIVE_UPDATE_GOLDEN=1 pytest tests/reporters`` rewrites the files; look at the difference.
"""

from __future__ import annotations

import io
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import reporter_fakes as fakes
from reporter_fakes import S, cell, module
from rich.cells import cell_len
from rich.console import Console

from survive.catalog import Catalog
from survive.errors import ExitCode
from survive.judge.verdict import Spread, Stalls, Word
from survive.plan.model import FaultWindow

terminal = module("terminal")
told = module("told")
GOLDEN = Path(__file__).parent / "golden"
VERDICTS = {
    "survived": fakes.verdict,
    "failed": fakes.failed,
    "inconclusive": fakes.inconclusive,
}


def rendered(run=None, verdict=None) -> str:
    report = terminal.reporter.render(run or fakes.run(), verdict or fakes.verdict())
    return report.decode()


def printed(verdict, width=80, encoding="utf-8", colour=None, run=None) -> str:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    console = Console(
        file=stream, width=width, force_terminal=colour is not None, color_system=colour
    )
    terminal.print_report(console, run or fakes.run(), verdict)
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("name", VERDICTS)
def test_golden(name):
    report = rendered(verdict=VERDICTS[name]())
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("SURVIVE_UPDATE_GOLDEN"):
        path.write_text(report, encoding="utf-8")
    assert report == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [60, 72, 80, 100, 120, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
@pytest.mark.parametrize("name", VERDICTS)
def test_no_line_is_wider_than_the_console(name, width, encoding):
    report = printed(VERDICTS[name](), width, encoding)
    assert max(cell_len(line) for line in report.splitlines()) <= width


@pytest.mark.parametrize("name", VERDICTS)
def test_colour_adds_nothing_that_words_do_not_say(name):
    coloured = printed(VERDICTS[name](), colour="truecolor")
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == printed(VERDICTS[name]())
    assert printed(VERDICTS[name]()) == rendered(verdict=VERDICTS[name]())


def test_no_color_is_heeded(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[\d;]*3\dm", printed(fakes.failed(), colour="auto"))


def test_plain_ascii_where_the_stream_cannot_carry_more():
    report = printed(fakes.failed(), encoding="ascii")
    assert report.isascii()
    assert "success >= 99 %" in report
    assert "[====]......" in report
    assert "?" not in report


def test_the_verdict_is_the_last_sentence_and_each_word_has_its_form():
    def last(verdict):
        report = rendered(verdict=verdict)
        assert report.splitlines()[-1] == f"next: survive judge {fakes.FOLDER}"
        return " ".join(report.rsplit("\n\n", 1)[1].splitlines()[:-1]).replace("   ", " ")

    assert last(fakes.verdict()) == (
        "SURVIVED quickstart: 9 of 9 objectives held, 2 faults proven (4,546 requests, 1m24s)"
    )
    assert last(fakes.failed()) == (
        "FAILED quickstart: degrade-not-die broke for chat during fault:gpu-loss: "
        "success 61.11 %, limit 90 % (2 more broke)"
    )
    assert last(fakes.inconclusive()) == (
        "INCONCLUSIVE quickstart: slow-network was not proven active: 31 of 31 observations said no"
    )


def test_a_recovery_that_never_came_is_said_so():
    broken = fakes.recovery("gpu-loss", observed="inf", verdict=Word.FAILED)
    late = fakes.recovery("gpu-loss", observed=7.0, verdict=Word.FAILED)

    def verdict(one):
        return fakes.verdict(
            verdict=Word.FAILED, exit_code=ExitCode.FAILED, objectives=(one,), reasons=()
        )

    assert "recovery:gpu-loss: not recovered, limit 6 s" in _flat(rendered(verdict=verdict(broken)))
    assert "recovery:gpu-loss: took 7 s, limit 6 s" in _flat(rendered(verdict=verdict(late)))


def test_what_was_never_hurt_is_not_said_to_be_still_so():
    """Watched for less than `stable_for`, nothing bad in it: there was nothing to recover from."""
    gone = {"absorbed_after_s": None, "recovered_after_s": None, "residual": None}
    unhurt, hurt = (fakes.slow_network(error_window_s=s, **gone) for s in (0.0, 3.0))
    calm, broken = (rendered(verdict=fakes.verdict(faults=(fault,))) for fault in (unhurt, hurt))
    assert "  effect    no error window\n" in calm
    assert "not seen to be absorbed, not seen to recover, error window 3 s" in _flat(broken)


def test_a_stop_and_an_unproven_heal_speak_by_their_reason():
    stopped = replace(
        fakes.failed(), exit_code=ExitCode.STOPPED, reasons=("stopped by stop_if meltdown",)
    )
    assert "FAILED quickstart: stopped by stop_if meltdown\n" in rendered(verdict=stopped)
    left = {"fault": "slow-network", "injection": "slow-network#0", "by_hand": "kill -CONT 4711"}
    ended = fakes.FakeEvent(84 * S, "run_ended", {"ended": "complete", "unproven_heals": [left]})
    fault = fakes.slow_network(heal_proof="still 300 ms slow after 3 s")
    unproven = fakes.verdict(
        verdict=Word.INCONCLUSIVE,
        exit_code=ExitCode.HEAL_UNPROVEN,
        reasons=("the heal of slow-network is not proven", "and more"),
        faults=(fault,),
    )
    report = rendered(fakes.run(events=(ended,)), unproven)
    assert "INCONCLUSIVE quickstart: the heal of slow-network is not proven\n" in report
    assert "by hand: kill -CONT 4711\n" in report
    assert "NOT PROVEN: still 300 ms slow after 3 s" in report
    assert report.endswith("next: survive heal --check\n")


def test_many_reasons_are_told_in_part():
    reasons = tuple(f"reason {k}" for k in range(30))
    verdict = replace(fakes.inconclusive(), reasons=reasons)
    report = rendered(verdict=verdict)
    assert report.count("reason ") == 9
    assert "  - and 21 more in verdict.json\n" in report
    assert "INCONCLUSIVE quickstart: reason 0\n" in report


def test_failures_as_infinity_stand_beside_the_successes():
    report = rendered(verdict=fakes.failed())
    assert "p95 = inf (6.2 % failed or late), of successes alone 153 ms" in report


def test_the_replica_that_took_more_than_its_share():
    report = rendered(verdict=fakes.failed())
    assert "inference-1 took 78 % of failures, fair share 33 % (black-hole factor 2.3)" in report
    few = fakes.gpu_loss(replicas=(fakes.ReplicaShare("inference-1", 2, 1.0, 1 / 3),))
    assert "black-hole" not in rendered(verdict=fakes.verdict(faults=(few,)))
    fair = fakes.gpu_loss(
        replicas=tuple(fakes.ReplicaShare(f"i-{k}", 30, 1 / 3, 1 / 3) for k in range(3))
    )
    assert "black-hole" not in rendered(verdict=fakes.verdict(faults=(fair,)))


def test_a_sum_that_does_not_hold_is_never_printed_as_one():
    report = rendered(verdict=fakes.verdict(load=fakes.load(sent=4500)))
    wrong = "planned 4,546 ≠ sent 4,500 + expired 0 + unsent 0 + lost 0 NOT CONSERVED"
    assert wrong in _flat(report)
    assert "4,546 = sent 4,546 + expired 0" in rendered()


def test_a_starved_harness_says_so():
    report = rendered(verdict=fakes.verdict(load=fakes.load(starved_s=3)))
    assert "in 3 seconds THE HARNESS WAS THE BOTTLENECK" in report


def test_a_loop_that_stood_still_says_so():
    stalls = Stalls(over_10_ms=7, over_100_ms=1, preempted=3, longest_ms=214.0)
    report = _flat(rendered(verdict=fakes.verdict(load=fakes.load(stalls=stalls))))
    assert "stalls 7 over 10 ms, 1 over 100 ms, longest 214 ms; 3 while others had" in report
    assert "stalls" not in rendered()


def test_a_virtual_run_says_so():
    started = fakes.FakeEvent(-S, "run_started", {"host": "virtual"})
    report = rendered(fakes.run(events=(started,)))
    assert "virtual host" in report
    assert "time, network and services were simulated in one process" in report


def test_no_faults_at_all():
    plan = fakes.plan(faults=(), marks=())
    run = fakes.run(plan=plan)
    report = rendered(run, fakes.verdict(faults=(), objectives=(cell("answers", "steady"),)))
    assert "1 of 1 objectives held, no faults (4,546 requests, 1m24s)" in _flat(report)
    assert "recovery window" not in report


def test_twelve_faults_with_long_names_each_keep_one_row():
    windows = tuple(
        FaultWindow(f"a-very-long-fault-name-{k}", True, (5 + 6 * k) * S, (7 + 6 * k) * S,
                    (10 + 6 * k) * S)
        for k in range(12)
    )  # fmt: skip
    faults = tuple(
        fakes.slow_network(
            name=w.fault,
            planned_at_s=w.inject_us / S,
            injected_at_s=w.inject_us / S,
            planned_heal_s=w.heal_us / S,
            healed_at_s=w.heal_us / S,
        )
        for w in windows
    )
    run = fakes.run(plan=fakes.plan(faults=windows, name="n" * 200, target="t" * 200))
    report = rendered(run, fakes.verdict(faults=faults))
    rows = [line for line in report.splitlines() if line.startswith("  a-very-long-fault…")]
    assert len(rows) == 12
    starts = [re.search("[┣╋]", row).start() for row in rows]
    assert starts == sorted(set(starts))
    unbroken = [line for line in report.splitlines() if "n" * 60 not in line]
    assert max(map(cell_len, unbroken)) <= 80


def test_huge_and_tiny_numbers_keep_their_columns():
    objectives = (
        cell("answers", "steady", n=123_456_789_012, bad=1, observed=0.999999999992, limit=0.999),
        fakes.ttft("steady", observed=0.001, low=0.0005, high=3_600_000.0, observed_ok=0.001),
        cell("a" * 90, "fault:" + "w" * 90, "r" * 90),
    )
    spread = Spread(0.0001, 3_599_999.9, "inf")
    huge = fakes.load(planned=10**13, sent=10**13, ok=10**13, failed=0, timed_out=0,
                      send_lag_ms=spread, lane_wait_ms=Spread(None, None, None))  # fmt: skip
    report = rendered(verdict=fakes.verdict(objectives=objectives, load=huge))
    assert max(map(cell_len, report.splitlines())) <= 80
    assert "123,456,789,012" in report
    assert "100 % " not in report.split("steady")[1].split("\n")[0]


def test_what_the_target_says_cannot_drive_the_terminal():
    evil = "status 503 \x1b[2J\x1b]0;owned\x07 \u202eevil\n\nSURVIVED quickstart: [bold]all held"
    fault = fakes.gpu_loss(evidence=evil, failures=((evil, 3),), target=evil, note=evil)
    weird = cell("answers", "steady", verdict=Word.INCONCLUSIVE, why=evil)
    verdict = fakes.verdict(faults=(fault,), objectives=(weird,), reasons=(evil, evil))
    for report in (rendered(verdict=verdict), printed(verdict, encoding="ascii")):
        assert not set(report) & {"\x1b", "\x07", "\u202e", "\r"}
        assert not any(line.startswith("SURVIVED quickstart: [") for line in report.splitlines())
    assert "[bold]all" in rendered(verdict=verdict)


def test_why_requests_failed_stands_beside_how_many():
    run = replace(fakes.run(), why=(("status:404", 172), ("reset", 3)))
    assert "  failed    status:404 × 172, reset × 3\n" in rendered(run)
    assert "\n  failed " not in rendered()


def test_a_load_that_never_began_is_no_sum_that_does_not_hold():
    ended = fakes.FakeEvent(-S, "run_ended", {"ended": "target_unhealthy", "detail": "web"})
    load = replace(fakes.load(), sent=0, ok=0, failed=0, timed_out=0, attempts=0)
    lines = [line.text for line in told.of_load(fakes.run(rows=(), events=(ended,)), load)]
    assert f"{load.planned:,}, of which none was sent: the load never began" in lines
    assert not any("NOT CONSERVED" in line for line in lines)


def test_a_run_that_never_began():
    ended = fakes.FakeEvent(-S, "run_ended", {"ended": "target_unhealthy", "detail": "gateway"})
    nothing = fakes.load(
        planned=0, sent=0, ok=0, failed=0, timed_out=0, attempts=0, offered_rps=0.0,
        achieved_rps=0.0, send_lag_ms=Spread(None, None, None),
    )  # fmt: skip
    verdict = fakes.verdict(
        verdict=Word.INCONCLUSIVE,
        exit_code=ExitCode.INCONCLUSIVE,
        reasons=("gateway never became healthy",),
        objectives=(),
        faults=(),
        load=nothing,
    )
    report = rendered(fakes.run(rows=(), events=(ended,)), verdict)
    assert "INCONCLUSIVE quickstart: gateway never became healthy" in report
    assert "0s  seed 42" in report
    assert "the load never began" in report and len(report.splitlines()) < 10
    owed = replace(verdict, exit_code=ExitCode.HEAL_UNPROVEN)
    assert "\nLOAD\n" in rendered(fakes.run(rows=(), events=(ended,)), owed)


def test_the_catalog_finds_the_reporters_and_no_helper():
    names = Catalog(plugins=False).reporter_names()
    assert {"json", "terminal"} <= set(names)
    assert not {"axis", "glyphs", "inputs", "live", "sentence", "words"} & set(names)
    assert Catalog(plugins=False).reporter("terminal") is terminal.reporter


def _flat(report: str) -> str:
    return " ".join(report.split())
