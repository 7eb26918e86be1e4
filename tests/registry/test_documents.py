"""What registry manifests mean: parsed, compared, and told by any digest that a real server shows for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamaops.errors import ProtocolError
from ollamaops.names import Digest, ModelName
from ollamaops.registry.documents import (
    LIST_TYPE,
    MANIFEST_TYPE,
    Document,
    FetchedManifest,
    Layer,
    LayerKind,
    ManifestList,
    RegistryManifest,
    canonical_bytes,
    canonical_digests,
    compare,
    digest_set,
    hashed_part,
    is_current,
    layers_by_kind,
    parse_document,
)

CONTRACT = Path(__file__).parents[1] / "contract"
VERSIONS = sorted(path.stem.removeprefix("ollama-") for path in CONTRACT.glob("ollama-*.json"))
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
PUSHED_NAME = "localhost:5055/team/mario:v1"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def a_layer(kind: str, text: str, *, name: str = "", from_: str = "") -> Layer:
    data = text.encode()
    return Layer(f"application/vnd.ollama.image.{kind}", Digest.of(data), len(data), name, from_)


def a_config(text: str = "{}") -> Layer:
    return Layer(CONFIG_TYPE, Digest.of(text.encode()), len(text))


def a_manifest(*layers: Layer, config: Layer | None = None) -> RegistryManifest:
    return RegistryManifest(MANIFEST_TYPE, config or a_config(), layers)


def a_list(*children: Layer) -> ManifestList:
    return ManifestList(LIST_TYPE, children)


def fetched(raw: bytes, name: str = "mario") -> FetchedManifest:
    return FetchedManifest(ModelName.parse(name), raw, Digest.of(raw), parse_document(raw))


def a_tree(**changes: object) -> dict[str, object]:
    tree: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": str(Digest.of(b"{}")), "size": 2},
        "layers": [],
    }
    return {key: value for key, value in {**tree, **changes}.items() if value is not None}


def a_stub(layers: str) -> bytes:
    """The manifest of a model without layers, in a registry's own layout."""
    return json.dumps(a_tree(), indent=3).replace('"layers": []', f'"layers": {layers}').encode()


digests = st.binary(max_size=4).map(Digest.of)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
layers = st.builds(Layer, words, digests, st.integers(0, 2**63 - 1), words, words)
manifests = st.builds(RegistryManifest, words, layers, st.lists(layers, max_size=4).map(tuple)) | st.builds(
    RegistryManifest, words, layers, st.just(()), layers_are_null=st.just(True)
)


# Digests


def recorded_push(version: str) -> Iterator[tuple[str, object]]:
    recording = json.loads((CONTRACT / f"ollama-{version}.json").read_text())
    for step in recording["scenarios"]["push-pull"]:
        yield step["request"]["path"], step["response"].get("ndjson") or step["response"].get("json")


def recorded_digests(version: str) -> tuple[dict[str, str], dict[str, str]]:
    """What tags showed before the push, and after the pull: name → digest."""
    listings = [answer for path, answer in recorded_push(version) if path == "/api/tags"]
    before, after = listings[0], listings[-1]
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    return _digest_by_name(before), _digest_by_name(after)


def _digest_by_name(listing: Mapping[str, list[dict[str, str]]]) -> dict[str, str]:
    return {model["name"]: model["digest"] for model in listing["models"]}


def recorded_manifest(version: str) -> RegistryManifest:
    """The manifest that the recorded server pushed, put together from the blobs that it says it sent."""
    pushed = next(answer for path, answer in recorded_push(version) if path == "/api/push")
    assert isinstance(pushed, list)
    sizes = {line["digest"]: line["total"] for line in pushed if "digest" in line}
    blobs = [(Digest.parse(digest), size) for digest, size in sizes.items()]
    kinds = ["model", "template", "system", "license", "license"]
    kinds += ["messages", "params"] if version == "0.3.4" else ["params", "messages"]
    parts = [
        Layer(f"application/vnd.ollama.image.{kind}", *blob)
        for kind, blob in zip(kinds, blobs[:-1], strict=True)
    ]
    weights = Layer(parts[0].media_type, *blobs[0], from_="base:latest")
    return a_manifest(weights, *parts[1:], config=Layer(CONFIG_TYPE, *blobs[-1]))


