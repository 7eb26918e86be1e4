"""What can be found out through the API about the files behind a model, whether it is remembered or not.

A server tells whether a blob is there, and prints the texts that are in small ones. It reads weights to nobody:
`POST /api/blobs` of one that exists is answered before its body is read, and a pull takes what is there unread. So
bytes that were changed in place are only noticed when the model does not load.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ollamaops.errors import AnswerError, ProtocolError
from ollamaops.lockfile.build import Unanswered
from ollamaops.manifest.types import ModelSpec, Pull
from ollamaops.names import Digest, ModelName
from ollamaops.observe.contents import REPAIR_HINT
from ollamaops.observe.session import HostSession
from ollamaops.ollama.contents import Contents, Unreadable
from ollamaops.plan.expectations import Failure
from ollamaops.plan.observed import ObservedHost

NOT_PROVEN = (
    (
        "weights: that they are there and load, not that each byte is what it was, because no server reads them out; "
        "a model that is in memory already is not read again"
    ),
    "texts: as the server shows them; from 0.23.2 on it may remember them from before somebody changed a file",
)
_BRING_BACK = "ollamaops apply brings them back"


def check_files(
    host: HostSession, observed: ObservedHost, models: Iterable[ModelSpec], *, deep: bool = False
) -> dict[ModelName, tuple[Failure, ...]]:
    """What is wrong with the files of these models, as far as they are on the host. RemoteError, Cancelled.

    `deep` also compares the texts of pulled models with the digests that their registry has for them.
    """
    specs = {model.name: model for model in models if model.name in observed.models}
    found = host.look_into(observed, specs)
    inside = {name: what for name, what in found.items() if isinstance(what, Contents)}
    gone = _find_gone(host, {layer for what in inside.values() for layer in what.weights_layers})
    failures = {name: tuple(_failures(name, what, gone)) for name, what in found.items()}
    if deep and host.registries is not None:
        for name, what in inside.items():
            failures[name] += tuple(_altered_texts(host, observed, specs[name], what))
    return failures


def _failures(name: ModelName, what: Contents | Unreadable, gone: Mapping[Digest, bool]) -> Iterator[Failure]:
    if isinstance(what, Unreadable):
        hint = REPAIR_HINT if what.is_damaged else f"look at the server's log for '{name}'"
        yield Failure("files", f"it cannot be opened: {what.words}", hint)
        return
    missing = [layer.short for layer in what.weights_layers if gone.get(layer)]
    if missing:
        yield Failure("files", f"its weights are gone from the host ({', '.join(missing)})", _BRING_BACK)


def _find_gone(host: HostSession, layers: Iterable[Digest]) -> dict[Digest, bool]:
    """Whether each layer has gone; none has where the host does not say, because the model is loaded as well."""
    gone = {}
    for layer in sorted(layers):
        try:
            gone[layer] = not host.with_retries(lambda layer=layer: host.client.has_blob(layer))  # type: ignore[misc]
        except (AnswerError, ProtocolError):
            return {}
    return gone


def _altered_texts(
    host: HostSession, observed: ObservedHost, spec: ModelSpec, inside: Contents
) -> Iterator[Failure]:
    """Texts that are not those of the registry, although the model's manifest is the registry's."""
    source = spec.source
    if not isinstance(source, Pull):
        return
    own = observed.models[spec.name]
    known = host.run.registries.ask({source.ref: source.insecure})[source.ref]
    answer = host.run.registries.manifest(source.ref, source.insecure)
    if isinstance(answer, Unanswered) or own.digest not in known.digests:
        return
    texts = {
        "system": {inside.system},
        "template": {inside.template, *inside.templates},
        "license": {inside.license_text},
    }
    for kind, shown in texts.items():
        layers = [layer for layer in answer.document.parts if layer.kind == kind]
        if len(layers) == 1 and layers[0].digest not in {Digest.of(text.encode()) for text in shown}:
            yield Failure("texts", f"its {kind} is not what its registry has under that digest", REPAIR_HINT)
