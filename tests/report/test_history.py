"""Runs of the past in words: what was kept is shown clean, what is missing or damaged is passed over."""

from __future__ import annotations

import json
from typing import cast

import pytest
from msgspec.structs import replace

from ollamaops.report.history_text import (
    render_run_diff,
    render_run_record,
    render_runs,
    run_diff_to_json,
    run_record_to_json,
    runs_to_json,
)
from ollamaops.state.records import UNFINISHED, RunRecord

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def outcomes(*pairs: tuple[str, str]) -> str:
    return json.dumps([{"host": "gpu-1", "action": action, "result": result} for action, result in pairs])


A_RUN = RunRecord(
    run_id="3f2a9c",
    at="2026-11-22T10:00:00.000Z",
    ended_at="2026-11-22T10:01:00.000Z",
    command="apply",
    hosts="{}",
    manifest_digest="ab" * 32,
    exit_code=0,
    plan='{"format": "ollamaops-plan"}',
    outcomes=outcomes(("gpu-1/pull/a", "succeeded"), ("gpu-1/create/b", "succeeded")),
    who="alice@build-7",
    commit=COMMIT + "-dirty",
)
OTHER = replace(
    A_RUN,
    run_id="91bc07",
    command="apply --force protect",
    manifest_digest="cd" * 32,
    commit="",
    who="bob@laptop",
    exit_code=3,
    outcomes=json.dumps(
        [
            {"action": "gpu-1/create/b", "result": "failed", "error": "disk\x1b[31m full"},
            {"action": "gpu-1/delete/c", "result": "succeeded"},
        ]
    ),
)
KILLED = replace(A_RUN, run_id="77aa00", exit_code=UNFINISHED, ended_at="", outcomes="[]", commit="", who="")
DAMAGED = replace(A_RUN, outcomes="{", plan="{", hosts="")


def test_the_list_has_a_line_for_each_run() -> None:
    assert render_runs([OTHER, KILLED, A_RUN]) == (
        "RUN     WHEN                      WHO            COMMAND                COMMIT              RESULT\n"
        "91bc07  2026-11-22T10:00:00.000Z  bob@laptop     apply --force protect  -                   "
        "exit 3: 1 failed, 1 succeeded\n"
        "77aa00  2026-11-22T10:00:00.000Z                 apply                  -                   not finished\n"
        "3f2a9c  2026-11-22T10:00:00.000Z  alice@build-7  apply                  0123456789ab-dirty  "
        "exit 0: 2 succeeded\n"
    )


def test_without_runs_a_sentence_says_so() -> None:
    assert render_runs([]) == "no run has changed anything yet"


def test_one_run_is_shown_with_every_action() -> None:
    assert render_run_record(OTHER) == (
        "run       91bc07\n"
        "began     2026-11-22T10:00:00.000Z\n"
        "ended     2026-11-22T10:01:00.000Z\n"
        "who       bob@laptop\n"
        "command   apply --force protect\n"
        f"manifest  {'cd' * 32}\n"
        "commit    none\n"
        "result    exit 3: 1 failed, 1 succeeded\n"
        "\n"
        "  failed gpu-1/create/b: disk\\x1b[31m full\n"
        "  succeeded gpu-1/delete/c\n"
    )


def test_a_run_that_was_killed_says_so() -> None:
    shown = render_run_record(KILLED)
    assert ("ended     not finished\n" in shown, "who       not known\n" in shown) == (True, True)


def test_two_runs_are_told_apart_by_what_they_were_and_did() -> None:
    assert render_run_diff(A_RUN, OTHER) == (
        "3f2a9c → 91bc07\n"
        "who: alice@build-7 → bob@laptop\n"
        "command: apply → apply --force protect\n"
        "manifest: abababababab → cdcdcdcdcdcd\n"
        "commit: 0123456789ab-dirty → none\n"
        "exit: 0 → 3\n"
        "~ gpu-1/create/b: succeeded → failed\n"
        "+ gpu-1/delete/c: succeeded\n"
        "- gpu-1/pull/a: succeeded\n"
    )
    assert "exit: 0 → not finished" in render_run_diff(A_RUN, KILLED)
    assert render_run_diff(A_RUN, A_RUN) == "3f2a9c and 3f2a9c did the same, with the same end"


def test_colors_are_put_around_words_only_when_asked_for() -> None:
    for plain, colored in (
        (render_runs([A_RUN, OTHER, KILLED]), render_runs([A_RUN, OTHER, KILLED], color=True)),
        (render_run_record(OTHER), render_run_record(OTHER, color=True)),
        (render_run_diff(A_RUN, OTHER), render_run_diff(A_RUN, OTHER, color=True)),
    ):
        assert "\x1b" not in plain
        assert "\x1b[" in colored


@pytest.mark.parametrize(
    "damaged", [DAMAGED, replace(DAMAGED, outcomes="{}"), replace(DAMAGED, outcomes="[3]")]
)
def test_what_cannot_be_read_any_more_is_passed_over(damaged: RunRecord) -> None:
    assert render_runs([damaged]).splitlines()[1].endswith("exit 0")
    assert render_run_record(damaged).splitlines()[-2:] == ["result    exit 0", ""]
    document = run_record_to_json(damaged)
    assert (document["plan"], document["hosts"]) == (None, None)


def test_an_outcome_of_an_unknown_form_is_shown_with_question_marks() -> None:
    strange = replace(A_RUN, outcomes='[{"host": "x"}]')
    assert "  ? ?\n" in render_run_record(strange)
    assert runs_to_json([strange])["runs"] != []


def test_the_list_as_json_has_everything_but_plans() -> None:
    document = runs_to_json([A_RUN, KILLED])
    assert (document["format"], document["version"]) == ("ollamaops-history", 1)
    first, second = cast("list[dict[str, object]]", document["runs"])
    assert first == {
        "run_id": "3f2a9c",
        "began": "2026-11-22T10:00:00.000Z",
        "ended": "2026-11-22T10:01:00.000Z",
        "who": "alice@build-7",
        "command": "apply",
        "manifest_digest": "ab" * 32,
        "commit": COMMIT + "-dirty",
        "exit_code": 0,
        "summary": {"succeeded": 2},
    }
    assert (second["exit_code"], second["ended"], second["commit"]) == (None, None, None)
    assert json.loads(json.dumps(document)) == document


def test_the_difference_as_json_names_both_ends() -> None:
    assert run_diff_to_json(A_RUN, OTHER) == {
        "from": "3f2a9c",
        "to": "91bc07",
        "changed": {
            "who": ["alice@build-7", "bob@laptop"],
            "command": ["apply", "apply --force protect"],
            "manifest": ["abababababab", "cdcdcdcdcdcd"],
            "commit": ["0123456789ab-dirty", "none"],
            "exit": ["0", "3"],
        },
        "actions": {
            "gpu-1/create/b": ["succeeded", "failed"],
            "gpu-1/delete/c": [None, "succeeded"],
            "gpu-1/pull/a": ["succeeded", None],
        },
    }
