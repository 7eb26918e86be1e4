"""Text as numbers: pretend tokens, which can be read back, and pretend embeddings, in which like texts lie close.

A token is up to four ASCII letters or digits with the blank before them, or any other single character. Its number
is its UTF-8 bytes behind a 1, below 2^48, so that JavaScript clients keep every digit of a `context`. An embedding
counts character n-grams: "cat" lies near "cats" and far from "kitten".
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence

_PIECE = re.compile(r" ?[A-Za-z0-9]{1,4}|.", re.DOTALL)
_WORD = re.compile(r"\w+")
_SMALL_WORDS = frozenset(
    _WORD.findall(
        "a an and are as at be by do does for from how i in is it of on or that the this to was we what when "
        "where which who why with you"
    )
)
_DECIMALS = 8


def split_tokens(text: str) -> list[str]:
    """The pieces of a text, in order; joined they are the text again."""
    return _PIECE.findall(text)


def tokenize(text: str) -> list[int]:
    """The numbers of a text's pieces, as `context` carries them."""
    return [int.from_bytes(b"\x01" + piece.encode("utf-8", "replace"), "big") for piece in split_tokens(text)]


def detokenize(tokens: Iterable[int]) -> str:
    """The text of tokens made by `tokenize`; a number that is not one of ours becomes a replacement character."""
    return "".join(map(_piece_of, tokens))


def _piece_of(token: int) -> str:
    if token < 0:
        return "\ufffd"
    packed = token.to_bytes((token.bit_length() + 7) // 8, "big")
    return packed[1:].decode("utf-8", "replace") if packed[:1] == b"\x01" else "\ufffd"


def embed_text(text: str, length: int) -> list[float]:
    """`length` floats of Euclidean norm 1 (to rounding); equal texts give equal vectors."""
    vector = [0.0] * length
    for piece, weight in _weighted_pieces(text):
        digest = hashlib.blake2b(piece.encode("utf-8", "replace"), digest_size=8).digest()
        number = int.from_bytes(digest, "big")
        vector[number % length] += weight if number >> 63 else -weight
    return normalized(vector)


def normalized(vector: Sequence[float]) -> list[float]:
    """The vector scaled to norm 1; one of zeros becomes the first axis."""
    norm = math.sqrt(math.fsum(value * value for value in vector))
    if norm < 1e-12:
        return [1.0, *[0.0] * (len(vector) - 1)]
    return [round(value / norm, _DECIMALS) for value in vector]


def _weighted_pieces(text: str) -> Iterator[tuple[str, float]]:
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
