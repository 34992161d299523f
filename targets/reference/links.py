"""Calls over links: the planted ``plaintext_link``."""

from __future__ import annotations

from survive.contracts import Call
from survive.transport import Broken, CallFailedError, Request, Response

_HTTPS = "https://"


def downgrading(call: Call) -> Call:
    """A call that goes again in plain text when the peer cannot be verified.

    The classic defect: somebody could not wait for a new certificate. While certificates hold,
    nothing of it shows.
    """

    async def downgraded(address: str, request: Request, *, timeout_s: float) -> Response:
        try:
            return await call(address, request, timeout_s=timeout_s)
        except CallFailedError as error:
            if error.how is not Broken.TLS or not address.startswith(_HTTPS):
                raise
        return await call(address.removeprefix(_HTTPS), request, timeout_s=timeout_s)

    return downgraded
