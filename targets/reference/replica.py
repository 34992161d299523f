"""An OpenAI-compatible inference replica over a simulated GPU (see gpu.py).

Routes: POST /v1/chat/completions (whole or streamed), GET /health, GET /metrics with vLLM's names,
GET and POST /admin/gpu (the control channel of faults; header x-gpu-token). Its text is
deterministic: a token is a word of a fixed list that starts at a place given by the prompt, and a
prompt has as many tokens as words. The head of an answer is sent with its first token, so that a
gateway may still retry until then.
"""

from __future__ import annotations

import hmac
import zlib
from dataclasses import asdict, dataclass, field

from survive.clock import sleep_us
from survive.contracts import AsgiApp, Json, ServiceContext

from .asgi import (
    Exchange,
    RefusalError,
    encode,
    json_object,
    routed,
    until_client_leaves,
)
from .gpu import Generation, Gpu, GpuLostError, OutOfMemoryError, Profile, QueueFullError
from .metrics import Histogram, Labels, family, histogram, page
from .stand_in import StandIn

MAX_TOKENS = 4096  # of one answer
DEFAULT_TOKENS = 16  # OpenAI's default of the completions route
KV_BLOCK = 16  # tokens, vLLM's default; only its metrics speak of blocks
EXIT_AFTER_US = {"red": 300_000, "exit": 20_000}  # until it is gone
EXIT_CODE = {"red": 1, "exit": 0}
TEXT = (
    "every replica answers while the network bends and a queue remembers what the load forgot so "
    "measure first then trust the number that a fault could not move"
)
WORDS = tuple(TEXT.split())

# Buckets of vLLM (vllm/v1/metrics/loggers.py).
TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
ITL_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0,
)  # fmt: skip

_SSE = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]
_DONE = b"data: [DONE]\n\n"


def make_app(context: ServiceContext) -> AsgiApp:
    """See ServiceContext. Starts the step loop of the simulated GPU."""
    return make_replica(context, Profile())


def make_replica(context: ServiceContext, profile: Profile) -> AsgiApp:
    """make_app with other constants."""
    unbounded = "unbounded_queue" in context.env.get("SURVIVE_WEAKNESSES", "").split(",")
    gpu = Gpu(context.clock, profile, context.random, bounded=not unbounded)
    context.spawn(gpu.run())
    replica = Replica(context, gpu)
    stand_in = StandIn(context, "metrics_down")
    return routed(
        {
            "/v1/chat/completions": {"POST": replica.chat},
            "/health": {"GET": replica.health},
            "/metrics": {"GET": stand_in.unless("metrics_down", replica.metrics)},
            **stand_in.routes(),
            "/admin/gpu": {"GET": replica.show_gpu, "POST": replica.set_gpu},
        },
        context.env.get("SURVIVE_REPLICA", ""),
    )


@dataclass(frozen=True, slots=True)
class ChatCall:
    """A valid request body."""

    model: str
    prompt: str
    prompt_tokens: int
    max_tokens: int
    streamed: bool


