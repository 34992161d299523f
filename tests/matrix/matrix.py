"""``make matrix``: every kind × every ending, a JSON line each; exit 1 if any has a problem.

    python tests/matrix/matrix.py [--kind K ...] [--ending E ...] [--jobs 6] [-o docs/matrix.json]

A kind that this host cannot be asked for gets a line too, which says why.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

import dockertools  # noqa: E402 - found by the line above
from matrixtools import ENDINGS, applies, elsewhere, every_kind, play  # noqa: E402
from stages import Containers, stage_of  # noqa: E402


def one(kind: str, ending: str) -> dict[str, object]:
    """A line; a run that could not even be played is a problem too."""
    with tempfile.TemporaryDirectory(prefix="survive-matrix-") as folder:
        try:
            return dict(json.loads(play(kind, ending, Path(folder)).line()))
        except Exception as error:
            return {"kind": kind, "ending": ending, "problem": f"{type(error).__name__}: {error}"}


def merged(path: Path, fresh: list[dict[str, object]]) -> list[dict[str, object]]:
    """A run of a part replaces its own lines only; a kind has endings, or a reason to have none."""
    lines = path.read_text().splitlines() if path.exists() else []
    played = dict.fromkeys(every_kind(), None) | {x["kind"]: bool(x["ending"]) for x in fresh}
    old = [
        line
        for line in map(json.loads, lines)
        if line["kind"] in played and played[line["kind"]] in {None, bool(line["ending"])}
    ]
    found = {(line["kind"], line["ending"]): line for line in [*old, *fresh]}
    return [found[key] for key in sorted(found)]


def not_here() -> list[dict[str, object]]:
    """A line for each kind that cannot be played on this host."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return [
        {"date": date, "kind": kind, "ending": "", "not_here": why, "problem": ""}
        for kind, why in elsewhere().items()
    ]


def chosen(kinds: list[str], endings: list[str]) -> list[tuple[str, str]]:
    """The cells, the long ones first so that none is waited for at the end."""
    absent = elsewhere()
    cells = [(k, e) for k in kinds if k not in absent for e in endings if applies(k, e)]
    return sorted(cells, key=lambda cell: (cell[1] != "hung-heal", cells.index(cell)))


def main() -> int:
    """Play, print, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", action="append", choices=every_kind(), metavar="KIND")
    parser.add_argument("--ending", action="append", choices=list(ENDINGS))
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    cells = chosen(options.kind or every_kind(), options.ending or list(ENDINGS))
    began, lines = time.monotonic(), not_here()
    with ExitStack() as stack:
        if any(issubclass(stage_of(kind), Containers) for kind, _ in cells):
            stack.enter_context(dockertools.daemon())
        pool = stack.enter_context(ProcessPoolExecutor(options.jobs))
        for done in as_completed([pool.submit(one, *cell) for cell in cells]):
            line = done.result()
            lines.append(line)
            word = f"PROBLEM {line['problem']}" if line["problem"] else f"exit {line['exit']}"
            print(f"{line['kind']:30} {line['ending']:13} {word}", flush=True)
    if options.output:
        whole = merged(options.output, lines)
        options.output.write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in whole))
    bad, took_s = sum(bool(line["problem"]) for line in lines), time.monotonic() - began
    for kind, why in elsewhere().items():
        print(f"{kind}: not here: {why}")
    print(f"{len(cells)} runs in {took_s / 60:.1f} min, {bad} with a problem")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
