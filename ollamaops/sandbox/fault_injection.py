"""Carrying out the faults of a script: an ASGI application around the sandbox's own.

The application inside serves the call as if nothing were wrong, so what it does and what the client learns of
it can differ: that is the point of most faults. Needs uvicorn with `http=FaultProtocol`, and `attach` before it
serves.

A change made in the name of another client is finished before the last byte of the answer leaves, so a client
that waits for its answer always meets it.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from http.client import responses
from typing import TYPE_CHECKING, Protocol, assert_never

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ollamaops.sandbox.fault_answers import (
    Act,
    ActBeforeEnd,
    CutAfterLines,
    CutEnd,
    ResetDuring,
    Shaper,
    Stalling,
    Swallow,
    Throttle,
    Truncate,
)
from ollamaops.sandbox.fault_script import (
    Call,
    ChangeModel,
    Cut,
    DiskFull,
    ErrorThenSuccess,
    FaultAction,
    FaultScript,
    Refuse,
    Reset,
    Restart,
    Stall,
    Status,
    TruncateJson,
    VanishBlob,
)
from ollamaops.sandbox.fault_transport import ListenerGate, reset_connection, transport_of
from ollamaops.sandbox.responses import Refusal
from ollamaops.sandbox.service import Service

if TYPE_CHECKING:
    import uvicorn

    from ollamaops.sandbox.app import App

Sleep = Callable[[float], Awaitable[None]]
_TICK_S = 0.05
_DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")
_NAME_KEYS = ("model", "name", "source", "destination")
_WITHOUT_BODY = (204, 304)


class FaultStore(Protocol):
    """What faults do to the sandbox's store."""

    disk_full: bool

    def remove_blob(self, digest: str) -> bool: ...

    def prune(self) -> list[str]: ...


@dataclass(frozen=True)
class _Exchange:
    """One call and its ways in and out. `body` is empty for uploads, which are not read ahead."""

    scope: Scope
    receive: Receive
    send: Send
    call: Call
    body: bytes = b""

    @property
    def digests(self) -> list[str]:
        """The blobs that the call names, in its path or in its body."""
        named = _DIGEST.findall(self.body.decode("utf-8", "replace"))
        return [self.call.digest, *named] if self.call.digest else named


def with_faults(script: FaultScript) -> Callable[[App], FaultInjector]:
    """What `Sandbox(faults=…)` takes: it puts the script around a sandbox's application, store and loaded models."""

    def wrap(app: App) -> FaultInjector:
        service = app.service

        def forget() -> None:
            service.runners = service.runners.emptied()

        def change(action: ChangeModel) -> None:
            _change_model(service, action)

        return FaultInjector(app, script, service.store, forget=forget, change=change)

    return wrap


