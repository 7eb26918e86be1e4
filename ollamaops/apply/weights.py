"""Local weights as facts for the plan: digests (hashed once in a file's life) and, when asked for, headers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ollamaops.errors import WeightsError
from ollamaops.files.digest import DigestCache, hash_files
from ollamaops.files.gguf import read_gguf, require_complete
from ollamaops.files.sniff import sniff
from ollamaops.manifest.types import WeightsFile
from ollamaops.plan.observed import FileInfo

OnHashed = Callable[[Path, int], None]


def digests_of(
    files: Iterable[WeightsFile],
    cache: DigestCache | None = None,
    *,
    on_progress: OnHashed | None = None,
    cancel: Callable[[], bool] | None = None,
) -> dict[Path, FileInfo]:
    """Digest and size of every file. A digest stated in the manifest is believed; the server checks it on upload."""
    wanted = list(files)
    unknown = [file.path for file in wanted if file.known is None]
    hashed = hash_files(unknown, cache=cache, on_progress=on_progress, cancel=cancel) if unknown else {}
    found: dict[Path, FileInfo] = {}
    for file in wanted:
        if file.known is not None:
            found[file.path] = FileInfo(digest=file.known, size_bytes=_size_of(file.path))
        else:
            facts = hashed[file.path]
            found[file.path] = FileInfo(digest=facts.digest, size_bytes=facts.stamp.size_bytes)
    return found


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error


def with_headers(found: Mapping[Path, FileInfo]) -> dict[Path, FileInfo]:
    """`found` with what the headers say. WeightsError for a GGUF that is damaged or cut short."""
    return {path: _with_header(path, info) for path, info in found.items()}


def _with_header(path: Path, info: FileInfo) -> FileInfo:
    if sniff(path) != "gguf":
        return info
    header = read_gguf(path)
    require_complete(header, path)
    return FileInfo(
        digest=info.digest,
        size_bytes=info.size_bytes,
        architecture=header.architecture,
        parameter_count=header.parameter_count,
        quantization=header.file_type,
        is_projector=header.is_projector,
        has_chat_template=bool(header.chat_template),
        tensors=frozenset((tensor.name, tuple(tensor.shape)) for tensor in header.tensors),
    )
