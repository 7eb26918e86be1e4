"""The servers that the benchmark talks to: pretend ones in processes of their own, a sink, and one that counts."""

from __future__ import annotations

import contextlib
import multiprocessing
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

OLLAMAOPS = str(Path(sys.executable).with_name("ollamaops"))
SERVER_VERSION = "0.12.11"  # keeps an uploaded GGUF as it is; servers from 0.30 on rewrite it
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Server:
    """A pretend server in a process of its own."""

    url: str
    store: Path

    def forget(self) -> None:
        """Lose every model and blob, behind the server's back: it keeps nothing of them in memory."""
        for folder in (self.store / "manifests", self.store / "blobs"):
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def serving(store: Path) -> Iterator[Server]:
    """A pretend server that keeps GGUF files as they are; its store is removed in the end."""
    command = [
        OLLAMAOPS,
        "sandbox",
        "serve",
        "--port",
        "0",
        "--store",
        str(store),
        "--as-version",
        SERVER_VERSION,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Server(process.stdout.readline().strip(), store)
        finally:
            process.terminate()
            process.wait()
            shutil.rmtree(store, ignore_errors=True)


@contextlib.contextmanager
def sink() -> Iterator[str]:
    """The URL of a process that takes any upload and keeps nothing: what is left is the cost of sending."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=swallow, args=(there,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}"
    finally:
        process.terminate()
        process.join()


def swallow(port: Connection) -> None:
    """Answer every connection until killed: 404 to HEAD, 201 to what has a body."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port.send(listener.getsockname()[1])
        while True:
            threading.Thread(target=_swallow_all, args=(listener.accept()[0],), daemon=True).start()


def _swallow_all(peer: socket.socket) -> None:
    with peer:
        while _swallow_request(peer):
            pass


def _swallow_request(peer: socket.socket) -> bool:
    head = b""
    while b"\r\n\r\n" not in head:
        block = peer.recv(BLOCK_BYTES)
        if not block:
            return False
        head += block
    head, _, body = head.partition(b"\r\n\r\n")
    if b"100-continue" in head.lower():
        peer.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    lengths = [
        line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
    ]
    left = (int(lengths[0]) if lengths else 0) - len(body)
    buffer = bytearray(BLOCK_BYTES)
    while left > 0:
        left -= peer.recv_into(buffer)
    status = b"404 Not Found" if head.startswith(b"HEAD") else b"201 Created"
    peer.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")
    return True


class Counting:
    """An app around the sandbox's that counts requests."""

    def __init__(self, app: ASGIApp) -> None:
        self.app, self.requests = app, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.requests += 1
        await self.app(scope, receive, send)
