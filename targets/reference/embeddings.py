"""Embeddings without a model: signed hashes of words (Weinberger et al., 2009), of length 1.

Texts that share words are near each other, the same text is always the same vector, and an empty
one is the zero vector.
"""

from __future__ import annotations

import math
import zlib

DIMENSIONS = 64


def embed(text: str) -> list[float]:
    """One vector."""
    vector = [0.0] * DIMENSIONS
    for word in text.lower().split():
        number = zlib.crc32(word.encode("utf-8", "surrogatepass"))
        vector[number % DIMENSIONS] += 1.0 if number & 0x8000_0000 else -1.0
    length = math.sqrt(sum(value * value for value in vector))
    return [round(value / length, 6) for value in vector] if length else vector
