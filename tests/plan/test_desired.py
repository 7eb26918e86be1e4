"""The declaration of one host, made ready to be compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from msgspec.structs import replace
from plan_world import FILES as WORLD_FILES
from plan_world import declarations

from ollamaops.files.location import FileInfo, Location
from ollamaops.manifest.types import AbsentSpec, Build, Copy, ModelSpec, Pull, WeightsFile
from ollamaops.names import Digest, ModelName, NamePattern
from ollamaops.plan.actions import Blob
from ollamaops.plan.desired import (
    DesiredHost,
    DesiredModel,
    build_desired,
    build_model,
)
from ollamaops.settings import Message
from ollamaops.state.records import NO_FINGERPRINT, Fingerprint

A, B, C = Path("/w/a.gguf"), Path("/w/b.gguf"), Path("/w/c.gguf")
FILES: dict[Location, FileInfo] = {
    path: FileInfo(digest=Digest.of(path.name.encode()), size_bytes=number)
    for number, path in enumerate((A, B, C), start=1)
}


def a_name(text: str) -> ModelName:
    return ModelName.parse(text)


def a_file(path: Path) -> WeightsFile:
    return WeightsFile(path, path.name)


def a_build(base: str | None = "base", **parts: Any) -> ModelSpec:
    return ModelSpec(name=a_name("bot"), source=Build(base=a_name(base) if base else None, **parts))


def a_pull(name: str, ref: str = "", **parts: Any) -> ModelSpec:
    return ModelSpec(name=a_name(name), source=Pull(ref=a_name(ref or name)), **parts)


def a_copy(name: str, source: str) -> ModelSpec:
    return ModelSpec(name=a_name(name), source=Copy(source=a_name(source)))


def fingerprint(spec: ModelSpec) -> Fingerprint:
    return build_model(spec, FILES).fingerprint


def names(models: tuple[DesiredModel, ...]) -> list[str]:
    return [str(model.name) for model in models]


FULL = a_build(
    template="t",
    system="s",
    parameters={"top_k": 1, "stop": ("a",)},
    messages=(Message("user", "hi"),),
    licenses=("MIT",),
    renderer="r",
    parser="p",
    requires="0.14.0",
    adapters=(a_file(A),),
    drafts=(a_file(B),),
    quantize="Q8_0",
    draft_quantize="Q4_K_M",
)
WORDS: list[Mapping[str, Any]] = [
    {"base": a_name("other")},
    {"template": None},
    {"system": "x"},
    {"parameters": {"top_k": 2, "stop": ("a",)}},
    {"parameters": {"top_k": 1.5, "stop": ("a",)}},
    {"parameters": {"top_k": True, "stop": ("a",)}},
    {"parameters": {"top_k": "1", "stop": ("a",)}},
    {"parameters": {"top_k": None, "stop": ("a",)}},
    {"parameters": {"top_k": 1, "stop": ()}},
    {"messages": (Message("assistant", "hi"),)},
    {"licenses": ("MIT", "MIT")},
    {"renderer": "x"},
    {"parser": "x"},
    {"requires": "0.15.0"},
]
WEIGHTS: list[Mapping[str, Any]] = [
    {"adapters": (a_file(C),)},
    {"drafts": ()},
    {"quantize": None},
    {"draft_quantize": None},
    {"files": (a_file(C),)},
]


@pytest.mark.parametrize("change", WORDS, ids=str)
def test_a_change_of_words_changes_the_fingerprint_and_not_its_weights(change: Mapping[str, Any]) -> None:
    assert isinstance(FULL.source, Build)
    changed = fingerprint(replace(FULL, source=replace(FULL.source, **change)))
    assert changed.words != fingerprint(FULL).words
    assert changed.weights == fingerprint(FULL).weights


@pytest.mark.parametrize("change", WEIGHTS, ids=str)
def test_a_change_of_weights_is_told_from_one_of_words(change: Mapping[str, Any]) -> None:
    assert isinstance(FULL.source, Build)
    changed = fingerprint(replace(FULL, source=replace(FULL.source, **change)))
    assert changed.weights != fingerprint(FULL).weights
    assert changed.words == fingerprint(FULL).words


def test_the_fingerprint_knows_nothing_of_how_things_are_spelled_or_ordered() -> None:
    one = a_build("base", parameters={"top_k": 1, "num_ctx": 4096.0, "odd": 10**400})
    other = a_build("BASE:latest", parameters={"odd": 10**400, "num_ctx": 4096, "top_k": 1.0})
    assert fingerprint(one) == fingerprint(replace(other, name=a_name("cat"), retries=9, protect=True))


def test_files_count_by_what_is_in_them() -> None:
    moved = FILES | {Path("/other/x.gguf"): FILES[A]}
    one = build_model(a_build(None, files=(a_file(A),)), moved)
    other = build_model(a_build(None, files=(a_file(Path("/other/x.gguf")),)), moved)
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize(
    "other",
    [
        a_pull("a", "b"),
        a_pull("a", digest=Digest.of(b"p")),
        a_copy("a", "b"),
        a_copy("a", "a"),
        a_build("a"),
    ],
    ids=str,
)
def test_sources_differ_in_their_fingerprints(other: ModelSpec) -> None:
    assert fingerprint(other) != fingerprint(a_pull("a"))


def test_two_pins_are_two_declarations() -> None:
    one, other = (fingerprint(a_pull("a", digest=Digest.of(word))) for word in (b"p", b"q"))
    assert one != other


def test_a_fingerprint_comes_back_from_its_text() -> None:
    assert Fingerprint.parse(str(fingerprint(FULL))) == fingerprint(FULL)
    assert str(fingerprint(FULL)) == f"{fingerprint(FULL).words}:{fingerprint(FULL).weights}"
    assert Fingerprint.parse("") == NO_FINGERPRINT
    assert str(NO_FINGERPRINT) == ""


def test_a_build_becomes_a_recipe_with_digests_for_files() -> None:
    spec = a_build(None, files=(a_file(A),), adapters=(a_file(B),), drafts=(a_file(C),))
    model = build_model(spec, FILES)
    assert model.recipe is not None
    assert model.recipe.files == (Blob("a.gguf", FILES[A].digest),)
    assert [blob.path for blob in model.blobs] == ["/w/a.gguf", "/w/b.gguf", "/w/c.gguf"]
    assert [blob.size_bytes for blob in model.blobs] == [1, 2, 3]
    assert model.weights == (FILES[A],)


def test_an_undeclared_base_is_added_and_belongs_to_nobody() -> None:
    desired = build_desired("h", [a_build("base"), a_copy("chat", "BOT")])
    assert [(str(model.name), model.implicit) for model in desired.models] == [
        ("base:latest", True),
        ("bot:latest", False),
        ("chat:latest", False),
    ]


SPECS = [a_copy("chat", "bot"), a_build("base"), a_pull("mirror", "reg.lan/x/m:v1"), a_pull("other")]
SPECS[3] = replace(SPECS[3], push=a_name("me/other"), moved_from=a_name("old"))


def chosen(*targets: str, absent: tuple[str, ...] = ()) -> DesiredHost:
    return build_desired(
        "h",
        SPECS,
        absent=[AbsentSpec(pattern=NamePattern.parse(text)) for text in absent],
        targets=[NamePattern.parse(text) for text in targets],
    )


def test_without_targets_everything_is_wanted() -> None:
    desired = chosen(absent=("gone", "draft:*"))
    assert names(desired.models) == [
        "base:latest",
        "bot:latest",
        "chat:latest",
        "mirror:latest",
        "other:latest",
    ]
    assert desired.left_out == ()
    assert desired.complete
    assert len(desired.absent) == 2


def test_targets_come_with_what_they_are_made_from() -> None:
    desired = chosen("chat")
    assert names(desired.models) == ["base:latest", "bot:latest", "chat:latest"]
    assert names(desired.left_out) == ["mirror:latest", "other:latest"]
    assert not desired.complete


def test_an_undeclared_base_is_no_target() -> None:
    assert chosen("base").models == ()


@pytest.mark.parametrize(
    ("target", "kept"),
    [("gone", ["gone"]), ("go*", ["gone"]), ("draft:*", ["draft:*"]), ("draft:a", []), ("*", ["gone"])],
)
def test_a_removal_is_a_target_by_its_name_or_by_its_own_glob(target: str, kept: list[str]) -> None:
    desired = chosen(target, absent=("gone", "draft:*"))
    assert [entry.pattern.text for entry in desired.absent] == kept


@pytest.mark.parametrize("targets", [(), ("chat",)])
def test_every_name_of_the_declaration_is_claimed_whatever_the_targets(targets: tuple[str, ...]) -> None:
    desired = chosen(*targets)
    needed = {"base", "bot", "chat", "mirror", "reg.lan/x/m:v1", "other", "me/other"}
    assert desired.needed == set(map(a_name, needed))
    assert desired.claimed == desired.needed | {a_name("old")}


@given(declarations())
def test_everything_comes_after_what_it_is_made_from(specs: list[ModelSpec]) -> None:
    before: set[ModelName] = set()
    for model in build_desired("h", specs, files=WORLD_FILES).models:
        assert model.made_from is None or model.made_from in before
        before.add(model.name)
    assert before >= {spec.name for spec in specs}
