"""``make matrix``: every kind × every ending, a JSON line each; exit 1 if any has a problem.

python tests/matrix/matrix.py [--kind K ...] [--ending E ...] [--jobs 2] [-o docs/matrix.json]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from matrixtools import ENDINGS, applies, kinds, play  # noqa: E402 - found by the line above


def one(kind: str, ending: str) -> dict[str, object]:
    """A line; a run that could not even be played is a problem too."""
    with tempfile.TemporaryDirectory(prefix="survive-matrix-") as folder:
        try:
            return dict(json.loads(play(kind, ending, Path(folder)).line()))
        except Exception as error:
            return {"kind": kind, "ending": ending, "problem": f"{type(error).__name__}: {error}"}


def merged(path: Path, fresh: list[dict[str, object]]) -> list[dict[str, object]]:
    """A run of a part replaces its own lines only."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = {(line["kind"], line["ending"]): line for line in [*map(json.loads, lines), *fresh]}
    return [found[key] for key in sorted(found)]


def main() -> int:
    """Play, print, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", action="append")
    parser.add_argument("--ending", action="append", choices=list(ENDINGS))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    chosen = [
        (kind, ending)
        for kind in options.kind or kinds()
        for ending in options.ending or ENDINGS
        if applies(kind, ending)
    ]
    lines, bad = [], 0
    with ProcessPoolExecutor(options.jobs, max_tasks_per_child=50) as pool:
        for done in as_completed([pool.submit(one, *pair) for pair in chosen]):
            line = done.result()
            lines.append(line)
            bad += bool(line["problem"])
            word = f"PROBLEM {line['problem']}" if line["problem"] else f"exit {line['exit']}"
            print(f"{line['kind']:24} {line['ending']:13} {word}", flush=True)
    if options.output:
        whole = merged(options.output, lines)
        options.output.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in whole))
    print(f"{len(lines)} runs, {bad} with a problem")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
