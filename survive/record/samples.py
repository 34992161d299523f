"""The vocabulary of measurement: outcomes, series, and the key under which a sample is filed.

Every measured number of a run is a value in a histogram: a count of requests is the total count
of one. So the conservation sums of DESIGN law 5 are measured, none is computed from the others.

=============  ==============================================  ======================  =========
series         one sample per                                  value (µs)              outcome
=============  ==============================================  ======================  =========
latency        request whose fate is known, or left over       end − intended start    all
lane_wait      request sent                                    waited for a lane       ""
send_lag       request sent                                    harness lateness        ""
service_time   request answered ok                             end − send              ok
attempt        request put on the wire (retries are more)      end − send              ""
ttft           ok streamed request                             first content − intended   ok
itl            gap between two content events, ok requests     gap                     ok
tpot           ok request with ≥ 2 output tokens               (end−first)/(tokens−1)  ok
tokens         ok streamed request                             output tokens           ok
idle           second of a load worker                         µs its loop was idle    ""
starved        second in which lanes were waited for while     requests that waited    ""
               the loop was never idle (kind = "harness")
stall          turn of a load worker's loop over 10 ms         its length              ""
preempted      the same, when others had the core meanwhile    its length              ""
users          second of a closed model, if anybody is there   users at its end        ""
away           slice and stall of a load worker that touch     µs of the stall in it   ""
=============  ==============================================  ======================  =========

``expired``, ``unsent``, ``lost`` and ``in_flight`` have a latency sample too (age when settled),
so ``planned = sent + expired + unsent + lost`` compares n(send_lag) with them and the plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

HARNESS = "harness"  # the kind under which the harness files its own seconds


class Outcome(StrEnum):
    """What became of a request. See DESIGN law 5."""

    OK = "ok"
    FAILED = "failed"  # refused, broken, wrong status, incomplete stream, error inside 200
    TIMED_OUT = "timed_out"  # sent, then the timeout passed
    ABANDONED = "abandoned"  # sent, then the user gave up
    EXPIRED = "expired"  # the deadline passed before a lane was free; never sent
    UNSENT = "unsent"  # the run was stopped first
    IN_FLIGHT = "in_flight"  # sent, unanswered when stopped
    LOST = "lost"  # fate unknown: a worker died


SETTLED = (Outcome.OK, Outcome.FAILED, Outcome.TIMED_OUT, Outcome.ABANDONED, Outcome.EXPIRED)
BAD = (Outcome.FAILED, Outcome.TIMED_OUT, Outcome.ABANDONED, Outcome.EXPIRED)
UNDECIDED = (Outcome.UNSENT, Outcome.IN_FLIGHT, Outcome.LOST)


class Series(StrEnum):
    """What was timed."""

    LATENCY = "latency"
    LANE_WAIT = "lane_wait"
    SEND_LAG = "send_lag"
    SERVICE_TIME = "service_time"
    ATTEMPT = "attempt"
    TTFT = "ttft"
    ITL = "itl"
    TPOT = "tpot"
    TOKENS = "tokens"
    IDLE = "idle"
    STARVED = "starved"
    STALL = "stall"
    PREEMPTED = "preempted"
    USERS = "users"
    AWAY = "away"


class Key(NamedTuple):
    """Where a sample is filed.

    ``slice`` index into Plan.slices, by *intended* start. ``kind`` a request kind or "harness".
    ``crossed`` index into Plan.marks of the first mark in (intended start, end], else −1.
    ``who`` the replica id that answered ("" unknown), on the latency series only.
    ``why`` for failed requests a short class (``status:502``, ``reset``, ``incomplete`` ...).
    """

    slice: int
    kind: str
    crossed: int
    series: Series
    outcome: str = ""
    who: str = ""
    why: str = ""

    def tag(self) -> str:
        """The HdrHistogram log tag, without slice (the interval says it) and without commas."""
        return ":".join(
            (
                self.kind,
                self.series,
                self.outcome,
                str(self.crossed),
                self.who,
                self.why.replace(":", "=").replace(",", ";").replace(" ", "_"),
            )
        )

    @classmethod
    def from_tag(cls, slice_index: int, tag: str) -> Key:
        """The inverse of tag; ValueError if it is none of ours."""
        kind, series, outcome, crossed, who, why = tag.split(":")
        return cls(
            slice_index, kind, int(crossed), Series(series), outcome, who, why.replace("=", ":")
        )


class Counts(NamedTuple):
    """A sparse histogram: bucket indices (ascending) and their counts. HDR 1 µs–1 h, 3 digits."""

    indices: list[int]
    counts: list[int]


@dataclass(frozen=True, slots=True)
class Frame:
    """What a load worker reports each second: deltas, in any order, late ones are legal."""

    at_us: int  # when it was cut
    sets: tuple[tuple[Key, Counts], ...]
    done: bool = False  # the last frame of this worker: drained or stopped
