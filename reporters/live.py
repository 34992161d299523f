"""What stderr shows while a run goes on: a calm panel on a terminal, plain lines anywhere else.

Watches, never changes. It draws only when asked (four times a second), with no thread of its own.
Observations come four times a second for each fault: only changes are told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.text import Text

from survive.contracts import Active
from survive.plan.model import FaultWindow, Plan
from survive.plan.users import users_at
from survive.units import SECOND

from . import axis as draw
from . import words
from .glyphs import fill, glyphs_for

MOST_KINDS, MOST_FAULTS = 3, 4  # rows; the panel never has more than 12
_EVERY_US = 10 * SECOND  # a plain line at least this often
_WIDEST = 100


class LiveKind(Protocol):
    """One request kind over the last seconds."""

    @property
    def n(self) -> int:
        """Settled."""

    @property
    def bad(self) -> int:
        """Settled and not ok."""

    @property
    def latency_p95_ms(self) -> float | None:
        """Of good answers; None if there were none."""

    @property
    def ttft_p95_ms(self) -> float | None:
        """Of good streams; None if there were none."""


class LiveView(Protocol):
    """How it goes, over the last seconds: the part of the writer's view that is shown."""

    @property
    def offered_rps(self) -> float:
        """Planned."""

    @property
    def achieved_rps(self) -> float:
        """Good answers a second."""

    @property
    def n(self) -> int:
        """Settled."""

    @property
    def bad(self) -> int:
        """Settled and not ok."""

    @property
    def kinds(self) -> Mapping[str, LiveKind]:
        """Each request kind."""


@dataclass(slots=True)
class _FaultState:
    """What the events have told of one fault; it may have several injections."""

    window: FaultWindow
    injected: bool = False
    seen: bool = False
    missed: bool = False  # planned on, yet observed not active
    healed: bool = False
    proven: bool = False
    trouble: str = ""  # an error or an unproven heal, in words

    def learn(self, name: str, fields: Mapping[str, Any]) -> str:
        """Take an event in; the words for it if it is news, else ""."""
        if name == "fault_injected":
            return self._injected(fields)
        if name == "fault_observed":
            return self._observed(fields)
        if name == "fault_healed":
            return self._healed(fields)
        return self._proof(fields) if name == "heal_proven" else ""

    def _injected(self, fields: Mapping[str, Any]) -> str:
        if fields.get("error"):
            self.trouble = f"inject failed: {fields['error']}"
            return self.trouble
        news = "" if self.injected else "injected"
        self.injected = True
        return news

    def _observed(self, fields: Mapping[str, Any]) -> str:
        if fields.get("stage") != "during":
            return ""
        if fields.get("active") == Active.YES and not self.seen:
            self.seen = True
            return f"seen active: {fields.get('evidence', '')}"
        if fields.get("active") == Active.NO and self.seen and not self.missed:
            self.missed = True
            return f"NOT seen active: {fields.get('evidence', '')}"
        return ""

    def _healed(self, fields: Mapping[str, Any]) -> str:
        if fields.get("error"):
            self.trouble = f"heal failed: {fields['error']}"
            return self.trouble
        news = "" if self.healed else "healed"
        self.healed = True
        return news

    def _proof(self, fields: Mapping[str, Any]) -> str:
        if fields.get("proven") is not True:
            self.trouble = f"HEAL NOT PROVEN: {fields.get('evidence', '')}"
            return self.trouble
        news = "" if self.proven else "heal proven"
        self.proven = True
        return news

    def words(self, t_us: int) -> tuple[str, str]:
        """(what to say of it now, style)."""
        if self.trouble:
            return self.trouble, "bold red"
        if self.proven:
            return "healed, proven gone", "green"
        if self.healed:
            return "healed, not yet proven", draw.RECOVERY
        if self.injected:
            return self._on(t_us)
        if t_us < self.window.inject_us:
            return f"planned in {words.span(self.window.inject_us - t_us)}", draw.FAINT
        return "due", draw.RECOVERY

    def _on(self, t_us: int) -> tuple[str, str]:
        seen = "seen active" if self.seen else "not seen yet"
        if not self.window.held:
            return f"done, {seen}", draw.FAULT
        left = max(0, self.window.heal_us - t_us)
        return f"on, {seen}, heals in {words.span(left)}", draw.FAULT


