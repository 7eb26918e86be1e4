"""Pretend tokens: text ↔ numbers, reversible without a vocabulary.

A token is up to four ASCII letters or digits with the blank before them, or any other single character; its number
is its UTF-8 bytes behind a 1, below 2^48, so that JavaScript clients keep every digit of a `context`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_PIECE = re.compile(r" ?[A-Za-z0-9]{1,4}|.", re.DOTALL)


def split_tokens(text: str) -> list[str]:
    """The pieces of a text, in order; joined they are the text again."""
    return _PIECE.findall(text)


def tokenize(text: str) -> list[int]:
    """The numbers of a text's pieces, as `context` carries them."""
    return [int.from_bytes(b"\x01" + piece.encode("utf-8", "replace"), "big") for piece in split_tokens(text)]


def detokenize(tokens: Iterable[int]) -> str:
    """The text of tokens made by `tokenize`; a number that none of ours has becomes a replacement character."""
    return "".join(_piece_of(token) for token in tokens)


def _piece_of(token: int) -> str:
    if token < 0:
        return "\ufffd"
    packed = token.to_bytes((token.bit_length() + 7) // 8, "big")
    return packed[1:].decode("utf-8", "replace") if packed[:1] == b"\x01" else "\ufffd"
