"""What is a copy of another model on the host: aliases, and renames without a download.

The fact a reader would miss: an alias whose undeclared source is gone stays in sync as long as it is what we made.
"""

from __future__ import annotations

from ollamaops.names import ModelName
from ollamaops.plan.actions import CopyModel
from ollamaops.plan.bases import ensure
from ollamaops.plan.desired import DesiredModel
from ollamaops.plan.lookups import Because, meets_pin, remembered, tolerates_content
from ollamaops.plan.plan_builder import PlanBuilder
from ollamaops.plan.staging import add_probe


def add_copy(
    draft: PlanBuilder,
    model: DesiredModel,
    source: ModelName,
    because: Because,
    *,
    to: ModelName | None = None,
) -> None:
    """Plan to make `model` (or `to`, which is then not remembered as ours) the same as `source`."""
    name = to or model.name
    needs = draft.needs(source)
    if to is None and because[0].kind != "moved":
        add_probe(draft, model, source)
        needs = tuple(dict.fromkeys((*draft.needs(name), *needs)))
    draft.add(
        CopyModel(
            host=draft.host,
            model=name,
            source=source,
            because=because,
            needs=needs,
            expects=draft.expect(name, source),
            keep=0 if to else model.spec.keep_previous,
            fingerprint="" if to else model.fingerprint,
            retries=model.spec.retries,
        )
    )


def rename(draft: PlanBuilder, model: DesiredModel) -> bool:
    """Plan to copy `model` from the name it had before; False when there is nothing to copy, or the wrong thing."""
    former = model.spec.moved_from
    before = draft.find(former)
    if former is None or before is None or draft.leaves_alone(former):
        return False
    if model.spec.digest and not meets_pin(model, before, draft.observed):
        return False
    because = draft.why(model.name, "moved", desired=str(model.name), observed=str(former))
    add_copy(draft, model, former, because)
    return True


def plan_copy(draft: PlanBuilder, model: DesiredModel, source: ModelName) -> None:
    """An alias has the digest of its source."""
    name, own = model.name, draft.find(model.name)
    if draft.find(source) is None and _is_settled(draft, model, source):
        return
    if not ensure(draft, source, name):
        return
    because = _reasons(draft, model, source)
    if because is None:
        draft.wait(name, source)
    elif not because:
        draft.keep(model)
    elif own is not None and model.spec.update == "never":
        draft.give_up(name, "another model than its source, and update: never forbids replacing it")
    else:
        add_copy(draft, model, source, because)


def _is_settled(draft: PlanBuilder, model: DesiredModel, source: ModelName) -> bool:
    """Without its undeclared source an alias is what we remember to have made, or what it was under its old name."""
    own = draft.find(model.name)
    if draft.implicit(source) is None:
        return False
    if own is None:
        return rename(draft, model)
    if remembered(model, own, draft.observed):
        draft.keep(model)
        return True
    return False


def _reasons(draft: PlanBuilder, model: DesiredModel, source: ModelName) -> Because | None:
    """Why the alias must be set; None while its source is on its way."""
    own, origin = draft.find(model.name), draft.find(source)
    if own is None:
        return draft.why(model.name, "missing")
    if tolerates_content(model.spec):
        return ()
    if source in draft.replaced:
        return draft.why(model.name, "base", desired=str(source))
    if origin is None:
        return None
    if own.digest == origin.digest:
        return ()
    wanted = f"{source} ({origin.digest[:12]})"
    return draft.why(model.name, "alias", "digest", desired=wanted, observed=own.digest[:12])
