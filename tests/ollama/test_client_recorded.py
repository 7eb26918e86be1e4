"""The client's verdicts on what six real servers answered: replayed one by one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from scripted_host import HEX, Asked, Script, Serving, Wire, tagged

from ollamaops.errors import InvalidName, RemoteError, ServerFault
from ollamaops.names import Digest, ModelName
from ollamaops.ollama.client import OllamaClient
from ollamaops.ollama.wire import CreateRequest

CONTRACT = Path(__file__).parents[1] / "contract"
VERSIONS = ["0.3.4", "0.5.7", "0.6.8", "0.12.11", "0.32.15", "0.33.0-rc2"]
SUCCESS = {"status": "success"}


class Recorded(NamedTuple):
    """One recorded step of a scenario."""

    version: str
    scenario: str
    number: int
    request: dict[str, Any]
    response: dict[str, Any]

    @property
    def has_error(self) -> bool:
        lines = self.response.get("ndjson") or [self.response.get("json")]
        failed = any(isinstance(line, dict) and "error" in line for line in lines)
        return failed or self.response["status"] >= 400

    def play(self, asked: Asked, wire: Wire) -> None:
        """Answer as the real server did; when we did not ask for its stream, with what it comes down to."""
        lines = self.response.get("ndjson")
        if lines is None or asked.json.get("stream", True):
            self.play_stream(asked, wire)
            return
        error = next((line for line in lines if "error" in line), None)
        wire.json(error or lines[-1], error.get("status", 500) if error else 200)

    def play_stream(self, asked: Asked, wire: Wire) -> None:
        content_type = self.response["content_type"] or ""
        if "ndjson" in self.response:
            wire.begin(content_type, self.response["status"])
            for line in self.response["ndjson"]:
                wire.line(line)
            wire.end()
        else:
            value = self.response.get("json")
            body = json.dumps(value) if value is not None else self.response.get("text") or ""
            wire.answer(self.response["status"], body.encode(), content_type)


def recorded() -> Iterator[Recorded]:
    for version in VERSIONS:
        scenarios = json.loads((CONTRACT / f"ollama-{version}.json").read_text())["scenarios"]
        for name, steps in scenarios.items():
            for number, step in enumerate(steps):
                if "path" in step["request"]:
                    yield Recorded(version, name, number, step["request"], step["response"])


def name_in(request: dict[str, Any]) -> ModelName | None:
    """The model that a recorded request is about, None if no client of ours could ask so."""
    asked = request.get("json")
    try:
        return (
            ModelName.parse(asked.get("model") or asked.get("name") or "")
            if isinstance(asked, dict)
            else None
        )
    except InvalidName:
        return None


def parameters_in(asked: dict[str, Any]) -> dict[str, Any]:
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in asked.get("parameters", {}).items()
    }


def create_as_recorded(client: OllamaClient, model: ModelName, asked: dict[str, Any]) -> None:
    if "modelfile" in asked:
        client.create_from_modelfile(model, asked["modelfile"], quantize=asked.get("quantize"))
        return
    client.create(
        CreateRequest(
            model=model,
            from_=ModelName.parse(asked["from"]) if "from" in asked else None,
            files={name: Digest.parse(digest) for name, digest in asked.get("files", {}).items()},
            adapters={name: Digest.parse(digest) for name, digest in asked.get("adapters", {}).items()},
            template=asked.get("template"),
            system=asked.get("system"),
            parameters=parameters_in(asked),
            messages=tuple((m["role"], m["content"]) for m in asked.get("messages") or ()),
            quantize=asked.get("quantize"),
        )
    )


def act_of(step: Recorded) -> Callable[[OllamaClient], object] | None:
    """What our client does where the recorded one did this; None where ours never would."""
    asked, model = step.request.get("json") or {}, name_in(step.request)
    method_and_path = f"{step.request['method']} {step.request['path']}"
    if method_and_path in ("GET /api/tags", "GET /api/ps"):
        return OllamaClient.tags if method_and_path.endswith("tags") else OllamaClient.ps
    if method_and_path == "POST /api/copy":
        return copy_of(asked)
    if model is None or model.source_suffix == "local":
        return None
    if method_and_path == "POST /api/create":
        return (lambda client: create_as_recorded(client, model, asked)) if is_sane(asked) else None
    insecure = bool(asked.get("insecure"))
    simple: dict[str, Callable[[OllamaClient], object]] = {
        "POST /api/show": lambda client: client.show(model),
        "DELETE /api/delete": lambda client: client.delete(model),
        "POST /api/pull": lambda client: client.pull(model, insecure=insecure),
        "POST /api/push": lambda client: client.push(model, insecure=insecure),
    }
    return simple.get(method_and_path)


def copy_of(asked: dict[str, Any]) -> Callable[[OllamaClient], object] | None:
    try:
        source, destination = ModelName.parse(asked["source"]), ModelName.parse(asked["destination"])
    except (KeyError, InvalidName):
        return None
    return lambda client: client.copy(source, destination)


def is_sane(asked: dict[str, Any]) -> bool:
    """Whether a create is one that our client could ask for."""
    files = asked.get("files") or {}
    whole = all(len(str(digest)) == len(f"sha256:{HEX}") for digest in files.values())
    return whole and (bool(asked.get("modelfile")) or bool(files) != ("from" in asked))


STEPS = [step for step in recorded() if act_of(step) is not None]


def bases_in(step: Recorded) -> list[str]:
    asked = step.request.get("json") or {}
    return [ModelName.parse(asked["from"]).display] if "from" in asked else []


@pytest.mark.parametrize("version", VERSIONS)
def test_the_verdict_on_every_recorded_answer_is_right(version: str) -> None:
    """An error anywhere in the answer is an error of ours; without one the call succeeds."""
    steps = [step for step in STEPS if step.version == version]
    table: dict[str, Script] = {}
    with Serving(table, version) as serving:
        for step in steps:
            era_b_create = "modelfile" in (step.request.get("json") or {}) and version != "0.3.4"
            table.clear()
            table.update({"/api/tags": tagged(*bases_in(step)), step.request["path"]: step.play})
            act = act_of(step)
            assert act is not None
            failed = None
            try:
                result = act(serving.client)
            except RemoteError as error:
                failed = error
            label = f"{step.scenario}[{step.number}]"
            missing = step.request["path"] == "/api/delete" and step.has_error
            if missing:
                assert result is False, label
            else:
                assert (failed is not None) == (step.has_error or era_b_create), f"{label}: {failed}"
    assert len(steps) > 90


@pytest.mark.parametrize("version", ["0.5.7", "0.6.8"])
def test_the_recorded_loss_of_a_model_is_not_reported_as_success(version: str) -> None:
    """`create-missing-base`: these servers said error, then success, and the model was gone."""
    step = next(
        step
        for step in recorded()
        if (step.version, step.scenario) == (version, "create-missing-base")
        and step.request.get("json", {}).get("from") == "nope"
    )
    assert step.response["ndjson"][-1] == SUCCESS
    nope = ModelName.parse("nope")
    table: dict[str, Script] = {"/api/create": step.play_stream, "/api/tags": tagged("nope:latest")}
    with Serving(table, "0.33.0") as serving, pytest.raises(ServerFault, match="connection refused"):
        serving.client.create(CreateRequest(model=ModelName.parse("mario"), from_=nope))
