"""Cases of planning as data: a YAML document → the values that plan/ works on, and a plan → lines to compare.

A word stands for a digest (`digest: D1`, `weights: W1`), and in the lines that come out the word is back. A host's
models are written as name → what is in it; `memory: {bot: same}` is what the ledger holds after we made just that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from msgspec.structs import replace

from ollamaops.files.location import FileInfo
from ollamaops.manifest.types import (
    AbsentSpec,
    Build,
    Copy,
    Limit,
    ModelSpec,
    Policy,
    Pull,
    Source,
    WeightsFile,
)
from ollamaops.names import Digest, ModelName, NamePattern
from ollamaops.ollama.contents import Contents, Unreadable
from ollamaops.ollama.features import ServerVersion, features_of
from ollamaops.ollama.listing import Listing
from ollamaops.plan.actions import (
    Action,
    CopyModel,
    Difference,
    Note,
    PullModel,
    PushModel,
    UploadBlob,
    subject_of,
    verb_of,
)
from ollamaops.plan.desired import DesiredHost, build_desired
from ollamaops.plan.guard import guard
from ollamaops.plan.lookups import Lookups, PlanOptions, lookups, rollback_key_of
from ollamaops.plan.observed import ObservedHost, ObservedModel, RegistryAnswer
from ollamaops.plan.planner import plan_host
from ollamaops.plan.verdict import declaration_of, judge_of
from ollamaops.settings import Message
from ollamaops.state.records import NO_FINGERPRINT, Fingerprint, ModelRecord

HOST = "h"
FOLDER = Path(__file__).parents[1] / "cases" / "plan"
Tree = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One document of a file of cases."""

    file: str
    tree: Tree

    @property
    def name(self) -> str:
        return f"{self.file}: {self.tree['case']}"


def load_cases() -> list[Case]:
    """Every case of tests/cases/plan/."""
    return [
        Case(path.stem, tree)
        for path in sorted(FOLDER.glob("*.yaml"))
        for tree in yaml.safe_load_all(path.read_text(encoding="utf-8"))
    ]


# words and digests


def a_digest(word: str) -> Digest:
    return Digest.of(word.encode())


def a_name(text: str) -> ModelName:
    return ModelName.parse(text)