class FaultInjector:
    """The sandbox's application with a script of faults around it.

    `forget` drops the loaded models (for `restart`), `change` changes a model as another client would (called in a
    thread), and `sleep` waits for a number of seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        script: FaultScript,
        store: FaultStore,
        *,
        forget: Callable[[], None] = lambda: None,
        change: Callable[[ChangeModel], None] = lambda _: None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._app = app
        self._script = script
        self._store = store
        self._forget = forget
        self._change = change
        self._sleep = sleep
        self._gate: ListenerGate | None = None
        self._writes_failing = 0
        self._errands: set[asyncio.Task[None]] = set()

    def attach(self, server: uvicorn.Server) -> None:
        """Name the server that this application runs in, so that it can refuse connections and end stalls."""
        self._gate = ListenerGate(server)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = await _opened(scope, receive, send)
        fault = self._script.decide(exchange.call)
        if fault is None:
            await self._app(exchange.scope, exchange.receive, exchange.send)
            return
        if fault.bandwidth_bytes_per_s:
            exchange = self._throttled(exchange, fault.bandwidth_bytes_per_s)
        if fault.latency_s and not await self._stand_still(exchange, fault.latency_s):
            return
        if fault.action is None:
            await self._serve(exchange, Shaper(exchange.send))
        else:
            await self._do(fault.action, exchange)

    async def _do(self, action: FaultAction, exchange: _Exchange) -> None:
        match action:
            case Status():
                await _respond(exchange.send, action.status, *_status_answer(action))
            case Refuse():
                await self._refuse(action, exchange)
            case Reset():
                await self._reset(action, exchange)
            case Cut():
                await self._cut(action, exchange)
            case Stall():
                await self._stall(action, exchange)
            case TruncateJson():
                await self._serve(exchange, Truncate(exchange.send))
            case ErrorThenSuccess():
                await _error_then_success(action, exchange)
            case DiskFull():
                await self._fill_disk(exchange)
            case VanishBlob():
                await self._vanish(exchange)
            case ChangeModel():
                await self._serve_and(exchange, lambda: run_in_threadpool(self._change, action))
            case Restart():
                await self._restart(action, exchange)
            case _:
                assert_never(action)

    # -- answers that are bent

    async def _serve(self, exchange: _Exchange, shaper: Shaper) -> None:
        await self._app(exchange.scope, exchange.receive, shaper.send)

    async def _serve_and(self, exchange: _Exchange, act: Act) -> None:
        """Serve the call and act before its answer ends."""
        await self._serve(exchange, ActBeforeEnd(exchange.send, act))

    async def _stall(self, action: Stall, exchange: _Exchange) -> None:
        async def stand_still(repeat: Act) -> bool:
            return await self._stand_still(exchange, action.for_s, repeat)

        stalling = Stalling(
            exchange.send, stand_still, after=action.after_lines, with_progress=action.with_progress
        )
        await self._serve(exchange, stalling)

    async def _cut(self, action: Cut, exchange: _Exchange) -> None:
        if isinstance(action.where, int):
            await self._cut_after(action.where, exchange)
        else:
            await self._serve(exchange, CutEnd(exchange.send, action.where))

    async def _cut_after(self, lines: int, exchange: _Exchange) -> None:
        """Serve until `lines` lines are out, then abandon the call as if the client had gone."""
        served: asyncio.Task[None]
        shaper = CutAfterLines(exchange.send, lines, lambda: served.cancel())
        served = asyncio.ensure_future(self._serve(exchange, shaper))
        try:
            await asyncio.wait({served})
        finally:
            served.cancel()
        if not served.cancelled():
            served.result()

    async def _stand_still(self, exchange: _Exchange, for_s: float | None, repeat: Act | None = None) -> bool:
        """Wait, at most until the client or the server goes. True if both are still there."""
        transport = transport_of(exchange.scope)
        waited = 0.0
        while for_s is None or waited < for_s:
            if repeat is not None:
                await repeat()
            step = _TICK_S if for_s is None else min(_TICK_S, for_s - waited)
            await self._sleep(step)
            waited += step
            if self._gate is not None and self._gate.is_stopping:
                await self._cut_off(exchange)
            if transport.is_closing():
                return False
        return True

    def _throttled(self, exchange: _Exchange, bytes_per_s: int) -> _Exchange:
        async def receive() -> Message:
            message = await exchange.receive()
            await self._sleep(len(message.get("body", b"")) / max(bytes_per_s, 1))
            return message

        throttle = Throttle(exchange.send, bytes_per_s, self._sleep)
        return replace(exchange, receive=receive, send=throttle.send)

    # -- connections

    async def _reset(self, action: Reset, exchange: _Exchange) -> None:
        if action.when == "during":
            await self._serve(exchange, ResetDuring(exchange.send, lambda: self._cut_off(exchange)))
            return
        if action.when == "after":
            await self._serve(exchange, Swallow(exchange.send))
        await self._cut_off(exchange)

    async def _cut_off(self, exchange: _Exchange) -> None:
        """Reset the connection and wait until it is gone, so that uvicorn does not miss an answer."""
        reset_connection(transport_of(exchange.scope))
        while (await exchange.receive())["type"] != "http.disconnect":
            pass

    async def _refuse(self, action: Refuse, exchange: _Exchange) -> None:
        if self._gate is None:
            raise RuntimeError("refusing connections needs FaultInjector.attach(server)")
        errand = asyncio.ensure_future(self._gate.refuse(action.for_s, self._sleep))
        self._errands.add(errand)
        errand.add_done_callback(self._errands.discard)
        await self._cut_off(exchange)

    # -- what happens to the store

    async def _fill_disk(self, exchange: _Exchange) -> None:
        self._writes_failing += 1
        self._store.disk_full = True
        try:
            await self._serve(exchange, Shaper(exchange.send))
        finally:
            self._writes_failing -= 1
            self._store.disk_full = self._writes_failing > 0

    async def _vanish(self, exchange: _Exchange) -> None:
        async def vanish() -> None:
            for digest in exchange.digests:
                with suppress(ValueError):  # a client may ask for what is no digest
                    self._store.remove_blob(digest)

        if exchange.call.endpoint == "blobs":
            await self._serve_and(exchange, vanish)
        else:
            await vanish()
            await self._serve(exchange, Shaper(exchange.send))

    async def _restart(self, action: Restart, exchange: _Exchange) -> None:
        async def restart() -> None:
            self._forget()
            if action.prune:
                self._store.prune()

        transport = transport_of(exchange.scope)
        if action.when == "before":
            await restart()
        else:
            await self._serve_and(exchange, restart)
        if self._gate is not None:
            self._gate.drop_connections(but=transport)
        if action.when == "before":
            await self._cut_off(exchange)
        else:
            transport.close()


# --- calls ----------------------------------------------------------------------------------------------------------


async def _opened(scope: Scope, receive: Receive, send: Send) -> _Exchange:
    """The call in a scope. A JSON body is read now, and given to the application when it asks."""
    endpoint, digest = _place_of(str(scope["path"]))
    method = str(scope["method"])
    if endpoint == "blobs" or method in ("GET", "HEAD"):
        return _Exchange(scope, receive, send, Call(endpoint=endpoint, method=method, digest=digest))
    messages: list[Message] = []
    while not messages or messages[-1].get("more_body", False):
        messages.append(await receive())
    body = b"".join(message.get("body", b"") for message in messages)

    async def again() -> Message:
        return messages.pop(0) if messages else await receive()

    call = Call(endpoint=endpoint, method=method, models=_models_in(body))
    return _Exchange(scope, again, send, call, body)


def _place_of(path: str) -> tuple[str, str]:
    """The endpoint's word and the digest in a path."""
    parts = path.strip("/").split("/")
    if parts[:2] == ["api", "blobs"]:
        return "blobs", "/".join(parts[2:])
    return (parts[-1] or "root"), ""


