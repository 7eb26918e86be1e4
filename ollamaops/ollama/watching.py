"""Following a pull, push or create: is it still moving, and did it really end?

Pure, but for the clock that is handed in. Easily missed: a stuck download goes on sending progress lines (Ollama up
to 0.32.1), so `completed` is watched, not the arrival of lines; and the `success` of a base that `create` pulls on
the way is not the end of the create.
"""

from __future__ import annotations

from collections.abc import Callable

from ollamaops.ollama.wire import PULLING, SUCCESS, Progress


class Watch:
    """What one stream has said. `stall_s` bounds the time without a new byte, `quiet_s` that of a silent step."""

    def __init__(self, stall_s: float, quiet_s: float, clock: Callable[[], float]) -> None:
        self.latest: Progress | None = None
        self._stall_s = stall_s
        self._quiet_s = quiet_s
        self._clock = clock
        self._moved_at = clock()
        self._completed: dict[tuple[str, str], int] = {}
        self._pulls = 0
        self._successes = 0

    def see(self, progress: Progress) -> None:
        """Take the next line into account. A count that fell back and rises again (a part begun anew) is movement."""
        key = (progress.status, progress.digest)
        if progress.is_quiet or progress.completed_bytes > self._completed.get(key, -1):
            self._moved_at = self._clock()
        self._completed[key] = progress.completed_bytes
        self._pulls += progress.status == PULLING
        self._successes += progress.status == SUCCESS
        self.latest = progress

    @property
    def patience_s(self) -> float:
        """How much longer the server may be silent; not above 0 when it has stalled."""
        limit = self._quiet_s if self.latest is not None and self.latest.is_quiet else self._stall_s
        return limit - (self._clock() - self._moved_at)

    def is_done(self, inner_pulls: bool) -> bool:
        """Whether what was seen ends in the `success` of the whole.

        `inner_pulls`: a pull inside is not the thing itself, and its `success` does not count.
        """
        if self.latest is None or self.latest.status != SUCCESS:
            return False
        return self._successes > (self._pulls if inner_pulls else 0)
