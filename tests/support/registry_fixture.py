"""Registries on loopback for tests: docker-registry, with and without redirect, and what stands before it.

Each `run_…` is a context manager that starts a program or a server on a free port and stops it. A program that is
not installed skips the test, or fails it where the environment says CI=true: there it must be installed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO

import pytest
import requests
from patience import PATIENCE_S

from ollamaops.names import Digest, ModelName

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"

_IN_CI = os.environ.get("CI", "").lower() == "true"  # read now: conftest.py removes it from every test


def program(name: str) -> str:
    """The path of a program; without it the test is skipped, or fails in CI."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/bin:/sbin")
    if path is None and _IN_CI:
        pytest.fail(f"{name} is not installed, and in CI it must be")
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


@dataclass(frozen=True)
class RunningRegistry:
    """A registry. `host` is what model names carry (`localhost:41234`), `url` its base URL, `port` its port."""

    host: str
    url: str
    port: int
    folder: Path

    def name(self, path: str) -> ModelName:
        """The model name of `team/mario:v1` on this registry."""
        return ModelName.parse(f"{self.host}/{path}")

    def put_blob(self, repository: str, data: bytes) -> Digest:
        """Store a blob through the v2 API."""
        digest = Digest.of(data)
        started = requests.post(f"{self.url}/v2/{repository}/blobs/uploads/", timeout=PATIENCE_S)
        started.raise_for_status()
        ended = requests.put(
            started.headers["Location"],
            params={"digest": str(digest)},
            data=data,
            headers={"Content-Type": "application/octet-stream"},
            timeout=PATIENCE_S,
        )
        ended.raise_for_status()
        return digest

    def put_manifest(self, repository: str, tag: str, raw: bytes, media_type: str = MANIFEST_TYPE) -> Digest:
        """Store a manifest, whose blobs must be there, under a tag."""
        url = f"{self.url}/v2/{repository}/manifests/{tag}"
        answer = requests.put(url, data=raw, headers={"Content-Type": media_type}, timeout=PATIENCE_S)
        answer.raise_for_status()
        return Digest.of(raw)

    def stored_blob(self, digest: Digest) -> Path:
        """The file that holds a blob (or a manifest), for tests that tamper with it."""
        blobs = self.folder / "data" / "docker" / "registry" / "v2" / "blobs"
        return blobs / "sha256" / digest.hex[:2] / digest.hex / "data"


def push_model(
    registry: RunningRegistry, path: str, layers: list[tuple[str, bytes]], *, config: bytes = b"{}"
) -> bytes:
    """Push a model of (`model`, weights), (`template`, text) … as Ollama would; the manifest's bytes."""
    repository, _, tag = path.partition(":")
    tree = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "digest": str(registry.put_blob(repository, config)),
            "size": len(config),
        },
        "layers": [
            {
                "mediaType": f"application/vnd.ollama.image.{kind}",
                "digest": str(registry.put_blob(repository, data)),
                "size": len(data),
            }
            for kind, data in layers
        ],
    }
    raw = json.dumps(tree, separators=(",", ":")).encode()
    registry.put_manifest(repository, tag, raw)
    return raw


@contextmanager
def run_registry(
    folder: Path, *, redirect: bool, auth: Mapping[str, object] | None = None
) -> Iterator[RunningRegistry]:
    """docker-registry with its data below `folder`, called `localhost:PORT`.

    With `redirect` blobs are answered by a redirect to 127.0.0.1 on another port: a different host name, without
    which Ollama cannot pull. `auth` is the section of that name of the registry's configuration.
    """
    command = program("docker-registry")
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    if not redirect:
        with _run_docker_registry(command, folder, _configuration(data, None, auth)) as registry:
            yield registry
        return
    with run_server(partial(_answer_file, data)) as store:
        configuration = _configuration(data, f"{store.url}/", auth)
        with _run_docker_registry(command, folder, configuration) as registry:
            yield registry


def _configuration(data: Path, store_url: str | None, auth: Mapping[str, object] | None) -> dict[str, object]:
    tree: dict[str, object] = {
        "version": "0.1",
        "log": {"level": "info", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(data)}, "delete": {"enabled": True}},
        "http": {"addr": "127.0.0.1:0", "secret": "of this test only"},
    }
    if store_url:
        tree["middleware"] = {"storage": [{"name": "redirect", "options": {"baseurl": store_url}}]}
    if auth:
        tree["auth"] = auth
    return tree


