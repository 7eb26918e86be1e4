"""The sandbox answers every recorded request as the real server of that version did.

The recordings in `contract/` were made by playing lists of requests on real servers, each scenario on an empty store.
Here each is played on a fresh sandbox. Two answers agree when status, content type (without parameters) and body
agree after this:

* every 64-hex digest and every 12-hex prefix of one is replaced by the order of its first appearance in the scenario,
  so that *which digests are equal* must agree but not their value;
* lists of `models` and the lines of `parameters` and PARAMETER lines are sorted (their order is random on servers);
* `size`, `size_vram`, `total`, `completed`, `*_count`, `context`, generated words and the number of progress lines of
  one digest are ignored, so are times and durations;
* an error that begins `pull model manifest: Get "` (the recording host reached no registry) agrees with any error
  that begins `pull model manifest: `.

Where weights are stored as they were uploaded, and where the sandbox rewrites them to the very bytes that
llama-quantize writes, digests must be *equal* to the recorded ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests
from patience import PATIENCE_S
from registry_fixture import RunningRegistry, run_registry

from ollamaops.sandbox.server import Sandbox

CONTRACT = Path(__file__).parents[1] / "contract"
VERSIONS = ("0.3.4", "0.5.7", "0.6.8", "0.12.11", "0.32.15", "0.33.0-rc2")
RECORDED_REGISTRY = "localhost:5055"
NEEDS_REGISTRY = {"push-pull", "push-pull-errors"}
NEEDS_OTHER_WEIGHTS = {"embed"}

# Manifests of models made from files hold the absolute path of the store there, quantized and converted weights
# have made-up values: these digests cannot be equal.
ABSOLUTE_PATHS = {"0.5.7", "0.6.8", "0.12.11"}
MADE_UP_WEIGHTS = {"create-quantize", "create-safetensors"}

_SIZES = {"size", "size_vram", "total", "completed", "context"}
_HEX = re.compile(r"(?<![0-9a-f])(?:[0-9a-f]{64}|[0-9a-f]{12})(?![0-9a-f])")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)")
Json = Mapping[str, object]


@dataclass
class Answer:
    """One answer: recorded, or got from the sandbox."""

    status: int | None
    content_type: str | None
    body: object


def scenarios(version: str) -> dict[str, list[dict[str, dict[str, object]]]]:
    found: dict[str, list[dict[str, dict[str, object]]]] = json.loads(
        (CONTRACT / f"ollama-{version}.json").read_text()
    )["scenarios"]
    return found


CASES = [(version, name) for version in VERSIONS for name in scenarios(version)]


# --- normalizing ---------------------------------------------------------------------------------------------------


@dataclass
class Normalizer:
    """Makes the answers of one scenario comparable."""

    seen: dict[str, str] = field(default_factory=dict)

    def answer(self, answer: Answer) -> Answer:
        content_type = (answer.content_type or "").partition(";")[0]
        return Answer(answer.status, content_type, self._value(answer.body, ""))

    def _value(self, value: object, key: str) -> object:
        if key in _SIZES:
            return "…"
        match value:
            case dict():
                return {name: self._value(item, name) for name, item in value.items()}
            case list() if key == "models":
                ordered = sorted(value, key=lambda model: str(model["name"]))
                return [self._value(item, "") for item in ordered]
            case list():
                return _fewer_progress_lines([self._value(item, key) for item in value])
            case str():
                return self._text(value, key)
            case _:
                return _number(value, key)

    def _text(self, text: str, key: str) -> object:
        if key == "error" and text.startswith("pull model manifest: "):
            text = re.sub(r"Get \".*|file does not exist$", "…", text)
        if key in {"parameters", "modelfile"}:
            text = _sorted_lines(text, "" if key == "parameters" else "PARAMETER ")
        return _HEX.sub(self._digest, _TIME.sub("<time>", text))

    def _digest(self, found: re.Match[str]) -> str:
        known = next((digest for digest in self.seen if digest.startswith(found[0])), None)
        if known is None:
            known = found[0]
            self.seen[known] = f"<digest {len(self.seen) + 1}>"
        return self.seen[known]


def _number(value: object, key: str) -> object:
    ignored = key.endswith(("_count", "_duration"))
    return "…" if ignored and not isinstance(value, bool) else value


def _sorted_lines(text: str, prefix: str) -> str:
    """The lines that begin with `prefix` sorted among themselves, the others where they are."""
    lines = text.split("\n")
    places = [place for place, line in enumerate(lines) if line.startswith(prefix)]
    for place, line in zip(places, sorted(lines[place] for place in places), strict=True):
        lines[place] = line
    return "\n".join(lines)


def _fewer_progress_lines(lines: list[object]) -> list[object]:
    """Of one digest's progress the last line: how many there are is chance, and of the first no byte may be there."""
    kept: list[object] = []
    for line in lines:
        if kept and _is_progress(line) and _is_progress(kept[-1]) and _topic(line) == _topic(kept[-1]):
            kept.pop()
        kept.append(line)
    return kept


