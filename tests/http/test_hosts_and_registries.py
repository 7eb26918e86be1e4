"""What is the same for hosts, registries and web servers: whom we trust, how we get there, and how it fails."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import warnings
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from certificates import Pki
from patience import PATIENCE_S
from scripted_host import (
    HEX,
    Asked,
    Script,
    ScriptedHost,
    Wire,
    always,
    free_port,
    full_listener,
    reply,
    silent,
)

from ollamaops.errors import (
    AccessDenied,
    AnswerError,
    Cancelled,
    ConnectError,
    ConnectionLost,
    InvalidRequest,
    NotFound,
    OllamaopsError,
    ProtocolError,
    ServerFault,
    TimeoutExceeded,
    TlsError,
    TooManyRequests,
)
from ollamaops.files.location import RemoteFile, parse_remote
from ollamaops.http.cancel import CancelToken
from ollamaops.http.session import TimeLimits, TlsFiles
from ollamaops.names import ModelName
from ollamaops.ollama.client import OllamaClient
from ollamaops.registry.client import RegistryClient
from ollamaops.registry.web_weights import RemoteWeights

GOOD = {
    "models": [],
    "schemaVersion": 2,
    "config": {"mediaType": "c", "digest": f"sha256:{HEX}", "size": 1},
    "layers": [],
}
"""An answer that a host, a registry and a web server may give."""

Ask = Callable[..., None]


def ask_host(
    url: str, *, tls: TlsFiles | None = None, timeout_s: float = PATIENCE_S, cancel: CancelToken | None = None
) -> None:
    limits = TimeLimits(connect_s=timeout_s, idle_s=timeout_s)
    with OllamaClient.connect(url, host_name="peer", tls=tls, limits=limits, cancel=cancel) as client:
        client.tags()


def ask_registry(
    url: str, *, tls: TlsFiles | None = None, timeout_s: float = PATIENCE_S, cancel: CancelToken | None = None
) -> None:
    with RegistryClient(endpoints={"peer": url}, tls=tls, timeout_s=timeout_s, cancel=cancel) as client:
        client.manifest(ModelName.parse("peer/team/mario:v1"))


def ask_web(
    url: str, *, tls: TlsFiles | None = None, timeout_s: float = PATIENCE_S, cancel: CancelToken | None = None
) -> None:
    ref = parse_remote(f"{url}/w/a.gguf")
    file = RemoteFile(ref=ref, url=str(ref), digest=None, size_bytes=None)
    with (
        RemoteWeights({}, tls=tls, timeout_s=timeout_s, cancel=cancel) as weights,
        weights.open(file) as stream,
    ):
        while stream.read(1000):
            pass


all_of_them = pytest.mark.parametrize(
    "ask", [ask_host, ask_registry, ask_web], ids=["host", "registry", "web"]
)
api_only = pytest.mark.parametrize("ask", [ask_host, ask_registry], ids=["host", "registry"])


# whom we trust


@all_of_them
@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"])
def test_a_bundle_that_the_environment_names_is_trusted(
    ask: Ask, variable: str, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, str(pki.ca))
    with ScriptedHost(always(GOOD), tls=pki.server_context()) as server:
        ask(server.url)
    assert len(server.asked) == 1


@all_of_them
@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"])
def test_a_bundle_that_is_not_there_is_passed_over(
    ask: Ask, variable: str, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "/no/such/file")
    with ScriptedHost(always(GOOD), tls=pki.server_context()) as server, pytest.raises(TlsError):
        ask(server.url)


@all_of_them
def test_a_certificate_of_a_given_authority_is_accepted_and_no_other(ask: Ask, pki: Pki) -> None:
    with ScriptedHost(always(GOOD), tls=pki.server_context()) as server:
        ask(server.url, tls=TlsFiles(ca=str(pki.ca)))
        with pytest.raises(TlsError, match="the certificate is not accepted") as caught:
            ask(server.url, tls=TlsFiles(ca=str(pki.other_ca)))
    assert not caught.value.transient
    assert "authority that signed it" in (caught.value.hint or "")
    assert len(server.asked) == 1


@all_of_them
def test_any_certificate_is_accepted_when_told_so_and_without_a_warning(ask: Ask, pki: Pki) -> None:
    with ScriptedHost(always(GOOD), tls=pki.server_context()) as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        ask(server.url, tls=TlsFiles(verify=False))
    assert len(server.asked) == 1


@all_of_them
def test_our_certificate_is_shown_to_a_server_that_asks(ask: Ask, pki: Pki) -> None:
    ca, cert, key = str(pki.ca), str(pki.client), str(pki.client.with_suffix(".key"))
    with ScriptedHost(always(GOOD), tls=pki.server_context(asks_client=True)) as server:
        ask(server.url, tls=TlsFiles(ca=ca, cert=cert))
        ask(server.url, tls=TlsFiles(ca=ca, cert=cert, key=key))
        with pytest.raises((TlsError, ConnectionLost)):
            ask(server.url, tls=TlsFiles(ca=ca))
    assert len(server.asked) == 2


@all_of_them
def test_a_file_of_tls_that_is_missing_or_not_one_is_named(ask: Ask, pki: Pki, tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    for tls, named in (
        (TlsFiles(ca="/no/such/file"), "no file '/no/such/file'"),
        (TlsFiles(ca=str(junk)), f"'{junk}' holds no certificate"),
        (TlsFiles(ca=str(pki.ca), cert=str(junk)), f"'{junk}' cannot be used"),
    ):
        with pytest.raises(TlsError, match=named):
            ask("https://localhost", tls=tls)


# how we get there


@all_of_them
def test_a_proxy_of_the_environment_is_used_unless_excepted(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ScriptedHost(always(GOOD)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", "other.invalid")
        ask("http://peer.invalid")
        with pytest.raises(ConnectError, match="the name of the host is not known"):
            ask("http://other.invalid")
    assert [asked.path.partition("/")[0] for asked in proxy.asked] == ["http:"]


@all_of_them
def test_a_proxy_of_the_environment_is_never_used_for_loopback(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:1")
    with ScriptedHost(always(GOOD)) as server:
        for name in ("127.0.0.1", "localhost"):
            ask(f"http://{name}:{server.port}")


@all_of_them
def test_a_proxy_that_refuses_is_named(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedHost(reply(407)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        with pytest.raises(ConnectError, match="the proxy does not let us through") as caught:
            ask("https://peer.invalid")
    assert "NO_PROXY" in (caught.value.hint or "")


@all_of_them
@pytest.mark.parametrize("proxy", ["gopher://x:1", "socks5://127.0.0.1:1", "http://"])
def test_a_proxy_that_cannot_be_used_is_an_error_of_ours(
    ask: Ask, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(OllamaopsError, match=r"proxy|address"):
        ask("http://peer.invalid")


@all_of_them
def test_what_is_sent_names_us_and_nobody_else(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password s3cret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with ScriptedHost(always(GOOD)) as server:
        ask(server.url)
    sent = server.asked[0].headers
    assert sent["User-Agent"].startswith("ollamaops/")
    assert sent["Accept-Encoding"] == "identity"
    assert not {"Authorization", "Cookie", "Origin"} & set(sent)


# how it fails


def cut_after(data: bytes, how: Callable[[Wire], None]) -> Script:
    def script(asked: Asked, wire: Wire) -> None:
        wire.send(data)
        how(wire)

    return script


@all_of_them
def test_nobody_there_is_a_connect_error(ask: Ask) -> None:
    with pytest.raises(ConnectError, match="connection refused") as caught:
        ask(f"http://127.0.0.1:{free_port()}")
    assert caught.value.transient


@all_of_them
@pytest.mark.parametrize("how", [Wire.close, Wire.reset])
def test_a_connection_that_ends_before_its_answer_is_lost(ask: Ask, how: Callable[[Wire], None]) -> None:
    with ScriptedHost(cut_after(b"", how)) as server, pytest.raises(ConnectionLost) as caught:
        ask(server.url)
    assert caught.value.host in server.url or caught.value.host == "peer"


@api_only
@pytest.mark.parametrize("how", [Wire.close, Wire.reset])
@pytest.mark.parametrize(
    "head",
    [b"Content-Length: 50\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n", b"Content-Le"],
    ids=["sized", "chunked", "half a head"],
)
def test_a_connection_that_ends_within_its_answer_is_lost(
    ask: Ask, head: bytes, how: Callable[[Wire], None]
) -> None:
    data = b"HTTP/1.1 200 OK\r\n" + head
    with ScriptedHost(cut_after(data, how)) as server, pytest.raises(ConnectionLost):
        ask(server.url)


@api_only
def test_an_answer_that_may_not_be_empty_but_is_was_cut(ask: Ask) -> None:
    with (
        ScriptedHost(cut_after(b"HTTP/1.1 200 OK\r\n\r\n", Wire.close)) as server,
        pytest.raises(ConnectionLost, match="the answer was cut short"),
    ):
        ask(server.url)


@all_of_them
def test_another_protocol_is_told_so(ask: Ask) -> None:
    with (
        ScriptedHost(cut_after(b"SSH-2.0-OpenSSH_9.2\r\n", Wire.close)) as server,
        pytest.raises(ProtocolError, match="the answer is not HTTP"),
    ):
        ask(server.url)


@all_of_them
def test_a_server_that_speaks_http_where_tls_was_meant_is_a_tls_error(ask: Ask) -> None:
    def answer_plainly() -> None:
        client = listener.accept()[0]
        client.recv(1)
        client.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n")
        client.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer_plainly)
        thread.start()
        with pytest.raises(TlsError, match="wrong version number"):
            ask(f"https://127.0.0.1:{listener.getsockname()[1]}")
        thread.join()


@all_of_them
def test_silence_ends_in_a_timeout(ask: Ask) -> None:
    with (
        ScriptedHost(silent) as server,
        pytest.raises(TimeoutExceeded, match=r"nothing moved for 0\.1s$") as caught,
    ):
        ask(server.url, timeout_s=0.1)
    assert caught.value.transient


@all_of_them
def test_a_connection_that_never_comes_is_not_silence(ask: Ask) -> None:
    with full_listener() as port, pytest.raises(ConnectError, match=r"no connection within 0\.1s"):
        ask(f"http://127.0.0.1:{port}", timeout_s=0.1)


@api_only
def test_a_compressed_answer_is_unpacked(ask: Ask) -> None:
    packed = gzip.compress(json.dumps(GOOD).encode())
    with ScriptedHost(reply(200, packed, Content_Encoding="gzip")) as server:
        ask(server.url)
    with (
        ScriptedHost(reply(200, b"{}", Content_Encoding="gzip")) as server,
        pytest.raises(ProtocolError, match="the answer cannot be unpacked"),
    ):
        ask(server.url)


@all_of_them
def test_the_body_of_a_redirect_is_not_read_to_its_end(ask: Ask) -> None:
    sent = threading.Event()

    def script(asked: Asked, wire: Wire) -> None:
        wire.head(302, Location="/elsewhere", Transfer_Encoding="chunked")
        try:
            while True:
                wire.chunk(b"x" * 60_000)
        finally:
            sent.set()

    with ScriptedHost(script) as server, pytest.raises(ProtocolError, match="redirect"):
        ask(server.url)
    assert sent.wait(PATIENCE_S)


@all_of_them
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidRequest),
        (401, AccessDenied),
        (403, AccessDenied),
        (404, NotFound),
        (408, ServerFault),
        (425, ServerFault),
        (429, TooManyRequests),
        (500, ServerFault),
        (503, ServerFault),
    ],
)
@pytest.mark.parametrize("wait", ["7", "date", "soon"])
def test_a_status_has_its_error_and_retry_after_is_handed_on(
    ask: Ask, status: int, kind: type[AnswerError], wait: str
) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=900), usegmt=True)
    header = later if wait == "date" else wait
    with (
        ScriptedHost(reply(status, b"{}", Retry_After=header)) as server,
        pytest.raises(AnswerError) as caught,
    ):
        ask(server.url)
    assert (type(caught.value), caught.value.status) == (kind, status)
    if wait == "date":
        assert 0 < (caught.value.retry_after_s or 0) <= 900
    else:
        assert caught.value.retry_after_s == {"7": 7.0, "soon": None}[wait]


@all_of_them
def test_a_secret_that_is_echoed_is_hidden(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy is the one place that every server may stand behind with a password of ours."""
    told = "you are ann with pass-word-1"
    script = reply(500, told.encode(), "text/plain", X_Error_Message=told)
    with ScriptedHost(script) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("//", "//ann:pass-word-1@"))
        with pytest.raises(ServerFault, match=r"with \*\*\*") as caught:
            ask("http://peer.invalid")
    assert "pass-word-1" not in f"{caught.value} {vars(caught.value)}"


