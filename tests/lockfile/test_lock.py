"""What the lock file promises: the same content, the same bytes; every flaw named with its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from registry_fixture import push_model, run_registry

from ollamaops.errors import ManifestError
from ollamaops.lockfile.lock import (
    MAX_LOCK_CHARACTERS,
    Lock,
    LockEntry,
    compare_entry,
    parse_lock,
    render_lock,
)
from ollamaops.names import Digest, ModelName
from ollamaops.registry.client import RegistryClient
from ollamaops.registry.documents import (
    LIST_TYPE,
    MANIFEST_TYPE,
    Document,
    FetchedManifest,
    Layer,
    ManifestList,
    RegistryManifest,
    canonical_bytes,
    digest_set,
    parse_document,
)

WEIGHTS = Layer(
    "application/vnd.ollama.image.model", Digest.of(b"weights"), 2_019_377_376, from_="base:latest"
)
TEMPLATE = Layer("application/vnd.ollama.image.template", Digest.of(b"t"), 1429)
CONFIG = Layer("application/vnd.docker.container.image.v1+json", Digest.of(b"{}"), 487)
MARIO = RegistryManifest(MANIFEST_TYPE, CONFIG, (WEIGHTS, TEMPLATE))
CHILD = Layer(MANIFEST_TYPE, Digest.of(b"child"), 500, name="llamacpp/any")

TEXT = f"""\
# made by `ollamaops lock`: what each pulled model is, byte for byte; review it, do not edit it
version: 1
models:
  "1:30":  # 0 B
    manifest: {Digest.of(b"empty")}
    media_type: ""
    config: {{digest: {Digest.of(b"")}, size: 0, media_type: "a, b: \\"c\\" \\xe9"}}
    layers: []
  llama3.2:3b:  # 2.0 GB
    manifest: {Digest.of(b"mario")}
    media_type: application/vnd.docker.distribution.manifest.v2+json
    config: {{digest: {CONFIG.digest}, size: 487, media_type: application/vnd.docker.container.image.v1+json}}
    layers:
      - {{digest: {WEIGHTS.digest}, size: 2019377376, media_type: application/vnd.ollama.image.model, from: base:latest}}
      - {{digest: {TEMPLATE.digest}, size: 1429, media_type: application/vnd.ollama.image.template}}
  localhost:5000/team/many:v1:  # 500 B
    manifest: {Digest.of(b"list")}
    media_type: application/vnd.docker.distribution.manifest.list.v2+json
    manifests:
      - {{digest: {CHILD.digest}, size: 500, media_type: application/vnd.docker.distribution.manifest.v2+json, name: llamacpp/any}}
