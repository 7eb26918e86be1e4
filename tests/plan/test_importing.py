"""What a live host is written down as: derived only where that is exactly what it is."""

from __future__ import annotations

from msgspec.structs import replace

from ollamaops.manifest.types import Build, Copy, Pull, Source
from ollamaops.names import Digest, ModelName
from ollamaops.ollama.contents import Contents
from ollamaops.ollama.features import ServerVersion, features_of
from ollamaops.ollama.listing import Listing
from ollamaops.plan.importing import import_host
from ollamaops.plan.observed import ObservedHost, ObservedModel

BASE, CHILD = ModelName.parse("base"), ModelName.parse("child")
WEIGHTS, OTHER = Digest.of(b"weights"), Digest.of(b"other")


def source_of_child(base: Contents, child: Contents, *, same_digest: bool = False) -> Source:
    digests = {BASE: "a" * 64, CHILD: ("a" if same_digest else "b") * 64}
    observed = ObservedHost(
        host="h",
        features=features_of(ServerVersion.parse("0.33.0")),
        models=Listing((name, ObservedModel(name=name, digest=digest)) for name, digest in digests.items()),
        shown={BASE: base, CHILD: child},
    )
    return {spec.name: spec.source for spec in import_host(observed).specs}[CHILD]


def shown(digest: str = "a", blob: Digest = WEIGHTS, parent: str = "", license_text: str = "") -> Contents:
    return Contents(digest=digest * 64, blobs=(blob,), parent=parent, license_text=license_text)


def test_a_child_is_written_as_derived_with_what_it_adds() -> None:
    source = source_of_child(shown(license_text="MIT"), shown("b", parent="base", license_text="MIT\nBSD"))
    assert isinstance(source, Build)
    assert (source.base, source.licenses) == (BASE, ("BSD",))


def test_a_child_whose_licenses_do_not_continue_its_parents_is_only_named() -> None:
    source = source_of_child(shown(license_text="MIT"), shown("b", parent="base", license_text="BSD"))
    assert source == Pull(ref=CHILD)


def test_a_child_with_other_weights_than_its_parent_is_only_named() -> None:
    assert source_of_child(shown(), shown("b", blob=OTHER, parent="base")) == Pull(ref=CHILD)


def test_a_child_without_a_renderer_that_its_parent_would_hand_on_is_only_named() -> None:
    base, child = replace(shown(), renderer="r"), shown("b", parent="base")
    assert source_of_child(base, child) == Pull(ref=CHILD)
    assert source_of_child(base, replace(child, renderer="r")) == Build(base=BASE)


def test_a_child_whose_layers_no_server_shows_is_derived_from_the_parent_that_the_host_names() -> None:
    base, child = replace(shown(), blobs=()), replace(shown("b", parent="base"), blobs=(), system="s")
    assert source_of_child(base, child) == Build(base=BASE, system="s")
    assert source_of_child(replace(base, architecture="a"), replace(child, architecture="b")) == Pull(
        ref=CHILD
    )


def test_the_same_digest_is_a_copy() -> None:
    assert source_of_child(shown(), shown(parent="base"), same_digest=True) == Copy(source=BASE)


def test_a_stub_is_written_only_where_a_name_says_what_it_is() -> None:
    stubs = {"gpt:120b-cloud": "a", "fast": "a", "hidden": "b"}
    features = features_of(ServerVersion.parse("0.33.0"))
    models = [
        ObservedModel(name=ModelName.parse(text), digest=digest, is_cloud=True)
        for text, digest in stubs.items()
    ]
    listed = Listing(((one.name, one) for one in models), unreadable={ModelName.parse("odd"): "no digest"})
    found = import_host(ObservedHost(host="h", features=features, models=listed))
    assert {str(spec.name): spec.source for spec in found.specs} == {
        "gpt:120b-cloud": Pull(ref=ModelName.parse("gpt:120b-cloud")),
        "fast:latest": Copy(source=ModelName.parse("gpt:120b-cloud")),
    }
    assert set(found.left_out) == {ModelName.parse("hidden"), ModelName.parse("odd")}
