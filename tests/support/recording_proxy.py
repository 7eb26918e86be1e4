"""Somebody who stands before a pretend server, sees every request, and may change what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass(frozen=True)
class Request:
    """One request as the server got it. `body` is the JSON document's text, empty for uploads."""

    method: str
    path: str
    body: str = ""

    @property
    def line(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def is_question(self) -> bool:
        """Whether it only finds out if the server has the endpoint."""
        return self.method == "HEAD" and self.path in ("/api/create", "/api/copy", "/api/blobs/none")

    @property
    def is_upload(self) -> bool:
        return self.path.startswith("/api/blobs/")


@dataclass
class RecordingProxy:
    """`seen` grows with every request but those that find out which endpoints there are.

    `before` is called before the server gets it, `edit` may change the whole body of the answer; both run in the
    server's thread.
    """

    seen: list[Request] = field(default_factory=list)
    before: Callable[[Request], None] | None = None
    edit: Callable[[Request, bytes], bytes] | None = None

    def lines(self) -> list[str]:
        """`GET /api/tags`, one per request."""
        return [request.line for request in self.seen]

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """The server with the overseer before it."""

        async def overseen(scope: Scope, receive: Receive, send: Send) -> None:
            request, again = await _read(scope, receive)
            if request.is_question:
                await app(scope, again, send)
                return
            self.seen.append(request)
            if self.before is not None:
                self.before(request)
            await app(scope, again, self._editing(request, send))

        return overseen

    def _editing(self, request: Request, send: Send) -> Send:
        edit = self.edit
        if edit is None or request.is_upload:
            return send
        head: list[Message] = []
        body = bytearray()

        async def collect(message: Message) -> None:
            if message["type"] == "http.response.start":
                head.append(message)
                return
            body.extend(message.get("body", b""))
            if not message.get("more_body"):
                edited = edit(request, bytes(body))
                kept = [pair for pair in head[0]["headers"] if pair[0].lower() != b"content-length"]
                await send({**head[0], "headers": [*kept, (b"content-length", b"%d" % len(edited))]})
                await send({"type": "http.response.body", "body": edited, "more_body": False})

        return collect


async def _read(scope: Scope, receive: Receive) -> tuple[Request, Receive]:
    """The request, and a `receive` that gives its body once more. Uploads are left to flow by."""
    request = Request(str(scope["method"]), str(scope["path"]))
    if request.is_upload:
        return request, receive
    messages: list[Message] = []
    while not messages or messages[-1].get("more_body"):
        messages.append(await receive())
    text = b"".join(message.get("body", b"") for message in messages).decode("utf-8", "replace")

    async def again() -> Message:
        return messages.pop(0) if messages else await receive()

    return Request(request.method, request.path, text), again
