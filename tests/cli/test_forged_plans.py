"""A saved plan that somebody edited, its fingerprint computed anew, does nothing that the manifest does not allow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from manifest_folder import copy_weights
from msgspec.structs import replace

from ollamaops.cli.main import run
from ollamaops.names import ModelName
from ollamaops.plan.actions import DeleteModel, Fact, HostPlan, Plan, UploadBlob
from ollamaops.plan.codec import fingerprint, plan_from_json, plan_to_json

SANDBOX = "--sandbox=pretend"
MANIFEST = """
models:
  - {name: mine, files: [tiny-a.gguf]}
policy: {protect: ["llama3.2:*"]}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder with a saved plan in it, for a pretend server that has a protected model."""
    monkeypatch.chdir(tmp_path)
    copy_weights(tmp_path, "tiny-a.gguf")
    (tmp_path / "ollamaops.yaml").write_text("models: [llama3.2:3b]")
    assert run(["apply", "-y", "-q", SANDBOX]) == 0
    (tmp_path / "ollamaops.yaml").write_text(MANIFEST)
    assert run(["plan", "-q", "--out", "plan.json", SANDBOX]) == 0
    return tmp_path


def forge(here: Path, edit: Callable[[HostPlan], HostPlan]) -> None:
    plan = plan_from_json(json.loads((here / "plan.json").read_text()))
    forged: Plan = replace(plan, hosts=tuple(map(edit, plan.hosts)))
    (here / "plan.json").write_text(json.dumps({**plan_to_json(forged), "fingerprint": fingerprint(forged)}))


def listed(here: Path) -> str:
    return " ".join(path.as_posix() for path in (here / "pretend/local/manifests").rglob("*"))


def test_a_protected_model_is_not_deleted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def delete(host: HostPlan) -> HostPlan:
        name = ModelName.parse("llama3.2:3b")
        digest = next(iter(tags_digests(here)))
        return replace(
            host, actions=(DeleteModel(host=host.host, model=name, expects=(Fact(name, digest),)),)
        )

    forge(here, delete)
    assert run(["apply", "plan.json", SANDBOX]) == 4
    assert "refused by protect" in capsys.readouterr().out
    assert "llama3.2/3b" in listed(here)
    assert run(["apply", "plan.json", "-q", "--force", "protect", SANDBOX]) == 3  # nothing makes `mine`
    assert "llama3.2/3b" not in listed(here)


def tags_digests(here: Path) -> list[str]:
    path = here / "pretend/local/manifests/registry.ollama.ai/library/llama3.2/3b"
    return [hashlib.sha256(path.read_bytes()).hexdigest()]


def test_a_file_that_the_manifest_does_not_name_is_not_sent(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def send(host: HostPlan) -> HostPlan:
        actions = [
            replace(action, path="/etc/passwd") if isinstance(action, UploadBlob) else action
            for action in host.actions
        ]
        return replace(host, actions=tuple(actions))

    forge(here, send)
    assert run(["apply", "plan.json", SANDBOX]) == 4
    said = capsys.readouterr().err
    assert "'mine:latest' would be made from /etc/passwd, which the manifest does not name" in said


def test_a_signed_plan_is_applied_only_as_it_was_signed(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "key").write_text("open sesame\n")
    assert run(["apply", "plan.json", "--plan-key", "key", SANDBOX]) == 4
    assert "plan.json is not signed" in capsys.readouterr().err
    assert run(["plan", "-q", "--out", "plan.json", "--plan-key", "key", SANDBOX]) == 0
    document: dict[str, Any] = json.loads((here / "plan.json").read_text())
    (here / "forged.json").write_text(json.dumps({**document, "unreached": []}, indent=1))
    (here / "other.json").write_text(json.dumps({**document, "made_from": {}}))
    monkeypatch.setenv("OLLAMAOPS_PLAN_KEY", "another")
    assert run(["apply", "plan.json", SANDBOX]) == 4
    assert "or was signed with another key" in capsys.readouterr().err
    monkeypatch.setenv("OLLAMAOPS_PLAN_KEY", "open sesame")
    assert run(["apply", "other.json", SANDBOX]) == 4
    assert run(["apply", "forged.json", "-q", SANDBOX]) == 0


@pytest.mark.parametrize("text", [None, " \n"])
def test_a_key_that_is_none_is_named(
    text: str | None, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (here / "key").write_text(text)
    assert run(["plan", "--out", "plan.json", "--plan-key", "key", SANDBOX]) == 64
    assert "--plan-key: " in capsys.readouterr().err