def _models_in(body: bytes) -> tuple[str, ...]:
    values = {key.lower(): value for key, value in _document(body).items()}
    return tuple(str(values[key]) for key in _NAME_KEYS if values.get(key))


def _document(body: bytes) -> Mapping[str, object]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _change_model(service: Service, action: ChangeModel) -> None:
    """Change a model as another client would; RuntimeError if the server refuses."""
    try:
        if action.delete:
            service.delete(_line({"model": action.model}))
        elif action.copy_from is not None:
            service.copy(_line({"source": action.copy_from, "destination": action.model}))
        else:
            for item in service.create(_create_request(action))[1]:
                if isinstance(item, Refusal):
                    raise item
    except Refusal as refusal:
        raise RuntimeError(f"fault script: {action.model} could not be changed: {refusal.text}") from refusal


def _create_request(action: ChangeModel) -> bytes:
    """The body in both forms, since servers before 0.5.5 read only the Modelfile."""
    given = {key: text for key in ("system", "template") if (text := getattr(action, key)) is not None}
    lines = [f"FROM {action.model}", *(f'{key.upper()} """{text}"""' for key, text in given.items())]
    lines += [f"PARAMETER {key} {value}" for key, value in action.parameters.items()]
    structured = {"model": action.model, "from": action.model, **given, "parameters": dict(action.parameters)}
    return _line({**structured, "modelfile": "\n".join(lines)})


# --- answers --------------------------------------------------------------------------------------------------------


async def _respond(send: Send, status: int, headers: Mapping[str, str], body: bytes) -> None:
    framed = {} if status in _WITHOUT_BODY else {"content-length": str(len(body))}
    raw = [(key.encode(), value.encode("latin-1", "replace")) for key, value in {**headers, **framed}.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send(
        {"type": "http.response.body", "body": b"" if status in _WITHOUT_BODY else body, "more_body": False}
    )


def _status_answer(action: Status) -> tuple[dict[str, str], bytes]:
    """Headers and body: Ollama's error document, a proxy's page, or the text given."""
    reason = responses.get(action.status, "Status")
    headers = {} if action.retry_after is None else {"retry-after": action.retry_after}
    if action.html:
        head, body = (
            f"<head><title>{action.status} {reason}</title></head>",
            f"<body>\n{action.body or reason}\n</body>",
        )
        return {"content-type": "text/html", **headers}, f"<html>\n{head}\n{body}\n</html>\n".encode()
    if action.body is not None:
        kind = "application/json; charset=utf-8" if action.body[:1] == "{" else "text/plain; charset=utf-8"
        return {"content-type": kind, **headers}, action.body.encode()
    return {"content-type": "application/json; charset=utf-8", **headers}, _line({"error": reason.lower()})


async def _error_then_success(action: ErrorThenSuccess, exchange: _Exchange) -> None:
    if _document(exchange.body).get("stream") is False:
        kind = "application/json; charset=utf-8"
        await _respond(exchange.send, 500, {"content-type": kind}, _line({"error": action.error}))
        return
    lines = _line({"error": action.error}) + _line({"status": "success"})
    await _respond(exchange.send, 200, {"content-type": "application/x-ndjson"}, lines)


def _line(document: Mapping[str, object]) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode() + b"\n"
