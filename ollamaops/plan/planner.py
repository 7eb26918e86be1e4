"""What has to be done to one host: desired and observed in, a HostPlan out.

Decides which actions, in which order, for which reasons; guard.py decides whether they may be done, executor.py does
them. The fact a reader would miss: a model whose tags digest is the one we remember for this very declaration is in
sync without being looked into, so a steady host costs no `show` at all; `questions` says who has to be looked into.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from ollamaops.manifest.types import Copy, Pull
from ollamaops.names import Digest, ModelName
from ollamaops.ollama.version import Features
from ollamaops.plan.actions import (
    Action,
    CopyModel,
    Cost,
    CreateModel,
    DeleteModel,
    Difference,
    Expectation,
    HostPlan,
    Kind,
    Note,
    PullModel,
    PushModel,
    UploadBlob,
    id_of,
)
from ollamaops.plan.desired import DesiredHost, DesiredModel
from ollamaops.plan.diff import compare_build
from ollamaops.plan.limits import unsupported
from ollamaops.plan.observed import Memory, ObservedHost, ObservedModel, Upstream


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """How to plan. `distrust` are models whose memory is not to be believed (just changed by this run);
    `made` those of them that this run built; `ask_registry` False takes the server's word for `latest`."""

    verify_weights: bool = False
    ask_registry: bool = True
    distrust: frozenset[ModelName] = frozenset()
    made: frozenset[ModelName] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """What has to be found out before a plan can be made: models to `show`, registry names to ask for."""

    show: frozenset[ModelName] = frozenset()
    upstream: frozenset[ModelName] = frozenset()


@dataclass(slots=True)
class _Draft:
    """A HostPlan in the making. `changing` maps a model to the action that changes it in this plan."""

    desired: DesiredHost
    observed: ObservedHost
    options: PlanOptions
    features: Features
    actions: dict[str, Action] = field(default_factory=dict)
    changing: dict[ModelName, str] = field(default_factory=dict)
    replacing: set[ModelName] = field(default_factory=set)
    stuck: set[ModelName] = field(default_factory=set)
    unchanged: list[ModelName] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    @property
    def host(self) -> str:
        return self.desired.host

    def find(self, name: ModelName) -> ObservedModel | None:
        return self.observed.models.get(name)

    def expect(self, *names: ModelName | None) -> tuple[Expectation, ...]:
        """What is seen now of these models, as facts that an action relies on."""
        seen = ((name, self.find(name)) for name in names if name)
        return tuple(Expectation(name, model.digest if model else None) for name, model in seen)

    def needs(self, *names: ModelName | None) -> tuple[str, ...]:
        """The actions that change these models."""
        return tuple(self.changing[name] for name in names if name and name in self.changing)

    def add(self, action: Action) -> str:
        action_id = id_of(action)
        self.actions.setdefault(action_id, action)
        if not isinstance(action, UploadBlob | PushModel):
            self.changing[action.model] = action_id
            if self.find(action.model):
                self.replacing.add(action.model)
        return action_id

    def why(
        self, name: ModelName, kind: Kind, path: str = "", *, desired: str = "", observed: str = ""
    ) -> tuple[Difference, ...]:
        found = Difference(
            host=self.host, model=name, kind=kind, path=path, desired=desired, observed=observed
        )
        return (found,)

    def give_up(self, name: ModelName, message: str, hint: str | None = None) -> None:
        """Nothing can be planned for `name`, and nobody can say that it is in sync."""
        self.stuck.add(name)
        self.notes.append(Note(host=self.host, model=name, message=message, hint=hint, unresolved=True))


def questions(desired: DesiredHost, observed: ObservedHost, options: PlanOptions) -> Questions:
    """What `plan_host` needs to know beyond tags and memory."""
    show: set[ModelName] = set()
    upstream: set[ModelName] = set()
    for model in desired.models:
        own = observed.models.get(model.name)
        if model.recipe is not None and not is_trusted(model, observed, options):
            names = (model.name, model.recipe.base, model.spec.moved_from)
            show.update(name for name in names if name and name in observed.models)
        if isinstance(model.spec.source, Pull) and _asks_registry(model, own, observed):
            upstream.add(model.spec.source.ref)
        push = model.spec.push
        if push and own and model.name in desired.pushes and _push_is_open(model, own, observed):
            upstream.add(push)
    return Questions(
        show=frozenset(show), upstream=frozenset(upstream) if options.ask_registry else frozenset()
    )


