"""`ollamaops import`: whatever a server has in it, what is written is read again and finds nothing to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import requests
import yaml
from hypothesis import given
from hypothesis import strategies as st
from manifest_folder import load_text
from msgspec.structs import replace
from patience import PATIENCE_S
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ollamaops.cli.main import run
from ollamaops.manifest.graph import source_of
from ollamaops.manifest.types import Build, HostSpec, ModelSpec
from ollamaops.names import Digest, ModelName
from ollamaops.ollama.contents import Contents
from ollamaops.ollama.features import ServerVersion, features_of
from ollamaops.ollama.listing import Listing
from ollamaops.plan.importing import Imported, import_host, names_in_doubt
from ollamaops.plan.observed import ObservedHost, ObservedModel, RegistryAnswer
from ollamaops.report.manifest_text import render_manifest
from ollamaops.sandbox.app import App
from ollamaops.sandbox.server import Sandbox
from ollamaops.settings import Message, ParameterValue
from ollamaops.state.records import ModelRecord

BASE = "llama3.2:3b"
REFERENCES = "${vars.x} ${env:HOME} $${y} $$${z"
NAME = ModelName.parse("m")


@pytest.fixture(scope="module")
def server() -> Iterator[Sandbox]:
    with Sandbox(registry=True) as sandbox:
        post(sandbox, "pull", BASE)
        yield sandbox


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Sandbox) -> Path:
    """A folder of the test's own, where OLLAMA_HOST is the server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OLLAMA_HOST", server.url)
    monkeypatch.setenv("OLLAMAOPS_STATE_DIR", str(tmp_path / "state"))
    return tmp_path


def post(sandbox: Sandbox, what: str, model: str, **fields: object) -> None:
    body = {"model": model, "stream": False, **fields}
    answer = requests.post(f"{sandbox.url}/api/{what}", json=body, timeout=PATIENCE_S)
    assert answer.status_code == 200, answer.text


def copy(sandbox: Sandbox, source: str, to: str) -> None:
    body = {"source": source, "destination": to}
    assert requests.post(f"{sandbox.url}/api/copy", json=body, timeout=PATIENCE_S).status_code == 200


def written_by_import(folder: Path, *options: str) -> dict[str, object]:
    """What import writes, by model; it is checked that planning with it finds nothing to do."""
    assert run(["import", "--no-registry", "--out", "i.yaml", *options]) == 0
    assert run(["plan", "-f", "i.yaml", "--no-registry", "--detailed-exitcode"]) == 0
    models = yaml.safe_load((folder / "i.yaml").read_text())["models"]
    return {model["name"]: model for model in models if isinstance(model, dict)} | {
        model: model for model in models if isinstance(model, str)
    }


def test_whatever_is_in_a_model_is_written_so_that_it_plans_nothing(here: Path, server: Sandbox) -> None:
    post(server, "create", "odd", **{"from": BASE}, parameters={"bogus": "x", "penalize_newline": True})
    post(server, "create", "wrong", **{"from": BASE}, parameters={"num_ctx": "many"})
    post(server, "create", "text", **{"from": BASE}, system=REFERENCES, license="${vars.l}")
    post(server, "create", "said", **{"from": BASE}, messages=[{"role": "user", "content": REFERENCES}])
    post(server, "create", "number", **{"from": BASE}, system="1e3", parameters={"stop": ["1e3", "${env:X}"]})
    post(server, "create", "nul", **{"from": BASE}, system="a\0b")
    post(server, "create", "ping", **{"from": BASE}, system="ping")
    post(server, "create", "pong", **{"from": "ping"}, system="pong")
    post(server, "create", "ping", **{"from": "pong"}, system="ping again")
    models = written_by_import(here)
    odd, text, number = models["odd:latest"], models["text:latest"], models["number:latest"]
    assert isinstance(odd, dict)
    assert isinstance(text, dict)
    assert isinstance(number, dict)
    assert odd["allow_unknown_parameters"] is True
    assert text["system"] == "$${vars.x} $${env:HOME} $$${y} $$$${z"
    assert "allow_unknown_parameters" not in text
    assert number["parameters"] == {"stop": ["1e3", "$${env:X}"]}
    assert [name for name in ("wrong:latest", "nul:latest") if models[name] == name] == [
        "wrong:latest",
        "nul:latest",
    ]
    assert sorted(isinstance(models[name], str) for name in ("ping:latest", "pong:latest")) == [False, True]


