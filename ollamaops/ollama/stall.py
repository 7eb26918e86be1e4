"""Following a pull, push or create: is it still moving, and did it really end?

A stuck download goes on sending progress lines (Ollama up to 0.32.1), so `completed` is watched, not the arrival of
lines. The `success` of a base that `create` pulls on the way is not the end of the create. Giving up on `verifying
sha256 digest` would be worse than waiting: the next pull takes the file for a good one without looking, so a silent
step gets time for all bytes that were announced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ollamaops.ollama.wire import PULLING, SUCCESS, Progress
from ollamaops.units import format_duration, format_size

SLOWEST_DISK_BYTES_S: Final = 20_000_000


class Watch:
    """What one stream has said. `stall_s` bounds the time without a new byte, `quiet_s` that of a silent step; a step
    after many bytes may take longer, as long as a slow disk needs to read them."""

    def __init__(self, stall_s: float, quiet_s: float, clock: Callable[[], float]) -> None:
        self.latest: Progress | None = None
        self._stall_s = stall_s
        self._quiet_s = quiet_s
        self._clock = clock
        self._moved_at = clock()
        self._completed: dict[tuple[str, str], int] = {}
        self._total_bytes: dict[str, int] = {}
        self._pulls = 0
        self._successes = 0

    def see(self, progress: Progress) -> None:
        """Take the next line into account. A count that fell back and rises again (a part begun anew) is movement.

        The same line of a silent step over and over is not.
        """
        key = (progress.status, progress.digest)
        is_new_step = progress.is_quiet and progress != self.latest
        if is_new_step or progress.completed_bytes > self._completed.get(key, -1):
            self._moved_at = self._clock()
        self._completed[key] = progress.completed_bytes
        self._total_bytes[progress.digest] = progress.total_bytes
        self._pulls += progress.status == PULLING
        self._successes += progress.status == SUCCESS
        self.latest = progress

    @property
    def limit_s(self) -> float:
        """How long the present step may go without a sign of life."""
        if self.latest is None or not self.latest.is_quiet:
            return self._stall_s
        return max(self._quiet_s, sum(self._total_bytes.values()) / SLOWEST_DISK_BYTES_S)

    @property
    def patience_s(self) -> float:
        """How much longer the server may be silent; not above 0 when it has stalled."""
        return self.limit_s - (self._clock() - self._moved_at)

    def describe_stall(self) -> str:
        """What stands still, and since when: `no new byte for 5m00s at 1.2 GB of 3.4 GB`."""
        since = format_duration(self.limit_s)
        if self.latest is None or not self.latest.total_bytes:
            return f"nothing new for {since} after '{self.latest.status if self.latest else 'the request'}'"
        done, total = format_size(self.latest.completed_bytes), format_size(self.latest.total_bytes)
        return f"no new byte for {since} at {done} of {total}"

    def is_done(self, inner_pulls: bool) -> bool:
        """Whether what was seen ends in the `success` of the whole.

        `inner_pulls`: a pull inside is not the thing itself, and its `success` does not count.
        """
        if self.latest is None or self.latest.status != SUCCESS:
            return False
        return self._successes > (self._pulls if inner_pulls else 0)
