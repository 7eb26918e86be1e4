"""Looking at hosts and registries for what is outdated: ask as little as settles it, pull nothing.

What the answers mean is lockfile/outdated.py's. The fact a reader would miss: only a model whose digest is not the
registry's is looked into, so a fleet that is up to date costs one request to each registry and two to each host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from ollamaops.errors import RemoteError
from ollamaops.http.cancel import CancelToken
from ollamaops.lockfile.build import Reference
from ollamaops.lockfile.lock import Lock, LockEntry
from ollamaops.lockfile.outdated import TEXT_KINDS, Evidence, Freshness, HostFreshness, judge, needs_evidence
from ollamaops.manifest.types import HostSpec
from ollamaops.names import Digest
from ollamaops.observe.connect import connect
from ollamaops.observe.for_each_host import glance_at_hosts
from ollamaops.observe.host import Glance
from ollamaops.observe.registries import MAX_KEPT_BYTES, RegistryCache
from ollamaops.ollama.client import OllamaClient
from ollamaops.ollama.contents import Contents
from ollamaops.plan.actions import UnreachedHost
from ollamaops.plan.observed import ObservedHost, ObservedModel
from ollamaops.registry.documents import FetchedManifest, RegistryManifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What looking for outdated models takes, for all hosts of a run."""

    registries: RegistryCache
    lock: Lock
    cancel: CancelToken
    jobs: int = 8
    open_client: Callable[[HostSpec, CancelToken], OllamaClient] = connect


def find_outdated(
    search: Search, wanted: Mapping[str, Sequence[Reference]], hosts: Sequence[HostSpec]
) -> tuple[tuple[HostFreshness, ...], tuple[UnreachedHost, ...]]:
    """Every host's models (`wanted`: host → what it pulls), and the hosts that did not answer. Cancelled."""
    return glance_at_hosts(
        hosts,
        lambda spec, glance: _host(search, spec, glance, wanted[spec.name]),
        open_client=search.open_client,
        cancel=search.cancel,
        jobs=search.jobs,
    )


def _host(search: Search, spec: HostSpec, glance: Glance, references: Iterable[Reference]) -> HostFreshness:
    observed = glance.models()
    models = tuple(_model(search, glance, observed, reference) for reference in references)
    return HostFreshness(host=spec.name, models=models, server_version=observed.version)


def _model(search: Search, glance: Glance, observed: ObservedHost, reference: Reference) -> Freshness:
    own = observed.models.get(reference.model) or observed.models.get(reference.ref)
    answer = search.registries.manifest(reference.ref, reference.insecure)
    digest = own.digest if own else None
    if own is None or not isinstance(answer, FetchedManifest) or not needs_evidence(digest, answer):
        return judge(reference, digest, answer, Evidence(before=_locked(search, reference, own)))
    return judge(reference, digest, answer, _evidence(search, glance, observed, reference, own, answer))


def _locked(search: Search, reference: Reference, own: ObservedModel | None) -> LockEntry | None:
    """The lock's entry, if it is exactly what the host has."""
    entry = search.lock.entries.get(reference.ref)
    return entry if entry and own and own.digest in entry.tags_digests else None


def _evidence(
    search: Search,
    glance: Glance,
    observed: ObservedHost,
    reference: Reference,
    own: ObservedModel,
    answer: FetchedManifest,
) -> Evidence:
    before = _locked(search, reference, own)
    present = frozenset(blob for blob in answer.blobs if _has_blob(glance, blob))
    if before is not None:
        return Evidence(before=before, present=present)
    return Evidence(
        present=present,
        shown=_shown(glance, observed, own),
        texts=_texts(search, reference, answer, present),
        shows_jinja=observed.features.jinja_in_template,
    )


def _shown(glance: Glance, observed: ObservedHost, own: ObservedModel) -> Contents | None:
    """What the host shows of its model; nothing is in one that runs in a cloud."""
    if own.is_cloud:
        return Contents(digest=own.digest)
    return glance.show(observed, [own.name]).get(own.name)


def _has_blob(glance: Glance, digest: Digest) -> bool:
    return glance.patiently(partial(glance.client.has_blob, digest))


def _texts(
    search: Search, reference: Reference, answer: FetchedManifest, present: frozenset[Digest]
) -> dict[Digest, bytes]:
    """The small layers that the host has, so that they alone do not tell whether its model has them."""
    found: dict[Digest, bytes] = {}
    document = answer.document
    for layer in document.layers if isinstance(document, RegistryManifest) else ():
        if layer.kind in TEXT_KINDS and layer.digest in present and layer.size_bytes <= MAX_KEPT_BYTES:
            try:
                found[layer.digest] = search.registries.blob(reference.ref, layer, reference.insecure)
            except RemoteError:
                continue  # then nobody can say whether this kind changed
    return found
