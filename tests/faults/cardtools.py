"""The stand-in card of tests/cards.py, in place for a test."""

from __future__ import annotations

import shutil
import sys

import pytest
from cards import TOTAL, Card, compiled, nvml_of

__all__ = ["TOTAL", "Card", "fake_card"]


def fake_card(tmp_path, monkeypatch, request) -> Card:
    """Without gcc: skipped, which CI takes for a failure."""
    request.node.add_marker(pytest.mark.live)
    if shutil.which("gcc") is None:
        pytest.skip("the stand-in for libcuda needs gcc")
    card = Card(tmp_path / "driver.txt")
    monkeypatch.setitem(sys.modules, "pynvml", nvml_of(card))
    monkeypatch.setenv("SURVIVE_LIBCUDA", str(compiled(tmp_path, card.ledger)))
    return card
