"""What a replica tells Prometheus: the families of vLLM 0.26, and a few of the stand-in's own."""

from __future__ import annotations

from dataclasses import dataclass, field

from .gpu import Generation, Gpu
from .kv import BLOCK
from .metrics import Histogram, Labels, family, histogram, page

# Buckets of vLLM (vllm/v1/metrics/loggers.py).
TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
ITL_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0,
)  # fmt: skip
REQUEST_BUCKETS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip


def _requests() -> Histogram:
    return Histogram(REQUEST_BUCKETS)


@dataclass(slots=True)
class Counters:
    """What /metrics shows beyond the state of the GPU."""

    prompt_tokens: int = 0
    generation_tokens: int = 0
    succeeded: int = 0
    ttft: Histogram = field(default_factory=lambda: Histogram(TTFT_BUCKETS))
    itl: Histogram = field(default_factory=lambda: Histogram(ITL_BUCKETS))
    whole: Histogram = field(default_factory=_requests)
    queued: Histogram = field(default_factory=_requests)

    def done(self, generation: Generation, now_us: int) -> None:
        """An answer was given whole."""
        self.succeeded += 1
        self.whole.add((now_us - generation.arrived_us) / 1e6)
        self.queued.add((generation.admitted_us - generation.arrived_us) / 1e6)


def exposition(gpu: Gpu, counters: Counters, model: str, *, asleep: bool) -> str:
    """The whole page; every sample says ``device="simulated"``."""
    labels: Labels = (("model_name", model), ("engine", "0"), ("device", "simulated"))
    finished: Labels = (*labels, ("finished_reason", "length"))
    config: Labels = (*labels, ("block_size", str(BLOCK)), ("num_gpu_blocks", str(gpu.kv.total)))

    def gauge(name: str, about: str, value: float) -> list[str]:
        return family(name, "gauge", about, {labels: value})

    def counter(name: str, about: str, value: float) -> list[str]:
        return family(name, "counter", about, {labels: value})

    return page(
        gauge("vllm:num_requests_running", "In the batch.", len(gpu.running)),
        gauge("vllm:num_requests_waiting", "In the queue.", len(gpu.waiting)),
        gauge("vllm:kv_cache_usage_perc", "Blocks in use, 0..1.", gpu.kv.used),
        gauge("vllm:engine_sleep_state", "1 = asleep.", asleep),
        family("vllm:cache_config_info", "gauge", "What it was started with.", {config: 1}),
        counter("vllm:num_preemptions_total", "Computed anew.", gpu.preemptions),
        counter("vllm:prefix_cache_queries_total", "Tokens.", gpu.kv.queried_tokens),
        counter("vllm:prefix_cache_hits_total", "Tokens.", gpu.kv.hit_tokens),
        counter("vllm:prompt_tokens_total", "Words.", counters.prompt_tokens),
        counter("vllm:generation_tokens_total", "Tokens made.", counters.generation_tokens),
        family(
            "vllm:request_success_total",
            "counter",
            "Whole answers.",
            {finished: counters.succeeded},
        ),
        histogram("vllm:time_to_first_token_seconds", "From arrival.", labels, counters.ttft),
        histogram("vllm:inter_token_latency_seconds", "Gaps.", labels, counters.itl),
        histogram("vllm:e2e_request_latency_seconds", "Whole.", labels, counters.whole),
        histogram("vllm:request_queue_time_seconds", "Until begun.", labels, counters.queued),
        counter("simulated_gpu_steps_total", "Steps of the batch.", gpu.steps),
        gauge("simulated_gpu_busy", "Share of the last second in steps.", gpu.busy_share()),
        gauge("simulated_gpu_lost", "1 = lost by a fault.", gpu.state.gone),
        gauge("simulated_gpu_slow_down", "1 = none.", gpu.state.slow_down),
    )
