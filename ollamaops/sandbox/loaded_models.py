"""Which models are in memory, and until when: the scheduler behind generate, chat, embed and ps.

Nothing is really loaded. A request without `keep_alive` gives a loaded model the same time again that it was
given before.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ollamaops.sandbox.golang import MAX_DURATION_S, time_text
from ollamaops.sandbox.inference import Answer
from ollamaops.sandbox.stored_models import StoredModel

DEFAULT_KEEP_ALIVE_S = 300.0
_LEAVING_S = 1.0
_RUNNER_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread")


@dataclass
class _Runner:
    model: StoredModel
    context_length: int
    runner_options: tuple[object, ...]
    keep_alive_s: float
    expires_at: float = 0.0

    def used(self, now: float, keep_alive_s: float | None) -> None:
        """Used just now; it stays as long as is asked for, else as long as it was told before."""
        self.keep_alive_s = self.keep_alive_s if keep_alive_s is None else keep_alive_s
        self.expires_at = now + min(self.keep_alive_s, MAX_DURATION_S)


class LoadedModels:
    """The loaded models of one server, at most `limit` of them (OLLAMA_MAX_LOADED_MODELS).

    Models that share their weights, adapters and runner options share a runner, which has the name of the first.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        limit: int | None = None,
        *,
        unloads_at_once: bool = True,
    ) -> None:
        self._clock, self._limit, self._lock = clock, limit, threading.Lock()
        self._unloads_at_once = unloads_at_once
        self._loaded: dict[str, _Runner] = {}
        self._leaving: dict[str, tuple[_Runner, float]] = {}
        """What is unloaded but not yet out of ps, and until when."""

    def apply(
        self, answer: Answer, model: StoredModel, options: Mapping[str, object], context_length: int
    ) -> None:
        """Do with the model's runner what the answer says; `options` are the model's with the request's over them."""
        with self._lock:
            if answer.runner == "unload":
                self._unload(model)
            if answer.runner == "load" and answer.keep_alive_s == 0:
                self._loaded.pop(model.weights_digest, None)
            elif answer.runner == "load":
                self._load(model, options, context_length, answer.keep_alive_s)

    def _unload(self, model: StoredModel) -> None:
        known = self._loaded.pop(model.weights_digest, None)
        if known and not self._unloads_at_once and known.model.name != model.name:
            self._leaving[model.weights_digest] = known, self._clock() + _LEAVING_S

    def _load(
        self,
        model: StoredModel,
        given: Mapping[str, object],
        context_length: int,
        keep_alive_s: float | None,
    ) -> None:
        self._leaving.pop(model.weights_digest, None)
        options = tuple(given.get(name) for name in _RUNNER_OPTIONS)
        known = self._loaded.get(model.weights_digest)
        if not known or (known.runner_options, known.model.adapters) != (options, model.adapters):
            self._loaded.pop(model.weights_digest, None)
            self._make_room()
            known = _Runner(model, context_length, options, DEFAULT_KEEP_ALIVE_S)
            self._loaded[model.weights_digest] = known
        known.used(self._clock(), keep_alive_s)

    def _make_room(self) -> None:
        """Evict what is kept for the shortest time; of two the one that was loaded first."""
        self._expire()
        while self._limit is not None and len(self._loaded) >= self._limit:
            del self._loaded[min(self._loaded, key=lambda key: self._loaded[key].keep_alive_s)]

    def _expire(self) -> None:
        now = self._clock()
        self._loaded = {key: runner for key, runner in self._loaded.items() if runner.expires_at > now}

    def emptied(self) -> LoadedModels:
        """The runners of the same server after a restart: none."""
        return LoadedModels(self._clock, self._limit, unloads_at_once=self._unloads_at_once)

    def listed(self, *, with_context: bool) -> list[dict[str, object]]:
        """The models of ps, the one that stays longest first."""
        with self._lock:
            self._expire()
            leaving = [runner for runner, until in self._leaving.values() if self._clock() < until]
            self._leaving.clear()
            runners = sorted([*self._loaded.values(), *leaving], key=lambda runner: -runner.expires_at)
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
