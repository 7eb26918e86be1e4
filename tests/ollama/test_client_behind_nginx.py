"""A real reverse proxy before the host: TLS, passwords, tokens, limits and web pages of its own."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from scripted_host import HEX, Asked, ScriptedHost, Wire, always, reply, routes, streaming, tagged

from ollamaops.errors import (
    AccessDenied,
    InvalidRequest,
    NotFound,
    ProtocolError,
    RemoteError,
    ServerFault,
    TooManyRequests,
)
from ollamaops.http.session import Credentials, TlsFiles
from ollamaops.names import Digest, ModelName
from ollamaops.ollama.client import OllamaClient
from ollamaops.ollama.upload import upload_blob
from ollamaops.ollama.wire import Progress

NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
OPENSSL = shutil.which("openssl")
pytestmark = pytest.mark.skipif(
    not (NGINX and OPENSSL) and os.environ.get("CI") != "true",
    reason="needs the programs nginx and openssl",
)
BOT = ModelName.parse("bot")
CONFIG = """
user root;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  limit_req_zone $binary_remote_addr zone=few:1m rate=1r/m;
  limit_req_status 429;
  proxy_buffering off;
  proxy_request_buffering off;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {folder}/server.crt;
    ssl_certificate_key {folder}/server.key;
    client_max_body_size 0;
    location /basic/ {{
      auth_basic "ollama";
      auth_basic_user_file {folder}/htpasswd;
      proxy_pass {upstream}/;
    }}
    location /token/ {{
      if ($http_authorization != "Bearer t0ken") {{ return 401; }}
      proxy_pass {upstream}/;
    }}
    location /small/ {{ client_max_body_size 1k; proxy_pass {upstream}/; }}
    location /few/ {{ limit_req zone=few; proxy_pass {upstream}/; }}
    location /readonly/ {{ limit_except GET POST {{ deny all; }} proxy_pass {upstream}/; }}
    location /down/ {{ proxy_pass http://127.0.0.1:1/; }}
    location /slow/ {{ proxy_read_timeout 1s; proxy_pass {upstream}/; }}
    location /moved/ {{ return 308 https://elsewhere.example$request_uri; }}
  }}
}}
"""


def serve(asked: Asked, wire: Wire) -> None:
    """The Ollama behind it."""
    table = {
        "/api/tags": tagged("bot:latest"),
        "/api/pull": streaming({"status": "pulling manifest"}, {"status": "success"}),
        "/api/delete": reply(200),
        "/api/show": always({"error": "model 'bot' not found"}, 404),
        f"/api/blobs/{Digest.of(b'x' * 100_000)}": reply(404) if asked.method == "HEAD" else reply(201),
        "/api/ps": hang,
    }
    routes(table)(asked, wire)


def hang(asked: Asked, wire: Wire) -> None:
    wire.sock.settimeout(20)
    wire.sock.recv(1)
    wire.close()


class Proxy(NamedTuple):
    """A running nginx: its port, its authority, and the host behind it."""

    port: int
    ca: Path
    upstream: ScriptedHost

    def client(self, location: str, auth: Credentials | None = None) -> OllamaClient:
        url = f"https://127.0.0.1:{self.port}/{location}"
        return OllamaClient.connect(url, host_name="gpu-1", auth=auth, tls=TlsFiles(ca=str(self.ca)))


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    assert NGINX is not None, "nginx is missing"
    assert OPENSSL is not None, "openssl is missing"
    folder = tmp_path_factory.mktemp("nginx")
    command = [OPENSSL, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=nginx", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(folder / "server.key"), "-out", str(folder / "server.crt")]
    subprocess.run(command, check=True, capture_output=True)
    password = base64.b64encode(hashlib.sha1(b"p:w").digest()).decode()
    (folder / "htpasswd").write_text(f"ops:{{SHA}}{password}\n")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with ScriptedHost(serve) as upstream:
        config = folder / "nginx.conf"
        config.write_text(CONFIG.format(folder=folder, port=port, upstream=upstream.url))
        process = subprocess.Popen([NGINX, "-p", str(folder), "-c", str(config)], stderr=subprocess.PIPE)
        try:
            wait_for(port, process)
            yield Proxy(port, folder / "server.crt", upstream)
        finally:
            process.terminate()
            process.communicate()


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Until something listens at the port."""
    while True:
        assert process.poll() is None, process.communicate()[1]
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        threading.Event().wait(0.02)


