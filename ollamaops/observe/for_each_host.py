"""A glance at several hosts at once, each through a client of its own.

Decides only that a host which does not answer holds up nobody else; what a glance is for is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ollamaops.errors import Cancelled, OllamaopsError
from ollamaops.http.cancel import CancelToken
from ollamaops.manifest.types import HostSpec
from ollamaops.observe.host import Glance
from ollamaops.ollama.client import OllamaClient
from ollamaops.plan.actions import UnreachedHost

Found = TypeVar("Found")


def glance_at_hosts(
    hosts: Sequence[HostSpec],
    look: Callable[[HostSpec, Glance], Found],
    *,
    open_client: Callable[[HostSpec, CancelToken], OllamaClient],
    cancel: CancelToken,
    jobs: int,
) -> tuple[tuple[Found, ...], tuple[UnreachedHost, ...]]:
    """What `look` finds on each host, in the order of `hosts`, and the hosts that did not answer. Cancelled."""

    def ask(spec: HostSpec) -> Found | UnreachedHost:
        try:
            with open_client(spec, cancel) as client:
                return look(spec, Glance(spec=spec, client=client, cancel=cancel))
        except Cancelled:
            raise
        except OllamaopsError as error:
            return UnreachedHost(host=spec.name, error=str(error), hint=error.hint)

    with ThreadPoolExecutor(max_workers=max(1, min(jobs, len(hosts)))) as pool:
        answers = list(pool.map(ask, hosts))
    return (
        tuple(each for each in answers if not isinstance(each, UnreachedHost)),
        tuple(each for each in answers if isinstance(each, UnreachedHost)),
    )
