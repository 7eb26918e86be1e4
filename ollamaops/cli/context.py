"""From the shared options to an open engine: manifest, lock file, hosts or sandboxes, state folder, progress."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from msgspec.structs import replace
from platformdirs import user_state_path

from ollamaops.cli.options import Shared, read_option
from ollamaops.cli.sandboxes import in_sandboxes, state_of
from ollamaops.cli.signals import cancel_on_signals
from ollamaops.cli.trust import limits_of
from ollamaops.engine import Engine, open_run
from ollamaops.errors import UsageError
from ollamaops.events import Event, Noted
from ollamaops.files.output import inside_its_folder
from ollamaops.lockfile.build import with_lock
from ollamaops.lockfile.file import load_lock
from ollamaops.lockfile.lock import Lock
from ollamaops.manifest.disk import is_folder, is_there
from ollamaops.manifest.hosts import models_on, parse_selector, select_hosts
from ollamaops.manifest.load import default_paths, load_manifest
from ollamaops.manifest.trust import Untrusted
from ollamaops.manifest.types import HostSpec, Manifest
from ollamaops.names import NamePattern
from ollamaops.observe.run import RunOptions
from ollamaops.plan.guard import lifted_by
from ollamaops.registry.client import RegistryClient
from ollamaops.report.progress import OnDemand, ProgressKind, ProgressSink, progress_sink
from ollamaops.report.words import wants_color
from ollamaops.state.ledger import Ledger
from ollamaops.units import parse_duration, parse_timeout

LOCK_FILE = "ollamaops.lock"
REGISTRY_TIMEOUT_S = 10.0


@contextmanager
def open_engine(
    shared: Shared,
    *,
    manifest: Manifest | None = None,
    prune: str | None = None,
    require_lock: bool = False,
    force: Sequence[str] = (),
    verify_weights: bool = False,
    wait: str | None = None,
    release: bool = False,
    repair: bool = False,
) -> Iterator[Engine]:
    """The engine for a command; what it opens, sandboxes and connections, is closed afterwards.

    `prune` and `wait` are the texts of --prune and --wait. Nothing is sent or read before the command asks for it.
    """
    wanted = _with_prune(manifest or load(shared, require_lock=require_lock), prune)
    with ExitStack() as stack:
        cancel = stack.enter_context(cancel_on_signals())
        chosen = choose_hosts(shared, wanted)
        endpoints: dict[str, str] = {}
        hosts = in_sandboxes(stack, Path(shared.sandbox), chosen, endpoints) if shared.sandbox else chosen
        options = RunOptions(
            force=frozenset(rule for name in force for rule in read_option("--force", name, lifted_by)),
            verify_weights=verify_weights,
            ask_registry=not shared.no_registry,
            jobs=shared.jobs or 8,
            wait_s=read_option("--wait", wait, parse_duration) if wait else 0.0,
            release=release,
            repair=repair,
        )
        timeout_s = (
            read_option("--timeout", shared.timeout, parse_timeout) if shared.timeout else REGISTRY_TIMEOUT_S
        )
        engine = open_run(
            wanted,
            open_ledger(shared),
            hosts=hosts,
            targets=targets_of(shared, wanted, chosen),
            environment=shared.environment or "",
            options=options,
            cancel=cancel,
            reading=lambda: OnDemand(lambda: progress(shared)),
            open_registry=lambda: RegistryClient(endpoints=endpoints, timeout_s=timeout_s),
        )
        yield stack.enter_context(engine)


def load(shared: Shared, *, require_lock: bool = False, asks_hosts: bool = True) -> Manifest:
    """The manifest that -f, -e and the current folder name, with its lock file if there is one."""
    limits = limits_of(shared, asks_hosts=asks_hosts)
    if not (require_lock or shared.lock_file or is_there(lock_path(shared))):
        manifest = load_unlocked(shared, limits, locked=False)
        if all(spec.update != "locked" for spec in manifest.models):
            return manifest
    lock = read_lock(shared)
    manifest = load_unlocked(shared, limits, locked=require_lock or lock is not None)
    return with_lock(manifest, lock or Lock(), required=require_lock)


def read_lock(shared: Shared) -> Lock | None:
    """The lock of this run, None if there is none. UsageError when --lock-file names a missing file."""
    lock = load_lock(lock_path(shared))
    if lock is None and shared.lock_file:
        raise UsageError(
            f"--lock-file: no such file: {shared.lock_file}",
            hint=f"write it with: ollamaops lock --lock-file {shared.lock_file}",
        )
    return lock


def load_unlocked(shared: Shared, limits: Untrusted | None, *, locked: bool) -> Manifest:
    """The manifest alone, within its limits; `locked` makes that the default of `update`."""
    return load_manifest(
        _paths(shared),
        environment=shared.environment,
        allow_outside=shared.allow_outside,
        locked=locked,
        public=shared.allow_env,
        untrusted=limits,
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
    """The ledger in --state-dir, beside the pretend servers, in $OLLAMAOPS_STATE_DIR or the user's state folder.

    Opens no file yet. UsageError for a relative --state-dir whose links lead out of the current folder.
    """
    if shared.state_dir:
        folder = Path(shared.state_dir)
        return Ledger(folder if folder.is_absolute() else inside_its_folder(folder))
    if shared.sandbox:
        return Ledger(state_of(shared.sandbox))
    return Ledger(Path(os.environ.get("OLLAMAOPS_STATE_DIR") or user_state_path("ollamaops")))


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


def progress(shared: Shared) -> ProgressSink:
    """The progress display on stderr that the options ask for."""
    kind: ProgressKind = "none" if shared.quiet else shared.progress or "auto"
    color = wants_color(sys.stderr, os.environ, no_color=shared.no_color)
    return progress_sink(kind, sys.stderr, os.environ, color=color, as_json=shared.log_format == "json")


def print_note(event: Event) -> None:
    """A sink for notes alone, on stderr."""
    if isinstance(event, Noted):
        sys.stderr.write(f"{event.host}: {event.message}\n")