class LiveDisplay:
    """Follows one run on a console (stderr). ``stop`` is safe at any time, and more than once."""

    def __init__(self, console: Console, plan: Plan, scenario_name: str) -> None:
        self._console = console
        self._plan = plan
        self._glyphs = glyphs_for(console.encoding)
        self._name = self._glyphs.clean(scenario_name)
        self._target = self._glyphs.clean(plan.target)
        self._faults = {window.fault: _FaultState(window) for window in plan.faults}
        # FORCE_COLOR makes Rich believe in a terminal; cursor codes go to a real one only.
        moving = console.file.isatty() and not console.is_dumb_terminal
        self._live = (
            Live(
                console=console,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
                vertical_overflow="crop",
            )
            if moving
            else None
        )
        self._told_us = 0
        self._fixed: tuple[int, list[Text]] = (0, [])

    def start(self) -> None:
        """Begin to show."""
        if self._live is not None:
            self._live.start()
            self._live.update(self._waiting("starting the target"), refresh=True)
        else:
            self._say(None, f"{self._name} on {self._target}: starting the target")

    def stop(self) -> None:
        """End; the panel vanishes, the report takes its place."""
        if self._live is not None:
            self._live.stop()

    def event(self, name: str, fields: Mapping[str, Any], t_us: int) -> None:
        """Something happened: remember it, and tell it at once where lines are shown."""
        news = self._news(name, fields)
        if news and self._live is None:
            self._say(t_us, news)
        elif name == "stopped" and self._live is not None:
            self._live.update(self._waiting(news), refresh=True)

    def tick(self, t_us: int, live: LiveView) -> None:
        """Show how it goes; called four times a second."""
        if self._live is not None:
            self._live.update(self._panel(t_us, live), refresh=True)
        elif t_us - self._told_us >= _EVERY_US:
            self._told_us = t_us - t_us % _EVERY_US
            self._say(t_us, f"{self._phase(t_us)}: {self._rates(live, t_us).plain}")

    # ------------------------------------------------------------------- news

    def _news(self, name: str, fields: Mapping[str, Any]) -> str:
        fault = self._faults.get(str(fields.get("fault", "")))
        if fault is not None:
            news = fault.learn(name, fields)
            return f"{fault.window.fault}: {news}" if news else ""
        if name == "phase_started":
            return f"phase {fields.get('phase') or fields.get('name') or ''}"
        if name == "stopped":
            by = fields.get("rule") or fields.get("signal") or ""
            return f"stopped by {fields.get('by', '')} {by}: healing"
        return f"ended: {fields.get('ended', '')}" if name == "run_ended" else ""

    def _say(self, t_us: int | None, text: str) -> None:
        begun = t_us is not None and t_us >= 0  # what comes before has no time of the load
        at = "   ---- " if t_us is None or not begun else f"{t_us / SECOND:7.1f}s"
        line = self._glyphs.clean(f"{at}  {text}")
        self._console.print(Text(line), soft_wrap=True)

    # ------------------------------------------------------------------ panel

    def _waiting(self, what: str) -> Text:
        return Text.assemble((self._name, "bold"), f" on {self._target}  ", (what, draw.FAINT))

    def _panel(self, t_us: int, live: LiveView) -> Text:
        width = min(_WIDEST, max(40, self._console.width - 1))
        lines = [self._heading(t_us), *self._axis(t_us, width), self._rates(live, t_us)]
        lines += self._kinds(live)
        lines += self._fault_rows(t_us)
        for line in lines:
            line.truncate(width, overflow="crop")
        return Text("\n").join(lines)

    def _heading(self, t_us: int) -> Text:
        end = words.span(self._plan.end_us)
        now = words.span(max(0, t_us))
        where = f"{self._phase(t_us)}  {now} of {end}" if t_us < self._plan.end_us else "draining"
        return Text.assemble((self._name, "bold"), f" on {self._target}  {where}")

    def _axis(self, t_us: int, width: int) -> list[Text]:
        """The bar that grows, over rows that never change and are drawn once a width."""
        axis = draw.Axis(self._plan.end_us, width - 2)
        if self._fixed[0] != width:
            rows = [draw.phase_row(axis, self._plan, self._glyphs)]
            if self._plan.faults:
                bands = [draw.Band.planned(window) for window in self._plan.faults]
                rows.append(draw.band_row(axis, bands, self._glyphs))
            self._fixed = (width, [Text.assemble("  ", draw.text(row)) for row in rows])
        done = axis.column(t_us)
        bar = Text.assemble(
            "  ",
            (self._glyphs.done * done, "green"),
            (self._glyphs.here, "bold green"),
            (self._glyphs.todo * (axis.columns - done - 1), draw.FAINT),
        )
        return [bar, *(row.copy() for row in self._fixed[1])]

    def _planned(self, live: LiveView, t_us: int) -> str:
        if self._plan.closed:
            return f"users {words.count(users_at(self._plan.phases, t_us)):>10}"
        return f"planned {words.rate(live.offered_rps):>8}"

    def _rates(self, live: LiveView, t_us: int) -> Text:
        good = words.rate(live.achieved_rps)
        text = Text(f"{self._planned(live, t_us)}  good {good:>8}")
        if not live.n:
            return text.append("  nothing answered yet", draw.FAINT)
        share = words.share(1 - live.bad / live.n, significant=3)
        style = "bold red" if live.bad else "green"
        return text.append("  success ").append(f"{share:>7}", style).append(f"  {live.bad} bad")

    def _kinds(self, live: LiveView) -> list[Text]:
        names = list(live.kinds)
        labels = [self._glyphs.short(name, 16) for name in names[:MOST_KINDS]]
        room = max((cell_len(label) for label in labels), default=0)
        rows = []
        for name, label in zip(names, labels, strict=False):
            kind = live.kinds.get(name)
            times = "" if kind is None else _times(kind)
            rows.append(Text.assemble((f"  {fill(label, room)}  ", draw.FAINT), times))
        return _and_more(rows, len(names) - MOST_KINDS, "kind")

    def _fault_rows(self, t_us: int) -> list[Text]:
        """The faults that matter now: trouble first, then on, next, and past ones."""
        states = sorted(self._faults.values(), key=lambda state: _urgency(state, t_us))
        chosen = sorted(states[:MOST_FAULTS], key=lambda state: state.window.inject_us)
        labels = [self._glyphs.short(state.window.fault, 20) for state in chosen]
        room = max((cell_len(label) for label in labels), default=0)
        rows = []
        for state, label in zip(chosen, labels, strict=True):
            said, style = state.words(t_us)
            said = self._glyphs.clean(said)
            mark = self._glyphs.yes if state.proven and not state.trouble else " "
            rows.append(Text.assemble((f"{mark} ", style), f"{fill(label, room)}  ", (said, style)))
        return _and_more(rows, len(states) - MOST_FAULTS, "fault")

    def _phase(self, t_us: int) -> str:
        for phase in self._plan.phases:
            if phase.start_us <= t_us < phase.end_us:
                return self._glyphs.clean(phase.name)
        return "getting ready" if t_us < 0 else "draining"


def _times(kind: LiveKind) -> str:
    values = (("ttft", kind.ttft_p95_ms), ("latency", kind.latency_p95_ms))
    known = [f"{name} p95 {words.milliseconds(v):>8}" for name, v in values if v is not None]
    return "  ".join(known) or "no good answer yet"


def _urgency(state: _FaultState, t_us: int) -> tuple[int, int]:
    window = state.window
    if state.trouble:
        return 0, window.inject_us
    if state.injected and not state.proven and (window.held or t_us < window.recovery_end_us):
        return 1, window.inject_us
    return (2, window.inject_us) if t_us < window.inject_us else (3, -window.inject_us)


def _and_more(rows: list[Text], hidden: int, noun: str) -> list[Text]:
    """The rows; the last one also says how many do not fit."""
    if hidden > 0:
        rows[-1].append(f"  (and {words.plural(hidden, noun)} more)", draw.FAINT)
    return rows
