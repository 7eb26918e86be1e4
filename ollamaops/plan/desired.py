"""What one host should have: every local file replaced by its digest, every model after what it is made from.

A fingerprint has two halves, words and weights, so that a change of words can be told from a change of weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, assert_never

from msgspec import Struct
from msgspec.structs import replace

from ollamaops.files.location import FileInfo, Location, Unavailable, Weights
from ollamaops.manifest.graph import base_is_insecure, cloud_models, in_order, source_of, with_needs
from ollamaops.manifest.types import AbsentSpec, Build, Copy, ModelSpec, Policy, Pull, WeightsFile
from ollamaops.manifest.weights import weights_of
from ollamaops.names import Digest, ModelName, NamePattern
from ollamaops.plan.actions import Blob, Recipe
from ollamaops.settings import WEIGHTS_SETTINGS, settings_of
from ollamaops.state.records import NO_FINGERPRINT, Fingerprint


class LocalBlob(Struct, frozen=True, kw_only=True):
    """A file that a recipe needs on the host. `path` is its path here, or its address elsewhere.

    With `parts` (name in it, path here) it is a zip archive of these files; `path` is their folder. `stated`: the
    digest is the manifest's word.
    """

    digest: Digest
    path: str
    size_bytes: int
    stated: bool = False
    parts: tuple[tuple[str, str], ...] = ()


class DesiredModel(Struct, frozen=True, kw_only=True):
    """One model a host should have. `implicit` marks an undeclared base: pulled when needed, not owned.

    `archive` has the files of the recipe, for a server that takes them in no other form. `unavailable` says why its
    weights are not known; it has no recipe then. `in_cloud`: it is declared to run on ollama.com, so that a stub is
    what is wanted.
    """

    spec: ModelSpec
    fingerprint: Fingerprint
    recipe: Recipe | None = None
    blobs: tuple[LocalBlob, ...] = ()
    weights: tuple[FileInfo, ...] = ()
    archive: LocalBlob | None = None
    unavailable: Unavailable | None = None
    implicit: bool = False
    in_cloud: bool = False

    @property
    def name(self) -> ModelName:
        """The model's name."""
        return self.spec.name

    @property
    def made_from(self) -> ModelName | None:
        """The model on the same host that this one is built from or a copy of."""
        return source_of(self.spec)


class DeclaredSetting(Struct, frozen=True):
    """What an entry declares, and the name of that entry, from which others inherit it."""

    text: str
    by: ModelName


class DesiredHost(Struct, frozen=True, kw_only=True):
    """Everything one host should and should not have; models in the order in which they can be made.

    `left_out` is declared as well, but this run has other targets; it is then not `complete`. `pushes` are the
    models that this host pushes: a model is pushed by the first host that has it. `vram_bytes` is its label `vram`,
    `disk_bytes` what models may take on its disk.
    """

    host: str
    models: tuple[DesiredModel, ...] = ()
    left_out: tuple[DesiredModel, ...] = ()
    absent: tuple[AbsentSpec, ...] = ()
    policy: Policy = Policy()
    pushes: frozenset[ModelName] = frozenset()
    complete: bool = True
    vram_bytes: int | None = None
    disk_bytes: int | None = None

    def find(self, name: ModelName | None) -> DesiredModel | None:
        """The model of that name that this host should have, also as the base of another."""
        return next((model for model in self.models if model.name == name), None)

    @property
    def declared(self) -> tuple[DesiredModel, ...]:
        """Every model of the manifest for this host, whatever the targets."""
        return (*self.models, *self.left_out)

    @property
    def needed(self) -> frozenset[ModelName]:
        """Every name that has to stay: declared, made from, pulled under another name, pushed under another name."""
        names: set[ModelName] = set()
        for model in self.declared:
            spec = model.spec
            names.update(name for name in (spec.name, spec.push, model.made_from) if name)
            if isinstance(spec.source, Pull):
                names.add(spec.source.ref)
        return frozenset(names)

    @property
    def claimed(self) -> frozenset[ModelName]:
        """Every name that the declaration speaks for, former ones too, so that none of them is ever "undeclared"."""
        former = {model.spec.moved_from for model in self.declared if model.spec.moved_from}
        return self.needed | former

    def setting_of(
        self, model: DesiredModel, setting: Literal["template", "requires"]
    ) -> DeclaredSetting | None:
        """What the model's entry declares, else what the nearest entry does that it is made from."""
        declared = {each.name: each for each in self.declared}
        one: DesiredModel | None = model
        while one is not None:
            text = getattr(one.recipe, setting, None)
            if text:
                return DeclaredSetting(text, one.name)
            one = declared.get(one.made_from) if one.made_from else None
        return None

    def protects(self, name: ModelName) -> bool:
        """Whether the declaration says that `name` is never deleted or replaced."""
        by_pattern = any(pattern.matches(name) for pattern in self.policy.protect)
        return by_pattern or any(model.spec.protect and model.name == name for model in self.declared)


