"""One request and its answer, as far as the embedded proxy has to remember them."""

from __future__ import annotations

from http import HTTPStatus

from .draws import Standing
from .hits import Hit
from .messages import Body


class Exchange:
    """One request and its answer."""

    __slots__ = ("asked", "expects", "framing", "hit", "is_head", "standing")

    def __init__(self, is_head: bool, expects: bool, standing: Standing | None) -> None:
        self.is_head = is_head
        self.expects = expects  # 100-continue: its body may never come
        self.standing = standing  # who hits it, unless its answer is none to act upon
        self.asked = expects  # all of the request is there that an answer waits for
        self.hit: Hit | None = None
        self.framing: int | Body = 0  # of the answer as the client gets it

    @property
    def answered_here(self) -> bool:
        """The service never sees it."""
        return self.standing is not None and self.standing.toxic.answer() is not None

    def answer(self) -> bytes:
        """The toxic's own answer, head and body."""
        assert self.standing is not None
        given = self.standing.toxic.answer()
        assert given is not None
        status, headers, body = given
        lines = [f"HTTP/1.1 {status} {_phrase(status)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += ["connection: close"] if self.expects else []
        head = "\r\n".join([*lines, "", ""]).encode("latin-1")
        return head + (b"" if self.is_head else body)

    def resized(self, head: bytes) -> bytes:
        """The head of an answer whose body may change its length: chunked instead of counted."""
        assert self.standing is not None
        if not self.standing.toxic.resizes or not isinstance(self.framing, int):
            return head
        self.framing = Body.CHUNKED
        lines = head[:-4].split(b"\r\n")
        kept = [line for line in lines if not line.lower().startswith(b"content-length:")]
        return b"\r\n".join([*kept, b"transfer-encoding: chunked", b"", b""])

    def framed(self, item: bytes) -> bytes:
        """A piece of the body as the client gets it."""
        return b"%x\r\n%b\r\n" % (len(item), item) if self.framing is Body.CHUNKED else item


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:  # 529 and the like are in use, yet in no registry
        return "Overloaded" if status == 529 else "Unknown"
