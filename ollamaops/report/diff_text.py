"""What differs, value by value: a diff per model and field, `-` what is there and `+` what is declared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from ollamaops.names import ModelName
from ollamaops.plan.actions import Action, Difference, HostPlan, Note, Plan, UploadBlob, subject_of
from ollamaops.report.differences import field_diff, is_change, render_difference
from ollamaops.report.lines import Line, group_lines, join_lines, render_lines
from ollamaops.report.plan_text import (
    mark_of,
    note_line,
    render_verb,
    same_lines,
    template_lines,
    unreached_lines,
)
from ollamaops.report.words import Paint


def render_diff(
    plan: Plan, model: ModelName | None = None, *, color: bool = False, width: int | None = None
) -> str:
    """Every difference in full, of one model or of all; a line says so where a model is in sync or not known."""
    hosts = [_only(host, model) for host in plan.hosts]
    differing = group_lines(line for host in hosts for line in _diff_lines(host))
    same = group_lines(line for host in hosts for line in same_lines(host))
    notes = group_lines(_note_line(note) for host in hosts for note in host.notes)
    templates = group_lines(line for host in hosts for line in template_lines(host))
    lines = [*differing, *same, *notes, *templates]
    if model is not None and not lines:
        lines.append(Line(mark="note", subject=str(model), text="not declared, and not there"))
    return join_lines(render_lines([*lines, *unreached_lines(plan.unreached)], Paint(color), width))


def _only(host: HostPlan, model: ModelName | None) -> HostPlan:
    """The part of the host's plan that is about `model`; all of it for None."""
    if model is None:
        return host
    return replace(
        host,
        actions=tuple(action for action in host.actions if _is_about(action, model)),
        unchanged=tuple(name for name in host.unchanged if name == model),
        unmanaged=tuple(name for name in host.unmanaged if name == model),
        notes=tuple(note for note in host.notes if note.model == model),
        templates={name: each for name, each in host.templates.items() if name == str(model)},
    )


def _is_about(action: Action, model: ModelName) -> bool:
    """Whether the action changes `model`, or is done for its sake (a pull under another name)."""
    return action.model == model or any(difference.model == model for difference in action.because)


def _diff_lines(host: HostPlan) -> Iterator[Line]:
    for action in host.actions:
        if not isinstance(action, UploadBlob):
            yield Line(
                mark=mark_of(action),
                subject=subject_of(action),
                hosts=(host.host,),
                text=render_verb(action),
                details=tuple(_full_details(action.because)),
            )


def _note_line(note: Note) -> Line:
    return replace(note_line(note), details=tuple(_full_details(note.lasting)))


def _full_details(because: Iterable[Difference]) -> Iterator[str]:
    for difference in because:
        if is_change(difference):
            yield f"{difference.path or difference.kind}:"
            yield from field_diff(difference)
        else:
            yield render_difference(difference)
