"""What pull and push of the sandbox promise: built-in models, real registries, what failures leave behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from registry_fixture import Reply as Served
from registry_fixture import (
    Request,
    RunningServer,
    make_certificate,
    push_model,
    run_registry,
    run_server,
)
from sandbox_caller import Caller, a_caller, digest_of

VERSIONS = ("0.3.4", "0.12.11", "0.33.0-rc2")
DATA = b"weights of some length"
CONFIG = b'{"model_format":"gguf"}'
MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "config": {"mediaType": "c", "digest": digest_of(CONFIG), "size": len(CONFIG)},
        "layers": [
            {
                "mediaType": "application/vnd.ollama.image.license",
                "digest": digest_of(DATA),
                "size": len(DATA),
            }
        ],
    }
).encode()


# --- the built-in models --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_popular_models_are_pulled_without_a_network(version: str, tmp_path: Path) -> None:
    with a_caller(tmp_path, version) as caller:
        reply = caller.post("pull", model="llama3.2:3b")
        assert reply.statuses[0] == "pulling manifest"
        assert reply.statuses[-1] == "success"
        assert any(str(status).startswith("pulling ") for status in reply.statuses[1:])
        shown = caller.show("llama3.2:3b")
        assert shown["details"] == {
            "parent_model": "",
            "format": "gguf",
            "family": "llama",
            "families": ["llama"],
            "parameter_size": "3.2B",
            "quantization_level": "Q4_K_M",
        }
        assert "random numbers" in str(shown["license"])
        assert caller.post("generate", model="llama3.2:3b", prompt="hi", stream=False).status == 200


def test_two_tags_of_one_model_have_one_digest_and_share_blobs(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.post("pull", model="llama3.2")
        blobs = len(list(caller.sandbox.store.blobs.iterdir()))
        caller.post("pull", model="LLAMA3.2:3b")
        assert len(list(caller.sandbox.store.blobs.iterdir())) == blobs
        assert len({str(model["digest"]) for model in caller.tags().values()}) == 1


@pytest.mark.parametrize(("version", "is_raw"), [("0.12.11", False), ("0.33.0-rc2", True)])
def test_only_newer_servers_keep_a_manifest_as_sent(version: str, is_raw: bool, tmp_path: Path) -> None:
    with a_caller(tmp_path, version) as caller:
        caller.post("pull", model="qwen3:0.6b")
        stored = (tmp_path / "manifests/registry.ollama.ai/library/qwen3/0.6b").read_bytes()
        assert (b"\n" in stored) == is_raw
        assert caller.tags()["qwen3:0.6b"]["digest"] == digest_of(stored).removeprefix("sha256:")


def a_tree(**changes: object) -> dict[str, object]:
    return {"schemaVersion": 2, "mediaType": "m", **json.loads(MANIFEST), **changes}


@pytest.mark.parametrize("layers", [None, []])
@pytest.mark.parametrize(("version", "is_raw"), [("0.12.11", False), ("0.18.9", False), ("0.19.0", True)])
def test_a_manifest_without_layers_is_stored_as_the_registry_writes_it(
    version: str, is_raw: bool, layers: list[object] | None, tmp_path: Path
) -> None:
    tree = {key: a_tree(layers=layers)[key] for key in ("schemaVersion", "mediaType", "config", "layers")}
    raw = json.dumps(tree, indent=3).encode()
    with (
        run_server(a_registry(manifest=Served(200, body=raw))) as server,
        a_caller(tmp_path, version) as caller,
    ):
        assert pull_from(server, caller)[-1] == "success"
        stored = raw if is_raw else json.dumps(tree, separators=(",", ":")).encode()
        (listed,) = caller.tags().values()
        assert listed["digest"] == digest_of(stored).removeprefix("sha256:")


@pytest.mark.parametrize(
    ("version", "digest"),
    [
        ("0.13.5", "without names"),
        ("0.14.0", "with names"),
        ("0.18.9", "with names"),
        ("0.19.0", "of the registry"),
    ],
)
def test_a_pulled_model_has_the_digest_of_its_servers_version(
    version: str, digest: str, tmp_path: Path
) -> None:
    tree = {key: a_tree()[key] for key in ("schemaVersion", "mediaType", "config")}
    layer = {"mediaType": "license", "digest": digest_of(DATA), "size": len(DATA)}
    forms = {
        "without names": json.dumps({**tree, "layers": [layer]}, separators=(",", ":")),
        "with names": json.dumps({**tree, "layers": [{**layer, "name": "x"}]}, separators=(",", ":")),
        "of the registry": json.dumps({**tree, "layers": [{**layer, "name": "x"}]}, indent=3),
    }
    served = Served(200, body=forms["of the registry"].encode())
    with run_server(a_registry(manifest=served)) as server, a_caller(tmp_path, version) as caller:
        assert pull_from(server, caller)[-1] == "success"
        (listed,) = caller.tags().values()
        assert {listed["digest"]} == {digest_of(forms[digest].encode()).removeprefix("sha256:")}


@pytest.mark.parametrize("name", ["nope", "llama3.2:99b", "me/llama3.2"])
def test_a_model_that_is_not_built_in_does_not_exist(name: str, tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        reply = caller.post("pull", model=name)
        assert reply.statuses == ["pulling manifest", "pull model manifest: file does not exist"]
        assert caller.post("pull", model=name, stream=False).status == 500


@pytest.mark.parametrize(
    ("name", "stored"), [("tinyllama:local", "tinyllama:latest"), ("tinyllama:LOCAL", "tinyllama:latest")]
)
def test_the_local_suffix_is_taken_off(name: str, stored: str, tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.post("pull", model=name)
        assert set(caller.tags()) == {stored}


def test_two_suffixes_are_refused(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        reply = caller.post("pull", model="x:cloud:local")
        assert (reply.status, reply.error) == (400, 'use either :local or :cloud, not both: "x:cloud:local"')


@pytest.mark.parametrize(
    ("version", "line"), [("0.3.4", "removing any unused layers"), ("0.33.0-rc2", "removing unused layers")]
)
def test_a_changed_tag_loses_its_old_blobs(version: str, line: str, tmp_path: Path) -> None:
    with a_caller(tmp_path, version) as caller:
        caller.base("tinyllama")
        old = {path.name for path in caller.sandbox.store.blobs.iterdir()}
        assert line in caller.post("pull", model="tinyllama").statuses
        left = {path.name for path in caller.sandbox.store.blobs.iterdir()} & old
        assert len(left) == (0 if version == "0.3.4" else 1)  # the upload, which no model used


def test_pulling_an_existing_model_only_touches_the_manifest(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.post("pull", model="tinyllama")
        before = caller.tags()["tinyllama:latest"]
        statuses = caller.post("pull", model="tinyllama").statuses
        assert "removing unused layers" not in statuses
        assert caller.tags()["tinyllama:latest"]["digest"] == before["digest"]
        assert str(caller.tags()["tinyllama:latest"]["modified_at"]) > str(before["modified_at"])


def test_an_existing_blob_is_never_read_again(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.post("pull", model="tinyllama")
        spoiled = max(caller.sandbox.store.blobs.iterdir(), key=lambda path: path.stat().st_size)
        spoiled.write_bytes(b"spoiled")
        assert caller.post("pull", model="tinyllama").statuses[-1] == "success"
        assert spoiled.read_bytes() == b"spoiled"


def test_a_name_that_differs_only_in_case_is_refused_by_old_servers(tmp_path: Path) -> None:
    with a_caller(tmp_path, "0.3.4") as caller:
        caller.post("pull", model="tinyllama")
        reply = caller.post("pull", model="TinyLlama")
        assert (reply.status, reply.error) == (400, "a model with that name already exists")


@pytest.mark.parametrize("stage", ["blob", "manifest"])
def test_a_full_disk_ends_a_pull_and_leaves_the_old_model(stage: str, tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.base("tinyllama")
        before = caller.tags()
        if stage == "manifest":
            caller.post("pull", model="tinyllama:1.1b")
        caller.sandbox.store.disk_full = True
        reply = caller.post("pull", model="tinyllama")
        assert str(reply.error).endswith("no space left on device")
        caller.sandbox.store.disk_full = False
        assert caller.tags()["tinyllama:latest"] == before["tinyllama:latest"]


# --- registries -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "error"),
    [("0.3.4", "unexpected status code 200"), ("0.33.0-rc2", "http: no Location header in response")],
)
def test_a_registry_that_answers_blobs_itself_cannot_be_pulled_from(
    version: str, error: str, tmp_path: Path
) -> None:
    with (
        run_registry(tmp_path / "registry", redirect=False) as registry,
        a_caller(tmp_path / "store", version) as caller,
    ):
        push_model(registry, "team/bot:v1", [("license", DATA)])
        reply = caller.post("pull", model=f"{registry.host}/team/bot:v1", insecure=True)
        assert reply.error == error
        assert caller.tags() == {}


def test_a_blob_that_was_tampered_with_is_noticed_and_removed(tmp_path: Path) -> None:
    with (
        run_registry(tmp_path / "registry", redirect=True) as registry,
        a_caller(tmp_path / "store") as caller,
    ):
        push_model(registry, "team/bot:v1", [("license", DATA)])
        registry.stored_blob(registry.put_blob("team/bot", DATA)).write_bytes(DATA[::-1])
        reply = caller.post("pull", model=f"{registry.host}/team/bot:v1", insecure=True)
        expected = f"want {digest_of(DATA)}, got {digest_of(DATA[::-1])}"
        assert reply.error == f"digest mismatch, file must be downloaded again: {expected}"
        assert not caller.has_blob(digest_of(DATA))
        assert caller.tags() == {}


def test_what_one_server_pushes_another_pulls(tmp_path: Path) -> None:
    with (
        run_registry(tmp_path / "registry", redirect=True) as registry,
        a_caller(tmp_path / "one", "0.12.11") as one,
        a_caller(tmp_path / "two") as two,
    ):
        name = f"{registry.host}/team/bot:v1"
        one.base()
        one.create(name, system="S", **{"from": "base"})
        assert one.post("push", model=name, insecure=True).statuses[-1] == "success"
        assert two.post("pull", model=name, insecure=True).statuses[-1] == "success"
        assert two.show(name)["system"] == "S"
        assert two.tags()[name]["digest"] != one.tags()[name]["digest"]
        assert one.post("push", model=name, insecure=True, stream=False).document == {"status": "success"}


def test_pushing_without_a_blob_is_an_error(tmp_path: Path) -> None:
    with (
        run_registry(tmp_path / "registry", redirect=True) as registry,
        a_caller(tmp_path / "store") as caller,
    ):
        name = f"{registry.host}/team/bot:v1"
        caller.base(name)
        for path in caller.sandbox.store.blobs.iterdir():
            path.unlink()
        assert str(caller.post("push", model=name, insecure=True).error).endswith("no such file or directory")


@pytest.mark.parametrize(
    ("version", "name", "error"),
    [
        ("0.33.0-rc2", "bad name", "unqualified name: registry.ollama.ai/library/bad name:latest"),
        ("0.12.11", "bad name", "invalid model path"),
        ("0.3.4", "http://h:1/a/b", "insecure protocol http"),
        ("0.33.0-rc2", "base", "unauthorized: access denied"),
    ],
)
def test_what_cannot_be_pushed_is_an_error_in_the_stream(
    version: str, name: str, error: str, tmp_path: Path
) -> None:
    with a_caller(tmp_path, version) as caller:
        caller.base()
        reply = caller.post("push", model=name)
        assert (reply.status, reply.error) == (200, error)


def test_a_registry_that_refuses_uploads_is_an_error(tmp_path: Path) -> None:
    with run_server(lambda _: Served(404)) as server, a_caller(tmp_path) as caller:
        name = f"{server.host}/a/b:c"
        caller.base(name)
        assert str(caller.post("push", model=name, insecure=True).error).startswith("501: ")


# --- a registry that says what the test wants -----------------------------------------------------------------------


def a_registry(
    blob: Callable[[Request], Served] = lambda _: Served(200, body=DATA), manifest: Served | None = None
) -> Callable[[Request], Served]:
    """Answers as a registry with one model does; `blob` where the bytes really are, under another host name."""

    def answer(request: Request) -> Served:
        if request.path.startswith("/v2/a/b/manifests/"):
            return manifest or Served(200, body=MANIFEST)
        if request.path.startswith("/v2/"):
            data = CONFIG if digest_of(CONFIG) in request.path else DATA
            if request.method == "HEAD":
                return Served(200, body=data)
            port = request.headers["host"].rpartition(":")[2]
            return Served(307, {"Location": f"http://127.0.0.1:{port}/cdn/{digest_of(data)}"})
        return Served(200, body=CONFIG) if digest_of(CONFIG) in request.path else blob(request)

    return answer


def pull_from(server: RunningServer, caller: Caller) -> list[object]:
    """The lines of pulling the one model."""
    return caller.post("pull", model=f"localhost:{server.port}/a/b:c", insecure=True).statuses


def test_a_pull_resumes_where_the_last_one_ended(tmp_path: Path) -> None:
    def rest(request: Request) -> Served:
        assert request.headers["range"] == f"bytes=5-{len(DATA) - 1}"
        return Served(206, body=DATA[5:])

    with run_server(a_registry(rest)) as server, a_caller(tmp_path) as caller:
        partial = caller.sandbox.store.blobs / f"{digest_of(DATA).replace(':', '-')}-partial"
        partial.write_bytes(DATA[:5])
        assert pull_from(server, caller)[-1] == "success"
        assert caller.sandbox.store.read_blob(digest_of(DATA)) == DATA
        assert not partial.exists()


def test_a_cut_download_is_resumed_at_the_cut(tmp_path: Path) -> None:
    asked: list[str] = []

    def cut_once(request: Request) -> Served:
        asked.append(request.headers["range"])
        if len(asked) == 1:
            return Served(206, body=DATA, cut_at=7)
        return Served(206, body=DATA[7:])

    with run_server(a_registry(cut_once)) as server, a_caller(tmp_path) as caller:
        assert pull_from(server, caller)[-1] == "success"
    assert asked == [f"bytes=0-{len(DATA) - 1}", f"bytes=7-{len(DATA) - 1}"]


def test_a_server_that_ignores_ranges_starts_the_blob_again(tmp_path: Path) -> None:
    asked: list[Request] = []

    def whole(request: Request) -> Served:
        asked.append(request)
        return Served(200, body=DATA, cut_at=7 if len(asked) == 1 else None)

    with run_server(a_registry(whole)) as server, a_caller(tmp_path) as caller:
        assert pull_from(server, caller)[-1] == "success"
        assert caller.sandbox.store.read_blob(digest_of(DATA)) == DATA


def test_six_tries_are_enough(tmp_path: Path) -> None:
    asked: list[Request] = []

    def always_cut(request: Request) -> Served:
        asked.append(request)
        return Served(206, body=b"x" * 9, cut_at=0)

    with run_server(a_registry(always_cut)) as server, a_caller(tmp_path) as caller:
        assert str(pull_from(server, caller)[-1]).startswith("max retries exceeded: ")
    assert len(asked) == 6


def test_a_finished_partial_file_is_not_fetched_again(tmp_path: Path) -> None:
    with run_server(a_registry(lambda _: Served(500))) as server, a_caller(tmp_path) as caller:
        (caller.sandbox.store.blobs / f"{digest_of(DATA).replace(':', '-')}-partial").write_bytes(DATA)
        assert pull_from(server, caller)[-1] == "success"


def test_a_slow_download_has_progress_lines(tmp_path: Path) -> None:
    with (
        run_server(a_registry(lambda _: Served(206, body=DATA, pause_s=0.01))) as server,
        a_caller(tmp_path) as caller,
    ):
        lines = caller.post("pull", model=f"localhost:{server.port}/a/b:c", insecure=True).lines
        completed = [line["completed"] for line in lines if line.get("digest") == digest_of(DATA)]
        assert completed == sorted(set(map(int, map(str, completed))))
        assert completed


@pytest.mark.parametrize(
    ("manifest", "error"),
    [
        (Served(404), "file does not exist"),
        (Served(412, body=b"too old"), "412: too old"),
        (Served(200, body=b"no json"), "Expecting value: line 1 column 1 (char 0)"),
        (Served(200, body=b"cut here", cut_at=3), "unexpected EOF"),
        (Served(401), "unauthorized: access denied"),
        (
            Served(401, {"WWW-Authenticate": 'Bearer realm="http://localhost:{port}/v2/a/b/manifests/x"'}),
            None,
        ),
    ],
)
def test_a_manifest_that_cannot_be_fetched_is_reported_in_the_stream(
    manifest: Served, error: str | None, tmp_path: Path
) -> None:
    def answer(request: Request) -> Served:
        port = request.headers["host"].rpartition(":")[2]
        headers = {name: value.replace("{port}", port) for name, value in manifest.headers.items()}
        return Served(manifest.status, headers, manifest.body, manifest.cut_at)

    with run_server(answer) as server, a_caller(tmp_path) as caller:
        expected = error or "unauthorized: access denied"
        assert pull_from(server, caller)[-1] == f"pull model manifest: {expected}"


@pytest.mark.parametrize(
    ("token", "error"),
    [
        (Served(200, body=b'{"token": "t"}'), None),
        (Served(200, body=b'{"access_token": "t"}'), None),
        (Served(200, body=b"no json"), "Expecting value: line 1 column 1 (char 0)"),
        (Served(200, body=b"[]"), "unauthorized: access denied"),
        (Served(403), "unauthorized: access denied"),
    ],
)
def test_a_registry_that_wants_a_token_gets_one(token: Served, error: str | None, tmp_path: Path) -> None:
    inner = a_registry()

    def answer(request: Request) -> Served:
        port = request.headers["host"].rpartition(":")[2]
        if request.path.startswith("/token"):
            assert request.path == "/token?service=s&scope=repository%3Aa%2Fb%3Apull"
            return token
        if "/cdn/" not in request.path and request.headers.get("authorization") != "Bearer t":
            challenge = (
                f'Bearer realm="http://localhost:{port}/token",service="s",scope="repository:a/b:pull"'
            )
            return Served(401, {"WWW-Authenticate": challenge})
        assert "/cdn/" not in request.path or "authorization" not in request.headers
        return inner(request)

    with run_server(answer) as server, a_caller(tmp_path) as caller:
        expected = f"pull model manifest: {error}" if error else "success"
        assert pull_from(server, caller)[-1] == expected


def test_a_redirect_to_the_same_host_name_is_followed_and_does_not_help(tmp_path: Path) -> None:
    def answer(request: Request) -> Served:
        if "/manifests/" in request.path:
            return Served(200, body=MANIFEST)
        if request.method == "HEAD" or request.path.startswith("/elsewhere"):
            return Served(200, body=DATA)
        return Served(307, {"Location": "/elsewhere"})

    with run_server(answer) as server, a_caller(tmp_path) as caller:
        assert pull_from(server, caller)[-1] == "http: no Location header in response"


def test_redirects_without_end_are_given_up(tmp_path: Path) -> None:
    with (
        run_server(lambda request: Served(307, {"Location": request.path})) as server,
        a_caller(tmp_path) as caller,
    ):
        assert str(pull_from(server, caller)[-1]).endswith("stopped after 10 redirects")


def test_a_blob_that_the_registry_lacks_is_an_error(tmp_path: Path) -> None:
    def answer(request: Request) -> Served:
        return Served(200, body=MANIFEST) if "/manifests/" in request.path else Served(404)

    with run_server(answer) as server, a_caller(tmp_path) as caller:
        assert pull_from(server, caller)[-1] == "file does not exist"


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("127.0.0.1:9/a/b:c", "dial tcp 127.0.0.1:9: connect: connection refused"),
        ("nowhere.invalid/a/b:c", "dial tcp: lookup nowhere.invalid: no such host"),
    ],
)
def test_an_unreachable_registry_is_reported_in_gos_words(name: str, error: str, tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        reply = caller.post("pull", model=name, insecure=True)
        host = name.partition("/")[0]
        assert reply.error == f'pull model manifest: Get "http://{host}/v2/a/b/manifests/c": {error}'


def test_an_unknown_certificate_is_not_accepted(tmp_path: Path) -> None:
    tls = make_certificate(tmp_path).server_context
    with run_server(lambda _: Served(404), tls=tls) as server, a_caller(tmp_path / "models") as caller:
        reply = caller.post("pull", model=f"localhost:{server.port}/a/b:c")
        assert "tls: failed to verify certificate" in str(reply.error)
