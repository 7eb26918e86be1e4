"""Plan pushes: which content the registry is not known to have.

Ollama pushes a model under its own name only, so the name in `push:` becomes an alias on the host and stays there.
Another model of that name is replaced, and the plan says so.
What was pushed has one digest on the host and mostly another one in the registry. Both have to be among the digests
of one content: the registry's, the pulled reference's, the lock's, or those that we saw when we pushed it.
"""

from __future__ import annotations

from collections.abc import Iterable

from ollamaops.names import ModelName
from ollamaops.plan.actions import PushModel
from ollamaops.plan.desired import DesiredModel
from ollamaops.plan.lookups import is_pushed, pushed_digests, upstream_of
from ollamaops.plan.observed import ObservedHost, ObservedModel, RegistryAnswer
from ollamaops.plan.plan_builder import PlanBuilder
from ollamaops.plan.pulls import add_copy


def plan_pushes(builder: PlanBuilder, models: Iterable[DesiredModel]) -> None:
    """Push what this host has to push, after everything that changes it; but nothing that could not be judged."""
    as_declared = {*builder.unchanged, *builder.changing}
    for model in models:
        ref = model.spec.push
        if ref is None or model.name not in builder.desired.pushes or model.name not in as_declared:
            continue
        if not _has_registry(builder, model, ref):
            _add_push(builder, model, ref)


def _has_registry(builder: PlanBuilder, model: DesiredModel, ref: ModelName) -> bool:
    """Whether the registry is known to have what the host has and keeps; memory counts when it does not say."""
    own, answer = builder.find(model.name), builder.observed.upstream.get(ref)
    if own is None or model.name in builder.replaced:
        return False
    if answer and (answer.gone or not answer.error):
        return _is_same(model, own, answer, builder.observed)
    if not is_pushed(model.spec, own, builder.observed):
        return False
    if answer:
        builder.note(
            model.name,
            f"pushed to '{ref}' before; whether that is still there is not known: {answer.error}",
            answer.hint,
        )
    return True


def _is_same(model: DesiredModel, own: ObservedModel, answer: RegistryAnswer, observed: ObservedHost) -> bool:
    """Whether what the registry has is what the host has."""
    source = upstream_of(model, observed)
    contents = (
        answer.digests,
        pushed_digests(model.spec, observed),
        frozenset(model.spec.accepts),
        source.digests if source else frozenset(),
    )
    return any(own.digests | {answer.registry_digest} <= digests for digests in contents)


def _in_registry(builder: PlanBuilder, ref: ModelName) -> str:
    """What the registry has in place of what the host has, or will have: a digest, "nothing", or "" if unknown."""
    answer = builder.observed.upstream.get(ref)
    if answer is None:
        return ""
    return "nothing" if answer.gone else answer.registry_digest


def _add_push(builder: PlanBuilder, model: DesiredModel, ref: ModelName) -> None:
    name = model.name
    because = builder.why(ref, "unpushed", desired=str(name), observed=_in_registry(builder, ref))
    if builder.leaves_alone(ref):
        builder.doubt(
            name,
            f"not pushed: '{ref}' would become an alias of it, but policy.ignore covers that name",
            "take it out of ignore, or push to another name",
        )
        return
    own, alias = builder.find(name), builder.find(ref)
    is_alias = ref == name or (name not in builder.changing and own and alias and alias.digest == own.digest)
    replaces = builder.why(ref, "alias", desired=str(name), observed=alias.digest[:12]) if alias else ()
    if not is_alias and not add_copy(builder, model, name, (*replaces, *because), to=ref):
        return
    builder.add(
        PushModel(
            host=builder.host,
            model=ref,
            source=name,
            because=because,
            needs=builder.needs(name, ref),
            expects=builder.expect(name),
            insecure=model.spec.push_insecure,
            retries=model.spec.retries,
        )
    )
