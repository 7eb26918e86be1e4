"""Running the pretend server: in a thread of this process, or alone until a signal.

The socket is bound before the thread starts, so the URL is known at once. Stopping closes every connection,
finished or not, and leaves no thread behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ollamaops.sandbox.app import App
from ollamaops.sandbox.behavior import NEWEST, Behavior, behavior_for
from ollamaops.sandbox.fault_transport import FaultProtocol
from ollamaops.sandbox.service import Service
from ollamaops.sandbox.store import Store

_TICK_S = 1.0
_STOP_S = 5.0
Wrap = Callable[[App], ASGIApp]


class _Server(uvicorn.Server):
    """uvicorn's server, but stopped by an event instead of looking every 100 ms."""

    def __init__(self, app: ASGIApp, protocol: type[asyncio.Protocol]) -> None:
        config = uvicorn.Config(
            self._until_stopped(app),
            http=protocol,
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
        )
        super().__init__(config)
        self._asked_to_stop = asyncio.Event()

    async def main_loop(self) -> None:
        while not self._asked_to_stop.is_set():
            await self.on_tick(0)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._asked_to_stop.wait(), _TICK_S)

    def stop(self) -> None:
        """Ask to stop; from the loop's own thread."""
        self.should_exit = True
        self._asked_to_stop.set()

    def _until_stopped(self, app: ASGIApp) -> ASGIApp:
        """The app, whose calls end quietly when stopping cuts them off; uvicorn would log a traceback for each."""

        async def call(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await app(scope, receive, send)
            except asyncio.CancelledError:
                if not self.should_exit:
                    raise

        return call

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # uvicorn must see them gone before it asks whether their calls were answered
        for task in list(self.server_state.tasks):
            task.cancel()
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=_STOP_S)
        for opened in sockets or ():
            opened.close()


class Sandbox:
    """A pretend Ollama server in a thread. A context manager; `start` and `stop` do the same by hand.

    `store` is the folder of models (a temporary one if None), `as_version` the server to be, `port` 0 for any free
    one. `faults` wraps the app, for fault scripts. `behavior` overrides what the version says: see `as_variant`, or
    `replace(behavior_for("0.33.0-rc2"), runners=("ggml", "llamacpp"))`.
    `registry` also serves the built-in models as registry.ollama.ai does, below /v2/, which no real server has.
    `max_loaded` is how many models it keeps in memory at once; None: any number.
    """

    def __init__(
        self,
        store: Path | str | None = None,
        *,
        as_version: str = NEWEST,
        host: str = "127.0.0.1",
        port: int = 0,
        faults: Wrap | None = None,
        behavior: Behavior | None = None,
        registry: bool = False,
        max_loaded: int | None = None,
    ) -> None:
        self.version = as_version
        self._behavior = behavior or behavior_for(as_version)
        self._folder = tempfile.TemporaryDirectory(prefix="ollamaops-sandbox-") if store is None else None
        self._root = Path(self._folder.name if self._folder else str(store))
        self._host, self._port, self._faults = host, port, faults
        self._is_registry = registry
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: _Server | None = None
        self._max_loaded = max_loaded
        self.service = self._new_service(Store(self._root))

    @property
    def store(self) -> Store:
        """The models on disk, and ways to damage them."""
        return self.service.store

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`; known once started."""
        return f"http://{self._host}:{self._port}"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return self._host, self._port

    def start(self) -> Sandbox:
        """Bind, prune the store as a starting server does, and serve. OSError when the port is taken."""
        listener = _listener(self._host, self._port)
        self._port = listener.getsockname()[1]
        self.service = self._new_service(self.store)
        self.service.start()
        app = App(self.service, registry=self._is_registry)
        started = threading.Event()
        wrapped = self._faults(app) if self._faults else app
        serve = self._serve(wrapped, listener, started)
        self._thread = threading.Thread(
            target=asyncio.run, args=(serve,), name="ollamaops-sandbox", daemon=True
        )
        self._thread.start()
        started.wait()
        return self

    def _new_service(self, store: Store) -> Service:
        return Service(store, self._behavior, self.version, self._max_loaded)

    async def _serve(self, app: ASGIApp, listener: socket.socket, started: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        # an app around ours may ask for the server, to refuse and to cut its connections
        attach: Callable[[uvicorn.Server], None] | None = getattr(app, "attach", None)
        self._server = _Server(app, FaultProtocol if attach else HttpToolsProtocol)
        if attach:
            attach(self._server)
        started.set()
        await self._server.serve(sockets=[listener])

    def stop(self) -> None:
        """Stop serving and wait for it. The store stays, unless it was temporary."""
        self._halt()
        if self._folder:
            self._folder.cleanup()

    def _halt(self) -> None:
        if self._thread and self._loop and self._server:
            self._loop.call_soon_threadsafe(self._server.stop)
            self._thread.join()
        self._thread = None

    def restart(self, as_version: str | None = None) -> None:
        """Stop and start at the same address, as after a crash: what was loaded is gone, the store is pruned.

        With `as_version`, as after another Ollama was installed: that version goes on with the same store.
        """
        self._halt()
        if as_version:
            self.version, self._behavior = as_version, behavior_for(as_version)
        self.start()

    def __enter__(self) -> Sandbox:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # so that asyncio sends at once
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    return listener


def run_forever(
    host: str,
    port: int,
    store: Path,
    as_version: str,
    faults: Wrap | None = None,
    behavior: Behavior | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; one line with the URL on stdout when ready."""
    asked = threading.Event()
    with (
        _signals(asked),
        Sandbox(
            store,
            as_version=as_version,
            host=host,
            port=port,
            faults=faults,
            behavior=behavior,
            registry=True,
        ) as sandbox,
    ):
        sys.stdout.write(f"{sandbox.url}\n")
        sys.stdout.flush()
        asked.wait()


@contextlib.contextmanager
def _signals(asked: threading.Event) -> Iterator[None]:
    before = {
        number: signal.signal(number, lambda *_: asked.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
