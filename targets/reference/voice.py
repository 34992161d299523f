"""What one answer of the simulated model says, and how: a stream's events, or one document.

The text is deterministic: a token is a word of a fixed list that starts at a place given by the
prompt, so any replica can go on where another one broke off. A model that was talked into telling
its system message says that, over and over; its tokens end at hyphens, as a real tokeniser would
cut a secret in pieces.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

from survive.contracts import Json

from .asgi import encode
from .calls import ChatCall

TEXT = (
    "every replica answers while the network bends and a queue remembers what the load forgot so "
    "measure first then trust the number that a fault could not move"
)
WORDS = tuple(TEXT.split())

_TOKEN = re.compile(r"\s*[^\s-]*-?")
_DONE = b"data: [DONE]\n\n"


class Voice:
    """One answer."""

    __slots__ = ("_call", "_created", "_echo", "_id", "_offset", "_prefix")

    def __init__(self, answer_id: str, call: ChatCall, created_s: int) -> None:
        """``created_s`` counts from the replica's own start: a service knows no wall clock."""
        self._id = answer_id
        self._call = call
        self._created = created_s
        self._echo = pieces(call.echo) if call.echo else ()
        self._offset = zlib.crc32(call.prompt.encode("utf-8", "surrogatepass"))
        head = encode(self._head("chat.completion.chunk" if call.chat else "text_completion"))
        self._prefix = b"data: " + head[:-1] + b',"choices":'

    def _head(self, kind: str) -> dict[str, Json]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._call.model,
        }

    def _token(self, index: int) -> str:
        if self._echo:
            token = self._echo[index % len(self._echo)]
            return token if index % len(self._echo) or not index else f" {token}"
        word = WORDS[(self._offset + index) % len(WORDS)]
        return f" {word}" if index else word

    def role(self) -> bytes:
        """The first event of a chat, without content."""
        if not self._call.chat:
            return b""
        delta = b'{"role":"assistant","content":""}'
        return b'%b[{"index":0,"delta":%b,"finish_reason":null}]}\n\n' % (self._prefix, delta)

    def content(self, index: int) -> bytes:
        """The event of one token."""
        token = self._token(index)
        text = encode(token) if self._echo else b'"%b"' % token.encode()
        if not self._call.chat:
            return b'%b[{"index":0,"text":%b,"finish_reason":null}]}\n\n' % (self._prefix, text)
        return b'%b[{"index":0,"delta":{"content":%b},"finish_reason":null}]}\n\n' % (
            self._prefix,
            text,
        )

    def finish(self) -> bytes:
        """The finish reason, the usage, the end."""
        usage = encode(self._usage())
        empty = b'"delta":{}' if self._call.chat else b'"text":""'
        reason = b'%b[{"index":0,%b,"finish_reason":"length"}]}\n\n' % (self._prefix, empty)
        return reason + b'%b[],"usage":%b}\n\n' % (self._prefix, usage) + _DONE

    def whole(self) -> Json:
        """The document of an answer that is not streamed."""
        text = "".join(self._token(index) for index in range(self._call.max_tokens))
        said: dict[str, Json] = {"text": text}
        if self._call.chat:
            said = {"message": {"role": "assistant", "content": text}}
        return {
            **self._head("chat.completion" if self._call.chat else "text_completion"),
            "choices": [{"index": 0, **said, "finish_reason": "length"}],
            "usage": self._usage(),
        }

    def _usage(self) -> Json:
        prompt, made = self._call.prompt_tokens, self._call.max_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": made,
            "total_tokens": prompt + made,
        }


def pieces(text: str) -> Sequence[str]:
    """Tokens that together are the text: words, cut after each hyphen."""
    return [found for found in _TOKEN.findall(text) if found]
