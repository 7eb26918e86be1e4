"""Runs of the past in words: the list, one run in full, and what differs between two.

A run is read back from JSON that an older version may have written, so what is missing is skipped, never an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from ollamaops.plan.codec import Json
from ollamaops.report.lines import Cell, render_table
from ollamaops.report.words import Paint, Style, clean
from ollamaops.state.records import RunRecord

_STYLES: Mapping[str, Style] = {"succeeded": "good", "failed": "bad", "refused": "bad"}
_COMMIT_DIGITS = 12


def render_runs(runs: Sequence[RunRecord], *, color: bool = False) -> str:
    """One line per run, the last first; a sentence when there are none."""
    if not runs:
        return "no run has changed anything yet"
    paint = Paint(color)
    head: list[Cell] = [(word, "bold") for word in ("RUN", "WHEN", "WHO", "COMMAND", "COMMIT", "RESULT")]
    return "\n".join(render_table([head, *map(_row, runs)], paint)) + "\n"


def _row(run: RunRecord) -> list[Cell]:
    text, style = _result(run)
    cells: list[Cell] = [(clean(part), None) for part in (run.run_id, run.at, run.who, run.command)]
    return [*cells, (_short(run.commit) or "-", None), (text, style)]


def _result(run: RunRecord) -> tuple[str, Style]:
    counted = ", ".join(f"{count} {name}" for name, count in _counts(run).items())
    if not run.is_finished:
        return "not finished", "unknown"
    code = f"exit {run.exit_code}"
    return (f"{code}: {counted}" if counted else code), ("good" if run.exit_code == 0 else "bad")


def _counts(run: RunRecord) -> dict[str, int]:
    counts: dict[str, int] = {}
    for _, outcome in _outcomes(run):
        name = str(outcome.get("result", "?"))
        counts[name] = counts.get(name, 0) + 1
    return counts


def _short(commit: str) -> str:
    digits, dash, rest = commit.partition("-")
    return clean(digits[:_COMMIT_DIGITS] + dash + rest)


def render_run_record(run: RunRecord, *, color: bool = False) -> str:
    """One run in full: when, who, from what, and every action with its outcome."""
    paint = Paint(color)
    facts = [
        ("run", run.run_id),
        ("began", run.at),
        ("ended", run.ended_at or "not finished"),
        ("who", run.who or "not known"),
        ("command", run.command),
        ("manifest", run.manifest_digest),
        ("commit", run.commit or "none"),
        ("result", _result(run)[0]),
    ]
    rows: list[list[Cell]] = [[(name, "dim"), (clean(value), None)] for name, value in facts]
    lines = [*render_table(rows, paint), ""]
    return (
        "\n".join([*lines, *(_render_outcome(key, outcome, paint) for key, outcome in _outcomes(run))]) + "\n"
    )


def _render_outcome(key: str, outcome: Mapping[str, object], paint: Paint) -> str:
    name = str(outcome.get("result", "?"))
    why = outcome.get("error") or outcome.get("because") or ""
    style = _STYLES.get(name, "unknown")
    return f"  {paint(style, clean(name))} {clean(key)}" + (f": {clean(str(why))}" if why else "")


def render_run_diff(old: RunRecord, new: RunRecord, *, color: bool = False) -> str:
    """What the second run was and did differently from the first; a sentence when nothing."""
    paint = Paint(color)
    lines = [f"{name}: {clean(before)} → {clean(after)}" for name, before, after in _header_changes(old, new)]
    then, now = dict(_outcomes(old)), dict(_outcomes(new))
    for key in sorted(then.keys() | now.keys()):
        lines += _render_change(key, then.get(key), now.get(key), paint)
    if not lines:
        return f"{old.run_id} and {new.run_id} did the same, with the same end"
    return "\n".join([f"{old.run_id} → {new.run_id}", *lines]) + "\n"


def _header_changes(old: RunRecord, new: RunRecord) -> Iterator[tuple[str, str, str]]:
    pairs = [
        ("who", old.who, new.who),
        ("command", old.command, new.command),
        ("manifest", old.manifest_digest[:12], new.manifest_digest[:12]),
        ("commit", _short(old.commit) or "none", _short(new.commit) or "none"),
        ("exit", _exit(old), _exit(new)),
    ]
    return ((name, before, after) for name, before, after in pairs if before != after)


def _exit(run: RunRecord) -> str:
    return str(run.exit_code) if run.is_finished else "not finished"


def _render_change(
    key: str, then: Mapping[str, object] | None, now: Mapping[str, object] | None, paint: Paint
) -> Iterator[str]:
    before, after = (str(each.get("result", "?")) if each else "" for each in (then, now))
    if then is None:
        yield paint("good", f"+ {clean(key)}: {clean(after)}")
    elif now is None:
        yield paint("bad", f"- {clean(key)}: {clean(before)}")
    elif before != after:
        yield paint("change", f"~ {clean(key)}: {clean(before)} → {clean(after)}")


def run_record_to_json(run: RunRecord) -> dict[str, Json]:
    """Everything that is kept of a run, its JSON texts as documents."""
    return {
        "run_id": run.run_id,
        "began": run.at,
        "ended": run.ended_at or None,
        "who": run.who,
        "command": run.command,
        "manifest_digest": run.manifest_digest,
        "commit": run.commit or None,
        "exit_code": run.exit_code if run.is_finished else None,
        "hosts": _loaded(run.hosts),
        "outcomes": _loaded(run.outcomes),
        "plan": _loaded(run.plan),
    }


def runs_to_json(runs: Sequence[RunRecord]) -> dict[str, Json]:
    """All runs with the numbers of their outcomes, without plans."""
    kept = ("run_id", "began", "ended", "who", "command", "manifest_digest", "commit", "exit_code")
    entries: list[Json] = []
    for run in runs:
        document = run_record_to_json(run)
        counts: dict[str, Json] = dict(_counts(run))
        entries.append({**{key: document[key] for key in kept}, "summary": counts})
    return {"format": "ollamaops-history", "version": 1, "runs": entries}


def run_diff_to_json(old: RunRecord, new: RunRecord) -> dict[str, Json]:
    """`changed` facts about the runs, and for each action that differs what became of it in either."""
    then, now = dict(_outcomes(old)), dict(_outcomes(new))
    results: dict[str, Json] = {}
    for key in sorted(then.keys() | now.keys()):
        pair: list[Json] = [str(each[key].get("result")) if key in each else None for each in (then, now)]
        if pair[0] != pair[1]:
            results[key] = pair
    changed: dict[str, Json] = {name: [before, after] for name, before, after in _header_changes(old, new)}
    return {"from": old.run_id, "to": new.run_id, "changed": changed, "actions": results}


def _outcomes(run: RunRecord) -> list[tuple[str, Mapping[str, object]]]:
    """(action id, its outcome), in the order in which they were planned."""
    document = _loaded(run.outcomes)
    entries = document if isinstance(document, list) else []
    return [(str(entry.get("action", "?")), entry) for entry in entries if isinstance(entry, dict)]


def _loaded(text: str) -> Json:
    try:
        document: Json = json.loads(text) if text else None
    except ValueError:
        return None
    return document
