"""When to try again, and how long to wait: one policy for every request that may be repeated.

Only errors that say they are `transient` are tried again; the wait doubles from half a second with jitter, never
beats a server's Retry-After, and ends at once when somebody asks to stop. Every retry is told to `on_retry`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

from ollamaops.errors import AnswerError, Cancelled, OllamaopsError
from ollamaops.ollama.cancel import CancelToken

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 60.0

Result = TypeVar("Result")
OnRetry = Callable[[int, float, OllamaopsError], None]


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed when it is sent again."""
    return isinstance(error, OllamaopsError) and error.transient


def attempt(
    work: Callable[[], Result],
    *,
    retries: int,
    cancel: CancelToken,
    on_retry: OnRetry,
    first_wait_s: float = FIRST_WAIT_S,
) -> Result:
    """What `work` returns, tried at most `1 + retries` times. The last error is raised as it is; or Cancelled.

    `on_retry` is told the number of the attempt that failed (from 1), the seconds until the next, and the error.
    """

    def tell(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, OllamaopsError) and state.next_action:
            on_retry(state.attempt_number, state.next_action.sleep, error)

    def pause(seconds: float) -> None:
        if cancel.wait(seconds):
            raise Cancelled("stopped while waiting to try again")

    policy = Retrying(
        stop=stop_after_attempt(1 + retries),
        retry=retry_if_exception(is_transient),
        wait=_Wait(first_wait_s),
        sleep=pause,
        before_sleep=tell,
        reraise=True,
    )
    return policy(work)


class _Wait:
    """Exponential with jitter, but at least what the server's Retry-After asked for."""

    def __init__(self, first_wait_s: float) -> None:
        self._backoff = wait_exponential(multiplier=first_wait_s, max=LONGEST_WAIT_S) + wait_random(0, first_wait_s)

    def __call__(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after_s if isinstance(error, AnswerError) and error.retry_after_s else 0.0
        return max(self._backoff(state), min(asked, 10 * LONGEST_WAIT_S))
