"""Checks that a safetensors or PyTorch file is complete, from its header or its end, without reading its tensors.

A truncated file begins like a good one, and a server notices only after all of it was sent.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

from ollamaops.errors import WeightsError
from ollamaops.files.regular_file import open_weights
from ollamaops.files.sniff import sniff

MAX_HEADER_BYTES = 100_000_000  # what the safetensors library itself accepts
_LENGTH_BYTES = 8


def require_whole(path: Path) -> None:
    """WeightsError unless the file has every byte of every tensor that its header lists.

    Also if it is not a safetensors file or cannot be read.
    """
    with open_weights(path) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        start = file.read(_LENGTH_BYTES)
        length = int.from_bytes(start, "little")
        if len(start) < _LENGTH_BYTES or not 2 <= length <= MAX_HEADER_BYTES:
            raise _no_safetensors(path)
        data_offset = _LENGTH_BYTES + length
        text = b"" if size_bytes < data_offset else file.read(length)
    end = data_offset + (_end_of_data(path, text) if text else 0)
    if size_bytes < end:
        raise WeightsError(
            f"{path}: cut short: {end - size_bytes} of {end} bytes are missing"
            if text
            else f"{path}: cut short: it ends within its header",
            hint="download or copy it again",
        )


def require_whole_zip(path: Path) -> None:
    """Nothing if the file, which PyTorch wrote as a zip, has its table of contents, which comes last; else a
    WeightsError. A file of another kind is not judged."""
    if sniff(path) == "zip" and not zipfile.is_zipfile(path):
        raise WeightsError(
            f"{path}: cut short: it is a zip file without its end", hint="download or copy it again"
        )


def _end_of_data(path: Path, text: bytes) -> int:
    """Where the last tensor ends, counted from the end of the header."""
    try:
        header = json.loads(text)
        tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
        ends = [tensor["data_offsets"][1] for tensor in tensors]
    except (ValueError, RecursionError, AttributeError, KeyError, IndexError, TypeError):
        raise _no_safetensors(path) from None
    if not all(isinstance(end, int) for end in ends):
        raise _no_safetensors(path)
    return max(ends, default=0)


def _no_safetensors(path: Path) -> WeightsError:
    return WeightsError(
        f"{path}: is not a safetensors file: it has no header that can be read",
        hint="download or copy it again",
    )
