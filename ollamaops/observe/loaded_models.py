"""What is in the memory of every host, several hosts at once: three requests to each.

Decides nothing; which of it is stale or not as declared is read off the values in plan/loaded.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ollamaops.http.cancel import CancelToken
from ollamaops.manifest.types import HostSpec, ModelSpec
from ollamaops.observe.connect import connect
from ollamaops.observe.for_each_host import glance_at_hosts
from ollamaops.observe.host import Glance
from ollamaops.ollama.client import OllamaClient
from ollamaops.plan.actions import UnreachedHost
from ollamaops.plan.observed import HostLoaded, under_own_names


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """What looking at all hosts takes; `jobs` is how many at once."""

    cancel: CancelToken = field(default_factory=CancelToken)
    jobs: int = 8
    open_client: Callable[[HostSpec, CancelToken], OllamaClient] = connect


def look_at_loaded(
    overview: Overview, hosts: Sequence[HostSpec], declared: Mapping[str, Sequence[ModelSpec]]
) -> tuple[tuple[HostLoaded, ...], tuple[UnreachedHost, ...]]:
    """What each host has in memory (`declared`: host → its models), and the hosts that did not answer. Cancelled."""
    return glance_at_hosts(
        hosts,
        lambda spec, glance: _host(spec, glance, declared[spec.name]),
        open_client=overview.open_client,
        cancel=overview.cancel,
        jobs=overview.jobs,
    )


def _host(spec: HostSpec, glance: Glance, models: Sequence[ModelSpec]) -> HostLoaded:
    declared = {model.name: model.resident for model in models if model.resident is not None}
    observed = glance.loaded(glance.models(), [name for name, resident in declared.items() if resident])
    digests = {name: model.digest for name, model in observed.models.items()}
    return HostLoaded(
        host=spec.name,
        loaded=under_own_names(observed.loaded or (), digests, declared),
        digests=digests,
        declared=declared,
    )
