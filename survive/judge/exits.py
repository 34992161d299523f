"""Exit codes and their precedence (DESIGN §7), in one function.

70 > 5 > 130/143 > 6 > 2 > 4 > 3 (the harness was late or failing) > 1 > 3 (evidence gaps) > 0:
evidence gaps remove greens; only the harness's own lateness or failure may remove a red. Where it
was late all over, all reds; where it was late for a while (``late``), those that rest on that.
"""

from __future__ import annotations

from dataclasses import dataclass

from survive.errors import ExitCode
from survive.judge.verdict import Word


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that an exit code depends on. Non-empty = it happened; the texts are reasons."""

    bug: tuple[str, ...] = ()
    heal_unproven: tuple[str, ...] = ()
    signal: str = ""  # SIGINT | SIGTERM
    refused: tuple[str, ...] = ()
    invalid: tuple[str, ...] = ()
    stopped: tuple[str, ...] = ()  # by stop_if
    harness: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    late: tuple[str, ...] = ()  # cells that are undecided because the harness was late there
    ungraded: tuple[str, ...] = ()  # less real than `--require-grade` asks
    gaps: tuple[str, ...] = ()

    def reasons(self) -> tuple[str, ...]:
        """All reasons, the deciding ones first."""
        signal = (f"interrupted by {self.signal}",) if self.signal else ()
        return (
            *self.bug,
            *self.heal_unproven,
            *signal,
            *self.refused,
            *self.invalid,
            *self.stopped,
            *self.harness,
            *self.failed,
            *self.late,
            *self.ungraded,
            *self.gaps,
        )


def exit_code(facts: Facts) -> ExitCode:
    """The code of a run with these facts."""
    interrupted = ExitCode.TERMINATED if facts.signal == "SIGTERM" else ExitCode.INTERRUPTED
    precedence = (
        (facts.bug, ExitCode.BUG),
        (facts.heal_unproven, ExitCode.HEAL_UNPROVEN),
        (facts.signal, interrupted),
        (facts.refused, ExitCode.REFUSED),
        (facts.invalid, ExitCode.INVALID),
        (facts.stopped, ExitCode.STOPPED),
        (facts.harness, ExitCode.INCONCLUSIVE),
        (facts.failed, ExitCode.FAILED),
        (facts.late, ExitCode.INCONCLUSIVE),
        (facts.ungraded, ExitCode.INCONCLUSIVE),
        (facts.gaps, ExitCode.INCONCLUSIVE),
    )
    return next((code for fact, code in precedence if fact), ExitCode.SURVIVED)


def exit_as_asked(facts: Facts, inconclusive: str) -> ExitCode:
    """The same where `--inconclusive fail|pass` was asked for; "" = nothing was.

    It speaks of gaps in the evidence only, and the verdict stays what it is. What the harness did,
    unproven heals, interrupts and a grade that was required are never passed.
    """
    code = exit_code(facts)
    if code is not ExitCode.INCONCLUSIVE or facts.harness or facts.late:
        return code
    if inconclusive == "fail":
        return ExitCode.FAILED
    return ExitCode.SURVIVED if inconclusive == "pass" and not facts.ungraded else code


_WORDS = {
    ExitCode.SURVIVED: Word.SURVIVED,
    ExitCode.FAILED: Word.FAILED,
    ExitCode.STOPPED: Word.FAILED,
    ExitCode.INCONCLUSIVE: Word.INCONCLUSIVE,
    ExitCode.HEAL_UNPROVEN: Word.INCONCLUSIVE,
    ExitCode.INTERRUPTED: Word.INCONCLUSIVE,
    ExitCode.TERMINATED: Word.INCONCLUSIVE,
}


def word_of(code: ExitCode) -> Word | None:
    """The verdict that goes with a code; None where no verdict is written (2, 6, 70)."""
    return _WORDS.get(code)
