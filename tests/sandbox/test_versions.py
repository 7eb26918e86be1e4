"""As which version the sandbox behaves: the recorded ones as recorded, those between by what began when.

The table of what began when is the sandbox's own; here it is held against the client's, which shares no code with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest
from sandbox_caller import a_caller

from ollamaops.ollama.features import ServerVersion, features_of
from ollamaops.sandbox.behavior import BEGAN, NEWEST, RECORDED, Behavior, behavior_for

VERSIONS = list(RECORDED)


@pytest.mark.parametrize(
    ("version", "recorded"),
    [
        ("0.1.0", "0.3.4"),
        ("0.3.5", "0.3.4"),
        ("0.5.6", None),
        ("0.5.7", "0.5.7"),
        ("0.5.12", "0.5.7"),
        ("v0.6.8-rc1", "0.6.8"),
        ("0.13.5", "0.12.11"),
        ("0.24.0", None),
        ("0.32.14", None),
        ("0.33.0", "0.33.0-rc2"),
        ("1.0", "0.33.0-rc2"),
        ("0.0.0", "0.33.0-rc2"),
        ("dev", "0.33.0-rc2"),
    ],
)
def test_a_version_between_two_recorded_ones_is_like_the_older_plus_what_began(
    version: str, recorded: str | None
) -> None:
    alike = [name for name, behavior in RECORDED.items() if behavior == behavior_for(version)]
    assert (recorded in alike) if recorded else not alike


@pytest.mark.parametrize("version", VERSIONS)
def test_a_recorded_version_behaves_as_it_was_recorded(version: str) -> None:
    assert behavior_for(version) == RECORDED[version]


def text_of(number: Sequence[int]) -> str:
    return ".".join(map(str, number))


def just_below(number: Sequence[int]) -> str:
    """A version of the last minor line, or patch, before a version."""
    major, minor, patch = number
    return text_of((major, minor, patch - 1) if patch else (major, minor - 1, 99))


def flag_of(version: str, flag: str) -> object:
    behavior = behavior_for(version)
    return getattr(behavior if hasattr(behavior, flag) else behavior.inference, flag)


@pytest.mark.parametrize(
    ("since", "flag"), [(since, flag) for since, flags in BEGAN.items() for flag in flags], ids=str
)
def test_a_feature_is_absent_just_below_the_version_in_which_it_began(
    since: tuple[int, int, int], flag: str
) -> None:
    newer = next(version for version in VERSIONS if ServerVersion.parse(version).is_at_least(since))
    assert flag_of(text_of(since), flag) == flag_of(newer, flag)
    assert flag_of(just_below(since), flag) != flag_of(text_of(since), flag)


# flag → the feature by which the client knows the same fact; `not ` where one is the other's reverse
KNOWN_TO_THE_CLIENT = {
    "empty_embed": "embed_empty_loads",
    "adapters_by_metadata": "not gguf_adapters_misread",
    "schema_format": "format_takes_schema",
    "structured_create": "structured_create",
    "waits_for_last_success": "stream_false_waits_to_end",
    "config_extras": "renderer_and_parser",
    "errors_end_streams": "stream_ends_at_error",
    "renderer_inherited": "renderer_and_parser_inherited",
    "requires_known": "requires_field",
    "source_suffixes": "suffix_routing",
    "raw_manifests": "raw_registry_manifest",
    "drafts": "drafts",
    "splits_merge": "split_gguf",
    "rewrites_gguf": "gguf_rewritten",
}


@pytest.mark.parametrize(("flag", "feature"), KNOWN_TO_THE_CLIENT.items())
def test_the_sandbox_has_at_every_version_the_features_that_the_client_expects(
    flag: str, feature: str
) -> None:
    around = [version for since in BEGAN for version in (just_below(since), text_of(since))]
    for version in (*around, *VERSIONS):
        known = getattr(features_of(ServerVersion.parse(version)), feature.removeprefix("not "))
        if version == "0.3.4" or ServerVersion.parse(version).is_at_least((0, 3, 4)):
            assert bool(flag_of(version, flag)) is (known is not feature.startswith("not ")), version


# differences between two recorded servers that began in a version that is not known
FROM_THE_RECORDED_VERSION_ON = {
    "0.5.7": {
        *("projector_test", "old_chatml", "push_missing", "push_invalid", "blob_without_redirect"),
        "durations_in_ms",
    },
    "0.6.8": {"show_array_limit", "durations_in_ms"},
    "0.12.11": {"message_keys", "file_ends_checked", "projector_test", "converts", "tensor_type_names"},
    "0.32.15": {
        *("all_weights_described", "converted_bos_flags", "show_template_overlay", "ps_context_capped"),
        *("fresh_blob_lines", "unloads_at_once"),
    },
    "0.33.0-rc2": {"words_before_bad_text"},
}


@pytest.mark.parametrize(("old", "new"), [*pairwise(VERSIONS)])
def test_every_difference_between_recorded_servers_began_at_a_known_version_or_is_listed_as_unknown(
    old: str, new: str
) -> None:
    flags = [*asdict(Behavior()), *asdict(Behavior().inference)]
    differing = {flag for flag in flags if flag != "inference" and flag_of(old, flag) != flag_of(new, flag)}
    between = [
        since
        for since in BEGAN
        if ServerVersion.parse(new).is_at_least(since) and not ServerVersion.parse(old).is_at_least(since)
    ]
    known = {flag for since in between for flag in BEGAN[since]}
    assert differing - known == FROM_THE_RECORDED_VERSION_ON[new]


@pytest.mark.parametrize(
    ("version", "status", "error"),
    [
        ("0.14.3", 500, "invalid model path"),
        ("0.15.0", 500, "unqualified name: registry.ollama.ai/library/a@b:latest"),
        ("0.17.7", 500, "unqualified name: registry.ollama.ai/library/a@b:latest"),
        ("0.18.0", 400, "invalid model name"),
    ],
)
def test_show_refuses_an_invalid_name_in_the_words_of_the_version(
    version: str, status: int, error: str, tmp_path: Path
) -> None:
    with a_caller(tmp_path, version) as caller:
        reply = caller.post("show", model="a@b")
        assert (reply.status, reply.error) == (status, error)


@pytest.mark.parametrize(("version", "renderer"), [("0.12.6", ""), ("0.12.7", "RENDERER qwen3")])
def test_only_newer_servers_inherit_a_renderer(version: str, renderer: str, tmp_path: Path) -> None:
    with a_caller(tmp_path, version) as caller:
        caller.base()
        caller.create("mid", **{"from": "base"}, renderer="qwen3")
        caller.create("end", **{"from": "mid"})
        assert (renderer or "RENDERER") in str(caller.show("mid")["modelfile"])
        assert ("RENDERER" in str(caller.show("end")["modelfile"])) is bool(renderer)


def test_the_two_newest_recorded_servers_behave_alike_but_for_chance() -> None:
    newest = RECORDED[NEWEST]
    by_chance = replace(newest.inference, words_before_bad_text=2)
    assert RECORDED["0.32.15"] == replace(newest, inference=by_chance)
    assert newest == Behavior()