texts = st.text(
    alphabet=st.one_of(
        st.sampled_from(list("${}:vars.xenvHOME-_#&*!|>'\"%@`,[]?\\ \n\t\r\x85\u2028\ufeff0123456789eE+.~")),
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
    ),
    min_size=1,
)
words: st.SearchStrategy[ParameterValue] = st.one_of(
    texts, st.lists(texts, min_size=1).map(tuple), st.booleans(), st.integers(-(2**62), 2**62)
)


@given(
    system=texts,
    template=texts,
    licenses=st.lists(texts, max_size=3).map(tuple),
    said=st.lists(texts, max_size=2),
    parameters=st.dictionaries(texts, words, max_size=3),
    renderer=texts,
)
def test_any_text_survives_import_and_loading(
    tmp_path_factory: pytest.TempPathFactory,
    system: str,
    template: str,
    licenses: tuple[str, ...],
    said: list[str],
    parameters: Mapping[str, ParameterValue],
    renderer: str,
) -> None:
    build = Build(
        base=ModelName.parse("base"),
        system=system,
        template=template,
        licenses=licenses,
        messages=tuple(Message("user", text) for text in said),
        parameters={f"own_{name}": value for name, value in parameters.items()},
        renderer=renderer,
    )
    imported = Imported(specs=(ModelSpec(name=NAME, source=build),))
    text = render_manifest(imported, host=HostSpec(name="h", url="http://h:1"), version="0.33.0")
    (model,) = load_text(tmp_path_factory.getbasetemp(), text).models
    assert model.source == build


# hosts

ENVIRON = {"TEAM": "hunter2", "WHICH": "TOKEN", "P": "hunter.lan"}
DECLARED = """
vars: {site: "paris ${y", team: "${env:TEAM}"}
defaults: {host: {timeout: 1m, stall: 90.5s}}
hosts:
  gpu-[1:2]:
    url: "https://${env:P}:1/{}"
    labels: {site: "${vars.site}", vram: 24GiB, team: "${vars.team}/${vars.site}", gpu: true}
    auth: AUTH
    headers: {X-Team: "${env:TEAM}", X-Key: {command: [echo, "${env:TEAM:-x}"]}}
    tls: {ca: ca.pem, verify: false}
    proxy: "http://${env:P}:3128"
    parallel: 3
    disk: 500GB
models: []
"""


