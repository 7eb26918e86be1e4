"""Pretend embeddings: text → a unit vector in which texts that share words and syllables lie close.

Decides numbers only. Not a language model: nearness is the share of equal character n-grams, so "cat" is near
"cats" and far from "kitten".
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence

_WORD = re.compile(r"\w+")
_SMALL_WORDS = frozenset(
    _WORD.findall(
        "a an and are as at be by do does for from how i in is it of on or that the this to was we what when "
        "where which who why with you"
    )
)
_DECIMALS = 8


def embed_text(text: str, length: int) -> list[float]:
    """`length` floats of Euclidean norm 1 (to rounding); equal texts give equal vectors."""
    vector = [0.0] * length
    for piece, weight in _pieces(text):
        number = int.from_bytes(
            hashlib.blake2b(piece.encode("utf-8", "replace"), digest_size=8).digest(), "big"
        )
        vector[number % length] += weight if number >> 63 else -weight
    return normalized(vector)


def normalized(vector: Sequence[float]) -> list[float]:
    """The vector scaled to norm 1; one of zeros becomes the first axis."""
    norm = math.sqrt(math.fsum(value * value for value in vector))
    if norm < 1e-12:
        return [1.0, *[0.0] * (len(vector) - 1)]
    return [round(value / norm, _DECIMALS) for value in vector]


def _pieces(text: str) -> Iterator[tuple[str, float]]:
    """Words whole, and their n-grams of 3 to 5 characters; a small word weighs little."""
    words = _WORD.findall(text.casefold())
    if not words:
        yield f"<{text}>", 1.0
    for word in words:
        weight = 0.2 if word in _SMALL_WORDS else 1.0
        yield f"<{word}>", 2 * weight
        padded = f"^{word}$"
        for size in (3, 4, 5):
            for start in range(len(padded) - size + 1):
                yield padded[start : start + size], weight / size
