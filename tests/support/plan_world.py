"""A host made of values, to which plans are applied: what every server does to its models, without any server.

A model is a Contents; its digest is that of its parts, so equal models have equal digests. `World.apply` does what
apply/ does, memory included. Strategies for declarations and for hosts that somebody has been at are at the end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import strategies as st
from msgspec.structs import replace

from ollamaops.files.location import FileInfo, Location
from ollamaops.manifest.types import AbsentSpec, Build, Copy, ModelSpec, Policy, Pull, WeightsFile
from ollamaops.names import Digest, ModelName, NamePattern
from ollamaops.ollama.contents import NO_TEMPLATE, Contents
from ollamaops.ollama.features import Features, ServerVersion, features_of
from ollamaops.ollama.listing import Listing
from ollamaops.plan.actions import (
    Action,
    CopyModel,
    CreateModel,
    DeleteModel,
    HostPlan,
    PullModel,
    PushModel,
    Recipe,
    VerifyModel,
)
from ollamaops.plan.desired import DesiredHost
from ollamaops.plan.lookups import PlanOptions, is_trusted, lookups
from ollamaops.plan.observed import ObservedHost, ObservedModel, RegistryAnswer
from ollamaops.plan.verdict import record_in_sync, verified_for
from ollamaops.plan.versions import commit, next_of, previous_of
from ollamaops.settings import Message, ParameterValue
from ollamaops.state.records import NO_FINGERPRINT, Fingerprint, How, ModelRecord

HOST = "h"
FILES: dict[Location, FileInfo] = {
    Path("/w/a.gguf"): FileInfo(
        digest=Digest.of(b"a"), size_bytes=10, architecture="llama", parameter_count=7, quantization="F16"
    ),
    Path("/w/chat.gguf"): FileInfo(
        digest=Digest.of(b"chat"),
        size_bytes=20,
        architecture="llama",
        parameter_count=8,
        quantization="F16",
        chat_template="{{ messages }}",
    ),
    Path("/w/gemma.gguf"): FileInfo(
        digest=Digest.of(b"gemma"),
        size_bytes=30,
        architecture="gemma4",
        parameter_count=9,
        quantization="F16",
    ),
}
VERSIONS = ("0.3.4", "0.5.7", "0.12.11", "0.18.3", "0.24.0", "0.33.0")


def a_name(text: str) -> ModelName:
    return ModelName.parse(text)


def digest_of(contents: Contents) -> str:
    """As a server digests a manifest: from everything that is in it."""
    parts = (contents.blobs, contents.adapters, contents.template, contents.system, contents.messages)
    rest = (sorted(contents.parameters.items()), contents.license_text, contents.renderer, contents.parser)
    return Digest.of(repr((parts, rest)).encode()).hex


def sealed(contents: Contents) -> Contents:
    """The contents with their digest, and what `show` repeats of them."""
    return replace(contents, digest=digest_of(contents), templates=frozenset({contents.template}))


def registry_model(word: str) -> Contents:
    """What a registry has under some name; some publishers name a renderer, for servers that know it."""
    return sealed(
        Contents(
            digest="",
            blobs=(Digest.of(f"weights of {word}".encode()),),
            template=NO_TEMPLATE,
            system=f"system of {word}",
            parameters={"top_k": 40},
            license_text="MIT",
            architecture="llama",
            parameter_count=7,
            quantization="F16",
            renderer="published" if word.endswith("1") else "",
        )
    )


@dataclass(slots=True)
class World:
    """One host, the registries it pulls from, and what we remember. `touched` and `made` are this run's."""

    features: Features
    models: dict[ModelName, Contents] = field(default_factory=dict)
    memory: dict[ModelName, ModelRecord] = field(default_factory=dict)
    pushed: dict[tuple[ModelName, ModelName], frozenset[str]] = field(default_factory=dict)
    in_registries: dict[ModelName, str] = field(default_factory=dict)
    touched: set[ModelName] = field(default_factory=set)
    made: set[ModelName] = field(default_factory=set)

    def options(self) -> PlanOptions:
        return PlanOptions(distrust=frozenset(self.touched), made=frozenset(self.made))

    def look(self, desired: DesiredHost, options: PlanOptions) -> ObservedHost:
        observed = ObservedHost(
            host=HOST,
            features=self.features,
            models=Listing(
                (name, ObservedModel(name=name, digest=inside.digest))
                for name, inside in self.models.items()
                if not name.is_aside
            ),
            set_aside={name: inside.digest for name, inside in self.models.items() if name.is_aside},
            layers={inside.digest: () for inside in self.models.values()},
            memory=dict(self.memory),
            pushed=dict(self.pushed),
        )
        asked = lookups(desired, observed, options)
        return replace(
            observed,
            shown={name: self.models[name] for name in asked.show},
            upstream={name: self.upstream(name) for name in asked.upstream},
        )

    def upstream(self, name: ModelName) -> RegistryAnswer:
        if sent := self.in_registries.get(name):
            return RegistryAnswer(registry_digest=sent, digests=frozenset({sent}))
        digest = registry_model(name.key).digest
        return RegistryAnswer(
            registry_digest=digest, digests=frozenset({digest, self.as_pulled(name).digest})
        )

    def as_pulled(self, name: ModelName) -> Contents:
        """Servers before 0.19 write a pulled manifest anew, so that its digest is another one."""
        contents = registry_model(name.key)
        if self.features.raw_registry_manifest:
            return contents
        return replace(contents, digest=Digest.of(contents.digest.encode()).hex)

    def apply(self, actions: Iterable[Action]) -> None:
        done: set[str] = set()
        for action in actions:
            self._do(action)
            done.add(action.host)

    def _do(self, action: Action) -> None:
        match action:
            case PullModel():
                self._pull(action)
            case CreateModel():
                base = self.models[action.recipe.base] if action.recipe.base else None
                inside = build(action.recipe, base, self.features)
                blobs = tuple(map(str, (*inside.blobs, *inside.adapters)))
                target = action.aside or action.model
                self._keep(
                    action, inside, "created", base=base.digest if base else None, blobs=blobs, name=target
                )
                self.made.add(action.model)
            case CopyModel():
                self._copy(action)
            case VerifyModel():
                self._verify(action)
            case DeleteModel():
                del self.models[action.model]
                self.memory.pop(action.model, None)
            case PushModel():
                assert self.models[action.model] == self.models[action.source]
                own = self.models[action.source].digest
                self.in_registries[action.model] = sent = Digest.of(f"{own} as sent".encode()).hex
                self.pushed[action.source, action.model] = frozenset({own, sent})
            case _:
                pass  # uploads, and everything else that changes no model

    def _keep(
        self,
        action: PullModel | CreateModel | CopyModel,
        inside: Contents,
        how: How,
        *,
        base: str | None,
        blobs: tuple[str, ...] = (),
        name: ModelName | None = None,
    ) -> None:
        name = name or action.model
        self.models[name] = inside
        self.touched.add(name)
        if action.fingerprint != NO_FINGERPRINT:
            is_tried = isinstance(action, PullModel) and action.verify
            self.memory[name] = ModelRecord(
                how=how,
                status="unverified" if is_tried else "applied",
                fingerprint=action.fingerprint,
                digest=inside.digest,
                base_digest=base,
                blobs=blobs,
            )

    def _pull(self, action: PullModel) -> None:
        is_careful = bool(action.pin or action.verify or action.keep)
        if is_careful:
            self._secure(action.model)
        self._keep(action, self.as_pulled(action.model), "pulled", base=action.registry_digest or None)
        assert not action.pin or self.models[action.model].digest in action.pin
        if is_careful and not action.verify:
            self._settle(action.model, action.keep)

    def _verify(self, action: VerifyModel) -> None:
        """Everything is as expected here."""
        digest = self.models[action.at].digest
        known = self.memory.get(action.at)
        if known is None:
            known = ModelRecord(how="adopted", digest=digest)
        elif known.status == "unverified":
            known = replace(known, status="applied", digest=digest)
        held = verified_for(action.expectations, digest, self.features)
        self.memory[action.at] = replace(known, verified_for=held)
        if action.at == action.model:
            self._settle(action.model, action.keep)

    def _secure(self, name: ModelName) -> None:
        if name in self.models:
            self.models.setdefault(previous_of(name), self.models[name])

    def _settle(self, name: ModelName, keep: int) -> None:
        digests = {each: inside.digest for each, inside in self.models.items()}
        for step in commit(name, digests, keep=keep):
            if step.target is None:
                del self.models[step.source]
                self.memory.pop(step.source, None)
            else:
                self.models[step.target] = self.models[step.source]

    def _copy(self, action: CopyModel) -> None:
        if action.keep:
            self._secure(action.model)
        self._switch(action)
        if action.keep or action.source.is_aside:
            self._settle(action.model, action.keep)

    def _switch(self, action: CopyModel) -> None:
        source = self.models[action.source]
        before = self.memory.get(action.source)
        self._keep(action, source, "copied", base=source.digest)
        if before and action.model in self.memory:
            held = before.verified_for
            self.memory[action.model] = replace(self.memory[action.model], verified_for=held)
        if before and before.digest == source.digest and before.is_applied_for(action.fingerprint):
            self.memory[action.model] = replace(before, how="copied")

    def learn(
        self, desired: DesiredHost, observed: ObservedHost, plan: HostPlan, options: PlanOptions
    ) -> None:
        """Remember what was looked into and found in sync."""
        unverified = {note.model for note in plan.notes if not note.unresolved}
        for model in desired.models:
            own = observed.shown.get(model.name)
            if own is None or model.name not in plan.unchanged or is_trusted(model, observed, options):
                continue
            verified = model.name not in unverified
            self.memory[model.name] = record_in_sync(model, own, observed, weights_verified=verified, at="")