def test_a_password_opens_the_way_and_its_absence_does_not(proxy: Proxy) -> None:
    with proxy.client("basic", Credentials(basic=("ops", "p:w"))) as client:
        assert [model.name for model in client.tags()] == ["bot:latest"]
    for auth in (None, Credentials(basic=("ops", "wrong"))):
        with proxy.client("basic", auth) as client, pytest.raises(AccessDenied) as caught:
            client.tags()
        assert str(caught.value) == (
            "gpu-1: list models: 401 Authorization Required (a web page, not from Ollama)"
        )
        assert "auth" in (caught.value.hint or "")


def test_a_token_opens_the_way(proxy: Proxy) -> None:
    with proxy.client("token", Credentials(bearer="t0ken")) as client:
        assert client.delete(BOT)
        asked = proxy.upstream.asked[-1]
        assert (asked.method, asked.json) == ("DELETE", {"model": "bot:latest"})
        seen: list[Progress] = []
        client.pull(BOT, on_progress=seen.append)
        assert [progress.status for progress in seen] == ["pulling manifest", "success"]
        with pytest.raises(NotFound):
            client.show(BOT)
    with proxy.client("token") as client, pytest.raises(AccessDenied):
        client.pull(BOT)


def test_an_upload_goes_through_or_is_told_who_limits_it(proxy: Proxy, tmp_path: Path) -> None:
    path = tmp_path / "w.gguf"
    path.write_bytes(b"x" * 100_000)
    digest = Digest.of(b"x" * 100_000)
    with proxy.client("token", Credentials(bearer="t0ken")) as client:
        assert upload_blob(client, digest, path, 100_000)
        assert proxy.upstream.asked[-1].body == b"x" * 100_000
    with proxy.client("small") as client, pytest.raises(InvalidRequest) as caught:
        upload_blob(client, digest, path, 100_000)
    assert "413 Request Entity Too Large" in str(caught.value)
    assert "client_max_body_size" in (caught.value.hint or "")


def test_a_proxy_that_lets_no_delete_through_is_told(proxy: Proxy) -> None:
    with proxy.client("readonly") as client:
        assert client.tags()
        with pytest.raises(AccessDenied):
            client.delete(BOT)


@pytest.mark.parametrize(
    ("location", "title"), [("down", "502 Bad Gateway"), ("slow", "504 Gateway Time-out")]
)
def test_a_host_that_is_down_behind_its_proxy_may_come_back(proxy: Proxy, location: str, title: str) -> None:
    with proxy.client(location) as client, pytest.raises(ServerFault) as caught:
        client.ps()
    assert str(caught.value) == f"gpu-1: list loaded models: {title} (a web page, not from Ollama)"
    assert caught.value.transient


def test_too_many_requests_may_be_tried_later(proxy: Proxy) -> None:
    with proxy.client("few") as client:
        client.tags()
        with pytest.raises(TooManyRequests) as caught:
            client.tags()
    assert caught.value.transient


def test_a_redirect_and_a_wrong_path_are_no_answers(proxy: Proxy) -> None:
    for location in ("moved", "nowhere"):
        with proxy.client(location) as client:
            for act in (client.tags, lambda: client.delete(BOT), lambda: client.has_blob(Digest.parse(HEX))):
                with pytest.raises((ProtocolError, InvalidRequest)) as caught:
                    act()
                assert not caught.value.transient


def test_every_message_names_the_host_and_no_secret(proxy: Proxy) -> None:
    with (
        proxy.client("basic", Credentials(basic=("ops", "s3cret"))) as client,
        pytest.raises(RemoteError) as caught,
    ):
        client.tags()
    assert caught.value.host == "gpu-1"
    assert "s3cret" not in str(caught.value) + repr(caught.value) + (caught.value.hint or "")
