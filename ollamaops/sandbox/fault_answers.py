"""Answers bent on their way out: each class takes an application's ASGI messages and passes on what the client sees.

Cut answers end with a proper last chunk, as a proxy would end them. `Content-Length` is taken off, so that only the
content shows that something is missing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Literal

from starlette.types import Message, Send

Act = Callable[[], Awaitable[None]]


class Shaper:
    """Passes everything on. `is_over`: the client gets nothing more, whatever the application says."""

    reframes = False

    def __init__(self, send: Send) -> None:
        self._send = send
        self.is_over = False

    async def send(self, message: Message) -> None:
        """Take one message of the application."""
        if self.is_over:
            return
        if message["type"] != "http.response.start":
            await self._body(message.get("body", b""), last=not message.get("more_body", False))
            return
        if self.reframes:
            headers = [pair for pair in message.get("headers", ()) if pair[0].lower() != b"content-length"]
            message = {**message, "headers": headers}
        await self._start(message)

    async def _start(self, message: Message) -> None:
        await self._send(message)

    async def _body(self, body: bytes, *, last: bool) -> None:
        await self._pass(body, last=last)

    async def _pass(self, body: bytes, *, last: bool = False) -> None:
        self.is_over = self.is_over or last
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})


class Lines(Shaper, ABC):
    """Handles the answer line by line; the last line, with or without its newline, gets its own method."""

    reframes = True

    def __init__(self, send: Send) -> None:
        super().__init__(send)
        self._rest = b""
        self._newest = b""

    async def _body(self, body: bytes, *, last: bool) -> None:
        *lines, self._rest = (self._rest + body).split(b"\n")
        for line in lines:
            await self._advance(line + b"\n")
        if last and self._rest:
            await self._advance(self._rest)
        if last and not self.is_over:
            await self._last(self._newest)

    async def _advance(self, line: bytes) -> None:
        before, self._newest = self._newest, line
        if before and not self.is_over:
            await self._line(before)

    async def _line(self, line: bytes) -> None:
        """A line that another one follows."""
        await self._pass(line)

    @abstractmethod
    async def _last(self, line: bytes) -> None:
        """The last line; empty when there was none. Must end the answer."""


class CutEnd(Lines):
    """Ends cleanly without the last line, or in the middle of it."""

    def __init__(self, send: Send, where: Literal["looks-complete", "mid-line"]) -> None:
        super().__init__(send)
        self._where = where

    async def _last(self, line: bytes) -> None:
        kept = b"" if self._where == "looks-complete" else line[: len(line) // 2]
        await self._pass(kept, last=True)


class CutAfterLines(Shaper):
    """Ends cleanly after some lines, and hangs up on the application."""

    reframes = True

    def __init__(self, send: Send, lines: int, hang_up: Callable[[], object]) -> None:
        super().__init__(send)
        self._left = lines
        self._hang_up = hang_up

    async def _body(self, body: bytes, *, last: bool) -> None:
        lines = body.splitlines(keepends=True)
        kept = b"".join(lines[: self._left])
        self._left -= body.count(b"\n")
        enough = self._left <= 0
        await self._pass(kept, last=last or enough)
        if enough and not last:
            self._hang_up()


class ResetDuring(Lines):
    """Resets after the first line, or in the middle of an answer of one line."""

    def __init__(self, send: Send, reset: Act) -> None:
        super().__init__(send)
        self._reset = reset

    async def _line(self, line: bytes) -> None:
        await self._pass(line)
        await self._end()

    async def _last(self, line: bytes) -> None:
        await self._pass(line[: len(line) // 2])
        await self._end()

    async def _end(self) -> None:
        self.is_over = True
        await self._reset()


class Stalling(Lines):
    """Stops once for a while: after a number of lines, at the first progress line, or before the last line."""

    def __init__(
        self,
        send: Send,
        stand_still: Callable[[Act], Awaitable[bool]],
        *,
        after: int | None,
        with_progress: bool,
    ) -> None:
        super().__init__(send)
        self._stand_still = stand_still
        self._after = after
        self._with_progress = with_progress
        self._passed = 0
        self._shown = b""
        self._stalled = False

    async def _line(self, line: bytes) -> None:
        await self._pass(line)
        self._passed += 1
        self._shown = line
        if self._after == self._passed or (self._after is None and self._is_place(line)):
            await self._stall()

    async def _last(self, line: bytes) -> None:
        await self._stall()
        if not self.is_over:
            await self._pass(line, last=True)

    def _is_place(self, line: bytes) -> bool:
        return b'"completed"' in line or not self._with_progress

    async def _stall(self) -> None:
        if not self._stalled:
            self._stalled = True
            self.is_over = not await self._stand_still(self._repeat)

    async def _repeat(self) -> None:
        if self._with_progress and self._shown:
            await self._pass(self._shown)


class Truncate(Shaper):
    """Ends cleanly after half of all the bytes."""

    reframes = True

    def __init__(self, send: Send) -> None:
        super().__init__(send)
        self._all = b""

    async def _body(self, body: bytes, *, last: bool) -> None:
        self._all += body
        if last:
            await self._pass(self._all[: len(self._all) // 2], last=True)


class Swallow(Shaper):
    """The client sees nothing of the answer."""

    def __init__(self, send: Send) -> None:
        super().__init__(send)
        self.is_over = True


class ActBeforeEnd(Shaper):
    """Acts before the last bytes leave. The head of the answer waits for the first bytes of its body."""

    def __init__(self, send: Send, act: Act) -> None:
        super().__init__(send)
        self._act = act
        self._begin: Message | None = None
        self._unsent = b""

    async def _start(self, message: Message) -> None:
        self._begin = message

    async def _body(self, body: bytes, *, last: bool) -> None:
        if self._unsent and body:
            await self._release(self._unsent)
            self._unsent = b""
        self._unsent += body
        if last:
            await self._act()
            await self._release(self._unsent, last=True)

    async def _release(self, body: bytes, *, last: bool = False) -> None:
        begin, self._begin = self._begin, None
        if begin is not None:
            await self._send(begin)
        await self._pass(body, last=last)


class Throttle(Shaper):
    """Passes `bytes_per_s` at most."""

    def __init__(self, send: Send, bytes_per_s: int, sleep: Callable[[float], Awaitable[object]]) -> None:
        super().__init__(send)
        self._rate = max(bytes_per_s, 1)
        self._sleep = sleep

    async def _body(self, body: bytes, *, last: bool) -> None:
        size = max(self._rate // 20, 1)
        for start in range(0, len(body), size):
            piece = body[start : start + size]
            await self._sleep(len(piece) / self._rate)
            await self._pass(piece)
        await self._pass(b"", last=last)
