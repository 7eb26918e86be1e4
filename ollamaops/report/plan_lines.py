"""A plan as lines: which line each action, note, refusal and unreached host gets, and what it says.

The words for reasons are in differences.py, the layout in lines.py; plan_text.py, markup.py and others show them. The
fact a reader would miss: uploads have no line of their own, they are a cost of the create that needs them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from typing import assert_never

from ollamaops.names import ModelName
from ollamaops.plan.actions import (
    Action,
    CopyModel,
    Cost,
    CreateModel,
    DeleteModel,
    HostPlan,
    LoadModel,
    Note,
    Plan,
    ProbeModel,
    PullModel,
    PushModel,
    Recipe,
    Refusal,
    UnloadModel,
    UnreachedHost,
    UploadBlob,
    continues_another,
    id_of,
    subject_of,
    verb_of,
)
from ollamaops.report.differences import detail_lines, render_reasons
from ollamaops.report.lines import Line, Mark, group_lines
from ollamaops.report.words import plural, without_host
from ollamaops.units import format_duration, format_size

_MAX_DETAIL_LINES = 40


def plan_lines(plan: Plan, *, verbose: bool = False) -> list[Line]:
    """Every line of the plan but the last: changes (deletions at the end), then trouble and notes."""
    changes = group_lines(line for host in plan.hosts for line in _host_lines(host, verbose=verbose))
    changes.sort(key=lambda line: line.mark == "delete")
    same = group_lines(line for host in plan.hosts for line in same_lines(host)) if verbose else []
    return [*changes, *same, *trouble_lines(plan)]


def trouble_lines(plan: Plan) -> list[Line]:
    """What is no action: names left over, notes, refusals, hosts that did not answer."""
    lines = [
        line for host in plan.hosts for line in leftover_lines(host.host, host.leftovers, "apply removes it")
    ]
    lines += [note_line(note) for host in plan.hosts for note in host.notes]
    lines += [refusal_line(refusal) for refusal in plan.refusals]
    return [*group_lines(lines), *unreached_lines(plan.unreached)]


def _host_lines(host: HostPlan, *, verbose: bool) -> Iterator[Line]:
    uploads = {id_of(action): action for action in host.actions if isinstance(action, UploadBlob)}
    proven = {action.model for action in host.actions if isinstance(action, ProbeModel)}
    for action in host.actions:
        if isinstance(action, UploadBlob) or (continues_another(action) and not verbose):
            continue
        mine = [uploads.pop(need) for need in action.needs if need in uploads]
        yield Line(
            mark=mark_of(action),
            subject=subject_of(action),
            hosts=(action.host,),
            text=render_verb(action)
            + _say_staging(action, proven)
            + render_reasons(action.because, everything=verbose),
            cost=_say_cost(action, [upload.cost for upload in mine]),
            details=_details(action, mine) if verbose else (),
        )
    for upload in uploads.values():
        yield _upload_line(upload)


def _details(action: Action, uploads: Iterable[UploadBlob]) -> tuple[str, ...]:
    sent = (f"upload {upload.path}: {_say_upload(upload.cost)}" for upload in uploads)
    return (*detail_lines(action.because, _MAX_DETAIL_LINES), *sent)


def _upload_line(upload: UploadBlob) -> Line:
    return Line(
        mark="send",
        subject=subject_of(upload),
        hosts=(upload.host,),
        text=f"upload of {upload.path}",
        cost=_say_upload(upload.cost),
    )


def mark_of(action: Action) -> Mark:
    """`new` for what is not there yet, `change` for what is replaced, and so on."""
    kinds = {difference.kind for difference in action.because}
    match action:
        case DeleteModel():
            return "delete"
        case CopyModel() if action.hold:
            return "change"
        case CopyModel() | PushModel() | UploadBlob():
            return "send"
        case PullModel() | CreateModel() if "unknown" in kinds:
            return "unknown"
        case PullModel() | CreateModel():
            return "change" if kinds - {"missing"} else "new"
        case ProbeModel():
            return "unknown"
        case LoadModel() | UnloadModel():
            return "change"
        case _:
            assert_never(action)


def render_verb(action: Action) -> str:
    """What is done: `pull`, `create from qwen3:32b`, `copy of qwen3:32b`."""
    match action:
        case CreateModel() if mark_of(action) == "new":
            return f"create{_say_origin(action.recipe)}"
        case CopyModel() if action.hold:
            return "roll back to the previous version"
        case CopyModel() if action.source.is_aside:
            return "switch"
        case ProbeModel():
            return "prove"
        case CopyModel():
            return f"copy of {action.source}"
        case PushModel() if action.source != action.model:
            return f"push of {action.source}"
        case LoadModel() if action.keep_alive_s >= 0:
            return f"load for {format_duration(action.keep_alive_s)}"
        case _:
            return verb_of(action)


def _say_staging(action: Action, proven: Collection[ModelName]) -> str:
    """What else is done before it counts: ` (proven before it is switched to)`."""
    is_proven = action.model in proven
    match action:
        case CreateModel(aside=aside) if aside is not None:
            return " (proven before it is switched to)" if is_proven else " (aside, then switched to)"
        case PullModel() if action.on_trial:
            return " (taken back unless it is proven)"
        case CopyModel() if is_proven and action.because:
            return " (proven before)"
        case _:
            return ""


def _say_origin(recipe: Recipe) -> str:
    """` from qwen3:32b`, ` from legal.gguf and 2 more files as q4_K_M`."""
    quantized = f" as {recipe.quantize}" if recipe.quantize else ""
    if recipe.base is not None:
        return f" from {recipe.base}{quantized}"
    if not recipe.files:
        return ""
    more = len(recipe.files) - 1
    rest = f" and {plural(more, 'more file', 'more files')}" if more else ""
    return f" from {recipe.files[0].name}{rest}{quantized}"


def _say_cost(action: Action, uploads: list[Cost]) -> str:
    if isinstance(action, PullModel):
        return _say_download(action.cost)
    if not uploads:
        return ""
    sizes = [cost.upload_bytes for cost in uploads]
    total = Cost(
        upload_bytes=None if None in sizes else sum(size or 0 for size in sizes),
        present_bytes=sum(cost.present_bytes for cost in uploads),
    )
    return f"upload {_say_upload(total)}" if total.upload_bytes != 0 else _say_upload(total)


def _say_download(cost: Cost) -> str:
    if cost.download_bytes is None:
        return "size not known" + _say_present(cost.present_bytes)
    size = format_size(cost.download_bytes) if cost.download_bytes else "nothing to download"
    return size + _say_present(cost.present_bytes)


def _say_present(size_bytes: int) -> str:
    return f" ({format_size(size_bytes)} already there)" if size_bytes else ""


def _say_upload(cost: Cost) -> str:
    if cost.upload_bytes is None:
        return "size not known" + _say_present(cost.present_bytes)
    size = format_size(cost.upload_bytes) if cost.upload_bytes else "nothing to upload"
    return size + _say_present(cost.present_bytes)


def same_lines(host: HostPlan) -> Iterator[Line]:
    """What stays as it is: in sync, or nobody's business."""
    for name in host.unchanged:
        yield Line(mark="same", subject=str(name), hosts=(host.host,), text="as declared")
    for name in host.unmanaged:
        yield Line(mark="note", subject=str(name), hosts=(host.host,), text="not declared, left alone")


