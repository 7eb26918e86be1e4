"""Which weights files a manifest names."""

from __future__ import annotations

from collections.abc import Iterable

from ollamaops.files.location import Location
from ollamaops.manifest.types import Build, ModelSpec, WeightsFile


def weights_of(build: Build) -> tuple[WeightsFile, ...]:
    """Everything that has to be sent for `build`."""
    return (*build.files, *build.adapters, *build.drafts)


def local_files(specs: Iterable[ModelSpec]) -> tuple[WeightsFile, ...]:
    """Every weights file of `specs`, each path or address once."""
    found: dict[Location, WeightsFile] = {}
    for spec in specs:
        if isinstance(spec.source, Build):
            for file in weights_of(spec.source):
                found.setdefault(file.path, file)
    return tuple(found.values())
