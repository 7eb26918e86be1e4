"""What prune does of a plan: its deletions, and none while the host is not as declared."""

from __future__ import annotations

from ollamaops.names import ModelName
from ollamaops.plan.actions import DeleteModel, Difference, HostPlan, Kind, Note, PullModel
from ollamaops.plan.deletions import only_prune

KEPT = Note(host="h", message="weights not verified")


def a_name(text: str) -> ModelName:
    return ModelName.parse(text)


def a_delete(name: str, kind: Kind = "undeclared", needs: tuple[str, ...] = ()) -> DeleteModel:
    because = (Difference(host="h", model=a_name(name), kind=kind),)
    return DeleteModel(host="h", model=a_name(name), because=because, needs=needs)


PULL = PullModel(host="h", model=a_name("a"))


def test_deletions_of_undeclared_models_stay_and_need_nothing_more() -> None:
    plan = HostPlan(host="h", actions=(a_delete("x", needs=("h/pull/a",)), a_delete("y")), notes=(KEPT,))
    only = only_prune(plan)
    assert only.actions == (a_delete("x"), a_delete("y"))
    assert only.notes == (KEPT,)


def test_nothing_goes_while_other_changes_are_pending() -> None:
    plan = HostPlan(host="h", actions=(PULL, a_delete("old", "unwanted"), a_delete("x")), notes=(KEPT,))
    only = only_prune(plan)
    assert only.actions == ()
    assert only.notes == (
        KEPT,
        Note(
            host="h",
            message="not pruned while other changes are pending (2): x:latest",
            hint="run ollamaops apply first, or use --force pending for this run",
            unresolved=True,
        ),
    )
    assert only_prune(plan, force={"pending"}).actions == (a_delete("x"),)


def test_drift_that_no_action_mends_does_not_keep_prune_from_deleting_and_is_told() -> None:
    found = Difference(host="h", model=ModelName.parse("b"), kind="template")
    note = Note(host="h", message="m", lasting=(found,))
    only = only_prune(HostPlan(host="h", actions=(a_delete("x"),), notes=(KEPT, note)))
    assert only.actions == (a_delete("x"),)
    assert only.notes == (KEPT, note)


def test_a_pull_that_only_finds_out_is_not_pending_but_unknown() -> None:
    why = (Difference(host="h", model=a_name("a"), kind="unknown"),)
    note = Note(host="h", model=a_name("a"), message="m", waits=True)
    check = PullModel(host="h", model=a_name("a"), because=why)
    only = only_prune(HostPlan(host="h", actions=(check, a_delete("x")), notes=(note,)))
    assert only.actions == (a_delete("x"),)
    assert [each.unresolved for each in only.notes] == [True]


def test_nothing_goes_while_a_model_is_missing_that_cannot_be_had() -> None:
    missing = (Difference(host="h", model=a_name("a"), kind="missing"),)
    note = Note(host="h", model=a_name("a"), message="m", lasting=missing)
    only = only_prune(HostPlan(host="h", actions=(a_delete("x"),), notes=(note,)))
    assert only.actions == ()
    assert only.notes[-1].message == "not pruned while other changes are pending (1): x:latest"


def test_pending_changes_alone_are_no_concern_of_prune() -> None:
    only = only_prune(HostPlan(host="h", actions=(PULL,)))
    assert (only.actions, only.notes) == ((), ())
