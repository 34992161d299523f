"""verdict.json: the machine's report, and the contract (see docs/stability.md)."""

from __future__ import annotations

import json

from survive.judge.verdict import Verdict

from .inputs import StoredRun


class JsonReporter:
    """``survive report RUN --format json``."""

    def render(self, record: StoredRun, verdict: Verdict) -> bytes:
        """The verdict with sorted keys, ASCII only, so that it passes through any pipe.

        Raises ValueError if the judge let a NaN or an infinity through: JSON has neither.
        """
        text = json.dumps(verdict.to_json(), indent=2, sort_keys=True, allow_nan=False)
        return f"{text}\n".encode("ascii")


reporter = JsonReporter()