def build(recipe: Recipe, base: Contents | None, features: Features) -> Contents:
    """What a server makes of a recipe: the base's values overlaid with the given ones."""
    if base is None:
        base = _from_weights(recipe, features)
    blobs = base.blobs
    if recipe.quantize and recipe.base:
        blobs = tuple(_converted(blob, recipe.quantize) for blob in blobs)
    inherited = base if features.renderer_and_parser_inherited else replace(base, renderer="", parser="")
    renderer, parser = recipe.renderer or inherited.renderer, recipe.parser or inherited.parser
    parameters: dict[str, ParameterValue] = {**base.parameters, **recipe.parameters}
    if (
        base.architecture == "gemma4"
        and features.version.is_at_least((0, 20, 0))
        and not (renderer and parser)
    ):
        renderer, parser = renderer or "gemma4", parser or "gemma4"
        parameters["stop"] = recipe.parameters.get("stop", ("<turn|>",))
    texts = [text for text in (base.license_text, *recipe.licenses) if text]
    return sealed(
        replace(
            base,
            blobs=blobs,
            quantization=recipe.quantize or base.quantization,
            template=recipe.template or base.template,
            system=recipe.system or base.system,
            parameters={name: value for name, value in parameters.items() if value not in (None, ())},
            messages=recipe.messages or base.messages,
            license_text="\n".join(texts),
            renderer=renderer,
            parser=parser,
        )
    )


