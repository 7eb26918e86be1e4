"""What one host has, as far as it matters: ask as little as settles the question.

Version and tags come first; plan/lookups.py then says which models to look into and which registries to ask. A host
that cannot be reached is an error, never an empty host.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from zoneinfo import ZoneInfo

from msgspec.structs import replace

from ollamaops.errors import AnswerError, ProtocolError, RemoteError, StateError
from ollamaops.lockfile.build import Unanswered
from ollamaops.manifest.types import Policy, Pull, Window
from ollamaops.names import Digest, ModelName
from ollamaops.observe.coming_template import carried_template, coming_template
from ollamaops.observe.memory import load_layers, load_memory, load_pushes, remember_layers
from ollamaops.observe.one_server import signs_of_several
from ollamaops.observe.registries import MAX_KEPT_BYTES, RegistryCache
from ollamaops.observe.run import HostTask, Run, for_each
from ollamaops.observe.session import HostSession, ask_hosts
from ollamaops.ollama.contents import Contents, Unreadable
from ollamaops.ollama.endpoints import has_endpoint
from ollamaops.ollama.listing import Listing
from ollamaops.plan.actions import HostPlan, PullModel, UnreachedHost, UploadBlob
from ollamaops.plan.desired import DesiredHost
from ollamaops.plan.flaws import layers_to_ask
from ollamaops.plan.guard import changes_of, disturbed
from ollamaops.plan.importing import names_in_doubt
from ollamaops.plan.lookups import Lookups, PlanOptions, lookups
from ollamaops.plan.observed import Clocks, HostLoaded, ObservedHost, RegistryAnswer, under_own_names
from ollamaops.plan.one_server import RULE
from ollamaops.plan.residency import in_use, is_managed, kept_loaded, managed_of
from ollamaops.plan.templates import template_digest
from ollamaops.plan.unclear import endpoints_of


def observe(host: HostSession, desired: DesiredHost, options: PlanOptions) -> ObservedHost:
    """What the host has, as far as it matters for `desired`. RemoteError if it does not answer; Cancelled."""
    observed = replace(host.models(), memory=load_memory(host), pushed=load_pushes(host))
    if any(model.name in observed.memory and model.name not in observed.models for model in desired.models):
        # a list that is read while a manifest is rewritten misses that model (all servers up to 0.33)
        observed = replace(observed, models=host.models().models)
    if is_managed(desired):
        observed = host.with_loaded(observed, managed_of(desired))
    observed = replace(observed, layers=load_layers(host, observed.memory.values()))
    wanted = lookups(desired, observed, options)
    observed = _look_into(host, observed, wanted)
    return replace(
        _look_for_weights(host, desired, observed),
        upstream={
            **host.run.registries.recall(dict(_references(desired))),
            **_ask(host.run.registries, desired, wanted.upstream),
        },
    )


def _look_into(host: HostSession, observed: ObservedHost, wanted: Lookups) -> ObservedHost:
    """The host with what is in these models. Their layers are kept, because they never change for one digest."""
    found = host.look_into(observed, wanted.show | wanted.open)
    layers = {what.digest: what.weights_layers for what in found.values() if isinstance(what, Contents)}
    shown = (
        (name, what) for name, what in found.items() if isinstance(what, Contents) and name in wanted.show
    )
    broken = ((name, what) for name, what in found.items() if isinstance(what, Unreadable))
    seen = replace(
        observed,
        shown=Listing(shown, folds_case=observed.features.folds_case),
        unreadable=Listing(broken, folds_case=observed.features.folds_case),
        layers={**observed.layers, **layers},
    )
    if seen.layers != observed.layers:
        remember_layers(host, seen)
    return seen


def _look_for_weights(host: HostSession, desired: DesiredHost, observed: ObservedHost) -> ObservedHost:
    """The host with the weights layers of the declaration that are gone: one request for each distinct one."""

    def is_gone(layer: Digest) -> bool:
        return not host.with_retries(lambda: host.client.has_blob(layer))

    layers = sorted(layers_to_ask(desired, observed))
    try:
        answers = for_each(layers, is_gone, jobs=host.spec.parallel, threads="blobs")
        gone = frozenset(layer for layer, answer in zip(layers, answers, strict=True) if answer)
        if gone and not host.with_retries(lambda: _keeps_blobs(host)):
            return replace(observed, blobs_unseen="nothing there answers for blobs")
    except (AnswerError, ProtocolError) as error:
        return replace(observed, blobs_unseen=str(error))
    return replace(observed, gone=gone)


def _keeps_blobs(host: HostSession) -> bool:
    """Whether a 404 for a blob means that it is not there: every Ollama refuses a malformed digest, while a proxy or
    another program that knows no blobs has nothing at that address either."""
    try:
        host.client.transport.request("HEAD", "/api/blobs/sha256:none", what="look whether blobs are served")
    except AnswerError as error:
        return error.status == 400
    return False


def observe_costs(
    host: HostSession, desired: DesiredHost, observed: ObservedHost, plan: HostPlan
) -> ObservedHost:
    """Also find out what the plan would have to move: sizes from the registry, blobs that are there already."""
    pulled = {action.model for action in plan.actions if isinstance(action, PullModel)}
    missing = pulled - observed.upstream.keys()
    upstream = {**observed.upstream, **_ask(host.run.registries, desired, missing)}
    blobs = {action.digest for action in plan.actions if isinstance(action, UploadBlob)}
    if observed.models:  # an empty host has no layers to share
        blobs |= {digest for name in pulled if name in upstream for digest, _ in upstream[name].layers}
    present = {blob for blob in sorted(blobs) if _has_blob(host, blob)}
    observed = replace(observed, upstream=upstream, present_blobs=frozenset(present))
    return _with_templates(host, desired, observed, pulled)


def _with_templates(
    host: HostSession, desired: DesiredHost, observed: ObservedHost, pulled: Collection[ModelName]
) -> ObservedHost:
    """Also find out which templates come with what is pulled: those in the weights, where an entry made from them
    declares one, and whether the one that makes the prompts of what is there changes."""
    registries = host.run.registries
    carried: dict[ModelName, str] = {}
    changes: dict[ModelName, tuple[Digest, Digest]] = {}
    is_declared = any(desired.setting_of(model, "template") for model in desired.models)
    insecure = dict(_references(desired))
    shown = host.show(observed, [name for name in pulled if name in observed.models])
    for name in sorted(pulled):
        answer = registries.manifest(name, insecure.get(name, False))
        if isinstance(answer, Unanswered):
            continue
        ask = (registries, name, insecure.get(name, False), answer.document)
        if is_declared and observed.features.jinja_in_template:
            carried[name] = carried_template(*ask) or ""
        before = template_digest(shown[name]) if name in shown else None
        coming = coming_template(*ask, observed.features) if before else None
        if before and coming is not None and before != Digest.of(coming.encode()):
            changes[name] = (before, Digest.of(coming.encode()))
    return replace(observed, carried_templates=carried, template_changes=changes)


def observe_endpoints(host: HostSession, observed: ObservedHost, plan: HostPlan) -> ObservedHost:
    """Also find out whether the server has what the plan needs, once in a session. Without an answer it has it: the
    action itself will tell."""
    for endpoint in sorted(endpoints_of(plan, observed) - host.endpoints.keys()):
        host.endpoints[endpoint] = True
        with suppress(RemoteError):
            host.endpoints[endpoint] = host.with_retries(partial(has_endpoint, host.client, endpoint))
    return replace(
        observed, lacks=frozenset(each for each, is_there in host.endpoints.items() if not is_there)
    )


def observe_digests(host: HostSession) -> Mapping[ModelName, str]:
    """The tags digest of every model right now. RemoteError if the host does not answer."""
    return host.tags().map(lambda seen: seen.digest)


def _ask(
    registries: RegistryCache, desired: DesiredHost, names: Iterable[ModelName]
) -> dict[ModelName, RegistryAnswer]:
    wanted = set(names)
    return registries.ask({name: insecure for name, insecure in _references(desired) if name in wanted})


def _references(desired: DesiredHost) -> Iterable[tuple[ModelName, bool]]:
    """Every registry name of the declaration, with whether plain http is meant."""
    for model in desired.models:
        if isinstance(model.spec.source, Pull):
            yield model.spec.source.ref, model.spec.source.insecure
        if model.spec.push:
            yield model.spec.push, model.spec.push_insecure


def _has_blob(host: HostSession, digest: Digest) -> bool:
    """False also when the host does not say (a proxy may let no HEAD through): only the estimate of costs uses it."""
    with suppress(AnswerError, ProtocolError):
        return host.with_retries(lambda: host.client.has_blob(digest))
    return False


# for the safety rules, which ask only when the policy has such a rule


def observe_for_guards(
    host: HostSession, policy: Policy, plan: HostPlan, observed: ObservedHost, *, lifted: Collection[str] = ()
) -> ObservedHost:
    """The host with what the policy's rules need to know of it: the clock, what is loaded, licenses.

    What a registry does not say is left out: a rule refuses only what is known. RemoteError.
    """
    clocks = clocks_of(policy.windows, host.run.moment()) if policy.windows else None
    observed = replace(observed, clocks=clocks)
    if changes_of(plan) and RULE not in lifted:
        observed = replace(observed, several_servers=signs_of_several(host))
    if policy.busy == "refuse" and "busy" not in lifted and disturbed(plan, observed):
        observed = replace(observed, in_use=names_in_use(host, observed, disturbed(plan, observed)))
    if policy.licenses is not None and "licenses" not in lifted:
        pulls = [action for action in plan.actions if isinstance(action, PullModel)]
        texts = {pull.model: licenses_of(host.run.registries, pull.model, pull.insecure) for pull in pulls}
        observed = replace(observed, licenses=texts)
    return observed


def clocks_of(windows: Iterable[Window], now: datetime) -> Clocks:
    """`now` (aware) in the time zones of the windows. ZoneInfoNotFoundError (a KeyError) for one not known here."""
    names = {window.timezone for window in windows}
    return {name: now.astimezone(UTC if name.upper() == "UTC" else ZoneInfo(name)) for name in names}


def names_in_use(
    host: HostSession, observed: ObservedHost, names: Iterable[ModelName]
) -> frozenset[ModelName]:
    """Which of `names` may be in use right now. Models that share weights are listed under one name."""
    names, kept = tuple(names), kept_loaded(host.task.models)
    return in_use(names, kept, host.with_loaded(observed, [*names, *kept]))


def licenses_of(registries: RegistryCache, name: ModelName, insecure: bool) -> tuple[str, ...]:
    """The license texts that the registry has for `name`; none if it does not say."""
    answer = registries.manifest(name, insecure)
    if isinstance(answer, Unanswered):
        return ()
    texts = []
    for layer in answer.document.parts:
        if layer.kind == "license" and layer.size_bytes <= MAX_KEPT_BYTES:
            with suppress(RemoteError):
                texts.append(registries.blob(name, layer, insecure).decode("utf-8", "replace"))
    return tuple(texts)


# for `import`


def observe_all(host: HostSession) -> ObservedHost:
    """Version, tags and contents of every model, what we remember of them, and what registries have for the names
    that are still in doubt.

    A registry that does not answer and a ledger that cannot be read are not errors. RemoteError, Cancelled.
    """
    observed = host.models()
    observed = replace(observed, shown=host.show(observed, observed.models))
    with suppress(StateError):
        observed = replace(observed, memory=load_memory(host))
    if not host.run.options.ask_registry:
        return observed
    return replace(observed, upstream=host.run.registries.ask(dict.fromkeys(names_in_doubt(observed), False)))


# for `ps`


def observe_loaded(
    tasks: Sequence[HostTask], run: Run
) -> tuple[tuple[HostLoaded, ...], tuple[UnreachedHost, ...]]:
    """What each host has in memory, three requests to each, and the hosts that did not answer. Cancelled."""
    return ask_hosts(tasks, run, _loaded)


def _loaded(host: HostSession) -> HostLoaded:
    declared = {model.name: model.resident for model in host.task.models if model.resident is not None}
    observed = host.with_loaded(host.models(), [name for name, resident in declared.items() if resident])
    digests = {name: model.digest for name, model in observed.models.items()}
    return HostLoaded(
        host=host.name,
        loaded=under_own_names(observed.loaded or (), digests, declared),
        digests=digests,
        declared=declared,
    )
