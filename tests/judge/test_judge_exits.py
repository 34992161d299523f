"""The exit table (DESIGN §7): every pair of facts, and the verdict that goes with each code."""

from __future__ import annotations

import itertools

import pytest

from survive.errors import ExitCode
from survive.judge.exits import Facts, exit_as_asked, exit_code, word_of
from survive.judge.verdict import Word

# In order of precedence: a fact beats every fact below it.
TABLE = [
    ({"bug": ("x",)}, ExitCode.BUG, None),
    ({"heal_unproven": ("x",)}, ExitCode.HEAL_UNPROVEN, Word.INCONCLUSIVE),
    ({"signal": "SIGINT"}, ExitCode.INTERRUPTED, Word.INCONCLUSIVE),
    ({"refused": ("x",)}, ExitCode.REFUSED, None),
    ({"invalid": ("x",)}, ExitCode.INVALID, None),
    ({"stopped": ("x",)}, ExitCode.STOPPED, Word.FAILED),
    ({"harness": ("x",)}, ExitCode.INCONCLUSIVE, Word.INCONCLUSIVE),
    ({"failed": ("x",)}, ExitCode.FAILED, Word.FAILED),
    ({"late": ("x",)}, ExitCode.INCONCLUSIVE, Word.INCONCLUSIVE),
    ({"ungraded": ("x",)}, ExitCode.INCONCLUSIVE, Word.INCONCLUSIVE),
    ({"gaps": ("x",)}, ExitCode.INCONCLUSIVE, Word.INCONCLUSIVE),
    ({}, ExitCode.SURVIVED, Word.SURVIVED),
]
NUMBERS = [70, 5, 130, 6, 2, 4, 3, 1, 3, 3, 3, 0]


@pytest.mark.parametrize(("facts", "code", "word"), TABLE)
def test_each_fact_has_its_code_and_word(facts, code, word):
    assert exit_code(Facts(**facts)) is code
    assert word_of(code) is word


def test_the_numbers_are_the_published_ones():
    assert [int(exit_code(Facts(**facts))) for facts, _, _ in TABLE] == NUMBERS
    assert exit_code(Facts(signal="SIGTERM")) == 143
    assert word_of(ExitCode.TERMINATED) is Word.INCONCLUSIVE


@pytest.mark.parametrize(
    "chosen",
    [c for n in range(1, len(TABLE)) for c in itertools.combinations(range(len(TABLE) - 1), n)],
)
def test_the_highest_fact_decides_whatever_else_happened(chosen):
    facts = {name: value for at in chosen for name, value in TABLE[at][0].items()}
    assert exit_code(Facts(**facts)) == NUMBERS[min(chosen)]


def test_reasons_come_in_order_of_precedence():
    facts = Facts(gaps=("g",), failed=("f",), harness=("h",), heal_unproven=("u",))
    assert facts.reasons() == ("u", "h", "f", "g")


@pytest.mark.parametrize(("facts", "code", "_"), TABLE)
def test_only_a_gap_in_the_evidence_is_passed_or_failed_on_request(facts, code, _):
    gap, grade = "gaps" in facts, "ungraded" in facts
    assert exit_as_asked(Facts(**facts), "") is code
    assert exit_as_asked(Facts(**facts), "fail") is (ExitCode.FAILED if gap or grade else code)
    assert exit_as_asked(Facts(**facts), "pass") is (ExitCode.SURVIVED if gap else code)


@pytest.mark.parametrize(
    "worse", ["harness", "heal_unproven", "failed", "late", "ungraded", "stopped"]
)
def test_a_gap_is_not_passed_beside_something_worse(worse):
    facts = Facts(**{worse: ("x",)}, gaps=("y",))
    assert exit_as_asked(facts, "pass") is exit_code(facts) is not ExitCode.SURVIVED