@pytest.mark.parametrize("version", VERSIONS)
def test_the_digests_of_pusher_and_puller_both_stand_for_the_recorded_manifest(version: str) -> None:
    raw = canonical_bytes(recorded_manifest(version))
    before, after = recorded_digests(version)
    assert before[PUSHED_NAME] != after[PUSHED_NAME]
    assert after[PUSHED_NAME] == sha256(raw)
    assert {before[PUSHED_NAME], after[PUSHED_NAME]} <= digest_set(raw)
    assert is_current(before[PUSHED_NAME], fetched(raw))
    assert is_current(f"sha256:{after[PUSHED_NAME].upper()}", fetched(raw))
    assert not is_current(before["base:latest"], fetched(raw))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_manifest_in_the_registrys_own_layout_is_current_on_servers_that_wrote_it_anew(
    version: str,
) -> None:
    compact = canonical_bytes(recorded_manifest(version))
    raw = json.dumps({"annotations": {"a": "b"}, **json.loads(compact)}, indent=3).encode()
    _, after = recorded_digests(version)
    assert is_current(after[PUSHED_NAME], fetched(raw))
    assert is_current(sha256(raw), fetched(raw))


def test_ollamas_layout_is_gos_json_with_its_escapes() -> None:
    odd = Layer('a<b>&"\\\n\t\u2028\u2029\x01é😀', Digest.of(b"x"), 7, name="n", from_="f")
    expected = (
        '{"schemaVersion":2,"mediaType":"' + MANIFEST_TYPE + '","config":{"mediaType":"' + CONFIG_TYPE + '",'
        f'"digest":"{Digest.of(b"{}")}","size":2}},"layers":[{{"mediaType":'
        r'"a\u003cb\u003e\u0026\"\\\n\t\u2028\u2029\u0001é😀"'
        f',"digest":"{Digest.of(b"x")}","size":7,"from":"f","name":"n"}}]}}'
    )
    assert canonical_bytes(a_manifest(odd)).decode() == expected
    assert canonical_bytes(a_manifest(odd), names=False).decode() == expected.replace(',"name":"n"', "")


@pytest.mark.parametrize("layers", ["null", "[]"])
def test_a_model_without_layers_is_one_however_the_registry_writes_that(layers: str) -> None:
    raw = a_stub(layers)
    document = parse_document(raw)
    assert isinstance(document, RegistryManifest)
    assert (document.layers, document.config) == ((), a_config())
    assert fetched(raw).blobs == {a_config().digest: 2}
    assert is_current(sha256(raw), fetched(raw))


@pytest.mark.parametrize(("layers", "other"), [("null", "[]"), ("[]", "null")])
def test_servers_that_write_a_manifest_anew_write_no_layers_as_they_read_them(
    layers: str, other: str
) -> None:
    raw = a_stub(layers)
    written = json.dumps(json.loads(raw), separators=(",", ":")).encode()
    assert written.endswith(f'"layers":{layers}}}'.encode())
    assert {sha256(written), sha256(written + b"\n")} <= digest_set(raw)
    assert sha256(written.replace(layers.encode(), other.encode())) not in digest_set(raw)


def test_bytes_that_are_not_utf_8_are_replaced_as_gos_decoder_does() -> None:
    raw = json.dumps(a_tree(mediaType="a?b")).encode().replace(b"?", b"\xff")
    assert parse_document(raw).media_type == "a\ufffdb"
    assert parse_document(json.dumps(a_tree(mediaType="a\ud800b")).encode()).media_type == "a\ufffdb"


