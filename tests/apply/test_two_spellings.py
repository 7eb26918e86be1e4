"""Names that differ only in case: two models to servers before 0.5.2, one to later ones, whatever is stored."""

from __future__ import annotations

import pytest
from live_host import (
    BASE,
    VERSIONS,
    LiveHost,
    a_build,
    a_copy,
    a_host,
    a_model,
    an_absence,
    assert_converged,
    name,
)

from ollamaops.manifest.types import ModelSpec, Policy, Pull
from ollamaops.names import NamePattern
from ollamaops.sandbox.model_name import parse_name

EXACT = "0.3.4"
FOLDING = [version for version in VERSIONS if version != EXACT]


def spell_also(host: LiveHost, model: str, other: str) -> None:
    """Give a model's manifest another name by hand, which no request does."""
    store = host.sandbox.store
    path = store.manifest_path(parse_name(other))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(store.manifest_path(parse_name(model)).read_bytes())


def left(host: LiveHost, *models: ModelSpec) -> dict[str, str]:
    """What is said of models that no plan makes as declared."""
    notes = host.plan(models).notes
    return {str(note.model): note.message for note in notes if note.unresolved or note.lasting}


@pytest.mark.parametrize(
    "wanted",
    [
        a_model("shop", Pull(ref=name(BASE))),
        a_model("shop", a_build(BASE, system="b")),
        a_model("shop", a_copy(BASE)),
    ],
    ids=["pull", "from", "copy"],
)
def test_an_old_server_has_no_shop_when_it_has_a_Shop(wanted: ModelSpec) -> None:  # noqa: N802
    with a_host(EXACT) as host:
        host.stranger.pull(BASE)
        host.stranger.create("Shop", BASE, system="theirs")
        before = host.stranger.tags()
        report = host.apply([wanted], [an_absence("SHOP")])
        assert not report.verified
        assert host.stranger.tags() == before
        assert "'Shop:latest' is there: to this server another model" in str(left(host, wanted))


@pytest.mark.parametrize("pattern", ["shop", "s*"])
def test_an_old_server_loses_the_spelling_that_is_declared_absent_and_no_other(pattern: str) -> None:
    with a_host(EXACT) as host:
        host.stranger.pull(BASE)
        host.stranger.create("Shop", BASE, system="theirs")
        spell_also(host, "Shop", "shop")
        report = host.apply([a_model(BASE)], [an_absence(pattern)])
        assert_converged(host, report)
        assert host.stranger.tags().keys() == {BASE, "Shop:latest"}


def test_an_old_server_with_both_is_judged_by_the_spelling_that_is_declared() -> None:
    with a_host(EXACT) as host:
        models = [a_model(BASE), a_model("shop", a_build(BASE, system="b"))]
        assert_converged(host, host.apply(models))
        spell_also(host, BASE, "Shop")
        host.policy = Policy(prune=(NamePattern.parse("*"),))
        assert host.plan(models).actions == ()
        assert host.plan(models).unmanaged == (name("shop"),)
        before = host.stranger.tags()
        report = host.apply([a_model(BASE), a_model("shop", a_build(BASE, system="c"))])
        assert not report.verified
        assert host.stranger.tags() == before


def test_an_old_server_makes_a_model_from_the_base_as_the_entry_spells_it() -> None:
    with a_host(EXACT) as host:
        models = [a_model("Bot", a_build("SHOP", system="b")), a_model("shop", a_copy(BASE))]
        assert_converged(host, host.apply(models))
        assert host.stranger.tags().keys() == {BASE, "shop:latest", "Bot:latest"}


@pytest.mark.parametrize("version", FOLDING)
def test_both_spellings_of_an_absent_model_go_in_one_run(host: LiveHost) -> None:
    host.stranger.pull(BASE)
    host.stranger.create("Shop:V1", BASE, system="theirs")
    spell_also(host, "Shop:V1", "shop:v1")
    spell_also(host, BASE, "SHOP:v1")
    report = host.apply([a_model(BASE)], [an_absence("shop:v1")])
    assert_converged(host, report)
    assert host.stranger.tags().keys() == {BASE}


@pytest.mark.parametrize("version", FOLDING)
def test_of_two_spellings_with_different_contents_nothing_is_claimed_and_neither_is_touched(
    host: LiveHost,
) -> None:
    models = [a_model(BASE), a_model("shop", a_build(BASE, system="b")), a_model("chat", a_copy("shop"))]
    assert_converged(host, host.apply(models))
    spell_also(host, BASE, "Shop")
    before = host.stranger.tags()
    found = left(host, *models)
    assert found.keys() == {"shop:latest", "chat:latest"}
    assert "with different contents, and the server answers with either" in found["shop:latest"]
    assert not host.apply(models).verified
    assert host.stranger.tags() == before


@pytest.mark.parametrize("version", FOLDING[-1:])
def test_two_spellings_with_the_same_content_are_as_declared_until_they_have_to_change(
    host: LiveHost,
) -> None:
    models = [a_model(BASE), a_model("shop", a_build(BASE, system="b"))]
    assert_converged(host, host.apply(models))
    spell_also(host, "shop", "Shop")
    assert host.plan(models).actions == ()
    assert left(host, *models) == {}
    changed = [a_model(BASE), a_model("shop", a_build(BASE, system="c"))]
    assert "the server writes to either" in left(host, *changed)["shop:latest"]
