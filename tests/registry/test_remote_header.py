"""The header of a GGUF in a registry is read without its weights."""

from __future__ import annotations

import pytest
from live_host import WEIGHTS
from sandbox_caller import a_gguf

from ollamaops.errors import WeightsError
from ollamaops.registry.remote_header import BLOCK_BYTES, MAX_READ_BYTES, read_remote_header

TOOLCALL = (WEIGHTS / "tiny-toolcall.gguf").read_bytes()


class Blob:
    """A file of which ranges are fetched; `asked` are those that were."""

    def __init__(self, data: bytes, size_bytes: int) -> None:
        self.data, self.size_bytes = data, size_bytes
        self.asked: list[tuple[int, int]] = []

    def fetch(self, start: int, end: int) -> bytes:
        self.asked.append((start, end))
        piece = self.data[start:end]
        return piece + bytes(end - start - len(piece))


def test_only_the_beginning_is_asked_for() -> None:
    blob = Blob(TOOLCALL, 20 * BLOCK_BYTES)
    header = read_remote_header(blob.fetch, blob.size_bytes, "blob")
    assert "tools | tojson" in (header.chat_template or "")
    assert header.size_bytes == blob.size_bytes
    assert blob.asked == [(0, BLOCK_BYTES)]


def test_a_long_header_is_read_block_by_block() -> None:
    data = a_gguf({"tokenizer.chat_template": "x" * (3 * BLOCK_BYTES)})
    blob = Blob(data, len(data))
    assert len(read_remote_header(blob.fetch, blob.size_bytes, "blob").chat_template or "") == 3 * BLOCK_BYTES
    assert blob.asked[-1][1] == len(data)


def test_what_is_no_gguf_or_has_no_end_is_given_up() -> None:
    with pytest.raises(WeightsError, match="not a GGUF file"):
        read_remote_header(Blob(b"", 1000).fetch, 1000, "blob")
    head = a_gguf({"a": "b"})[:16] + (60_000).to_bytes(8, "little")
    entry = (1).to_bytes(8, "little") + b"k" + (9).to_bytes(4, "little") + (8).to_bytes(4, "little")
    entry += (1 << 24).to_bytes(8, "little")  # empty texts
    blob = Blob(head + entry, 100 * MAX_READ_BYTES)
    with pytest.raises(WeightsError):
        read_remote_header(blob.fetch, blob.size_bytes, "blob")
    assert sum(end - start for start, end in blob.asked) <= MAX_READ_BYTES
