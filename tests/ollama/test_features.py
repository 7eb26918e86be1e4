"""Versions and features: what is read from a version text, and what follows from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamaops.manifest.check import QUANTIZATIONS
from ollamaops.ollama.features import (
    Features,
    ServerVersion,
    features_of,
    first_version_with,
)
from ollamaops.sandbox.behavior import behavior_for


def features(text: str) -> Features:
    return features_of(ServerVersion.parse(text))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0.33.0-rc2", (0, 33, 0)),
        ("0.5.7-0-ga420a453", (0, 5, 7)),
        ("0.12.6-dirty", (0, 12, 6)),
        ("v0.3.4", (0, 3, 4)),
        (" 0.6.8\n", (0, 6, 8)),
        ("0.5", (0, 5, 0)),
        ("1.0.0+cuda12", (1, 0, 0)),
        ("0.5.7.1", (0, 5, 7)),
        ("0.0.0", None),
        ("0.0.0-dirty", None),
        ("0.0", None),
        ("HEAD", None),
        ("5", None),
    ],
)
def test_a_version_is_read_from_any_text(text: str, number: tuple[int, int, int] | None) -> None:
    version = ServerVersion.parse(text)
    assert version.number == number
    assert version.is_known == (number is not None)
    assert str(version) == text.strip()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "unknown"),
        ("\x1b[2J", "unknown"),
        ("0.5.7\nauth: {bearer: {command: [sh]}}", "0.5.7"),
        ("0.12.6 (ours)", "0.12.6"),
        ("0.12.6\u2028x", "0.12.6"),
        ("0." + "9" * 5000, "0." + "9" * 62),
    ],
)
def test_of_a_version_only_one_plain_word_is_said(text: str, said: str) -> None:
    assert str(ServerVersion.parse(text)) == said


@given(st.text())
def test_no_text_makes_parsing_fail(text: str) -> None:
    said = ServerVersion.parse(text).text
    assert said == "unknown" or text.strip().startswith(said)
    assert said.isascii()
    assert set(said).isdisjoint(" \n\x1b:#{")


BOUNDARIES = [
    ("min_p", "0.3.0", "0.3.1"),
    ("embed_empty_loads", "0.3.5", "0.3.6"),
    ("format_takes_schema", "0.4.7", "0.5.0"),
    ("folds_case", "0.5.1", "0.5.2"),
    ("structured_create", "0.5.4", "0.5.5"),
    ("stream_false_waits_to_end", "0.6.8", "0.7.0"),
    ("tells_wrong_methods", "0.6.8", "0.7.0"),
    ("renderer_and_parser", "0.11.11", "0.12.0"),
    ("stream_ends_at_error", "0.12.5", "0.12.6"),
    ("renderer_and_parser_inherited", "0.12.6", "0.12.7"),
    ("requires_field", "0.13.5", "0.14.0"),
    ("suffix_routing", "0.17.7", "0.18.0"),
    ("raw_registry_manifest", "0.18.3", "0.19.0"),
    ("quantizes_bf16", "0.21.2", "0.22.0"),
    ("drafts", "0.24.0", "0.30.0"),
    ("split_gguf", "0.24.0", "0.30.0"),
    ("gguf_rewritten", "0.24.0", "0.30.0"),
    ("jinja_in_template", "0.24.0", "0.30.0"),
    ("lists_capabilities", "0.24.0", "0.30.0"),
    ("deterministic_files", "0.24.0", "0.30.0"),
]
WINDOWS = [
    ("gguf_adapters_misread", None, "0.3.6", "0.3.7"),
    ("models_from_modelfile", None, "0.5.4", "0.5.5"),
    ("delete_prunes_everything", "0.5.12", "0.5.13", "0.5.14"),
]


@pytest.mark.parametrize(("flag", "before", "since"), BOUNDARIES)
def test_a_feature_begins_at_its_version(flag: str, before: str, since: str) -> None:
    assert getattr(features(before), flag) is False
    assert getattr(features(since), flag) is True
    assert getattr(features(f"{since}-rc1"), flag) is True
    assert getattr(features("99.0.0"), flag) is True
    assert first_version_with(flag) == since


@pytest.mark.parametrize(("flag", "before", "last", "after"), WINDOWS)
def test_a_passing_trait_begins_and_ends(flag: str, before: str | None, last: str, after: str) -> None:
    assert before is None or getattr(features(before), flag) is False
    assert getattr(features(last), flag) is True
    assert getattr(features(after), flag) is False


FLAGS = sorted(set(Features.__struct_fields__) - {"version", "quantize_types"})


def test_every_flag_has_a_boundary_here() -> None:
    assert sorted([row[0] for row in BOUNDARIES] + [row[0] for row in WINDOWS]) == FLAGS


def test_an_unknown_version_is_the_newest_but_for_what_would_lose_a_model() -> None:
    unknown, newest = features("0.0.0"), features("99.0.0")
    different = {name for name in FLAGS if getattr(unknown, name) != getattr(newest, name)}
    assert different == {
        "stream_false_waits_to_end",
        "stream_ends_at_error",
        "lists_capabilities",
        "deterministic_files",
    }
    assert unknown.structured_create
    assert not unknown.stream_ends_at_error


@given(st.tuples(*[st.integers(0, 40)] * 3), st.tuples(*[st.integers(0, 40)] * 3))
def test_what_began_never_ends(one: tuple[int, int, int], other: tuple[int, int, int]) -> None:
    older, newer = sorted([one, other])
    older = max(older, (0, 0, 1))
    newer = max(newer, older)
    old, new = (features(".".join(map(str, number))) for number in (older, newer))
    assert all(getattr(new, flag) for flag, _, _ in BOUNDARIES if getattr(old, flag))


@pytest.mark.parametrize(
    ("version", "quantize", "taken"),
    [
        ("0.6.8", "q5_K_M", True),
        ("0.6.8", "IQ3_M", True),
        ("0.6.8", "Q4_K", False),
        ("0.7.0", "Q4_K", True),
        ("0.7.0", "Q5_K_M", False),
        ("0.7.0", "q4_k_m", True),
        ("0.33.0", "q8_0", True),
        ("0.33.0", "F16", True),
        ("0.0.0", "Q4_0", False),
        ("0.3.4", "Q99", False),
    ],
)
def test_quantization_types_depend_on_the_version(version: str, quantize: str, taken: bool) -> None:
    assert features(version).takes_quantize(quantize) is taken


@pytest.mark.parametrize("version", ["0.3.4", "0.5.7", "0.6.8", "0.12.11", "0.32.15", "0.33.0-rc2"])
def test_the_sandbox_quantizes_to_what_a_server_of_that_version_is_taken_to_make(version: str) -> None:
    taken = {*behavior_for(version).quantize_types}
    assert features(version).quantize_types - {"Q4_K"} == taken  # another word for Q4_K_M


def test_a_manifest_may_ask_for_what_some_server_makes_and_for_nothing_else() -> None:
    made = (features(version).quantize_types for version in ("0.6.8", "0.33.0"))
    assert frozenset(QUANTIZATIONS) == frozenset().union(*made)


@pytest.mark.parametrize(
    "server, wanted, is_older",
    [
        ("0.5.7", "0.12.6", True),
        ("0.12.6", "0.12.6", False),
        ("0.12.6", "v0.12.7", True),
        ("0.33.0-rc2", "0.33.0", False),
        ("0.32.15", "0.33", True),
        ("0.0.0", "99.0", False),
        ("somebody's build", "99.0", False),
        ("0.1.0", "not a version", False),
    ],
)
def test_a_server_is_older_only_when_both_versions_are_known(
    server: str, wanted: str, is_older: bool
) -> None:
    assert ServerVersion.parse(server).is_older_than(wanted) == is_older