def is_trusted(model: DesiredModel, observed: ObservedHost, options: PlanOptions) -> bool:
    """Whether what we remember settles that `model` is in sync, without a look inside."""
    own, memory = observed.models.get(model.name), observed.memory.get(model.name)
    if own is None or memory is None or model.name in options.distrust:
        return False
    if memory.digest != own.digest or memory.fingerprint != model.fingerprint:
        return False
    if options.verify_weights and not memory.verified:
        return False
    base = observed.models.get(model.recipe.base) if model.recipe and model.recipe.base else None
    return base is None or memory.base_digest == base.digest


def plan_host(desired: DesiredHost, observed: ObservedHost, options: PlanOptions = PlanOptions()) -> HostPlan:
    """Everything this host needs, deletions last."""
    draft = _Draft(desired, observed, options, observed.features)
    for model in desired.models:
        if not model.implicit and not _is_ignored(draft, model.name):
            _plan_model(draft, model)
    _plan_pushes(draft)
    _plan_moves(draft)
    _plan_absent(draft)
    unmanaged = _plan_prune(draft)
    return HostPlan(
        host=desired.host,
        actions=tuple(draft.actions.values()),
        unchanged=tuple(draft.unchanged),
        unmanaged=unmanaged,
        notes=tuple(draft.notes),
        server_version=observed.version,
    )


def _is_ignored(draft: _Draft, name: ModelName) -> bool:
    return any(pattern.matches(name) for pattern in draft.desired.policy.ignore)


def _plan_model(draft: _Draft, model: DesiredModel) -> None:
    match model.spec.source:
        case Pull() as pull if draft.features.suffix_routing and pull.ref.source_suffix == "local":
            draft.give_up(
                model.name,
                f"cannot be pulled: servers from 0.18.0 on read '{pull.ref}' as '{pull.ref.pull_name}'",
                "use another tag than local",
            )
        case Pull() as pull if pull.ref != model.name:
            _plan_mirror(draft, model, pull)
        case Pull() as pull:
            _plan_pull(draft, model, pull)
        case Copy(source=source):
            _plan_copy(draft, model, source)
        case _:
            _plan_build(draft, model)


# pulls


def _plan_pull(draft: _Draft, model: DesiredModel, pull: Pull) -> None:
    name, own = model.name, draft.find(model.name)
    if own is None and _plan_rename(draft, model):
        return
    because = _pull_reasons(draft, model, own)
    if because:
        draft.add(_pull_action(draft, model, pull, because))
    elif name not in draft.stuck:
        draft.unchanged.append(name)


def _pull_reasons(draft: _Draft, model: DesiredModel, own: ObservedModel | None) -> tuple[Difference, ...]:
    """Why `model` must be pulled; empty when it need not be, or when that cannot be told (then it is stuck)."""
    name, update, pin = model.name, model.spec.update, model.spec.digest
    upstream = _upstream(draft, model)
    if own is None and update == "never":
        draft.give_up(
            name, "not there, and update: never forbids pulling it", "pull it by hand, or set update: missing"
        )
        return ()
    if pin is not None and update != "never":
        return _pin_reasons(draft, model, own, pin, upstream)
    if own is None:
        return draft.why(name, "missing")
    if update != "latest":
        return ()
    if _is_current(model, own, draft.observed.memory.get(name), upstream):
        return ()
    if not draft.options.ask_registry:
        return () if name in draft.options.distrust else draft.why(name, "unknown", desired="latest")
    if upstream is None or upstream.error:
        error = upstream.error if upstream else "the registry was not asked"
        hint = "use --no-registry to let the servers ask it, or update: missing"
        draft.give_up(name, f"whether it is the latest is not known: {error}", hint)
        return ()
    return draft.why(name, "content", desired=upstream.registry_digest, observed=own.digest)


def _pin_reasons(
    draft: _Draft, model: DesiredModel, own: ObservedModel | None, pin: Digest, upstream: Upstream | None
) -> tuple[Difference, ...]:
    """Compare with the pin, and never pull what is known to be something else."""
    known = upstream if upstream and not upstream.error else None
    if own is not None and _meets_pin(model, own, draft.observed.memory.get(model.name), pin, known):
        return ()
    if known is not None and known.registry_digest != pin.hex:
        draft.give_up(
            model.name,
            f"pinned to {pin.short}, but the registry now has {known.registry_digest[:12]}",
            "update digest: (or the lock) after a look at what changed, or push the pinned content again",
        )
        return ()
    if own is None:
        return draft.why(model.name, "missing")
    return draft.why(model.name, "content", desired=pin.hex, observed=own.digest)


