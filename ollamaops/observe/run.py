"""What one host's cycle starts from: the case (picklable values) and its surroundings (shared by the whole run).

Decides nothing. The fact a reader would miss: a case holds the declaration as the manifest states it; only
`desired_of` fills in the files' digests and works out the order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime

from ollamaops.errors import InvalidValue
from ollamaops.events import Sink, discard
from ollamaops.files.location import Location, Weights
from ollamaops.http.cancel import CancelToken
from ollamaops.manifest.types import AbsentSpec, HostSpec, ModelSpec, Policy, StatePlace
from ollamaops.names import ModelName, NamePattern
from ollamaops.observe.connect import connect
from ollamaops.observe.registries import RegistryCache
from ollamaops.observe.remote_weights import RemoteWeightsStore
from ollamaops.ollama.client import OllamaClient
from ollamaops.plan.desired import DesiredHost, build_desired
from ollamaops.state.ledger import Ledger
from ollamaops.state.records import LedgerStore
from ollamaops.units import parse_size, utc_now


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to run, beyond what the manifest says. Picklable. `jobs` is how many hosts are worked on at once.

    `prune_only` plans nothing but the deletion of what is undeclared; `wait_s` is how long a lock that another run
    has is waited for; `release` gives nothing for what was rolled back.
    """

    targets: tuple[NamePattern, ...] = ()
    force: frozenset[str] = frozenset()
    verify_weights: bool = False
    ask_registry: bool = True
    costs: bool = True
    guarded: bool = True
    jobs: int = 8
    run_id: str = "run"
    prune_only: bool = False
    wait_s: float = 0.0
    release: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCase:
    """Everything that one host's cycle starts from, as picklable values."""

    spec: HostSpec
    models: tuple[ModelSpec, ...]
    absent: tuple[AbsentSpec, ...] = ()
    policy: Policy = Policy()
    pushes: frozenset[ModelName] = frozenset()
    files: Mapping[Location, Weights] = field(default_factory=dict)
    options: Options = Options()
    state: StatePlace = "local"


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the cycles of a run share: memory, registries, weights elsewhere, listeners, the wish to stop, a clock.

    `held` are the stores on hosts, by the host's name, that this run may write to: those whose lock it has.
    """

    ledger: Ledger
    registries: RegistryCache
    remote_weights: RemoteWeightsStore = field(default_factory=RemoteWeightsStore)
    emit: Sink = discard
    cancel: CancelToken = field(default_factory=CancelToken)
    now: Callable[[], str] = utc_now
    open_client: Callable[[HostSpec, CancelToken], OllamaClient] = connect
    held: Mapping[str, LedgerStore] = field(default_factory=dict)

    def moment(self) -> datetime:
        """What the clock says, as a value with its offset."""
        return datetime.fromisoformat(self.now())


def desired_of(case: HostCase) -> DesiredHost:
    """The DesiredHost of a case."""
    return build_desired(
        case.spec.name,
        case.models,
        absent=case.absent,
        policy=case.policy,
        files=case.files,
        targets=case.options.targets,
        pushes=case.pushes,
        vram_bytes=_size_in_label(case.spec, "vram"),
        disk_bytes=_disk_bytes(case.spec),
    )


def _disk_bytes(spec: HostSpec) -> int | None:
    return _size_in_label(spec, "disk") if spec.disk_bytes is None else spec.disk_bytes


def _size_in_label(spec: HostSpec, label: str) -> int | None:
    """The label as a size; None without it, or when it says something else."""
    with suppress(KeyError, InvalidValue):
        return parse_size(spec.labels[label])
    return None
