"""What is read from a service's own metrics."""

from __future__ import annotations

from probetools import Asked, never, play

from survive.probe.scrape import Gauges, Scraped, parse

VLLM = """\
# HELP vllm:num_requests_waiting In the queue.
vllm:num_requests_waiting{model_name="demo"} 12
vllm:kv_cache_usage_perc{model_name="demo"} 0.4
vllm:engine_sleep_state{sleep_state="awake"} 1
simulated_gpu_busy 0.71
"""
SCRAPED = Scraped("inference", "/health", "/metrics", ())


def test_the_names_of_vllm_old_and_new_and_of_dcgm() -> None:
    assert parse(VLLM) == Gauges(queue=12, kv=0.4, gpu=0.71)
    old = 'vllm:gpu_cache_usage_perc{a="b"} 0.5\nDCGM_FI_DEV_GPU_UTIL{gpu="0"} 80\n'
    assert parse(old) == Gauges(None, 0.5, 0.8)
    assert parse("vllm:num_requests_waiting NaN\nother 3\n") == Gauges()
    assert parse(VLLM.replace('"awake"} 1', '"awake"} 0')) is None
    assert parse('vllm:engine_sleep_state{device="simulated"} 1\n') is None
    assert parse('vllm:engine_sleep_state{device="simulated"} 0\n') == Gauges()
    assert parse('vllm:engine_sleep_state{sleep_state="discard_all"} 0\n') == Gauges()


def scraped(health: int, metrics: int = 200) -> dict[str, float]:
    """The values of one scrape."""

    async def answer(asked: Asked) -> tuple[int, list[bytes]]:
        return (health, []) if asked.path == "/health" else (metrics, [VLLM.encode()])

    (event,) = play(answer, scraped=SCRAPED)
    assert (event["probe"], event["service"], event["start_us"]) == ("scrape", "inference", 0)
    values: dict[str, float] = event["values"]
    return values


def test_only_ready_replicas_count_and_what_cannot_be_read_is_absent() -> None:
    assert scraped(200) == {"replicas": 1, "gpu": 0.71, "kv": 0.4, "queue": 12.0}
    assert scraped(503) == {"replicas": 0}
    assert scraped(200, metrics=500) == {"replicas": 1}
    assert [event["values"] for event in play(never, scraped=SCRAPED, times=3)] == [
        {"replicas": 0}
    ] * 3
