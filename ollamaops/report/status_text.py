"""Which model is in which state on which host: a table, read off a plan.

A model's state follows from what the plan would do about it. A plan knows the digests only of models it relies on, so
most cells of a steady host show none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from msgspec import Struct

from ollamaops.names import ModelName
from ollamaops.plan.actions import (
    Action,
    DeleteModel,
    Difference,
    HostPlan,
    LoadModel,
    Plan,
    UnloadModel,
    UploadBlob,
    continues_another,
)
from ollamaops.plan.codec import Json, value_to_json
from ollamaops.report.differences import render_difference
from ollamaops.report.lines import Cell as TextCell
from ollamaops.report.lines import (
    Line,
    Mark,
    group_lines,
    join_lines,
    render_lines,
    render_table,
    table_width,
)
from ollamaops.report.plan_text import template_lines, unreached_lines
from ollamaops.report.words import Paint, Style, clean, plural

State = Literal["in sync", "missing", "drifted", "unwanted", "unmanaged", "held", "unknown"]

_STYLES: Mapping[State, Style] = {
    "in sync": "good",
    "missing": "bad",
    "drifted": "change",
    "unwanted": "bad",
    "unmanaged": "dim",
    "held": "change",
    "unknown": "unknown",
}
_MARKS: Mapping[State, Mark] = {
    "in sync": "same",
    "missing": "new",
    "drifted": "change",
    "unwanted": "delete",
    "unmanaged": "note",
    "held": "note",
    "unknown": "unknown",
}


class Cell(Struct, frozen=True, kw_only=True):
    """One model on one host. `digest` is the short tags digest where the plan knows it, `why` says what differs."""

    state: State
    digest: str = ""
    why: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """`drifted 3f2a3f2a3f2a`"""
        return f"{self.state} {self.digest}".rstrip()


Table = Mapping[ModelName, Mapping[str, Cell]]


def build_status(plan: Plan) -> Table:
    """Model → host → cell, by name, models that nobody declared last. Hosts that did not answer have no cells."""
    table: dict[ModelName, dict[str, Cell]] = {}
    for host in plan.hosts:
        for name, cell in _host_cells(host).items():
            table.setdefault(name, {})[host.host] = cell
    return dict(sorted(table.items(), key=lambda item: (_is_unmanaged(item[1]), str(item[0]).lower())))


def _is_unmanaged(row: Mapping[str, Cell]) -> bool:
    return all(cell.state == "unmanaged" for cell in row.values())


def _host_cells(host: HostPlan) -> dict[ModelName, Cell]:
    found = {name: Cell(state="unmanaged") for name in host.unmanaged}
    found |= {name: Cell(state="in sync") for name in host.unchanged}
    found |= {name: Cell(state="held") for name in host.rolled_back}
    for note in host.notes:
        if note.model and (note.unresolved or note.waits):
            found[note.model] = Cell(state="unknown", why=(note.message,))
        elif note.model and note.lasting:
            said = (render_difference(each) for each in note.lasting if not _goes_without_saying(each))
            found[note.model] = Cell(state=_state_of(note.lasting), why=(*said, note.message))
    changes = [
        action
        for action in host.actions
        if not isinstance(action, UploadBlob) and not continues_another(action)
    ]
    for action in sorted(changes, key=_is_about_memory, reverse=True):
        found[action.model] = _cell_of(action)
    return found


def _is_about_memory(action: Action) -> bool:
    """Whether what is stored is as declared: of two things to do, changing that says more."""
    return isinstance(action, LoadModel | UnloadModel)


def _cell_of(action: Action) -> Cell:
    digests = [fact.digest for fact in action.expects if fact.model == action.model and fact.digest]
    return Cell(
        state="unwanted" if isinstance(action, DeleteModel) else _state_of(action.because),
        digest=digests[0][:12] if digests else "",
        why=tuple(
            dict.fromkeys(render_difference(why) for why in action.because if not _goes_without_saying(why))
        ),
    )


def _goes_without_saying(difference: Difference) -> bool:
    """Whether the state says it all: missing because it is not there."""
    return difference.kind == "missing" and not difference.observed


def _state_of(because: Iterable[Difference]) -> State:
    kinds = {difference.kind for difference in because}
    if "unknown" in kinds:
        return "unknown"
    return "missing" if kinds <= {"missing", "moved"} else "drifted"


def render_status(plan: Plan, *, color: bool = False, width: int | None = None, verbose: bool = False) -> str:
    """A table of models and hosts, or a line per model and state when the table is wider than `width`.

    `verbose` adds why a model is not in sync.
    """
    paint, table = Paint(color), build_status(plan)
    grid = _grid(plan, table)
    if width is None or table_width(grid) <= width:
        lines = render_table(grid, paint) if table else []
        lines += render_lines(_reason_lines(table), paint, width) if verbose else []
    else:
        lines = render_lines(_cell_lines(table, verbose=verbose), paint, width)
    templates = group_lines(line for host in plan.hosts for line in template_lines(host)) if verbose else []
    lines += render_lines(templates, paint, width)
    trouble = render_lines(unreached_lines(plan.unreached), paint, width)
    return join_lines([*lines, *trouble, paint("bold", _render_status(plan, table))])


def _grid(plan: Plan, table: Table) -> list[list[TextCell]]:
    """The table as texts with styles, its heading first."""
    reached = [host.host for host in plan.hosts]
    away: list[TextCell] = [("unknown", "unknown")] * len(plan.unreached)
    heads = ["model", *reached, *(host.host for host in plan.unreached)]
    rows = [
        [(str(name), None), *(_show(row.get(host)) for host in reached), *away] for name, row in table.items()
    ]
    return [[(clean(head), "bold") for head in heads], *rows]


def _show(cell: Cell | None) -> TextCell:
    return (cell.text, _STYLES[cell.state]) if cell else ("-", "dim")


def _reason_lines(table: Table) -> list[Line]:
    """Why, for what the table cannot say."""
    with_reasons = {
        name: {host: cell for host, cell in row.items() if cell.why} for name, row in table.items()
    }
    return _cell_lines(with_reasons, verbose=True)


def _cell_lines(table: Table, *, verbose: bool) -> list[Line]:
    """A line per model and state, for all of its hosts; `verbose` says why."""
    return group_lines(
        Line(
            mark=_MARKS[cell.state],
            subject=str(name),
            hosts=(host,),
            text=": ".join([cell.state, *(["; ".join(cell.why)] if verbose and cell.why else [])]),
        )
        for name, row in table.items()
        for host, cell in row.items()
    )


def _render_status(plan: Plan, table: Table) -> str:
    """`7 models on 2 hosts: 4 in sync, 3 missing, 2 drifted; 1 host not reached`."""
    states = [cell.state for row in table.values() for cell in row.values()]
    counts = ", ".join(f"{states.count(state)} {state}" for state in _STYLES if state in states)
    head = f"{plural(len(table), 'model')} on {plural(len(plan.hosts), 'host')}"
    away = f"; {plural(len(plan.unreached), 'host')} not reached" if plan.unreached else ""
    return head + (f": {counts}" if counts else "") + away


def status_to_json(plan: Plan) -> dict[str, Json]:
    """`hosts`: each with `host`, `reached`, `server_version`, `error` and `models` (name, state, digest, why,
    the effective template: null where it was not looked at)."""
    table = build_status(plan)
    reached: list[Json] = [
        {
            "host": host.host,
            "reached": True,
            "server_version": host.server_version,
            "error": None,
            "models": [
                {
                    "model": str(name),
                    "state": row[host.host].state,
                    "digest": row[host.host].digest or None,
                    "why": list(row[host.host].why),
                    "effective_template": value_to_json(host.templates.get(str(name))),
                }
                for name, row in table.items()
                if host.host in row
            ],
        }
        for host in plan.hosts
    ]
    away: list[Json] = [
        {"host": host.host, "reached": False, "server_version": None, "error": host.error, "models": []}
        for host in plan.unreached
    ]
    return {"format": "ollamaops-status", "version": 1, "hosts": [*reached, *away]}