def _meets_pin(
    model: DesiredModel, own: ObservedModel, memory: Memory | None, pin: Digest, known: Upstream | None
) -> bool:
    """Whether `own` is the pinned content: by digest, by memory, or as an older server writes it."""
    if own.digest == pin.hex or (_remembers(model, own, memory) and memory is not None and memory.verified):
        return True
    return known is not None and known.registry_digest == pin.hex and own.digest in known.digests


def _asks_registry(model: DesiredModel, own: ObservedModel | None, observed: ObservedHost) -> bool:
    """Whether the registry has to be asked to judge `model`."""
    update, pin = model.spec.update, model.spec.digest
    if update == "never":
        return False
    if pin is not None:
        return own is None or not _meets_pin(model, own, observed.memory.get(model.name), pin, None)
    return update == "latest" and own is not None


def _remembers(model: DesiredModel, own: ObservedModel, memory: Memory | None) -> bool:
    return memory is not None and memory.digest == own.digest and memory.fingerprint == model.fingerprint


def _upstream(draft: _Draft, model: DesiredModel) -> Upstream | None:
    source = model.spec.source
    return draft.observed.upstream.get(source.ref) if isinstance(source, Pull) else None


def _is_current(
    model: DesiredModel, own: ObservedModel, memory: Memory | None, upstream: Upstream | None
) -> bool:
    """Whether `own` is what the registry has: by its digest, or because pulling exactly that gave it."""
    if upstream is None or upstream.error:
        return False
    if own.digest in upstream.digests:
        return True
    remembered = memory if _remembers(model, own, memory) else None
    return remembered is not None and remembered.base_digest == upstream.registry_digest


def _pull_action(
    draft: _Draft, model: DesiredModel, pull: Pull, because: tuple[Difference, ...]
) -> PullModel:
    upstream = draft.observed.upstream.get(pull.ref)
    known = upstream if upstream and not upstream.error else None
    pin = model.spec.digest
    return PullModel(
        host=draft.host,
        model=pull.ref,
        because=because,
        expects=draft.expect(pull.ref),
        cost=_pull_cost(draft, known),
        insecure=pull.insecure,
        registry_digest=known.registry_digest if known else "",
        pin=tuple(sorted({pin.hex} | (known.digests if known else frozenset()))) if pin else (),
        fingerprint=model.fingerprint,
        retries=model.spec.retries,
    )


def _pull_cost(draft: _Draft, known: Upstream | None) -> Cost:
    if known is None:
        return Cost(download_bytes=None)
    present = sum(size for digest, size in known.layers if digest in draft.observed.present_blobs)
    return Cost(download_bytes=known.total_bytes - present, present_bytes=present)


def _plan_mirror(draft: _Draft, model: DesiredModel, pull: Pull) -> None:
    """Pulled under its own reference, then known by its name. The name is what counts for `missing`."""
    name = model.name
    own, source = draft.find(name), draft.find(pull.ref)
    if own is None and _plan_rename(draft, model):
        return
    reasons = _pull_reasons(draft, model, own)
    if name in draft.stuck:
        return
    has_source = source is not None and not _source_is_stale(draft, model, source)
    if reasons and not has_source:
        draft.add(_pull_action(draft, model, pull, reasons))
    moved = own is not None and source is not None and own.digest != source.digest
    if reasons or moved:
        because = reasons or draft.why(
            name, "alias", desired=str(pull.ref), observed=own.digest[:12] if own else ""
        )
        _add_copy(draft, model, pull.ref, because)
    else:
        draft.unchanged.append(name)


def _source_is_stale(draft: _Draft, model: DesiredModel, source: ObservedModel) -> bool:
    """Whether the tag of the pull's own reference is not good enough to copy from."""
    upstream, pin = _upstream(draft, model), model.spec.digest
    if pin is not None:
        return source.digest != pin.hex and not (upstream and source.digest in upstream.digests)
    return model.spec.update == "latest" and not (upstream and source.digest in upstream.digests)


# copies


def _plan_copy(draft: _Draft, model: DesiredModel, source: ModelName) -> None:
    own, origin = draft.find(model.name), draft.find(source)
    if not _ensure(draft, source, because_of=model.name):
        return
    if source in draft.replacing:
        _add_copy(draft, model, source, draft.why(model.name, "base", desired=str(source)))
    elif own is None:
        _add_copy(draft, model, source, draft.why(model.name, "missing"))
    elif origin is not None and own.digest != origin.digest:
        because = draft.why(
            model.name,
            "alias",
            "digest",
            desired=f"{source} ({origin.digest[:12]})",
            observed=own.digest[:12],
        )
        _add_copy(draft, model, source, because)
    else:
        draft.unchanged.append(model.name)


