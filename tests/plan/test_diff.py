"""When a built model is the same as its declaration, and what is said when it is not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from plan_world import FILES, INSIDES, VERSIONS, build, builds, registry_model, sealed

from ollamaops.files.location import FileInfo
from ollamaops.manifest.types import Build, ModelSpec, Pull, WeightsFile
from ollamaops.names import Digest, ModelName
from ollamaops.ollama.contents import NO_TEMPLATE, Contents
from ollamaops.ollama.features import ServerVersion, features_of
from ollamaops.plan.actions import Difference
from ollamaops.plan.comparison import Differs, InSync
from ollamaops.plan.desired import DesiredModel, build_model
from ollamaops.plan.diff import compare_build, ignores_weights, is_ignored
from ollamaops.settings import Message
from ollamaops.state.records import Fingerprint, ModelRecord

NEW, OLD = features_of(ServerVersion.parse("0.33.0")), features_of(ServerVersion.parse("0.12.11"))
W = Digest.of(b"W")
GGUF = Path("/w/w.gguf")


def a_model(base: str | None = "base", *, ignore: tuple[str, ...] = (), **parts: Any) -> DesiredModel:
    source = Build(base=ModelName.parse(base) if base else None, **parts)
    return build_model(ModelSpec(name=ModelName.parse("bot"), source=source, ignore=ignore), FILES)


def inside(**parts: Any) -> Contents:
    defaults: dict[str, Any] = {"digest": "0" * 64, "blobs": (W,), "template": NO_TEMPLATE}
    return Contents(**{**defaults, **parts})


def compared(model: DesiredModel, own: Contents, base: Contents | None = None) -> InSync | Differs:
    return compare_build("h", model, own, base, NEW)


def differences(comparison: InSync | Differs) -> tuple[Difference, ...]:
    return comparison.differences if isinstance(comparison, Differs) else ()


def verdict_of(comparison: InSync | Differs) -> str:
    """On weights: "different" if they are among the differences."""
    if isinstance(comparison, InSync):
        return "same" if comparison.weights == "compared" else "unverified"
    return "different" if {"weights", "base"} & {found.kind for found in comparison.differences} else "same"


def said(comparison: InSync | Differs) -> list[tuple[str, str, str]]:
    return [(found.path, found.observed, found.desired) for found in differences(comparison)]


BASE = inside(system="s", parameters={"top_k": 40.0}, license_text="MIT", messages=(("user", "hi"),))


@pytest.mark.parametrize(
    ("declared", "observed", "expected"),
    [
        ({}, {"top_k": 40.0}, []),
        ({}, {"top_k": 40}, []),
        ({}, {"top_k": "40"}, [('"40"', "40")]),
        ({}, {}, [("", "40")]),
        ({}, {"top_k": 41.0}, [("41", "40")]),
        ({}, {"top_k": 40.5}, [("40.5", "40")]),
        ({}, {"top_k": "many"}, [('"many"', "40")]),
        ({}, {"top_k": True}, [("true", "40")]),
        ({}, {"top_k": None}, [("", "40")]),
        ({"top_k": 1}, {"top_k": 1.0}, []),
        ({"top_k": 1}, {"top_k": 40.0}, [("40", "1")]),
        ({"top_k": 1000000}, {"top_k": 1e06}, []),
        ({"top_k": None}, {}, []),
        ({"top_k": None}, {"top_k": None}, []),
        ({"top_k": None}, {"top_k": 40.0}, [("40", "")]),
        ({"temperature": 0.7}, {"top_k": 40.0, "temperature": "0.7"}, [('"0.7"', "0.7")]),
        ({"use_mmap": True}, {"top_k": 40.0, "use_mmap": "true"}, [('"true"', "true")]),
        ({"temperature": 0.7}, {"top_k": 40.0, "temperature": 0.699999988}, []),
        ({"temperature": 0.7}, {"top_k": 40.0, "temperature": 0.8}, [("0.8", "0.7")]),
        ({"use_mmap": False}, {"top_k": 40.0, "use_mmap": False}, []),
        ({"use_mmap": False}, {"top_k": 40.0, "use_mmap": True}, [("true", "false")]),
        ({"use_mmap": False}, {"top_k": 40.0, "use_mmap": 0.0}, [("0", "false")]),
        ({"stop": ("a", "b")}, {"top_k": 40.0, "stop": ("a", "b")}, []),
        ({"stop": ("a", "b")}, {"top_k": 40.0, "stop": ("b", "a")}, [('["b", "a"]', '["a", "b"]')]),
        ({"stop": ("a",)}, {"top_k": 40.0, "stop": "a"}, [('"a"', '["a"]')]),
        ({"stop": ("5",)}, {"top_k": 40.0, "stop": 5}, [("5", '["5"]')]),
        ({"stop": ()}, {"top_k": 40.0}, []),
        ({"stop": ()}, {"top_k": 40.0, "stop": ("a",)}, [('["a"]', "")]),
        ({"odd": ("a",)}, {"top_k": 40.0, "odd": "a"}, []),
        ({"odd": ("a", "b")}, {"top_k": 40.0, "odd": ("a", "b")}, []),
        ({"odd": ("a", "b")}, {"top_k": 40.0, "odd": ("a", "c")}, [('["a", "c"]', '["a", "b"]')]),
        ({"odd": "a"}, {"top_k": 40.0, "odd": "b"}, [("b", "a")]),
    ],
)
def test_parameters_are_compared_by_value_over_those_of_the_base(
    declared: Mapping[str, Any], observed: Mapping[str, Any], expected: list[tuple[str, str]]
) -> None:
    own = replace(BASE, parameters=observed)
    assert [found[1:] for found in said(compared(a_model(parameters=declared), own, BASE))] == expected


@pytest.mark.parametrize(
    ("parts", "change", "expected"),
    [
        ({}, {}, []),
        ({"template": "t"}, {"template": "t"}, []),
        ({"template": "t"}, {"template": "printed", "templates": frozenset({"t", "printed"})}, []),
        ({"template": "t"}, {}, [("template", NO_TEMPLATE, "t")]),
        ({}, {"template": "t"}, [("template", "t", NO_TEMPLATE)]),
        ({}, {"template": "t", "templates": frozenset({NO_TEMPLATE, "t"})}, []),
        ({"system": "x"}, {"system": "x"}, []),
        ({"system": "x"}, {}, [("system", "s", "x")]),
        ({}, {"system": ""}, [("system", "", "s")]),
        ({"system": "x"}, {"system": "x\n"}, [("system", "x\n", "x")]),
        ({}, {"messages": ()}, [("messages", "", "user: hi")]),
        ({"licenses": ("BSD",)}, {"license_text": "MIT\nBSD"}, []),
        ({"licenses": ("BSD",)}, {"license_text": "BSD"}, [("license", "BSD", "MIT\nBSD")]),
        ({"licenses": ("MIT",)}, {"license_text": "MIT"}, [("license", "MIT", "MIT\nMIT")]),
        ({}, {"license_text": "MIT\nMIT"}, [("license", "MIT\nMIT", "MIT")]),
        ({"renderer": "r"}, {"renderer": "r"}, []),
        ({"renderer": "r"}, {}, [("renderer", "", "r")]),
        ({}, {"renderer": "the server's own"}, []),
        ({"parser": "p"}, {"parser": "x"}, [("parser", "x", "p")]),
        ({"requires": "0.14.0"}, {}, [("requires", "", "0.14.0")]),
    ],
)
def test_texts_are_those_declared_over_those_of_the_base(
    parts: Mapping[str, Any], change: Mapping[str, Any], expected: list[tuple[str, str, str]]
) -> None:
    assert said(compared(a_model(**parts), replace(BASE, **change), BASE)) == expected


def test_two_models_without_any_template_have_the_same() -> None:
    assert compared(a_model(), inside(template=""), inside(template="")) == InSync()


def test_declared_messages_replace_those_of_the_base() -> None:

    model = a_model(messages=(Message("user", "a"), Message("assistant", "b")))
    own = replace(BASE, messages=(("user", "a"), ("assistant", "b")))
    assert said(compared(model, own, BASE)) == []
    assert said(compared(model, BASE, BASE)) == [("messages", "user: hi", "user: a\nassistant: b")]


@pytest.mark.parametrize(
    ("parts", "change", "paths"),
    [
        ({}, {"system": "x", "template": "x", "parameters": {"top_p": 1.0}, "license_text": "x"}, []),
        ({"system": "x"}, {}, ["system"]),
        ({"parameters": {"top_k": 1}}, {}, ["parameters.top_k"]),
        ({"parameters": {"top_k": None}}, {}, ["parameters.top_k"]),
        ({"licenses": ("BSD",)}, {}, ["license"]),
        ({"licenses": ("BSD",)}, {"license_text": "MIT\nBSD"}, []),
        ({"licenses": ("BSD",)}, {"license_text": "BSD"}, []),
        ({"licenses": ("BSD",)}, {"license_text": "FreeBSD"}, ["license"]),
    ],
)
def test_without_a_look_at_the_base_only_what_is_declared_is_compared(
    parts: Mapping[str, Any], change: Mapping[str, Any], paths: list[str]
) -> None:
    comparison = compared(a_model(**parts), replace(BASE, **change), None)
    assert [found.path for found in differences(comparison)] == paths
    assert verdict_of(comparison) == "same"


@pytest.mark.parametrize(
    ("path", "ignore", "expected"),
    [
        ("parameters.num_gpu", ("parameters.num_gpu",), True),
        ("parameters.num_gpu", ("parameters",), True),
        ("parameters.num_gpu", ("parameters.num",), False),
        ("parameters.num_gpu", ("num_gpu", "system"), False),
        ("system", ("system",), True),
        ("system", (), False),
    ],
)
def test_a_tolerated_field_covers_what_is_below_it(
    path: str, ignore: tuple[str, ...], expected: bool
) -> None:
    assert is_ignored(path, ignore) is expected


@pytest.mark.parametrize("word", ["weights", "from", "files", "digest"])
def test_weights_are_tolerated_under_each_of_their_names(word: str) -> None:
    assert ignores_weights((word, "system"))
    comparison = compared(a_model(ignore=(word,)), inside(blobs=()), inside())
    assert comparison == InSync()


def test_other_tolerated_fields_do_not_cover_the_weights() -> None:
    assert not ignores_weights(("system", "adapters", "parameters"))


def test_only_a_model_that_is_built_has_an_inside_to_compare() -> None:
    name = ModelName.parse("bot")
    model = build_model(ModelSpec(name=name, source=Pull(ref=name)), {})
    with pytest.raises(ValueError, match="bot:latest is not built from a recipe"):
        compared(model, inside())


# weights in themselves; that plans follow from them is in cases/plan/weights.yaml


def a_gguf(**parts: Any) -> tuple[DesiredModel, FileInfo]:
    header: dict[str, Any] = {"architecture": "llama", "parameter_count": 7, "quantization": "F16"}
    info = FileInfo(digest=W, size_bytes=1, **{**header, **parts})
    source = Build(files=(WeightsFile(GGUF, GGUF.name),))
    return build_model(ModelSpec(name=ModelName.parse("bot"), source=source), {GGUF: info}), info


@pytest.mark.parametrize(
    ("own", "verdict"),
    [
        ({}, "unverified"),
        ({"architecture": "llama", "parameter_count": 7, "quantization": "f16"}, "unverified"),
        ({"architecture": "bert"}, "different"),
        ({"architecture": "llama", "parameter_count": 8}, "different"),
        ({"architecture": "llama", "quantization": "Q8_0"}, "different"),
        ({"architecture": "llama", "quantization": "unknown"}, "unverified"),
        ({"architecture": "llama", "tensors": frozenset({("t", (1,))})}, "different"),
        ({"architecture": "llama", "tensors": frozenset({("t", (2,)), ("u", (1,))})}, "unverified"),
        ({"architecture": "llama", "tensors": frozenset({("t", (2, 1))})}, "unverified"),
        ({"architecture": "llama", "tensors": frozenset({("t", (1, 2))})}, "different"),
    ],
)
def test_without_memory_rewritten_weights_are_told_by_their_header(
    own: Mapping[str, Any], verdict: str
) -> None:
    model, _ = a_gguf(tensors=frozenset({("t", (2,))}))
    found = compare_build("h", model, inside(blobs=(Digest.of(b"made"),), **own), None, NEW)
    assert verdict_of(found) == verdict
    assert [difference.kind for difference in differences(found)] == ["weights"] * (verdict == "different")


@pytest.mark.parametrize("declared", [(2048, 1), (2048, 1, 1), (2048,)])
def test_a_tensor_is_the_same_with_and_without_dimensions_of_one_at_its_end(
    declared: tuple[int, ...],
) -> None:
    model, _ = a_gguf(tensors=frozenset({("t", declared), ("u", (1,)), ("v", (1, 3))}))
    stored = frozenset({("t", (2048,)), ("u", (1,)), ("v", (1, 3))})
    own = inside(blobs=(Digest.of(b"made"),), architecture="llama", tensors=stored)
    assert verdict_of(compare_build("h", model, own, None, NEW)) == "unverified"


def test_the_layer_is_the_file_where_the_server_does_not_rewrite_it() -> None:
    model, _ = a_gguf()
    assert compare_build("h", model, inside(), None, OLD) == InSync()
    found = compare_build("h", model, inside(blobs=(Digest.of(b"x"),)), None, OLD)
    assert [difference.kind for difference in differences(found)] == ["weights"]
    assert [difference.desired for difference in differences(found)] == [W.short]


@pytest.mark.parametrize(
    ("memory", "verdict"),
    [
        ({}, "same"),
        ({"weights_verified": False}, "unverified"),
        ({"blobs": ()}, "unverified"),
        ({"blobs": (str(Digest.of(b"x")),)}, "different"),
        ({"fingerprint": Fingerprint("words", "other")}, "different"),
        ({"fingerprint": Fingerprint("words"), "how": "adopted"}, "unverified"),
    ],
)
def test_with_memory_rewritten_weights_are_what_came_out_when_they_were_made(
    memory: Mapping[str, Any], verdict: str
) -> None:
    model, _ = a_gguf()
    facts: dict[str, Any] = {"fingerprint": model.fingerprint, "digest": "1" * 64, "how": "created"}
    facts |= {"blobs": (str(Digest.of(b"made")),), **memory}
    own = inside(blobs=(Digest.of(b"made"),))
    assert verdict_of(compare_build("h", model, own, None, NEW, memory=ModelRecord(**facts))) == verdict


# whatever a server makes of a declaration is the same as the declaration


@given(builds(("base",)), st.sampled_from(VERSIONS))
def test_what_a_server_makes_of_a_declaration_does_not_differ_from_it(source: Build, version: str) -> None:
    features = features_of(ServerVersion.parse(version))
    model = build_model(ModelSpec(name=ModelName.parse("bot"), source=source), FILES)
    base = registry_model("base") if source.base else None
    assert model.recipe is not None
    own = build(model.recipe, base, features)
    found = compare_build("h", model, own, base, features, just_made=True)
    assert found == InSync()


CHANGES: Mapping[str, Mapping[str, Any]] = {
    "system": {"system": "tampered"},
    "template": {"template": "tampered"},
    "messages": {"messages": (("user", "tampered"),)},
    "license": {"license_text": "tampered"},
    "parameters.num_gpu": {"parameters": {"num_gpu": 99}},
    "weights": {"blobs": (Digest.of(b"tampered"),)},
}


@given(INSIDES, st.sets(st.sampled_from(sorted(CHANGES)), min_size=1))
def test_exactly_the_changed_fields_differ(base: Contents, changed: set[str]) -> None:
    own = base
    for field in sorted(changed):
        change = dict(CHANGES[field])
        if "parameters" in change:
            change["parameters"] = {**own.parameters, **change["parameters"]}
        own = sealed(replace(own, **change))
    assert {found.path for found in differences(compared(a_model(), own, base))} == changed
    assert differences(compared(a_model(ignore=tuple(changed)), own, base)) == ()
