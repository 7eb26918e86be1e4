"""A declared template that is not in force: seen on every server, and never called as declared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from breadth import in_turn
from live_host import (
    REWRITING_VERSIONS,
    VERSIONS,
    WEIGHTS,
    LiveHost,
    a_build,
    a_copy,
    a_model,
    assert_converged,
    name,
)
from msgspec.structs import replace

from ollamaops.cli.main import run
from ollamaops.ollama.shown_modelfile import read_back
from ollamaops.plan.actions import HostPlan, Plan
from ollamaops.plan.codec import plan_from_json, plan_to_json
from ollamaops.sandbox.server import Sandbox

pytestmark = in_turn("version", count=3)
every_version = pytest.mark.parametrize("version", VERSIONS)

PLAIN = "{{ if .System }}<|system|>{{ .System }}{{ end }}<|user|>{{ .Prompt }}<|assistant|>{{ .Response }}"
TOOLS = (
    "{{ if .Tools }}T {{ .Tools }}{{ end }}{{ range .Messages }}{{ .Role }} {{ .Content }}"
    "{{ range .ToolCalls }}{{ .Function.Name }}{{ end }}{{ end }}"
)
MODELS = [
    a_model("plain", a_build(None, "tiny-toolcall.gguf", template=PLAIN)),
    a_model("child", a_build("plain", system="be brief")),
    a_model("undeclared", a_build(None, "tiny-toolcall.gguf")),
    a_model("grandchild", a_build("undeclared", template=PLAIN, system="be brief")),
    a_model("able", a_build(None, "tiny-toolcall.gguf", template=TOOLS)),
    a_model("chatml", a_build(None, "tiny-chatml.gguf", template=PLAIN)),
    a_model("alias", a_copy("able")),
]
OVERRIDDEN = {"plain", "child", "grandchild"}


def lasting(plan: HostPlan) -> set[str]:
    return {note.model.model for note in plan.notes if note.lasting and note.model}


@every_version
def test_a_template_that_is_not_in_force_is_drift_with_and_without_memory(
    host: LiveHost, version: str
) -> None:
    expected = OVERRIDDEN if version in REWRITING_VERSIONS else set()
    planned = host.plan(MODELS)
    assert {note.model.model for note in planned.notes if note.model} == expected
    assert all("will not be in force" in note.message for note in planned.notes)

    report = host.run(MODELS)
    assert report.exit_code == (3 if expected else 0)
    assert report.is_as_declared is not bool(expected)
    assert report.hosts[0].rounds == 1  # making them again would change nothing
    before = host.stranger.tags()

    for look in range(3):
        if look == 2:
            host.forget()
        plan = host.plan(MODELS)
        assert (plan.actions, lasting(plan)) == ((), expected)
        assert set(plan.unchanged) == {model.name for model in MODELS} - {name(each) for each in expected}
    for note in plan.notes:
        if note.lasting:
            assert note.message.endswith("the weights' own template is used: it offers tools")
            assert "OLLAMA_GO_TEMPLATE" in (note.hint or "")
            assert "tools | tojson" in note.lasting[0].observed
    assert host.run(MODELS).exit_code == (3 if expected else 0)
    assert host.stranger.tags() == before


@pytest.mark.parametrize("version", ["0.33.0-rc2"])
def test_the_ways_out_lead_out(host: LiveHost) -> None:
    assert host.run(MODELS[:1]).exit_code == 3
    for mended in (
        a_model("plain", a_build(None, "tiny-toolcall.gguf", template=TOOLS)),
        a_model("plain", a_build(None, "tiny-toolcall.gguf")),
        a_model("plain", a_build(None, "tiny-toolcall.gguf", template=PLAIN), ignore=("template",)),
    ):
        assert_converged(host, host.apply([mended]))
        assert host.plan([mended]).actions == ()
        assert lasting(host.plan([mended])) == set()


def test_the_command_line_says_which_template_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.gguf").write_bytes((WEIGHTS / "tiny-toolcall.gguf").read_bytes())
    with Sandbox(tmp_path / "store", as_version="0.33.0-rc2") as sandbox:
        manifest = {
            "hosts": {"gpu": {"url": sandbox.url}},
            "models": [{"name": "bot", "files": ["w.gguf"], "template": PLAIN}],
        }
        (tmp_path / "ollamaops.yaml").write_text(json.dumps(manifest))

        def said(*words: str) -> tuple[int, str]:
            code = run([*words, "--progress", "none"])
            return code, capsys.readouterr().out

        assert said("apply", "-y")[0] == 3
        for _ in range(2):
            code, text = said("drift")
            assert code == 2
            assert "the weights' own template is used: it offers tools" in text
            assert "are as declared" not in text
        code, text = said("apply", "-y")
        assert code == 3
        assert text.endswith(
            "nothing that apply can do: 0 models on 1 host as declared; 1 not, which apply cannot mend\n"
        )
        assert said("plan", "--detailed-exitcode")[0] == 3

        text = said("diff", "bot")[1]
        assert "-{%- if tools %}" in text
        assert "makes its prompts with the template in its weights" in text
        assert f"+{PLAIN}" in text
        assert "makes its prompts with the template in its weights" in said("status", "-v")[1]
        (model,) = json.loads(said("status", "-o", "json")[1])["hosts"][0]["models"]
        assert model["effective_template"]["origin"] == "weights"
        assert (model["state"], model["why"][0]) == (
            "drifted",
            "the weights' own template is used, not the declared one",
        )


@pytest.mark.parametrize("text", [PLAIN, 'a "quoted"\nline', ' "x" ', "x\n", '"begins'])
def test_a_template_is_recognized_as_a_server_prints_it(text: str) -> None:
    assert read_back(text) == text


@pytest.mark.parametrize("version", ["0.33.0-rc2"])
def test_a_look_inside_tells_which_template_is_used_whatever_is_remembered(host: LiveHost) -> None:
    able = MODELS[4]
    assert_converged(host, host.apply([able]))
    assert host.plan([able]).templates == {}
    host.options = replace(host.options, look_inside=True)
    plan = host.plan([able, a_model("new", a_copy("able"))])
    assert {name: each.origin for name, each in plan.templates.items()} == {"able:latest": "model"}
    assert plan.unchanged == (name("able"),)
    assert plan_from_json(plan_to_json(Plan(hosts=(plan,)))).hosts == (plan,)


@pytest.mark.parametrize("version", ["0.12.11"])
def test_an_upgrade_that_puts_a_declared_template_out_of_force_is_drift(host: LiveHost) -> None:
    assert_converged(host, host.apply(MODELS))
    host.sandbox.restart(as_version="0.33.0-rc2")
    assert lasting(host.plan(MODELS)) == OVERRIDDEN
    host.sandbox.restart(as_version="0.12.11")
    assert lasting(host.plan(MODELS)) == set()
