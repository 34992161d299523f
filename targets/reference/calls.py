"""What callers may ask of an inference replica: bodies and headers, checked."""

from __future__ import annotations

from dataclasses import dataclass

from survive.contracts import Json

from .asgi import Exchange, RefusalError
from .kv import prefix_of

MAX_TOKENS = 4096  # of one answer
MAX_INPUTS = 256  # of one call for embeddings
DEFAULT_TOKENS = 16  # OpenAI's default of the completions route
# What makes the simulated model tell its system prompt, as real ones were seen to.
INJECTIONS = (
    "ignore previous instructions",
    "ignore all previous",
    "ignore your instructions",
    "disregard",
    "reveal",
    "repeat the words above",
    "system prompt",
)


@dataclass(frozen=True, slots=True)
class ChatCall:
    """A valid body of a chat or a completion. A prompt has as many tokens as words."""

    model: str
    prompt: str
    words: tuple[str, ...]
    max_tokens: int
    streamed: bool
    echo: str = ""  # what to say instead of the model's own text
    chat: bool = True  # else a plain completion

    @property
    def prompt_tokens(self) -> int:
        """At least one."""
        return max(1, len(self.words))

    @property
    def prefix(self) -> tuple[int, ...]:
        """See kv.prefix_of."""
        return prefix_of(self.words)


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf a call is made, as the gateway says in headers."""

    tenant: str
    urgent: bool
    request_id: str
    resumed: bool  # another replica began this answer
    after: int  # content tokens that the client has already

    @classmethod
    def of(cls, exchange: Exchange) -> Caller:
        """From x-tenant, x-priority, x-request-id, x-resume-after. Raises RefusalError 400."""
        after = exchange.header(b"x-resume-after")
        if after and not (after.isdigit() and len(after) < 6):
            raise RefusalError(400, "x-resume-after must be a whole number")
        return cls(
            tenant=exchange.header(b"x-tenant")[:100].decode("latin-1"),
            urgent=exchange.header(b"x-priority") != b"batch",
            request_id=exchange.header(b"x-request-id")[:100].decode("latin-1"),
            resumed=bool(after),
            after=int(after or 0),
        )


def parse_chat(body: dict[str, Json], default_model: str) -> ChatCall:
    """The fields that this replica understands; others are ignored. Raises RefusalError 400."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RefusalError(400, "messages must be a list with at least one message")
    contents = [_content(message) for message in messages]
    prompt = "\n".join(contents)
    roles = [message.get("role") for message in messages if isinstance(message, dict)]
    return ChatCall(
        _model(body, default_model),
        prompt,
        tuple(prompt.split()),
        _max_tokens(body),
        _streamed(body),
        _echo(list(zip(roles, contents, strict=True))),
    )


def parse_completion(body: dict[str, Json], default_model: str) -> ChatCall:
    """A prompt is a string, or a list with one. Raises RefusalError 400."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise RefusalError(400, "prompt must be a string")
    return ChatCall(
        _model(body, default_model),
        prompt,
        tuple(prompt.split()),
        _max_tokens(body),
        _streamed(body),
        chat=False,
    )


def parse_inputs(body: dict[str, Json]) -> list[str]:
    """The texts of a call for embeddings. Raises RefusalError 400."""
    given = body.get("input")
    inputs = [given] if isinstance(given, str) else given
    if not isinstance(inputs, list) or not 1 <= len(inputs) <= MAX_INPUTS:
        raise RefusalError(400, f"input must be a string or a list of 1 to {MAX_INPUTS}")
    texts = [text for text in inputs if isinstance(text, str)]
    if len(texts) < len(inputs):
        raise RefusalError(400, "each input must be a string")
    return texts


def _echo(messages: list[tuple[Json, str]]) -> str:
    """The system message, if what a user says makes the simulated model tell it."""
    system = " ".join(content for role, content in messages if role == "system")
    if not system:
        return ""
    asked = " ".join(content for role, content in messages if role != "system").lower()
    return system if any(phrase in asked for phrase in INJECTIONS) else ""


def _model(body: dict[str, Json], default_model: str) -> str:
    model = body.get("model", default_model)
    if not isinstance(model, str):
        raise RefusalError(400, "model must be a string")
    return model


def _streamed(body: dict[str, Json]) -> bool:
    streamed = body.get("stream", False)
    if not isinstance(streamed, bool):
        raise RefusalError(400, "stream must be true or false")
    return streamed


def _max_tokens(body: dict[str, Json]) -> int:
    value = body.get("max_completion_tokens", body.get("max_tokens", DEFAULT_TOKENS))
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_TOKENS:
        raise RefusalError(400, f"max_tokens must be a whole number from 1 to {MAX_TOKENS}")
    return value


def _content(message: Json) -> str:
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, str):
        raise RefusalError(400, "each message needs content, a string")
    return content
