"""A plan as lines and as text for people, and what it counts up to.

Uploads have no line of their own: they are part of what the create that needs them costs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import assert_never

from msgspec import Struct
from msgspec.structs import replace

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
    PullModel,
    PushModel,
    Recipe,
    Refusal,
    UnloadModel,
    UnreachedHost,
    UploadBlob,
    VerifyModel,
    continues_another,
    id_of,
    is_check,
    subject_of,
    verb_of,
)
from ollamaops.report.differences import detail_lines, render_difference, render_reasons
from ollamaops.report.lines import Line, Mark, group_lines, join_lines, render_lines
from ollamaops.report.words import Paint, plural, without_host
from ollamaops.units import format_duration, format_size

_VERBS = ("pull", "create", "copy", "delete", "push", "verify", "load", "unload")
_ALWAYS_COUNTED = frozenset({"pull", "create", "delete"})


class PlanCounts(Struct, frozen=True, kw_only=True):
    """What a plan adds up to. Models count once per host; `download_unknown` says that some sizes are missing."""

    actions: Mapping[str, int]
    unchanged: int
    unmanaged: int
    hosts: int
    refused: int
    unreached: int
    unresolved: int
    lasting: int
    download_bytes: int
    download_unknown: bool
    upload_bytes: int
    upload_unknown: bool

    @property
    def is_empty(self) -> bool:
        """Whether no action is planned."""
        return not any(self.actions.values())


def count_plan(plan: Plan) -> PlanCounts:
    """The numbers of the last line; `actions` has a key for every verb, uploads are not counted as actions."""
    verbs = [verb_of(action) for action in plan.actions if not continues_another(action)]
    downloads = [action.cost.download_bytes for action in plan.actions]
    uploads = [action.cost.upload_bytes for action in plan.actions]
    return PlanCounts(
        actions={verb: verbs.count(verb) for verb in _VERBS},
        unchanged=sum(len({*host.unchanged} - _asked_again(host)) for host in plan.hosts),
        unmanaged=sum(len(host.unmanaged) for host in plan.hosts),
        hosts=len(plan.hosts),
        refused=len(plan.refusals),
        unreached=len(plan.unreached),
        unresolved=len(plan.unresolved),
        lasting=len(plan.lasting),
        download_bytes=sum(size or 0 for size in downloads),
        download_unknown=None in downloads,
        upload_bytes=sum(size or 0 for size in uploads),
        upload_unknown=None in uploads,
    )


def _asked_again(host: HostPlan) -> set[ModelName]:
    """What stands, but is pulled to see whether there is something newer."""
    return {why.model for action in host.actions if is_check(action) for why in action.because}


def render_plan(plan: Plan, *, color: bool = False, width: int | None = None, verbose: bool = False) -> str:
    """The plan as text: a line per change, what is in the way, and the counts.

    `verbose` adds what is unchanged or not ours, the diffs of long texts and every upload.
    """
    paint = Paint(color)
    lines = render_lines(plan_lines(plan, verbose=verbose), paint, width)
    return join_lines([*lines, paint("bold", render_counts(plan))])


def render_counts(plan: Plan) -> str:
    """The last line: `3 to pull, 1 to create, 0 to delete, 12 unchanged; 20.2 GB to download`."""
    counts = count_plan(plan)
    rest = _render_rest(counts)
    if counts.is_empty:
        nothing = "nothing is rolled back" if plan.kind == "rollback" else _render_nothing(counts)
        return "; ".join([nothing, *rest])
    done = [
        f"{count} to {verb}" for verb, count in counts.actions.items() if count or verb in _ALWAYS_COUNTED
    ]
    return "; ".join([", ".join([*done, f"{counts.unchanged} unchanged"]), *_render_bytes(counts), *rest])


def _render_nothing(counts: PlanCounts) -> str:
    there = f"{plural(counts.unchanged, 'model')} on {plural(counts.hosts, 'host')}"
    if counts.unreached or counts.unresolved or counts.refused:
        return f"nothing to do as far as is known: {there} as declared"
    if counts.lasting:
        return f"nothing that apply can do: {there} as declared"
    return f"nothing to do: {there} {'is' if counts.unchanged == 1 else 'are'} as declared"


def _render_bytes(counts: PlanCounts) -> list[str]:
    parts = []
    for size_bytes, is_unknown, what in (
        (counts.download_bytes, counts.download_unknown, "download"),
        (counts.upload_bytes, counts.upload_unknown, "upload"),
    ):
        sizes = [format_size(size_bytes)] * bool(size_bytes) + ["?"] * is_unknown
        if sizes:
            parts.append(f"{' + '.join(sizes)} to {what}")
    return [", ".join(parts)] if parts else []


def _render_rest(counts: PlanCounts) -> list[str]:
    return [
        phrase
        for count, phrase in (
            (counts.unmanaged, f"{counts.unmanaged} not declared"),
            (counts.lasting, f"{counts.lasting} not, which apply cannot mend"),
            (counts.unresolved, f"{counts.unresolved} unknown"),
            (counts.refused, f"{counts.refused} refused"),
            (counts.unreached, f"{plural(counts.unreached, 'host')} not reached"),
        )
        if count
    ]


_MAX_DETAIL_LINES = 40


def plan_lines(plan: Plan, *, verbose: bool = False) -> list[Line]:
    """Every line of the plan but the last: changes (deletions at the end), then trouble and notes."""
    changes = group_lines(line for host in plan.hosts for line in _host_lines(host, verbose=verbose))
    changes.sort(key=lambda line: line.mark == "delete")
    same = group_lines(line for host in plan.hosts for line in same_lines(host)) if verbose else []
    return [*changes, *same, *trouble_lines(plan)]


def trouble_lines(plan: Plan) -> list[Line]:
    """What is not an action: leftover names, notes, refusals, hosts that did not answer."""
    lines = [
        line for host in plan.hosts for line in leftover_lines(host.host, host.leftovers, "apply removes it")
    ]
    lines += [note_line(note) for host in plan.hosts for note in host.notes]
    lines += [refusal_line(refusal) for refusal in plan.refusals]
    return [*group_lines(lines), *unreached_lines(plan.unreached)]


def _host_lines(host: HostPlan, *, verbose: bool) -> Iterator[Line]:
    uploads = {id_of(action): action for action in host.actions if isinstance(action, UploadBlob)}
    verified = {action.model for action in host.actions if isinstance(action, VerifyModel)}
    for action in host.actions:
        if isinstance(action, UploadBlob) or (continues_another(action) and not verbose):
            continue
        mine = [uploads.pop(need) for need in action.needs if need in uploads]
        yield Line(
            mark=mark_of(action),
            subject=subject_of(action),
            hosts=(action.host,),
            text=render_verb(action)
            + _render_staging(action, verified)
            + render_reasons(action.because, everything=verbose),
            cost=_render_cost(action, [upload.cost for upload in mine]),
            details=_details(action, mine) if verbose else (),
        )
    for upload in uploads.values():
        yield _upload_line(upload)


def _details(action: Action, uploads: Iterable[UploadBlob]) -> tuple[str, ...]:
    sent = (f"upload {upload.path}: {_render_upload(upload.cost)}" for upload in uploads)
    return (*detail_lines(action.because, _MAX_DETAIL_LINES), *_template_change(action), *sent)


def _template_change(action: Action) -> Iterator[str]:
    if isinstance(action, PullModel) and action.template_change:
        change = " → ".join(digest.short for digest in action.template_change)
        yield f"the template that makes its prompts: {change}"


def _upload_line(upload: UploadBlob) -> Line:
    return Line(
        mark="send",
        subject=subject_of(upload),
        hosts=(upload.host,),
        text=f"upload of {upload.path}",
        cost=_render_upload(upload.cost),
    )


def mark_of(action: Action) -> Mark:
    """`new` for what is not there yet, `change` for what is replaced, and so on."""
    kinds = {difference.kind for difference in action.because}
    match action:
        case DeleteModel():
            return "delete"
        case CopyModel() if action.rollback_key or "alias" in kinds:
            return "change"
        case CopyModel() | PushModel() | UploadBlob():
            return "send"
        case PullModel() | CreateModel() if "unknown" in kinds:
            return "unknown"
        case PullModel() | CreateModel():
            return "change" if kinds - {"missing"} else "new"
        case VerifyModel():
            return "unknown"
        case LoadModel() | UnloadModel():
            return "change"
        case _:
            assert_never(action)


def render_verb(action: Action) -> str:
    """What is done: `pull`, `create from qwen3:32b`, `copy of qwen3:32b`."""
    match action:
        case CreateModel() if mark_of(action) == "new":
            return f"create{_render_origin(action.recipe)}"
        case CopyModel() if action.rollback_key:
            return "roll back to the previous version"
        case CopyModel() if action.source.is_aside:
            return "switch"
        case VerifyModel():
            return "verify"
        case CopyModel():
            return f"copy of {action.source}"
        case PushModel() if action.source != action.model:
            return f"push of {action.source}"
        case LoadModel() if action.keep_alive_s >= 0:
            return f"load for {format_duration(action.keep_alive_s)}"
        case _:
            return verb_of(action)


def _render_staging(action: Action, verified: Collection[ModelName]) -> str:
    """What else is done before it counts: ` (verified before the switch)`."""
    is_verified = action.model in verified
    match action:
        case CreateModel(aside=aside) if aside is not None:
            return " (verified before the switch)" if is_verified else " (built beside it, then switched to)"
        case PullModel() if action.verify:
            return " (undone unless it is verified)"
        case CopyModel() if is_verified and action.because:
            return " (verified before)"
        case _:
            return ""


def _render_origin(recipe: Recipe) -> str:
    """` from qwen3:32b`, ` from legal.gguf and 2 more files as q4_K_M`."""
    quantized = f" as {recipe.quantize}" if recipe.quantize else ""
    if recipe.base is not None:
        return f" from {recipe.base}{quantized}"
    if not recipe.files:
        return ""
    more = len(recipe.files) - 1
    rest = f" and {plural(more, 'more file', 'more files')}" if more else ""
    return f" from {recipe.files[0].name}{rest}{quantized}"


def _render_cost(action: Action, uploads: list[Cost]) -> str:
    if isinstance(action, PullModel):
        return _render_download(action.cost)
    if not uploads:
        return ""
    sizes = [cost.upload_bytes for cost in uploads]
    total = Cost(
        upload_bytes=None if None in sizes else sum(size or 0 for size in sizes),
        present_bytes=sum(cost.present_bytes for cost in uploads),
    )
    return f"upload {_render_upload(total)}" if total.upload_bytes != 0 else _render_upload(total)


def _render_download(cost: Cost) -> str:
    if cost.download_bytes is None:
        return "size not known" + _render_present(cost.present_bytes)
    size = format_size(cost.download_bytes) if cost.download_bytes else "nothing to download"
    return size + _render_present(cost.present_bytes)


def _render_present(size_bytes: int) -> str:
    return f" ({format_size(size_bytes)} already there)" if size_bytes else ""


def _render_upload(cost: Cost) -> str:
    if cost.upload_bytes is None:
        return "size not known" + _render_present(cost.present_bytes)
    size = format_size(cost.upload_bytes) if cost.upload_bytes else "nothing to upload"
    return size + _render_present(cost.present_bytes)


def same_lines(host: HostPlan) -> Iterator[Line]:
    """What stays as it is: in sync, or not declared."""
    for name in host.unchanged:
        yield Line(mark="same", subject=str(name), hosts=(host.host,), text="as declared")
    for name in host.unmanaged:
        yield Line(mark="note", subject=str(name), hosts=(host.host,), text="not declared, left alone")


def template_lines(host: HostPlan) -> Iterator[Line]:
    """Which template makes the prompts of what was looked into."""
    for name, template in host.templates.items():
        whose = "its template" if template.origin == "model" else "the template in its weights"
        text = f"makes its prompts with {whose}, {template.digest.short}"
        yield Line(mark="note", subject=name, hosts=(host.host,), text=text)


def leftover_lines(host: str, names: Iterable[ModelName], what: str) -> Iterator[Line]:
    """Reserved names that an interrupted run left behind, or that a rename empties."""
    text = f"no longer needed under this name: {what}"
    for name in names:
        yield Line(mark="note", subject=str(name), hosts=(host,), text=text)


def note_line(note: Note) -> Line:
    """A note, marked `?` when it is something that could not be found out, `!` when it is drift: what differs, and
    why it stays so."""
    differs = [
        render_difference(each) for each in note.lasting if each.kind != "template"
    ]  # which the note says
    return Line(
        mark="unknown" if note.unresolved else "trouble" if note.lasting else "note",
        subject=str(note.model or ""),
        hosts=(note.host,),
        text=": ".join(
            [*filter(None, ["; ".join(dict.fromkeys(differs))]), without_host(note.host, note.message)]
        ),
        hint=note.hint,
    )


def refusal_line(refusal: Refusal) -> Line:
    """A rule that refuses the plan, with its numbers and the way out."""
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
    return [replace(line, text=f"{line.text}; {_render_unknown(len(line.hosts))}") for line in lines]


def _render_unknown(hosts: int) -> str:
    its, it = ("its", "it") if hosts == 1 else ("their", "them")
    return f"{its} state is unknown, nothing is planned for {it}"