def _add_copy(draft: _Draft, model: DesiredModel, source: ModelName, because: tuple[Difference, ...]) -> None:
    draft.add(
        CopyModel(
            host=draft.host,
            model=model.name,
            source=source,
            because=because,
            needs=draft.needs(source),
            expects=draft.expect(model.name, source),
            fingerprint=model.fingerprint,
            retries=model.spec.retries,
        )
    )


def _ensure(draft: _Draft, source: ModelName, *, because_of: ModelName) -> bool:
    """Have `source` there before something is made from it; False when that cannot be."""
    if source in draft.stuck:
        draft.give_up(because_of, f"made from '{source}', of which nothing can be planned")
        return False
    if draft.find(source) is None and source not in draft.changing:
        base = next(model for model in draft.desired.models if model.name == source)
        _plan_model(draft, base)
        if source in draft.unchanged:
            draft.unchanged.remove(source)
        if source in draft.stuck:
            return _ensure(draft, source, because_of=because_of)
    return True


# builds


def _plan_build(draft: _Draft, model: DesiredModel) -> None:
    recipe = model.recipe
    assert recipe is not None
    own_name = model.name
    if draft.find(own_name) is None and model.spec.moved_from and draft.find(model.spec.moved_from):
        own_name = model.spec.moved_from
    if recipe.base and recipe.base in draft.stuck:
        _ensure(draft, recipe.base, because_of=model.name)
        return
    because = _build_reasons(draft, model, own_name)
    if because:
        _add_create(draft, model, because)
    elif own_name != model.name:
        _plan_rename(draft, model)
    elif model.name not in draft.stuck:
        draft.unchanged.append(model.name)


def _build_reasons(draft: _Draft, model: DesiredModel, own_name: ModelName) -> tuple[Difference, ...]:
    recipe = model.recipe
    assert recipe is not None
    if draft.find(own_name) is None:
        return draft.why(model.name, "missing")
    if recipe.base in draft.replacing:
        return draft.why(model.name, "base", desired=str(recipe.base))
    if own_name == model.name and is_trusted(model, draft.observed, draft.options):
        return ()
    shown = draft.observed.shown
    own = shown.get(own_name)
    if own is None:
        return draft.why(model.name, "missing", observed="listed, but it cannot be shown")
    comparison = compare_build(
        draft.host,
        model,
        own,
        shown.get(recipe.base) if recipe.base else None,
        draft.features,
        memory=draft.observed.memory.get(own_name),
        just_made=model.name in draft.options.made,
    )
    if comparison.weights == "unverified" and not comparison.differences:
        return _unverified_reasons(draft, model)
    return comparison.differences


def _unverified_reasons(draft: _Draft, model: DesiredModel) -> tuple[Difference, ...]:
    if draft.options.verify_weights:
        return draft.why(model.name, "weights", "weights", desired="verified", observed="not verified")
    draft.notes.append(
        Note(
            host=draft.host,
            model=model.name,
            message="weights not verified: the server stores them rewritten, and only the header could be compared",
            hint="--verify-weights builds the model again from the declared file",
        )
    )
    return ()


def _add_create(draft: _Draft, model: DesiredModel, because: tuple[Difference, ...]) -> None:
    recipe = model.recipe
    assert recipe is not None
    problem = unsupported(recipe, draft.features)
    if problem:
        draft.give_up(
            model.name, f"cannot be made by Ollama {draft.observed.version}: {problem[0]}", problem[1]
        )
        return
    if recipe.base and not _ensure(draft, recipe.base, because_of=model.name):
        return
    uploads = tuple(_add_upload(draft, model, index) for index in range(len(model.blobs)))
    draft.add(
        CreateModel(
            host=draft.host,
            model=model.name,
            recipe=recipe,
            because=because,
            needs=(*draft.needs(recipe.base), *dict.fromkeys(uploads)),
            expects=draft.expect(model.name, recipe.base),
            fingerprint=model.fingerprint,
            retries=model.spec.retries,
        )
    )


def _add_upload(draft: _Draft, model: DesiredModel, index: int) -> str:
    blob = model.blobs[index]
    present = blob.digest in draft.observed.present_blobs
    return draft.add(
        UploadBlob(
            host=draft.host,
            model=model.name,
            digest=blob.digest,
            path=blob.path,
            size_bytes=blob.size_bytes,
            cost=Cost(
                upload_bytes=0 if present else blob.size_bytes,
                present_bytes=blob.size_bytes if present else 0,
            ),
            retries=model.spec.retries,
        )
    )


