"""Asking registries for everything a lock is about, several names at once.

A check also looks at the layers: small ones are read whole, large ones only have to be there, because a server checks
every layer's digest when it pulls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from ollamaops.errors import DigestMismatch, NotFound, ProtocolError, RemoteError
from ollamaops.lockfile.build import Answer, Reference, Unanswered, references_on
from ollamaops.lockfile.changes import Inspection, LayerFlaw
from ollamaops.lockfile.lock import Lock
from ollamaops.names import Digest, ModelName
from ollamaops.observe.registries import RegistryCache
from ollamaops.observe.run import HostTask, Run, for_each
from ollamaops.observe.session import HostSession, ask_hosts
from ollamaops.plan.templates import template_digest
from ollamaops.registry.documents import Layer, RegistryManifest

MAX_READ_BYTES = 4 * 1024 * 1024
Found = TypeVar("Found")


def ask_registries(
    registries: RegistryCache, references: Iterable[Reference], *, jobs: int
) -> dict[ModelName, Answer]:
    """What each registry has under each name, or why that is not known."""
    return _for_each(references, lambda each: registries.manifest(each.ref, each.insecure), jobs)


def inspect_layers(
    registries: RegistryCache,
    lock: Lock,
    references: Iterable[Reference],
    answers: Mapping[ModelName, Answer],
    *,
    jobs: int,
) -> dict[ModelName, Inspection]:
    """Whether the registry has the layers of every entry that it confirms, and small ones with the right bytes."""

    def is_confirmed(each: Reference) -> bool:
        answer, entry = answers.get(each.ref), lock.entries.get(each.ref)
        return (
            entry is not None and not isinstance(answer, Unanswered | None) and answer.digest == entry.digest
        )

    confirmed = [each for each in references if is_confirmed(each)]
    return _for_each(confirmed, lambda each: _inspect(registries, each, lock), jobs)


def see_templates(tasks: Sequence[HostTask], run: Run, lock: Lock) -> dict[ModelName, frozenset[Digest]]:
    """The templates that make the prompts of locked models, as the hosts show them that have exactly these.

    A host that does not answer shows none, which is no error: a lock can be written before there are hosts.
    """

    def look(host: HostSession) -> dict[ModelName, Digest]:
        host.client.features()  # asked once: nobody waits for a host that is not there
        observed = host.models()
        there = {}
        for each in references_on(host.task.models, host.task.targets):
            own, entry = observed.models.get(each.model), lock.entries.get(each.ref)
            if own and entry and own.digest in entry.tags_digests:
                there[each.ref] = own.name
        shown = host.show(observed, there.values())
        found = {ref: template_digest(shown[name]) for ref, name in there.items() if name in shown}
        return {ref: digest for ref, digest in found.items() if digest}

    if not lock.entries:
        return {}
    found: dict[ModelName, frozenset[Digest]] = {}
    for host in ask_hosts(tasks, run, look)[0]:
        for ref, digest in host.items():
            found[ref] = found.get(ref, frozenset()) | {digest}
    return found


def _inspect(registries: RegistryCache, reference: Reference, lock: Lock) -> Inspection:
    document = lock.entries[reference.ref].document
    layers = document.parts if isinstance(document, RegistryManifest) else ()
    flaws = []
    for layer in {layer.digest: layer for layer in layers}.values():
        try:
            error = _flaw(registries, reference, layer)
        except RemoteError as failure:
            return Unanswered(error=str(failure), hint=failure.hint)
        flaws += [LayerFlaw(layer, error)] if error else []
    return tuple(flaws)


def _flaw(registries: RegistryCache, reference: Reference, layer: Layer) -> str:
    """What is wrong with a layer, empty if nothing is. RemoteError when that cannot be told."""
    if layer.size_bytes > MAX_READ_BYTES:
        is_there = registries.has_blob(reference.ref, layer, reference.insecure)
        return "" if is_there else "the registry does not have it"
    try:
        data = registries.blob(reference.ref, layer, reference.insecure)
    except NotFound:
        return "the registry does not have it"
    except (DigestMismatch, ProtocolError) as error:
        return str(error)
    return "" if len(data) == layer.size_bytes else f"it has {len(data)} bytes, not {layer.size_bytes}"


def _for_each(
    references: Iterable[Reference], ask: Callable[[Reference], Found], jobs: int
) -> dict[ModelName, Found]:
    named = {reference.ref: reference for reference in references}
    return dict(zip(named, for_each(named.values(), ask, jobs=jobs, threads="registry"), strict=True))
