"""The words that the reference documents are made of, and the documents."""

from __future__ import annotations

import random

DOCUMENTS = 300


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SUBJECTS = _words(
    "gpu accelerator replica gateway scheduler autoscaler cluster node pod container kernel driver "
    "cache batch queue token prompt model checkpoint weights adapter embedding vector database "
    "index retrieval document pipeline stream topic partition broker tokenizer router proxy "
    "balancer circuit breaker connection server semaphore mutex http method network link switch "
    "memory disk snapshot tensor shard attention decoder prefill inference training serving"
)
CUSTOMERS = _words(
    "parcel delivery address invoice refund return policy warranty laptop phone headset password "
    "account subscription order scooter bicycle tyre kayak coffee machine electronics van train "
    "telescope bakery fridge rice dinner wedding invitation interview meeting minutes template "
    "review summer sale free country norway lisbon tokyo australia hiking history time zone date "
    "saving maintenance error children plot paint prime number interest regular expression "
    "photosynthesis fahrenheit celsius"
)
VERBS = _words(
    "fails recovers restarts drains throttles saturates scales routes retries ejects admits "
    "preempts evicts batches streams measures degrades heals shards replicates balances queues "
    "prefetches warms cools reboots migrates cancels declines exports resets changes decides"
)
THINGS = _words(
    "latency throughput timeout deadline budget objective percentile tail burst backlog pressure "
    "overload failure outage incident fault chaos recovery health check probe canary rollout "
    "upgrade capacity cost price quota limit utilisation temperature power clock error rate "
    "traffic request response session user tenant key secret audit log trace metric first retry "
    "backoff histogram dashboard alert runbook production prototype staging deployment"
)


def make_text(chance: random.Random) -> str:
    """A few sentences about AI infrastructure, and about what its users ask."""
    sentences = [
        f"The {chance.choice(SUBJECTS)} {chance.choice(SUBJECTS)} {chance.choice(VERBS)} under "
        f"{chance.choice(THINGS)} and {chance.choice(THINGS)}: "
        f"{chance.choice(CUSTOMERS)} {chance.choice(CUSTOMERS)}."
        for _ in range(chance.randint(3, 8))
    ]
    return " ".join(sentences)
