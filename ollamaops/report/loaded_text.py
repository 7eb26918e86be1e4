"""What is in the hosts' memory, as a table and as JSON.

A declared resident that is not in memory has a row too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ollamaops.plan.actions import UnreachedHost
from ollamaops.plan.codec import Json
from ollamaops.plan.observed import HostLoaded, Loaded
from ollamaops.report.lines import Cell, Line, join_lines, render_lines, render_table
from ollamaops.report.plan_text import unreached_lines
from ollamaops.report.words import Paint, Style, clean, plural
from ollamaops.units import format_duration, format_size

_HEADS = ("model", "host", "size", "on GPU", "stays", "declared", "state")
_STYLES: Mapping[str, Style] = {
    "current": "good",
    "stale": "change",
    "deleted": "change",
    "not in memory": "bad",
}


def render_loaded(
    hosts: Sequence[HostLoaded],
    unreached: Sequence[UnreachedHost],
    *,
    color: bool = False,
    width: int | None = None,
) -> str:
    """A row for each model in memory and for each that should be, then hosts that did not answer, then the counts."""
    paint = Paint(color)
    rows = [row for host in hosts for row in _rows(host)]
    heads: list[list[Cell]] = [[(head, "bold") for head in _HEADS]] if rows else []
    lines = render_table([*heads, *rows], paint)
    trouble: list[Line] = unreached_lines(unreached)
    total = paint("bold", _render_total(hosts, unreached))
    return join_lines([*lines, *render_lines(trouble, paint, width), total])


def _rows(host: HostLoaded) -> list[list[Cell]]:
    loaded = [_row(host, one) for one in sorted(host.loaded, key=lambda one: one.name)]
    absent = [
        _cells(str(name), host, "-", "-", "-", _render_declared(host.declared[name]), "not in memory")
        for name in host.absent
    ]
    return [*loaded, *absent]


def _row(host: HostLoaded, one: Loaded) -> list[Cell]:
    stays = "for ever" if one.is_forever else format_duration(one.stays_s)
    declared = _render_declared(host.resident_of(one))
    size, share = format_size(one.size_bytes), f"{_share(one)} %"
    return _cells(_render_names(host, one), host, size, share, stays, declared, host.state_of(one))


def _render_names(host: HostLoaded, one: Loaded) -> str:
    """Its name, and those that share it and are declared to be in memory."""
    return ", ".join(map(str, [one.name, *sorted(name for name in one.also if host.declared.get(name))]))


def _cells(name: str, host: HostLoaded, *rest: str) -> list[Cell]:
    *plain, state = rest
    return [(clean(name), None), (clean(host.host), None), *((text, None) for text in plain), _state(state)]


def _state(state: str) -> Cell:
    return state, _STYLES[state]


def _share(one: Loaded) -> int:
    """Per cent of it that is on a GPU."""
    return round(100 * one.vram_bytes / one.size_bytes) if one.size_bytes else 0


def _render_declared(resident: bool | float | None) -> str:
    if resident is None:
        return "-"
    if not resident:
        return "unload"
    return "for ever" if resident is True else format_duration(resident)


def _render_total(hosts: Sequence[HostLoaded], unreached: Sequence[UnreachedHost]) -> str:
    """`2 models in memory on 1 host: 41.2 GB, 20.0 GB of it on GPUs; 1 stale; 1 host not reached`"""
    loaded = [one for host in hosts for one in host.loaded]
    states = [host.state_of(one) for host in hosts for one in host.loaded]
    head = f"{plural(len(loaded), 'model')} in memory on {plural(len(hosts), 'host')}"
    if loaded:
        sizes = [
            sum(size) for size in zip(*((one.size_bytes, one.vram_bytes) for one in loaded), strict=True)
        ]
        head += f": {format_size(sizes[0])}, {format_size(sizes[1])} of it on GPUs"
    counts = {
        "stale": states.count("stale"),
        "deleted": states.count("deleted"),
        "declared but not in memory": sum(len(host.absent) for host in hosts),
    }
    rest = [f"{count} {what}" for what, count in counts.items() if count]
    rest += [f"{plural(len(unreached), 'host')} not reached"] if unreached else []
    return "; ".join([head, *rest])


def loaded_to_json(hosts: Sequence[HostLoaded], unreached: Sequence[UnreachedHost]) -> dict[str, Json]:
    """`hosts`: each with `host`, `reached`, `error`, `models` in memory, and `absent`: declared, but not there."""
    answered: list[Json] = [
        {
            "host": host.host,
            "reached": True,
            "error": None,
            "models": [_to_json(host, one) for one in host.loaded],
            "absent": [str(name) for name in host.absent],
        }
        for host in hosts
    ]
    away: list[Json] = [
        {"host": host.host, "reached": False, "error": host.error, "models": [], "absent": []}
        for host in unreached
    ]
    return {"format": "ollamaops-ps", "version": 1, "hosts": [*answered, *away]}


def _to_json(host: HostLoaded, one: Loaded) -> Json:
    """`stays_s` is null for ever, `also` who shares it, `resident` what is declared of them (null: nothing)."""
    return {
        "model": str(one.name),
        "digest": one.digest,
        "state": host.state_of(one),
        "size_bytes": one.size_bytes,
        "vram_bytes": one.vram_bytes,
        "gpu_percent": _share(one),
        "context_length": one.context_length or None,
        "expires_at": one.expires_at,
        "stays_s": None if one.is_forever else one.stays_s,
        "resident": host.resident_of(one),
        "also": [str(name) for name in sorted(one.also)],
    }