# renames, pushes, deletions


def _plan_rename(draft: _Draft, model: DesiredModel) -> bool:
    """Copy from the name the model had before; False when there is no such model."""
    old = model.spec.moved_from
    if old is None or draft.find(old) is None:
        return False
    _add_copy(draft, model, old, draft.why(model.name, "moved", desired=str(model.name), observed=str(old)))
    return True


def _plan_moves(draft: _Draft) -> None:
    """Remove the old name of everything that was renamed, once the new one stands."""
    for model in draft.desired.models:
        old = model.spec.moved_from
        before, now = (draft.find(old) if old else None), draft.find(model.name)
        if old is None or before is None:
            continue
        if model.name in draft.changing or (now is not None and now.digest == before.digest):
            _add_delete(draft, old, draft.why(old, "moved", desired=str(model.name)), proven=True)
        else:
            draft.notes.append(
                Note(
                    host=draft.host,
                    model=model.name,
                    message=f"moved_from: both '{old}' and '{model.name}' are there, and they differ",
                    hint=f"delete one of them, or declare '{old}' with ensure: absent",
                )
            )


def _push_is_open(model: DesiredModel, own: ObservedModel, observed: ObservedHost) -> bool:
    push = model.spec.push
    return push is not None and observed.pushed.get((model.name, push)) != own.digest


def _plan_pushes(draft: _Draft) -> None:
    for model in draft.desired.models:
        ref, name = model.spec.push, model.name
        if ref is None or name not in draft.desired.pushes or name in draft.stuck:
            continue
        own, alias = draft.find(name), draft.find(ref)
        upstream = draft.observed.upstream.get(ref)
        settled = own is not None and (
            not _push_is_open(model, own, draft.observed)
            or (upstream is not None and own.digest in upstream.digests)
        )
        if settled and name not in draft.changing:
            continue
        if ref != name and (
            name in draft.changing or alias is None or own is None or alias.digest != own.digest
        ):
            alias_model = replace(model, spec=replace(model.spec, name=ref), fingerprint="")
            _add_copy(draft, alias_model, name, draft.why(ref, "unpushed", desired=str(name)))
        draft.add(
            PushModel(
                host=draft.host,
                model=ref,
                source=name,
                because=draft.why(ref, "unpushed", desired=str(name)),
                needs=draft.needs(*dict.fromkeys((name, ref))),
                expects=draft.expect(name),
                insecure=model.spec.push_insecure,
                retries=model.spec.retries,
            )
        )


def _plan_absent(draft: _Draft) -> None:
    claimed = draft.desired.claimed
    for entry in draft.desired.absent:
        for name in draft.observed.models:
            if entry.pattern.matches(name) and name not in claimed and not _is_ignored(draft, name):
                _add_delete(draft, name, draft.why(name, "unwanted"), proven=False)


def _plan_prune(draft: _Draft) -> tuple[ModelName, ...]:
    """Delete what is undeclared and in the scope of prune; returns what is undeclared and stays."""
    if not draft.desired.complete:
        return ()
    claimed = draft.desired.claimed
    unmanaged = []
    for name, model in draft.observed.models.items():
        if name in claimed or name in draft.changing or _is_ignored(draft, name):
            continue
        if _is_prunable(draft, name) and not model.is_cloud:
            _add_delete(draft, name, draft.why(name, "undeclared"), proven=True)
        else:
            unmanaged.append(name)
    return tuple(unmanaged)


def _is_prunable(draft: _Draft, name: ModelName) -> bool:
    prune = draft.desired.policy.prune
    if prune is False:
        return False
    if prune == "owned":
        memory = draft.observed.memory.get(name)
        return memory is not None and memory.is_ours
    return any(pattern.matches(name) for pattern in prune)


def _add_delete(draft: _Draft, name: ModelName, because: tuple[Difference, ...], *, proven: bool) -> None:
    """Delete `name` last; `proven` deletions also need everything else on the host to have worked."""
    if draft.features.suffix_routing and name.source_suffix == "local":
        draft.give_up(
            name,
            f"cannot be deleted: servers from 0.18.0 on would delete '{name.pull_name}' instead",
            "remove its file below manifests/ on the server by hand",
        )
        return
    needs: Iterable[str] = (
        (action_id for action_id, action in draft.actions.items() if not isinstance(action, DeleteModel))
        if proven
        else ()
    )
    draft.add(
        DeleteModel(
            host=draft.host,
            model=name,
            because=because,
            needs=tuple(needs),
            expects=draft.expect(name),
        )
    )