@given(manifests)
def test_a_manifest_survives_ollamas_layout(manifest: RegistryManifest) -> None:
    assert parse_document(canonical_bytes(manifest)) == manifest


@given(manifests, st.sampled_from([None, 1, 4]))
def test_every_layout_of_a_manifest_shares_the_digests_of_ollamas(
    manifest: RegistryManifest, indent: int | None
) -> None:
    raw = json.dumps(json.loads(canonical_bytes(manifest)), indent=indent).encode()
    found = digest_set(raw)
    assert canonical_digests(manifest) <= found
    assert {sha256(form) for form in (raw, raw + b"\n")} <= found
    nameless = canonical_bytes(manifest, names=False)
    assert {sha256(nameless), sha256(nameless + b"\n")} <= found


@pytest.mark.parametrize("size", [513, 1537, 3585, 7681, 15873])
def test_the_newline_at_the_edge_of_gos_buffer_is_not_hashed(size: int) -> None:
    stored = b"{" + b" " * (size - 3) + b"}\n"
    assert hashed_part(stored) == stored[:-1]


@pytest.mark.parametrize("size", [3, 512, 514, 1536, 1538, 3584, 3586, 7680, 7682])
def test_elsewhere_the_whole_file_is_hashed(size: int) -> None:
    stored = b"{" + b" " * (size - 3) + b"}\n"
    assert hashed_part(stored) == stored


def test_a_manifest_that_was_stored_with_its_newline_at_that_edge_is_current() -> None:
    plain = json.dumps(a_tree(note="")).encode()
    raw = json.dumps(a_tree(note="x" * (512 - len(plain)))).encode() + b"\n"
    assert len(raw) == 513
    assert is_current(sha256(raw[:-1]), fetched(raw))


def test_a_list_is_current_by_its_own_digest_and_by_those_of_its_children() -> None:
    child = {"mediaType": MANIFEST_TYPE, "digest": str(Digest.of(b"child")), "size": 5}
    raw = json.dumps(a_tree(layers=None, config=None, manifests=[child])).encode()
    assert {sha256(raw), Digest.of(b"child").hex} <= digest_set(raw)
    assert not is_current(sha256(b"other"), fetched(raw))


# Parsing


def test_unknown_fields_and_media_types_are_taken_as_they_come() -> None:
    layer = {"mediaType": "application/x-new; a=b", "digest": str(Digest.of(b"x")), "size": 1, "new": [1]}
    document = parse_document(json.dumps(a_tree(layers=[layer], new={})).encode())
    assert document.parts[0] == Layer("application/x-new; a=b", Digest.of(b"x"), 1)
    assert document.parts[0].kind == "other"


def test_a_manifest_without_a_media_type_of_its_own_is_one_by_its_shape() -> None:
    raw = json.dumps(a_tree(mediaType=None)).encode()
    document = parse_document(raw)
    assert isinstance(document, RegistryManifest)
    assert (document.media_type, document.raw) == ("", raw)


@pytest.mark.parametrize(
    "extra, name",
    [
        ({}, ""),
        ({"name": "mine", "runner": "ggml"}, "mine"),
        ({"runner": "ggml"}, "ggml"),
        ({"platform": {"os": "linux", "architecture": "arm64"}}, "linux/arm64"),
        ({"platform": {"architecture": "arm64"}}, "arm64"),
    ],
)
def test_a_child_of_a_list_says_what_it_is_for(extra: dict[str, object], name: str) -> None:
    child = {"mediaType": MANIFEST_TYPE, "digest": str(Digest.of(b"x")), "size": 1, **extra}
    document = parse_document(json.dumps({"schemaVersion": 2, "manifests": [child]}).encode())
    assert document == ManifestList("", (Layer(MANIFEST_TYPE, Digest.of(b"x"), 1, name),))


