"""The table of survive/scenario/lengths.py from a trace: ``python benchmarks/lengths.py FILE``.

FILE is one of Azure/AzurePublicDataset's AzureLLMInferenceTrace_*.csv (CC-BY 4.0), as it is or
gzipped.
"""

from __future__ import annotations

import csv
import gzip
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from survive.scenario.lengths import BANDS, INPUT_LEVELS, OUTPUT_LEVELS, Table


def main() -> None:
    path = Path(sys.argv[1])
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows = [*csv.DictReader(text.decode("utf-8-sig").splitlines())]
    inputs = np.array([int(row["ContextTokens"]) for row in rows])
    outputs = np.array([int(row["GeneratedTokens"]) for row in rows])
    by_input = outputs[np.argsort(inputs, kind="stable")]
    table = Table(
        quantiles(inputs, INPUT_LEVELS),
        tuple(quantiles(band, OUTPUT_LEVELS) for band in np.array_split(by_input, BANDS)),
    )
    print(f"{len(rows)} requests\n{table}")
    made = [table.lengths(number) for number in range(table.ROWS)]
    for name, real, ours in (
        ("input", inputs, [one[0] for one in made]),
        ("output", outputs, [one[1] for one in made]),
    ):
        print(f"{name}: mean {real.mean():.1f} of the trace, {np.mean(ours):.1f} of the rows")
        for level in (5, 10, 25, 50, 75, 90, 95, 99):
            print(f"  p{level}: {np.percentile(real, level):.0f}, {np.percentile(ours, level):.0f}")


def quantiles(values: np.ndarray, levels: tuple[float, ...]) -> tuple[int, ...]:
    return tuple(int(n) for n in np.percentile(values, levels, method="inverted_cdf"))


if __name__ == "__main__":
    main()