@pytest.mark.parametrize(
    "auth",
    [
        "{bearer: {env: TOKEN}}",
        "{basic: {user: '${env:TEAM}', password: {file: pw}}}",
        "{headers: {X-Token: {env: TOKEN}, X-More: {env: '${env:WHICH}'}}}",
    ],
)
def test_a_host_is_written_as_it_was_declared(auth: str, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch()
    (tmp_path / "elsewhere").mkdir()
    host = load_text(tmp_path, DECLARED.replace("AUTH", auth), environ=ENVIRON).hosts[0]
    text = render_manifest(Imported(), host=host, version="0.33.0")
    (again,) = load_text(tmp_path / "elsewhere", text, environ=ENVIRON).hosts
    assert again == replace(host, place=again.place, written=again.written)
    assert "hunter" not in text
    assert "${env:P}:1/1" in text


def test_import_writes_the_declaration_and_not_the_options_of_the_run(
    here: Path, server: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "hunter3")
    host = {"url": server.url, "auth": {"bearer": {"env": "TOKEN"}}, "labels": {"vram": "8GiB"}}
    (here / "m.yaml").write_text(yaml.safe_dump({"models": [], "hosts": {"a": host}}))
    for options in ([], ["--sandbox"]):
        assert run(["import", "-f", "m.yaml", "--timeout", "7s", "--out", "i.yaml", *options]) == 0
        assert yaml.safe_load((here / "i.yaml").read_text())["hosts"] == {"a": host}
        (here / "i.yaml").unlink()


@pytest.mark.parametrize("version", ["0.6.8", "0.33.0-rc2"])
def test_a_name_that_no_manifest_may_have_is_left_out(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Sandbox(as_version=version, registry=True) as sandbox:
        monkeypatch.setenv("OLLAMA_HOST", sandbox.url)
        post(sandbox, "pull", BASE)
        copy(sandbox, BASE, "x:local")
        assert written_by_import(tmp_path).keys() == {BASE}
    assert "left out: x:local" in (tmp_path / "i.yaml").read_text()


def test_what_has_its_default_is_left_out(here: Path, server: Sandbox) -> None:
    (here / "m.yaml").write_text(f"hosts: {{a: {{url: '{server.url}', timeout: 30s}}}}\nmodels: []")
    assert run(["import", "-f", "m.yaml", "--out", "i.yaml"]) == 0
    assert yaml.safe_load((here / "i.yaml").read_text())["hosts"] == {"a": {"url": server.url}}


# originals


def test_of_several_names_the_one_that_was_pulled_is_the_original(here: Path, server: Sandbox) -> None:
    (here / "p.yaml").write_text("models: [nomic-embed-text, {name: emb, copy: nomic-embed-text}]")
    assert run(["apply", "-y", "-f", "p.yaml"]) == 0
    copy(server, "nomic-embed-text", "a")
    models = written_by_import(here)
    assert models["nomic-embed-text:latest"] == "nomic-embed-text:latest"
    assert models["emb:latest"] == {"name": "emb:latest", "copy": "nomic-embed-text:latest"}
    assert models["a:latest"] == {"name": "a:latest", "copy": "nomic-embed-text:latest"}


def test_without_memory_the_oldest_name_is_the_original(here: Path, server: Sandbox) -> None:
    post(server, "create", "zz-oldest", **{"from": BASE}, system="of its own")
    copy(server, "zz-oldest", "c")
    assert written_by_import(here)["c:latest"] == {"name": "c:latest", "copy": "zz-oldest:latest"}


def a_host(
    digests: Mapping[str, str],
    *,
    parents: Mapping[str, str] | None = None,
    at: Mapping[str, str] | None = None,
) -> ObservedHost:
    """Models by name and digest (one letter), the model that each says it is made from, and when it was written."""
    names = {name: ModelName.parse(name) for name in digests}
    parent, written = parents or {}, at or {}
    return ObservedHost(
        host="h",
        features=features_of(ServerVersion.parse("0.33.0")),
        models=Listing(
            (
                names[name],
                ObservedModel(
                    name=names[name],
                    digest=digest * 64,
                    parent=parent.get(name, ""),
                    modified_at=written.get(name, ""),
                ),
            )
            for name, digest in digests.items()
        ),
        shown={
            names[name]: Contents(digest=digest * 64, blobs=(Digest.of(b"weights"),), system=f"I am {digest}")
            for name, digest in digests.items()
        },
    )


def as_written(observed: ObservedHost) -> dict[str, str]:
    """Every model → the one that it is made from or a copy of, "" for one that is only named."""
    return {spec.name.model: str(source_of(spec) or "") for spec in import_host(observed).specs}


EMB, NOMIC = ModelName.parse("emb"), ModelName.parse("nomic")
HAS, OTHER, GONE = (
    RegistryAnswer(digests=frozenset({"a" * 64})),
    RegistryAnswer(digests=frozenset({"b" * 64})),
    RegistryAnswer(error="no such model", gone=True),
)
SILENT = RegistryAnswer(error="no answer", answered=False)


@pytest.mark.parametrize(
    ("emb", "nomic", "original"),
    [
        (HAS, OTHER, "emb"),
        (OTHER, HAS, "nomic"),
        (GONE, OTHER, "nomic"),
        (GONE, SILENT, "nomic"),
        (SILENT, SILENT, "emb"),
    ],
)
def test_the_name_that_a_registry_has_is_the_original(
    emb: RegistryAnswer, nomic: RegistryAnswer, original: str
) -> None:
    observed = replace(a_host({"emb": "a", "nomic": "a", "x": "c"}), upstream={EMB: emb, NOMIC: nomic})
    assert as_written(observed)[original] == ""
    assert set(names_in_doubt(observed)) == {EMB, NOMIC}


def test_what_is_remembered_as_pulled_is_the_original_while_it_is_what_was_pulled() -> None:
    pulled = ModelRecord(digest="a" * 64, how="pulled")
    observed = replace(a_host({"emb": "a", "nomic": "a"}), memory={NOMIC: pulled}, upstream={EMB: HAS})
    assert as_written(observed) == {"emb": "nomic:latest", "nomic": ""}
    assert names_in_doubt(observed) == ()
    for stale in (replace(pulled, digest="b" * 64), replace(pulled, how="copied")):
        assert as_written(replace(observed, memory={NOMIC: stale})) == {"emb": "", "nomic": "emb:latest"}


def test_the_oldest_name_is_the_original_whatever_the_time_zone() -> None:
    at = {"b": "2026-01-01T12:00:00.123456789+02:00", "c": "2026-01-01T11:00:00Z", "a": "yesterday"}
    assert as_written(a_host(dict.fromkeys("abc", "a"), at=at)) == {"a": "b:latest", "b": "", "c": "b:latest"}


def test_models_made_from_each_other_in_turn_are_written_without_the_circle() -> None:
    parents = {"a": "b", "b": "c", "c": "b"}
    observed = a_host({"a": "a", "b": "b", "c": "c"}, parents=parents)
    assert as_written(observed) == {"a": "b:latest", "b": "", "c": "b:latest"}


def test_what_a_server_says_of_itself_declares_nothing(
    here: Path, server: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version with line ends in it was once written into the manifest, where the next plan ran its command."""
    said = "0.33.0\nhosts: {x: {url: 'http://x', auth: {bearer: {command: [touch, mark]}}}}\n"
    said += "\x1b[2J\u2028\u0085\u202e"

    def wrap(app: App) -> ASGIApp:
        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            is_asked = scope["path"] == "/api/version"
            await (JSONResponse({"version": said}) if is_asked else app)(scope, receive, send)

        return answer

    with Sandbox(server.store.root, faults=wrap) as hostile:
        monkeypatch.setenv("OLLAMA_HOST", hostile.url)
        assert run(["import", "--out", "i.yaml"]) == 0
        text = (here / "i.yaml").read_text()
        assert list(yaml.safe_load(text)["hosts"]) == ["local"]
        assert set(text).isdisjoint("\x1b\u2028\u0085\u202e")


@pytest.mark.parametrize("mark", ["\x1b[2J", "\u2028", "\u0085", "\u202e", "\u200b"])
def test_what_hides_or_reorders_text_is_written_as_an_escape(mark: str) -> None:
    spec = ModelSpec(name=NAME, source=Build(base=ModelName.parse(BASE), system=f"a{mark}b"))
    text = render_manifest(
        Imported(specs=(spec,)), host=HostSpec(name="h", url="http://h"), version=f"0{mark}"
    )
    assert mark not in text
    assert yaml.safe_load(text)["models"][0]["system"] == f"a{mark}b"
