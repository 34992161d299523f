"""How long prompts and answers are in public traces: ``data: azure-conv``, ``data: azure-code``.

Measured from Azure/AzurePublicDataset, AzureLLMInferenceTrace_conv.csv and _code.csv of November
2023 (CC-BY 4.0; Patel et al., "Splitwise", ISCA 2024) by benchmarks/lengths.py; the traces are not
part of this package, their quantiles are. Answers depend on prompts (in azure-conv those to
prompts of 700 to 1,300 tokens have 400 at the median, all others about 100), so the quantiles of
answers are kept for each tenth of the prompts. From one call to the next lengths are nearly
independent (correlation at most 0.11): rows are drawn by chance, as those of any file are.

| preset | requests | tokens in: mean, p50, p90, p99 | tokens out: mean, p50, p90, p99 |
|---|---|---|---|
| azure-conv | 19,366 | 1155, 1020, 2735, 4142 | 211, 129, 424, 601 |
| azure-code | 8,819 | 2048, 1469, 5188, 7436 | 28, 13, 55, 252 |

A preset has a thousand rows, each with ``input_tokens``, ``output_tokens`` (the names that the rows
of a replayed trace have) and ``prompt``: as many short words, each about a token. Prompts begin
differently; but a stack that keeps prefixes of more than a thousand prompts finds them again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from survive.contracts import Json

INPUT_LEVELS = (0, 1, 2.5, *range(5, 100, 5), 97.5, 99, 99.5, 100)  # percent
OUTPUT_LEVELS = (0, 5, 10, 25, 50, 75, 90, 95, 98, 99, 99.5, 100)
BANDS = 10  # of prompts from short to long, each with answers of its own
_STRIDE = 37  # has no factor in common with the rows of a band: answers are mixed among prompts
_COMMON = (
    "the of and to in is it you that he was for on are with as his they be at one have this "
    "from or had by hot but some what there we can out other were all your when up use word how "
    "said an each she which do their time if will way about many then them would like so these "
    "her long make thing see him two has look more day could go come did my no most who over "
    "know "
)
_WORDS = _COMMON.split()


@dataclass(frozen=True, slots=True)
class Table:
    """Quantiles of prompts at INPUT_LEVELS; of answers at OUTPUT_LEVELS, for each band."""

    inputs: tuple[int, ...]
    outputs: tuple[tuple[int, ...], ...]
    ROWS: ClassVar[int] = 1_000

    def lengths(self, number: int) -> tuple[int, int]:
        """Tokens in and out of one row: together the rows have the quantiles of the table."""
        per_band = self.ROWS // BANDS
        band, place = divmod(number, per_band)
        answer = (place * _STRIDE % per_band + 0.5) / per_band
        return (
            _quantile(INPUT_LEVELS, self.inputs, (number + 0.5) / self.ROWS),
            _quantile(OUTPUT_LEVELS, self.outputs[band], answer),
        )


def _quantile(levels: tuple[float, ...], values: tuple[int, ...], share: float) -> int:
    """Between two known quantiles lengths grow by a constant factor: tails are long."""
    at = 100 * share
    for (low, first), (high, last) in pairwise(zip(levels, values, strict=True)):
        if at <= high:
            grown: float = (last / first) ** ((at - low) / (high - low))
            return max(1, round(first * grown))
    return values[-1]


def preset_rows(name: str) -> Iterator[Mapping[str, Json]]:
    """The rows of ``data: NAME``. KeyError if there is no such preset."""
    table = LENGTHS[name]
    for number in range(table.ROWS):
        tokens_in, tokens_out = table.lengths(number)
        words = random.Random(f"{name} {number}").choices(_WORDS, k=tokens_in)
        yield {"input_tokens": tokens_in, "output_tokens": tokens_out, "prompt": " ".join(words)}


FIELDS = ("input_tokens", "output_tokens", "prompt")
# fmt: off
LENGTHS: Mapping[str, Table] = {
    "azure-conv": Table(
        (
            2, 29, 120, 181, 207, 372, 387, 396, 403, 414, 703, 984, 1020, 1045, 1071, 1097,
            1130, 1189, 1315, 1877, 2735, 4083, 4092, 4142, 4831, 14050,
        ),
        (
            (11, 16, 66, 112, 161, 189, 217, 217, 257, 296, 357, 1000),
            (7, 18, 18, 59, 76, 99, 162, 188, 217, 217, 223, 436),
            (24, 72, 80, 88, 96, 109, 131, 143, 161, 171, 182, 200),
            (25, 75, 81, 89, 99, 113, 140, 153, 179, 200, 331, 739),
            (10, 57, 82, 122, 395, 415, 448, 516, 577, 609, 626, 921),
            (33, 368, 379, 394, 406, 428, 478, 539, 622, 667, 939, 1000),
            (28, 363, 377, 393, 407, 429, 500, 569, 629, 662, 935, 1000),
            (26, 60, 92, 180, 396, 417, 452, 523, 598, 643, 674, 992),
            (15, 44, 50, 70, 95, 138, 191, 233, 396, 421, 489, 918),
            (17, 30, 35, 43, 58, 87, 132, 154, 199, 261, 371, 757),
        ),
    ),
    "azure-code": Table(
        (
            3, 17, 44, 75, 147, 232, 385, 578, 770, 938, 1075, 1261, 1469, 1690, 1909, 2164,
            2433, 2745, 3193, 3923, 5194, 7315, 7435, 7436, 7436, 7437,
        ),
        (
            (6, 6, 7, 9, 14, 20, 44, 69, 106, 206, 393, 1899),
            (6, 6, 7, 9, 14, 26, 63, 104, 196, 262, 333, 1276),
            (6, 6, 7, 9, 14, 28, 63, 103, 184, 252, 277, 599),
            (6, 6, 7, 9, 13, 22, 52, 82, 157, 264, 313, 841),
            (6, 6, 7, 9, 13, 22, 48, 80, 160, 202, 264, 824),
            (6, 6, 7, 9, 13, 28, 59, 88, 175, 263, 391, 822),
            (6, 6, 7, 9, 12, 21, 52, 94, 157, 253, 361, 871),
            (6, 6, 7, 9, 12, 22, 53, 84, 193, 290, 607, 940),
            (6, 6, 7, 9, 13, 24, 64, 115, 201, 337, 503, 928),
            (6, 6, 7, 9, 13, 25, 55, 87, 139, 225, 310, 697),
        ),
    ),
}
# fmt: on
