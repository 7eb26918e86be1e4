"""Plans, runs and events as JSON: the documents of `-o json` and of the log. plan/codec.py has the format of a plan.

Everything is written in ASCII, so that no text from a server can act on the terminal it is printed to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from ollamaops.events import ActionEnded, Event, Outcome
from ollamaops.plan.actions import HostPlan, Plan, id_of, verb_of
from ollamaops.plan.codec import Json, fingerprint, plan_to_json, value_to_json
from ollamaops.plan.results import ActionResult, HostReport, RunReport, count_outcomes, outcome_name
from ollamaops.report.plan_text import count_plan

_CAPITAL = re.compile(r"(?<!^)(?=[A-Z])")


def render_json(document: Json) -> str:
    """The document as indented ASCII text with a newline at the end."""
    return json.dumps(document, indent=2) + "\n"


def plan_report_to_json(plan: Plan) -> dict[str, Json]:
    """The saved-plan document with a `summary` of its numbers; it can be saved and applied as it is."""
    return {**plan_to_json(plan), "summary": value_to_json(count_plan(plan))}


def run_to_json(report: RunReport) -> dict[str, Json]:
    """`run_id`, `plan` (its fingerprint), `summary` (counts of outcomes), and what became of each host."""
    return {
        "format": "ollamaops-run",
        "version": 1,
        "run_id": report.run_id,
        "plan": fingerprint(report.plan),
        "interrupted": report.interrupted,
        "seconds": report.seconds,
        "summary": value_to_json(count_outcomes(report.results)),
        "refusals": value_to_json(report.plan.refusals),
        "hosts": list(map(_host_to_json, (*report.hosts, *_never_reached(report)))),
    }


def _never_reached(report: RunReport) -> Iterator[HostReport]:
    """The hosts of which nothing could be planned, and so nothing was done."""
    known = {host.host for host in report.hosts}
    for each in report.plan.unreached:
        if each.host not in known:
            yield HostReport(host=each.host, plan=HostPlan(host=each.host), unreached=each)


def _host_to_json(report: HostReport) -> Json:
    return {
        "host": report.host,
        "as_declared": report.is_as_declared,
        "verified": report.verified,
        "rounds": report.rounds,
        "seconds": report.seconds,
        "unreached": value_to_json(report.unreached),
        "results": [_result_to_json(result) for result in report.results],
        "remaining": value_to_json(report.remaining),
        "notes": value_to_json(report.notes),
    }


def _result_to_json(result: ActionResult) -> Json:
    action = result.action
    return {
        "action": verb_of(action),
        "id": id_of(action),
        "model": value_to_json(action.model),
        "outcome": outcome_to_json(result.outcome),
    }


def outcome_to_json(outcome: Outcome) -> dict[str, Json]:
    """`result` (`succeeded`, `failed` …) and the fields of the outcome."""
    return {"result": outcome_name(outcome), **fields_to_json(outcome)}


def event_to_json(event: Event) -> dict[str, Json]:
    """`event` (`action_started`, `progressed` …), its stamp and its fields."""
    name = _CAPITAL.sub("_", type(event).__name__).lower()
    body = {"event": name, **fields_to_json(event)}
    return body | {"outcome": outcome_to_json(event.outcome)} if isinstance(event, ActionEnded) else body


def fields_to_json(value: object) -> dict[str, Json]:
    """The fields of a value; TypeError for one that has none."""
    body = value_to_json(value)
    if not isinstance(body, dict):
        raise TypeError(f"{type(value).__name__} has no fields")
    return body