def _from_weights(recipe: Recipe, features: Features) -> Contents:
    info = next(info for info in FILES.values() if info.digest == recipe.files[0].digest)
    digest = info.digest
    if recipe.quantize or features.gguf_rewritten:
        digest = _converted(digest, recipe.quantize or "rewritten")
    return Contents(
        digest="",
        blobs=(digest,),
        template="{{ detected }}" if info.chat_template else NO_TEMPLATE,
        parameters={"stop": ("<end>",)} if info.chat_template else {},
        architecture=info.architecture,
        parameter_count=info.parameter_count,
        quantization=info.quantization,
    )


def _converted(digest: Digest, how: str) -> Digest:
    return Digest.of(json.dumps([digest.hex, how]).encode())


# declarations and hosts

PULLED = ("p0", "p1", "reg.lan/x/r0", "reg.lan/x/r1")
MADE = ("m0", "m1", "m2", "m3", "m4")
FORMER = ("old0", "old1")
OTHERS = ("junk0", "junk1", "scratch/s0", "me/pushed0", "me/pushed1", "m0:golden")

TEXTS = st.sampled_from(("x", "y"))
PARAMETERS = st.dictionaries(
    st.sampled_from(("top_k", "temperature", "stop")),
    st.sampled_from((1, 40, 0.5, None)),
    max_size=2,
).map(lambda found: {name: ("a",) if name == "stop" else value for name, value in found.items()})


