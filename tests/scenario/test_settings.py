"""Fault settings from text."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import pytest

from survive.contracts import Json
from survive.scenario.settings import SettingError, parse_settings
from survive.units import Duration, Factor, Share

NONE, ALL, SAME = Duration(0), Share(1.0), Factor(1.0)


@dataclass(frozen=True, slots=True)
class Latency:
    latency: Duration
    jitter: Duration = NONE
    part: Share = ALL
    slow: Factor = SAME
    count: int = 1
    level: float = 0.5
    label: str = ""
    hard: bool = False

    def __post_init__(self) -> None:
        if self.jitter > self.latency:
            raise ValueError("jitter is larger than latency")


def test_every_type_is_read() -> None:
    raw: dict[str, Json] = {
        "latency": "300ms",
        "jitter": "0ms",
        "part": "20%",
        "slow": "3x",
        "count": 2,
        "level": 1,
        "label": "a",
        "hard": True,
    }
    expected = Latency(Duration(300_000), Duration(0), Share(0.2), Factor(3.0), 2, 1.0, "a", True)
    assert parse_settings(Latency, raw) == expected
    assert parse_settings(Latency, {"latency": "1s"}) == Latency(Duration(1_000_000))


@pytest.mark.parametrize(
    ("raw", "name", "said"),
    [
        ({}, "latency", "latency: is missing; write it like 300ms"),
        ({"latency": 300}, "latency", "latency: 300 has no unit; write it like 300ms"),
        ({"latency": "300"}, "latency", "latency: 300 has no unit"),
        ({"latency": "300 parsecs"}, "latency", "is not a duration"),
        ({"latency": "1s", "jiter": "1ms"}, "jiter", "did you mean 'jitter'?"),
        ({"latency": "1s", "part": "120%"}, "part", "is over 100%"),
        ({"latency": "1s", "slow": "3"}, "slow", "write it like 3x"),
        ({"latency": "1s", "count": True}, "count", "True is not a whole number"),
        ({"latency": "1s", "count": 1.5}, "count", "1.5 is not a whole number"),
        ({"latency": "1s", "hard": 1}, "hard", "1 is not true or false"),
        ({"latency": "1s", "label": 5}, "label", "5 is not text"),
        ({"latency": "1s", "jitter": "2s"}, "with", "jitter is larger than latency"),
    ],
)
def test_a_bad_setting_is_named(raw: dict[str, Json], name: str, said: str) -> None:
    with pytest.raises(SettingError) as caught:
        parse_settings(Latency, raw)
    assert caught.value.setting == name
    assert said in str(caught.value)


def test_it_is_light_to_import() -> None:
    code = (
        "import sys, survive.scenario.settings\n"
        "print(sorted({'pydantic', 'yaml', 'numpy', 'locust'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=20
    )
    assert done.stdout.strip() == "[]"