# cancelling


def cancelled_while(ask: Ask, url: str, ready: Callable[[], object]) -> None:
    """Cancel from another thread as soon as `ready` returns, and see the question end."""
    token = CancelToken()
    caught: list[BaseException] = []

    def run() -> None:
        try:
            ask(url, cancel=token)
        except BaseException as error:  # noqa: BLE001  handed to the test's thread
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    ready()
    token.cancel()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert isinstance(caught[0], Cancelled), caught


@all_of_them
def test_cancelling_ends_the_wait_for_an_answer(ask: Ask) -> None:
    came = threading.Event()

    def script(asked: Asked, wire: Wire) -> None:
        came.set()
        silent(asked, wire)

    with ScriptedHost(script) as server:
        cancelled_while(ask, server.url, came.wait)


@all_of_them
def test_cancelling_ends_the_wait_within_an_answer(ask: Ask) -> None:
    came = threading.Event()

    def script(asked: Asked, wire: Wire) -> None:
        wire.begin()
        wire.chunk(b"{")
        came.set()
        silent(asked, wire)

    with ScriptedHost(script) as server:
        cancelled_while(ask, server.url, came.wait)


@all_of_them
def test_cancelling_ends_a_tls_handshake_that_nobody_answers(ask: Ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepted: list[socket.socket] = []

        def accept() -> None:
            accepted.append(listener.accept()[0])
            accepted[0].recv(1)

        cancelled_while(ask, f"https://127.0.0.1:{listener.getsockname()[1]}", accept)
        accepted[0].close()


@all_of_them
def test_a_token_that_is_set_already_sends_nothing(ask: Ask) -> None:
    token = CancelToken()
    token.cancel()
    with ScriptedHost(always(GOOD)) as server, pytest.raises(Cancelled):
        ask(server.url, cancel=token)
    assert server.asked == []
