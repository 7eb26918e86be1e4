"""Pulled models: what must be pulled, and what is then known under another name.

A model pulled under another reference is a copy of that reference's tag, which stays on the host. The fact a reader
would miss: an old server writes a pulled manifest anew, so that its digest is compared with a set of digests, or
with what we remember to have come out of pulling exactly this.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

from ollamaops.manifest.types import Pull
from ollamaops.plan.bases import add_pull
from ollamaops.plan.copies import add_copy, rename
from ollamaops.plan.desired import DesiredModel
from ollamaops.plan.lookups import (
    Because,
    is_current,
    meets_pin,
    pins_of,
    remembered,
    tolerates_content,
    upstream_of,
)
from ollamaops.plan.observed import ObservedModel
from ollamaops.plan.plan_builder import PlanBuilder
from ollamaops.plan.staging import add_probe, awaits_proof, is_unusable


def plan_pulls(draft: PlanBuilder, models: Iterable[DesiredModel]) -> None:
    """Everything that is pulled. All pulls come before the copies of them, whichever entry asks for the pull."""
    copies = []
    for model in models:
        pull = model.spec.source
        if not isinstance(pull, Pull) or (draft.find(model.name) is None and rename(draft, model)):
            continue
        if pull.ref == model.name:
            _plan_pull(draft, model, pull)
        elif because := _plan_mirror(draft, model, pull):
            copies.append((model, pull, because))
    for model, pull, because in copies:
        add_copy(draft, model, pull.ref, because)


def _plan_pull(draft: PlanBuilder, model: DesiredModel, pull: Pull) -> None:
    because = _reasons(draft, model, pull)
    if because:
        add_pull(draft, model, pull, because)
    elif because is not None and awaits_proof(model, draft.observed):
        add_probe(draft, model, pull.ref, draft.why(model.name, "unproven"))
    elif because is not None:
        draft.keep(model)


def _plan_mirror(draft: PlanBuilder, model: DesiredModel, pull: Pull) -> Because:
    """Pull the reference if need be; returns why the name must become a copy of it, nothing when it need not."""
    own, source = draft.find(model.name), draft.find(pull.ref)
    is_at_hand = source is not None and _is_good(draft, model, pull, source)
    if own is None and is_at_hand:
        return draft.why(model.name, "missing")
    because = _reasons(draft, model, pull)
    if because is None:
        return ()
    if because and not is_at_hand and not add_pull(draft, model, pull, because):
        return ()
    if any(reason.kind == "unknown" for reason in because):
        return ()  # after the pull somebody looks again
    if not because and own and source and _has_moved(draft, model, own, source):
        because = draft.why(model.name, "alias", desired=str(pull.ref), observed=own.digest[:12])
    if not because:
        draft.keep(model)
    return because


def _is_good(draft: PlanBuilder, model: DesiredModel, pull: Pull, source: ObservedModel) -> bool:
    """Whether what the reference's tag holds may be copied from."""
    if is_unusable(source, draft.observed):
        return False
    if pins_of(model.spec):
        return meets_pin(model, source, draft.observed)
    if model.spec.update != "latest":
        return True
    return is_current(model, source, draft.observed) or _was_just_pulled(draft, pull)


def _was_just_pulled(draft: PlanBuilder, pull: Pull) -> bool:
    """Whether this run had the server pull it, which is all that is wanted when no registry is asked from here."""
    return not draft.options.ask_registry and pull.ref in draft.options.distrust


def _has_moved(draft: PlanBuilder, model: DesiredModel, own: ObservedModel, source: ObservedModel) -> bool:
    """Whether the name must follow the reference's tag: not what was copied there, and not good by itself either."""
    if own.digest == source.digest or model.spec.digest or tolerates_content(model.spec):
        return False
    match model.spec.update:
        case "never":
            return False
        case "latest":
            return _was_just_pulled(draft, Pull(ref=source.name))
        case "missing" | "locked":
            return not remembered(model, own, draft.observed)
        case _:
            assert_never(model.spec.update)


def _reasons(draft: PlanBuilder, model: DesiredModel, pull: Pull) -> Because | None:
    """Why `model` must be pulled; None, with a note, when that cannot be told."""
    own, pin = draft.find(model.name), model.spec.digest
    if own is None:
        return draft.why(model.name, "missing")
    if is_unusable(own, draft.observed):
        return draft.why(model.name, "missing", observed="listed, but it cannot be opened")
    if tolerates_content(model.spec):
        return ()
    if pin is not None:
        is_met = meets_pin(model, own, draft.observed)
        return () if is_met else draft.why(model.name, "content", desired=pin.hex, observed=own.digest)
    return _latest_reasons(draft, model, pull, own) if model.spec.update == "latest" else ()


def _latest_reasons(
    draft: PlanBuilder, model: DesiredModel, pull: Pull, own: ObservedModel
) -> Because | None:
    if is_current(model, own, draft.observed) or _was_just_pulled(draft, pull):
        return ()
    if not draft.options.ask_registry:
        return draft.why(model.name, "unknown", desired="latest")
    known = upstream_of(model, draft.observed)
    if known is not None:
        return draft.why(model.name, "content", desired=known.registry_digest, observed=own.digest)
    answer = draft.observed.upstream.get(pull.ref)
    error = answer.error if answer else "the registry was not asked"
    hint = "use --no-registry to let the servers ask it, or update: missing"
    draft.doubt(model.name, f"whether it is the latest is not known: {error}", hint)
    return None
