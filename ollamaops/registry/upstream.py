"""Verdicts over what a registry has: is a host's copy current, are two models the same, what must still move.

Pure; the caller fetches the manifest (client.py) and the host's side. The fact a reader would miss: a tags digest
that is not in the set does not prove other content where the host made the model itself; then compare layers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from ollamaops.names import Digest
from ollamaops.registry.documents import FetchedManifest, Layer, digest_set, layers_by_kind


def is_current(tags_digest: str, fetched: FetchedManifest) -> bool:
    """Whether `/api/tags` of a host shows what the registry has now, whatever version pulled it."""
    return tags_digest.lower().removeprefix("sha256:") in digest_set(fetched.raw)


def same_content(ours: Iterable[Layer], theirs: Iterable[Layer]) -> bool:
    """Whether two models consist of the same blobs; the order of layers counts within a kind only.

    Holds across hosts and versions, where digests of whole manifests differ (their layout, a newline, `from`).
    """
    return _content(ours) == _content(theirs)


def missing_blobs(manifests: Iterable[FetchedManifest], present: Collection[Digest]) -> Mapping[Digest, int]:
    """Digest → bytes of what a host that has `present` must download for all of these, shared blobs once."""
    wanted = {digest: size for fetched in manifests for digest, size in fetched.blobs.items()}
    return {digest: size for digest, size in wanted.items() if digest not in present}


def _content(layers: Iterable[Layer]) -> Mapping[str, tuple[Digest, ...]]:
    return {kind: tuple(layer.digest for layer in group) for kind, group in layers_by_kind(layers).items()}
