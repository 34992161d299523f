"""The live display: a panel on a terminal, plain lines elsewhere; changes are told once."""

from __future__ import annotations

import io
import re
import time
from dataclasses import dataclass, field, replace

import pytest
import reporter_fakes as fakes
from reporter_fakes import S, module
from rich.cells import cell_len
from rich.console import Console

from survive.plan.model import FaultWindow

live = module("live")


@dataclass(frozen=True, slots=True)
class Kind:
    n: int = 200
    bad: int = 0
    latency_p95_ms: float | None = 812.3
    ttft_p95_ms: float | None = 141.2


@dataclass(frozen=True, slots=True)
class View:
    offered_rps: float = 69.44
    achieved_rps: float = 69.1
    n: int = 345
    bad: int = 3
    kinds: dict[str, Kind] = field(
        default_factory=lambda: {"chat": Kind(), "search": Kind(ttft_p95_ms=None)}
    )


class Terminal(io.StringIO):
    def isatty(self):
        return True


def display(stream, plan=None, **options):
    console = Console(file=stream, width=80, highlight=False, **options)
    return live.LiveDisplay(console, plan or fakes.plan(), "quickstart")


def told(*events, ticks=(), **options):
    stream = io.StringIO()
    shown = display(stream, **options)
    moments = [(t, name, fields) for t, name, fields in events] + [(t, "", {}) for t in ticks]
    for t, name, fields in sorted(moments, key=lambda moment: moment[0]):
        if name:
            shown.event(name, fields, round(t * S))
        else:
            shown.tick(round(t * S), View())
    shown.stop()
    return stream.getvalue()


def looked(active, stage="during", fault="gpu-loss"):
    return {"fault": fault, "stage": stage, "active": active, "evidence": "status 503"}


def test_lines_tell_phases_faults_and_every_ten_seconds_once():
    text = told(
        (0, "phase_started", {"phase": "warm-up"}),
        (31, "fault_observed", looked("no", "before")),
        (32, "fault_injected", {"fault": "gpu-loss", "error": None}),
        *[(32.25 + k / 4, "fault_observed", looked("yes")) for k in range(28)],
        (40, "fault_healed", {"fault": "gpu-loss", "error": None}),
        (40.1, "fault_observed", looked("no", "after")),
        (40.2, "heal_proven", {"fault": "gpu-loss", "proven": True}),
        ticks=[k / 4 for k in range(4 * 41)],
    )
    assert [line.split(None, 1) for line in text.splitlines()] == [
        ["0.0s", "phase warm-up"],
        ["10.0s", "growth: planned   69.4/s  good   69.1/s  success  99.1 %  3 bad"],
        ["20.0s", "growth: planned   69.4/s  good   69.1/s  success  99.1 %  3 bad"],
        ["30.0s", "production: planned   69.4/s  good   69.1/s  success  99.1 %  3 bad"],
        ["32.0s", "gpu-loss: injected"],
        ["32.2s", "gpu-loss: seen active: status 503"],
        ["40.0s", "gpu-loss: healed"],
        ["40.0s", "production: planned   69.4/s  good   69.1/s  success  99.1 %  3 bad"],
        ["40.2s", "gpu-loss: heal proven"],
    ]


def test_what_comes_before_the_load_has_no_time():
    text = told((-49.8, "run_ended", {"ended": "target_unhealthy"}))
    assert text == "   ----   ended: target_unhealthy\n"


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        ("fault_injected", {"fault": "gpu-loss", "error": "boom"}, "inject failed: boom"),
        ("fault_healed", {"fault": "gpu-loss", "error": "boom"}, "heal failed: boom"),
        (
            "heal_proven",
            {"fault": "gpu-loss", "proven": False, "evidence": "still lost"},
            "HEAL NOT PROVEN: still lost",
        ),
        ("stopped", {"by": "stop_if", "rule": "meltdown"}, "stopped by stop_if meltdown: healing"),
        ("stopped", {"by": "signal", "signal": "SIGINT"}, "stopped by signal SIGINT: healing"),
        ("run_ended", {"ended": "complete"}, "ended: complete"),
        ("fault_injected", {"fault": "unheard-of", "error": None}, ""),
        ("probe_seen", {}, ""),
    ],
)
def test_trouble_is_told(name, fields, said):
    assert told((33, name, fields)).strip().removeprefix("33.0s").strip().endswith(said)


