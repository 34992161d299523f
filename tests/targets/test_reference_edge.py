"""The edge service: the same score everywhere, in the time that was drawn for it."""

from __future__ import annotations

from typing import Any

import pytest
from reference_world import FOLDER, World, play, post

from survive.catalog import load_module
from survive.transport import Request

edge = load_module(FOLDER / "edge.py")
NAME = "edge-0"


def score(*features: Any) -> Request:
    return post("/v1/score", {"features": list(features)})


def test_a_score_is_a_function_of_its_features_and_takes_microseconds() -> None:
    async def main(world: World) -> tuple[list[float], list[float]]:
        world.boot(NAME, edge.make_app)
        scores, took = [], []
        for features in ([1.0] * 16, [1.0] * 16, [2.0, *[0.0] * 15]):
            began = world.now_s()
            scores.append((await world.ask(NAME, score(*features))).json["score"])
            took.append(world.now_s() - began)
        assert await world.metric(NAME, "edge_answers_total") == 3
        return scores, took

    scores, took = play(main)
    assert scores[0] == scores[1] != scores[2]
    assert all(0 <= value <= 1 for value in scores)
    assert all(20e-6 <= seconds <= 70e-6 for seconds in took)  # and the memory network's own


@pytest.mark.parametrize("features", [[], [1] * 15, ["x"] * 16, [True] * 16, [1e9] * 16])
def test_bad_features_are_400(features: list[Any]) -> None:
    async def main(world: World) -> int:
        world.boot(NAME, edge.make_app)
        return (await world.ask(NAME, score(*features))).status

    assert play(main) == 400
