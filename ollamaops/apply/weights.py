"""Local weights as facts for the plan: digests (hashed once in a file's life) and, when asked for, headers.

Decides which files are hashed; files/digest.py decides how. The fact a reader would miss: a digest that the manifest
states is believed here without a look at the bytes, because the server checks it when they arrive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Lock

from ollamaops.events import ActionEnded, ActionStarted, Progressed, Sink, Succeeded
from ollamaops.files.digest import DigestCache, FileFacts, hash_files, stamp_of
from ollamaops.files.gguf import read_gguf, require_complete
from ollamaops.files.sniff import sniff
from ollamaops.manifest.types import WeightsFile
from ollamaops.plan.observed import FileInfo

OnHashed = Callable[[Path, int], None]

TELL_FROM_BYTES = 256 << 20
TELL_EVERY_BYTES = 64 << 20


def digests_of(
    files: Iterable[WeightsFile],
    cache: DigestCache | None = None,
    *,
    on_progress: OnHashed | None = None,
    cancel: Callable[[], bool] | None = None,
) -> dict[Path, FileInfo]:
    """Digest and size of every file. A digest stated in the manifest is believed; the server checks it on upload.

    `on_progress` is told a file and how many of its bytes are hashed, from several threads. WeightsError for a
    file that cannot be used, Cancelled.
    """
    wanted = list(files)
    unknown = [file.path for file in wanted if file.known is None]
    hashed = hash_files(unknown, cache=cache, on_progress=on_progress, cancel=cancel) if unknown else {}
    return {file.path: _info(file, hashed.get(file.path)) for file in wanted}


def _info(file: WeightsFile, hashed: FileFacts | None) -> FileInfo:
    if hashed is not None:
        return FileInfo(digest=hashed.digest, size_bytes=hashed.size_bytes)
    assert file.known is not None
    return FileInfo(digest=file.known, size_bytes=stamp_of(file.path).size_bytes)


def tell_hashing(emit: Sink, *, run_id: str, now: Callable[[], str]) -> OnHashed:
    """An `on_progress` for `digests_of` that makes events of what takes long: files from 256 MiB on.

    Such a file is an action of its own, `hash/<name>` on no host.
    """
    lock, sizes = Lock(), dict[Path, int]()

    def tell(path: Path, done_bytes: int) -> None:
        with lock:
            is_new = path not in sizes
            size_bytes = sizes.setdefault(path, stamp_of(path).size_bytes)
        is_last = done_bytes >= size_bytes
        if size_bytes < TELL_FROM_BYTES or not (is_new or is_last or done_bytes % TELL_EVERY_BYTES == 0):
            return
        stamp = {"run_id": run_id, "at": now(), "action_id": f"hash/{path.name}"}
        if is_new:
            emit(ActionStarted(verb="hash", subject=path.name, **stamp))
        emit(Progressed(status="hashing", completed_bytes=done_bytes, total_bytes=size_bytes, **stamp))
        if is_last:
            emit(ActionEnded(outcome=Succeeded(), **stamp))

    return tell


def with_headers(found: Mapping[Path, FileInfo]) -> dict[Path, FileInfo]:
    """`found` with what the headers say. WeightsError for a GGUF that is damaged or cut short."""
    return {path: _with_header(path, info) for path, info in found.items()}


def _with_header(path: Path, info: FileInfo) -> FileInfo:
    if sniff(path) != "gguf":
        return info
    header = read_gguf(path)
    require_complete(header, path)
    return replace(
        info,
        architecture=header.architecture,
        parameter_count=header.parameter_count,
        quantization=header.file_type,
        is_projector=header.is_projector,
        has_chat_template=bool(header.chat_template),
        tensors=frozenset((tensor.name, tuple(tensor.shape)) for tensor in header.tensors),
    )
