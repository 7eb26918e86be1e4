"""What `ollamaops lock` did, and what `lock --check` found, as text and as JSON.

Unchanged entries get a line only with `verbose`, so that a reviewer sees what a pull request changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import assert_never

from ollamaops.lockfile.changes import Finding, FindingState, LayerPair, LockStep, LockUpdate, StepState
from ollamaops.lockfile.lock import LockEntry
from ollamaops.plan.codec import Json
from ollamaops.registry.documents import Layer, LayerChange
from ollamaops.report.layer_text import (
    call_kind,
    changes_to_json,
    layer_to_json,
    render_changes,
    render_layer,
)
from ollamaops.report.lines import Line, Mark, join_lines, render_lines
from ollamaops.report.words import Paint, plural
from ollamaops.units import format_size

_STEP_MARKS: Mapping[StepState, Mark] = {
    "added": "new",
    "updated": "change",
    "removed": "delete",
    "failed": "trouble",
    "kept": "same",
}
_FINDING_MARKS: Mapping[FindingState, Mark] = {
    "same": "same",
    "missing": "new",
    "surplus": "delete",
    "contradicted": "trouble",
    "moved": "change",
    "gone": "trouble",
    "damaged": "trouble",
    "unknown": "unknown",
}


def render_lock_update(
    update: LockUpdate,
    path: str,
    *,
    written: bool,
    color: bool = False,
    width: int | None = None,
    verbose: bool = False,
) -> str:
    """A line for each entry that changed or could not be asked for, and one that counts."""
    paint = Paint(color)
    lines = [_step_line(step) for step in update.steps if verbose or step.state != "kept"]
    end = "written" if written else "not changed"
    last = paint("bold", f"{_count(step.state for step in update.steps)}; {path} {end}")
    return join_lines([*render_lines(lines, paint, width), last])


def _step_line(step: LockStep) -> Line:
    return Line(
        mark=_STEP_MARKS[step.state],
        subject=str(step.ref),
        text=_render_step(step),
        details=tuple(_render_differing(*pair, where=("before", "now")) for pair in step.altered),
        hint=step.hint,
    )


def _render_step(step: LockStep) -> str:
    match step.state:
        case "added":
            return f"locked at {_render_entry(step.after)}"
        case "updated":
            return f"updated: {render_move(step)}"
        case "removed":
            return "removed, no longer declared"
        case "kept":
            known = f"; {_render_templates(step.after)}" if step.after else ""
            return f"kept at {_render_entry(step.after)}{known}"
        case "failed":
            rest = f"kept at {_render_entry(step.before)}" if step.before else "not locked"
            return f"{rest}: {step.error}"
        case _:
            assert_never(step.state)


def _render_entry(entry: LockEntry | None) -> str:
    """`9bc19bc19bc1: 2.0 GB in 5 layers`"""
    if entry is None:
        return "nothing"
    return f"{entry.digest.short}, {format_size(entry.size_bytes)} in {plural(len(entry.document.parts), 'layer')}"


def render_move(step: LockStep) -> str:
    """`aaa → bbb: weights 2.0 GB → 2.1 GB: 2.1 GB to download`"""
    digests = " → ".join(entry.digest.short for entry in (step.before, step.after) if entry)
    before, after = step.before, step.after
    if before and after and before.digest == after.digest and before.templates != after.templates:
        return f"{after.digest.short}: {_render_templates(after)}"
    return f"{digests}: {render_content(step.changes, step.altered)}"


def _render_templates(entry: LockEntry) -> str:
    if not entry.templates:
        return "the template that makes its prompts is not known: no host that was asked has the model"
    return f"its prompts are made with template {', '.join(each.short for each in entry.templates)}"


def render_content(changes: Sequence[LayerChange], altered: Sequence[LayerPair]) -> str:
    """What changed, and the bytes of all that is new; or that the layers are the same."""
    if not changes and altered:
        return "the same blobs, described otherwise"
    if not changes:
        return "the layers are the same, only the registry manifest is written differently"
    new = sum(change.download_bytes for change in changes)
    return f"{render_changes(changes)}: {format_size(new) if new else 'nothing'} new"


def _count(states: Iterable[str]) -> str:
    """`3 added, 1 updated, 12 kept`"""
    found = list(states)
    counts = [f"{found.count(state)} {state}" for state in (*_STEP_MARKS, *_FINDING_MARKS) if state in found]
    return ", ".join(counts) or "nothing to lock"


def lock_update_to_json(update: LockUpdate, path: str, *, written: bool) -> dict[str, Json]:
    """`lock_file`, `written`, and `models`: each with `model`, `state`, `before`, `after`, `changes`, `error`.

    `altered` are layers that stayed and are described otherwise, `before` and `after`.
    """
    return {
        "format": "ollamaops-lock",
        "version": 1,
        "lock_file": path,
        "written": written,
        "models": [
            {
                "model": str(step.ref),
                "state": step.state,
                "before": _entry_to_json(step.before),
                "after": _entry_to_json(step.after),
                "changes": changes_to_json(step.changes),
                "altered": [
                    {"before": layer_to_json(before), "after": layer_to_json(after)}
                    for before, after in step.altered
                ],
                "error": step.error or None,
                "hint": step.hint,
            }
            for step in update.steps
        ],
    }


def _entry_to_json(entry: LockEntry | None) -> Json:
    if entry is None:
        return None
    return {
        "digest": str(entry.digest),
        "size_bytes": entry.size_bytes,
        "templates": [str(digest) for digest in entry.templates],
    }


# checks


def render_lock_check(
    findings: Sequence[Finding],
    path: str,
    *,
    color: bool = False,
    width: int | None = None,
    verbose: bool = False,
) -> str:
    """A line for each entry that is not as it should be, and one that counts."""
    paint = Paint(color)
    lines = [_finding_line(finding) for finding in findings if verbose or finding.state != "same"]
    last = paint("bold", f"{path}: {_count(finding.state for finding in findings)}")
    return join_lines([*render_lines(lines, paint, width), last])


def _finding_line(finding: Finding) -> Line:
    text, hint = _render_finding(finding)
    return Line(
        mark=_FINDING_MARKS[finding.state],
        subject=str(finding.ref),
        text=text,
        details=tuple(_details(finding)),
        hint=finding.hint or hint,
    )


def _render_finding(finding: Finding) -> tuple[str, str | None]:
    """What is wrong with an entry, and the way out."""
    again = f"review what changed, then: ollamaops lock --update {finding.ref}"
    match finding.state:
        case "same":
            return f"locked at {_render_entry(finding.entry)}", None
        case "missing":
            return "declared, but not in the lock", "ollamaops lock"
        case "surplus":
            return "in the lock, but no longer declared", "ollamaops lock"
        case "contradicted":
            return (
                f"locked at {_digest(finding)}, but the manifest pins {_short(finding.pin)}",
                "ollamaops lock",
            )
        case "moved":
            digests = f"{_digest(finding)} → {_short(finding.found)}"
            content = render_content(finding.changes, finding.altered)
            return f"the registry has moved on: {digests}: {content}", again
        case "gone":
            return f"the registry no longer has it: {finding.error}", "push it again, or choose another tag"
        case "damaged":
            return _render_damage(finding)
        case "unknown":
            return f"not known: {finding.error}", None
        case _:
            assert_never(finding.state)


def _render_damage(finding: Finding) -> tuple[str, str]:
    if finding.error:
        return f"tampered with: {finding.error}", "do not pull it before you know who changed the registry"
    if finding.flaws:
        count = plural(len(finding.flaws), "layer")
        return f"tampered with: the registry has {count} other than locked", "push the model again"
    anew = f"ollamaops lock --update {finding.ref}"
    return (
        f"tampered with: {_digest(finding)} has other layers in the registry than in the lock",
        f"restore the lock file from version control, or make the entry again: {anew}",
    )


def _details(finding: Finding) -> Iterable[str]:
    for pair in (*finding.altered, *finding.forged):
        yield _render_differing(*pair, where=("in the lock", "in the registry"))
    for flaw in finding.flaws:
        yield f"{render_layer(flaw.layer)}: {flaw.error}"


def _render_differing(locked: Layer | None, found: Layer | None, *, where: tuple[str, str]) -> str:
    """`weights 9bc19bc19bc1: size 1 in the lock, 2019377376 in the registry`"""
    here, there = where
    if locked is None or found is None:
        known = locked or found
        return f"{render_layer(known) if known else ''}: only {here if locked else there}"
    values = (
        ("digest", locked.digest.short, found.digest.short),
        ("size", str(locked.size_bytes), str(found.size_bytes)),
        ("media type", locked.media_type, found.media_type),
        ("name", locked.name, found.name),
        ("from", locked.from_, found.from_),
    )
    said = [f"{what} {ours} {here}, {theirs} {there}" for what, ours, theirs in values if ours != theirs]
    return f"{call_kind(locked.kind)} {locked.digest.short}: {'; '.join(said)}"


def _digest(finding: Finding) -> str:
    return finding.entry.digest.short if finding.entry else ""


def _short(digest: object) -> str:
    return str(digest).removeprefix("sha256:")[:12]


def lock_check_to_json(findings: Sequence[Finding], path: str) -> dict[str, Json]:
    """`lock_file` and `models`: each with `model`, `state`, digests, `changes`, `forged`, `flaws` and `error`.

    `altered` and `forged` are pairs of layers, `locked` and `registry`, under another and under the same digest.
    """
    return {
        "format": "ollamaops-lock-check",
        "version": 1,
        "lock_file": path,
        "models": [_finding_to_json(finding) for finding in findings],
    }


def _pairs_to_json(pairs: Iterable[LayerPair]) -> list[Json]:
    return [{"locked": layer_to_json(locked), "registry": layer_to_json(found)} for locked, found in pairs]


def _finding_to_json(finding: Finding) -> Json:
    return {
        "model": str(finding.ref),
        "state": finding.state,
        "locked": _entry_to_json(finding.entry),
        "registry_digest": str(finding.found) if finding.found else None,
        "manifest_pin": str(finding.pin) if finding.pin else None,
        "changes": changes_to_json(finding.changes),
        "altered": _pairs_to_json(finding.altered),
        "forged": _pairs_to_json(finding.forged),
        "flaws": [{"layer": layer_to_json(flaw.layer), "error": flaw.error} for flaw in finding.flaws],
        "error": finding.error or None,
        "hint": finding.hint,
    }