@contextmanager
def _run_docker_registry(command: str, folder: Path, tree: Mapping[str, object]) -> Iterator[RunningRegistry]:
    configuration = folder / "registry.yml"
    configuration.write_text(json.dumps(tree))  # JSON is YAML
    process = subprocess.Popen(
        [command, "serve", str(configuration)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    try:
        port = _port_in(process.stderr)
        reader = threading.Thread(target=process.stderr.read, daemon=True)  # or the pipe fills up
        reader.start()
        yield RunningRegistry(f"localhost:{port}", f"http://localhost:{port}", port, folder)
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
        process.stderr.close()


def _port_in(log: IO[str]) -> int:
    lines = []
    for line in log:
        if found := re.search(r"listening on 127\.0\.0\.1:(\d+)", line):
            return int(found[1])
        lines.append(line)
    pytest.fail("docker-registry did not start:\n" + "".join(lines))


@contextmanager
def run_basic_auth_proxy(folder: Path, upstream: RunningRegistry, user: str, password: str) -> Iterator[str]:
    """nginx with basic auth before a registry; the host and port that it listens on."""
    command = program("nginx")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "users").write_text(f"{user}:{{PLAIN}}{password}\n")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        (folder / "nginx.conf").write_text(_nginx_configuration(folder, port, upstream.port))
        listener.setblocking(False)
        listener.set_inheritable(True)
        arguments = [
            command,
            "-p",
            str(folder),
            "-e",
            str(folder / "error.log"),
            "-c",
            str(folder / "nginx.conf"),
        ]
        process = subprocess.Popen(
            arguments,
            pass_fds=[listener.fileno()],
            env={**os.environ, "NGINX": f"{listener.fileno()};"},  # take over this socket: no race for a port
            stderr=subprocess.DEVNULL,
        )
        try:
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


def _nginx_configuration(folder: Path, port: int, upstream_port: int) -> str:
    user = "user root;" if os.geteuid() == 0 else ""  # else the worker is somebody who cannot read `folder`
    return f"""
daemon off; {user} worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      auth_basic "models"; auth_basic_user_file {folder}/users;
      proxy_pass http://127.0.0.1:{upstream_port}; proxy_set_header Host $http_host;
      proxy_set_header Authorization "";
    }}
  }}
}}
"""


@dataclass(frozen=True)
class Request:
    """What a server of `run_server` was asked. `path` includes the query; header names are lower case.

    `peer` is the port of the client's end: requests of one connection have the same.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    peer: int = 0


@dataclass(frozen=True)
class Reply:
    """What it answers.

    `cut_at` sends only so many bytes of the body and then closes the connection; `pause_s` sends the body byte
    by byte with a pause before each.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut_at: int | None = None
    pause_s: float = 0.0


@dataclass(frozen=True)
class RunningServer:
    """A server that answers what a function says. `requests` grows as it is asked."""

    port: int
    url: str
    requests: list[Request]

    @property
    def host(self) -> str:
        """Host and port, for model names."""
        return f"127.0.0.1:{self.port}"


@contextmanager
def run_server(
    answer: Callable[[Request], Reply], *, tls: ssl.SSLContext | None = None
) -> Iterator[RunningServer]:
    """A server on 127.0.0.1 whose every reply `answer` decides; it runs in threads of this process."""
    asked: list[Request] = []
    stopping = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, self.path, headers, self.client_address[1])
            asked.append(request)
            self._send(answer(request))

        do_HEAD = do_GET  # noqa: N815 - http.server's names

        def _send(self, reply: Reply) -> None:
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            if self.command != "HEAD":
                self._send_body(reply)
            self.close_connection = self.close_connection or reply.cut_at is not None

        def _send_body(self, reply: Reply) -> None:
            if not reply.pause_s:
                self.wfile.write(reply.body[: reply.cut_at])
                return
            for byte in reply.body:
                stopping.wait(reply.pause_s)
                self.wfile.write(bytes([byte]))

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
            """Nothing: the tests read `requests`."""

    with _QuietServer(("127.0.0.1", 0), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        scheme = "https" if tls else "http"
        try:
            yield RunningServer(server.server_port, f"{scheme}://127.0.0.1:{server.server_port}", asked)
        finally:
            stopping.set()
            server.shutdown()
            thread.join()


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: a client that goes away in the middle is part of some tests."""


def _answer_file(root: Path, request: Request) -> Reply:
    """A file below `root`, whole or the range that is asked for (RFC 9110 §14, one range)."""
    path = (root / request.path.lstrip("/")).resolve()
    if not path.is_relative_to(root.resolve()) or not path.is_file():
        return Reply(404)
    body = path.read_bytes()
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if wanted is None:
        return Reply(200, {"Accept-Ranges": "bytes"}, body)
    first, last = int(wanted[1]), int(wanted[2] or len(body) - 1)
    part = body[first : last + 1]
    if not part:
        return Reply(416, {"Content-Range": f"bytes */{len(body)}"})
    return Reply(206, {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(body)}"}, part)


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate for localhost and 127.0.0.1, made by openssl for one test."""

    certificate: Path
    key: Path

    @property
    def server_context(self) -> ssl.SSLContext:
        """What a server that shows this certificate needs."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context

    def sign(self, data: bytes) -> bytes:
        """An RSA signature over SHA-256 (RS256)."""
        command = [program("openssl"), "dgst", "-sha256", "-sign", str(self.key)]
        return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def make_certificate(folder: Path) -> Certificate:
    """A fresh certificate below `folder`."""
    made = Certificate(folder / "certificate.pem", folder / "key.pem")
    command = [program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command += ["-keyout", str(made.key), "-out", str(made.certificate)]
    subprocess.run(command, capture_output=True, check=True)
    return made


BODY = bytes(range(256)) * 40
DIGEST = Digest.of(BODY)
COMMIT = "c0ffee" * 6 + "c0ff"
Answers = Callable[[Request], Reply]


def a_file(body: bytes = BODY, etag: str = '"one"', *, cut_at: int | None = None) -> Answers:
    """A server of one file that knows Range and If-Range; the first GETs of the file are cut at `cut_at`."""

    def answer(request: Request) -> Reply:
        first = int(request.headers.get("range", "bytes=0-")[6:].partition("-")[0])
        if not first or request.headers.get("if-range", etag) != etag:
            return Reply(200, {"ETag": etag}, body, cut_at=cut_at)
        span = f"bytes {first}-{len(body) - 1}/{len(body)}"
        return Reply(206, {"ETag": etag, "Content-Range": span}, body[first:], cut_at=cut_at)

    return answer