# Strategies that depend on nothing drawn before are made once, which is most of what drawing costs.
MAYBE_TEXTS = st.none() | TEXTS
LICENSES = st.sampled_from(((), ("BSD",)))
FILES_USED = st.sampled_from(sorted(FILES))
ONE_IN_FOUR = st.sampled_from((False, False, False, True))
BUILDS = st.builds(
    Build,
    base=st.none(),
    files=st.just(()),
    template=MAYBE_TEXTS,
    system=MAYBE_TEXTS,
    parameters=PARAMETERS,
    messages=st.sampled_from(((), (Message("user", "hi"),))),
    licenses=LICENSES,
    quantize=st.sampled_from((None, None, "Q8_0")),
    renderer=st.sampled_from((None, None, "own")),
    parser=st.sampled_from((None, None, None, "own")),
)
SPECS = st.builds(
    ModelSpec,
    name=st.just(a_name("to-be-named")),
    source=st.just(Pull(ref=a_name("to-be-named"))),
    update=st.sampled_from(("missing", "latest")),
    moved_from=st.sampled_from((None, None, None, *map(a_name, FORMER))),
    push=st.sampled_from((None, None, None, *map(a_name, OTHERS[3:5]))),
    protect=ONE_IN_FOUR,
    ignore=st.sampled_from(((), (), (), ("system",), ("weights",))),
    retries=st.integers(1, 3),
    staged=ONE_IN_FOUR,
    keep_previous=st.sampled_from((0, 0, 0, 1, 2)),
    expect=st.sampled_from(((), (), ({"prompt": "hi"},))),
)
KINDS = st.sampled_from(("pull", "mirror", "build", "build", "copy"))
REFS = st.sampled_from(PULLED[2:])


@st.composite
def builds(draw: st.DrawFn, sources: tuple[str, ...]) -> Build:
    if draw(ONE_IN_FOUR):
        path = draw(FILES_USED)
        return replace(draw(BUILDS), files=(WeightsFile(path, path.name),))
    return replace(draw(BUILDS), base=a_name(draw(st.sampled_from(sources))))


def specs(draw: st.DrawFn, name: str, sources: tuple[str, ...]) -> ModelSpec:
    """One entry; what it is made from is one of `sources`, so that there are no circles."""
    source: Pull | Build | Copy
    match kind := draw(KINDS):
        case "build":
            source = draw(builds(sources))
        case "copy":
            source = Copy(source=a_name(draw(st.sampled_from(sources))))
        case _:
            source = Pull(ref=a_name(name if kind == "pull" else draw(REFS)))
    is_pinned = isinstance(source, Pull) and draw(ONE_IN_FOUR)
    pin = Digest(registry_model(source.ref.key).digest) if isinstance(source, Pull) and is_pinned else None
    return replace(draw(SPECS), name=a_name(name), source=source, digest=pin)


NAMES = st.lists(st.sampled_from((*PULLED[:2], *MADE)), unique=True, min_size=1, max_size=6)


@st.composite
def declarations(draw: st.DrawFn) -> list[ModelSpec]:
    names = draw(NAMES)
    found: list[ModelSpec] = []
    formers: set[ModelName] = set()
    for name in names:
        sources = (*PULLED[:2], *(spec.name.display for spec in found))
        spec = specs(draw, name, tuple(source for source in sources if a_name(source) != a_name(name)))
        if spec.moved_from in formers:
            spec = replace(spec, moved_from=None)
        formers |= {spec.moved_from} if spec.moved_from else set()
        found.append(spec)
    return [spec for spec in found if not _is_circular(spec, found)]


