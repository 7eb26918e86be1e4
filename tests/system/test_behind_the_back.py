"""Whatever somebody does to a server behind our back: what is called as declared is so in the server's store.

What no look sees (docs/as-declared.md: files edited in place or cut, small ones removed) is not among it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, NamedTuple

import pytest
from breadth import in_turn
from damaged_store import blob_of
from hypothesis import example, given
from hypothesis import strategies as st
from live_host import BASE, REWRITING_VERSIONS, LiveHost, a_host, small_manifest
from properties import fewer_examples

from ollamaops.names import ModelName
from ollamaops.plan.actions import Note
from ollamaops.sandbox.server import Sandbox

OTHER = "qwen3:0.6b"
MODELS = small_manifest()
NAMES = (BASE, "bot", "legal", "chat")
VERSIONS = ("0.5.7", "0.12.11", "0.33.0-rc2")
BOT: dict[str, Any] = {
    "system": "be kind",
    "template": "{{ .System }} {{ .Prompt }}",
    "parameters": {"temperature": 0.5, "stop": ["a", "b"]},
    "license": ["MIT"],
}
LEGAL: dict[str, Any] = {"system": "be exact", "parameters": {"num_ctx": 4096}}
Deed = Callable[[LiveHost], None]


class Made(NamedTuple):
    """What a model passes on to what is made from it."""

    weights: str
    parameters: dict[str, object]

    @staticmethod
    def of(sandbox: Sandbox, model: str) -> Made:
        return Made(blob_of(sandbox, model).name, parameters_of(sandbox, model))


# --- what somebody may do -------------------------------------------------------------------------------------------


def delete(model: str) -> Deed:
    return lambda host: host.stranger.delete(model)


def copy(source: str, target: str) -> Deed:
    return lambda host: host.stranger.copy(source, target)


def create(model: str, base: str, **changes: object) -> Deed:
    """Make the model anew: as it is declared but for the changes, and from what they like."""
    fields = {
        key: value for key, value in {**(LEGAL if model == "legal" else BOT), **changes}.items() if value
    }
    return lambda host: host.stranger.create(model, base, **fields)


def remove_weights(model: str) -> Deed:
    return lambda host: blob_of(host.sandbox, model).unlink(missing_ok=True)


def forget(host: LiveHost) -> None:
    host.forget()


def restart(host: LiveHost) -> None:
    host.sandbox.restart()


def upgrade(host: LiveHost) -> None:
    host.sandbox.restart(as_version=VERSIONS[-1])


_any_of_ours = st.sampled_from(NAMES)
_any = st.sampled_from((*NAMES, OTHER))
_changes = st.sampled_from(
    [
        {},
        {"system": "be unkind"},
        {"system": ""},
        {"template": "{{ .Prompt }}"},
        {"parameters": {"temperature": 0.6, "stop": ["a", "b"]}},
        {"parameters": {"temperature": "0.5", "stop": ["a", "b"]}},
        {"parameters": {"temperature": 0.5, "stop": ["b", "a"], "top_k": 3}},
        {"parameters": {"num_ctx": "4096"}},
        {"license": ["GPL"]},
    ]
)
DEEDS = st.one_of(
    st.builds(delete, _any_of_ours),
    st.builds(copy, _any, _any_of_ours),
    st.builds(lambda model, base, changes: create(model, base, **changes), _any_of_ours, _any, _changes),
    st.builds(remove_weights, _any_of_ours),
    st.sampled_from([forget, restart, upgrade]),
)


# --- what has to hold -----------------------------------------------------------------------------------------------


def text_of(sandbox: Sandbox, model: str, kind: str) -> str:
    try:
        return blob_of(sandbox, model, kind).read_text()
    except KeyError:  # it has no such layer
        return ""


def parameters_of(sandbox: Sandbox, model: str) -> dict[str, object]:
    stored: dict[str, object] = json.loads(text_of(sandbox, model, "params") or "{}")
    return stored


def holds(host: LiveHost, model: str, bases: Iterable[Made]) -> bool:
    """Whether the store has the model as it is declared, made from one of these."""
    wanted, sandbox = {BASE: {}, "legal": LEGAL}.get(model, BOT), host.sandbox
    texts = {kind: text_of(sandbox, model, kind) for kind in wanted if kind != "parameters"}
    if texts != {kind: "".join(wanted[kind]) for kind in texts} or not blob_of(sandbox, model).exists():
        return False
    now = Made.of(sandbox, model)
    return any(
        now == Made(base.weights, {**base.parameters, **wanted.get("parameters", {})}) for base in bases
    )


def legal_is_there(host: LiveHost) -> bool:
    return "legal:latest" in host.stranger.tags()


def in_doubt(notes: Iterable[Note]) -> set[ModelName | None]:
    return {note.model for note in notes if note.unresolved or note.lasting}


def require_true(host: LiveHost, said: Iterable[ModelName], base: Made, legal: Made) -> None:
    """What is said to be as declared is so, made from the base as it was or as it is now."""
    bases = [base]
    with suppress(FileNotFoundError):
        bases.append(Made.of(host.sandbox, BASE))
    if legal_is_there(host) and host.version in REWRITING_VERSIONS:  # and makes another digest of the file
        legal = Made(blob_of(host.sandbox, "legal").name, {})
    for name in said:
        model = name.display.removesuffix(":latest")
        assert holds(host, model, [legal] if model == "legal" else bases), model
        if model == "chat":
            tags = host.stranger.tags()
            assert tags["chat:latest"] == tags["bot:latest"]


@in_turn("version")
@pytest.mark.parametrize("version", VERSIONS)
@fewer_examples(by=10)
@given(deeds=st.lists(DEEDS, min_size=1, max_size=4))
@example(deeds=[create("bot", BASE, parameters={"temperature": "0.5", "stop": ["a", "b"]})])
@example(deeds=[copy(OTHER, BASE), forget])
@example(deeds=[remove_weights("legal"), forget])
@example(deeds=[copy("legal", "bot"), copy("bot", "chat")])
def test_what_is_called_as_declared_is_so(version: str, deeds: list[Deed]) -> None:
    with a_host(version) as host:
        host.stranger.pull(OTHER)
        assert host.apply(MODELS).verified
        first = Made.of(host.sandbox, BASE), Made(blob_of(host.sandbox, "legal").name, {})
        for deed in deeds:
            with suppress(AssertionError, FileNotFoundError):  # what cannot be done is not done
                deed(host)

        plan = host.plan(MODELS)
        require_true(host, set(plan.unchanged) - in_doubt(plan.notes), *first)
        report = host.apply(MODELS)
        if report.verified:
            require_true(host, (model.name for model in MODELS), *first)
        host.forget()
        plan = host.plan(MODELS)
        require_true(host, set(plan.unchanged) - in_doubt(plan.notes), *first)
