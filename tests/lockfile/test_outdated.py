"""Whether a host still has what the registry has: settled by digests, else by what is known of the old model."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ollamaops.lockfile.build import Cause, Reference, Unanswered
from ollamaops.lockfile.lock import LockEntry
from ollamaops.lockfile.outdated import (
    Evidence,
    Freshness,
    HostFreshness,
    judge,
    needs_evidence,
)
from ollamaops.names import Digest, ModelName
from ollamaops.ollama.contents import Contents
from ollamaops.registry.documents import (
    LIST_TYPE,
    MANIFEST_TYPE,
    FetchedManifest,
    Layer,
    LayerKind,
    RegistryManifest,
    canonical_bytes,
    parse_document,
)

NAME = ModelName.parse("qwen3")
REFERENCE = Reference(ref=NAME, model=NAME, update="latest")
CONFIG = Layer("application/vnd.docker.container.image.v1+json", Digest.of(b"{}"), 2)
OTHER = "f" * 64

TEXTS = {
    "template": b"{{ .Prompt }}!",
    "system": b"Be kind.",
    "params": b'{"num_ctx": 1048576, "stop": ["<a>", "<b>"], "top_k": null, "penalties": []}',
    "license": b"MIT\nall of it",
    "messages": b'[{"role": "user", "content": "hi"}]',
}
SHOWN = Contents(
    digest=OTHER,
    blobs=(Digest.of(b"weights"), Digest.of(b"projector")),
    adapters=(Digest.of(b"adapter"),),
    template="{{ .Prompt }}!",
    templates=frozenset({"{{ .Prompt }}!"}),
    system="Be kind.",
    parameters={"num_ctx": 1048576.0, "stop": ("<a>", "<b>"), "seed": None},
    messages=(("user", "hi"),),
    license_text="MIT\nall of it",
)


def a_layer(kind: str, data: bytes) -> Layer:
    return Layer(f"application/vnd.ollama.image.{kind}", Digest.of(data), len(data))


def a_model(**layers: bytes | None) -> FetchedManifest:
    """The model that SHOWN shows, with some layers replaced, or left out when None."""
    wanted = {"model": b"weights", "projector": b"projector", "adapter": b"adapter", **TEXTS, **layers}
    return fetched(*(a_layer(kind, data) for kind, data in wanted.items() if data is not None))


def fetched(*layers: Layer, config: Layer = CONFIG) -> FetchedManifest:
    raw = json.dumps(
        json.loads(canonical_bytes(RegistryManifest(MANIFEST_TYPE, config, layers))), indent=3
    ).encode()
    return FetchedManifest(NAME, raw, Digest.of(raw), parse_document(raw))


def having(digest: str = OTHER) -> str:
    return digest


def evidence(
    found: FetchedManifest, *, absent: tuple[bytes, ...] = (), shown: Contents | None = SHOWN
) -> Evidence:
    """Everything is there but `absent`; all texts could be read."""
    missing = {Digest.of(data) for data in absent}
    document = found.document
    assert isinstance(document, RegistryManifest)
    every = {Digest.of(data): data for data in (*TEXTS.values(), *EXTRA)}
    return Evidence(
        present=frozenset(found.blobs) - missing,
        shown=shown,
        texts={layer.digest: every[layer.digest] for layer in document.layers if layer.digest in every},
    )


EXTRA = (
    b"{{ .Other }}",
    b"Be rude.",
    b'{"num_ctx": 5}',
    b"not json",
    b'{"top_p": 1}',
    b"[1]",
    b"[]",
    b"Apache",
    b"",
)


def kinds(verdict: Freshness) -> list[LayerKind]:
    return [change.kind for change in verdict.changes]


class TestSettledByDigests:
    def test_a_server_that_stores_the_registrys_bytes_is_current(self) -> None:
        found = a_model()
        assert judge(REFERENCE, having(found.digest.hex), found).state == "current"
        assert not needs_evidence(having(found.digest.hex), found)

    def test_a_server_that_writes_manifests_anew_is_current_with_its_own_digest(self) -> None:
        found = a_model()
        assert isinstance(found.document, RegistryManifest)
        own = hashlib.sha256(canonical_bytes(found.document)).hexdigest()
        assert own != found.digest.hex
        assert judge(REFERENCE, having(own), found).state == "current"

    def test_a_model_that_is_not_there_is_missing(self) -> None:
        assert judge(REFERENCE, None, a_model()).state == "missing"
        assert judge(REFERENCE, None, Unanswered(error="no")).state == "missing"
        assert not needs_evidence(None, a_model())

    @pytest.mark.parametrize("cause", ["unreached", "refused", "tampered"])
    def test_a_registry_that_does_not_answer_leaves_it_unknown_also_what_is_missing(
        self, cause: Cause
    ) -> None:
        answer = Unanswered(error="registry: connection refused", hint="wait", cause=cause)
        verdict = judge(REFERENCE, having(), answer)
        assert (verdict.state, verdict.error, verdict.hint) == ("unknown", answer.error, "wait")
        assert not needs_evidence(having(), answer)
        absent = judge(REFERENCE, None, answer)
        assert (absent.state, absent.error, absent.hint) == ("missing", answer.error, "wait")
        assert (verdict.is_answered, absent.is_answered) == (False, False)

    def test_a_tag_that_the_registry_has_no_more_is_gone_and_that_is_an_answer(self) -> None:
        answer = Unanswered(error="registry: status 404", hint="check the name and the tag", cause="gone")
        verdict, absent = judge(REFERENCE, having(), answer), judge(REFERENCE, None, answer)
        assert (verdict.state, verdict.is_answered, verdict.is_gone) == ("gone", True, True)
        assert (absent.state, absent.is_answered, absent.is_gone) == ("missing", True, True)

    def test_of_a_list_of_manifests_only_the_digests_are_known(self) -> None:
        child = {"mediaType": MANIFEST_TYPE, "digest": str(Digest.of(b"child")), "size": 5}
        raw = json.dumps({"schemaVersion": 2, "mediaType": LIST_TYPE, "manifests": [child]}).encode()
        found = FetchedManifest(NAME, raw, Digest.of(raw), parse_document(raw))
        assert judge(REFERENCE, having(Digest.of(b"child").hex), found).state == "current"
        verdict = judge(REFERENCE, having(), found)
        assert (verdict.state, verdict.download_bytes, verdict.changes) == ("outdated", None, ())
        assert "list of manifests" in verdict.error


class TestWithTheLocksHelp:
    def test_the_lock_tells_exactly_what_changed(self) -> None:
        old, new = a_model(), a_model(model=b"heavier", system=None)
        before = LockEntry(old.digest, old.document)
        present = frozenset(new.blobs) - {Digest.of(b"heavier")}
        verdict = judge(REFERENCE, having(), new, Evidence(before=before, present=present))
        assert verdict.state == "outdated"
        assert [(change.kind, change.download_bytes) for change in verdict.changes] == [
            ("weights", len(b"heavier")),
            ("system", 0),
        ]
        assert verdict.is_locked
        assert verdict.unclear == ()

    def test_the_same_layers_under_another_manifest_are_current(self) -> None:
        old = a_model()
        verdict = judge(REFERENCE, having(), a_model(), Evidence(before=LockEntry(old.digest, old.document)))
        assert verdict.state == "current"


class TestFromWhatTheHostShows:
    def test_the_same_content_is_current_whatever_the_manifests_digest(self) -> None:
        found = a_model()
        verdict = judge(REFERENCE, having(), found, evidence(found))
        assert (verdict.state, verdict.changes, verdict.unclear) == ("current", (), ())

    @pytest.mark.parametrize(
        ("layer", "kind"),
        [
            ("model", "weights"),
            ("projector", "projector"),
            ("adapter", "adapter"),
            ("template", "template"),
            ("system", "system"),
            ("params", "parameters"),
            ("messages", "messages"),
            ("license", "license"),
            ("unheard-of", "other"),
        ],
    )
    def test_a_blob_that_the_host_lacks_is_new_and_must_be_downloaded(
        self, layer: str, kind: LayerKind
    ) -> None:
        found = a_model(**{layer: b"brand new"})
        verdict = judge(REFERENCE, having(), found, evidence(found, absent=(b"brand new",)))
        assert kinds(verdict) == [kind]
        assert verdict.download_bytes == len(b"brand new")
        assert verdict.state == "outdated"

    def test_new_metadata_alone_is_an_update(self) -> None:
        config = Layer(CONFIG.media_type, Digest.of(b"new"), 3)
        found = fetched(*(layer for layer in a_model().document.parts if layer != CONFIG), config=config)
        verdict = judge(REFERENCE, having(), found, evidence(found, absent=(b"new",)))
        assert [(change.kind, change.download_bytes) for change in verdict.changes] == [("config", 3)]

    @pytest.mark.parametrize(
        ("layer", "data", "kind"),
        [
            ("model", b"of another model", "weights"),
            ("projector", b"of another model", "projector"),
            ("projector", None, "projector"),
            ("adapter", b"of another model", "adapter"),
            ("template", b"{{ .Other }}", "template"),
            ("template", None, "template"),
            ("system", b"Be rude.", "system"),
            ("system", None, "system"),
            ("params", b'{"num_ctx": 5}', "parameters"),
            ("params", b'{"top_p": 1}', "parameters"),
            ("params", None, "parameters"),
            ("messages", None, "messages"),
            ("messages", b"[]", "messages"),
            ("license", b"Apache", "license"),
            ("license", None, "license"),
        ],
    )
    def test_a_blob_that_another_model_brought_along_does_not_hide_a_change(
        self, layer: str, data: bytes | None, kind: LayerKind
    ) -> None:
        found = a_model(**{layer: data})
        verdict = judge(REFERENCE, having(), found, evidence(found))
        assert (kinds(verdict), verdict.unclear, verdict.download_bytes) == ([kind], (), 0)

    @pytest.mark.parametrize(("layer", "kind"), [("params", "parameters"), ("messages", "messages")])
    @pytest.mark.parametrize("data", [b"not json", b"[1]"])
    def test_a_layer_that_cannot_be_read_leaves_its_kind_unclear(
        self, layer: str, kind: LayerKind, data: bytes
    ) -> None:
        found = a_model(**{layer: data})
        verdict = judge(REFERENCE, having(), found, evidence(found))
        assert (verdict.state, verdict.unclear, verdict.changes) == ("outdated", (kind,), ())

    def test_a_text_that_could_not_be_fetched_leaves_its_kind_unclear(self) -> None:
        found = a_model()
        verdict = judge(REFERENCE, having(), found, replace(evidence(found), texts={}))
        assert set(verdict.unclear) == {"template", "system", "parameters", "messages", "license"}

    def test_a_model_that_cannot_be_shown_leaves_everything_unclear_but_what_is_new(self) -> None:
        found = a_model(model=b"heavier")
        verdict = judge(REFERENCE, having(), found, evidence(found, absent=(b"heavier",), shown=None))
        assert kinds(verdict) == ["weights"]
        assert "template" in verdict.unclear
        assert "weights" not in verdict.unclear

    def test_weights_that_the_server_does_not_print_are_unclear(self) -> None:
        found = a_model()
        verdict = judge(REFERENCE, having(), found, evidence(found, shown=replace(SHOWN, blobs=())))
        assert "weights" in verdict.unclear

    def test_two_licenses_are_one_text(self) -> None:
        found = fetched(
            *(layer for layer in a_model(license=b"MIT").document.parts if layer != CONFIG),
            a_layer("license", b"Apache"),
        )
        shown = replace(SHOWN, license_text="MIT\nApache")
        known = evidence(found, shown=shown)
        texts = {**known.texts, Digest.of(b"MIT"): b"MIT"}
        assert judge(REFERENCE, having(), found, replace(known, texts=texts)).state == "current"

    def test_a_model_without_layers_but_its_metadata_is_current(self) -> None:
        stub = Contents(digest=OTHER)
        verdict = judge(
            REFERENCE, having(), fetched(), Evidence(present=frozenset({CONFIG.digest}), shown=stub)
        )
        assert verdict.state == "current"


class TestTemplates:
    """What a server shows for a model without a template layer depends on its version."""

    @pytest.mark.parametrize(
        ("shown", "shows_jinja", "state"),
        [
            ("{{ .Prompt }}", False, "current"),
            ("{{ .Prompt }}", True, "current"),
            ("{% jinja %}", False, "outdated"),
            ("{% jinja %}", True, "unclear"),
        ],
    )
    def test_no_template_layer(self, shown: str, shows_jinja: bool, state: str) -> None:
        found = a_model(template=None)
        contents = replace(SHOWN, template=shown, templates=frozenset({shown}))
        known = replace(evidence(found, shown=contents), shows_jinja=shows_jinja)
        verdict = judge(REFERENCE, having(), found, known)
        assert ("unclear" if verdict.unclear else verdict.state) == state

    def test_any_of_the_shown_texts_may_be_the_template(self) -> None:
        found = a_model()
        contents = replace(
            SHOWN, template="{% jinja %}", templates=frozenset({"{% jinja %}", "{{ .Prompt }}!\n"})
        )
        assert judge(REFERENCE, having(), found, evidence(found, shown=contents)).state == "current"


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from("abcdef").map(lambda sign: Digest.of(sign.encode())), st.just(7), max_size=4
        ),
        max_size=4,
    )
)
def test_a_host_downloads_shared_blobs_once(blobs: list[dict[Digest, int]]) -> None:
    models = [Freshness(ref=NAME, model=NAME, state="outdated", new_blobs=each) for each in blobs]
    absent = Freshness(ref=NAME, model=NAME, state="missing", new_blobs={Digest.of(b"z"): 1})
    unknown = Freshness(ref=NAME, model=NAME, state="outdated", new_blobs=None)
    host = HostFreshness(host="gpu-1", models=(*models, absent, unknown))
    assert host.download_bytes == 7 * len({digest for each in blobs for digest in each})
