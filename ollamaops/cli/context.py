"""The concrete parts that a command works with, built from the shared options: manifest, hosts, memory, listeners.

Everything that lives as long as the command (sandboxes, connections, the progress display) is opened and closed here.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ollamaops.cli.options import Shared, read_option
from ollamaops.cli.signals import cancel_on_signals
from ollamaops.errors import UsageError
from ollamaops.files.location import Location, Weights
from ollamaops.http.cancel import CancelToken
from ollamaops.manifest.disk import is_folder, is_there, reason_of
from ollamaops.manifest.hosts import models_on, parse_selector, select_hosts
from ollamaops.manifest.load import default_paths, load_manifest
from ollamaops.manifest.types import HostSpec, Manifest, Tls, WeightsFile
from ollamaops.manifest.weights import local_files
from ollamaops.names import NamePattern, new_id
from ollamaops.observe.remote_weights import RemoteWeightsStore
from ollamaops.observe.weights import digests_of, tell_reading
from ollamaops.report.progress import OnDemand
from ollamaops.report.words import wants_color
from ollamaops.state.ledger import Ledger
from ollamaops.units import parse_duration, parse_timeout, utc_now

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ollamaops.engine import HostCase, Surroundings
    from ollamaops.events import Event
    from ollamaops.lockfile.lock import Lock
    from ollamaops.observe.registries import RegistryCache
    from ollamaops.registry.client import RegistryClient
    from ollamaops.report.progress import ProgressKind, ProgressSink

LOCK_FILE = "ollamaops.lock"
REGISTRY_TIMEOUT_S = 10.0
# While modules are imported beside it, hashing would wait Python's 5 ms after every block.
SWITCH_S = 0.0002


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A command's world: what is wanted where, and everything needed to look and to act."""

    shared: Shared
    manifest: Manifest
    around: Surroundings
    find_cases: Callable[[], tuple[HostCase, ...]]
    is_reading: Callable[[], bool]

    @property
    def cases(self) -> tuple[HostCase, ...]:
        """What is wanted of each host. Waits for the digests of all weights; WeightsError, Cancelled."""
        return self.find_cases()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What is wanted where, and whom to ask; no host and no local weights have been looked at."""

    manifest: Manifest
    hosts: tuple[HostSpec, ...]
    registries: RegistryCache
    cancel: CancelToken


def load(shared: Shared, *, require_lock: bool = False) -> Manifest:
    """The manifest that -f, -e and the current folder name, held to its lock file if there is one."""
    if not (require_lock or shared.lock_file or is_there(lock_path(shared))):
        manifest = load_unlocked(shared, locked=False)
        if all(spec.update != "locked" for spec in manifest.models):
            return manifest
    from ollamaops.lockfile.build import with_lock
    from ollamaops.lockfile.lock import Lock

    lock = read_lock(shared)
    manifest = load_unlocked(shared, locked=require_lock or lock is not None)
    return with_lock(manifest, lock or Lock(), required=require_lock)


def read_lock(shared: Shared) -> Lock | None:
    """The lock that this run is held to, None if there is none. UsageError when --lock-file names a missing file."""
    from ollamaops.lockfile.file import load_lock

    lock = load_lock(lock_path(shared))
    if lock is None and shared.lock_file:
        raise UsageError(
            f"--lock-file: no such file: {shared.lock_file}",
            hint=f"write it with: ollamaops lock --lock-file {shared.lock_file}",
        )
    return lock


def load_unlocked(shared: Shared, *, locked: bool) -> Manifest:
    """The manifest alone; `locked` makes that the default of `update`."""
    return load_manifest(
        _paths(shared), environment=shared.environment, allow_outside=shared.allow_outside, locked=locked
    )


def _paths(shared: Shared) -> tuple[str | Path, ...]:
    return shared.files or default_paths(Path.cwd())


def lock_path(shared: Shared) -> Path:
    """The lock file: as given, else among the models of the pretend servers, else beside the first manifest."""
    if shared.lock_file:
        return Path(shared.lock_file)
    if shared.sandbox:
        return Path(shared.sandbox) / LOCK_FILE
    paths = _paths(shared)
    first = Path(paths[0]) if str(paths[0]) != "-" else Path()
    return (first if is_folder(first) else first.parent) / LOCK_FILE


def choose_hosts(shared: Shared, manifest: Manifest) -> tuple[HostSpec, ...]:
    """The hosts that --host and -l leave; UsageError if that is none, unless --allow-no-match."""
    hosts = select_hosts(manifest, shared.hosts, read_option("-l", shared.selector or "", parse_selector))
    if not hosts and not shared.allow_no_match:
        known = ", ".join(host.name for host in manifest.hosts)
        raise UsageError(
            "no host matches --host and -l", hint=f"known hosts: {known}; or use --allow-no-match"
        )
    if shared.timeout:
        timeout_s = read_option("--timeout", shared.timeout, parse_timeout)
        hosts = tuple(replace(host, timeout_s=timeout_s) for host in hosts)
    return hosts


def open_ledger(shared: Shared) -> Ledger:
    """The ledger in --state-dir, $OLLAMAOPS_STATE_DIR or the user's state folder. Opens no file yet."""
    folder = shared.state_dir or os.environ.get("OLLAMAOPS_STATE_DIR")
    if folder is None:
        from platformdirs import user_state_path

        folder = str(user_state_path("ollamaops"))
    return Ledger(Path(folder))


