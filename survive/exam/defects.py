"""The planted defects, each in a sentence for people; how they act stands in targets/reference."""

from __future__ import annotations

from collections.abc import Mapping

DEFECTS: Mapping[str, str] = {
    "no_health_checks": "a replica that fails is asked again and again, since it answers fastest",
    "no_timeout": "calls to a service that hangs are waited for without end",
    "unbounded_queue": "nobody is turned away, so a backlog outlives its cause",
    "retry_storm": "every failure is tried again up to five times, without a budget",
    "thundering_herd": "calls that found nobody wait, and come back all at once",
    "sticky_dead_replica": "a session stays with its replica, well or not",
    "fail_open_auth": "whoever comes is let in while identity cannot be asked",
    "lossy_audit": "audit records wait in memory, and a kill takes them along",
    "silent_truncation": "a stream that breaks off is given a clean end",
    "metrics_dependency": "calls go by what /metrics says, and who shows none gets none",
    "prompt_secret_leak": "the filter of answers is left out while they are slow",
    "lying_health": "health looks at the process and not at its GPU",
    "unfair_scheduler": "first come, first served: a batch tenant starves people",
    "memory_leak": "what a client that left had in KV memory stays taken",
    "slow_scale_up": "a spare is woken a long time after it is needed",
    "no_backpressure": "bulk loads share one unbounded lane with live documents",
    "cross_tenant_cache": "while the store is strained, answers come from anybody's documents",
    "stale_cache": "a cached answer is dropped by a message only, and messages get lost",
    "cold_cache_stampede": "every asker fills an empty cache by itself, all at once",
    "frozen_feed": "the first failure ends the feed of the index, and nobody notices",
    "plaintext_link": "a link goes on without encryption when its certificate does not hold",
}