def build_desired(
    host: str,
    specs: Sequence[ModelSpec],
    *,
    absent: Sequence[AbsentSpec] = (),
    policy: Policy = Policy(),
    files: Mapping[Location, Weights] | None = None,
    targets: Sequence[NamePattern] = (),
    pushes: Iterable[ModelName] = (),
    vram_bytes: int | None = None,
    disk_bytes: int | None = None,
) -> DesiredHost:
    """The DesiredHost for `specs`. `files` must know every path of `local_files(specs)`.

    With `targets` only matching models stay, and what they are made from; the result is then not `complete`, so
    that nothing is taken for undeclared.
    """
    specs = _in_one_spelling(specs)
    declared = {spec.name: build_model(spec, files or {}) for spec in specs}
    everything = {**_implicit_bases(declared.values()), **declared}
    for name in cloud_models(model.spec for model in everything.values()):
        everything[name] = replace(everything[name], in_cloud=True)

    def needs(name: ModelName) -> tuple[ModelName, ...]:
        source = everything[name].made_from
        return (source,) if source else ()

    order = in_order(list(everything), needs)
    kept = set(order)
    if targets:
        kept = with_needs((name for name in declared if _is_target(name, targets)), needs)
        absent = [entry for entry in absent if _is_absent_target(entry, targets)]
    return DesiredHost(
        host=host,
        models=tuple(everything[name] for name in order if name in kept),
        left_out=tuple(everything[name] for name in order if name not in kept),
        absent=tuple(absent),
        policy=policy,
        pushes=frozenset(pushes),
        complete=not targets,
        vram_bytes=vram_bytes,
        disk_bytes=disk_bytes,
    )


def _in_one_spelling(specs: Sequence[ModelSpec]) -> tuple[ModelSpec, ...]:
    """Entries that name another one in another case name it as its own entry does: to old servers that matters."""
    spelt = {spec.name: spec.name for spec in specs}
    return tuple(_respelt(spec, spelt) for spec in specs)


def _respelt(spec: ModelSpec, spelt: Mapping[ModelName, ModelName]) -> ModelSpec:
    match spec.source:
        case Copy(source=name) if name in spelt:
            return replace(spec, source=Copy(source=spelt[name]))
        case Build(base=name) as build if name is not None and name in spelt:
            return replace(spec, source=replace(build, base=spelt[name]))
        case _:
            return spec


def build_model(spec: ModelSpec, files: Mapping[Location, Weights]) -> DesiredModel:
    """One ModelSpec with its files' digests filled in."""
    match spec.source:
        case Pull(ref=ref):
            words = ["pull", ref.key, str(spec.digest or "")]
            return DesiredModel(spec=spec, fingerprint=_fingerprint(words, []))
        case Copy(source=source):
            return DesiredModel(spec=spec, fingerprint=_fingerprint(["copy", source.key], []))
        case Build():
            return _build_build(spec, spec.source, files)
        case _:
            assert_never(spec.source)


