"""A plan says all that apply will do, and one apply does it: renames, missing bases, what others have changed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from breadth import in_turn
from live_host import BASE, VERSIONS, LiveHost, a_build, a_copy, a_host, a_model, assert_converged, name

from ollamaops.manifest.types import ModelSpec
from ollamaops.observe.run import RunOptions
from ollamaops.plan.actions import Plan, subject_of, verb_of
from ollamaops.report.status_text import build_status

pytestmark = in_turn("host")


@pytest.fixture(params=VERSIONS)
def host(request: pytest.FixtureRequest) -> Iterator[LiveHost]:
    with a_host(request.param, options=RunOptions(costs=False, ask_registry=False)) as running:
        running.stranger.pull(BASE)
        yield running


def announced(host: LiveHost, models: list[ModelSpec]) -> set[str]:
    return {f"{verb_of(action)} {subject_of(action)}" for action in host.plan(models).actions}


def assert_steady(host: LiveHost, models: list[ModelSpec]) -> None:
    """Nothing more is to be done, and the next look needs the version and the list alone."""
    assert host.plan(models).actions == ()
    assert host.requests_sent == 2


def test_a_template_or_stop_word_that_somebody_put_over_those_of_the_weights_is_mended(
    host: LiveHost,
) -> None:
    models = [a_model("tc", a_build(None, "tiny-chatml.gguf")), a_model("kid", a_build("tc", system="k"))]
    assert_converged(host, host.apply(models))
    ours = host.stranger.tags()
    for change in ({"parameters": {"stop": "zz"}}, {"template": "{{ .Prompt }} HACK"}):
        host.stranger.create("tc", "tc", **change)
        assert {"create tc:latest", "create kid:latest"} <= announced(host, models)
        assert_converged(host, host.apply(models))
        assert host.stranger.tags() == ours
    assert_steady(host, models)


def test_a_chain_of_models_is_renamed_in_one_run(host: LiveHost) -> None:
    def chain(*names: str, **before: str) -> list[ModelSpec]:
        bases = (BASE, *names)
        return [
            a_model(
                own,
                a_build(base, system=f"Number {number}."),
                moved_from=name(before[own]) if before else None,
            )
            for number, (own, base) in enumerate(zip(names, bases, strict=False))
        ]

    assert_converged(host, host.apply(chain("n", "k", "g")))
    digests = host.stranger.tags()
    renamed = chain("n2", "k2", "g2", n2="n", k2="k", g2="g")
    copies = {f"copy {new}:latest" for new in ("n2", "k2", "g2")}
    assert announced(host, renamed) == copies | {f"delete {old}:latest" for old in "nkg"}
    assert_converged(host, host.apply(renamed))
    assert host.stranger.tags() == {
        BASE: digests[BASE],
        **{f"{old}2:latest": digests[f"{old}:latest"] for old in "nkg"},
    }
    assert_steady(host, renamed)


def test_what_is_made_from_a_model_that_is_gone_and_has_changed_is_announced(host: LiveHost) -> None:
    def models(word: str) -> list[ModelSpec]:
        return [
            a_model("a", a_build(BASE, system=word)),
            a_model("b", a_copy("a")),
            a_model("k", a_build("a", parameters={"top_k": 3})),
        ]

    assert_converged(host, host.apply(models("one")))
    host.stranger.delete("a")
    assert announced(host, models("two")) == {"create a:latest", "copy b:latest", "create k:latest"}
    report = host.apply(models("two"))
    assert_converged(host, report)
    assert report.rounds == 1
    assert host.stranger.show("k")["system"] == "two"


def test_the_versions_that_are_kept_move_with_the_name(host: LiveHost) -> None:
    def bot(own: str, word: str, former: str | None = None) -> list[ModelSpec]:
        moved_from = name(former) if former else None
        return [a_model(own, a_build(BASE, system=word), keep_previous=1, moved_from=moved_from)]

    for word in ("one", "two"):
        assert_converged(host, host.apply(bot("a", word)))
    kept = host.stranger.tags()["a:latest-ollamaops-previous-1"]
    renamed = bot("b", "two", "a")
    assert_converged(host, host.apply(renamed))
    tags = host.stranger.tags()
    assert tags.keys() == {BASE, "b:latest", "b:latest-ollamaops-previous-1"}
    assert tags["b:latest-ollamaops-previous-1"] == kept
    assert_steady(host, renamed)


def test_what_a_renamed_and_changed_model_was_is_kept_before_its_older_versions(host: LiveHost) -> None:
    def bot(own: str, word: str, former: str | None = None) -> list[ModelSpec]:
        moved_from = name(former) if former else None
        return [a_model(own, a_build(BASE, system=word), keep_previous=2, moved_from=moved_from)]

    for word in ("one", "two"):
        assert_converged(host, host.apply(bot("a", word)))
    before = host.stranger.tags()
    changed = bot("b", "three", "a")
    assert_converged(host, host.apply(changed))
    after = host.stranger.tags()
    kept = [f"b:latest-ollamaops-previous-{number}" for number in (1, 2)]
    assert after.keys() == {BASE, "b:latest", *kept}
    assert [after[aside] for aside in kept] == [before["a:latest"], before["a:latest-ollamaops-previous-1"]]
    assert host.stranger.show("b")["system"] == "three"
    assert_steady(host, changed)


def test_a_base_that_is_renamed_and_changed_takes_along_what_is_made_from_it(host: LiveHost) -> None:
    before = [
        a_model("b", a_build(BASE, system="one")),
        a_model("k", a_build("b", parameters={"top_k": 3})),
        a_model("stays", a_build("b", parameters={"top_k": 4})),
    ]
    assert_converged(host, host.apply(before))
    after = [
        a_model("b2", a_build(BASE, system="two"), moved_from=name("b")),
        a_model("k2", a_build("b2", parameters={"top_k": 3}), moved_from=name("k")),
        a_model("stays", a_build("b2", parameters={"top_k": 4})),
    ]
    creates = {f"create {model}:latest" for model in ("b2", "k2", "stays")}
    assert announced(host, after) == creates | {"delete b:latest", "delete k:latest"}
    assert_converged(host, host.apply(after))
    assert {host.stranger.show(model)["system"] for model in ("b2", "k2", "stays")} == {"two"}
    assert_steady(host, after)


def test_what_memory_settles_is_renamed_although_its_base_is_gone(host: LiveHost) -> None:
    kid = a_model("kid", a_build(BASE, system="kid"))
    assert_converged(host, host.apply([a_model("z", a_build(BASE, system="s")), kid]))
    host.stranger.delete(BASE)
    renamed = [a_model("z2", a_build(BASE, system="s"), moved_from=name("z")), kid]
    assert announced(host, renamed) == {"copy z2:latest", "delete z:latest"}
    assert_converged(host, host.apply(renamed))
    pulled = [a_model("anew", a_build(BASE, system="new")), *renamed]
    assert announced(host, pulled) == {f"pull {BASE}", "create anew:latest"}
    assert_converged(host, host.apply(pulled))


def test_what_waits_for_its_base_is_unknown_until_then(host: LiveHost) -> None:
    models = [a_model("a", a_build(BASE, system="one")), a_model("b", a_copy("a"))]
    assert_converged(host, host.apply(models))
    host.stranger.delete("a")
    host.forget()
    plan = host.plan(models)
    states = {str(model): row["gpu-1"].state for model, row in build_status(Plan(hosts=(plan,))).items()}
    assert (states["a:latest"], states["b:latest"]) == ("missing", "unknown")
    assert_converged(host, host.apply(models))


def test_a_former_name_beside_the_new_one_is_removed_when_the_plan_says_so(host: LiveHost) -> None:
    before = [a_model(own, a_build(BASE, system=own)) for own in ("a", "b")]
    assert_converged(host, host.apply(before))
    after = [a_model("b", a_build(BASE, system="changed"), moved_from=name("a"))]
    assert announced(host, after) == {"create b:latest", "delete a:latest"}
    assert_converged(host, host.apply(after))
    assert host.stranger.tags().keys() == {BASE, "b:latest"}
