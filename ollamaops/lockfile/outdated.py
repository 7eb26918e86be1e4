"""Whether a host still has what the registry has, and if not, what kind of layer changed.

This is told from digests, from the lock, from what the host shows of its model and from which blobs it has. A host
keeps every blob of its models, so a layer whose blob is not there is certainly new, whatever else is known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal, cast, get_args

from msgspec import Struct, field
from msgspec.structs import replace

from ollamaops.lockfile.build import Answer, Reference, Unanswered
from ollamaops.lockfile.lock import LockEntry
from ollamaops.manifest.parameters import same_parameter
from ollamaops.manifest.types import Update
from ollamaops.names import Digest, ModelName
from ollamaops.ollama.contents import NO_TEMPLATE, Contents
from ollamaops.registry.documents import (
    FetchedManifest,
    Layer,
    LayerKind,
    RegistryManifest,
    compare,
    is_current,
    layers_by_kind,
)

FreshnessState = Literal[
    "current",  # what the registry has now
    "outdated",  # something else
    "missing",  # not on the host, whatever the registry has
    "gone",  # on the host, and the registry has no such model or tag any more
    "unknown",  # on the host, and the registry did not say
]
TemplateChange = Literal["same", "changed", "unknown"]
KINDS = cast("tuple[LayerKind, ...]", get_args(LayerKind))
TEXT_KINDS: frozenset[LayerKind] = frozenset({"template", "system", "parameters", "messages", "license"})


class Evidence(Struct, frozen=True, kw_only=True):
    """What is known of a model whose digest is not the registry's.

    `present` are those of the registry's blobs that the host has; `before` the lock's entry if that is exactly what
    the host has; `shown` what the host shows of it; `texts` the contents of the registry's small layers.
    `shows_jinja` says that the server may show a template that is not a layer (Ollama ≥ 0.30).
    """

    present: frozenset[Digest] = frozenset()
    before: LockEntry | None = None
    shown: Contents | None = None
    texts: Mapping[Digest, bytes] = field(default_factory=dict)
    shows_jinja: bool = False


class Change(Struct, frozen=True):
    """A kind of layer that changed, and how many bytes of it the host would download."""

    kind: LayerKind
    download_bytes: int


class Freshness(Struct, frozen=True, kw_only=True):
    """One pulled model on one host. `digest` and `registry_digest` are bare hex, empty when not known.

    `unclear` are kinds that may have changed; `new_blobs` is what an update would download
    (None: not known). `prompts`: whether an update changes the template that makes the prompts (None: not asked).
    `is_locked`: the lock has what the host has. `is_answered`: the registry said what it has. `is_gone`: it has
    nothing. A missing model may be any of these.
    """

    ref: ModelName
    model: ModelName
    state: FreshnessState
    update: Update = "missing"
    digest: str = ""
    registry_digest: str = ""
    changes: tuple[Change, ...] = ()
    unclear: tuple[LayerKind, ...] = ()
    new_blobs: Mapping[Digest, int] | None = field(default_factory=dict)
    is_locked: bool = False
    is_answered: bool = True
    is_gone: bool = False
    prompts: TemplateChange | None = None
    error: str = ""
    hint: str | None = None

    @property
    def download_bytes(self) -> int | None:
        """Bytes that an update would download to this host; None when that is not known."""
        return None if self.new_blobs is None else sum(self.new_blobs.values())


class HostFreshness(Struct, frozen=True, kw_only=True):
    """Every pulled model of one host that answered."""

    host: str
    models: tuple[Freshness, ...]
    server_version: str = ""

    @property
    def download_bytes(self) -> int:
        """Bytes that updating everything would download, blobs that models share counted once."""
        outdated = [model.new_blobs or {} for model in self.models if model.state == "outdated"]
        return sum({digest: size for blobs in outdated for digest, size in blobs.items()}.values())


def needs_evidence(digest: str | None, answer: Answer) -> bool:
    """Whether digests alone do not settle it. `digest` is what the host lists (bare hex), None if nothing."""
    return digest is not None and isinstance(answer, FetchedManifest) and not is_current(digest, answer)


def judge(
    reference: Reference, digest: str | None, answer: Answer, evidence: Evidence = Evidence()
) -> Freshness:
    """One model on one host. `digest` is what the host lists (bare hex), None if nothing; `evidence` counts only
    where `needs_evidence`."""
    verdict = Freshness(
        ref=reference.ref,
        model=reference.model,
        state="missing",
        update=reference.update,
        digest=digest or "",
        is_locked=evidence.before is not None,
    )
    if isinstance(answer, Unanswered):
        return _judge_unanswered(verdict, digest, answer)
    verdict = replace(verdict, registry_digest=answer.digest.hex)
    if digest is None:
        return verdict
    if is_current(digest, answer):
        return replace(verdict, state="current")
    if not isinstance(answer.document, RegistryManifest):
        error = "the tag is a list of manifests: which of them this host would take is not known"
        return replace(verdict, state="outdated", new_blobs=None, error=error)
    return _compare(verdict, answer.document, evidence)


def _judge_unanswered(verdict: Freshness, digest: str | None, answer: Unanswered) -> Freshness:
    is_gone = answer.cause == "gone"
    state: FreshnessState = "gone" if is_gone else "unknown"
    return replace(
        verdict,
        state="missing" if digest is None else state,
        is_answered=is_gone,
        is_gone=is_gone,
        error=answer.error,
        hint=answer.hint,
    )


def _compare(verdict: Freshness, new: RegistryManifest, evidence: Evidence) -> Freshness:
    has_changed = _changed_kinds(new, evidence)
    changed = tuple(kind for kind in KINDS if has_changed.get(kind))
    unclear = tuple(kind for kind in KINDS if kind in has_changed and has_changed[kind] is None)
    absent = {part.digest: part for part in new.parts if part.digest not in evidence.present}
    return replace(
        verdict,
        state="outdated" if changed or unclear else "current",
        changes=tuple(
            Change(kind, sum(part.size_bytes for part in absent.values() if part.kind == kind))
            for kind in changed
        ),
        unclear=unclear,
        new_blobs={digest: part.size_bytes for digest, part in absent.items()},
    )


def _changed_kinds(new: RegistryManifest, evidence: Evidence) -> dict[LayerKind, bool | None]:
    """Kind → whether it changed; None where that is not known."""
    if evidence.before is not None:
        return {change.kind: True for change in compare(evidence.before.document, new)}
    groups = layers_by_kind(new.parts)
    return {kind: _has_changed(kind, groups.get(kind, ()), evidence) for kind in KINDS}


def _has_changed(kind: LayerKind, layers: tuple[Layer, ...], evidence: Evidence) -> bool | None:
    if any(layer.digest not in evidence.present for layer in layers):
        return True
    if kind in ("config", "other"):
        return False
    if evidence.shown is None:
        return None
    if kind in TEXT_KINDS:
        texts = [evidence.texts.get(layer.digest) for layer in layers]
        known = [text.decode("utf-8", errors="replace") for text in texts if text is not None]
        return None if len(known) < len(texts) else _text_differs(kind, known, evidence.shown, evidence)
    return _blobs_differ(kind, {layer.digest for layer in layers}, evidence.shown)


def _blobs_differ(kind: LayerKind, wanted: set[Digest], shown: Contents) -> bool | None:
    """Of several weights layers `show` prints one, and of tensors none; drafts are printed with the adapters."""
    match kind:
        case "weights":
            if not shown.blobs:
                return None if wanted else False
            return shown.blobs[0] not in wanted
        case "projector":
            return set(shown.blobs[1:]) != wanted
        case _:
            return not wanted <= set(shown.adapters)


def _text_differs(kind: LayerKind, texts: list[str], shown: Contents, evidence: Evidence) -> bool | None:
    """Of several layers the last one counts, but licenses add up and so do parameters."""
    last = texts[-1] if texts else ""
    match kind:
        case "template":
            return _template_differs(texts, shown, evidence)
        case "system":
            return last.strip() != shown.system.strip()
        case "license":
            return "\n".join(texts).strip() != shown.license_text.strip()
        case "messages":
            messages = _messages(last)
            return None if messages is None else messages != list(shown.messages)
        case _:
            return _parameters_differ(texts, shown)


def _template_differs(texts: list[str], shown: Contents, evidence: Evidence) -> bool | None:
    visible = {text.strip() for text in (*shown.templates, shown.template)}
    if not texts and not any(visible):
        return False
    if not texts and evidence.shows_jinja and NO_TEMPLATE not in visible:
        return None
    return (texts[-1] if texts else NO_TEMPLATE).strip() not in visible


def _messages(text: str) -> list[tuple[str, str]] | None:
    """(role, content) of each message in a layer; None if it is not a list of messages."""
    tree = _json(text or "[]")
    if not isinstance(tree, list) or not all(isinstance(item, dict) for item in tree):
        return None
    return [(str(item.get("role", "")), str(item.get("content", ""))) for item in tree]


def _parameters_differ(texts: list[str], shown: Contents) -> bool | None:
    wanted: dict[str, object] = {}
    for text in texts:
        tree = _json(text)
        if not isinstance(tree, dict):
            return None
        wanted |= {name: tuple(value) if isinstance(value, list) else value for name, value in tree.items()}
    ours = {name: value for name, value in shown.parameters.items() if value not in (None, ())}
    wanted = {name: value for name, value in wanted.items() if value not in (None, ())}
    return wanted.keys() != ours.keys() or any(
        not same_parameter(name, value, ours[name]) for name, value in wanted.items()
    )


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
