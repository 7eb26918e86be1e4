"""What the sandbox promises as a program: it starts at once, stops cleanly, prunes at start, speaks Ollama's HTTP."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import requests
from patience import PATIENCE_S
from sandbox_caller import WEIGHTS, Caller, Json, a_caller, a_gguf, digest_of

from ollamaops.sandbox import server
from ollamaops.sandbox.behavior import NEWEST, RECORDED, behavior_for
from ollamaops.sandbox.loaded_models import LoadedModels
from ollamaops.sandbox.server import Sandbox

VERSIONS = list(RECORDED)


# --- starting and stopping ------------------------------------------------------------------------------------------


def test_it_answers_as_soon_as_it_is_started_and_leaves_no_thread(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with Sandbox(tmp_path) as sandbox:
        assert requests.get(f"{sandbox.url}/api/version", timeout=PATIENCE_S).json() == {"version": NEWEST}
        assert sandbox.address == ("127.0.0.1", int(sandbox.url.rpartition(":")[2]))
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE_S)  # one that has been told to end may still be about to
        assert not thread.is_alive()
    with pytest.raises(requests.ConnectionError):
        requests.get(sandbox.url, timeout=PATIENCE_S)


def test_a_sandbox_without_a_folder_leaves_nothing_behind() -> None:
    with Sandbox() as sandbox:
        root = sandbox.store.root
        assert root.is_dir()
    assert not root.exists()


def test_a_port_that_is_taken_is_an_error(tmp_path: Path) -> None:
    with Sandbox(tmp_path / "one") as one, pytest.raises(OSError, match="in use"):
        Sandbox(tmp_path / "two", port=one.address[1]).start()


def test_stopping_does_not_wait_for_a_client_that_is_still_sending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_STOP_S", None)  # if stopping waited for the client, it would wait forever
    with Sandbox(tmp_path) as sandbox, socket.create_connection(sandbox.address) as client:
        client.sendall(
            f"POST /api/blobs/{digest_of(b'x')} HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\nabc".encode()
        )
        requests.get(sandbox.url, timeout=PATIENCE_S)
        sandbox.stop()
    assert not list((tmp_path / "blobs").iterdir())


def test_a_restart_keeps_the_address_and_forgets_what_was_loaded(tmp_path: Path) -> None:
    with Sandbox(tmp_path) as sandbox, requests.Session() as session:
        caller = Caller(sandbox, session)
        caller.base()
        caller.post("generate", model="base")
        assert caller.call("GET", "/api/ps").document["models"] != []
        url = sandbox.url
        sandbox.restart()
        assert sandbox.url == url
        assert caller.call("GET", "/api/ps").document["models"] == []
        assert set(caller.tags()) == {"base:latest"}


def test_a_custom_behavior_can_be_given(tmp_path: Path) -> None:
    with Sandbox(tmp_path, as_version="0.5.5", behavior=behavior_for("0.5.7")) as sandbox:
        assert requests.get(f"{sandbox.url}/api/version", timeout=PATIENCE_S).json() == {"version": "0.5.5"}
        answer = requests.post(f"{sandbox.url}/api/create", data='{"model": "x"}', timeout=PATIENCE_S)
        assert answer.json()["error"] == "neither 'from' or 'files' was specified"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_alone_it_prints_its_url_and_ends_at_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    program = "import sys; from pathlib import Path; from ollamaops.sandbox.server import run_forever;"
    program += "run_forever('127.0.0.1', 0, Path(sys.argv[1]), '0.5.7')"
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert requests.get(f"{url}/api/version", timeout=PATIENCE_S).json() == {"version": "0.5.7"}
        process.send_signal(number)
        output, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, output, errors) == (0, "", "")


# --- HTTP -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("method", "path", "is_route"),
    [
        ("GET", "/api/create", True),
        ("PUT", "/api/tags", True),
        ("HEAD", "/api/ps", True),
        ("GET", "/api/blobs/sha256:abc", True),
        ("GET", "/api/tags/", False),
        ("GET", "/v1/models", False),
        ("POST", "/api/blobs/a/b", False),
    ],
)
def test_what_is_not_routed_is_404_and_a_wrong_method_405_on_newer_servers(
    version: str, method: str, path: str, is_route: bool, tmp_path: Path
) -> None:
    with a_caller(tmp_path, version) as caller:
        expected = RECORDED[version].wrong_method_status if is_route else 404
        assert caller.call(method, path).status == expected


@pytest.mark.parametrize(("version", "status"), [("0.12.11", 404), ("0.33.0-rc2", 200)])
def test_only_newer_servers_report_whether_the_cloud_is_enabled(
    version: str, status: int, tmp_path: Path
) -> None:
    with a_caller(tmp_path, version) as caller:
        assert caller.call("GET", "/api/status").status == status


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("", "missing request body"),
        ("  \n", "missing request body"),
        ("null", "model is required"),
        ("[]", "json: cannot unmarshal array into Go value of type api.ShowRequest"),
        ("{", "unexpected EOF"),
        ('{"model"', "unexpected EOF"),
        ('{"model": "x', "unexpected EOF"),
        ('{"model": [1,', "unexpected EOF"),
        ('{"model": NaN}', "invalid character 'N' looking for beginning of value"),
        ("[" * 100_000, "exceeded max depth"),
        ("{'model'", r"invalid character '\'' looking for beginning of object key string"),
        ('{"model" "x"}', "invalid character '\"' after object key"),
        ('{"model": "x"; }', "invalid character ';' after object key:value pair"),
        (
            '{"model": {}, "a": [], "b": [1, -2.5e3, true], "c": x}',
            "invalid character 'x' looking for beginning of value",
        ),
        ('{"model": "a\nb"}', "invalid character '\\n' in string literal"),
        (
            '{"model": 5}',
            "json: cannot unmarshal number into Go struct field ShowRequest.model of type string",
        ),
        (
            '{"model": "x", "verbose": "yes"}',
            "json: cannot unmarshal string into Go struct field ShowRequest.verbose of type bool",
        ),
        (
            '{"model": "x", "options": []}',
            "json: cannot unmarshal array into Go struct field ShowRequest.options of type map[string]interface {}",
        ),
    ],
)
def test_a_body_that_go_cannot_read_is_refused_in_its_words(body: str, error: str, tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        reply = caller.call("POST", "/api/show", body)
        assert (reply.status, reply.error) == (400, error)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (
            {"files": {"a": 5}},
            "json: cannot unmarshal number into Go struct field CreateRequest.files of type string",
        ),
        (
            {"files": []},
            "json: cannot unmarshal array into Go struct field CreateRequest.files of type map[string]string",
        ),
        (
            {"messages": {}},
            "json: cannot unmarshal object into Go struct field CreateRequest.messages of type []api.Message",
        ),
        (
            {"messages": [1]},
            "json: cannot unmarshal number into Go struct field CreateRequest.messages of type api.Message",
        ),
        (
            {"messages": [{"role": True}]},
            "json: cannot unmarshal bool into Go struct field Message.role of type string",
        ),
    ],
)
def test_create_fields_of_the_wrong_type_are_refused(body: Json, error: str, tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        reply = caller.create("x", **body)
        assert (reply.status, reply.error) == (400, error)


def test_keys_match_in_any_case_and_what_follows_the_first_value_is_ignored(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.base()
        assert caller.call("POST", "/api/show", '{"MODEL": "base", "bogus": 1} trailing').status == 200


# --- blobs ----------------------------------------------------------------------------------------------------------


def test_an_existing_blob_is_answered_before_its_body_and_the_connection_closed(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller, socket.create_connection(caller.sandbox.address) as client:
        digest = caller.upload(b"weights")
        client.sendall(
            f"POST /api/blobs/{digest} HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\nweig".encode()
        )
        client.settimeout(5)
        answer = client.recv(4096)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer.lower()
        with pytest.raises(ConnectionError):
            _send_for_ever(client)


def _send_for_ever(client: socket.socket) -> None:
    while True:
        client.sendall(bytes(65536))


def test_an_upload_with_a_wrong_digest_is_kept_under_its_own(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        wrong, true = digest_of(b"other"), digest_of(b"bytes")
        reply = caller.call("POST", f"/api/blobs/{wrong}", b"bytes")
        assert (reply.status, reply.error) == (400, f'digest mismatch, expected "{wrong}", got "{true}"')
        assert (caller.has_blob(wrong), caller.has_blob(true)) == (False, True)


def test_a_chunked_upload_is_stored(tmp_path: Path) -> None:
    data = os.urandom(9 << 20)
    with a_caller(tmp_path) as caller:
        chunks = (data[start : start + 100_000] for start in range(0, len(data), 100_000))
        url = f"{caller.sandbox.url}/api/blobs/{digest_of(data)}"
        assert requests.post(url, data=chunks, timeout=PATIENCE_S).status_code == 201
        assert requests.post(url, data=iter([b"x"]), timeout=PATIENCE_S).status_code == 200


@pytest.mark.parametrize("sent", [0, 5 << 20])
def test_an_upload_that_is_cut_leaves_nothing(sent: int, tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        with socket.create_connection(caller.sandbox.address) as client:
            client.sendall(
                f"POST /api/blobs/{digest_of(b'x')} HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n".encode()
            )
            client.sendall(b"x" * sent)
        blobs = caller.sandbox.store.blobs
        _until(lambda: not list(blobs.iterdir()))


def _until(holds: Callable[[], bool]) -> None:
    """Look again and again until it holds."""
    waiting = threading.Event()
    while not holds():
        waiting.wait(0.01)


@pytest.mark.parametrize("size", [3, 9 << 20])
def test_an_upload_to_a_full_disk_is_a_500_with_the_systems_words(size: int, tmp_path: Path) -> None:
    data = bytes(size)
    with a_caller(tmp_path) as caller:
        caller.sandbox.store.disk_full = True
        reply = caller.call("POST", f"/api/blobs/{digest_of(data)}", data)
        assert reply.status == 500
        assert str(reply.error).endswith("no space left on device")
        caller.sandbox.store.disk_full = False
        assert caller.call("POST", f"/api/blobs/{digest_of(data)}", data).status == 201


def test_a_disk_that_fills_while_uploading_is_noticed(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller, socket.create_connection(caller.sandbox.address) as client:
        head = f"POST /api/blobs/{digest_of(b'x')} HTTP/1.1\r\nHost: x\r\nContent-Length: {6 << 20}\r\n\r\n"
        client.sendall(head.encode() + bytes(1 << 20))
        _until(lambda: any(caller.sandbox.store.blobs.iterdir()))
        caller.sandbox.store.disk_full = True
        client.sendall(bytes(5 << 20))
        assert client.recv(4096).startswith(b"HTTP/1.1 500")
    assert not list(caller.sandbox.store.blobs.iterdir())


@pytest.mark.parametrize("digest", ["sha256:abc", "md5:abc", "sha256-" + "g" * 64])
def test_a_malformed_digest_is_a_400(digest: str, tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        assert caller.call("HEAD", f"/api/blobs/{digest}").status == 400
        assert caller.call("POST", f"/api/blobs/{digest}", b"x").error == "invalid digest format"


# --- pruning at start -----------------------------------------------------------------------------------------------


def _spoil_store(caller: Caller) -> tuple[str, Path]:
    """An unused blob and a partial download."""
    digest = caller.upload(b"unwanted")
    partial = caller.sandbox.store.blobs / f"{digest.replace(':', '-')}-partial"
    partial.write_bytes(b"half")
    return digest, partial


@pytest.mark.parametrize("version", ["0.3.4", "0.12.11"])
def test_a_starting_server_removes_what_no_model_uses(version: str, tmp_path: Path) -> None:
    with a_caller(tmp_path, version) as caller:
        caller.base()
        digest, partial = _spoil_store(caller)
        caller.sandbox.restart()
        assert not caller.has_blob(digest)
        assert not partial.exists()
        assert caller.post("show", model="base").status == 200


def test_a_newer_server_keeps_blobs_younger_than_an_hour_at_start(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        digest, partial = _spoil_store(caller)
        caller.sandbox.restart()
        assert caller.has_blob(digest)
        assert partial.exists()
        long_ago = time.time() - 7200
        for path in caller.sandbox.store.blobs.iterdir():
            os.utime(path, (long_ago, long_ago))
        caller.sandbox.restart()
        assert not caller.has_blob(digest)
        assert not partial.exists()


@pytest.mark.parametrize(("version", "prunes"), [("0.3.4", True), ("0.12.11", False)])
def test_a_corrupt_manifest_stops_the_pruning_of_newer_servers(
    version: str, prunes: bool, tmp_path: Path
) -> None:
    with a_caller(tmp_path, version) as caller:
        caller.base()
        digest, _ = _spoil_store(caller)
        broken = caller.sandbox.store.manifests / "registry.ollama.ai/library/broken/latest"
        broken.parent.mkdir(parents=True)
        broken.write_bytes(b"[]")
        caller.sandbox.restart()
        assert caller.has_blob(digest) != prunes
        assert set(caller.tags()) == {"base:latest"}


# --- memory ---------------------------------------------------------------------------------------------------------


def test_a_model_leaves_memory_when_its_keep_alive_ends(tmp_path: Path) -> None:
    now = [1000.0]
    with a_caller(tmp_path) as caller:
        caller.sandbox.service.runners = LoadedModels(lambda: now[0])
        caller.base()
        caller.post("generate", model="base", keep_alive="10s")
        entry = cast("list[Json]", caller.call("GET", "/api/ps").document["models"])[0]
        assert entry["expires_at"] == "1970-01-01T00:16:50Z"
        now[0] += 10
        assert caller.call("GET", "/api/ps").document["models"] == []


def test_for_ever_is_a_date_three_hundred_years_from_now(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.sandbox.service.runners = LoadedModels(lambda: 0.0)
        caller.base()
        caller.post("chat", model="base", messages=[], keep_alive=-1)
        entry = cast("list[Json]", caller.call("GET", "/api/ps").document["models"])[0]
        assert str(entry["expires_at"]).startswith("2262-")


def test_a_request_without_keep_alive_keeps_the_earlier_one(tmp_path: Path) -> None:
    now = [1000.0]
    with a_caller(tmp_path) as caller:
        caller.sandbox.service.runners = LoadedModels(lambda: now[0])
        caller.base()
        caller.post("generate", model="base", keep_alive="10s")
        now[0] += 5
        caller.post("generate", model="base", prompt="hi", stream=False)
        entry = cast("list[Json]", caller.call("GET", "/api/ps").document["models"])[0]
        assert entry["expires_at"] == "1970-01-01T00:16:55Z"


def test_full_memory_evicts_the_model_with_the_shortest_keep_alive(tmp_path: Path) -> None:
    with Sandbox(tmp_path, max_loaded=2) as sandbox, requests.Session() as session:
        caller = Caller(sandbox, session)
        for name, file in (("a", "tiny-a.gguf"), ("b", "tiny-b.gguf"), ("c", "tiny-f16.gguf")):
            caller.base(name, file)
        for name, keep_alive in (("a", "10m"), ("b", -1), ("c", -1)):
            caller.post("generate", model=name, keep_alive=keep_alive)
        models = cast("list[Json]", caller.call("GET", "/api/ps").document["models"])
        assert {model["name"] for model in models} == {"b:latest", "c:latest"}


@pytest.mark.parametrize("version", ["0.3.4", "0.5.7", "0.12.11", "0.32.15"])
def test_models_that_share_weights_share_the_name_in_ps_and_are_unloaded_together(
    version: str, tmp_path: Path
) -> None:
    def listed() -> list[object]:
        models = cast("list[Json]", caller.call("GET", "/api/ps").document["models"])
        return [model["name"] for model in models]

    with a_caller(tmp_path, version) as caller:
        caller.base("one")
        caller.post("copy", source="one", destination="two")
        for name in ("one", "two"):
            caller.post("generate", model=name)
            assert listed() == ["one:latest"]
        caller.post("generate", model="two", keep_alive=0)
        is_seen_once_more = version in {"0.5.7", "0.12.11"}
        assert listed() == (["one:latest"] if is_seen_once_more else [])
        assert listed() == []
        caller.post("generate", model="two")
        assert listed() == ["two:latest"]


@pytest.mark.parametrize("version", ["0.12.11", "0.30.0", "0.33.0-rc2"])
@pytest.mark.parametrize("weights", ["tiny-a.gguf", "tiny-ascii-f16.gguf"])
@pytest.mark.parametrize("endpoint", ["generate", "chat"])
def test_answers_of_weights_without_words_end_early_on_new_servers(
    version: str, weights: str, endpoint: str, tmp_path: Path
) -> None:
    with a_caller(tmp_path, version) as caller:
        caller.base(weights=weights)
        asked = (
            {"prompt": "hi"} if endpoint == "generate" else {"messages": [{"role": "user", "content": "hi"}]}
        )
        is_cut = weights == "tiny-a.gguf" and version != "0.12.11"
        whole = caller.post(endpoint, model="base", stream=False, **asked)
        assert (whole.status, whole.document["done"]) == (200, not is_cut)
        pieces = caller.post(endpoint, model="base", **asked).lines
        assert any(piece["done"] for piece in pieces) is not is_cut


def test_different_options_reload_the_model(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.base()
        caller.create("long", parameters={"num_ctx": 256}, **{"from": "base"})
        caller.post("generate", model="base")
        caller.post("generate", model="long")
        entries = cast("list[Json]", caller.call("GET", "/api/ps").document["models"])
        assert [(entry["name"], entry["context_length"]) for entry in entries] == [("long:latest", 256)]


@pytest.mark.parametrize(("version", "reason"), [("0.3.4", "load"), ("0.5.7", "unload")])
def test_keep_alive_0_leaves_nothing_in_memory(version: str, reason: str, tmp_path: Path) -> None:
    with a_caller(tmp_path, version) as caller:
        caller.base()
        caller.post("generate", model="base")
        reply = caller.post("generate", model="base", keep_alive=0)
        assert reply.document["done_reason"] == reason
        assert caller.call("GET", "/api/ps").document["models"] == []


# --- generate, chat, embed: which model -----------------------------------------------------------------------------

QUOTED = 'model "{}" not found, try pulling it first'
PLAIN = "model '{}' not found"


@pytest.mark.parametrize(
    ("version", "endpoint", "model", "status", "error"),
    [
        ("0.3.4", "generate", "nope", 404, QUOTED),
        ("0.3.4", "chat", "bad name", 404, QUOTED),
        ("0.3.4", "chat", "", 400, "model is required"),
        ("0.3.4", "generate", "", 400, "model is required"),
        ("0.6.8", "generate", "", 404, PLAIN),
        ("0.6.8", "generate", "bad name", 404, PLAIN),
        ("0.6.8", "chat", "nope", 404, QUOTED),
        ("0.6.8", "chat", "bad name", 400, "model is required"),
        ("0.12.11", "chat", "nope", 404, PLAIN),
        ("0.12.11", "embed", "bad name", 404, QUOTED),
        ("0.33.0-rc2", "generate", "bad name", 400, "invalid model name"),
        ("0.33.0-rc2", "chat", "", 400, "model is required"),
        ("0.33.0-rc2", "embeddings", "BASE", 404, QUOTED),
        (
            "0.33.0-rc2",
            "generate",
            "base:cloud",
            403,
            "ollama cloud is disabled: remote model is unavailable",
        ),
        (
            "0.33.0-rc2",
            "embed",
            "b:cloud:local",
            400,
            'use either :local or :cloud, not both: "b:cloud:local"',
        ),
    ],
)
def test_a_missing_model_is_named_as_each_version_does(
    version: str, endpoint: str, model: str, status: int, error: str, tmp_path: Path
) -> None:
    with a_caller(tmp_path, version) as caller:
        caller.base()
        reply = caller.post(endpoint, model=model)
        assert (reply.status, reply.error) == (status, error.format(model))


def test_names_are_found_in_any_case_and_with_the_local_suffix(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.base()
        assert caller.post("generate", model="BASE:local").status == 200


@pytest.mark.parametrize("version", ["0.6.8", NEWEST])
def test_a_model_of_an_unknown_architecture_is_made_and_shown_but_does_not_load(
    version: str, tmp_path: Path
) -> None:
    with a_caller(tmp_path, version) as caller:
        digest = caller.upload(a_gguf(architecture="unheard-of"))
        assert caller.create("odd", files={"a.gguf": digest}).lines[-1] == {"status": "success"}
        assert caller.post("show", model="odd").status == 200
        reply = caller.post("generate", model="odd", prompt="hi")
        assert reply.status == 500
        assert "not supported by your version of Ollama" in str(reply.error)
        assert caller.post("generate", model="odd", keep_alive=0).status == 200


def test_a_stub_of_another_server_cannot_be_run(tmp_path: Path) -> None:
    with a_caller(tmp_path, "0.12.11") as caller:
        caller.create("stub", remote_host="h", **{"from": "x"})
        reply = caller.post("generate", model="stub", prompt="x")
        assert (reply.status, reply.error) == (400, "this server cannot run this remote model")


@pytest.mark.parametrize(("version", "streams_error"), [("0.6.8", True), ("0.33.0-rc2", False)])
def test_an_error_while_generating_is_a_line_of_the_stream_on_old_servers(
    version: str, streams_error: bool, tmp_path: Path
) -> None:
    with a_caller(tmp_path, version) as caller:
        caller.base("talker", "tiny-ascii-f16.gguf")
        reply = caller.post("generate", model="talker", prompt="x", format="xml")
        assert reply.status == (200 if streams_error else 500)
        assert str(reply.error).startswith("invalid format")


def test_a_config_that_is_not_json_makes_the_model_unusable_and_unlisted(tmp_path: Path) -> None:
    with a_caller(tmp_path) as caller:
        caller.base()
        (config,) = [path for path in caller.sandbox.store.blobs.iterdir() if path.stat().st_size == 151]
        config.write_bytes(b"no json")
        assert caller.tags() == {}
        assert caller.post("show", model="base").status == 500
        assert caller.post("generate", model="base").status == 500
        assert (WEIGHTS / "tiny-a.gguf").exists()