@dataclass(slots=True)
class Counters:
    """What /metrics shows beyond the state of the GPU."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    succeeded: int = 0
    ttft: Histogram = field(default_factory=lambda: Histogram(TTFT_BUCKETS))
    itl: Histogram = field(default_factory=lambda: Histogram(ITL_BUCKETS))


class Replica:
    """The handlers of one replica."""

    def __init__(self, context: ServiceContext, gpu: Gpu) -> None:
        self._clock = context.clock
        self._context = context
        self._gpu = gpu
        self._token = context.env.get("SURVIVE_GPU_TOKEN", "").encode()
        self._model = context.env.get("MODEL", "demo")
        self._id = context.env.get("SURVIVE_REPLICA", "")
        self._counters = Counters()
        self._answers = 0

    # ------------------------------------------------------------------------------- chat

    async def chat(self, exchange: Exchange) -> None:
        """Answer a chat, whole or streamed."""
        call = parse_chat(json_object(await exchange.body()), self._model)
        if call.prompt_tokens + call.max_tokens > self._gpu.profile.kv_tokens:
            raise RefusalError(400, "prompt and max_tokens exceed the context length")
        generation = Generation(call.prompt_tokens, call.max_tokens, self._clock.now_us())
        try:
            self._gpu.submit(generation)
            async with until_client_leaves(exchange.receive):
                await self._answer(exchange, call, generation)
        except OutOfMemoryError:
            raise RefusalError(500, "the simulated gpu is out of memory") from None
        except QueueFullError:
            raise RefusalError(503, "the queue is full", [("retry-after", "1")]) from None
        except GpuLostError:
            # Before the head this is a plain 500; after it the stream ends without [DONE].
            if not exchange.started:
                raise RefusalError(500, "the simulated gpu is lost") from None
        finally:
            self._gpu.leave(generation)

    async def _answer(self, exchange: Exchange, call: ChatCall, generation: Generation) -> None:
        self._answers += 1
        answer_id = f"chatcmpl-{self._id}-{self._answers}"
        voice = Voice(answer_id, call, generation.arrived_us // 1_000_000)
        seen, at_us = 0, generation.arrived_us
        while seen < call.max_tokens:
            now_seen = await generation.beyond(seen)
            at_us = self._count_tokens(call, seen, now_seen, at_us)
            if call.streamed:
                await self._send(exchange, voice, seen, now_seen, now_seen == call.max_tokens)
            seen = now_seen
        if not call.streamed:
            await exchange.json(200, voice.whole())
        self._counters.succeeded += 1

    async def _send(
        self, exchange: Exchange, voice: Voice, seen: int, now_seen: int, last: bool
    ) -> None:
        events = b"".join(voice.content(index) for index in range(seen, now_seen))
        if seen == 0:
            await exchange.start(200, _SSE)
            events = voice.role() + events
        if last:
            await exchange.end(events + voice.finish())
        else:
            await exchange.chunk(events)

    def _count_tokens(self, call: ChatCall, seen: int, now_seen: int, before_us: int) -> int:
        now_us, counters = self._clock.now_us(), self._counters
        counters.generation_tokens += now_seen - seen
        if seen == 0:
            counters.prompt_tokens += call.prompt_tokens
        times = counters.itl if seen else counters.ttft
        times.add((now_us - before_us) / 1e6)
        return now_us

    # ------------------------------------------------------------------------------ health

    async def health(self, exchange: Exchange) -> None:
        """200 while the (simulated) GPU is there, or is made to lie about it."""
        if not self._gpu.state.looks_healthy:
            raise RefusalError(503, "the simulated gpu is lost")
        await exchange.json(200, {"status": "ok"})

    async def metrics(self, exchange: Exchange) -> None:
        """Prometheus text with vLLM's names; every sample says ``device="simulated"``."""
        gpu, counters = self._gpu, self._counters
        labels: Labels = (("model_name", self._model), ("engine", "0"), ("device", "simulated"))
        finished = (*labels, ("finished_reason", "length"))

        def one(kind: str, name: str, about: str, value: float) -> list[str]:
            return family(name, kind, about, {labels: value})

        await exchange.text(
            200,
            page(
                one("gauge", "vllm:num_requests_running", "In the batch.", len(gpu.running)),
                one("gauge", "vllm:num_requests_waiting", "In the queue.", len(gpu.waiting)),
                one("gauge", "vllm:kv_cache_usage_perc", "KV in use, 0..1.", gpu.kv_used()),
                family(
                    "vllm:cache_config_info",
                    "gauge",
                    "What it was started with.",
                    {
                        (
                            *labels,
                            ("block_size", str(KV_BLOCK)),
                            ("num_gpu_blocks", str(gpu.profile.kv_tokens // KV_BLOCK)),
                        ): 1
                    },
                ),
                one("counter", "vllm:prompt_tokens_total", "Words.", counters.prompt_tokens),
                one(
                    "counter",
                    "vllm:generation_tokens_total",
                    "Tokens made.",
                    counters.generation_tokens,
                ),
                family(
                    "vllm:request_success_total",
                    "counter",
                    "Whole answers.",
                    {finished: counters.succeeded},
                ),
                histogram(
                    "vllm:time_to_first_token_seconds", "From arrival.", labels, counters.ttft
                ),
                histogram("vllm:inter_token_latency_seconds", "Gaps.", labels, counters.itl),
                one("counter", "simulated_gpu_steps_total", "Steps of the batch.", gpu.steps),
                one("gauge", "simulated_gpu_lost", "1 = lost by a fault.", gpu.state.gone),
                one("gauge", "simulated_gpu_slow_down", "1 = none.", gpu.state.slow_down),
            ),
        )

    # ------------------------------------------------------------------------------- admin

    async def show_gpu(self, exchange: Exchange) -> None:
        """The state of the simulated GPU."""
        self._authorise(exchange)
        await exchange.json(200, self._gpu_state())

    async def set_gpu(self, exchange: Exchange) -> None:
        """Set fields of GpuState, all or nothing; ``{"reset": true}`` mends all."""
        self._authorise(exchange)
        state = self._gpu.state.changed(json_object(await exchange.body()))
        dies = state.xid if state.xid != self._gpu.state.xid else ""
        self._gpu.set_state(state)
        await exchange.json(200, self._gpu_state())
        if dies in EXIT_CODE:
            self._context.spawn(self._die(dies))

    async def _die(self, how: str) -> None:
        """The process ends as servers were seen to end on a lost GPU; see docs/faults/gpu.md."""
        await sleep_us(self._clock, EXIT_AFTER_US[how])
        self._context.exit(EXIT_CODE[how])

    def _authorise(self, exchange: Exchange) -> None:
        given = exchange.header(b"x-gpu-token")
        if not self._token or not hmac.compare_digest(given, self._token):
            raise RefusalError(403, "the x-gpu-token is wrong")

    def _gpu_state(self) -> Json:
        gpu = self._gpu
        return {
            "device": "simulated",
            **asdict(gpu.state),
            "running": len(gpu.running),
            "waiting": len(gpu.waiting),
        }


def parse_chat(body: dict[str, Json], default_model: str) -> ChatCall:
    """The fields that this replica understands; others are ignored. Raises RefusalError 400."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RefusalError(400, "messages must be a list with at least one message")
    prompt = "\n".join(_content(message) for message in messages)
    model = body.get("model", default_model)
    if not isinstance(model, str):
        raise RefusalError(400, "model must be a string")
    streamed = body.get("stream", False)
    if not isinstance(streamed, bool):
        raise RefusalError(400, "stream must be true or false")
    return ChatCall(model, prompt, max(1, len(prompt.split())), _max_tokens(body), streamed)


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


class Voice:
    """What one answer says, and how: the events of a stream, or one JSON document."""

    __slots__ = ("_call", "_created", "_id", "_offset", "_prefix")

    def __init__(self, answer_id: str, call: ChatCall, created_s: int) -> None:
        """``created_s`` counts from the replica's own start: a service knows no wall clock."""
        self._id = answer_id
        self._call = call
        self._created = created_s
        self._offset = zlib.crc32(call.prompt.encode("utf-8", "surrogatepass"))
        head = encode(self._head("chat.completion.chunk"))
        self._prefix = b"data: " + head[:-1] + b',"choices":'

    def _head(self, kind: str) -> dict[str, Json]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._call.model,
        }

    def _word(self, index: int) -> str:
        word = WORDS[(self._offset + index) % len(WORDS)]
        return f" {word}" if index else word

    def role(self) -> bytes:
        """The first event, without content."""
        delta = b'{"role":"assistant","content":""}'
        return b'%b[{"index":0,"delta":%b,"finish_reason":null}]}\n\n' % (self._prefix, delta)

    def content(self, index: int) -> bytes:
        """The event of one token."""
        word = self._word(index).encode()
        return b'%b[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}\n\n' % (
            self._prefix,
            word,
        )

    def finish(self) -> bytes:
        """The finish reason, the usage, the end."""
        usage = encode(self._usage())
        reason = b'%b[{"index":0,"delta":{},"finish_reason":"length"}]}\n\n' % self._prefix
        return reason + b'%b[],"usage":%b}\n\n' % (self._prefix, usage) + _DONE

    def whole(self) -> Json:
        """The document of an answer that is not streamed."""
        text = "".join(self._word(index) for index in range(self._call.max_tokens))
        message: Json = {"role": "assistant", "content": text}
        return {
            **self._head("chat.completion"),
            "choices": [{"index": 0, "message": message, "finish_reason": "length"}],
            "usage": self._usage(),
        }

    def _usage(self) -> Json:
        prompt, made = self._call.prompt_tokens, self._call.max_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": made,
            "total_tokens": prompt + made,
        }
