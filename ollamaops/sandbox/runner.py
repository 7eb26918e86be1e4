"""Which models are in memory, until when: the pretend scheduler behind generate, chat, embed and ps.

Decides loading, keep-alive and expiry; nothing is really loaded. Time comes from a clock that tests can replace.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ollamaops.sandbox.golang import MAX_DURATION_S, time_text
from ollamaops.sandbox.inference import Answer
from ollamaops.sandbox.library import StoredModel

DEFAULT_KEEP_ALIVE_S = 300.0
_RUNNER_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread")


@dataclass
class _Runner:
    model: StoredModel
    context_length: int
    runner_options: tuple[object, ...]
    expires_at: float


class Runners:
    """The loaded models of one server."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._loaded: dict[str, _Runner] = {}

    def apply(self, answer: Answer, model: StoredModel, context_length: int) -> None:
        """Do with the model's runner what the answer says."""
        with self._lock:
            if answer.runner == "unload":
                self._loaded.pop(model.weights_digest, None)
            if answer.runner == "load":
                self._load(model, context_length, answer.keep_alive_s)

    def _load(self, model: StoredModel, context_length: int, keep_alive_s: float | None) -> None:
        seconds = DEFAULT_KEEP_ALIVE_S if keep_alive_s is None else keep_alive_s
        if seconds == 0:
            self._loaded.pop(model.weights_digest, None)
            return
        options = tuple(model.options.get(name) for name in _RUNNER_OPTIONS)
        known = self._loaded.get(model.weights_digest)
        expires_at = self._clock() + (MAX_DURATION_S if math.isinf(seconds) else seconds)
        if known and known.runner_options == options and known.model.adapters == model.adapters:
            known.expires_at = expires_at
        else:
            self._loaded[model.weights_digest] = _Runner(model, context_length, options, expires_at)

    def listed(self, *, with_context: bool) -> list[dict[str, object]]:
        """The models of ps, the one that stays longest first."""
        with self._lock:
            now = self._clock()
            self._loaded = {key: runner for key, runner in self._loaded.items() if runner.expires_at > now}
            runners = sorted(self._loaded.values(), key=lambda runner: -runner.expires_at)
        return [_entry(runner, with_context=with_context) for runner in runners]


def _entry(runner: _Runner, *, with_context: bool) -> dict[str, object]:
    model = runner.model
    entry: dict[str, object] = {
        "name": model.name.short,
        "model": model.name.short,
        "size": model.manifest.size,
        "digest": model.manifest.digest,
        "details": model.config.details(),
        "expires_at": time_text(int(runner.expires_at * 10**9)),
        "size_vram": 0,
    }
    return entry | ({"context_length": runner.context_length} if with_context else {})
