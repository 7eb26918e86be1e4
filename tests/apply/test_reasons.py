"""What went wrong is told as it is, with the way out that fits."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from scripted_host import Asked, Script, ScriptedHost, Wire, always, reply

from ollamaops.cli.main import run
from ollamaops.errors import (
    AccessDenied,
    ConnectionLost,
    InvalidRequest,
    ProtocolError,
    RemoteError,
    TlsError,
)
from ollamaops.http.session import Credentials, TlsFiles
from ollamaops.ollama.client import OllamaClient
from ollamaops.ollama.transport import Transport

TLS_HINT = "a server with TLS is https:// in url"


def hang_up(_: Asked, wire: Wire) -> None:
    wire.close()


@pytest.mark.parametrize(
    ("script", "error", "hint"),
    [
        (hang_up, ConnectionLost, f"if this goes on: {TLS_HINT}"),
        (lambda _, wire: wire.reset(), ConnectionLost, f"if this goes on: {TLS_HINT}"),
        (lambda _, wire: wire.send(b"\x15\x03\x01\x00\x02\x02\x46\n\n"), ProtocolError, TLS_HINT),
        (
            reply(400, b"Client sent an HTTP request to an HTTPS server.\n", "text/plain"),
            InvalidRequest,
            TLS_HINT,
        ),
        (
            reply(
                400, b"<html><title>400 The plain HTTP request was sent to HTTPS port</title>", "text/html"
            ),
            InvalidRequest,
            TLS_HINT,
        ),
    ],
    ids=["closed", "reset", "a TLS alert", "Go", "nginx"],
)
def test_a_server_with_tls_behind_http_is_told_as_the_way_out(
    script: Script, error: type[RemoteError], hint: str
) -> None:
    with (
        ScriptedHost(script) as host,
        Transport("gpu-1", host.url) as transport,
        pytest.raises(error) as caught,
    ):
        transport.request("GET", "/api/version")
    assert caught.value.hint == hint


def test_a_connection_that_is_cut_later_is_not_about_tls() -> None:
    def cut(_: Asked, wire: Wire) -> None:
        wire.head(200, Content_Length="100")
        wire.close()

    with (
        ScriptedHost(cut) as host,
        Transport("gpu-1", host.url) as transport,
        pytest.raises(ConnectionLost) as caught,
    ):
        transport.request("GET", "/api/version")
    assert caught.value.hint is None


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({}, "set auth for this host"),
        ({"auth": Credentials(bearer="wrong-token")}, "was sent and not accepted"),
        ({"headers": {"X-Key": "wrong-key"}}, "was sent and not accepted"),
    ],
)
def test_401_asks_for_credentials_or_for_better_ones(given: dict[str, object], hint: str) -> None:
    with (
        ScriptedHost(always({"error": "unauthorized"}, 401)) as host,
        OllamaClient.connect(host.url, **given) as client,  # type: ignore[arg-type]
        pytest.raises(AccessDenied) as caught,
    ):
        client.tags()
    assert hint in (caught.value.hint or "")


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate and a key that has a password."""
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-passout", "pass:zz-secret", "-subj", "/CN=x", "-keyout", str(key), "-out", str(certificate)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs openssl to make certificates")
    return certificate, key


def test_files_for_tls_that_are_none_are_named_before_anything_is_asked(
    tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    certificate, key = map(str, pair)
    junk = tmp_path / "x.json"
    junk.write_text("{}")
    gone = str(tmp_path / "gone")
    for files, why in (
        (TlsFiles(ca=gone), f"no file '{gone}'"),
        (TlsFiles(ca=str(junk)), f"ca: '{junk}' holds no certificate"),
        (TlsFiles(cert=str(junk)), f"cert: '{junk}' cannot be used"),
        (
            TlsFiles(cert=certificate, key=str(junk)),
            f"cert: '{certificate}' with the key '{junk}' cannot be used",
        ),
        (
            TlsFiles(cert=certificate, key=key),
            f"cert: '{certificate}' with the key '{key}' cannot be used (the key has a password)",
        ),
    ):
        with pytest.raises(TlsError) as caught:
            Transport("gpu-1", "https://127.0.0.1:9", tls=files)
        assert str(caught.value).startswith(f"gpu-1: tls: {why}")
        assert "http://" not in (caught.value.hint or "")


def test_a_folder_of_authorities_is_taken(tmp_path: Path) -> None:
    with Transport("gpu-1", "https://127.0.0.1:9", tls=TlsFiles(ca=str(tmp_path))) as transport:
        assert transport.requests_sent == 0


@pytest.mark.parametrize(
    ("made", "applied", "said"),
    [
        ([], ["--prune=owned"], "p.json was made with --prune nothing, not owned"),
        (["--prune=x*,y"], [], "p.json was made with --prune x*,y, not nothing"),
        ([], ["--target", "b"], "p.json was made with --target none, not b"),
        ([], ["-e", "prod"], "p.json was made with -e none, not prod"),
        ([], ["-f", "other.yaml"], "the manifest has changed since p.json was made"),
    ],
)
def test_a_saved_plan_with_other_options_names_the_option(
    made: list[str],
    applied: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ollamaops.yaml").write_text(
        "models: [{name: b, from: nomic-embed-text, system: v1}, nomic-embed-text, qwen3:0.6b]\n"
        "environments: {prod: {models: [all-minilm]}}\n"
    )
    Path("other.yaml").write_text("models: [nomic-embed-text]\n")
    shared = ["--sandbox=sb", "--state-dir", "state"]
    assert run(["plan", *shared, *made, "--out", "p.json"]) == 0
    capsys.readouterr()
    assert run(["apply", "p.json", *shared, *applied]) == 4
    assert capsys.readouterr().err.startswith(f"error: {said}\n")