def test_a_fault_that_stops_biting_is_told():
    text = told(
        (32, "fault_injected", {"fault": "gpu-loss", "error": None}),
        (33, "fault_observed", looked("yes")),
        (34, "fault_observed", looked("no")),
        (35, "fault_observed", looked("no")),
    )
    assert text.count("NOT seen active") == 1


def test_a_pipe_gets_no_cursor_codes_whatever_force_color_says(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = told((0, "phase_started", {"phase": "x"}), ticks=range(84))
    assert not re.search(r"\x1b\[[\d?]*[A-HJKhl]", text)


def test_evidence_cannot_drive_the_terminal():
    text = told((33, "fault_injected", {"fault": "gpu-loss", "error": "a\x1b[2J\nb"}))
    assert "\x1b" not in text
    assert len(text.splitlines()) == 1


def _panel(shown, t_s, view=None):
    return shown._panel(round(t_s * S), view or View()).plain.splitlines()


def test_the_panel_shows_where_the_run_is():
    shown = display(Terminal())
    shown.event("fault_injected", {"fault": "gpu-loss", "error": None}, 32 * S)
    assert "gpu-loss      on, not seen yet, heals in 7.5s" in "\n".join(_panel(shown, 32.5))
    shown.event("fault_observed", looked("yes"), 33 * S)
    lines = _panel(shown, 34)
    assert lines[0] == "quickstart on reference  production  34s of 1m24s"
    assert lines[1].startswith("  ━") and lines[1].index("╸") - 2 == 34 * 77 // 84
    assert lines[3].index("┣") - 2 == 32 * 77 // 84
    assert lines[-2:] == [
        "  gpu-loss      on, seen active, heals in 6s",
        "  slow-network  planned in 18s",
    ]
    shown.event("fault_healed", {"fault": "gpu-loss", "error": None}, 40 * S)
    assert "gpu-loss      healed, not yet proven" in _panel(shown, 40)[-2]
    shown.event("heal_proven", {"fault": "gpu-loss", "proven": True}, 41 * S)
    assert _panel(shown, 41)[-2] == "✔ gpu-loss      healed, proven gone"
    assert "draining" in _panel(shown, 85)[0]


def test_the_panel_never_has_more_than_twelve_lines_of_its_width():
    windows = tuple(
        FaultWindow(f"fault-{'x' * 60}-{k}", True, k * 7 * S, (k * 7 + 3) * S, (k * 7 + 6) * S)
        for k in range(12)
    )
    kinds = tuple(f"kind-{k}-{'長' * 30}" for k in range(9))
    plan = replace(fakes.plan(faults=windows), kinds=kinds, name="n" * 300)
    for encoding in ("utf-8", "ascii"):
        stream = Terminal()
        stream_console = Console(file=stream, width=80)
        shown = live.LiveDisplay(stream_console, plan, "n" * 300)
        shown._glyphs = module("glyphs").glyphs_for(encoding)
        shown.event("fault_injected", {"fault": windows[11].fault, "error": "x" * 500}, 77 * S)
        lines = _panel(shown, 78, View(kinds=dict.fromkeys(kinds, Kind())))
        assert len(lines) <= 12
        assert max(map(cell_len, lines)) <= 79
        assert any("inject failed" in line for line in lines)


def test_stop_restores_the_terminal_at_any_time_and_twice():
    stream = Terminal()
    shown = display(stream, force_terminal=True)
    shown.stop()
    shown.start()
    shown.tick(S, View(n=0, bad=0, kinds={}))
    shown.event("stopped", {"by": "signal", "signal": "SIGINT"}, S)
    shown.stop()
    shown.stop()
    text = stream.getvalue()
    assert "stopped by signal SIGINT: healing" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_a_tick_is_cheap():
    shown = display(Terminal(), force_terminal=True)
    shown.start()
    began = time.process_time()
    for k in range(40):
        shown.tick(k * 2 * S, View())
    spent = time.process_time() - began
    shown.stop()
    # Four a second may cost 1 % of a core: 2.5 ms each; seen 0.7. Slack for a busy machine.
    assert spent / 40 < 0.010