def leftover_lines(host: str, names: Iterable[ModelName], what: str) -> Iterator[Line]:
    """Names of our own that a run which was stopped has left, or from which a rename takes the content away."""
    text = f"not needed under this name any more: {what}"
    for name in names:
        yield Line(mark="note", subject=str(name), hosts=(host,), text=text)


def note_line(note: Note) -> Line:
    """A note, marked `?` when it is something that could not be found out."""
    return Line(
        mark="unknown" if note.unresolved else "note",
        subject=str(note.model or ""),
        hosts=(note.host,),
        text=without_host(note.host, note.message),
        hint=note.hint,
    )


def refusal_line(refusal: Refusal) -> Line:
    """A rule that said no, with its numbers and the way out."""
    return Line(
        mark="trouble",
        hosts=(refusal.host,),
        text=f"refused by {refusal.rule}: {without_host(refusal.host, refusal.message)}",
        hint=refusal.hint,
    )


def unreached_lines(hosts: Iterable[UnreachedHost]) -> list[Line]:
    """Hosts that did not answer, and what that means for them."""
    lines = group_lines(
        Line(
            mark="trouble",
            hosts=(host.host,),
            text=f"not reached: {without_host(host.host, host.error)}",
            hint=host.hint,
        )
        for host in hosts
    )
    return [replace(line, text=f"{line.text}; {_say_unknown(len(line.hosts))}") for line in lines]


def _say_unknown(hosts: int) -> str:
    its, it = ("its", "it") if hosts == 1 else ("their", "them")
    return f"{its} state is unknown, nothing is planned for {it}"
