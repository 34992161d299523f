"""An OpenAI-compatible inference replica over a simulated GPU (see gpu.py).

Routes: POST /v1/chat/completions and /v1/completions (whole or streamed), POST /v1/embeddings;
GET /health (200 = may be asked), GET /live (200 = the process is well, awake or asleep),
GET /metrics with vLLM's names, GET and POST /admin/gpu (the control channel of faults),
POST /admin/wake, /admin/sleep (of the autoscaler; both with x-gpu-token). The head of an answer is
sent with its first token, so that a gateway may still retry until then; with ``x-resume-after: k``
the answer goes on after its k-th content token (only prefill is computed again). ``x-priority``
and ``x-tenant`` are the scheduler's, ``x-request-id`` names the answer.

Environment: MODEL, KV_TOKENS, MAX_WAITING (how many may wait beside a full batch), LOAD_TIME and
AWAKE (see lifecycle.py).

Weaknesses (SURVIVE_WEAKNESSES): ``unbounded_queue``: no cap on the waiting queue;
``unfair_scheduler``: first come, first served (see scheduler.py); ``memory_leak``: what a client
that left had in KV space stays taken (see kv.py); ``lying_health``: the health route looks at the
process, not at its GPU, so a lost one says 200, and so does one that is slowed by UNFIT or more: no
call fails there, all are late, and only an honest health route could take it out of rotation.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace

from survive.clock import sleep_us
from survive.contracts import AsgiApp, Json, ServiceContext

from .asgi import (
    Exchange,
    RefusalError,
    json_object,
    routed,
    until_client_leaves,
)
from .calls import Caller, ChatCall, parse_chat, parse_completion, parse_inputs
from .embeddings import embed
from .gpu import Generation, Gpu, GpuLostError, OutOfMemoryError, Profile, QueueFullError
from .lifecycle import Lifecycle, Stage
from .replica_metrics import Counters, exposition
from .stand_in import StandIn
from .voice import Voice

EXIT_AFTER_US = {"red": 300_000, "exit": 20_000}  # until it is gone
EXIT_CODE = {"red": 1, "exit": 0}
UNFIT = 4.0  # a GPU slowed by this factor is better left to cool

_SSE = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]


def make_app(context: ServiceContext) -> AsgiApp:
    """See ServiceContext. Starts the step loop of the simulated GPU."""
    profile = Profile()
    if tokens := context.env.get("KV_TOKENS", ""):
        profile = replace(profile, kv_tokens=int(tokens))
    if most := context.env.get("MAX_WAITING", ""):
        profile = replace(profile, max_waiting=int(most))
    return make_replica(context, profile)


def make_replica(context: ServiceContext, profile: Profile) -> AsgiApp:
    """make_app with other constants."""
    weak = context.env.get("SURVIVE_WEAKNESSES", "").split(",")
    gpu = Gpu(
        context.clock,
        profile,
        context.random,
        bounded="unbounded_queue" not in weak,
        fair="unfair_scheduler" not in weak,
        leaks="memory_leak" in weak,
    )
    context.spawn(gpu.run())
    replica = Replica(context, gpu, Lifecycle(context, gpu), honest="lying_health" not in weak)
    stand_in = StandIn(context, "metrics_down")
    return routed(
        {
            "/v1/chat/completions": {"POST": replica.chat},
            "/v1/completions": {"POST": replica.completion},
            "/v1/embeddings": {"POST": replica.embeddings},
            "/health": {"GET": replica.health},
            "/live": {"GET": replica.live},
            "/metrics": {"GET": stand_in.unless("metrics_down", replica.metrics)},
            **stand_in.routes(),
            "/admin/gpu": {"GET": replica.show_gpu, "POST": replica.set_gpu},
            "/admin/wake": {"POST": replica.wake},
            "/admin/sleep": {"POST": replica.sleep},
        },
        context.env.get("SURVIVE_REPLICA", ""),
    )


class Replica:
    """The handlers of one replica."""

    def __init__(
        self, context: ServiceContext, gpu: Gpu, lifecycle: Lifecycle, *, honest: bool
    ) -> None:
        self._clock = context.clock
        self._context = context
        self._gpu = gpu
        self._lifecycle = lifecycle
        self._honest = honest
        self._token = context.env.get("SURVIVE_GPU_TOKEN", "").encode()
        self._model = context.env.get("MODEL", "demo")
        self._id = context.env.get("SURVIVE_REPLICA", "")
        self._counters = Counters()
        self._answers = 0

    # ------------------------------------------------------------------------------- chat

    async def chat(self, exchange: Exchange) -> None:
        """Answer a chat, whole or streamed."""
        await self._generate(exchange, parse_chat)

    async def completion(self, exchange: Exchange) -> None:
        """Go on from a prompt, whole or streamed."""
        await self._generate(exchange, parse_completion)

    async def _generate(
        self, exchange: Exchange, parse: Callable[[dict[str, Json], str], ChatCall]
    ) -> None:
        call = parse(json_object(await exchange.body()), self._model)
        caller = Caller.of(exchange)
        self._lifecycle.refuse_unless_ready()
        after = min(caller.after, call.max_tokens)
        # At the least one step is taken, also for a client that has all but the end.
        generation = Generation(
            call.prompt_tokens + after,
            max(1, call.max_tokens - after),
            self._clock.now_us(),
            tenant=caller.tenant,
            urgent=caller.urgent,
            prefix=call.prefix,
        )
        await self._compute(
            exchange, generation, lambda: self._answer(exchange, call, caller, generation)
        )

    async def _compute(
        self, exchange: Exchange, generation: Generation, answer: Callable[[], Awaitable[None]]
    ) -> None:
        """Answer while the GPU computes; what goes wrong there is a refusal."""
        if generation.cost > self._gpu.capacity:
            raise RefusalError(400, "prompt and max_tokens exceed the context length")
        try:
            self._gpu.submit(generation)
            async with until_client_leaves(exchange.receive):
                await answer()
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

    async def _answer(
        self, exchange: Exchange, call: ChatCall, caller: Caller, generation: Generation
    ) -> None:
        self._answers += 1
        answer_id = f"chatcmpl-{caller.request_id or f'{self._id}-{self._answers}'}"
        voice = Voice(answer_id, call, generation.arrived_us // 1_000_000)
        first = min(caller.after, call.max_tokens)
        seen = 0
        at_us = generation.arrived_us
        while seen < generation.max_tokens:
            now_seen = await generation.beyond(seen)
            at_us = self._count_tokens(generation, seen, now_seen, at_us)
            if call.streamed:
                head = b"" if caller.resumed else voice.role()
                events = b"".join(
                    voice.content(index)
                    for index in range(first + seen, min(first + now_seen, call.max_tokens))
                )
                done = now_seen == generation.max_tokens
                await _send(exchange, head, events, voice.finish() if done else b"")
            seen = now_seen
        if not call.streamed:
            await exchange.json(200, voice.whole())
        self._counters.done(generation, self._clock.now_us())

    def _count_tokens(
        self, generation: Generation, seen: int, now_seen: int, before_us: int
    ) -> int:
        now_us, counters = self._clock.now_us(), self._counters
        counters.generation_tokens += now_seen - seen
        if seen == 0:
            counters.prompt_tokens += generation.prompt_tokens
        times = counters.itl if seen else counters.ttft
        times.add((now_us - before_us) / 1e6)
        return now_us

    # -------------------------------------------------------------------------- embeddings

    async def embeddings(self, exchange: Exchange) -> None:
        """A vector for each text; one prefill for all of them."""
        texts = parse_inputs(json_object(await exchange.body()))
        caller = Caller.of(exchange)
        self._lifecycle.refuse_unless_ready()
        tokens = sum(max(1, len(text.split())) for text in texts)
        generation = Generation(
            tokens, 1, self._clock.now_us(), tenant=caller.tenant, urgent=caller.urgent
        )
        await self._compute(exchange, generation, lambda: self._embed(exchange, texts, generation))

    async def _embed(self, exchange: Exchange, texts: list[str], generation: Generation) -> None:
        await generation.beyond(0)
        self._counters.prompt_tokens += generation.prompt_tokens
        data: list[Json] = [
            {"object": "embedding", "index": index, "embedding": [*embed(text)]}
            for index, text in enumerate(texts)
        ]
        tokens = generation.prompt_tokens
        usage: Json = {"prompt_tokens": tokens, "total_tokens": tokens}
        await exchange.json(
            200, {"object": "list", "model": self._model, "data": data, "usage": usage}
        )
        self._counters.done(generation, self._clock.now_us())

    # ------------------------------------------------------------------------------ health

    async def health(self, exchange: Exchange) -> None:
        """200 while it may be asked: loaded, awake, and its (simulated) GPU fit for work."""
        self._lifecycle.refuse_unless_ready()
        if self._honest and not self._gpu.state.looks_healthy:
            raise RefusalError(503, "the simulated gpu is lost")
        if self._honest and self._gpu.state.slow_down >= UNFIT:
            raise RefusalError(503, "the simulated gpu is throttled")
        await exchange.json(200, {"status": "ok"})

    async def live(self, exchange: Exchange) -> None:
        """200 unless the model loads or the (simulated) GPU is lost: sleeping is no illness."""
        if self._lifecycle.stage is Stage.LOADING:
            self._lifecycle.refuse_unless_ready()
        if self._honest and not self._gpu.state.looks_healthy:
            raise RefusalError(503, "the simulated gpu is lost")
        await exchange.json(200, {"status": self._lifecycle.stage.value})

    async def metrics(self, exchange: Exchange) -> None:
        """Prometheus text with vLLM's names; every sample says ``device="simulated"``."""
        asleep = self._lifecycle.stage is Stage.ASLEEP
        await exchange.text(200, exposition(self._gpu, self._counters, self._model, asleep=asleep))

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

    async def wake(self, exchange: Exchange) -> None:
        """Load the model, if it sleeps."""
        self._authorise(exchange)
        await exchange.body()
        self._lifecycle.wake()
        await exchange.json(200, {"stage": self._lifecycle.stage.value})

    async def sleep(self, exchange: Exchange) -> None:
        """End what was begun, then sleep."""
        self._authorise(exchange)
        await exchange.body()
        self._lifecycle.sleep()
        await exchange.json(200, {"stage": self._lifecycle.stage.value})

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


async def _send(exchange: Exchange, head: bytes, events: bytes, end: bytes) -> None:
    """The next events of a stream; the head of the answer goes with the first."""
    if not exchange.started:
        await exchange.start(200, _SSE)
        events = head + events
    if end:
        await exchange.end(events + end)
    else:
        await exchange.chunk(events)
