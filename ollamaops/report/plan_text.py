"""A plan as text for people, and what it counts up to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ollamaops.plan.actions import Plan, continues_another, verb_of
from ollamaops.report.lines import join_lines, render_lines
from ollamaops.report.plan_lines import plan_lines
from ollamaops.report.words import Paint, plural
from ollamaops.units import format_size

_VERBS = ("pull", "create", "copy", "delete", "push", "probe", "load", "unload")
_ALWAYS_COUNTED = frozenset({"pull", "create", "delete"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanCounts:
    """What a plan adds up to. Models count once per host; `download_unknown` says that some sizes are missing."""

    actions: Mapping[str, int]
    unchanged: int
    unmanaged: int
    hosts: int
    refused: int
    unreached: int
    unresolved: int
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
        unchanged=sum(len(host.unchanged) for host in plan.hosts),
        unmanaged=sum(len(host.unmanaged) for host in plan.hosts),
        hosts=len(plan.hosts),
        refused=len(plan.refusals),
        unreached=len(plan.unreached),
        unresolved=len(plan.unresolved),
        download_bytes=sum(size or 0 for size in downloads),
        download_unknown=None in downloads,
        upload_bytes=sum(size or 0 for size in uploads),
        upload_unknown=None in uploads,
    )


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
    rest = _say_rest(counts)
    if counts.is_empty:
        nothing = "nothing is rolled back" if "rollback" in plan.made_from else _say_nothing(counts)
        return "; ".join([nothing, *rest])
    done = [
        f"{count} to {verb}" for verb, count in counts.actions.items() if count or verb in _ALWAYS_COUNTED
    ]
    return "; ".join([", ".join([*done, f"{counts.unchanged} unchanged"]), *_say_bytes(counts), *rest])


def _say_nothing(counts: PlanCounts) -> str:
    there = f"{plural(counts.unchanged, 'model')} on {plural(counts.hosts, 'host')}"
    if counts.unreached or counts.unresolved or counts.refused:
        return f"nothing to do where that can be told: {there} as declared"
    return f"nothing to do: {there} {'is' if counts.unchanged == 1 else 'are'} as declared"


def _say_bytes(counts: PlanCounts) -> list[str]:
    parts = []
    for size_bytes, is_unknown, what in (
        (counts.download_bytes, counts.download_unknown, "download"),
        (counts.upload_bytes, counts.upload_unknown, "upload"),
    ):
        sizes = [format_size(size_bytes)] * bool(size_bytes) + ["?"] * is_unknown
        if sizes:
            parts.append(f"{' + '.join(sizes)} to {what}")
    return [", ".join(parts)] if parts else []


def _say_rest(counts: PlanCounts) -> list[str]:
    return [
        phrase
        for count, phrase in (
            (counts.unmanaged, f"{counts.unmanaged} not declared"),
            (counts.unresolved, f"{counts.unresolved} unknown"),
            (counts.refused, f"{counts.refused} refused"),
            (counts.unreached, f"{plural(counts.unreached, 'host')} not reached"),
        )
        if count
    ]
