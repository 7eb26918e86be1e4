"""What is known of a weights file before any of its bytes move, wherever it lies."""

from __future__ import annotations

from dataclasses import dataclass

from ollamaops.names import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class FileInfo:
    """A weights file: its digest and size, and what its header says (empty when it is not a GGUF).

    `tensors` are `(name, shape)` pairs: they survive the rewriting that servers ≥ 0.30 do on import. `stated`: the
    digest is what the manifest says of a file on this disk, which nobody has read.
    """

    digest: Digest
    size_bytes: int
    stated: bool = False
    architecture: str = ""
    parameter_count: int = 0
    quantization: str = ""
    is_projector: bool = False
    has_chat_template: bool = False
    tensors: frozenset[tuple[str, tuple[int, ...]]] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Unavailable:
    """Weights elsewhere about which nobody could be asked, and why. Nothing can be said of the models they make."""

    error: str
    hint: str | None = None


Weights = FileInfo | Unavailable
