"""POST /api/blobs: bytes to a temporary file, hashed as they come, named when complete.

Decides what a wrong digest and a cut connection leave behind: the former keeps the bytes under their true digest,
the latter nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from ollamaops.sandbox.responses import bad_request, failure, os_failure
from ollamaops.sandbox.store import Store, Upload

_BATCH = 4 << 20


async def receive_blob(store: Store, request: Request, digest: str) -> None:
    """Store the body of `request` as a blob, in constant memory. Refusal."""
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
