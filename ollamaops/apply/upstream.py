"""What registries have, asked once per name and run, whatever number of hosts wants to know."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from ollamaops.errors import AnswerError, OllamaopsError
from ollamaops.names import ModelName
from ollamaops.plan.observed import Upstream
from ollamaops.registry.client import RegistryClient
from ollamaops.registry.documents import digest_set


class Upstreams:
    """Answers of registries, remembered for the run. Safe to use from several threads.

    A registry that could not be reached once is not tried again for other names: a plan of a hundred models must
    not wait a hundred times for the same dead address.
    """

    def __init__(self, open_client: Callable[[], RegistryClient]) -> None:
        self._open_client = open_client
        self._client: RegistryClient | None = None
        self._lock = threading.Lock()
        self._known: dict[ModelName, Upstream] = {}
        self._unreached: dict[str, Upstream] = {}

    def ask(self, names: Mapping[ModelName, bool]) -> dict[ModelName, Upstream]:
        """What the registries say of `names` (mapped to whether plain http is meant)."""
        with self._lock:
            return {name: self._ask(name, insecure) for name, insecure in names.items()}

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()

    def _ask(self, name: ModelName, insecure: bool) -> Upstream:
        if name not in self._known:
            registry = name.registry_host.lower()
            if registry in self._unreached:
                return self._unreached[registry]
            self._known[name] = answer = self._fetch(name, insecure)
            if answer.error and not answer.answered:
                self._unreached[registry] = answer
        return self._known[name]

    def _fetch(self, name: ModelName, insecure: bool) -> Upstream:
        if self._client is None:
            self._client = self._open_client()
        try:
            fetched = self._client.manifest(name, insecure=insecure)
        except OllamaopsError as error:
            return Upstream(error=str(error), hint=error.hint, answered=isinstance(error, AnswerError))
        return Upstream(
            digests=digest_set(fetched.raw),
            registry_digest=fetched.digest.hex,
            layers=tuple(fetched.blobs.items()),
        )