@contextmanager
def open_fleet(shared: Shared, manifest: Manifest) -> Iterator[Fleet]:
    """Everything for a command that asks registries: the chosen hosts, or sandboxes in their place."""
    with ExitStack() as stack:
        cancel = stack.enter_context(cancel_on_signals())
        yield _fleet(stack, shared, manifest, choose_hosts(shared, manifest), cancel)


def _fleet(
    stack: ExitStack, shared: Shared, manifest: Manifest, hosts: tuple[HostSpec, ...], cancel: CancelToken
) -> Fleet:
    from ollamaops.observe.registries import RegistryCache

    endpoints: dict[str, str] = {}
    if shared.sandbox:
        hosts = _in_sandboxes(stack, Path(shared.sandbox), hosts, endpoints)
    registries = RegistryCache(lambda: _open_registry(shared, endpoints), cancel)
    stack.callback(registries.close)
    return Fleet(manifest=manifest, hosts=hosts, registries=registries, cancel=cancel)


@contextmanager
def open_scene(
    shared: Shared,
    *,
    force: Sequence[str] = (),
    verify_weights: bool = False,
    costs: bool = True,
    guarded: bool = True,
    prune: str | None = None,
    require_lock: bool = False,
    prune_only: bool = False,
    wait: str | None = None,
    release: bool = False,
    manifest: Manifest | None = None,
) -> Iterator[Scene]:
    """Everything for a command that looks at hosts or changes them. `wait` is the text of --wait.

    Weights are read first, beside everything else: hashing is what takes longest before anything is sent.
    """
    wanted = _with_prune(manifest or load(shared, require_lock=require_lock), prune)
    with ExitStack() as stack:
        cancel = stack.enter_context(cancel_on_signals())
        hosts = choose_hosts(shared, wanted)
        ledger, run_id = open_ledger(shared), new_id()
        remote_weights = stack.enter_context(closing(RemoteWeightsStore()))
        files = local_files(spec for host in hosts for spec in models_on(host, wanted))
        weights = stack.enter_context(_reading(shared, files, ledger, remote_weights, cancel, run_id))
        fleet = _fleet(stack, shared, wanted, hosts, cancel)

        from ollamaops.engine import Options, Surroundings, build_cases

        options = Options(
            targets=targets_of(shared, wanted, hosts),
            force=_lifted(force),
            verify_weights=verify_weights,
            ask_registry=not shared.no_registry,
            costs=costs,
            guarded=guarded,
            jobs=shared.jobs or 8,
            run_id=run_id,
            prune_only=prune_only,
            wait_s=read_option("--wait", wait, parse_duration) if wait else 0.0,
            release=release,
        )
        yield Scene(
            shared=shared,
            manifest=wanted,
            around=Surroundings(
                ledger=ledger, registries=fleet.registries, remote_weights=remote_weights, cancel=cancel
            ),
            find_cases=cache(
                lambda: build_cases(wanted, fleet.hosts, weights.result() if weights else {}, options)
            ),
            is_reading=lambda: weights is not None and not weights.done(),
        )


def _lifted(force: Sequence[str]) -> frozenset[str]:
    """The safety rules that --force lifts; UsageError for a rule that there is not."""
    from ollamaops.plan.guard import lifted_by

    return frozenset(rule for name in force for rule in read_option("--force", name, lifted_by))


@contextmanager
def _reading(
    shared: Shared,
    files: Sequence[WeightsFile],
    ledger: Ledger,
    remote_weights: RemoteWeightsStore,
    cancel: CancelToken,
    run_id: str,
) -> Iterator[Future[dict[Location, Weights]] | None]:
    """The digests of the weights, which a thread of their own reads; None when there are none.

    Reading what takes long is shown on stderr. Leaving early stops it.
    """
    if not files:
        yield None
        return
    from concurrent.futures import ThreadPoolExecutor

    is_left = threading.Event()
    sys.setswitchinterval(SWITCH_S)

    def read() -> dict[Location, Weights]:
        with OnDemand(lambda: _progress(shared)) as sink:
            return digests_of(
                files,
                ledger,
                remote_weights=remote_weights,
                on_progress=tell_reading(sink, run_id=run_id, now=utc_now),
                cancel=lambda: cancel.is_set() or is_left.is_set(),
            )

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="weights") as pool:
        try:
            yield pool.submit(read)
        finally:
            is_left.set()


