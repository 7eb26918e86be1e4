"""What one host's cycle starts from: the case (picklable values) and its surroundings (shared by the whole run).

Decides nothing. The fact a reader would miss: a case holds the declaration as the manifest states it; only
`desired_of` fills in the files' digests and works out the order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from ollamaops.apply.connect import connect
from ollamaops.apply.upstream import Upstreams
from ollamaops.events import Sink, discard
from ollamaops.manifest.types import AbsentSpec, HostSpec, ModelSpec, Policy
from ollamaops.names import ModelName, NamePattern
from ollamaops.ollama.cancel import CancelToken
from ollamaops.ollama.client import OllamaClient
from ollamaops.plan.desired import DesiredHost, build_desired
from ollamaops.plan.observed import FileInfo
from ollamaops.state.ledger import Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to run, beyond what the manifest says. Picklable. `jobs` is how many hosts are worked on at once."""

    targets: tuple[NamePattern, ...] = ()
    force: frozenset[str] = frozenset()
    verify_weights: bool = False
    ask_registry: bool = True
    costs: bool = True
    guarded: bool = True
    jobs: int = 8
    run_id: str = "run"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCase:
    """Everything that one host's cycle starts from, as picklable values."""

    spec: HostSpec
    models: tuple[ModelSpec, ...]
    absent: tuple[AbsentSpec, ...] = ()
    policy: Policy = Policy()
    pushes: frozenset[ModelName] = frozenset()
    files: Mapping[Path, FileInfo] = field(default_factory=dict)
    options: Options = Options()


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the cycles of a run share: memory, registries, listeners, the wish to stop, and a clock."""

    ledger: Ledger
    upstreams: Upstreams
    emit: Sink = discard
    cancel: CancelToken = field(default_factory=CancelToken)
    now: Callable[[], str] = lambda: (
        datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )
    open_client: Callable[[HostSpec], OllamaClient] = connect


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
    )
