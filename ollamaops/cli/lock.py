"""`ollamaops lock`: record, or check, exactly what each pulled model is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click

from ollamaops import exits
from ollamaops.cli.context import load_unlocked, lock_path, open_engine, read_lock
from ollamaops.cli.options import Shared, command_with_shared, read_option
from ollamaops.cli.printing import color_and_width, emit
from ollamaops.cli.trust import limits_of
from ollamaops.engine import Engine
from ollamaops.errors import UsageError
from ollamaops.lockfile.build import Answer, Reference, locked_references
from ollamaops.lockfile.changes import (
    Finding,
    LockUpdate,
    check_lock,
    lacking_templates,
    to_ask,
    update_lock,
    with_templates,
)
from ollamaops.lockfile.file import load_lock, save_lock
from ollamaops.lockfile.lock import Lock
from ollamaops.names import ModelName, NamePattern
from ollamaops.observe.lock_facts import ask_registries, inspect_layers, see_templates
from ollamaops.report.lock_text import (
    lock_check_to_json,
    lock_update_to_json,
    render_lock_check,
    render_lock_update,
)


@command_with_shared(
    name="lock",
    epilog="\b\nExamples:\n  ollamaops lock                        add what is new, remove what is gone\n"
    "  ollamaops lock --update qwen3:32b     take what the registry has now\n"
    "  ollamaops lock --check                in CI: exit 2 when the lock no longer fits",
)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--update", is_flag=True, help="Ask the registries again about each MODEL, or about all.")
@click.option(
    "--check", is_flag=True, help="Compare the lock with the manifest and the registries; write nothing."
)
def command(shared: Shared, models: tuple[str, ...], update: bool, check: bool) -> int:
    """Write ollamaops.lock: for every pulled model its registry manifest's digest and every layer, and the digest of
    the template that makes its prompts, where a host has the model and shows it.

    Existing entries stay as they are; entries that are no longer declared are removed. Models with update: latest
    or never are not locked. With --sandbox the pretend servers have a lock of their own, beside their models. Exit 2
    when --check finds that the lock does not fit, 3 when a registry could not be asked.
    """

    _check_usage(shared, models, update=update, check=check)
    path = lock_path(shared)
    old = read_lock(shared) if check else load_lock(path)
    with open_engine(shared, manifest=load_unlocked(shared, limits_of(shared), locked=True)) as engine:
        references = locked_references(engine.references)
        if check:
            return _check(shared, engine, path, old or Lock(), references)
        return _write(
            shared, engine, path, old, references, _renewal(shared, models, references, update=update)
        )


def _check_usage(shared: Shared, models: Sequence[str], *, update: bool, check: bool) -> None:
    if check and (update or models):
        raise click.UsageError("--check writes nothing: it goes with neither --update nor MODEL")
    if models and not update:
        raise click.UsageError("MODEL goes with --update: ollamaops lock --update MODEL")
    if shared.no_registry:
        raise UsageError("lock has to ask registries", hint="leave out --no-registry")


def _is_complete(shared: Shared) -> bool:
    """Whether everything declared was looked at, so that all else is known to be undeclared."""
    return not (shared.hosts or shared.selector or shared.targets)


def _renewal(
    shared: Shared, models: Sequence[str], references: Sequence[Reference], *, update: bool
) -> Callable[[Reference], bool]:
    """Which entries --update means; UsageError for a MODEL that matches nothing, unless --allow-no-match."""

    patterns = [read_option("MODEL", model, NamePattern.parse) for model in models]
    for pattern in patterns:
        if not (shared.allow_no_match or any(_matches(pattern, reference) for reference in references)):
            known = ", ".join(str(reference.ref) for reference in references)
            raise UsageError(
                f"--update {pattern} matches no locked model", hint=f"pulled here: {known or 'nothing'}"
            )

    return lambda reference: update and (not patterns or any(_matches(each, reference) for each in patterns))


def _matches(pattern: NamePattern, reference: Reference) -> bool:
    return pattern.matches(reference.ref) or pattern.matches(reference.model)


def _write(
    shared: Shared,
    engine: Engine,
    path: Path,
    old: Lock | None,
    references: Sequence[Reference],
    renew: Callable[[Reference], bool],
) -> int:

    lock = old or Lock()
    asked = to_ask(lock, references, renew)
    answers = _ask(engine, asked)
    engine.run.cancel.check("stopped before the lock was written")
    result = update_lock(lock, references, answers, complete=_is_complete(shared))
    lacking = lacking_templates(result, asked)
    result = with_templates(result, see_templates(engine.declared, engine.run, lacking))
    has_failed = any(step.state == "failed" for step in result.steps)
    is_worth_a_file = old is not None or result.lock.entries or not has_failed
    written = bool(is_worth_a_file) and save_lock(path, result.lock)
    _show_update(shared, result, path, written=written)
    return exits.PARTIAL if has_failed else exits.DONE


def _check(shared: Shared, engine: Engine, path: Path, lock: Lock, references: Sequence[Reference]) -> int:

    locked = [reference for reference in references if reference.ref in lock.entries]
    answers = _ask(engine, locked)
    layers = inspect_layers(engine.run.registries, lock, locked, answers, jobs=engine.run.options.jobs)
    engine.run.cancel.check()
    findings = check_lock(lock, references, answers, layers, complete=_is_complete(shared))
    _show_check(shared, findings, path)
    states = {finding.state for finding in findings}
    return exits.worst(
        exits.DONE,
        exits.PARTIAL if "unknown" in states else exits.DONE,
        exits.CHANGES if states - {"same", "unknown"} else exits.DONE,
    )


def _ask(engine: Engine, references: Sequence[Reference]) -> dict[ModelName, Answer]:
    return ask_registries(engine.run.registries, references, jobs=engine.run.options.jobs)


def _show_update(shared: Shared, result: LockUpdate, path: Path, *, written: bool) -> None:

    color, width = color_and_width(shared)
    emit(
        shared,
        {
            "text": lambda: render_lock_update(
                result, str(path), written=written, color=color, width=width, verbose=shared.verbose > 0
            ),
            "json": lambda: lock_update_to_json(result, str(path), written=written),
        },
    )


def _show_check(shared: Shared, findings: Sequence[Finding], path: Path) -> None:

    color, width = color_and_width(shared)
    emit(
        shared,
        {
            "text": lambda: render_lock_check(
                findings, str(path), color=color, width=width, verbose=shared.verbose > 0
            ),
            "json": lambda: lock_check_to_json(findings, str(path)),
        },
    )
