"""The certificate authority of one run: made at its start, gone with its folder."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from survive.tls import AUTHORITY, EXPIRED, GOOD, HARNESS, serve_certificate

# Only certificates carry wall time: a handshake compares it with the host's clock, not with ours.
_EXPIRED_FOR = timedelta(days=1)
_LIVED = timedelta(days=90)


class Authority:
    """Issues what replicas and the harness show each other; all files are 0600."""

    def __init__(self, folder: Path) -> None:
        import trustme  # slow to import, and most targets have no TLS links

        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._ca = trustme.CA()
        _write(folder / AUTHORITY, self._ca.cert_pem.bytes())
        harness = self._ca.issue_cert("harness.survive.test")
        _write(folder / HARNESS, harness.private_key_and_cert_chain_pem.bytes())

    def issue(self, replica: str, names: Sequence[str]) -> Path:
        """A good and an expired certificate for a replica; the folder that holds them."""
        home = self.folder / replica
        home.mkdir(mode=0o700, exist_ok=True)
        good = self._ca.issue_cert(*names)
        _write(home / GOOD, good.private_key_and_cert_chain_pem.bytes())
        ended = datetime.now(UTC) - _EXPIRED_FOR
        old = self._ca.issue_cert(*names, not_before=ended - _LIVED, not_after=ended)
        _write(home / EXPIRED, old.private_key_and_cert_chain_pem.bytes())
        serve_certificate(str(home), expired=False)
        return home


def _write(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)
