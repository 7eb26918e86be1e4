"""Reading `/api/ps`: what is in a server's memory, and for how long.

The fact a reader would miss: a moment becomes a number of seconds here, by this machine's clock, so that whoever
decides needs no clock.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

from ollamaops.errors import InvalidName
from ollamaops.names import ModelName
from ollamaops.ollama.client import OllamaClient
from ollamaops.plan.observed import Loaded, read_stay


def read_loaded(client: OllamaClient) -> tuple[Loaded, ...]:
    """What is in memory right now, under every name that requests can use."""
    found, now = [], datetime.now(UTC)
    for model in client.ps():
        with suppress(InvalidName):
            found.append(
                Loaded(
                    name=ModelName.parse(model.name),
                    digest=model.digest.hex,
                    size_bytes=model.size_bytes,
                    vram_bytes=model.vram_bytes,
                    context_length=model.context_length,
                    expires_at=model.expires_at,
                    stays_s=read_stay(model.expires_at, now),
                )
            )
    return tuple(found)
