"""A small HTTP server on loopback whose every byte a test decides: cuts, resets, half lines, early answers."""

from __future__ import annotations

import json
import socket
import socketserver
import ssl
import struct
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, BinaryIO

from patience import PATIENCE_S

from ollamaops.http.session import TimeLimits
from ollamaops.ollama.client import OllamaClient

JSON = "application/json; charset=utf-8"
NDJSON = "application/x-ndjson"
HEX = "0123456789abcdef" * 4


@dataclass(frozen=True)
class Asked:
    """One request as it came in."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.body)
        return value


class Wire:
    """The connection to the client."""

    def __init__(self, sock: socket.socket, reader: BinaryIO) -> None:
        self.sock = sock
        self.open = True
        self._reader = reader

    def read(self, size: int) -> bytes:
        """The next bytes of a body that was left to the script."""
        return self._reader.read(size)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def head(self, status: int, content_type: str = JSON, **headers: str) -> None:
        lines = [f"HTTP/1.1 {status} Whatever", f"Content-Type: {content_type}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.send("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def answer(self, status: int, body: bytes = b"", content_type: str = JSON, **headers: str) -> None:
        self.head(status, content_type, Content_Length=str(len(body)), **headers)
        self.send(body)

    def json(self, value: object, status: int = 200, **headers: str) -> None:
        self.answer(status, json.dumps(value).encode(), JSON, **headers)

    def begin(self, content_type: str = NDJSON, status: int = 200) -> None:
        self.head(status, content_type, Transfer_Encoding="chunked")

    def chunk(self, data: bytes) -> None:
        self.send(b"%x\r\n%s\r\n" % (len(data), data))

    def line(self, value: object) -> None:
        self.chunk(json.dumps(value).encode() + b"\n")

    def end(self) -> None:
        self.send(b"0\r\n\r\n")

    def ndjson(self, lines: Iterable[object]) -> None:
        self.begin()
        for line in lines:
            self.line(line)
        self.end()

    def close(self) -> None:
        """End the connection in order."""
        self.open = False

    def reset(self) -> None:
        """End the connection with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.open = False


Script = Callable[[Asked, Wire], None]


@dataclass
class ScriptedHost:
    """Runs `script` for every request, on 127.0.0.1 and a free port. `asked` holds what came in.

    With `reads_body` False the script is called before the body is read (and `Asked.body` is empty).
    """

    script: Script
    reads_body: bool = True
    tls: ssl.SSLContext | None = None
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0

    def __enter__(self) -> ScriptedHost:
        host = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                host.connections += 1
                self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                host._serve(self.request)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            block_on_close = False
            allow_reuse_address = True

            def handle_error(self, request: object, client_address: object) -> None:
                """Clients that go away are what these tests are about."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def paths(self) -> list[str]:
        return [f"{asked.method} {asked.path}" for asked in self.asked]

    def _serve(self, sock: socket.socket) -> None:
        if self.tls is not None:
            sock = self.tls.wrap_socket(sock, server_side=True)
        reader = sock.makefile("rb")
        wire = Wire(sock, reader)
        try:
            while wire.open and (asked := self._read(reader)) is not None:
                self.asked.append(asked)
                self.script(asked, wire)
        finally:
            reader.close()
            if self.tls is not None:
                sock.close()

    def _read(self, reader: BinaryIO) -> Asked | None:
        first = reader.readline()
        if not first:
            return None
        method, path, _ = first.decode("latin-1").split(" ", 2)
        headers = {}
        while (line := reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.title()] = value.strip()
        body = reader.read(int(headers.get("Content-Length", 0))) if self.reads_body else b""
        return Asked(method, path, headers, body)


def always(value: object, status: int = 200, **headers: str) -> Script:
    """A script that gives the same JSON to everything."""
    return lambda asked, wire: wire.json(value, status, **headers)


def reply(status: int, body: bytes = b"", content_type: str = JSON, **headers: str) -> Script:
    """A script that gives the same bytes to everything."""
    return lambda asked, wire: wire.answer(status, body, content_type, **headers)


def routes(table: Mapping[str, Script], version: str = "0.33.0") -> Script:
    """A script by path; `/api/version` is answered unless the table has it."""

    def script(asked: Asked, wire: Wire) -> None:
        found = table.get(asked.path)
        if found is not None:
            found(asked, wire)
        elif asked.path == "/api/version":
            wire.json({"version": version})
        else:
            wire.answer(404, b"404 page not found", "text/plain")

    return script


def streaming(*lines: object) -> Script:
    """A script that streams these lines."""
    return lambda asked, wire: wire.ndjson(lines)


def tagged(*names: str) -> Script:
    """A script that lists these models."""
    return always({"models": [{"name": name, "digest": HEX, "size": 1, "details": {}} for name in names]})


class Serving:
    """A scripted host and a client for it, as one context."""

    def __init__(
        self, table: dict[str, Script], version: str = "0.33.0", limits: TimeLimits | None = None
    ) -> None:
        self.host = ScriptedHost(routes(table, version))
        self.limits = limits

    def __enter__(self) -> Serving:
        self.host.__enter__()
        self.client = OllamaClient.connect(self.host.url, host_name="gpu-1", limits=self.limits)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.host.__exit__(None, None, None)

    def body(self, path: str) -> dict[str, Any]:
        """The JSON of the last request to `path`."""
        return next(asked.json for asked in reversed(self.host.asked) if asked.path == path)


def silent(asked: Asked, wire: Wire) -> None:
    """Says nothing until the client goes away."""
    wire.sock.settimeout(PATIENCE_S)
    wire.sock.recv(1)
    wire.close()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class full_listener:  # noqa: N801  reads as a verb at its place of use
    """A port whose queue of connections is full: further ones hang in the middle of the handshake."""

    def __enter__(self) -> int:
        self._sockets = [socket.socket()]
        self._sockets[0].bind(("127.0.0.1", 0))
        self._sockets[0].listen(0)
        address = self._sockets[0].getsockname()
        for _ in range(4):
            waiting = socket.socket()
            waiting.setblocking(False)
            waiting.connect_ex(address)
            self._sockets.append(waiting)
        return int(address[1])

    def __exit__(self, *_: object) -> None:
        for sock in self._sockets:
            sock.close()