"""  # noqa: E501
LOCK = Lock(
    {
        ModelName.parse("llama3.2:3b"): LockEntry(Digest.of(b"mario"), MARIO),
        ModelName.parse("localhost:5000/team/many:v1"): LockEntry(
            Digest.of(b"list"), ManifestList(LIST_TYPE, (CHILD,))
        ),
        ModelName.parse("1:30"): LockEntry(
            Digest.of(b"empty"), RegistryManifest("", Layer('a, b: "c" é', Digest.of(b""), 0), ())
        ),
    }
)

digests = st.binary(max_size=4).map(Digest.of)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["null", "No", "a:", "~"]
)
layers = st.builds(Layer, words, digests, st.integers(0, 2**63 - 1), words, words)
manifests = st.builds(RegistryManifest, words, layers, st.lists(layers, max_size=3).map(tuple)) | st.builds(
    RegistryManifest, words, layers, st.just(()), layers_are_null=st.just(True)
)
lists = st.builds(ManifestList, words, st.lists(layers, max_size=3).map(tuple))
names = st.from_regex(r"[a-z0-9_][a-z0-9_.-]{0,3}(:[a-zA-Z0-9_][a-z0-9_.-]{0,3})?", fullmatch=True).map(
    ModelName.parse
)
locks = st.dictionaries(names, st.builds(LockEntry, digests, manifests | lists), max_size=4).map(Lock)


def fetched(document: Document, raw: bytes = b"", name: str = "mario") -> FetchedManifest:
    return FetchedManifest(ModelName.parse(name), raw, Digest.of(raw), document)


def update(lock: Lock, name: ModelName, fetched: FetchedManifest) -> Lock:
    """The lock with `name` at what was fetched, and everything else as it was."""
    others = {known: entry for known, entry in lock.entries.items() if known != name}
    return Lock({**others, name: LockEntry(fetched.digest, fetched.document)})


def problems_of(text: str) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        parse_lock(text, "ollamaops.lock")
    return [f"{problem.place}: {problem.message}" for problem in caught.value.problems]


def test_a_lock_is_sorted_and_has_one_line_per_blob() -> None:
    assert render_lock(LOCK) == TEXT
    assert parse_lock(TEXT, "ollamaops.lock") == LOCK


def test_an_empty_lock_is_a_lock() -> None:
    text = render_lock(Lock())
    assert text.endswith("version: 1\nmodels: {}\n")
    assert parse_lock(text, "ollamaops.lock") == Lock()


@given(locks)
def test_a_lock_survives_being_written_and_read(lock: Lock) -> None:
    text = render_lock(lock)
    assert parse_lock(text, "ollamaops.lock") == lock
    assert render_lock(parse_lock(text, "ollamaops.lock")) == text


@given(locks)
def test_the_order_of_entries_leaves_no_trace(lock: Lock) -> None:
    reversed_entries = dict(reversed(list(lock.entries.items())))
    assert render_lock(Lock(reversed_entries)) == render_lock(lock)


@given(locks)
def test_any_yaml_reader_reads_the_same_texts(lock: Lock) -> None:
    tree = yaml.safe_load(render_lock(lock))
    assert set(tree["models"]) == {name.display for name in lock.entries}
    for name, entry in lock.entries.items():
        read = tree["models"][name.display]
        assert read["manifest"] == str(entry.digest)
        assert read["media_type"] == entry.document.media_type
        items = [*(read["layers"] or ()), read["config"]] if "layers" in read else read["manifests"]
        assert [
            (item["size"], item["media_type"], item.get("name", ""), item.get("from", "")) for item in items
        ] == [(part.size_bytes, part.media_type, part.name, part.from_) for part in entry.document.parts]


def test_an_update_replaces_one_entry_and_its_spelling() -> None:
    raw = canonical_bytes(MARIO)
    new = update(LOCK, ModelName.parse("LLAMA3.2:3b"), fetched(parse_document(raw), raw))
    assert len(new.entries) == 3
    assert new.entries[ModelName.parse("llama3.2:3b")] == LockEntry(Digest.of(raw), MARIO)
    assert "  LLAMA3.2:3b:" in render_lock(new)
    assert render_lock(LOCK) == TEXT


@pytest.mark.registry
def test_two_runs_against_a_registry_write_the_same_bytes(tmp_path: Path) -> None:
    def run(paths: list[str]) -> str:
        lock = Lock()
        with RegistryClient(endpoints={registry.host: registry.url}) as client:
            for path in paths:
                name = registry.name(path)
                lock = update(lock, name, client.manifest(name))
        return render_lock(lock)

    with run_registry(tmp_path, redirect=False) as registry:
        push_model(registry, "team/a:v1", [("model", b"a"), ("license", b"MIT")])
        push_model(registry, "team/b:v1", [("model", b"b")])
        assert run(["team/a:v1", "team/b:v1"]) == run(["team/b:v1", "team/a:v1"])


@given(manifests)
def test_a_lock_tells_every_digest_under_which_a_server_shows_its_content(manifest: RegistryManifest) -> None:
    raw = canonical_bytes(manifest)
    lock = parse_lock(render_lock(update(Lock(), ModelName.parse("mario"), fetched(manifest, raw))), "x")
    assert lock.entries[ModelName.parse("mario")].tags_digests == digest_set(raw)


@pytest.mark.parametrize("is_null", [False, True])
def test_a_lock_keeps_how_a_manifest_without_layers_was_written(is_null: bool) -> None:
    document = RegistryManifest(MANIFEST_TYPE, CONFIG, (), layers_are_null=is_null)
    text = render_lock(update(Lock(), ModelName.parse("stub"), fetched(document, canonical_bytes(document))))
    assert f"    layers: {'null' if is_null else '[]'}\n" in text
    again = parse_lock(text, "ollamaops.lock").entries[ModelName.parse("stub")]
    assert again.document == document
    assert compare_entry(again, fetched(document, canonical_bytes(document))).state == "same"


def test_the_digests_of_a_locked_list_are_its_own_and_its_childrens() -> None:
    entry = LOCK.entries[ModelName.parse("localhost:5000/team/many:v1")]
    assert entry.tags_digests == {Digest.of(b"list").hex, CHILD.digest.hex}


def test_a_blob_that_is_named_twice_counts_once() -> None:
    assert (
        LockEntry(Digest.of(b""), RegistryManifest("", CONFIG, (TEMPLATE, TEMPLATE))).size_bytes == 1429 + 487
    )


def test_what_the_registry_has_now_is_the_same_or_has_moved() -> None:
    raw = canonical_bytes(MARIO)
    entry = LockEntry(Digest.of(raw), MARIO)
    assert compare_entry(entry, fetched(MARIO, raw)).state == "same"
    other = RegistryManifest(MANIFEST_TYPE, CONFIG, (WEIGHTS,))
    moved = compare_entry(entry, fetched(other, canonical_bytes(other)))
    assert (moved.state, [change.kind for change in moved.changes]) == ("moved", ["template"])


@pytest.mark.parametrize(
    "layers",
    [(WEIGHTS,), (TEMPLATE, WEIGHTS), (WEIGHTS, Layer(TEMPLATE.media_type, TEMPLATE.digest, 1430))],
)
def test_other_layers_under_the_same_digest_are_damage(layers: tuple[Layer, ...]) -> None:
    raw = canonical_bytes(MARIO)
    tampered = LockEntry(Digest.of(raw), RegistryManifest(MANIFEST_TYPE, CONFIG, layers))
    assert compare_entry(tampered, fetched(MARIO, raw)).state == "damaged"


@pytest.mark.parametrize(
    "old, new, problem",
    [
        ("version: 1", "version: 2", "2:10: lock version '2', this ollamaops reads 1"),
        ("version: 1", "version: one", "2:10: lock version 'one', this ollamaops reads 1"),
        ("version: 1", "version: [1]", "2:10: a single value is expected here"),
        ("version: 1\n", "", "2:1: the key 'version' is missing"),
        (
            "version: 1",
            "version: 1\nversion: 1",
            "3:1: duplicate key 'version': the first one is at",
        ),
        ("version: 1", "version: 1\nextra: 1", "3:1: unknown key 'extra'"),
        ("llama3.2:3b:", "llama/3/2/1:3b:", "9:3: 'llama/3/2/1:3b' is not a model name: it has more parts"),
        ("  localhost:5000/team/many:v1:", "  LLAMA3.2:3b:", "16:3: 'LLAMA3.2:3b' is here twice"),
        (f"manifest: {Digest.of(b'mario')}", "manifest: abc", "10:15: 'abc' is not a digest"),
        (f"    manifest: {Digest.of(b'mario')}\n", "", "10:5: the key 'manifest' is missing"),
        ("size: 1429", "size: 1 kB", "15:97: '1 kB' is not a size in bytes"),
        ("size: 1429", "size: 99999999999999999999", "15:97: '99999999999999999999' is not a size"),
        (
            "size: 1429",
            "size: 1429, size: 1",
            "15:103: duplicate key 'size': the first one is",
        ),
        ("layers: []", "layers: {}", "8:13: a list is expected here"),
        ("layers: []", "layers: [1]", "8:14: a mapping is expected here"),
    ],
)
def test_a_flaw_is_named_with_its_place(old: str, new: str, problem: str) -> None:
    assert TEXT.count(old) == 1
    (found,) = problems_of(TEXT.replace(old, new))
    assert problem in found
    assert found.startswith("ollamaops.lock:")


@pytest.mark.parametrize(
    "text, place",
    [
        (TEXT.replace("version: 1\n", "version: 1\n<<<<<<< HEAD\n"), "ollamaops.lock:3:1"),
        (
            TEXT.replace("models:\n", "models:\n||||||| merged\n=======\n>>>>>>> theirs\n"),
            "ollamaops.lock:4:1",
        ),
        (TEXT + "=======\r\n", f"ollamaops.lock:{TEXT.count(chr(10)) + 1}:1"),
        (TEXT + ">>>>>>> 1d6aa3f (other)\n", f"ollamaops.lock:{TEXT.count(chr(10)) + 1}:1"),
    ],
)
def test_a_merge_conflict_is_named_as_such_with_its_first_line(text: str, place: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_lock(text, "ollamaops.lock")
    (found,) = caught.value.problems
    assert (found.place, found.message) == (place, "an unresolved merge conflict begins here")
    assert found.hint == "take one side, or delete the file and run `ollamaops lock`"


def test_the_flaws_of_all_entries_are_reported_together() -> None:
    text = TEXT.replace("size: 1429", "size: x").replace("size: 500", "size: y").replace("size: 0", "size: z")
    assert [line.partition(": ")[2] for line in problems_of(text)] == [
        "'z' is not a size in bytes",
        "'x' is not a size in bytes",
        "'y' is not a size in bytes",
    ]


@pytest.mark.parametrize(
    "text, problem",
    [
        ("", "ollamaops.lock: the file is empty"),
        ("# only a comment\n", "ollamaops.lock: the file is empty"),
        ("[]", "ollamaops.lock:1:1: a mapping is expected here"),
        ("a: b\n--- \nc: d\n", "ollamaops.lock:2:1: a second document begins here: one is allowed"),
        ("a: \x07", "ollamaops.lock:1:4: the control character U+0007 is not allowed"),
        ("[" * 50_000, "ollamaops.lock:1:17: nested deeper than 16 levels"),
        ("- " * 50_000, "ollamaops.lock:1:33: nested deeper than 16 levels"),
        ("{a: " * 5_000, "ollamaops.lock:1:65: nested deeper than 16 levels"),
        ("- [\n" + "[" * 50_000, "ollamaops.lock:2:15: nested deeper than 16 levels"),
        ("[" * 20 + "]" * 20, "ollamaops.lock:1:17: nested deeper than 16 levels"),
        ("#" * (MAX_LOCK_CHARACTERS + 1), "ollamaops.lock: the lock has more than 16777216 characters"),
    ],
)
def test_what_is_not_a_lock_at_all_is_refused_with_a_way_out(text: str, problem: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_lock(text, "ollamaops.lock")
    (found,) = caught.value.problems
    assert f"{found.place}: {found.message}" == problem
    assert found.hint == "restore the file from version control, or delete it and run `ollamaops lock`"