def _build_build(spec: ModelSpec, build: Build, weights: Mapping[Location, Weights]) -> DesiredModel:
    files: dict[Location, FileInfo] = {}
    for file in weights_of(build):
        info = _as_stated(file, weights[file.path])
        if isinstance(info, Unavailable):
            return DesiredModel(spec=spec, fingerprint=NO_FINGERPRINT, unavailable=info)
        files[file.path] = info
    recipe = _recipe_of(build, files)
    blobs = (
        LocalBlob(
            digest=files[file.path].digest,
            path=str(file.path),
            size_bytes=files[file.path].size_bytes,
            stated=files[file.path].stated,
        )
        for file in weights_of(build)
    )
    return DesiredModel(
        spec=spec,
        fingerprint=_fingerprint(_words_of(recipe), _weights_of(recipe)),
        recipe=recipe,
        blobs=tuple(blobs),
        weights=tuple(files[file.path] for file in build.files),
    )


def _as_stated(file: WeightsFile, info: Weights) -> Weights:
    """A wrong digest is the fault of the entry that states it, and of no other entry with the same file."""
    if isinstance(info, Unavailable) or file.known in (None, info.digest):
        return info
    return Unavailable(
        error=f"{file.path}: its digest is {info.digest.short}, and the manifest states {file.known.short}",
        hint="bring back the file that was meant, or correct its digest under sha256:",
    )


def _recipe_of(build: Build, files: Mapping[Location, FileInfo]) -> Recipe:
    def blobs(wanted: tuple[WeightsFile, ...]) -> tuple[Blob, ...]:
        return tuple(Blob(file.name, files[file.path].digest) for file in wanted)

    return Recipe(
        **settings_of(build),
        base=build.base,
        files=blobs(build.files),
        adapters=blobs(build.adapters),
        drafts=blobs(build.drafts),
    )


def _implicit_bases(declared: Iterable[DesiredModel]) -> dict[ModelName, DesiredModel]:
    """Bases that no entry declares: pulled when something needs them."""
    models = {model.name: model for model in declared}
    asking: dict[ModelName, list[ModelSpec]] = {}
    for model in models.values():
        if model.made_from and model.made_from not in models:
            asking.setdefault(model.made_from, []).append(model.spec)
    return {source: _implicit_base(source, specs) for source, specs in asking.items()}


def _implicit_base(source: ModelName, asking: Sequence[ModelSpec]) -> DesiredModel:
    """The pull of `source`, as patient as the most patient of those who ask for it; all have it from one lock."""
    pull = Pull(ref=source, insecure=any(base_is_insecure(spec, source) for spec in asking))
    retries = max(spec.retries for spec in asking)
    spec = ModelSpec(
        name=source, source=pull, place=asking[0].place, retries=retries, accepts=asking[0].accepts
    )
    return replace(build_model(spec, {}), implicit=True)


def _words_of(recipe: Recipe) -> object:
    words = {name: value for name, value in settings_of(recipe).items() if name not in WEIGHTS_SETTINGS}
    parameters = {name: _plain(value) for name, value in recipe.parameters.items()}
    return words | {"base": recipe.base.key if recipe.base else None, "parameters": parameters}


def _weights_of(recipe: Recipe) -> list[object]:
    digests = [[str(blob.digest) for blob in part] for part in (recipe.files, recipe.adapters, recipe.drafts)]
    return [*digests, *(getattr(recipe, name) for name in WEIGHTS_SETTINGS)]


def _plain(value: object) -> object:
    """Numbers of equal value are one number: 1 and 1.0 declare the same."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _fingerprint(words: object, weights: list[object]) -> Fingerprint:
    return Fingerprint(_hash(words), _hash(weights))


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _is_target(name: ModelName, targets: Sequence[NamePattern]) -> bool:
    return any(target.matches(name) for target in targets)


def _is_absent_target(entry: AbsentSpec, targets: Sequence[NamePattern]) -> bool:
    """A removal by glob is a target when the very same glob is one: a part of it cannot be meant."""
    pattern = entry.pattern
    if pattern.is_literal:
        return _is_target(ModelName.parse(pattern.text), targets)
    return any(target.text == pattern.text for target in targets)