def _is_progress(line: object) -> bool:
    return isinstance(line, dict) and "digest" in line and "total" in line


def _topic(line: object) -> object:
    return isinstance(line, dict) and (line["status"], line["digest"])


# --- playing -------------------------------------------------------------------------------------------------------


@dataclass
class Player:
    """Plays requests on one sandbox and writes answers down as the recorder did."""

    sandbox: Sandbox
    registry: RunningRegistry | None
    session: requests.Session

    def play(self, request: Mapping[str, object]) -> Answer | None:
        if "wait_s" in request:
            return None
        data = self._body(request)
        response = self.session.request(
            str(request["method"]), self.sandbox.url + str(request["path"]), data=data, timeout=PATIENCE_S
        )
        content_type = response.headers.get("content-type", "")
        return Answer(response.status_code, content_type, self._written(response, content_type))

    def _body(self, request: Mapping[str, object]) -> bytes | None:
        if "json" in request:
            return self._here(json.dumps(request["json"])).encode()
        if "text" in request:
            return str(request["text"]).encode()
        return (CONTRACT / "weights" / str(request["file"])).read_bytes() if "file" in request else None

    def _here(self, text: str) -> str:
        return text.replace(RECORDED_REGISTRY, self.registry.host) if self.registry else text

    def _written(self, response: requests.Response, content_type: str) -> object:
        text = response.text.replace(str(self.sandbox.store.root), "<models>")
        if self.registry:
            text = text.replace(self.registry.host, RECORDED_REGISTRY)
        if not text:
            return None
        if content_type.startswith("application/x-ndjson"):
            return [_shortened(json.loads(line)) for line in text.splitlines()]
        return _shortened(json.loads(text)) if content_type.startswith("application/json") else text


def _shortened(value: object) -> object:
    """Long lists of numbers as the recorder wrote them."""
    if isinstance(value, dict):
        return {key: _shortened(item) for key, item in value.items()}
    if isinstance(value, list):
        if len(value) > 8 and all(isinstance(item, int | float) for item in value):
            return f"<{len(value)} numbers>"
        return [_shortened(item) for item in value]
    return value


def recorded_answer(response: Mapping[str, object]) -> Answer:
    body = response.get("json", response.get("ndjson", response.get("text")))
    return Answer(_whole(response["status"]), str(response["content_type"] or ""), body or None)


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRegistry]:
    with run_registry(tmp_path_factory.mktemp("registry"), redirect=True) as running:
        yield running


def _without_words(answer: Answer) -> Answer:
    """The words that a model says are not compared, nor how many lines they take."""

    def wordless(value: object) -> object:
        if isinstance(value, dict):
            said = (
                {"response", "content", "thinking"} & value.keys()
                if "done" in value or "role" in value
                else set()
            )
            return {key: "…" if key in said and item else wordless(item) for key, item in value.items()}
        return [wordless(item) for item in value] if isinstance(value, list) else value

    return Answer(answer.status, answer.content_type, _one_per_word(wordless(answer.body)))


