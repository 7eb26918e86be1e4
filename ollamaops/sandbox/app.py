"""The routes of the pretend server: read the request, ask the service, answer.

A blob that is already there is answered before its body is read, and the connection is then closed. Go does the
same, so a client that is still sending sees a broken pipe.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ollamaops.sandbox.inference_routes import Endpoint, infer
from ollamaops.sandbox.registry_api import answer_as_registry, is_registry_path
from ollamaops.sandbox.responses import (
    JSON,
    Refusal,
    Work,
    answer,
    bad_request,
    failure,
    os_failure,
    refuse,
    send_work,
)
from ollamaops.sandbox.service import Service
from ollamaops.sandbox.store import InvalidDigest, Store, Upload

Handler = Callable[[Service, Request], Awaitable[Response]]
_UNREAD_LIMIT = 256 << 10
"""Go reads that much of a body that its handler did not want, then closes the connection."""
_BATCH = 4 << 20


async def _root(_: Service, __: Request) -> Response:
    return Response("Ollama is running", headers={"content-type": "text/plain; charset=utf-8"})


def _answers(ask: Callable[[Service, bytes], object]) -> Handler:
    """Answers with the document that `ask` makes of the body."""

    async def handle(service: Service, request: Request) -> Response:
        return answer(await run_in_threadpool(ask, service, await request.body()))

    return handle


def _acts(act: Callable[[Service, bytes], None]) -> Handler:
    """Does what the body asks for and answers with an empty 200."""

    async def handle(service: Service, request: Request) -> Response:
        await run_in_threadpool(act, service, await request.body())
        return Response()

    return handle


def _works(begin: Callable[[Service, bytes], tuple[bool, Work]]) -> Handler:
    """Answers with the lines of work, or with its last line if the body asks for no stream."""

    async def handle(service: Service, request: Request) -> Response:
        stream, work = await run_in_threadpool(begin, service, await request.body())
        return await send_work(work, service.behavior, stream=stream)

    return handle


def _infers(endpoint: Endpoint) -> Handler:
    async def handle(service: Service, request: Request) -> Response:
        return await infer(service, endpoint, await request.body())

    return handle


async def _head_blob(service: Service, request: Request) -> Response:
    if _has_blob(service, request):
        return Response()
    return Response(status_code=404, headers={"content-type": JSON})


async def _post_blob(service: Service, request: Request) -> Response:
    if _has_blob(service, request):
        is_long = int(request.headers.get("content-length", _UNREAD_LIMIT + 1)) > _UNREAD_LIMIT
        return Response(headers={"connection": "close"} if is_long else None)
    await _receive_blob(service.store, request, request.path_params["digest"])
    return Response(status_code=201)


async def _receive_blob(store: Store, request: Request, digest: str) -> None:
    """Store the body of `request` as a blob, in constant memory. Refusal.

    Bytes with another digest are kept under that one. When the connection is cut, nothing is kept.
    """
    try:
        with store.begin_upload() as upload:
            await _receive(upload, request)
            found, _ = await run_in_threadpool(upload.finish)
    except ClientDisconnect as error:
        raise failure("unexpected EOF") from error
    except OSError as error:
        raise os_failure(error, "write") from error
    if found != digest:
        raise bad_request(f'digest mismatch, expected "{digest}", got "{found}"')


async def _receive(upload: Upload, request: Request) -> None:
    """Write the body in large pieces, each in a thread while the next one arrives in the other of two buffers."""
    size = max(1, min(_BATCH, int(request.headers.get("content-length", _BATCH))))
    filling, other = memoryview(bytearray(size)), memoryview(bytearray(size))
    filled = 0
    writing: asyncio.Task[None] | None = None
    try:
        async for chunk in request.stream():
            for part in _parts(chunk, size - filled, size):
                filling[filled : filled + len(part)] = part
                filled += len(part)
                if filled == size:
                    if writing:
                        await writing
                    writing = asyncio.create_task(run_in_threadpool(upload.write, filling))
                    filling, other, filled = other, filling, 0
        if writing:
            await writing
        await run_in_threadpool(upload.write, filling[:filled])
    finally:
        if writing:
            await asyncio.wait([writing])  # a thread cannot be stopped, and the file is closed next


def _parts(chunk: bytes, room: int, size: int) -> Iterator[memoryview]:
    """The chunk cut where buffers of that size are full; `room` is what the first one has left."""
    rest = memoryview(chunk)
    while rest:
        yield rest[:room]
        rest, room = rest[room:], size


def _has_blob(service: Service, request: Request) -> bool:
    try:
        return service.store.has_blob(request.path_params["digest"])
    except InvalidDigest as error:
        raise bad_request(str(error)) from error


_VERSION = _answers(lambda service, _: service.with_foreign_words({"version": service.version}))
_TAGS = _answers(lambda service, _: service.with_foreign_words({"models": service.tags()}))
_ROUTES: dict[str, dict[str, Handler]] = {
    "/": {"GET": _root, "HEAD": _root},
    "/api/version": {"GET": _VERSION, "HEAD": _VERSION},
    "/api/tags": {"GET": _TAGS, "HEAD": _TAGS},
    "/api/ps": {"GET": _answers(lambda service, _: {"models": service.loaded()})},
    "/api/show": {"POST": _answers(Service.show)},
    "/api/create": {"POST": _works(Service.create)},
    "/api/pull": {"POST": _works(Service.pull)},
    "/api/push": {"POST": _works(Service.push)},
    "/api/copy": {"POST": _acts(Service.copy)},
    "/api/delete": {"DELETE": _acts(Service.delete)},
    "/api/generate": {"POST": _infers("generate")},
    "/api/chat": {"POST": _infers("chat")},
    "/api/embed": {"POST": _infers("embed")},
    "/api/embeddings": {"POST": _infers("embeddings")},
}
_CLOUD_STATUS = _answers(lambda _, __: {"cloud": {"disabled": True, "source": "env"}})
_BLOB_ROUTE: dict[str, Handler] = {"HEAD": _head_blob, "POST": _post_blob}
_BLOB_PATH = re.compile(r"/api/blobs/([^/]+)")
_ENDPOINT = re.compile(r"/api/([^/]+)")


class App:
    """The ASGI app that answers for `service`. A middleware reaches the store through `app.service.store`.

    With `registry`, paths below /v2/ are answered as by a registry that has the built-in models.
    """

    def __init__(self, service: Service, *, registry: bool = False) -> None:
        self.service, self._is_registry = service, registry
        self._routes = dict(_ROUTES)
        if service.behavior.cloud_status_endpoint:
            self._routes["/api/status"] = {"GET": _CLOUD_STATUS}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.service.store.enter()
        response = await self._answer(Request(scope, receive))
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        if self._is_registry and is_registry_path(request.url.path):
            lists = self.service.behavior.manifest_lists
            return await run_in_threadpool(
                answer_as_registry, self.service.transfer.builtin, request, lists=lists
            )
        if (missing := self._missing_endpoint(request)) is not None:
            return missing
        routes = self._routes_at(request)
        if request.method not in routes:
            return _no_route(self.service.behavior.wrong_method_status if routes else 404)
        try:
            return await routes[request.method](self.service, request)
        except Refusal as refusal:
            return refuse(refusal)

    def _missing_endpoint(self, request: Request) -> Response | None:
        found = _ENDPOINT.match(request.url.path)
        if found is None or found[1] not in self.service.behavior.missing_endpoints:
            return None
        if self.service.behavior.missing_status == 501:
            return answer({"error": "not implemented"}, 501)
        return _no_route(404)

    def _routes_at(self, request: Request) -> dict[str, Handler]:
        blob = _BLOB_PATH.fullmatch(request.url.path)
        if blob is None:
            return self._routes.get(request.url.path, {})
        request.scope["path_params"] = {"digest": blob[1]}
        return _BLOB_ROUTE


def _no_route(status: int) -> Response:
    text = {404: "404 page not found", 405: "405 method not allowed"}[status]
    return Response(text, status, headers={"content-type": "text/plain"})
