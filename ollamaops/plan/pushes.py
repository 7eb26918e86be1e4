"""Pushed models: which content the registry is not known to have.

Ollama pushes a model under its own name only, so the name in `push:` becomes an alias on the host and stays there.
"""

from __future__ import annotations

from collections.abc import Iterable

from ollamaops.names import ModelName
from ollamaops.plan.actions import PushModel
from ollamaops.plan.copies import add_copy
from ollamaops.plan.desired import DesiredModel
from ollamaops.plan.draft import Draft
from ollamaops.plan.questions import is_pushed


def plan_pushes(draft: Draft, models: Iterable[DesiredModel]) -> None:
    """Push what this host has to push, after everything that changes it; but nothing that could not be judged."""
    as_declared = {*draft.unchanged, *draft.changing}
    for model in models:
        ref = model.spec.push
        if ref is None or model.name not in draft.desired.pushes or model.name not in as_declared:
            continue
        if not _has_registry(draft, model, ref):
            _add_push(draft, model, ref)


def _has_registry(draft: Draft, model: DesiredModel, ref: ModelName) -> bool:
    """Whether the registry is known to have what the host has and keeps."""
    own = draft.find(model.name)
    if own is None or model.name in draft.replaced:
        return False
    upstream = draft.observed.upstream.get(ref)
    return is_pushed(model.spec, own, draft.observed) or (
        upstream is not None and own.digest in upstream.digests
    )


def _add_push(draft: Draft, model: DesiredModel, ref: ModelName) -> None:
    name = model.name
    because = draft.why(ref, "unpushed", desired=str(name))
    if draft.leaves_alone(ref):
        draft.doubt(
            name,
            f"not pushed: '{ref}' would become an alias of it, but policy.ignore covers that name",
            "take it out of ignore, or push to another name",
        )
        return
    own, alias = draft.find(name), draft.find(ref)
    if ref != name and (name in draft.changing or not own or not alias or alias.digest != own.digest):
        add_copy(draft, model, name, because, to=ref)
    draft.add(
        PushModel(
            host=draft.host,
            model=ref,
            source=name,
            because=because,
            needs=draft.needs(name, ref),
            expects=draft.expect(name),
            insecure=model.spec.push_insecure,
            retries=model.spec.retries,
        )
    )
