"""Weights for servers up to 0.5.4, which take what is no GGUF as one zip archive.

Decides what is packed: files that are all on this disk, of models that may have to be built. The fact a reader would
miss: an archive is read once for its digest and once more when it is sent, and never written anywhere here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ollamaops.manifest.types import Build, WeightsFile
from ollamaops.plan.desired import DesiredHost, DesiredModel, LocalBlob
from ollamaops.plan.lookups import PlanOptions, is_trusted
from ollamaops.plan.observed import ObservedHost


def with_archives(
    desired: DesiredHost, observed: ObservedHost, options: PlanOptions, cancel: Callable[[], bool]
) -> DesiredHost:
    """`desired` with the archives that such a server needs. WeightsError for files that cannot be read; Cancelled."""
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
    from ollamaops.apply.create_request import flat_names
    from ollamaops.files.archive import measure

    names = flat_names([file.name for file in files])
    parts = tuple((names[file.name], str(path)) for file, path in zip(files, paths, strict=True))
    digest, size_bytes = measure(parts, cancel=cancel)
    folder = os.path.commonpath([path.parent for path in paths])
    return LocalBlob(digest=digest, path=folder, size_bytes=size_bytes, parts=parts)
