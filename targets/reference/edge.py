"""An edge inference service: a tiny model that answers in tens of microseconds.

Routes: POST /v1/score ``{"features": [16 numbers]}`` gives ``{"score": 0..1}``, GET /health,
GET /metrics. The model is a fixed two-layer perceptron in plain Python, so on the real host the
time it takes is real, and HTTP costs more than the model. On the virtual host computing takes no
time; there a drawn time of COMPUTE_US passes instead. No queue, no batching, no GPU: what such a
service shows under load is the network and the harness.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import mul

from survive.clock import seeded, sleep_us
from survive.contracts import AsgiApp, Json, ServiceContext

from .asgi import Exchange, RefusalError, json_object, routed
from .metrics import Histogram, family, histogram, page
from .stand_in import StandIn

FEATURES = 16
HIDDEN = 16
COMPUTE_US = (20, 60)
BUCKETS = (0.00001, 0.00002, 0.00004, 0.00008, 0.00016, 0.00032, 0.001, 0.01, 0.1)


def make_app(context: ServiceContext) -> AsgiApp:
    """See ServiceContext."""
    edge = Edge(context)
    stand_in = StandIn(context, "metrics_down")
    return routed(
        {
            "/v1/score": {"POST": edge.score},
            "/health": {"GET": edge.health},
            "/metrics": {"GET": stand_in.unless("metrics_down", edge.metrics)},
            **stand_in.routes(),
        },
        context.env.get("SURVIVE_REPLICA", ""),
    )


class Model:
    """A perceptron with fixed weights: the same everywhere, trained on nothing."""

    def __init__(self) -> None:
        chance = seeded(16, "edge model")
        self._hidden = [[chance.gauss(0, 0.5) for _ in range(FEATURES)] for _ in range(HIDDEN)]
        self._out = [chance.gauss(0, 0.5) for _ in range(HIDDEN)]

    def score(self, features: Sequence[float]) -> float:
        """0..1."""
        total = 0.0
        for weights, out in zip(self._hidden, self._out, strict=True):
            total += out * max(0.0, sum(map(mul, weights, features)))
        return 0.5 + 0.5 * math.tanh(total)


class Edge:
    """The handlers."""

    def __init__(self, context: ServiceContext) -> None:
        self._clock = context.clock
        self._chance = context.random
        self._model = Model()
        self._computed = Histogram(BUCKETS)
        self._answers = 0

    async def score(self, exchange: Exchange) -> None:
        """One answer of the model."""
        features = parse_features(json_object(await exchange.body()))
        began_us = self._clock.now_us()
        score = self._model.score(features)
        if self._clock.now_us() == began_us:  # only a virtual clock stands still meanwhile
            await sleep_us(self._clock, self._chance.randint(*COMPUTE_US))
        self._computed.add((self._clock.now_us() - began_us) / 1e6)
        self._answers += 1
        await exchange.json(200, {"score": round(score, 6)})

    async def health(self, exchange: Exchange) -> None:
        """200: there is nothing to wait for."""
        await exchange.json(200, {"status": "ok"})

    async def metrics(self, exchange: Exchange) -> None:
        """Prometheus text."""
        await exchange.text(
            200,
            page(
                family("edge_answers_total", "counter", "Scores given.", {(): self._answers}),
                histogram("edge_compute_seconds", "Of the model alone.", (), self._computed),
            ),
        )


def parse_features(body: dict[str, Json]) -> list[float]:
    """The model's input. Raises RefusalError 400."""
    given = body.get("features")
    if not isinstance(given, list) or len(given) != FEATURES:
        raise RefusalError(400, f"features must be a list of {FEATURES} numbers")
    numbers = [float(x) for x in given if isinstance(x, int | float) and not isinstance(x, bool)]
    if len(numbers) < FEATURES or not all(abs(number) <= 1e6 for number in numbers):
        raise RefusalError(400, "each feature must be a number from -1e6 to 1e6")
    return numbers