def _is_circular(spec: ModelSpec, all_specs: list[ModelSpec]) -> bool:
    """Whether following what models are made from comes back to `spec`."""
    by_name = {each.name: each for each in all_specs}
    seen: set[ModelName] = set()
    at: ModelSpec | None = spec
    while at is not None and at.name not in seen:
        seen.add(at.name)
        base = at.source.base if isinstance(at.source, Build) else None
        base = at.source.source if isinstance(at.source, Copy) else base
        at = by_name.get(base) if base else None
    return at is not None


POLICIES = st.builds(
    Policy,
    prune=st.sampled_from((False, "owned", (NamePattern.parse("*"),), (NamePattern.parse("junk*"),))),
    protect=st.sampled_from(((), (NamePattern.parse("*:golden"),), (NamePattern.parse("m1"),))),
    ignore=st.just((NamePattern.parse("scratch/*"),)),
)
ABSENT = st.lists(
    st.sampled_from(("junk0", "junk*", "m0:*", "old1")).map(
        lambda text: AbsentSpec(pattern=NamePattern.parse(text))
    ),
    max_size=2,
)


BOOLEANS = st.booleans()
WAYS: st.SearchStrategy[How] = st.sampled_from(("pulled", "created", "copied", "adopted"))
BASES = st.sampled_from((None, "2" * 64))
VERSIONS_OF_HOSTS = st.sampled_from(VERSIONS)
HOST_NAMES = st.lists(st.sampled_from((*PULLED, *MADE, *FORMER, *OTHERS)), unique=True, max_size=10)
SET_ASIDE = st.lists(st.sampled_from((*PULLED, *MADE)), max_size=2)
ASIDE_OF = st.sampled_from((next_of, previous_of))
# Something that may be in a model: pulled, made of files, and then changed by somebody.
INSIDES = st.builds(
    build,
    st.builds(Recipe, system=MAYBE_TEXTS, template=MAYBE_TEXTS, parameters=PARAMETERS, licenses=LICENSES),
    st.sampled_from([registry_model(a_name(name).key) for name in PULLED]),
    st.sampled_from([features_of(ServerVersion.parse(version)) for version in VERSIONS]),
)


@st.composite
def memories(draw: st.DrawFn, inside: Contents, fingerprints: st.SearchStrategy[Fingerprint]) -> ModelRecord:
    """What may be remembered of a model: what was there before, or what is there for another declaration."""
    is_older = draw(BOOLEANS)
    return ModelRecord(
        fingerprint=draw(fingerprints) if is_older else Fingerprint("other", "weights"),
        digest="0" * 64 if is_older else inside.digest,
        how=draw(WAYS),
        base_digest=draw(BASES),
        blobs=tuple(map(str, inside.blobs)) if draw(BOOLEANS) else (),
        weights_verified=draw(BOOLEANS),
    )


@st.composite
def worlds(draw: st.DrawFn, desired: DesiredHost) -> World:
    """A host with models under any of the names, some of them remembered, rightly or wrongly."""
    world = World(features_of(ServerVersion.parse(draw(VERSIONS_OF_HOSTS))))
    fingerprints = st.sampled_from(
        [model.fingerprint for model in desired.models] or [Fingerprint("no", "one")]
    )
    for name in map(a_name, draw(HOST_NAMES)):
        is_registry_model = name.display in PULLED and draw(BOOLEANS)
        world.models[name] = world.as_pulled(name) if is_registry_model else draw(INSIDES)
        if draw(BOOLEANS):
            world.memory[name] = draw(memories(world.models[name], fingerprints))
    for name in map(a_name, draw(SET_ASIDE)):
        aside = draw(ASIDE_OF)
        world.models[aside(name)] = draw(INSIDES)  # of a run that was killed
    return world
