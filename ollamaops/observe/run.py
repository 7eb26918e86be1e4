"""One run: what is wanted on each host (`HostTask`), and what all hosts of the run share (`Run`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from typing import TypeVar

from msgspec import Struct, field

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
from ollamaops.plan.hidden import Hidden
from ollamaops.plan.one_server import Rows
from ollamaops.state.ledger import Ledger
from ollamaops.state.records import LedgerStore
from ollamaops.units import parse_size, utc_now

Item = TypeVar("Item")
Found = TypeVar("Found")


class RunOptions(Struct, frozen=True, kw_only=True):
    """How to run, beyond what the manifest says. `jobs` is how many hosts are worked on at once.

    `force` are the safety rules that this run need not keep. `costs` finds out how many bytes a plan would move.
    `prune_only` plans nothing but the deletion of what is undeclared. `wait_s` is how long a lock that another run
    has is waited for. `release` also brings forward what was rolled back. `repair` also replaces broken files.
    `look_inside` is that of PlanOptions.
    """

    force: frozenset[str] = frozenset()
    verify_weights: bool = False
    ask_registry: bool = True
    costs: bool = True
    guarded: bool = True
    jobs: int = 8
    prune_only: bool = False
    wait_s: float = 0.0
    release: bool = False
    repair: bool = False
    look_inside: bool = False


class HostTask(Struct, frozen=True, kw_only=True):
    """What is wanted on one host, as picklable values. Without `models` the host is only asked what it has."""

    spec: HostSpec
    models: tuple[ModelSpec, ...] = ()
    absent: tuple[AbsentSpec, ...] = ()
    policy: Policy = Policy()
    pushes: frozenset[ModelName] = frozenset()
    targets: tuple[NamePattern, ...] = ()
    files: Mapping[Location, Weights] = field(default_factory=dict)
    state: StatePlace = "local"


class Run(Struct, frozen=True, kw_only=True):
    """What all hosts of a run share. `server_ledgers` are the ledgers on hosts, by the host's name, that this run may
    write to: those whose lock it has. `first_rows` is what each host listed when it was first looked at. `hidden`
    takes out of what is shown and written down what came from the environment.
    """

    ledger: Ledger
    registries: RegistryCache
    remote_weights: RemoteWeightsStore = field(default_factory=RemoteWeightsStore)
    options: RunOptions = RunOptions()
    run_id: str = ""
    emit: Sink = discard
    cancel: CancelToken = field(default_factory=CancelToken)
    now: Callable[[], str] = utc_now
    open_client: Callable[[HostSpec, CancelToken], OllamaClient] = connect
    server_ledgers: Mapping[str, LedgerStore] = field(default_factory=dict)
    first_rows: dict[str, Rows] = field(default_factory=dict)
    hidden: Hidden = Hidden({})

    def moment(self) -> datetime:
        """What the clock says, as a value with its offset."""
        return datetime.fromisoformat(self.now())

    def stamp(self, host: str = "", action_id: str = "") -> dict[str, str]:
        """What every event of the run carries: `Noted(**run.stamp("gpu-1"), …)`."""
        return {"run_id": self.run_id, "at": self.now(), "host": host, "action_id": action_id}


def desired_of(task: HostTask) -> DesiredHost:
    """The declaration with the files' digests filled in and the order worked out."""
    return build_desired(
        task.spec.name,
        task.models,
        absent=task.absent,
        policy=task.policy,
        files=task.files,
        targets=task.targets,
        pushes=task.pushes,
        vram_bytes=_size_in_label(task.spec, "vram"),
        disk_bytes=_size_in_label(task.spec, "disk")
        if task.spec.disk_bytes is None
        else task.spec.disk_bytes,
    )


def _size_in_label(spec: HostSpec, label: str) -> int | None:
    """The label as a size; None without it, or when it says something else."""
    with suppress(KeyError, InvalidValue):
        return parse_size(spec.labels[label])
    return None


def for_each(
    items: Iterable[Item], work: Callable[[Item], Found], *, jobs: int, threads: str = "host"
) -> tuple[Found, ...]:
    """`work` done for all items, up to `jobs` at once; results in their order. The first error is raised."""
    todo: Sequence[Item] = tuple(items)
    if len(todo) <= 1:
        return tuple(map(work, todo))
    with ThreadPoolExecutor(max_workers=max(1, min(jobs, len(todo))), thread_name_prefix=threads) as pool:
        return tuple(pool.map(work, todo))
