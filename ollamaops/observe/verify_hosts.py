"""`ollamaops test`: every host's models held to what the manifest expects of them. Changes nothing.

Hosts are worked on at once, the models of one host one after the other, because they share its memory. The fact a
reader would miss: a host that goes away half-way keeps the verdicts it has given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from ollamaops.errors import Cancelled, OllamaopsError
from ollamaops.http.cancel import CancelToken
from ollamaops.manifest.types import HostSpec, ModelSpec
from ollamaops.names import ModelName
from ollamaops.observe.connect import connect
from ollamaops.observe.host import Glance
from ollamaops.observe.verify import examine
from ollamaops.ollama.client import OllamaClient
from ollamaops.plan.actions import UnreachedHost
from ollamaops.plan.expectations import Expectation, Failure, Verdict, read_expectations
from ollamaops.plan.observed import ObservedHost
from ollamaops.plan.results import HostVerdicts

OnModel = Callable[[str, ModelName], None]


def _ignore(host: str, model: ModelName) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trials:
    """What testing takes, for all hosts. `on_model` is told each model before it is asked, from any thread."""

    cancel: CancelToken = field(default_factory=CancelToken)
    jobs: int = 8
    open_client: Callable[[HostSpec, CancelToken], OllamaClient] = connect
    on_model: OnModel = _ignore


def try_hosts(
    trials: Trials, hosts: Sequence[HostSpec], wanted: Mapping[str, Sequence[ModelSpec]]
) -> tuple[HostVerdicts, ...]:
    """Each host's verdicts, in the order of `hosts`. `wanted`: host → the models whose expectations are tested."""
    with ThreadPoolExecutor(max_workers=max(1, min(trials.jobs, len(hosts)))) as pool:
        return tuple(pool.map(lambda host: _test_host(trials, host, wanted[host.name]), hosts))


def _test_host(trials: Trials, spec: HostSpec, models: Iterable[ModelSpec]) -> HostVerdicts:
    verdicts: list[Verdict] = []
    try:
        with trials.open_client(spec, trials.cancel) as client:
            glance = Glance(spec=spec, client=client, cancel=trials.cancel)
            observed = glance.models()
            for model in models:
                trials.on_model(spec.name, model.name)
                verdicts.append(_test_model(glance, observed, model.name, read_expectations(model.expect)))
    except Cancelled:
        raise
    except OllamaopsError as error:
        unreached = UnreachedHost(host=spec.name, error=str(error), hint=error.hint)
        return HostVerdicts(host=spec.name, verdicts=tuple(verdicts), unreached=unreached)
    return HostVerdicts(host=spec.name, verdicts=tuple(verdicts))


def _test_model(
    glance: Glance, observed: ObservedHost, name: ModelName, expectations: Sequence[Expectation]
) -> Verdict:
    there = observed.models.get(name)
    if there is None:
        missing = Failure("answer", "no such model on the host", "ollamaops apply makes it")
        return Verdict(model=name, expectations=len(expectations), failures=(missing,))
    return examine(glance, there.name, expectations)
