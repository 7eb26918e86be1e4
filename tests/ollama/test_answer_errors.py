"""Unhappy answers: every text and status becomes the error that says whether to try again and what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamaops.errors import (
    AccessDenied,
    AnswerError,
    BrokenDownload,
    DigestMismatch,
    DiskFull,
    InvalidRequest,
    NotFound,
    ProtocolError,
    RegistryRefused,
    RemoteError,
    ServerFault,
    TooManyRequests,
)
from ollamaops.ollama.answer_errors import (
    build_answer_error,
    build_line_error,
    is_web_page,
    text_of_error,
)

CONTRACT = Path(__file__).parents[1] / "contract"
BLOB = "sha256-" + "0" * 64


def of_status(status: int, body: str = "", method: str = "GET", **headers: str) -> RemoteError:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return build_answer_error("gpu-1", "do it", status, body, named, method)


def of_text(text: str, status: int = 500) -> RemoteError:
    return of_status(status, json.dumps({"error": text}), Content_Type="application/json")


TEXTS: list[tuple[str, type[AnswerError]]] = [
    ("write /x/sha256-1-partial: no space left on device", DiskFull),
    ("max retries exceeded: write /x: no space left on device", DiskFull),
    ("write C:\\x: There is not enough space on the disk.", DiskFull),
    ("write /x: disk quota exceeded", DiskFull),
    ('digest mismatch, expected "sha256:1", got "sha256:2"', DigestMismatch),
    ("digest mismatch, file must be downloaded again: want sha256:1, got sha256:2", BrokenDownload),
    ("pull model manifest: file does not exist", RegistryRefused),
    ("pull model manifest: 412: \n\nThe model you are pulling requires a newer version", RegistryRefused),
    ("pull model manifest: 403: denied", RegistryRefused),
    ("pull model manifest: 404: page not found", RegistryRefused),
    ("pull model manifest: 429: slow down", ServerFault),
    ("pull model manifest: 502: Bad Gateway", ServerFault),
    ('pull model manifest: Get "https://r/v2/": dial tcp: lookup r: no such host', ServerFault),
    ('pull model manifest: Get "https://r/v2/": proxyconnect tcp: dial tcp: connection refused', ServerFault),
    ('pull model manifest: Get "https://r/v2/": net/http: TLS handshake timeout', ServerFault),
    (
        'pull model manifest: Get "https://r": http: server gave HTTP response to HTTPS client',
        RegistryRefused,
    ),
    ('Get "https://r": tls: failed to verify certificate: x509: unknown authority', RegistryRefused),
    ("insecure protocol http", RegistryRefused),
    ("http: no Location header in response", RegistryRefused),
    ("unexpected status code 200", RegistryRefused),
    ('realm host "a" does not match original host "b"', RegistryRefused),
    ("unauthorized: access denied", RegistryRefused),
    ('unauthorized: unknown ollama key "ssh-ed25519 AAAA"', RegistryRefused),
    ("max retries exceeded: EOF", ServerFault),
    ("context deadline exceeded", ServerFault),
    ("this model requires MLX support, but the MLX runtime is not available", RegistryRefused),
    (f"open /root/.ollama/models/blobs/{BLOB}: no such file or directory", NotFound),
    (f"open /Users/My Name/.ollama/models/blobs/{BLOB}: no such file or directory", NotFound),
    (f"open C:\\m\\blobs\\{BLOB}: The system cannot find the file specified.", NotFound),
    (f"open /m/blobs/{BLOB}: permission denied", ServerFault),
    ("open /m/manifests/registry.ollama.ai/library/x/latest: no such file or directory", NotFound),
    ("stat /m/manifests/localhost:5055/team/none/v1: no such file or directory", NotFound),
    ("open C:\\m\\manifests\\r\\l\\x\\latest: The system cannot find the path specified.", NotFound),
    ("path or modelfile are required", InvalidRequest),
    ("path or Modelfile are required", InvalidRequest),
    ("neither 'from' or 'files' was specified", InvalidRequest),
    ("failed to validate GGUF with llama-quantize without compatibility patches: x", InvalidRequest),
    ("unknown parameter 'no_such'", InvalidRequest),
    ("invalid int value [many]", InvalidRequest),
    ("unsupported quantization type Q99 - supported types are F32, F16", InvalidRequest),
    ("unknown fileType: Q99", InvalidRequest),
    ("unsupported content type: text/plain; charset=utf-8", InvalidRequest),
    ("invalid model path", InvalidRequest),
    ('option "num_ctx" must be of type integer', InvalidRequest),
    ("llama runner process has terminated: signal: killed", ServerFault),
    ("something nobody has seen before", ServerFault),
]


@pytest.mark.parametrize(("text", "error"), TEXTS)
def test_a_text_is_the_same_error_as_an_answer_and_as_a_line(text: str, error: type[AnswerError]) -> None:
    for found in (of_text(text), build_line_error("gpu-1", "do it", {"error": text})):
        assert type(found) is error
        assert str(found).startswith("gpu-1: do it: ")
        assert found.host == "gpu-1"


STATUSES: list[tuple[int, type[AnswerError]]] = [
    (400, InvalidRequest),
    (401, AccessDenied),
    (403, AccessDenied),
    (404, NotFound),
    (405, InvalidRequest),
    (408, ServerFault),
    (413, InvalidRequest),
    (429, TooManyRequests),
    (499, ServerFault),
    (500, ServerFault),
    (501, ServerFault),
    (502, ServerFault),
    (503, ServerFault),
    (507, ServerFault),
]


@pytest.mark.parametrize(("status", "error"), STATUSES)
def test_a_status_says_what_the_text_does_not(status: int, error: type[AnswerError]) -> None:
    found = of_text("x", status)
    assert type(found) is error
    assert isinstance(found, AnswerError)
    assert (found.status, found.text) == (status, "x")


def test_who_may_ask_is_a_matter_of_status_not_of_text() -> None:
    assert type(of_text("unauthorized", 401)) is AccessDenied
    assert type(of_text("invalid model name", 429)) is TooManyRequests


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (of_text("no space left on device"), "free space"),
        (of_text("model requires more system memory (9.0 GiB) than is available (3.9 GiB)", 500), "num_ctx"),
        (of_text("http: no Location header in response"), "redirect"),
        (of_text("pull model manifest: 412: x"), "newer Ollama"),
        (of_text("x", 413), "client_max_body_size"),
        (of_text("x", 401), "auth"),
        (of_status(403, ""), "Host: localhost"),
        (of_status(302, "", Location="https://sso/login"), "redirects are not followed"),
        (of_text("path or modelfile are required", 400), "0.5.5"),
    ],
)
def test_the_hint_shows_the_way_out(found: RemoteError, words: str) -> None:
    assert words in (found.hint or "")


def test_a_forbidden_head_says_nothing_of_the_host_check() -> None:
    assert "localhost" not in (of_status(403, "", "HEAD").hint or "")


def test_a_status_that_was_meant_counts_in_a_line() -> None:
    found = build_line_error("gpu-1", "create x", {"error": "whatever", "status": 400})
    assert type(found) is InvalidRequest
    assert found.status == 400
    assert build_line_error("gpu-1", "x", {"error": "y", "status": "text"}).status == 200


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ({"error": {"code": 400, "message": "deep"}}, "deep"),
        ({"error": {"error": {"message": "deeper"}}}, "deeper"),
        ({"error": 5}, "an error without text"),
        ({"error": ""}, "an error without text"),
    ],
)
def test_an_error_is_found_however_it_is_wrapped(line: Mapping[str, object], text: str) -> None:
    assert str(build_line_error("gpu-1", "x", line)) == f"gpu-1: x: {text}"


PAGE = "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>nginx</body></html>"


def test_a_web_page_is_told_by_its_title() -> None:
    found = of_status(502, PAGE, Content_Type="text/html")
    assert type(found) is ServerFault
    assert str(found) == "gpu-1: do it: 502 Bad Gateway (a web page, not from Ollama)"
    assert text_of_error("<html>no title") == "untitled (a web page, not from Ollama)"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [(PAGE, "text/html"), ("404 page not found", "text/plain"), (PAGE, "")],
)
def test_a_missing_page_is_not_a_missing_model(body: str, content_type: str) -> None:
    found = of_status(404, body, Content_Type=content_type)
    assert type(found) is ProtocolError
    assert "no Ollama API" in (found.hint or "")


def test_a_redirect_is_named_without_its_secrets() -> None:
    found = of_status(301, "", Location="https://me:pw@sso.example/login?token=abc#x")
    assert type(found) is ProtocolError
    assert str(found) == "gpu-1: do it: HTTP 301: redirected to 'https://sso.example/login'"


def test_text_of_a_server_is_cut_to_one_short_line() -> None:
    found = of_text("a\nb " + "x" * 1000)
    assert len(str(found)) == len("gpu-1: do it: ") + 256
    assert str(found).startswith("gpu-1: do it: a b xxx")
    assert isinstance(found, AnswerError)
    assert len(found.text) == 256


def test_retry_after_is_handed_on() -> None:
    found = of_status(503, "{}", Retry_After="12")
    assert isinstance(found, ServerFault)
    assert found.retry_after_s == 12


@given(st.integers(300, 599), st.text(), st.sampled_from(["text/html", "application/json", ""]))
def test_no_answer_whatever_makes_this_fail(status: int, body: str, content_type: str) -> None:
    found = of_status(status, body, Content_Type=content_type)
    assert str(found).startswith("gpu-1: do it: ")
    assert "\n" not in str(found)


@given(st.text())
def test_ollamas_own_words_are_never_a_web_page(text: str) -> None:
    assert not is_web_page(json.dumps({"error": text}))


def recorded_errors() -> Iterator[tuple[str, int, dict[str, Any]]]:
    for file in sorted(CONTRACT.glob("ollama-*.json")):
        for scenario in json.loads(file.read_text())["scenarios"].values():
            for step in scenario:
                response = step["response"]
                if response["status"] is None:  # a pause
                    continue
                bodies = [response.get("json")] if response["status"] >= 400 else []
                bodies += response.get("ndjson", [])
                for body in bodies:
                    if isinstance(body, dict) and "error" in body:
                        yield step["request"]["path"], response["status"], body


def test_every_recorded_mistake_of_ours_is_lasting() -> None:
    """Whatever the six servers answered to bad requests is not tried again, but for networks that were down."""
    seen = 0
    for path, status, body in recorded_errors():
        seen += 1
        text = body["error"]
        if status < 400:
            found: RemoteError = build_line_error("gpu-1", path, body)
        else:
            found = of_status(status, json.dumps(body), Content_Type="application/json")
        network = "connection refused" in text
        assert found.transient == network, text
    assert seen > 150
