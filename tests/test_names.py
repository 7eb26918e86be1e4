"""Names, digests and patterns, held against what Ollama's own code says of 61 names."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NotRequired, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamaops.errors import InvalidName, InvalidValue
from ollamaops.names import Digest, ModelName, NamePattern

CONTRACT = Path(__file__).parent / "contract"


class Vector(TypedDict):
    """One name as Ollama reads it; `source` counts none, local, cloud."""

    valid: bool
    full: str
    display: NotRequired[str]
    scheme: str
    source: int
    base: str
    pull_name: NotRequired[str]


VECTORS: dict[str, Vector] = {
    v.pop("in"): v for v in json.loads((CONTRACT / "name-vectors.json").read_text())
}
VALID = [name for name, vector in VECTORS.items() if vector["valid"]]
INVALID = [name for name, vector in VECTORS.items() if not vector["valid"]]


@pytest.mark.parametrize("text", VALID)
def test_a_valid_name_is_read_as_ollama_reads_it(text: str) -> None:
    name, vector = ModelName.parse(text), VECTORS[text]
    assert (name.full, name.display, name.scheme) == (vector["full"], vector["display"], vector["scheme"])
    assert str(name) == name.display


@pytest.mark.parametrize("text", VALID)
def test_a_magic_suffix_leads_where_ollama_0_18_leads(text: str) -> None:
    name, vector = ModelName.parse(text), VECTORS[text]
    assert name.source_suffix == ("none", "local", "cloud")[vector["source"]]
    assert name.base == ModelName.parse(vector["base"])
    assert name.pull_name == ModelName.parse(vector["pull_name"])


@pytest.mark.parametrize("text", INVALID)
def test_a_name_that_ollama_refuses_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(InvalidName, match="is not a model name: ") as caught:
        ModelName.parse(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not a model name: the model is empty"),
        ("m:", "'m:' is not a model name: the tag is empty"),
        ("a//b", "'a//b' is not a model name: the namespace is empty"),
        ("/n/m", "'/n/m' is not a model name: the host is empty"),
        ("m\n", r"'m\n' is not a model name: the model 'm\n' contains '\n'"),
        ("hf.co/a.b/m", "'hf.co/a.b/m' is not a model name: the namespace 'a.b' contains '.'"),
        ("-m", "'-m' is not a model name: the model '-m' begins with '-'"),
        ("é", "'é' is not a model name: the model 'é' contains 'é'"),
        ("a/b/c/d", "'a/b/c/d' is not a model name: it has more parts than host, namespace and model"),
        ("n/" + "m" * 81, f"'n/{'m' * 81}' is not a model name: the model has 81 characters, 80 are allowed"),
        ("m" * 400, f"'{'m' * 256}' is not a model name: the model has 400 characters, 80 are allowed"),
    ],
)
def test_the_message_names_the_part_and_what_is_wrong_with_it(text: str, message: str) -> None:
    with pytest.raises(InvalidName) as caught:
        ModelName.parse(text)
    assert str(caught.value) == message


def test_a_name_with_a_digest_is_told_how_to_pin() -> None:
    with pytest.raises(InvalidName) as caught:
        ModelName.parse("llama3@sha256:" + "0" * 64)
    assert caught.value.hint == "Ollama cannot address a model by digest; pin it with digest: beside the name"


@pytest.mark.parametrize(
    "text",
    ["llama3@sha256:abc", "me/bot:v1@sha256-00", "localhost:5000/me/bot@sha256:" + "0" * 64, "llama3@v2"],
)
def test_what_stands_for_a_digest_is_shown_and_not_taken_for_a_password(text: str) -> None:
    with pytest.raises(InvalidName, match=re.escape(repr(text))) as caught:
        ModelName.parse(text)
    assert "pin it with digest:" in str(caught.value.hint)


@pytest.mark.parametrize("parse", [ModelName.parse, NamePattern.parse])
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("alice:s3cr3tpw@127.0.0.1:5000/team/mario:v1", "***@127.0.0.1:5000/team/mario:v1"),
        ("http://alice:s3cr3tpw@127.0.0.1:5000/team/mario:v1", "***@127.0.0.1:5000/team/mario:v1"),
        ("s3cr3tpw@host/team/mario", "***@host/team/mario"),
        ("alice:s3cr3t/pw@host/team/mario", "***@host/team/mario"),
        ("alice:s3cr3t@pw@host/team/mario", "***@host/team/mario"),
        ("alice:s3cr3t@sha256:5000/team/mario", "***@sha256:5000/team/mario"),
        ("alice:s3cr3t://pw@host/team/mario", "***@host/team/mario"),
        ("alice:s3cr3tpw@host", "***@host"),
        ("alice:s3cr3tpw@host/team/mario@sha256:00", "***@host/team/mario@sha256:00"),
        ("alice:s3cr3tpw@" + "h" * 400 + "/m", "***@" + "h" * 252),
    ],
)
def test_a_name_with_a_user_or_a_password_is_refused_without_showing_them(
    parse: Callable[[str], object], text: str, shown: str
) -> None:
    with pytest.raises(InvalidName) as caught:
        parse(text)
    assert str(caught.value) == f"{shown!r} is not a model name: a name holds no user and no password"
    assert caught.value.hint == "take out what stands before the '@'"


def test_a_pattern_with_a_user_or_a_password_is_refused_without_showing_them() -> None:
    with pytest.raises(InvalidName) as caught:
        NamePattern.parse("alice:s3cr3t*@host/*/*")
    assert (
        str(caught.value) == "'***@host/*/*' is not a pattern of names: a name holds no user and no password"
    )
    assert caught.value.hint == "take out what stands before the '@'"


@given(
    st.sampled_from(["", "http://", "hf://"]),
    st.text("abc.", max_size=5),
    st.text("0123456789XYZ:/@*?[]<>%é", min_size=5, max_size=12),
    st.sampled_from(["host", "host:port", "hf.co", "sha256:abc"]),
    st.sampled_from(["/team/mario", "/team/mario:latest", "/*/*", "/m@sha256:abc", "/"]),
    st.sampled_from([ModelName.parse, NamePattern.parse]),
)
def test_no_error_about_a_name_shows_a_password(
    scheme: str, user: str, secret: str, host: str, path: str, parse: Callable[[str], object]
) -> None:
    with pytest.raises(InvalidName) as caught:
        parse(f"{scheme}{user}:{secret}@{host}{path}")
    assert secret not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize("host", ["h" * 350, "_", "127.0.0.1:5000", "A-b.C_d:1"])
def test_a_registry_host_may_have_350_characters_and_a_port(host: str) -> None:
    name = ModelName.parse(f"{host}/me/bot")
    assert (name.registry_host, name.repository, name.is_default_registry) == (host, "me/bot", False)


def test_a_registry_host_of_351_characters_is_refused() -> None:
    with pytest.raises(InvalidName, match="the host has 351 characters, 350 are allowed"):
        ModelName.parse("h" * 351 + "/n/m")


@pytest.mark.parametrize("text", ["http:///me/bot", "://registry.ollama.ai/me/bot", "me/bot"])
def test_what_is_missing_around_the_scheme_is_the_default(text: str) -> None:
    assert ModelName.parse(text).full == "registry.ollama.ai/me/bot:latest"
    assert ModelName.parse(text).is_default_registry


@pytest.mark.parametrize(
    "other",
    [
        "LLAMA3.2:latest",
        "registry.ollama.ai/library/llama3.2:latest",
        "http://Registry.Ollama.AI/LIBRARY/Llama3.2",
    ],
)
def test_spelling_case_defaults_and_scheme_do_not_make_another_model(other: str) -> None:
    name = ModelName.parse("llama3.2")
    assert name == ModelName.parse(other)
    assert len({name, ModelName.parse(other)}) == 1


@pytest.mark.parametrize("other", ["llama3.2:3b", "me/llama3.2", "hf.co/library/llama3.2", "llama3_2"])
def test_another_part_makes_another_model(other: str) -> None:
    assert ModelName.parse("llama3.2") != ModelName.parse(other)


def test_a_name_is_not_equal_to_its_text() -> None:
    assert ModelName.parse("llama3") != "llama3:latest"


def test_a_name_has_no_order_with_text() -> None:
    with pytest.raises(TypeError):
        sorted([ModelName.parse("llama3"), "llama3"])  # type: ignore[type-var]  # the promise under test


def test_names_sort_by_their_full_name_whatever_their_case() -> None:
    names = [ModelName.parse(text) for text in ("b", "A:2", "a:1", "hf.co/x/y", "zoo/a")]
    assert [str(name) for name in sorted(names)] == [
        "hf.co/x/y:latest",
        "a:1",
        "A:2",
        "b:latest",
        "zoo/a:latest",
    ]


_first = st.sampled_from("azAZ09_")


def _part(more: str) -> st.SearchStrategy[str]:
    return st.builds(str.__add__, _first, st.text(more, max_size=20))


names = st.builds(
    ModelName,
    _part("aZ0_.:-").filter(lambda host: not host.endswith(":")) | st.just("registry.ollama.ai"),
    _part("aZ0_-") | st.just("library"),
    _part("aZ0_.-"),
    _part("aZ0_.-") | st.just("latest"),
)


@given(names)
def test_full_and_display_lead_back_to_the_same_name(name: ModelName) -> None:
    for text in (name.full, name.display):
        again = ModelName.parse(text)
        assert again == name
        assert again.full == name.full


@given(st.text(max_size=30) | st.text("aZ0_.:/-@", max_size=30))
def test_any_text_is_a_name_that_round_trips_or_an_invalid_name(text: str) -> None:
    try:
        name = ModelName.parse(text)
    except InvalidName:
        return
    assert ModelName.parse(name.full) == name


HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize("text", [HEX, f"sha256:{HEX}", f"sha256-{HEX}", f"sha256:{HEX.upper()}"])
def test_a_digest_is_read_in_the_forms_that_ollama_writes(text: str) -> None:
    digest = Digest.parse(text)
    assert (str(digest), digest.hex, digest.short) == (f"sha256:{HEX}", HEX, "0123456789ab")


@pytest.mark.parametrize(
    "text", ["", HEX[1:], HEX + "0", f"sha512:{HEX}", f"@sha256:{HEX}", HEX + "\n", "g" * 64]
)
def test_what_is_not_a_digest_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue, match="is not a digest") as caught:
        Digest.parse(text)
    assert caught.value.hint == "write sha256: and 64 hex digits"


@given(st.binary())
def test_the_digest_of_bytes_is_their_sha256(data: bytes) -> None:
    assert str(Digest.of(data)) == "sha256:" + hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("pattern", "matched", "not_matched"),
    [
        ("llama3", ["llama3", "LLAMA3:latest", "library/llama3"], ["llama3:8b", "llama3.2", "me/llama3"]),
        ("http://h:1/me/bot", ["h:1/me/bot:latest"], ["h:2/me/bot", "me/bot"]),
        ("old-bot:*", ["old-bot", "Old-Bot:v1"], ["old-bot2:v1", "very-old-bot:v1", "me/old-bot:v1"]),
        ("OLD-*", ["old-bot", "old-bot:v1"], ["bold-bot", "me/old-bot"]),
        (
            "scratch/*",
            ["scratch/a", "Scratch/b:v2"],
            ["scratch", "scratch2/a", "a/scratch", "hf.co/scratch/a"],
        ),
        (
            "*:golden",
            ["a:golden", "me/a:Golden", "hf.co/x/y:golden"],
            ["a:golden2", "golden", "golden:latest"],
        ),
        ("*", ["a", "me/a:1", "hf.co/x/y:z"], []),
        ("*:*", ["a", "me/a:1", "hf.co/x/y:z"], []),
        ("*/*", ["me/a", "me/a:1"], ["a", "library/a:1", "hf.co/x/y"]),
        ("*/bot", ["me/bot"], ["me/bot:v1", "bot"]),
        ("library/*", ["a", "a:1", "Library/b"], ["me/a", "hf.co/library/a"]),
        ("Registry.ollama.ai/*/*", ["a", "me/a:1"], ["hf.co/x/y"]),
        ("hf.co/*/*", ["hf.co/x/y:z"], ["hf.co:5000/x/y", "x/y", "y"]),
        (
            "localhost:*/me/bot:v*",
            ["localhost:5000/me/bot:v1"],
            ["localhost/me/bot:v1", "localhost:5000/me/bot"],
        ),
        ("llama?:8b", ["llama3:8b"], ["llama:8b", "llama33:8b"]),
        ("llama[!3-9]", ["llama2:8b", "llamaX"], ["llama3", "llama"]),
        ("m:v1.[0-2]", ["m:v1.0", "m:v1.2"], ["m:v1.3", "m:v100"]),
    ],
)
def test_a_pattern_is_anchored_and_means(pattern: str, matched: list[str], not_matched: list[str]) -> None:
    parsed = NamePattern.parse(pattern)
    assert [text for text in matched if not parsed.matches(ModelName.parse(text))] == []
    assert [text for text in not_matched if parsed.matches(ModelName.parse(text))] == []


@pytest.mark.parametrize(
    ("text", "literal"), [("a:v1", True), ("a:*", False), ("a?", False), ("[ab]/c", False)]
)
def test_a_pattern_without_wildcards_is_literal(text: str, literal: bool) -> None:
    assert NamePattern.parse(text).is_literal is literal
    assert str(NamePattern.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a b*",
        "*:",
        ":*",
        "a//*",
        "a/b/c/*",
        "a[",
        "a[]",
        "a[b/c]",
        "*@x",
        "{a,b}*",
        "/*",
        "m:",
        "a b",
        "[[a]",
        "a:b:c*",
    ],
)
def test_a_pattern_that_can_match_nothing_is_refused(text: str) -> None:
    with pytest.raises(InvalidName, match=r"is not a (pattern of names|model name)") as caught:
        NamePattern.parse(text)
    assert caught.value.hint


def test_a_pattern_of_a_whole_registry_names_the_namespace_too() -> None:
    with pytest.raises(
        InvalidName, match=r"'hf.co/\*' is not a pattern of names: no namespace contains"
    ) as caught:
        NamePattern.parse("hf.co/*")
    assert caught.value.hint == "write hf.co/*/* for all of a registry"


@given(names, names)
def test_a_literal_pattern_matches_its_own_name_only(name: ModelName, other: ModelName) -> None:
    pattern = NamePattern.parse(str(name))
    assert pattern.matches(name)
    assert pattern.matches(other) == (name == other)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("ollamaops-ledger:state", True),
        ("OLLAMAOPS-Ledger", True),
        ("registry.ollama.ai/library/ollamaops-ledger:x", True),
        ("me/ollamaops-ledger:state", False),
        ("hf.co/library/ollamaops-ledger", False),
        ("ollamaops-ledger2", False),
    ],
)
def test_the_reserved_name_is_known_with_any_tag(text: str, expected: bool) -> None:
    assert ModelName.parse(text).is_ledger == expected