def words_of(value: object) -> Iterator[str]:
    """Every text in a tree, since any of them may stand for a digest."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from words_of(item)
    elif isinstance(value, list):
        for item in value:
            yield from words_of(item)
    elif isinstance(value, str):
        yield value


def with_words(text: str, tree: Tree) -> str:
    for word in sorted({"W", *words_of(tree)}, key=len, reverse=True):
        digest = a_digest(word)
        text = text.replace(digest.hex, word).replace(digest.short, word)
    return text


# what is wanted


def a_spec(entry: Tree | str) -> ModelSpec:
    """An entry of a manifest; the keys are those of the manifest."""
    tree: Tree = {"name": entry} if isinstance(entry, str) else entry
    name = a_name(tree["name"])
    push, insecure = tree.get("push"), tree.get("insecure", False)
    return ModelSpec(
        name=name,
        source=_source(name, tree),
        update=tree.get("update", "missing"),
        digest=a_digest(tree["digest"]) if "digest" in tree else None,
        accepts=tuple(a_digest(word).hex for word in tree.get("accepts", [])),
        templates=tuple(map(a_digest, tree.get("templates", []))),
        protect=tree.get("protect", False),
        ignore=tuple(tree.get("ignore", [])),
        push=a_name(push) if push else None,
        insecure=insecure,
        push_insecure=bool(tree.get("push_insecure", insecure)),
        moved_from=a_name(tree["moved_from"]) if "moved_from" in tree else None,
        retries=tree.get("retries", 5),
    )


def _source(name: ModelName, tree: Tree) -> Source:
    if "copy" in tree:
        return Copy(source=a_name(tree["copy"]))
    if "from" in tree or "files" in tree:
        return Build(
            base=a_name(tree["from"]) if "from" in tree else None,
            files=_files(tree.get("files", [])),
            adapters=_files(tree.get("adapters", [])),
            drafts=_files(tree.get("drafts", [])),
            template=tree.get("template"),
            system=tree.get("system"),
            parameters={key: _parameter(value) for key, value in tree.get("parameters", {}).items()},
            messages=tuple(Message(*pair) for pair in tree.get("messages", [])),
            licenses=tuple(tree.get("license", [])),
            quantize=tree.get("quantize"),
            draft_quantize=tree.get("draft_quantize"),
            renderer=tree.get("renderer"),
            parser=tree.get("parser"),
            requires=tree.get("requires"),
        )
    ref = a_name(tree["pull"]) if "pull" in tree else name
    return Pull(ref=ref, insecure=tree.get("insecure", False))


def _files(names: list[str]) -> tuple[WeightsFile, ...]:
    return tuple(WeightsFile(Path("/w") / name, name) for name in names)


def _parameter(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def a_file(word: str, tree: Tree) -> FileInfo:
    return FileInfo(
        digest=a_digest(tree.get("digest", word)),
        size_bytes=tree.get("size", 100),
        architecture=tree.get("architecture", "llama"),
        parameter_count=tree.get("count", 7),
        quantization=tree.get("quantization", "F16"),
        is_projector=tree.get("projector", False),
        chat_template=tree.get("chat_template", ""),
        tensors=frozenset((name, (1,)) for name in tree.get("tensors", [])),
    )


def a_policy(tree: Tree) -> Policy:
    prune = tree.get("prune", False)
    change = tree.get("max_change", {})
    return Policy(
        prune=_patterns(prune) if isinstance(prune, list) else prune,
        protect=_patterns(tree.get("protect", [])),
        ignore=_patterns(tree.get("ignore", [])),
        max_delete=_limit(change.get("delete")),
        max_replace=_limit(change.get("replace")),
        registries=tuple(tree["registries"]) if "registries" in tree else None,
        cloud=tree.get("cloud", False),
        require_lock=tree.get("require_lock", False),
    )


def _limit(value: int | str | None) -> Limit | None:
    if value is None:
        return None
    return Limit(percent=float(value.rstrip("%"))) if isinstance(value, str) else Limit(count=value)


def _patterns(texts: list[str]) -> tuple[NamePattern, ...]:
    return tuple(map(NamePattern.parse, texts))


def desired_of(tree: Tree) -> DesiredHost:
    specs = [a_spec(entry) for entry in tree.get("models", [])]
    files = {Path("/w") / name: a_file(name, info or {}) for name, info in tree.get("files", {}).items()}
    return build_desired(
        HOST,
        specs,
        absent=[AbsentSpec(pattern=pattern) for pattern in _patterns(tree.get("absent", []))],
        policy=a_policy(tree.get("policy", {})),
        files=files,
        targets=_patterns(tree.get("targets", [])),
        pushes=[spec.name for spec in specs if spec.push and not tree.get("others_push")],
    )


# what is there


def an_observed(name: str, tree: Tree) -> ObservedModel:
    return ObservedModel(
        name=a_name(name),
        digest="+".join(a_digest(word).hex for word in tree.get("digest", name).split("+")),
        quantization=tree.get("quantization", "F16"),
        is_cloud=tree.get("cloud", False),
        is_able=tree.get("able", True),
    )


def a_contents(name: str, tree: Tree) -> Contents:
    template = tree.get("template", "{{ .Prompt }}")
    weights = tree.get("weights", "W")
    return Contents(
        digest=a_digest(tree.get("digest", name)).hex,
        parent=tree.get("parent", ""),
        blobs=_digests(weights),
        adapters=_digests(tree.get("adapters", [])),
        template=template,
        templates=frozenset({template, *tree.get("templates", [])} - {""}),
        effective_template=str(tree.get("runs", template)),
        system=tree.get("system", ""),
        parameters={key: _parameter(value) for key, value in tree.get("parameters", {}).items()},
        messages=tuple((role, content) for role, content in tree.get("messages", [])),
        license_text="\n".join(tree.get("license", [])),
        renderer=tree.get("renderer", ""),
        parser=tree.get("parser", ""),
        requires=tree.get("requires", ""),
        architecture=tree.get("architecture", "llama"),
        parameter_count=tree.get("count", 7),
        quantization=tree.get("quantization", "F16"),
        tensors=frozenset((tensor, (1,)) for tensor in tree.get("tensors", [])),
    )


def _digests(words: str | list[str]) -> tuple[Digest, ...]:
    return tuple(map(a_digest, [words] if isinstance(words, str) else words))


def observed_of(tree: Tree, desired: DesiredHost, options: PlanOptions) -> tuple[ObservedHost, Lookups]:
    """The host as a look at it gives it, only what has to be looked into being shown; and what that was."""
    models = [an_observed(name, info or {}) for name, info in tree.get("host", {}).items()]
    contents = {
        a_name(name): a_contents(name, info or {})
        for name, info in tree.get("host", {}).items()
        if not {"cloud", "damaged", "unreadable"} & (info or {}).keys()
    }
    seen_before = {
        an_observed(name, info or {}).digest: a_contents(name, info or {}).weights_layers
        if "gone" in tree
        else ()
        for name, info in tree.get("host", {}).items()
        if not (info or {}).get("unknown")
    }
    features = features_of(ServerVersion.parse(str(tree.get("version", "0.33.0"))))
    observed = ObservedHost(
        host=HOST,
        features=features,
        models=Listing(
            ((model.name, model) for model in models),
            folds_case=features.folds_case,
            unreadable={a_name(name): why for name, why in tree.get("unreadable", {}).items()},
            unnamed=tuple(tree.get("unnamed", [])),
        ),
        pushed={
            (a_name(name), a_name(ref)): frozenset(a_digest(digest).hex for digest in digests)
            for name, (ref, *digests) in tree.get("pushed", {}).items()
        },
        present_blobs=frozenset(map(a_digest, tree.get("blobs", []))),
        layers=seen_before,
        gone=frozenset(map(a_digest, tree.get("gone", []))),
        blobs_unseen=tree.get("blobs_unseen", ""),
    )
    observed = replace(
        observed,
        memory={
            a_name(name): _memory(
                a_name(name), info if isinstance(info, dict) else {}, desired, observed, contents
            )
            for name, info in tree.get("memory", {}).items()
        },
    )
    asked = lookups(desired, observed, options)
    upstream = {a_name(name): _upstream(name, info or {}) for name, info in tree.get("upstream", {}).items()}
    observed = replace(
        observed,
        shown={name: contents[name] for name in asked.show if name in contents},
        unreadable={
            a_name(name): _unreadable(**info["unreadable"])
            for name, info in tree.get("host", {}).items()
            if info and "unreadable" in info and a_name(name) in asked.show | asked.open
        },
        carried_templates={a_name(name): text for name, text in tree.get("carries", {}).items()},
        upstream={
            name: upstream[name]
            for name in (upstream if tree.get("costs") else asked.upstream & upstream.keys())
        },
    )
    return observed, asked


def _unreadable(words: str, *, damaged: bool = False, gone: bool = False) -> Unreadable:
    return Unreadable(words, is_damaged=damaged or gone, is_gone=gone)


def _memory(
    name: ModelName,
    tree: Tree,
    desired: DesiredHost,
    observed: ObservedHost,
    contents: Mapping[ModelName, Contents],
) -> ModelRecord:
    models = observed.models
    declared_as = a_name(tree["as"]) if "as" in tree else name
    model = next((model for model in desired.declared if model.name == declared_as), None)
    own, made_from = contents.get(name), model.made_from if model else None
    declared = model.fingerprint if model else NO_FINGERPRINT
    base = models[made_from].digest if made_from and made_from in models else None
    is_for_this = tree.keys().isdisjoint({"words", "fingerprint"})
    return ModelRecord(
        status=tree.get("status", "applied"),
        entry=rollback_key_of(model) if model and tree.get("status") == "rolled_back" else "",
        fingerprint=Fingerprint(tree.get("words", declared.words), tree.get("fingerprint", declared.weights)),
        digest=a_digest(tree["digest"]).hex if "digest" in tree else models[name].digest,
        how=tree.get("how", "created"),
        base_digest=a_digest(tree["base"]).hex if "base" in tree else base,
        blobs=tuple(
            map(
                str,
                _digests(tree["weights"])
                if "weights" in tree
                else (*own.blobs, *own.adapters)
                if own
                else (),
            )
        ),
        weights_verified=tree.get("verified", True),
        declared=declaration_of(model) if model and is_for_this else "",
        seen_on=judge_of(features_of(ServerVersion.parse(tree.get("seen_on", observed.version)))),
        at=tree.get("at", ""),
    )


def _upstream(name: str, tree: Tree) -> RegistryAnswer:
    if "error" in tree:
        return RegistryAnswer(error=tree["error"], answered="gone" in tree, gone="gone" in tree)
    digest = a_digest(tree.get("digest", name)).hex
    return RegistryAnswer(
        digests=frozenset({digest, *(a_digest(word).hex for word in tree.get("also", []))}),
        registry_digest=digest,
        layers=tuple((a_digest(word), size) for word, size in tree.get("layers", {}).items()),
        has_sizes=tree.get("sizes", True),
    )


def options_of(tree: Tree) -> PlanOptions:
    return PlanOptions(
        verify_weights=tree.get("verify_weights", False),
        ask_registry=tree.get("ask_registry", True),
        distrust=frozenset(map(a_name, tree.get("distrust", []))),
        made=frozenset(map(a_name, tree.get("made", []))),
    )


# what comes out


def run(tree: Tree) -> Tree:
    """The plan of a case as lines, and what had to be found out for it; empty parts are left out."""
    desired, options = desired_of(tree), options_of(tree)
    observed, asked = observed_of(tree, desired, options)
    plan = guard(plan_host(desired, observed, options), desired, observed, force=tree.get("force", []))
    found = {
        "actions": [with_words(render_action(action), tree) for action in plan.actions],
        "unchanged": list(map(str, plan.unchanged)),
        "unmanaged": list(map(str, plan.unmanaged)),
        "notes": [with_words(render_note(note), tree) for note in plan.notes],
        "refusals": [f"{refusal.rule}: {refusal.message}" for refusal in plan.refusals],
        "show": sorted(map(str, asked.show)),
        "open": sorted(map(str, asked.open)),
        "ask": sorted(map(str, asked.upstream)),
    }
    return {key: value for key, value in found.items() if value}


def render_action(action: Action) -> str:
    """`copy chat:latest of base:latest: alias, after pull/base:latest`"""
    parts = [f"{verb_of(action)} {subject_of(action)}"]
    if isinstance(action, CopyModel | PushModel) and action.source != action.model:
        parts.append(f" of {action.source}")
    if action.because:
        parts.append(": " + "; ".join(dict.fromkeys(map(render_reason, action.because))))
    parts += _facts(action)
    if action.needs:
        parts.append(", after " + " ".join(need.removeprefix(f"{HOST}/") for need in sorted(action.needs)))
    return "".join(parts)


def _facts(action: Action) -> Iterator[str]:
    if isinstance(action, PullModel):
        if action.cost.download_bytes is not None:
            yield f", {action.cost.download_bytes} B"
        if action.cost.present_bytes:
            yield f" ({action.cost.present_bytes} B there)"
        if action.pin:
            yield f", pinned to {' '.join(action.pin)}"
        if action.insecure:
            yield ", insecure"
        if action.fingerprint == NO_FINGERPRINT:
            yield ", not ours"
    if isinstance(action, UploadBlob):
        there = f" ({action.cost.present_bytes} B there)" if action.cost.present_bytes else ""
        yield f", {action.cost.upload_bytes} B{there} for {action.model}"
    if isinstance(action, CopyModel) and action.fingerprint == NO_FINGERPRINT:
        yield ", not ours"


def render_reason(difference: Difference) -> str:
    if difference.kind == "field":
        return f"{difference.path} {difference.observed!r} -> {difference.desired!r}"
    values = [f"{key} {value}" for key, value in _values(difference) if value]
    what = difference.path if difference.kind == "weights" else difference.kind
    return " ".join([what, *values])


def _values(difference: Difference) -> Iterator[tuple[str, str]]:
    yield "wanted", difference.desired
    yield "is", difference.observed


def render_note(note: Note) -> str:
    return f"{'?' if note.unresolved else '!' if note.lasting else '-'} {note.model}: {note.message}"
