"""Every error that a user can meet, and the exit code that goes with it.

    SurviveError
    ├── UsageError      2   the command line is wrong
    ├── ScenarioError   2   a scenario or target file is wrong (all problems at once)
    ├── RecordError     2   a stored run cannot be read
    ├── RefusedError    6   resolves to nothing here, host not allowed, privilege missing
    │   └── WrongTargetError  another kind of target could be hit
    ├── HarnessError    3   the harness could not do its work: no verdict can be trusted
    └── UnhealedError   5   a heal is not proven, and the record cannot say so

A failed request is data and a fault that does not bite is a verdict; neither is an exception.
Anything that is not a SurviveError is a bug of ours: exit 70.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """What ``survive`` tells a CI gate. A public contract: numbers never change meaning."""

    SURVIVED = 0
    FAILED = 1
    INVALID = 2
    INCONCLUSIVE = 3
    STOPPED = 4
    HEAL_UNPROVEN = 5
    REFUSED = 6
    BUG = 70
    INTERRUPTED = 130
    TERMINATED = 143


@dataclass(frozen=True, slots=True)
class Where:
    """A place in a file. Lines and columns count from 1."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


class SurviveError(Exception):
    """An expected error: a lowercase fragment, a hint, a place, an exit code."""

    exit_code: ExitCode = ExitCode.INVALID

    def __init__(self, message: str, *, hint: str = "", where: Where | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.where = where

    def lines(self) -> list[str]:
        """The error as it is printed: one line, and one for the hint."""
        place = f"{self.where}: " if self.where else ""
        return [f"{place}{self.message}"] + ([f"  hint: {self.hint}"] if self.hint else [])


class UsageError(SurviveError):
    """The command line is wrong."""


class RecordError(SurviveError):
    """A stored run is missing, cut short, of another version or damaged."""


class RefusedError(SurviveError):
    """Valid, but not to be done on this host."""

    exit_code = ExitCode.REFUSED


class WrongTargetError(RefusedError):
    """A fault cannot hit a target of this kind; one of another kind it could."""


class HarnessError(SurviveError):
    """The harness failed at its own work; nothing that it saw can be trusted."""

    exit_code = ExitCode.INCONCLUSIVE


class UnhealedError(SurviveError):
    """A heal is not proven, and there is no record that could say so (a full disk)."""

    exit_code = ExitCode.HEAL_UNPROVEN


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a file, and what was probably meant."""

    where: Where
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" + (f" ({self.hint})" if self.hint else "")


class ScenarioError(SurviveError):
    """A scenario or target file is wrong; carries every problem of both files."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(f"{len(problems)} problem{'s' if len(problems) != 1 else ''}")
        self.problems = tuple(problems)

    def lines(self) -> list[str]:
        """One line a problem, in the order of the files."""
        return [str(problem) for problem in self.problems]
