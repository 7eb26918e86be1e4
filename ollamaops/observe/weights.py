"""Weights as facts for the plan: digests (each file is hashed once in its life) and, on request, headers.

A digest stated in the manifest is taken without reading the bytes, because the server checks it on arrival.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from threading import Lock

from msgspec.structs import replace

from ollamaops.errors import RemoteError, WeightsError
from ollamaops.events import ActionEnded, ActionStarted, Progressed, Sink, Succeeded
from ollamaops.files.archive import measure
from ollamaops.files.digest import DigestCache, hash_files, stamp_of
from ollamaops.files.gguf import read_gguf, require_complete
from ollamaops.files.gguf_types import GgufHeader
from ollamaops.files.location import FileInfo, Location, RemoteRef, Unavailable, Weights
from ollamaops.files.safetensors import require_whole, require_whole_zip
from ollamaops.files.shards import check_shard_headers
from ollamaops.files.sniff import sniff
from ollamaops.manifest.types import Build, WeightsFile
from ollamaops.names import Digest
from ollamaops.observe.remote_weights import RemoteWeightsStore
from ollamaops.plan.create_request import flat_names
from ollamaops.plan.desired import DesiredHost, DesiredModel, LocalBlob
from ollamaops.plan.lookups import PlanOptions, is_trusted
from ollamaops.plan.observed import ObservedHost

OnRead = Callable[[Location, int, int], None]
"""Told a file, how many of its bytes are read, and how many it has (0: nobody says)."""

TELL_AFTER_S = 1.0
TELL_EVERY_S = 0.5


def digests_of(
    files: Iterable[WeightsFile],
    cache: DigestCache | None = None,
    *,
    remote_weights: RemoteWeightsStore | None = None,
    on_progress: OnRead | None = None,
    cancel: Callable[[], bool] | None = None,
) -> dict[Location, Weights]:
    """Digest and size of every file. A digest stated in the manifest is believed of a file that was never read; the
    server checks it on upload. A file that was read before, or of which entries state different things, has the
    digest of its bytes.

    `remote_weights` is asked about files that are not here. `on_progress` is told of what has to be read, from
    several threads. WeightsError for a file that cannot be used, Cancelled. A remote file that nobody can
    tell about is Unavailable.
    """
    wanted = list(files)
    sizes = {file.path: stamp_of(file.path).size_bytes for file in wanted if isinstance(file.path, Path)}
    _refuse_one_digest_of_many(wanted, sizes)
    stated = _stated_by_all(wanted)
    unknown = [path for path in sizes if stated[path] is None or (cache and cache.has_seen(path))]

    def on_hashed(path: Path, done_bytes: int) -> None:
        if on_progress is not None:
            on_progress(path, done_bytes, sizes[path])

    hashed = hash_files(unknown, cache=cache, on_progress=on_hashed, cancel=cancel) if unknown else {}
    found: dict[Location, Weights] = {}
    for where, known in stated.items():
        if isinstance(where, RemoteRef):
            found[where] = _ask(remote_weights or RemoteWeightsStore(), where, known, on_progress, cancel)
        elif known is None or where in hashed:
            found[where] = FileInfo(digest=hashed[where].digest, size_bytes=hashed[where].size_bytes)
        else:
            found[where] = FileInfo(digest=known, size_bytes=sizes[where], stated=True)
    return found


def _stated_by_all(files: Iterable[WeightsFile]) -> dict[Location, Digest | None]:
    """The digest that every entry with the file states; None where one does not, or states another."""
    stated: dict[Location, Digest | None] = {}
    for file in files:
        stated[file.path] = file.known if stated.get(file.path, file.known) == file.known else None
    return stated


def _ask(
    remote_weights: RemoteWeightsStore,
    ref: RemoteRef,
    known: Digest | None,
    on_progress: OnRead | None,
    cancel: Callable[[], bool] | None,
) -> Weights:
    try:
        return remote_weights.info_of(ref, known, on_progress=on_progress, cancel=cancel)
    except RemoteError as error:
        return Unavailable(error=f"its weights cannot be asked about: {error}", hint=error.hint)


def _refuse_one_digest_of_many(files: Iterable[WeightsFile], sizes: Mapping[Path, int]) -> None:
    """WeightsError when files of several sizes are said to have the same digest."""
    first: dict[Digest, Path] = {}
    for file in files:
        if file.known is None or not isinstance(file.path, Path):
            continue
        other = first.setdefault(file.known, file.path)
        if sizes[file.path] != sizes[other]:
            raise WeightsError(
                f"{file.path}: the manifest states the digest of {other}, which has another size",
                hint="correct its digest under sha256:",
            )


def tell_reading(
    emit: Sink, *, run_id: str, now: Callable[[], str], clock: Callable[[], float] = time.monotonic
) -> OnRead:
    """An `on_progress` for `digests_of` that makes events of what takes longer than a second.

    Such a file is an action of its own on no host: `hash/<folder>/<name>`, or `fetch/<name>` for a remote file.
    """
    lock, began_s, told_s = Lock(), dict[Location, float](), dict[Location, float]()

    def tell(where: Location, done_bytes: int, total_bytes: int) -> None:
        with lock:
            at_s, is_new, is_last = clock(), where not in told_s, done_bytes >= total_bytes > 0
            waited_s = at_s - began_s.setdefault(where, at_s)
            is_due = is_new or is_last or at_s - told_s[where] >= TELL_EVERY_S
            if waited_s < TELL_AFTER_S or not is_due or (is_new and is_last):
                return
            told_s[where] = at_s
            verb, status, name = _words_for(where)
            stamp = {"run_id": run_id, "at": now(), "action_id": f"{verb}/{name}"}
            if is_new:
                emit(ActionStarted(verb=verb, subject=name, **stamp))
            emit(Progressed(status=status, completed_bytes=done_bytes, total_bytes=total_bytes, **stamp))
            if is_last:
                emit(ActionEnded(outcome=Succeeded(seconds=waited_s), **stamp))

    return tell


def _words_for(where: Location) -> tuple[str, str, str]:
    """Verb, status and name: files of one name are told apart by their folder."""
    if isinstance(where, RemoteRef):
        return "fetch", "fetching", where.name
    return "hash", "hashing", f"{where.parent.name}/{where.name}"


def with_headers(found: Mapping[Location, Weights]) -> dict[Location, Weights]:
    """`found` with what the headers of the files on this disk say.

    WeightsError for a file that is damaged or cut short, and for shards that do not belong together.
    """
    for where in found:
        if isinstance(where, Path) and where.name.endswith(".safetensors"):
            require_whole(where)
        elif isinstance(where, Path) and where.name.endswith((".bin", ".pth")):
            require_whole_zip(where)
    headers: dict[Location, GgufHeader] = {
        path: read_gguf(path) for path in found if isinstance(path, Path) and sniff(path) == "gguf"
    }
    for path, header in headers.items():
        require_complete(header, str(path))
    check_shard_headers({str(path): header for path, header in headers.items()})
    return {
        path: _with_header(info, headers[path]) if isinstance(info, FileInfo) and path in headers else info
        for path, info in found.items()
    }


def _with_header(info: FileInfo, header: GgufHeader) -> FileInfo:
    return replace(
        info,
        architecture=header.architecture,
        parameter_count=header.parameter_count,
        quantization=header.file_type,
        is_projector=header.is_projector,
        chat_template=header.chat_template or "",
        tensors=frozenset((tensor.name, tuple(tensor.shape)) for tensor in header.tensors),
    )


def with_archives(
    desired: DesiredHost, observed: ObservedHost, options: PlanOptions, cancel: Callable[[], bool]
) -> DesiredHost:
    """`desired` with a zip archive for each model that may have to be built on a server up to 0.5.4, which takes what
    is not a GGUF only as one archive.

    An archive is read once for its digest and once more when it is sent, and never written anywhere here.
    WeightsError for files that cannot be read; Cancelled.
    """
    if observed.features.structured_create:
        return desired
    models = (
        model if is_trusted(model, observed, options) else _with_archive(model, cancel)
        for model in desired.models
    )
    return replace(desired, models=tuple(models))


def _with_archive(model: DesiredModel, cancel: Callable[[], bool]) -> DesiredModel:
    files = model.spec.source.files if isinstance(model.spec.source, Build) else ()
    if not files or all(file.name.endswith(".gguf") for file in files):
        return model
    paths = [file.path for file in files if isinstance(file.path, Path)]
    return replace(model, archive=_pack(files, paths, cancel)) if len(paths) == len(files) else model


def _pack(files: tuple[WeightsFile, ...], paths: list[Path], cancel: Callable[[], bool]) -> LocalBlob:
    names = flat_names([file.name for file in files])
    parts = tuple((names[file.name], str(path)) for file, path in zip(files, paths, strict=True))
    digest, size_bytes = measure(parts, cancel=cancel)
    folder = os.path.commonpath([path.parent for path in paths])
    return LocalBlob(digest=digest, path=folder, size_bytes=size_bytes, parts=parts)
