"""When to try again, and how long to wait: one policy for every request that may be repeated.

Only errors that are `transient` are tried again. The wait doubles from half a second with jitter, is never shorter
than a server's Retry-After, and ends at once on a cancel. A server that asks for more patience than
`LONGEST_PATIENCE_S` is left to the next run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from ollamaops.errors import AnswerError, Cancelled, OllamaopsError
from ollamaops.http.cancel import CancelToken

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 60.0
LONGEST_PATIENCE_S = 600.0

Result = TypeVar("Result")
OnRetry = Callable[[int, float, OllamaopsError], None]


def is_worth_retrying(error: BaseException) -> bool:
    """Whether the same request may succeed when it is sent again, within a bearable time."""
    return isinstance(error, OllamaopsError) and error.transient and _asked_s(error) <= LONGEST_PATIENCE_S


def attempt(
    work: Callable[[], Result],
    *,
    retries: int,
    cancel: CancelToken,
    on_retry: OnRetry | None = None,
    first_wait_s: float = FIRST_WAIT_S,
) -> Result:
    """What `work` returns, tried at most `1 + retries` times. Raises its last error, or Cancelled.

    `on_retry` is told the number of the attempt that failed (from 1), the seconds until the next, and the error.
    """
    backoff = wait_exponential(first_wait_s, LONGEST_WAIT_S) + wait_random(0, first_wait_s)

    def wait_s(state: RetryCallState) -> float:
        return max(backoff(state), _asked_s(_error_of(state)))

    def pause(seconds: float) -> None:
        if cancel.wait(seconds):
            raise Cancelled("stopped while waiting to try again")

    def tell(state: RetryCallState) -> None:
        error = _error_of(state)
        if on_retry is not None and isinstance(error, OllamaopsError):
            on_retry(state.attempt_number, state.upcoming_sleep, error)

    policy = Retrying(
        stop=stop_after_attempt(1 + retries),
        retry=retry_if_exception(is_worth_retrying),
        wait=wait_s,
        sleep=pause,
        before_sleep=tell,
        reraise=True,
    )
    return policy(work)


def _error_of(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def _asked_s(error: BaseException | None) -> float:
    """The seconds that Retry-After asked for, 0 when it did not."""
    return (error.retry_after_s or 0.0) if isinstance(error, AnswerError) else 0.0
