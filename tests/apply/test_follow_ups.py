"""What a further round may do, and what the report says of the last look."""

from __future__ import annotations

from live_host import (
    name,
)
from msgspec.structs import replace
from session_actions import copy, create, delete, pull, upload

from ollamaops.apply.converge import follow_ups, with_verdict
from ollamaops.events import (
    Failed,
    Outcome,
    Skipped,
    Succeeded,
)
from ollamaops.plan.actions import (
    Action,
    Difference,
    HostPlan,
    Note,
    id_of,
)
from ollamaops.plan.results import ActionResult, HostReport


def _report(*results: tuple[Action, Outcome], agreed: tuple[Action, ...] = ()) -> HostReport:
    return HostReport(
        host="gpu-1",
        plan=HostPlan(host="gpu-1", actions=agreed),
        results=tuple(ActionResult(action=action, outcome=outcome) for action, outcome in results),
    )


def _seen(*actions: Action) -> HostPlan:
    return HostPlan(host="gpu-1", actions=actions)


WORKED, BROKE = Succeeded(), Failed(error="no")


def test_a_further_round_repeats_nothing_that_was_tried() -> None:
    report = _report((pull("a"), WORKED), (copy("a", "b"), BROKE))
    assert follow_ups(_seen(pull("a"), copy("a", "b")), report) == ()


def test_a_further_round_leaves_models_alone_with_which_something_failed_and_what_needs_them() -> None:
    report = _report((copy("x", "a"), BROKE), (copy("x", "b"), Skipped(because="x")))
    fine = copy("x", "fine")
    child = replace(copy("a", "child"), needs=(id_of(pull("a")),))
    grandchild = replace(copy("child", "grandchild"), needs=(id_of(child),))
    assert follow_ups(_seen(pull("a"), create("b"), child, grandchild, fine), report) == (fine,)


def test_a_further_round_deletes_only_what_was_agreed_to() -> None:
    agreed, new = delete("a"), delete("b")
    assert follow_ups(_seen(agreed, new), _report(agreed=(agreed,))) == (agreed,)


def test_a_further_round_sends_and_pulls_only_what_something_else_needs() -> None:
    sent, declared, base, lost = upload("tiny-a.gguf"), pull("declared"), pull("base"), pull("lost")
    unused = upload("tiny-b.gguf")
    made = replace(create("legal"), needs=(id_of(sent), id_of(base)))
    seen = _seen(sent, unused, declared, base, lost, made)
    found = follow_ups(seen, _report((sent, WORKED)), declared={name("declared")})
    assert found == (sent, declared, base, made)


def test_the_verdict_is_what_the_last_look_says() -> None:
    why = Difference(host="gpu-1", model=name("a"), kind="missing")
    note = Note(host="gpu-1", message="odd")
    verdicts = [
        with_verdict(_report(), HostPlan(host="gpu-1", actions=actions, notes=notes))
        for actions, notes in (
            ((), ()),
            ((), (note,)),
            ((), (replace(note, unresolved=True),)),
            ((replace(pull("a"), because=(why,)),), ()),
        )
    ]
    assert [verdict.verified for verdict in verdicts] == [True, True, False, False]
    assert verdicts[3].remaining == (why,)
    assert verdicts[1].notes == (note,)
