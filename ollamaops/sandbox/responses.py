"""What an endpoint answers: a refusal, one document, or the lines of work (create, pull, push), and these as HTTP.

Work is a generator of lines. A line is a progress object, or a `Refusal` that the server reports before it goes on;
a Refusal that is raised ends the work. From 0.12.6 on, an error that comes first is a real HTTP error and any error
ends the stream. Before, everything is 200, the status is a number in the line, and the work may go on behind the
error.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from itertools import chain

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from ollamaops.sandbox.behavior import Behavior
from ollamaops.sandbox.golang import json_line, json_text

JSON = "application/json; charset=utf-8"
BARE_JSON = "application/json"
NDJSON = "application/x-ndjson"
SUCCESS = "success"


class Refusal(Exception):
    """An error answer: HTTP `status` and Ollama's `text`.

    `late` tells that the real server finds out when its answer has begun: a line of a stream where it streams.
    """

    def __init__(self, status: int, text: str, *, late: bool = False) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.late = late


Line = dict[str, object] | Refusal
Work = Iterator[Line]
_NO_END = Refusal(500, "unexpected end of progress response")


def line(status: str, **further: object) -> dict[str, object]:
    """A progress line; `further` keys with 0 are left out, as Go's omitempty does."""
    return {"status": status, **{key: value for key, value in further.items() if value}}


def bad_request(text: str) -> Refusal:
    """The refusal of a request that is wrong in itself."""
    return Refusal(400, text)


def failure(text: str) -> Refusal:
    """Any other refusal."""
    return Refusal(500, text)


def os_failure(error: OSError, operation: str = "open") -> Refusal:
    """An operating system's error in Go's words: `open /path: no such file or directory`."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    return failure(f"{operation} {error.filename}: {reason.lower()}")


def answer(document: object, status: int = 200, content_type: str = JSON) -> Response:
    """One JSON document."""
    return Response(json_text(document), status, headers={"content-type": content_type})


def refuse(refusal: Refusal, content_type: str = JSON) -> Response:
    """An error answer."""
    return answer({"error": refusal.text}, refusal.status, content_type)


async def send_work(work: Work, behavior: Behavior, *, stream: bool) -> Response:
    """Carry out the work and answer with its lines, or with the last one where the client wants no stream."""
    lines = _reported(work)
    if not stream:
        return await run_in_threadpool(_wait, lines, behavior)
    first = await run_in_threadpool(next, lines, None)
    if isinstance(first, Refusal) and behavior.errors_end_streams:
        await run_in_threadpool(lines.close)
        return refuse(first, BARE_JSON)
    rest = chain([first], lines) if first is not None else iter(())
    return StreamingResponse(_as_ndjson(rest, behavior), headers={"content-type": NDJSON})


def _reported(work: Work) -> Generator[Line, None, None]:
    """The lines, with the Refusal that ends the work as the last of them."""
    try:
        yield from work
    except Refusal as refusal:
        yield refusal


def _wait(lines: Generator[Line, None, None], behavior: Behavior) -> Response:
    last: dict[str, object] = {}
    for item in lines:
        if isinstance(item, Refusal):
            lines.close()
            return refuse(item, BARE_JSON)
        last = item
        if item.get("status") == SUCCESS and not behavior.waits_for_last_success:
            lines.close()
            break
    is_done = last.get("status") == SUCCESS
    return answer(last, content_type=BARE_JSON) if is_done else refuse(_NO_END, BARE_JSON)


def _as_ndjson(lines: Iterator[Line], behavior: Behavior) -> Iterator[bytes]:
    for item in lines:
        if not isinstance(item, Refusal):
            yield json_line(item)
            continue
        status = {} if behavior.errors_end_streams or item.status == 500 else {"status": item.status}
        yield json_line({"error": item.text, **status})
        if behavior.errors_end_streams:
            return
