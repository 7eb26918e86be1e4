"""Looking at hosts and registries for outdated models: few questions, no pulls.

lockfile/outdated.py decides what the answers mean. Only models whose digest differs from the registry's are looked
into, so an up-to-date fleet costs one request to each registry and two to each host.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from msgspec.structs import replace

from ollamaops.errors import RemoteError
from ollamaops.lockfile.build import Reference, references_on
from ollamaops.lockfile.lock import Lock, LockEntry
from ollamaops.lockfile.outdated import (
    TEXT_KINDS,
    Evidence,
    Freshness,
    HostFreshness,
    TemplateChange,
    judge,
    needs_evidence,
)
from ollamaops.names import Digest
from ollamaops.observe.coming_template import coming_template
from ollamaops.observe.registries import MAX_KEPT_BYTES, RegistryCache
from ollamaops.observe.run import HostTask, Run
from ollamaops.observe.session import HostSession, ask_hosts
from ollamaops.ollama.contents import Contents
from ollamaops.plan.actions import UnreachedHost
from ollamaops.plan.observed import ObservedHost, ObservedModel
from ollamaops.registry.documents import FetchedManifest, RegistryManifest


def find_outdated(
    tasks: Sequence[HostTask], run: Run, lock: Lock
) -> tuple[tuple[HostFreshness, ...], tuple[UnreachedHost, ...]]:
    """Every host's pulled models that its task means, and the hosts that did not answer. Cancelled."""

    def look(host: HostSession) -> HostFreshness:
        observed = host.models()
        references = references_on(host.task.models, host.task.targets)
        models = tuple(
            _model(host, observed, reference, lock) for reference in references if reference.update != "never"
        )
        return HostFreshness(host=host.name, models=models, server_version=observed.version)

    return ask_hosts(tasks, run, look)


def _model(host: HostSession, observed: ObservedHost, reference: Reference, lock: Lock) -> Freshness:
    own = observed.models.get(reference.model) or observed.models.get(reference.ref)
    answer = host.run.registries.manifest(reference.ref, reference.insecure)
    before = _locked(lock, reference, own)
    digest = own.digest if own else None
    if own is None or not isinstance(answer, FetchedManifest) or not needs_evidence(digest, answer):
        return judge(reference, digest, answer, Evidence(before=before))
    evidence = _evidence(host, observed, reference, own, answer, before)
    verdict = judge(reference, digest, answer, evidence)
    if verdict.state != "outdated":
        return verdict
    return replace(verdict, prompts=_prompts(host, observed, reference, own, answer, evidence))


def _prompts(
    host: HostSession,
    observed: ObservedHost,
    reference: Reference,
    own: ObservedModel,
    answer: FetchedManifest,
    evidence: Evidence,
) -> TemplateChange:
    """Whether the template that makes the prompts would be another one."""
    shown = evidence.shown or _shown(host, observed, own)
    registries = host.run.registries
    coming = coming_template(
        registries, reference.ref, reference.insecure, answer.document, observed.features
    )
    if coming is None or shown is None or not shown.effective_template:
        return "unknown"
    return "same" if coming.strip() == shown.effective_template.strip() else "changed"


def _locked(lock: Lock, reference: Reference, own: ObservedModel | None) -> LockEntry | None:
    """The lock's entry, if it is exactly what the host has."""
    entry = lock.entries.get(reference.ref)
    return entry if entry and own and own.digest in entry.tags_digests else None


def _evidence(
    host: HostSession,
    observed: ObservedHost,
    reference: Reference,
    own: ObservedModel,
    answer: FetchedManifest,
    before: LockEntry | None,
) -> Evidence:
    present = frozenset(blob for blob in answer.blobs if _has_blob(host, blob))
    if before is not None:
        return Evidence(before=before, present=present)
    return Evidence(
        present=present,
        shown=_shown(host, observed, own),
        texts=_texts(host.run.registries, reference, answer, present),
        shows_jinja=observed.features.jinja_in_template,
    )


def _shown(host: HostSession, observed: ObservedHost, own: ObservedModel) -> Contents | None:
    """What the host shows of its model; nothing is in one that runs in a cloud."""
    if own.is_cloud:
        return Contents(digest=own.digest)
    return host.show(observed, [own.name]).get(own.name)


def _has_blob(host: HostSession, digest: Digest) -> bool:
    return host.with_retries(partial(host.client.has_blob, digest))


def _texts(
    registries: RegistryCache, reference: Reference, answer: FetchedManifest, present: frozenset[Digest]
) -> dict[Digest, bytes]:
    """The small layers that the host has, so that they alone do not tell whether its model has them."""
    found: dict[Digest, bytes] = {}
    document = answer.document
    for layer in document.layers if isinstance(document, RegistryManifest) else ():
        if layer.kind in TEXT_KINDS and layer.digest in present and layer.size_bytes <= MAX_KEPT_BYTES:
            try:
                found[layer.digest] = registries.blob(reference.ref, layer, reference.insecure)
            except RemoteError:
                continue  # then nobody can say whether this kind changed
    return found
