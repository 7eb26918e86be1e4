"""What the registry client promises, against a real docker-registry and against servers that misbehave."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from patience import PATIENCE_S
from registry_fixture import (
    Certificate,
    Reply,
    Request,
    RunningRegistry,
    make_certificate,
    push_model,
    run_basic_auth_proxy,
    run_registry,
    run_server,
)

from ollamaops.errors import (
    AccessDenied,
    AnswerError,
    ConnectError,
    ConnectionLost,
    DigestMismatch,
    InvalidRequest,
    NotFound,
    ProtocolError,
    RemoteError,
    ServerFault,
    TimeoutExceeded,
    TlsError,
    TooManyRequests,
)
from ollamaops.http.session import TlsFiles
from ollamaops.names import Digest, ModelName
from ollamaops.registry.challenge import Challenge, parse_challenges, token_url
from ollamaops.registry.client import RegistryClient
from ollamaops.registry.documents import (
    LIST_TYPE,
    MANIFEST_TYPE,
    OCI_INDEX_TYPE,
    OCI_MANIFEST_TYPE,
    ManifestList,
    RegistryManifest,
)

WEIGHTS = b"GGUF pretend weights"
TEMPLATE = b"{{ .Prompt }}"
MARIO = "team/mario:v1"
TINY = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": "c", "digest": f"sha256:{'0' * 64}", "size": 1},
        "layers": [],
    }
).encode()


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[RunningRegistry]:
    with run_registry(tmp_path / "registry", redirect=False) as running:
        yield running


@pytest.fixture
def redirecting(tmp_path: Path) -> Iterator[RunningRegistry]:
    with run_registry(tmp_path / "redirecting", redirect=True) as running:
        yield running


@pytest.fixture
def client() -> Iterator[RegistryClient]:
    with RegistryClient(timeout_s=PATIENCE_S) as made:
        yield made


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


def push_mario(registry: RunningRegistry) -> bytes:
    return push_model(registry, MARIO, [("model", WEIGHTS), ("template", TEMPLATE)], config=b'{"a":1}')


def a_name(host: str) -> ModelName:
    return ModelName.parse(f"{host}/{MARIO}")


def always(reply: Reply) -> Callable[[Request], Reply]:
    return lambda _request: reply


def failure_of(
    answer: Callable[[Request], Reply],
    ask: Callable[[RegistryClient, ModelName], object] = RegistryClient.manifest,
    *,
    timeout_s: float = PATIENCE_S,
) -> RemoteError:
    """The error of a question (for the manifest, unless `ask` says what) to a server that answers like this."""
    with (
        run_server(answer) as server,
        RegistryClient(endpoints={server.host: server.url}, timeout_s=timeout_s) as client,
        pytest.raises(RemoteError) as caught,
    ):
        ask(client, a_name(server.host))
    assert caught.value.host == server.host
    return caught.value


# A real registry


@pytest.mark.registry
def test_a_manifest_is_fetched_as_it_was_pushed(registry: RunningRegistry, client: RegistryClient) -> None:
    raw = push_mario(registry)
    fetched = client.manifest(registry.name(MARIO), insecure=True)
    assert fetched.raw == raw
    assert fetched.digest == Digest.of(raw)
    assert isinstance(fetched.document, RegistryManifest)
    assert [layer.kind for layer in fetched.document.layers] == ["weights", "template"]
    assert fetched.blobs == {Digest.of(WEIGHTS): 20, Digest.of(TEMPLATE): 13, Digest.of(b'{"a":1}'): 7}


@pytest.mark.registry
def test_an_endpoint_stands_in_for_a_registry_of_any_name(registry: RunningRegistry) -> None:
    raw = push_model(registry, "library/llama3.2:3b", [("model", WEIGHTS)])
    with RegistryClient(endpoints={"Registry.Ollama.AI": f"{registry.url}/"}) as client:
        assert client.manifest(ModelName.parse("llama3.2:3b")).raw == raw


@pytest.mark.registry
@pytest.mark.parametrize("path", ["team/mario:v2", "team/luigi:v1"])
def test_a_model_that_is_not_there_is_not_found(
    registry: RunningRegistry, client: RegistryClient, path: str
) -> None:
    push_mario(registry)
    with pytest.raises(NotFound) as caught:
        client.manifest(registry.name(path), insecure=True)
    assert caught.value.host == registry.host
    assert caught.value.status == 404
    name = f"{registry.host}/{path}"
    assert str(caught.value).startswith(f"{registry.host}: manifest of {name}: status 404, manifest unknown")


@pytest.mark.registry
def test_a_manifest_of_another_media_type_is_found_too(
    registry: RunningRegistry, client: RegistryClient
) -> None:
    config, layer = registry.put_blob("team/oci", b"{}"), registry.put_blob("team/oci", WEIGHTS)
    tree = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST_TYPE,
        "config": {"mediaType": "application/x-mine", "digest": str(config), "size": 2},
        "layers": [{"mediaType": "application/x-mine", "digest": str(layer), "size": len(WEIGHTS)}],
    }
    raw = json.dumps(tree, indent=3).encode()
    registry.put_manifest("team/oci", "v1", raw, OCI_MANIFEST_TYPE)
    fetched = client.manifest(registry.name("team/oci:v1"), insecure=True)
    assert fetched.raw == raw
    assert isinstance(fetched.document, RegistryManifest)
    assert fetched.document.media_type == OCI_MANIFEST_TYPE


@pytest.mark.registry
@pytest.mark.parametrize("media_type", [LIST_TYPE, OCI_INDEX_TYPE])
def test_a_child_of_a_list_is_fetched_by_its_digest(
    registry: RunningRegistry, client: RegistryClient, media_type: str
) -> None:
    child = push_mario(registry)
    descriptor = {
        "mediaType": MANIFEST_TYPE,
        "digest": str(Digest.of(child)),
        "size": len(child),
        "platform": {"os": "llamacpp", "architecture": "any"},
    }
    tree = {"schemaVersion": 2, "mediaType": media_type, "manifests": [descriptor]}
    registry.put_manifest("team/mario", "list", json.dumps(tree).encode(), media_type)
    name = registry.name("team/mario:list")
    fetched = client.manifest(name, insecure=True)
    assert isinstance(fetched.document, ManifestList)
    assert fetched.document.children[0].name == "llamacpp/any"
    assert fetched.blobs == {}
    assert client.manifest(name, insecure=True, child=fetched.document.children[0].digest).raw == child


def test_a_list_is_asked_for_only_after_what_ollama_itself_asks_for() -> None:
    def answer(request: Request) -> Reply:
        return Reply(200 if LIST_TYPE in request.headers["accept"] else 404, body=TINY)

    with run_server(answer) as server, RegistryClient() as client:
        client.manifest(a_name(server.host), insecure=True)
        assert [request.headers["accept"] == MANIFEST_TYPE for request in server.requests] == [True, False]


@pytest.mark.registry
@pytest.mark.parametrize("redirect", [False, True])
def test_blobs_are_found_and_read_with_and_without_redirect(
    tmp_path: Path, client: RegistryClient, redirect: bool
) -> None:
    with run_registry(tmp_path, redirect=redirect) as registry:
        push_mario(registry)
        name = registry.name(MARIO)
        assert client.blob(name, Digest.of(TEMPLATE), 13, insecure=True) == TEMPLATE
        assert client.blob_exists(name, Digest.of(WEIGHTS), insecure=True)
        assert not client.blob_exists(name, Digest.of(b"other"), insecure=True)
        with pytest.raises(
            NotFound, match=r"blob .* of .*/team/mario:v1: status 404, blob unknown to registry$"
        ):
            client.blob(name, Digest.of(b"other"), 13, insecure=True)


@pytest.mark.registry
def test_a_blob_changed_in_the_store_is_a_digest_mismatch(
    redirecting: RunningRegistry, client: RegistryClient
) -> None:
    push_mario(redirecting)
    redirecting.stored_blob(Digest.of(TEMPLATE)).write_bytes(b"{{ .Hacked }}")
    with pytest.raises(DigestMismatch, match=str(Digest.of(TEMPLATE))) as caught:
        client.blob(redirecting.name(MARIO), Digest.of(TEMPLATE), 1000, insecure=True)
    assert caught.value.hint is not None


@pytest.mark.registry
def test_a_manifest_changed_in_the_store_is_never_returned(
    registry: RunningRegistry, client: RegistryClient
) -> None:
    raw = push_mario(registry)
    registry.stored_blob(Digest.of(raw)).write_bytes(raw.replace(b'"size":13', b'"size":14'))
    with pytest.raises(RemoteError, match=f"^{registry.host}: manifest of "):
        client.manifest(registry.name(MARIO), insecure=True)


@pytest.mark.registry
def test_a_large_blob_is_refused_after_the_allowed_bytes(
    registry: RunningRegistry, client: RegistryClient
) -> None:
    push_mario(registry)
    with pytest.raises(ProtocolError, match="longer than 12 bytes"):
        client.blob(registry.name(MARIO), Digest.of(TEMPLATE), 12, insecure=True)


# Who may ask


@pytest.mark.registry
def test_a_registry_behind_basic_auth_denies_access(tmp_path: Path, registry: RunningRegistry) -> None:
    with (
        run_basic_auth_proxy(tmp_path / "nginx", registry, "ops", "hunter2") as host,
        RegistryClient() as client,
        pytest.raises(AccessDenied) as caught,
    ):
        client.manifest(a_name(host), insecure=True)
    assert caught.value.status == 401
    assert str(caught.value) == f"{host}: manifest of {host}/team/mario:v1: status 401"


class TokenService:
    """Hands out tokens that a real docker-registry accepts, to anyone."""

    def __init__(self, certificate: Certificate) -> None:
        self._certificate = certificate

    def __call__(self, request: Request) -> Reply:
        query = parse_qs(urlsplit(request.path).query)
        kind, name, actions = query["scope"][0].split(":")
        now = int(time.time())
        claims = {
            "iss": "test",
            "sub": "",
            "aud": query["service"][0],
            "exp": now + 300,
            "nbf": now - 10,
            "iat": now - 10,
            "access": [{"type": kind, "name": name, "actions": actions.split(",")}],
        }
        return Reply(body=json.dumps({"access_token": self._sign(claims)}).encode())

    def registry_auth(self, url: str) -> dict[str, object]:
        """The `auth` section of a registry that trusts this service, which is reached at `url`."""
        bundle = str(self._certificate.certificate)
        section = {"realm": f"{url}/token", "service": "models", "issuer": "test", "rootcertbundle": bundle}
        return {"token": section}

    def _sign(self, claims: object) -> str:
        lines = self._certificate.certificate.read_text().splitlines()
        header = {"typ": "JWT", "alg": "RS256", "x5c": ["".join(lines[1:-1])]}
        signed = ".".join(_base64(json.dumps(part).encode()) for part in (header, claims))
        return f"{signed}.{_base64(self._certificate.sign(signed.encode()))}"


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@pytest.mark.registry
def test_a_registry_with_anonymous_tokens_is_asked_with_one_and_remembers_it(
    tmp_path: Path, certificate: Certificate
) -> None:
    with run_registry(tmp_path, redirect=False) as registry:
        raw = push_mario(registry)
    service = TokenService(certificate)
    with (
        run_server(service) as tokens,
        run_registry(tmp_path, redirect=False, auth=service.registry_auth(tokens.url)) as registry,
        RegistryClient(endpoints={registry.host: registry.url}) as client,
    ):
        assert client.manifest(registry.name(MARIO)).raw == raw
        assert client.blob(registry.name(MARIO), Digest.of(TEMPLATE), 100) == TEMPLATE
        asked = [parse_qs(urlsplit(request.path).query) for request in tokens.requests]
    assert asked == [{"service": ["models"], "scope": ["repository:team/mario:pull"]}]


def test_a_token_that_has_expired_is_replaced_once() -> None:
    tokens = iter(["one", "two"])
    valid = "one"

    def answer(request: Request) -> Reply:
        if request.path.startswith("/token"):
            return Reply(body=json.dumps({"token": next(tokens)}).encode())
        if request.headers.get("authorization") == f"Bearer {valid}":
            return Reply(body=TINY)
        return Reply(401, {"WWW-Authenticate": f'Bearer realm="http://{request.headers["host"]}/token"'})

    with run_server(answer) as server, RegistryClient(endpoints={server.host: server.url}) as client:
        client.manifest(a_name(server.host))
        valid = "two"
        client.manifest(a_name(server.host))
        sent = [request.headers.get("authorization") for request in server.requests]
    assert sent == [None, None, "Bearer one", "Bearer one", None, "Bearer two"]


def with_token(answer: Callable[[Request], Reply]) -> Callable[[Request], Reply]:
    """A registry that hands out the token `mine`, and answers like this to who has it."""

    def ask_first(request: Request) -> Reply:
        if request.path.startswith("/token"):
            return Reply(body=b'{"token":"mine"}')
        if request.headers.get("authorization") == "Bearer mine":
            return answer(request)
        return Reply(401, {"WWW-Authenticate": f'Bearer realm="http://{request.headers["host"]}/token"'})

    return ask_first


def test_a_token_goes_to_its_registry_only() -> None:
    with run_server(always(Reply(body=TEMPLATE))) as store:
        moved = Reply(307, {"Location": f"http://localhost:{store.port}/blob"})
        with run_server(with_token(always(moved))) as server, RegistryClient() as client:
            assert client.blob(a_name(server.host), Digest.of(TEMPLATE), 99, insecure=True) == TEMPLATE
            assert server.requests[-1].headers["authorization"] == "Bearer mine"
        assert "authorization" not in store.requests[0].headers


def test_a_redirect_within_the_registry_keeps_its_token() -> None:
    def answer(request: Request) -> Reply:
        return Reply(body=TINY) if request.path == "/here" else Reply(301, {"Location": "/here"})

    with run_server(with_token(answer)) as server:
        with RegistryClient() as client:
            client.manifest(a_name(server.host), insecure=True)
        sent = [request.headers.get("authorization") for request in server.requests]
    assert sent == [None, None, "Bearer mine", "Bearer mine"]


def test_a_401_of_another_host_is_not_answered_with_a_token() -> None:
    denied = Reply(401, {"WWW-Authenticate": 'Bearer realm="http://127.0.0.1:9/token"'})
    with (
        run_server(always(denied)) as other,
        run_server(always(Reply(302, {"Location": f"{other.url}/x"}))) as server,
    ):
        with RegistryClient() as client, pytest.raises(AccessDenied):
            client.manifest(a_name(server.host), insecure=True)
        assert len(other.requests) == 1


def test_a_challenge_that_we_cannot_meet_is_access_denied() -> None:
    assert isinstance(failure_of(always(Reply(401, {"WWW-Authenticate": "Negotiate"}))), AccessDenied)


def test_netrc_is_not_read_and_cookies_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login ops password hunter2\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with run_server(always(Reply(headers={"Set-Cookie": "a=b"}, body=TINY))) as server:
        with RegistryClient(endpoints={server.host: server.url}) as client:
            client.manifest(a_name(server.host))
            client.manifest(a_name(server.host))
        seen = {name for request in server.requests for name in request.headers}
    assert not {"authorization", "cookie"} & seen


@pytest.mark.parametrize(
    "realm, message",
    [
        ("ftp://127.0.0.1/token", "asks for a token from no valid address"),
        ("http://[::1/token", "asks for a token from no valid address"),
        ("", "asks for a token from no valid address"),
        ("{url}/no-json", "the answer holds no token"),
        ("{url}/no-token", "the answer holds no token"),
        ("{url}/list", "the answer holds no token"),
        ("{url}/odd", "the answer holds no token"),
        ("{url}/broken", "status 500, out of order"),
    ],
)
def test_a_token_service_that_gives_no_token_is_named(realm: str, message: str) -> None:
    bodies = {"/no-json": b"<html>", "/no-token": b"{}", "/list": b"[]", "/odd": b'{"token":"a\\nb"}'}

    def answer(request: Request) -> Reply:
        path = urlsplit(request.path).path
        if path == "/broken":
            return Reply(500, body=b"out of\norder")
        if path in bodies:
            return Reply(body=bodies[path])
        address = realm.format(url=f"http://{request.headers['host']}")
        return Reply(401, {"WWW-Authenticate": f'Bearer realm="{address}"'})

    assert str(failure_of(answer)).endswith(message)


# Registries that misbehave


@pytest.mark.parametrize(
    "status, kind, transient",
    [
        (304, InvalidRequest, False),
        (400, InvalidRequest, False),
        (401, AccessDenied, False),
        (403, AccessDenied, False),
        (404, NotFound, False),
        (412, InvalidRequest, False),
        (429, TooManyRequests, True),
        (500, ServerFault, True),
        (503, ServerFault, True),
    ],
)
def test_every_status_has_its_error(status: int, kind: type[AnswerError], transient: bool) -> None:
    body = b"" if status == 304 else b'{"errors":[{"code":"X","message":"first"},{"message":"second"}]}'
    error = failure_of(always(Reply(status, {"Retry-After": "7"}, body)))
    assert type(error) is kind
    assert (error.status, error.retry_after_s, error.transient) == (status, 7.0, transient)
    text = ", first, second" if body else ""
    assert str(error) == f"{error.host}: manifest of {error.host}/team/mario:v1: status {status}{text}"


def retry_after_s(header: str) -> float | None:
    error = failure_of(always(Reply(429, {"Retry-After": header})))
    assert isinstance(error, TooManyRequests)
    return error.retry_after_s


@pytest.mark.parametrize("status", [401, 403])
def test_the_hint_of_a_registry_that_wants_a_login_can_be_followed(status: int) -> None:
    hint = failure_of(always(Reply(status))).hint
    assert hint is not None
    assert "ollamaops has no login for registries" in hint
    assert "plan and apply ask none with --no-registry, and hosts pull with their own key" in hint


def test_a_retry_after_that_is_a_date_becomes_seconds_from_now() -> None:
    later = datetime.now(UTC) + timedelta(seconds=90)
    assert retry_after_s(format_datetime(later, usegmt=True)) == pytest.approx(90, abs=20)


def test_a_retry_after_in_the_past_is_no_wait() -> None:
    assert retry_after_s("Sun, 06 Nov 1994 08:49:37 GMT") == 0.0


@pytest.mark.parametrize("header", ["soon", "", "-3", "²"])
def test_a_retry_after_that_cannot_be_read_is_none(header: str) -> None:
    assert retry_after_s(header) is None


@pytest.mark.parametrize(
    "body, text",
    [
        (b"<html><h1>502</h1></html>", ""),
        (b"upstream\n gone", ", upstream gone"),
        (b'{"errors":"odd"}', ', {"errors":"odd"}'),
        (b"x" * 100_000, ", " + "x" * 255 + "…"),
    ],
)
def test_the_words_of_an_error_are_one_cut_line_and_never_html(body: bytes, text: str) -> None:
    assert str(failure_of(always(Reply(502, body=body)))).endswith(f": status 502{text}")


@pytest.mark.parametrize(
    "reply, kind, message",
    [
        (Reply(body=b"<html>login</html>"), ProtocolError, "not a registry manifest: it is not JSON"),
        (
            Reply(headers={"Docker-Content-Digest": "sha256:" + "1" * 64}, body=TINY),
            DigestMismatch,
            f"the bytes have the digest {Digest.of(TINY)}, not sha256:1111",
        ),
        (
            Reply(headers={"Docker-Content-Digest": "sha256:none"}, body=TINY),
            ProtocolError,
            "Docker-Content-Digest is not a digest",
        ),
        (Reply(body=b" " * (4 * 1024 * 1024 + 1)), ProtocolError, "longer than 4194304 bytes"),
        (Reply(body=TINY, cut_at=10), ConnectionLost, "the answer was cut short"),
        (Reply(302), ProtocolError, "a redirect (status 302) without a place to go"),
        (Reply(302, {"Location": "ftp://127.0.0.1/"}), ProtocolError, "without a place to go"),
        (Reply(302, {"Location": "http://[::1/"}), ProtocolError, "without a place to go"),
        (Reply(302, {"Location": "/again"}), ProtocolError, "more than 5 redirects"),
        (Reply(headers={"Content-Encoding": "gzip"}, body=TINY), ProtocolError, "cannot be unpacked"),
        (Reply(302, {"Location": "/x"}, body=b"x" * 100, cut_at=1), ProtocolError, "more than 5 redirects"),
    ],
)
def test_an_answer_that_no_registry_should_give_is_refused(
    reply: Reply, kind: type[RemoteError], message: str
) -> None:
    error = failure_of(always(reply))
    assert type(error) is kind
    assert str(error).startswith(f"{error.host}: manifest of {error.host}/team/mario:v1: ")
    assert message in str(error)


@pytest.mark.parametrize(
    "ask, given_up",
    [
        (RegistryClient.manifest, "not done within 0.5s"),
        (lambda client, name: client.blob(name, Digest.of(b""), 4000), "not done within 2.5s"),
    ],
    ids=["manifest: twice the timeout", "blob: ten times the timeout"],
)
def test_an_answer_that_trickles_is_given_up(
    ask: Callable[[RegistryClient, ModelName], object], given_up: str
) -> None:
    def drip(_request: Request) -> Reply:
        return Reply(body=b" " * 4000, pause_s=0.005)

    error = failure_of(drip, ask, timeout_s=0.25)
    assert str(error).endswith(f": {given_up}")
    assert isinstance(error, TimeoutExceeded)


def test_a_token_that_trickles_is_given_up_like_a_manifest() -> None:
    def answer(request: Request) -> Reply:
        if request.path.startswith("/token"):
            return Reply(body=b" " * 4000, pause_s=0.005)
        realm = f"http://{request.headers['host']}/token"
        return Reply(401, {"WWW-Authenticate": f'Bearer realm="{realm}"'})

    assert str(failure_of(answer, timeout_s=0.25)).endswith(": not done within 0.5s")


def test_a_closed_client_asks_nothing() -> None:
    with run_server(always(Reply(body=TINY))) as server:
        client = RegistryClient(endpoints={server.host: server.url})
        client.close()
        with pytest.raises(ConnectionLost, match="not sent"):
            client.manifest(a_name(server.host))
        assert server.requests == []


def test_a_digest_header_of_another_algorithm_is_ignored() -> None:
    reply = Reply(headers={"Docker-Content-Digest": "sha512:abc"}, body=TINY)
    with run_server(always(reply)) as server, RegistryClient() as client:
        assert client.manifest(a_name(server.host), insecure=True).raw == TINY


def test_a_child_that_is_not_what_was_asked_for_is_a_digest_mismatch() -> None:
    error = failure_of(
        always(Reply(body=TINY)), lambda client, name: client.manifest(name, child=Digest.of(b"other"))
    )
    assert isinstance(error, DigestMismatch)


def test_a_redirect_from_https_to_http_is_not_followed(certificate: Certificate) -> None:
    with run_server(always(Reply(body=TINY))) as plain:
        moved = Reply(307, {"Location": plain.url})
        with (
            run_server(always(moved), tls=certificate.server_context) as server,
            RegistryClient(tls=TlsFiles(ca=str(certificate.certificate))) as client,
            pytest.raises(ProtocolError, match=r"a redirect from https to http on 127\.0\.0\.1$"),
        ):
            client.manifest(a_name(server.host))
        assert plain.requests == []


def test_a_certificate_that_nobody_vouches_for_is_a_tls_error(certificate: Certificate) -> None:
    with run_server(always(Reply(body=TINY)), tls=certificate.server_context) as server:
        with RegistryClient() as client, pytest.raises(TlsError, match="certificate") as caught:
            client.manifest(a_name(server.host))
        assert caught.value.hint == "name the file with the authority that signed it in SSL_CERT_FILE"
        with RegistryClient(tls=TlsFiles(verify=False)) as client:
            assert client.manifest(a_name(server.host)).raw == TINY


def test_a_registry_that_speaks_http_where_https_was_meant_is_a_tls_error_and_the_hint_is_insecure() -> None:
    with (
        run_server(always(Reply())) as server,
        RegistryClient() as client,
        pytest.raises(TlsError, match=r"no TLS connection: ") as caught,
    ):
        client.manifest(a_name(server.host))
    assert caught.value.hint == "if the registry speaks plain http, say insecure: true with the model"


def test_a_port_where_nobody_listens_is_a_connect_error() -> None:
    with run_server(always(Reply())) as server:
        name = a_name(server.host)
    with RegistryClient() as client, pytest.raises(ConnectError, match="connection refused") as caught:
        client.manifest(name, insecure=True)
    assert caught.value.transient


def test_a_name_that_does_not_exist_is_a_connect_error() -> None:
    name = ModelName.parse("nowhere.invalid/team/mario:v1")
    with RegistryClient() as client, pytest.raises(ConnectError, match="the name of the host is not known"):
        client.manifest(name, insecure=True)


def test_a_proxy_that_is_not_there_is_a_connect_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with run_server(always(Reply())) as server:
        pass
    for variable, value in {"http_proxy": server.url, "no_proxy": ""}.items():
        monkeypatch.setenv(variable, value)
        monkeypatch.setenv(variable.upper(), value)
    name = ModelName.parse("models.invalid/team/mario:v1")
    with RegistryClient() as client, pytest.raises(ConnectError, match="the proxy does not let us through"):
        client.manifest(name, insecure=True)


def test_a_registry_that_says_nothing_is_given_up_after_the_timeout() -> None:
    done = threading.Event()

    def answer(_request: Request) -> Reply:
        done.wait(PATIENCE_S)
        return Reply()

    error = failure_of(answer, timeout_s=0.1)
    done.set()
    assert isinstance(error, TimeoutExceeded)
    assert str(error).endswith(": nothing moved for 0.1s")


def test_a_redirect_to_a_store_that_refuses_head_means_that_the_blob_exists() -> None:
    with (
        run_server(always(Reply(403))) as store,
        run_server(always(Reply(307, {"Location": f"{store.url}/blob"}))) as server,
        RegistryClient() as client,
    ):
        assert client.blob_exists(a_name(server.host), Digest.of(b""), insecure=True)


def test_a_refused_question_about_a_blob_is_not_taken_for_its_absence() -> None:
    error = failure_of(always(Reply(403)), lambda client, name: client.blob_exists(name, Digest.of(b"")))
    assert isinstance(error, AccessDenied)


# Challenges, without a wire


@pytest.mark.parametrize(
    "header, expected",
    [
        ("", ()),
        ("Basic", (Challenge("basic", {}),)),
        (
            'Bearer realm="https://a/t",service="s",scope="repository:a/b:pull,push"',
            (
                Challenge(
                    "bearer", {"realm": "https://a/t", "service": "s", "scope": "repository:a/b:pull,push"}
                ),
            ),
        ),
        (
            'BASIC realm="a \\"b\\"" , Bearer Realm=x, service = y',
            (Challenge("basic", {"realm": 'a "b"'}), Challenge("bearer", {"realm": "x", "service": "y"})),
        ),
        ('Basic realm=""', (Challenge("basic", {"realm": ""}),)),
        ("Negotiate, Basic realm=x", (Challenge("negotiate", {}), Challenge("basic", {"realm": "x"}))),
        ('realm="x"', ()),
        ('Basic realm="open', (Challenge("basic", {}), Challenge("realm", {}))),
        ('Basic a=b "rest"', (Challenge("basic", {"a": "b"}),)),
    ],
)
def test_a_challenge_is_read_as_rfc_9110_writes_it(header: str, expected: tuple[Challenge, ...]) -> None:
    assert parse_challenges(header) == expected


@pytest.mark.parametrize(
    "parameters, expected",
    [
        ({"realm": "https://a/t"}, "https://a/t?scope=mine"),
        ({"realm": "https://u:p@a:8/t?x=#f", "service": "a b"}, "https://a:8/t?x=&service=a+b&scope=mine"),
        ({"realm": "http://a", "scope": "one two"}, "http://a?scope=one&scope=two"),
        ({"realm": "https:///t"}, None),
        ({"realm": "https://a:0/"}, None),
        ({"realm": "https://a:x/"}, None),
        ({}, None),
    ],
)
def test_a_token_is_asked_for_where_the_realm_says(parameters: dict[str, str], expected: str | None) -> None:
    assert token_url(Challenge("bearer", parameters), default_scope="mine") == expected


def test_questions_of_several_threads_share_connections_and_do_not_mix() -> None:
    wanted = [f"blob {number}".encode() for number in range(40)]
    blobs = {str(Digest.of(data)): data for data in wanted}
    with (
        run_server(lambda request: Reply(body=blobs[request.path.rpartition("/")[2]])) as server,
        RegistryClient(endpoints={server.host: server.url}) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        name = a_name(server.host)
        read = list(pool.map(lambda data: client.blob(name, Digest.of(data), 100), wanted))
        peers = {request.peer for request in server.requests}
    assert read == wanted
    assert len(peers) <= 4
