"""``python -m survive.chaostoolkit.keeper LEDGER``: heals what a dead ``chaos run`` left on.

Its stdin is the dead man's switch: it ends when the experiment's process does, by whatever signal.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path


def main(ledger: Path) -> int:
    """0 = nothing is left."""
    from survive.chaos.heal import clean_up

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # only the end of the experiment ends it
    while sys.stdin.buffer.read(4096):
        pass
    left = [finding for finding in asyncio.run(clean_up(ledger)) if not finding.gone]
    for finding in left:
        print(finding.line(), file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