def test_a_list_of_manifests_is_one_although_it_says_null_for_its_layers() -> None:
    child = {"mediaType": MANIFEST_TYPE, "digest": str(Digest.of(b"x")), "size": 1}
    document = parse_document(json.dumps({"schemaVersion": 2, "layers": None, "manifests": [child]}).encode())
    assert document == ManifestList("", (Layer(MANIFEST_TYPE, Digest.of(b"x"), 1),))


def test_a_platform_of_a_layer_is_no_name() -> None:
    layer = {
        "mediaType": "a",
        "digest": str(Digest.of(b"x")),
        "size": 1,
        "platform": {"os": "linux"},
        "runner": "b",
    }
    assert parse_document(json.dumps(a_tree(layers=[layer])).encode()).parts[0].name == ""


def bad_layer(**changes: object) -> bytes:
    layer = {"mediaType": "a", "digest": str(Digest.of(b"x")), "size": 1, **changes}
    return json.dumps(a_tree(layers=[layer])).encode()


@pytest.mark.parametrize(
    "raw, why",
    [
        (b"", "it is not JSON, it begins ''"),
        (b"<html>\n  Sign in", "it is not JSON, it begins '<html> Sign in'"),
        (b"\xef\xbb\xbf{}", "it is not JSON"),
        (b'{"a": NaN}', "it is not JSON"),
        (b"[" * 100_000, "it is not JSON"),
        (b'{"size":' + b"9" * 5000 + b"}", "it is not JSON"),
        (b"[]", "it is not a JSON object"),
        (b"{}", "it has neither layers nor manifests"),
        (b'{"layers":{},"manifests":1}', "it has neither layers nor manifests"),
        (b'{"schemaVersion":1,"fsLayers":[]}', "it has the old layout, schema version 1"),
        (json.dumps(a_tree(schemaVersion=3)).encode(), "schema version 3, not 2"),
        (json.dumps(a_tree(schemaVersion=True)).encode(), "schema version True, not 2"),
        (json.dumps(a_tree(schemaVersion=None)).encode(), "schema version None, not 2"),
        (json.dumps(a_tree(config=None)).encode(), "config is not an object"),
        (b'{"schemaVersion":2,"layers":null}', "config is not an object"),
        (a_stub("null").replace(b'"schemaVersion": 2', b'"schemaVersion": 1'), "schema version 1, not 2"),
        (json.dumps(a_tree(layers=[1])).encode(), "layers[0] is not an object"),
        (b'{"schemaVersion":2,"manifests":["x"]}', "manifests[0] is not an object"),
        (bad_layer(digest=None), "layers[0]: '' is not a digest"),
        (bad_layer(digest="sha512:00"), "layers[0]: 'sha512:00' is not a digest"),
        (bad_layer(size=None), "layers[0] has no size in bytes"),
        (bad_layer(size="1"), "layers[0] has no size in bytes"),
        (bad_layer(size=1.0), "layers[0] has no size in bytes"),
        (bad_layer(size=True), "layers[0] has no size in bytes"),
        (bad_layer(size=-1), "layers[0] has no size in bytes"),
        (bad_layer(size=2**63), "layers[0] has no size in bytes"),
    ],
)
def test_what_is_no_manifest_is_refused_with_the_reason(raw: bytes, why: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_document(raw)
    assert str(caught.value).startswith(f"not a registry manifest: {why}")


@pytest.mark.parametrize(
    "media_type, kind",
    [
        ("application/vnd.ollama.image.model", "weights"),
        ("application/vnd.ollama.image.tensor; name=a; dtype=F16", "weights"),
        ("application/vnd.ollama.image.projector", "projector"),
        ("application/vnd.ollama.image.adapter", "adapter"),
        ("application/vnd.ollama.image.template", "template"),
        ("application/vnd.ollama.image.prompt", "template"),
        ("Application/vnd.ollama.image.System", "system"),
        ("application/vnd.ollama.image.params", "parameters"),
        ("application/vnd.ollama.image.messages", "messages"),
        ("application/vnd.ollama.image.license", "license"),
        ("application/vnd.ollama.image.json", "config"),
        (CONFIG_TYPE, "config"),
        ("application/vnd.oci.image.config.v1+json", "config"),
        ("application/vnd.ollama.image.new", "other"),
        ("text/plain", "other"),
        ("", "other"),
    ],
)
def test_the_media_type_tells_the_kind(media_type: str, kind: LayerKind) -> None:
    assert Layer(media_type, Digest.of(b""), 0).kind == kind


# Comparing

BASE = (a_layer("model", "weights"), a_layer("template", "t"), a_layer("license", "MIT"))


@pytest.mark.parametrize(
    "new, expected",
    [
        (a_manifest(*BASE), []),
        (a_manifest(*reversed(BASE)), []),
        (a_manifest(a_layer("model", "other"), *BASE[1:]), [("weights", 1, 1, 5)]),
        (a_manifest(*BASE, a_layer("params", "{}x"), a_layer("system", "hi")), [
            ("system", 1, 0, 2),
            ("parameters", 1, 0, 3),
        ]),
        (a_manifest(BASE[0], BASE[2]), [("template", 0, 1, 0)]),
        (a_manifest(*BASE, a_layer("license", "MIT")), [("license", 0, 0, 0)]),
        (a_manifest(*BASE, a_layer("license", "BSD"), a_layer("license", "BSD")), [("license", 2, 0, 3)]),
        (a_manifest(*BASE, a_layer("adapter", "weights")), [("adapter", 1, 0, 0)]),
        (a_manifest(*BASE, config=a_config("{1}")), [("config", 1, 1, 3)]),
        (a_manifest(*BASE, a_layer("new", "?"), a_layer("messages", "[]")), [
            ("messages", 1, 0, 2),
            ("other", 1, 0, 1),
        ]),
    ],
)  # fmt: skip
def test_a_difference_is_told_by_kind_with_the_bytes_to_download(
    new: Document, expected: list[tuple[str, int, int, int]]
) -> None:
    changes = compare(a_manifest(*BASE), new)
    told = [(c.kind, len(c.added), len(c.removed), c.download_bytes) for c in changes]
    assert told == expected


def test_the_order_of_licenses_counts() -> None:
    one, two = a_layer("license", "MIT"), a_layer("license", "BSD")
    (change,) = compare(a_manifest(one, two), a_manifest(two, one))
    assert (change.kind, change.added, change.removed, change.download_bytes) == ("license", (), (), 0)


def test_a_model_that_became_a_list_has_lost_its_layers_and_gained_manifests() -> None:
    child = Layer(MANIFEST_TYPE, Digest.of(b"child"), 5)
    kinds = [change.kind for change in compare(a_manifest(*BASE), a_list(child))]
    assert kinds == ["weights", "template", "license", "config", "other"]


def _content(manifest: RegistryManifest) -> dict[str, list[Digest]]:
    return {kind: [layer.digest for layer in group] for kind, group in layers_by_kind(manifest.parts).items()}


@given(manifests, manifests)
def test_no_difference_means_the_same_content_and_changes_can_be_turned_round(
    one: RegistryManifest, two: RegistryManifest
) -> None:
    assert (compare(one, two) == ()) is (_content(one) == _content(two))
    assert compare(one, one) == ()
    swapped = [(c.kind, c.removed, c.added) for c in compare(two, one)]
    assert [(c.kind, c.added, c.removed) for c in compare(one, two)] == swapped


@given(st.lists(layers, max_size=6))
def test_grouping_by_kind_loses_no_layer(some: list[Layer]) -> None:
    groups = layers_by_kind(some)
    kept = [layer for group in groups.values() for layer in group]
    assert sorted(kept, key=repr) == sorted(some, key=repr)
    assert all(layer.kind == kind for kind, group in groups.items() for layer in group)
