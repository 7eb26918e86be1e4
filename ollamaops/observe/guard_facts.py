"""What only the guards ask for, and only when the policy has a rule about it: the clock, what is loaded, licenses.

Decides what is worth asking for a plan; what the answers mean is plan/guard.py's. The fact a reader would miss: what
a registry does not say is left out, because a rule refuses only what is known.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from ollamaops.errors import InvalidName, RemoteError
from ollamaops.lockfile.build import Unanswered
from ollamaops.manifest.types import Policy, Window
from ollamaops.names import ModelName
from ollamaops.observe.host import Glance
from ollamaops.observe.registries import MAX_KEPT_BYTES, RegistryCache
from ollamaops.ollama.client import OllamaClient
from ollamaops.plan.actions import HostPlan, PullModel
from ollamaops.plan.guard import disturbed
from ollamaops.plan.observed import Clocks, ObservedHost


def with_circumstances(
    glance: Glance,
    registries: RegistryCache,
    policy: Policy,
    plan: HostPlan,
    observed: ObservedHost,
    *,
    at: datetime,
    lifted: Collection[str] = (),
) -> ObservedHost:
    """The host with what the policy's rules need to know of it. RemoteError if it does not answer."""
    observed = replace(observed, clocks=clocks_of(policy.windows, at) if policy.windows else None)
    if policy.busy == "refuse" and "busy" not in lifted and disturbed(plan, observed):
        loaded = glance.patiently(lambda: names_loaded(glance.client))
        observed = replace(observed, in_use=loaded)
    if policy.licenses is not None and "licenses" not in lifted:
        pulls = [action for action in plan.actions if isinstance(action, PullModel)]
        texts = {pull.model: licenses_of(registries, pull.model, pull.insecure) for pull in pulls}
        observed = replace(observed, licenses=texts)
    return observed


def clocks_of(windows: Iterable[Window], now: datetime) -> Clocks:
    """`now` (aware) in the time zones of the windows. ZoneInfoNotFoundError (a KeyError) for one not known here."""
    names = {window.timezone for window in windows}
    return {name: now.astimezone(UTC if name.upper() == "UTC" else ZoneInfo(name)) for name in names}


def names_loaded(client: OllamaClient) -> frozenset[ModelName]:
    """Every model that `/api/ps` lists right now."""
    names = set()
    for loaded in client.ps():
        with suppress(InvalidName):
            names.add(ModelName.parse(loaded.name))
    return frozenset(names)


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
