"""Work → HTTP: the lines of a stream as NDJSON, or one document when the client wants no stream.

Decides statuses: from 0.12.6 on an error that comes first is a real HTTP error and any error ends the stream; before,
everything is 200, the status is a number in the line, and the work may go on behind the error.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from itertools import chain

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from ollamaops.sandbox.behavior import Behavior
from ollamaops.sandbox.golang import json_line, json_text
from ollamaops.sandbox.inference_requests import Refusal
from ollamaops.sandbox.responses import SUCCESS, Line, Work

JSON = "application/json; charset=utf-8"
BARE_JSON = "application/json"
NDJSON = "application/x-ndjson"
_NO_END = Refusal(500, "unexpected end of progress response")


def answer(document: object, status: int = 200, content_type: str = JSON) -> Response:
    """One JSON document."""
    return Response(json_text(document), status, headers={"content-type": content_type})


def refuse(refusal: Refusal, content_type: str = JSON) -> Response:
    """An error answer."""
    return answer({"error": refusal.text}, refusal.status, content_type)


async def send_work(work: Work, behavior: Behavior, *, stream: bool) -> Response:
    """Carry out the work and answer with what it says."""
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
    for line in lines:
        if isinstance(line, Refusal):
            lines.close()
            return refuse(line, BARE_JSON)
        last = line
        if line.get("status") == SUCCESS and not behavior.waits_for_last_success:
            lines.close()
            break
    return (
        answer(last, content_type=BARE_JSON) if last.get("status") == SUCCESS else refuse(_NO_END, BARE_JSON)
    )


def _as_ndjson(lines: Iterator[Line], behavior: Behavior) -> Iterator[bytes]:
    for line in lines:
        if not isinstance(line, Refusal):
            yield json_line(line)
            continue
        status = {} if behavior.errors_end_streams or line.status == 500 else {"status": line.status}
        yield json_line({"error": line.text, **status})
        if behavior.errors_end_streams:
            return
