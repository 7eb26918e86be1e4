"""Git-LFS pointers: the small text that lies where the weights should be when `git lfs pull` was forgotten.

Decides whether some bytes are a pointer and what it points to; leaves to others whether that is a mistake (it
usually is) or a welcome digest that saves hashing. Format: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ollamaops.errors import WeightsError
from ollamaops.names import Digest

LFS_PREFIX = b"version https://git-lfs.github.com/spec/"
MAX_POINTER_BYTES = 1024
_OID = re.compile(rb"^oid sha256:([0-9a-f]{64})$", re.MULTILINE)
_SIZE = re.compile(rb"^size ([0-9]{1,18})$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class LfsPointer:
    """What the real file will be: its digest and size."""

    digest: Digest
    size_bytes: int


def parse_lfs_pointer(data: bytes) -> LfsPointer | None:
    """The pointer that `data` (a whole file) is, or None if it is anything else."""
    if not data.startswith(LFS_PREFIX) or len(data) > MAX_POINTER_BYTES:
        return None
    oid, size = _OID.search(data), _SIZE.search(data)
    return LfsPointer(Digest(oid[1].decode()), int(size[1])) if oid and size else None


def pointer_instead_of_weights(path: Path | str) -> WeightsError:
    """The error for a pointer found where weights are needed."""
    return WeightsError(
        f"{path}: is a git-lfs pointer, not the weights themselves",
        hint="run 'git lfs pull' in the repository it comes from",
    )
