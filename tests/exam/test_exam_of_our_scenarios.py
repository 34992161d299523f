"""What our own scenarios claim holds: two seeds here, ten in ``make exam``.

Each weakness here by the smallest of the scenarios that claim it: all claims take too long for CI.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from survive.exam.command import Asked, sit_exam


@pytest.mark.alone
@pytest.mark.timeout(400)
def test_every_weakness_is_found_and_nothing_sound_is_condemned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sit_exam(Asked(seeds=2, matrix=False, once=True, results=tmp_path, form="json"))
    told = json.loads(capsys.readouterr().out)
    assert told["missed"] == [] and told["condemned"] == [] and told["skipped"] == {}
    assert [claim for claim in told["claims"] if not claim["holds"]] == []
