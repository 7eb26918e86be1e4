"""What a lock promises to a declaration: which names it holds, what an update changes, what a check finds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from ollamaops.lockfile.build import (
    Answer,
    Cause,
    Reference,
    Unanswered,
    locked_references,
    needs_lock,
    references_on,
    with_lock,
)
from ollamaops.lockfile.changes import Finding, LayerFlaw, LockUpdate, check_lock, to_ask, update_lock
from ollamaops.lockfile.lock import Lock, LockEntry
from ollamaops.manifest.types import Build, Copy, Manifest, ModelSpec, Place, Policy, Pull, Source, Update
from ollamaops.names import Digest, ModelName, NamePattern
from ollamaops.registry.documents import (
    MANIFEST_TYPE,
    FetchedManifest,
    Layer,
    RegistryManifest,
    canonical_bytes,
    parse_document,
)

CONFIG = Layer("application/vnd.docker.container.image.v1+json", Digest.of(b"{}"), 2)


def a_name(text: str) -> ModelName:
    return ModelName.parse(text)


def a_layer(kind: str, data: bytes, size_bytes: int | None = None) -> Layer:
    size = len(data) if size_bytes is None else size_bytes
    return Layer(f"application/vnd.ollama.image.{kind}", Digest.of(data), size)


def altered(found: FetchedManifest, **changes: Any) -> FetchedManifest:
    """The same, its first layer described otherwise and nothing else."""
    assert isinstance(found.document, RegistryManifest)
    first, *others = found.document.layers
    raw = canonical_bytes(replace(found.document, layers=(structs.replace(first, **changes), *others)))
    return replace(found, raw=raw, digest=Digest.of(raw), document=parse_document(raw))


def a_document(weights: bytes, *others: Layer) -> RegistryManifest:
    return RegistryManifest(MANIFEST_TYPE, CONFIG, (a_layer("model", weights), *others))


def an_answer(name: str, weights: bytes, *others: Layer) -> FetchedManifest:
    raw = canonical_bytes(a_document(weights, *others))
    return FetchedManifest(a_name(name), raw, Digest.of(raw), parse_document(raw))


def an_entry(weights: bytes, *others: Layer) -> LockEntry:
    found = an_answer("any", weights, *others)
    return LockEntry(found.digest, found.document)


def a_lock(**entries: bytes) -> Lock:
    return Lock({a_name(name): an_entry(weights) for name, weights in entries.items()})


def a_spec(
    name: str,
    source: Source | None = None,
    *,
    update: Update = "locked",
    digest: Digest | None = None,
    place: Place = Place(),
) -> ModelSpec:
    wanted = source or Pull(ref=a_name(name))
    return ModelSpec(name=a_name(name), source=wanted, update=update, digest=digest, place=place)


def a_manifest(*specs: ModelSpec) -> Manifest:
    return Manifest(root=Path("/"), files=(), hosts=(), models=specs)


def a_reference(name: str, *, pin: Digest | None = None) -> Reference:
    return Reference(ref=a_name(name), model=a_name(name), pin=pin)


def built_from(base: str) -> Build:
    return Build(base=a_name(base))


def every(_: Reference) -> bool:
    return True


def none(_: Reference) -> bool:
    return False


class TestWhatIsPulled:
    def test_a_model_is_pulled_under_its_reference(self) -> None:
        mirror = a_spec(
            "bot", Pull(ref=a_name("corp.example/team/bot:v1"), insecure=True), digest=Digest.of(b"")
        )
        assert references_on([mirror]) == (
            Reference(
                ref=a_name("corp.example/team/bot:v1"),
                model=a_name("bot"),
                insecure=True,
                update="locked",
                pin=Digest.of(b""),
            ),
        )

    def test_an_undeclared_base_is_pulled_once_for_all_that_need_it(self) -> None:
        specs = [
            a_spec("one", built_from("qwen3")),
            a_spec("two", built_from("qwen3")),
            a_spec("alias", Copy(source=a_name("QWEN3:latest"))),
        ]
        assert references_on(specs) == (a_reference("qwen3"),)

    def test_a_base_is_asked_for_over_http_when_one_entry_says_so(self) -> None:
        base = "corp.example/team/base"
        insecure = structs.replace(a_spec("two", built_from(base)), insecure=True)
        found = references_on([a_spec("one", built_from(base)), insecure, a_spec("three", built_from(base))])
        assert [(str(each.ref), each.insecure) for each in found] == [("corp.example/team/base:latest", True)]

    def test_a_declared_base_speaks_for_itself(self) -> None:
        specs = [a_spec("bot", built_from("qwen3")), a_spec("qwen3", update="latest")]
        assert [reference.update for reference in references_on(specs)] == ["latest"]

    def test_local_weights_are_not_pulled(self) -> None:
        assert references_on([a_spec("mine", Build())]) == ()

    def test_targets_leave_what_they_need(self) -> None:
        specs = [a_spec("other"), a_spec("bot", built_from("middle")), a_spec("middle", built_from("base"))]
        found = references_on(specs, [NamePattern.parse("bot")])
        assert [str(reference.ref) for reference in found] == ["base:latest"]


class TestWhatALockHolds:
    @pytest.mark.parametrize(
        ("update", "is_held"), [("locked", True), ("missing", True), ("latest", False), ("never", False)]
    )
    def test_what_follows_its_tag_or_is_never_pulled_is_not_locked(
        self, update: Update, is_held: bool
    ) -> None:
        assert bool(locked_references(references_on([a_spec("qwen3", update=update)]))) == is_held

    def test_a_name_that_two_entries_pull_is_locked_once_and_strictly(self) -> None:
        ref, pin = a_name("corp.example/team/bot:v1"), Digest.of(b"pin")
        one = Reference(ref=ref, model=a_name("one"), insecure=True)
        two = Reference(ref=ref, model=a_name("two"), pin=pin)
        (held,) = locked_references([one, two])
        assert (held.insecure, held.pin) == (True, pin)

    @given(st.permutations(["b", "a", "C", "d:v1"]))
    def test_the_order_of_the_manifest_does_not_matter(self, names: list[str]) -> None:
        held = locked_references(references_on([a_spec(name) for name in names]))
        assert [str(reference.ref) for reference in held] == ["a:latest", "b:latest", "C:latest", "d:v1"]


class TestAManifestHeldToItsLock:
    def test_a_locked_model_is_pinned_and_may_have_every_digest_of_that_content(self) -> None:
        lock = a_lock(qwen3=b"weights")
        (spec,) = with_lock(a_manifest(a_spec("QWEN3")), lock).models
        entry = lock.entries[a_name("qwen3")]
        assert spec.digest == entry.digest
        assert set(spec.accepts) == entry.tags_digests
        assert not needs_lock(spec)

    def test_a_model_that_only_has_to_be_there_is_not_pinned_but_pulled_as_locked(self) -> None:
        lock = a_lock(qwen3=b"weights")
        (spec,) = with_lock(a_manifest(a_spec("qwen3", update="missing")), lock).models
        assert spec.digest is None
        assert set(spec.accepts) == lock.entries[a_name("qwen3")].tags_digests

    @pytest.mark.parametrize("update", ["latest", "never"])
    def test_a_model_that_does_not_follow_the_lock_is_left_alone(self, update: Update) -> None:
        spec = a_spec("qwen3", update=update)
        held = with_lock(a_manifest(spec), a_lock(qwen3=b"weights"))
        assert held.models == (spec,)
        assert not needs_lock(spec)

    def test_an_undeclared_base_is_pulled_as_locked(self) -> None:
        spec = a_spec("bot", built_from("qwen3"), update="latest")
        (held,) = with_lock(a_manifest(spec), a_lock(qwen3=b"weights")).models
        assert held.accepts
        assert held.digest is None

    def test_the_digest_in_the_manifest_wins_over_another_one_in_the_lock(self) -> None:
        spec = a_spec("qwen3", digest=Digest.of(b"other"))
        held = with_lock(a_manifest(spec), a_lock(qwen3=b"weights"))
        assert (held.models, held.warnings) == ((spec,), ())

    def test_a_digest_in_the_manifest_gets_the_digests_of_older_servers_from_the_lock(self) -> None:
        entry = an_entry(b"weights")
        (held,) = with_lock(a_manifest(a_spec("qwen3", digest=entry.digest)), a_lock(qwen3=b"weights")).models
        assert set(held.accepts) == entry.tags_digests

    def test_a_model_missing_in_the_lock_is_warned_of_with_its_place(self) -> None:
        specs = (
            a_spec("qwen3", place=Place("m.yaml", 3, 5)),
            a_spec("bot", built_from("base"), place=Place("m.yaml", 4, 5)),
            a_spec("other", built_from("qwen3")),
            a_spec("mine", Build()),
        )
        held = with_lock(a_manifest(*specs), Lock())
        assert [(problem.place, problem.message, problem.hint) for problem in held.warnings] == [
            (
                "m.yaml:3:5",
                "'qwen3:latest' is not in the lock file: taken as update: missing",
                "write its entry with: ollamaops lock",
            ),
            (
                "m.yaml:4:5",
                "'base:latest' is not in the lock file: taken as update: missing",
                "write its entry with: ollamaops lock",
            ),
        ]
        assert held.models == specs
        assert [needs_lock(spec) for spec in specs] == [True, False, False, False]

    def test_a_required_lock_warns_of_nothing_because_the_guard_refuses(self) -> None:
        held = with_lock(a_manifest(a_spec("qwen3")), Lock(), required=True)
        assert held.warnings == ()
        assert held.policy == Policy(require_lock=True)

    @given(st.sampled_from(["locked", "missing", "latest", "never"]))
    def test_holding_twice_changes_nothing_more(self, update: Update) -> None:
        lock = a_lock(qwen3=b"weights")
        once = with_lock(a_manifest(a_spec("qwen3", update=update), a_spec("bot", built_from("qwen3"))), lock)
        assert with_lock(once, lock) == once


class TestBringingALockUpToDate:
    def test_only_what_is_not_locked_is_asked_for(self) -> None:
        references = [a_reference("new"), a_reference("old")]
        assert to_ask(a_lock(old=b""), references, none) == (references[0],)
        assert to_ask(a_lock(old=b""), references, every) == tuple(references)

    def test_an_entry_against_the_manifests_own_pin_is_asked_for(self) -> None:
        entry = an_entry(b"old")
        agreeing, other = a_reference("old", pin=entry.digest), a_reference("old", pin=Digest.of(b"other"))
        assert to_ask(a_lock(old=b"old"), [agreeing], none) == ()
        assert to_ask(a_lock(old=b"old"), [other], none) == (other,)

    def test_entries_are_added_updated_kept_and_removed(self) -> None:
        lock = a_lock(moved=b"1", kept=b"k", gone=b"g", asked=b"a")
        references = [a_reference(name) for name in ("new", "moved", "kept", "asked")]
        answers: dict[ModelName, Answer] = {
            a_name("new"): an_answer("new", b"n"),
            a_name("moved"): an_answer("moved", b"2"),
            a_name("asked"): an_answer("asked", b"a"),
        }
        result = update_lock(lock, references, answers, complete=True)
        assert _states(result) == {
            "asked:latest": "kept",
            "gone:latest": "removed",
            "kept:latest": "kept",
            "moved:latest": "updated",
            "new:latest": "added",
        }
        assert result.lock == a_lock(new=b"n", moved=b"2", kept=b"k", asked=b"a")
        (moved,) = (step for step in result.steps if step.state == "updated")
        assert [(change.kind, change.download_bytes) for change in moved.changes] == [("weights", 1)]

    def test_a_part_of_the_declaration_removes_nothing(self) -> None:
        result = update_lock(
            a_lock(other=b"o"), [a_reference("new")], {a_name("new"): an_answer("new", b"n")}, complete=False
        )
        assert result.lock == a_lock(other=b"o", new=b"n")
        assert _states(result) == {"new:latest": "added"}

    def test_without_an_answer_the_old_entry_stays_and_a_new_one_is_not_made(self) -> None:
        answer = Unanswered(error="registry: connection refused", hint="wait")
        references = [a_reference("old"), a_reference("new")]
        answers: dict[ModelName, Answer] = {reference.ref: answer for reference in references}
        result = update_lock(a_lock(old=b"o"), references, answers, complete=True)
        assert result.lock == a_lock(old=b"o")
        assert _states(result) == {"old:latest": "failed", "new:latest": "failed"}
        assert {(step.error, step.hint) for step in result.steps} == {
            ("registry: connection refused", "wait")
        }

    def test_what_the_manifest_pins_otherwise_is_not_locked(self) -> None:
        pin, found = Digest.of(b"pin"), an_answer("qwen3", b"w")
        result = update_lock(Lock(), [a_reference("qwen3", pin=pin)], {found.name: found}, complete=True)
        (step,) = result.steps
        assert result.lock == Lock()
        assert step.error == f"the manifest pins {pin.short}, the registry has {found.digest.short}"

    def test_what_the_manifest_pins_is_locked(self) -> None:
        found = an_answer("qwen3", b"w")
        result = update_lock(
            Lock(), [a_reference("qwen3", pin=found.digest)], {found.name: found}, complete=True
        )
        assert result.lock == a_lock(qwen3=b"w")

    @given(
        st.dictionaries(st.sampled_from("abcd"), st.binary(max_size=2)),
        st.dictionaries(st.sampled_from("abcd"), st.binary(max_size=2)),
    )
    def test_a_complete_update_holds_exactly_what_registries_have_and_then_checks_out(
        self, before: dict[str, bytes], now: dict[str, bytes]
    ) -> None:
        references = [a_reference(name) for name in sorted(now)]
        answers: dict[ModelName, Answer] = {a_name(name): an_answer(name, data) for name, data in now.items()}
        result = update_lock(a_lock(**before), references, answers, complete=True)
        assert result.lock == a_lock(**now)
        findings = check_lock(result.lock, references, answers, {}, complete=True)
        assert {finding.state for finding in findings} <= {"same"}


def _states(result: LockUpdate) -> dict[str, str]:
    return {str(step.ref): step.state for step in result.steps}


class TestCheckingALock:
    def test_every_entry_is_judged_in_the_order_of_names(self) -> None:
        lock = a_lock(moved=b"1", same=b"s", surplus=b"x")
        answers: dict[ModelName, Answer] = {
            a_name("moved"): an_answer("moved", b"2"),
            a_name("same"): an_answer("same", b"s"),
        }
        references = [a_reference(name) for name in ("same", "new", "moved")]
        found = check_lock(lock, references, answers, {}, complete=True)
        assert [(str(each.ref), each.state) for each in found] == [
            ("moved:latest", "moved"),
            ("new:latest", "missing"),
            ("same:latest", "same"),
            ("surplus:latest", "surplus"),
        ]
        assert [change.kind for change in found[0].changes] == ["weights"]

    def test_a_part_of_the_declaration_finds_no_surplus(self) -> None:
        assert check_lock(a_lock(other=b""), [], {}, {}, complete=False) == ()

    def test_an_entry_against_the_manifests_pin_is_contradicted(self) -> None:
        finding = _check_one(an_entry(b"w"), an_answer("qwen3", b"w"), pin=Digest.of(b"pin"))
        assert (finding.state, finding.pin) == ("contradicted", Digest.of(b"pin"))

    def test_an_entry_that_the_manifest_pins_too_is_the_same(self) -> None:
        entry = an_entry(b"w")
        assert _check_one(entry, an_answer("qwen3", b"w"), pin=entry.digest).state == "same"

    @pytest.mark.parametrize(
        ("cause", "state"),
        [("unreached", "unknown"), ("refused", "unknown"), ("gone", "gone"), ("tampered", "damaged")],
    )
    def test_reasons_for_a_missing_answer_are_told_apart(self, cause: Cause, state: str) -> None:
        finding = _check_one(an_entry(b"w"), Unanswered(error="why", hint="how", cause=cause))
        assert (finding.state, finding.error, finding.hint) == (state, "why", "how")

    @pytest.mark.parametrize(
        "changes",
        [{"size_bytes": 7}, {"media_type": "application/vnd.ollama.image.tensor"}, {"name": "blk.0"}],
        ids=lambda changes: next(iter(changes)),
    )
    def test_a_layer_that_is_described_otherwise_is_named_by_a_check_and_by_an_update(
        self, changes: dict[str, Any]
    ) -> None:
        lock, reference = a_lock(bot=b"w"), a_reference("bot")
        answers: dict[ModelName, Answer] = {a_name("bot"): altered(an_answer("bot", b"w"), **changes)}
        (finding,) = check_lock(lock, [reference], answers, {}, complete=True)
        (step,) = update_lock(lock, [reference], answers, complete=True).steps
        old = a_layer("model", b"w")
        assert (finding.state, step.state, finding.changes) == ("moved", "updated", ())
        assert finding.altered == step.altered == ((old, structs.replace(old, **changes)),)

    def test_a_layer_that_was_replaced_is_a_change_and_not_an_alteration(self) -> None:
        answers: dict[ModelName, Answer] = {a_name("bot"): an_answer("bot", b"other")}
        (finding,) = check_lock(a_lock(bot=b"w"), [a_reference("bot")], answers, {}, complete=True)
        assert ([change.kind for change in finding.changes], finding.altered) == (["weights"], ())

    def test_a_lock_with_other_layers_under_the_same_digest_is_damaged(self) -> None:
        answer = an_answer("qwen3", b"w", a_layer("template", b"t"), a_layer("system", b"s"))
        forged = LockEntry(
            answer.digest,
            a_document(b"evil", a_layer("template", b"t", 99), a_layer("adapter", b"a")),
        )
        finding = _check_one(forged, answer)
        assert finding.state == "damaged"
        assert [_pair(pair) for pair in finding.forged] == [
            (("weights", Digest.of(b"evil"), 4), ("weights", Digest.of(b"w"), 1)),
            (("template", Digest.of(b"t"), 99), ("template", Digest.of(b"t"), 1)),
            (("adapter", Digest.of(b"a"), 1), None),
            (None, ("system", Digest.of(b"s"), 1)),
        ]

    def test_a_registry_with_other_bytes_in_a_layer_is_damaged(self) -> None:
        flaw = LayerFlaw(a_layer("model", b"w"), "other bytes")
        finding = _check_one(an_entry(b"w"), an_answer("qwen3", b"w"), layers=(flaw,))
        assert (finding.state, finding.flaws) == ("damaged", (flaw,))

    def test_layers_that_could_not_be_looked_at_leave_it_unknown(self) -> None:
        finding = _check_one(an_entry(b"w"), an_answer("qwen3", b"w"), layers=Unanswered(error="cut"))
        assert (finding.state, finding.error) == ("unknown", "cut")


def _check_one(
    entry: LockEntry,
    answer: Answer,
    *,
    layers: tuple[LayerFlaw, ...] | Unanswered = (),
    pin: Digest | None = None,
) -> Finding:
    name = a_name("qwen3")
    (found,) = check_lock(
        Lock({name: entry}), [a_reference("qwen3", pin=pin)], {name: answer}, {name: layers}, complete=True
    )
    return found


def _pair(pair: tuple[Layer | None, Layer | None]) -> tuple[object, object]:
    ours, theirs = (layer and (layer.kind, layer.digest, layer.size_bytes) for layer in pair)
    return ours, theirs