def _with_prune(manifest: Manifest, prune: str | None) -> Manifest:
    """--prune and --no-prune for one run. --prune alone means what the policy says, else what we made."""
    if prune is None:
        return manifest
    scope: Literal[False, "owned"] | tuple[NamePattern, ...]
    if prune == "":
        scope = manifest.policy.prune or "owned"
    elif prune == "none":
        scope = False
    elif prune == "owned":
        scope = "owned"
    else:
        scope = tuple(read_option("--prune", part, NamePattern.parse) for part in prune.split(",") if part)
    return replace(manifest, policy=replace(manifest.policy, prune=scope))


def targets_of(shared: Shared, manifest: Manifest, hosts: Sequence[HostSpec]) -> tuple[NamePattern, ...]:
    """What --target says; UsageError for one that matches nothing, unless --allow-no-match."""
    targets = tuple(read_option("--target", target, NamePattern.parse) for target in shared.targets)
    declared = {spec.name for host in hosts for spec in models_on(host, manifest)}
    absent = {str(entry.pattern) for entry in manifest.absent}
    for target in targets:
        if not any(target.matches(name) for name in declared) and str(target) not in absent:
            if shared.allow_no_match:
                continue
            raise UsageError(
                f"--target {target} matches no declared model on these hosts",
                hint="declared: " + ", ".join(sorted(str(name) for name in declared)),
            )
    return targets


def _in_sandboxes(
    stack: ExitStack, store: Path, hosts: Sequence[HostSpec], endpoints: dict[str, str]
) -> tuple[HostSpec, ...]:
    """The same hosts, each replaced by a pretend server with a store of its own."""
    try:
        from ollamaops.sandbox.server import Sandbox
    except ImportError as error:
        raise UsageError(
            f"--sandbox needs {error.name}, which is not installed", hint="pip install 'ollamaops[sandbox]'"
        ) from error
    replaced = []
    for host in hosts:
        folder = store / re.sub(r"[^A-Za-z0-9_.-]", "_", host.name)
        try:
            running = stack.enter_context(Sandbox(store=folder, registry=True))
        except OSError as error:
            raise UsageError(
                f"--sandbox: no pretend server can be run in {folder}: {reason_of(error)}",
                hint="name a folder that can be written: --sandbox=DIR",
            ) from error
        endpoints.setdefault("registry.ollama.ai", running.url)
        identity = f"sandbox:{folder.resolve()}"
        replaced.append(
            replace(host, url=running.url, auth=None, headers={}, tls=Tls(), proxy=None, identity=identity)
        )
    return tuple(replaced)


def _open_registry(shared: Shared, endpoints: dict[str, str]) -> RegistryClient:
    from ollamaops.registry.client import RegistryClient

    timeout_s = (
        read_option("--timeout", shared.timeout, parse_timeout) if shared.timeout else REGISTRY_TIMEOUT_S
    )
    return RegistryClient(endpoints=endpoints, timeout_s=timeout_s)


def holding(scene: Scene) -> AbstractContextManager[None]:
    """The locks of the scene's hosts; RefusedError says who has one. Waiting for one is told on stderr."""
    from ollamaops.apply.locks import holding_hosts
    from ollamaops.engine import Options
    from ollamaops.events import discard

    options = scene.cases[0].options if scene.cases else Options()
    around = replace(scene.around, emit=discard if scene.shared.quiet else _say)
    specs = [case.spec for case in scene.cases]
    return holding_hosts(specs, around.ledger.folder, around, run_id=options.run_id, wait_s=options.wait_s)


def _say(event: Event) -> None:
    from ollamaops.events import Noted

    if isinstance(event, Noted):
        sys.stderr.write(f"{event.host}: {event.message}\n")


@contextmanager
def listening(scene: Scene) -> Iterator[Surroundings]:
    """The scene's surroundings with a progress display on stderr that listens to them."""
    with _progress(scene.shared) as sink:
        yield replace(scene.around, emit=sink)


def _progress(shared: Shared) -> ProgressSink:
    from ollamaops.report.progress import progress_sink

    kind: ProgressKind = "none" if shared.quiet else shared.progress or "auto"
    color = wants_color(sys.stderr, os.environ, no_color=shared.no_color)
    return progress_sink(kind, sys.stderr, os.environ, color=color, as_json=shared.log_format == "json")
