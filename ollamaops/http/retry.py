"""When to try again, and how long to wait: one policy for every request that may be repeated.

Only errors that say they are `transient` are tried again; the wait doubles from half a second with jitter, never
beats a server's Retry-After, and ends at once when somebody asks to stop. Every retry is told to `on_retry`. A
server that asks for more patience than `LONGEST_PATIENCE_S` is not waited for: that is the next run's business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from ollamaops.errors import AnswerError, Cancelled, OllamaopsError
from ollamaops.http.cancel import CancelToken

if TYPE_CHECKING:
    from tenacity import RetryCallState

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
    """What `work` returns, tried at most `1 + retries` times. The last error is raised as it is; or Cancelled.

    `on_retry` is told the number of the attempt that failed (from 1), the seconds until the next, and the error.
    """
    try:
        return work()
    except OllamaopsError as error:
        if retries < 1 or not is_worth_retrying(error):
            raise
        failed = [error]

    def go_on() -> Result:
        """The first attempt has been made: what is left of it is its error."""
        if failed:
            raise failed.pop()
        return work()

    return _try_again(go_on, retries, cancel, on_retry, first_wait_s)


def _try_again(
    work: Callable[[], Result],
    retries: int,
    cancel: CancelToken,
    on_retry: OnRetry | None,
    first_wait_s: float,
) -> Result:
    from tenacity import Retrying, retry_if_exception, stop_after_attempt

    def tell(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if on_retry is not None and isinstance(error, OllamaopsError):
            on_retry(state.attempt_number, state.upcoming_sleep, error)

    def pause(seconds: float) -> None:
        if cancel.wait(seconds):
            raise Cancelled("stopped while waiting to try again")

    policy = Retrying(
        stop=stop_after_attempt(1 + retries),
        retry=retry_if_exception(is_worth_retrying),
        wait=_Wait(first_wait_s),
        sleep=pause,
        before_sleep=tell,
        reraise=True,
    )
    return policy(work)


class _Wait:
    """Exponential with jitter, but at least what the server's Retry-After asked for."""

    def __init__(self, first_wait_s: float) -> None:
        from tenacity import wait_exponential, wait_random

        self._backoff = wait_exponential(first_wait_s, LONGEST_WAIT_S) + wait_random(0, first_wait_s)

    def __call__(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return max(self._backoff(state), _asked_s(error))


def _asked_s(error: BaseException | None) -> float:
    """The seconds that Retry-After asked for, 0 when it did not."""
    return (error.retry_after_s or 0.0) if isinstance(error, AnswerError) else 0.0
