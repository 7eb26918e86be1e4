"""Weights as facts for the plan: digests (hashed once in a file's life) and, when asked for, headers.

Decides which files are hashed; files/digest.py decides how, and elsewhere.py what is known of those that are not on
this disk. The fact a reader would miss: a digest that the manifest states is believed here without a look at the
bytes, because the server checks it when they arrive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from ollamaops.apply.elsewhere import Elsewhere
from ollamaops.events import ActionEnded, ActionStarted, Progressed, Sink, Succeeded
from ollamaops.files.digest import DigestCache, hash_files, stamp_of
from ollamaops.files.remote import Location, RemoteRef
from ollamaops.files.sniff import sniff
from ollamaops.manifest.types import WeightsFile
from ollamaops.plan.observed import FileInfo

if TYPE_CHECKING:
    from ollamaops.files.gguf_types import GgufHeader

OnHashed = Callable[[Path, int], None]

TELL_FROM_BYTES = 256 << 20
TELL_EVERY_BYTES = 64 << 20


def digests_of(
    files: Iterable[WeightsFile],
    cache: DigestCache | None = None,
    *,
    elsewhere: Elsewhere | None = None,
    on_progress: OnHashed | None = None,
    cancel: Callable[[], bool] | None = None,
) -> dict[Location, FileInfo]:
    """Digest and size of every file. A digest stated in the manifest is believed; the server checks it on upload.

    `elsewhere` is asked about files that are not here. `on_progress` is told a file and how many of its bytes are
    hashed, from several threads. WeightsError for a file that cannot be used, RemoteError for one elsewhere that
    cannot be asked about, Cancelled.
    """
    wanted = list(files)
    unknown = [file.path for file in wanted if file.known is None and isinstance(file.path, Path)]
    hashed = hash_files(unknown, cache=cache, on_progress=on_progress, cancel=cancel) if unknown else {}
    found: dict[Location, FileInfo] = {}
    for file in wanted:
        where, known = file.path, file.known
        if isinstance(where, RemoteRef):
            found[where] = (elsewhere or Elsewhere()).info_of(where, known, cancel=cancel)
        elif known is not None:
            found[where] = FileInfo(digest=known, size_bytes=stamp_of(where).size_bytes)
        else:
            found[where] = FileInfo(digest=hashed[where].digest, size_bytes=hashed[where].size_bytes)
    return found


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


def with_headers(found: Mapping[Location, FileInfo]) -> dict[Location, FileInfo]:
    """`found` with what the headers of the files on this disk say.

    WeightsError for a GGUF that is damaged or cut short, and for shards that do not belong together.
    """
    from ollamaops.files.gguf import read_gguf, require_complete
    from ollamaops.files.shards import check_shard_headers

    headers: dict[Location, GgufHeader] = {
        path: read_gguf(path) for path in found if isinstance(path, Path) and sniff(path) == "gguf"
    }
    for path, header in headers.items():
        require_complete(header, str(path))
    check_shard_headers({str(path): header for path, header in headers.items()})
    return {
        path: _with_header(info, headers[path]) if path in headers else info for path, info in found.items()
    }


def _with_header(info: FileInfo, header: GgufHeader) -> FileInfo:
    return replace(
        info,
        architecture=header.architecture,
        parameter_count=header.parameter_count,
        quantization=header.file_type,
        is_projector=header.is_projector,
        has_chat_template=bool(header.chat_template),
        tensors=frozenset((tensor.name, tuple(tensor.shape)) for tensor in header.tensors),
    )