def _one_per_word(body: object) -> object:
    if not isinstance(body, list):
        return body
    kept: list[object] = []
    for line in body:
        if not (kept and isinstance(line, dict) and line.get("done") is False and line == kept[-1]):
            kept.append(line)
    return kept


def play(
    version: str, name: str, folder: Path, registry: RunningRegistry | None
) -> list[tuple[Json, Answer, Answer]]:
    """Each request of a scenario with the recorded and the sandbox's answer."""
    played: list[tuple[Json, Answer, Answer]] = []
    with Sandbox(folder / "models", as_version=version) as sandbox, requests.Session() as session:
        player = Player(sandbox, registry, session)
        for exchange in scenarios(version)[name]:
            answer = player.play(exchange["request"])
            if answer is not None:
                played.append((exchange["request"], recorded_answer(exchange["response"]), answer))
    return played


def _digests(body: object, *, of_models: bool) -> list[str]:
    """Every digest in an answer in the order of appearance; without those of whole models if not `of_models`."""
    if isinstance(body, dict):
        is_model = "modified_at" in body or "expires_at" in body
        items = [item for key, item in body.items() if of_models or not (is_model and key == "digest")]
    elif isinstance(body, list):
        is_list = bool(body) and all(isinstance(item, dict) and "name" in item for item in body)
        items = sorted(body, key=lambda item: str(item["name"])) if is_list else body
    else:
        return _HEX.findall(body) if isinstance(body, str) else []
    found = [digest for item in items for digest in _digests(item, of_models=of_models)]
    return list(dict.fromkeys(found))


@pytest.mark.parametrize(("version", "name"), [case for case in CASES if case[1] not in NEEDS_OTHER_WEIGHTS])
def test_every_recorded_answer_agrees(
    version: str, name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    registry = request.getfixturevalue("registry") if name in NEEDS_REGISTRY else None
    recorded, got = Normalizer(), Normalizer()
    for number, (asked, wanted, answer) in enumerate(play(version, name, tmp_path, registry)):
        place = f"answer {number} to {json.dumps(asked)[:300]}"
        assert _without_words(got.answer(answer)) == _without_words(recorded.answer(wanted)), place
        if name not in MADE_UP_WEIGHTS:
            of_models = version not in ABSOLUTE_PATHS
            assert _digests(answer.body, of_models=of_models) == _digests(wanted.body, of_models=of_models), (
                place
            )


@pytest.mark.parametrize("version", VERSIONS)
def test_embeddings_have_the_recorded_shapes_with_a_built_in_model(version: str, tmp_path: Path) -> None:
    """The recorded weights are not here; the built-in all-minilm has as many dimensions."""
    recorded, got = Normalizer(), Normalizer()
    with Sandbox(tmp_path / "models", as_version=version) as sandbox, requests.Session() as session:
        player = Player(sandbox, None, session)
        player.play({"method": "POST", "path": "/api/pull", "json": {"model": "all-minilm"}})
        copied = {"source": "all-minilm", "destination": "minilm"}
        player.play({"method": "POST", "path": "/api/copy", "json": copied})
        for exchange in scenarios(version)["embed"]:
            if exchange["request"]["path"] in {"/api/create", "/api/show"} or "file" in exchange["request"]:
                continue
            answer = player.play(exchange["request"])
            assert answer is not None
            wanted = _without_size(recorded.answer(recorded_answer(exchange["response"])))
            assert _without_size(got.answer(answer)) == wanted, json.dumps(exchange["request"])


def _without_size(answer: Answer) -> Answer:
    """How many parameters the model has is not compared: it is another model."""
    text = re.sub(r'"parameter_size": "[^"]*"', '"parameter_size": "…"', json.dumps(answer.body))
    return Answer(answer.status, answer.content_type, json.loads(text))
