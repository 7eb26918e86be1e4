"""What registries have that is newer than the hosts' models, as a table and as JSON.

Hosts that differ in the same way share a row, so that a fleet of a hundred fits on a screen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ollamaops.lockfile.outdated import Freshness, FreshnessState, HostFreshness
from ollamaops.plan.actions import UnreachedHost
from ollamaops.plan.codec import Json
from ollamaops.report.layer_text import call_kind
from ollamaops.report.lines import (
    Cell,
    Line,
    Mark,
    group_lines,
    join_lines,
    render_lines,
    render_table,
    table_width,
)
from ollamaops.report.words import Paint, Style, clean, join_names, plural, without_host
from ollamaops.units import format_size

_STYLES: Mapping[FreshnessState, Style] = {
    "current": "good",
    "outdated": "change",
    "missing": "bad",
    "gone": "bad",
    "unknown": "unknown",
}
_MARKS: Mapping[FreshnessState, Mark] = {
    "current": "same",
    "outdated": "change",
    "missing": "new",
    "gone": "trouble",
    "unknown": "unknown",
}
_STATES = {mark: state for state, mark in _MARKS.items()}
_HEADS = ("model", "hosts", "state", "what changed", "download")


def render_outdated(
    hosts: Sequence[HostFreshness],
    unreached: Sequence[UnreachedHost],
    *,
    color: bool = False,
    width: int | None = None,
    verbose: bool = False,
) -> str:
    """A table of everything that is not current (`verbose`: of everything), or lines where it would be too wide."""
    paint = Paint(color)
    lines = _lines(hosts, verbose=verbose)
    heads: list[list[Cell]] = [[(head, "bold") for head in _HEADS]] if lines else []
    rows = heads + [_row(line) for line in lines]
    if width is not None and table_width(rows) > width:
        shown = render_lines(lines, paint, width)
    else:
        shown = render_table(rows, paint)
    trouble = render_lines(map(_unreached_line, unreached), paint, width)
    advice = [paint("dim", f"hint: {hint}") for hint in _advice(hosts)]
    return join_lines([*shown, *trouble, paint("bold", _render_total(hosts, unreached)), *advice])


def _lines(hosts: Sequence[HostFreshness], *, verbose: bool) -> list[Line]:
    """A line for each model and finding, for all of its hosts, sorted by model."""
    lines = [
        _line(host.host, model)
        for host in hosts
        for model in host.models
        if verbose or model.state != "current"
    ]
    return sorted(group_lines(lines), key=lambda line: line.subject.lower())


def _line(host: str, model: Freshness) -> Line:
    what = _render_what(model)
    return Line(
        mark=_MARKS[model.state],
        subject=str(model.model),
        hosts=(host,),
        text=f"{model.state}: {what}" if what else model.state,
        cost=_render_download(model),
    )


def _render_what(model: Freshness) -> str:
    if model.is_gone:
        more = " any more" if model.state == "gone" else ""
        return f"the registry has no such model or tag{more}: {model.error}"
    if model.error:
        return model.error
    changed = ", ".join(call_kind(change.kind) for change in model.changes)
    unclear = " or ".join(call_kind(kind) for kind in model.unclear)
    parts = (changed, f"not known: {unclear}" if unclear else "", _render_prompts(model))
    return "; ".join(filter(None, parts))


def _render_prompts(model: Freshness) -> str:
    """What a change of template layers does not say by itself."""
    kinds = {*(change.kind for change in model.changes), *model.unclear}
    if model.prompts == "changed" and "template" not in kinds:
        return "the weights bring another template"
    return (
        "not known: the template in the weights" if model.prompts == "unknown" and "weights" in kinds else ""
    )


def _render_download(model: Freshness) -> str:
    if model.state != "outdated":
        return ""
    if model.download_bytes is None:
        return "size not known"
    return format_size(model.download_bytes) if model.download_bytes else "nothing"


def _row(line: Line) -> list[Cell]:
    state = _STATES[line.mark]
    each = " each" if len(line.hosts) > 1 and line.cost[:1].isdigit() else ""
    return [
        (clean(line.subject), None),
        (clean(join_names(line.hosts)), None),
        (state, _STYLES[state]),
        (clean(line.text.removeprefix(state).removeprefix(": ")), None),
        (f"{line.cost}{each}", None),
    ]


def _unreached_line(host: UnreachedHost) -> Line:
    text = f"not reached: {without_host(host.host, host.error)}"
    return Line(mark="trouble", hosts=(host.host,), text=text, hint=host.hint)


def _render_total(hosts: Sequence[HostFreshness], unreached: Sequence[UnreachedHost]) -> str:
    """`12 pulled models on 3 hosts: 9 current, 3 outdated; 40.4 GB to download; 1 host not reached`"""
    found = [model for host in hosts for model in host.models]
    states = [model.state for model in found]
    counts = ", ".join(f"{states.count(state)} {state}" for state in _STYLES if state in states)
    names = {model.model for model in found}
    head = f"{plural(len(names), 'pulled model')} on {plural(len(hosts), 'host')}"
    total = sum(host.download_bytes for host in hosts)
    parts = [head + (f": {counts}" if counts else "")]
    parts += [f"{format_size(total)} to download"] if total else []
    parts += [f"{plural(len(unreached), 'host')} not reached"] if unreached else []
    silent = {model.ref.registry_host.lower() for model in found if not model.is_answered}
    parts += [f"{plural(len(silent), 'registry', 'registries')} could not be asked"] if silent else []
    return "; ".join(parts)


def _advice(hosts: Iterable[HostFreshness]) -> list[str]:
    """How to update what is outdated, by how the manifest says it is updated; and what helps against the rest."""
    found = [model for host in hosts for model in host.models]
    outdated = [model for model in found if model.state == "outdated"]
    locked = {str(model.ref) for model in outdated if model.update == "locked"}
    advice = []
    if locked:
        names = " ".join(sorted(locked)) if len(locked) <= 3 else ""
        advice.append(f"ollamaops lock --update {names}".rstrip() + ", then ollamaops apply")
    if any(model.update == "latest" for model in outdated):
        advice.append("ollamaops apply pulls what has update: latest")
    if any(model.update == "missing" for model in outdated):
        advice.append("models with update: missing stay as they are: set update: latest, or write a lock")
    if any(model.state == "gone" for model in found):
        advice.append("what is gone stays on its hosts: push it again, or choose another tag")
    return advice + list(dict.fromkeys(model.hint for model in found if model.hint and not model.is_answered))


def outdated_to_json(hosts: Sequence[HostFreshness], unreached: Sequence[UnreachedHost]) -> dict[str, Json]:
    """`hosts`: each with `host`, `reached`, `server_version`, `error`, `download_bytes` and `models`."""
    answered: list[Json] = [
        {
            "host": host.host,
            "reached": True,
            "server_version": host.server_version,
            "error": None,
            "download_bytes": host.download_bytes,
            "models": [_model_to_json(model) for model in host.models],
        }
        for host in hosts
    ]
    away: list[Json] = [
        {
            "host": host.host,
            "reached": False,
            "server_version": None,
            "error": host.error,
            "download_bytes": None,
            "models": [],
        }
        for host in unreached
    ]
    return {"format": "ollamaops-outdated", "version": 1, "hosts": [*answered, *away]}


def _model_to_json(model: Freshness) -> Json:
    return {
        "model": str(model.model),
        "ref": str(model.ref),
        "state": model.state,
        "update": model.update,
        "is_locked": model.is_locked,
        "digest": model.digest or None,
        "registry_digest": model.registry_digest or None,
        "registry_answered": model.is_answered,
        "changes": [
            {"kind": change.kind, "download_bytes": change.download_bytes} for change in model.changes
        ],
        "unclear": list(model.unclear),
        "prompts": model.prompts,
        "download_bytes": model.download_bytes if model.state == "outdated" else 0,
        "error": model.error or None,
        "hint": model.hint,
    }
