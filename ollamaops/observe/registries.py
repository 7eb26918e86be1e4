"""What registries have, asked once per name and run, however many hosts want to know.

Questions to one registry run one after the other, those to different registries side by side, so that a dead address
delays only itself. Every question runs in a thread of its own, so that a run that is stopped need not wait for a name
server, a connection or an answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from difflib import get_close_matches
from queue import SimpleQueue
from typing import TypeVar

from ollamaops.errors import (
    AnswerError,
    Cancelled,
    ConnectionLost,
    DigestMismatch,
    NotFound,
    OllamaopsError,
    TransportError,
)
from ollamaops.http.cancel import CancelToken
from ollamaops.http.retry import attempt
from ollamaops.lockfile.build import Answer, Cause, Unanswered
from ollamaops.names import Digest, ModelName
from ollamaops.plan.observed import RegistryAnswer
from ollamaops.registry.client import RegistryClient
from ollamaops.registry.documents import Layer, ManifestList, digest_set

RETRIES = 2
LONGEST_WAIT_S = 10.0
MAX_KEPT_BYTES = 1024 * 1024
MOST_TAGS = 5

Result = TypeVar("Result")


@dataclass(slots=True)
class _Registry:
    """What one registry said. `unreached` is why it is not asked any more."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    manifests: dict[ModelName, Answer] = field(default_factory=dict)
    templates: dict[Digest, str] = field(default_factory=dict)
    blobs: dict[Digest, bytes] = field(default_factory=dict)
    unreached: Unanswered | None = None


class RegistryCache:
    """Answers of registries, remembered for the run. Safe to use from several threads.

    A registry that could not be reached once is not tried again for other names: a plan of a hundred models must
    not wait a hundred times for the same dead address.
    """

    def __init__(self, open_client: Callable[[], RegistryClient], cancel: CancelToken | None = None) -> None:
        self._open_client = open_client
        self._cancel = cancel or CancelToken()
        self._lock = threading.Lock()
        self._client: RegistryClient | None = None
        self._registries: dict[tuple[str, bool], _Registry] = {}

    def ask(self, names: Mapping[ModelName, bool]) -> dict[ModelName, RegistryAnswer]:
        """What the registries say of `names` (mapped to whether plain http is meant)."""
        return {name: _upstream_of(self.manifest(name, insecure)) for name, insecure in names.items()}

    def recall(self, names: Mapping[ModelName, bool]) -> dict[ModelName, RegistryAnswer]:
        """As `ask`, of those alone that have been asked about; nobody is asked for that."""
        found = {name: self._registry(name, names[name]).manifests.get(name) for name in names}
        return {name: _upstream_of(answer) for name, answer in found.items() if answer is not None}

    def manifest(self, name: ModelName, insecure: bool = False) -> Answer:
        """The registry manifest of `name`, or why it is not known. Cancelled if somebody asked to stop."""
        registry = self._registry(name, insecure)
        with registry.lock:
            if name not in registry.manifests:
                if registry.unreached:
                    return registry.unreached
                registry.manifests[name] = answer = self._fetch(name, insecure)
                if isinstance(answer, Unanswered) and answer.cause == "unreached":
                    registry.unreached = answer
            return registry.manifests[name]

    def blob(self, name: ModelName, layer: Layer, insecure: bool = False) -> bytes:
        """The bytes of a layer of `name`, checked. RemoteError when they cannot be had, or are something else.

        Cancelled, here as in `has_blob`, if somebody asked to stop.
        """
        kept = self._registry(name, insecure).blobs
        if layer.digest in kept:
            return kept[layer.digest]
        data = self._with_retries(
            lambda: self._open().blob(name, layer.digest, layer.size_bytes, insecure=insecure)
        )
        if len(data) <= MAX_KEPT_BYTES:
            kept[layer.digest] = data
        return data

    def weights_template(self, name: ModelName, layer: Layer, insecure: bool = False) -> str:
        """The Jinja template that a GGUF layer of `name` carries, "" if it has none; its header alone is read.

        RemoteError or WeightsError when that cannot be told. Cancelled.
        """
        kept = self._registry(name, insecure).templates
        if layer.digest not in kept:
            header = self._with_retries(
                lambda: self._open().blob_header(name, layer.digest, layer.size_bytes, insecure=insecure)
            )
            kept[layer.digest] = header.chat_template or ""
        return kept[layer.digest]

    def has_blob(self, name: ModelName, layer: Layer, insecure: bool = False) -> bool:
        """Whether the registry has the layer; its bytes are not read. RemoteError when it does not say."""
        return self._with_retries(lambda: self._open().blob_exists(name, layer.digest, insecure=insecure))

    def forget(self, name: ModelName, insecure: bool = False) -> None:
        """Ask anew the next time: the registry is known to have changed, by a push."""
        registry = self._registry(name, insecure)
        with registry.lock:
            registry.manifests.pop(name, None)

    def close(self) -> None:
        """Close the connections. Nothing is asked after that, not even by a question that was left behind."""
        if self._client is not None:
            self._client.close()

    def _registry(self, name: ModelName, insecure: bool) -> _Registry:
        """What is known of the registry; over http it may answer although over https it does not."""
        with self._lock:
            return self._registries.setdefault((name.registry_host.lower(), insecure), _Registry())

    def _open(self) -> RegistryClient:
        with self._lock:
            if self._client is None:
                self._client = self._open_client()
            return self._client

    def _fetch(self, name: ModelName, insecure: bool) -> Answer:
        try:
            return self._with_retries(lambda: self._open().manifest(name, insecure=insecure))
        except Cancelled:
            raise
        except OllamaopsError as error:
            cause = _cause(error)
            said = _of_registry(error, name) if cause == "unreached" else str(error)
            hint = self._suggest_tags(name, insecure) if cause == "gone" else None
            return Unanswered(error=said, hint=hint or error.hint, cause=cause)

    def _suggest_tags(self, name: ModelName, insecure: bool) -> str | None:
        """Which tags there are in the place of one that is not; None if the registry does not tell."""
        try:
            tags = _unless_stopped(lambda: self._open().tags(name, insecure), self._cancel)
        except Cancelled:
            raise
        except OllamaopsError:
            return None
        near = get_close_matches(name.tag, tags, n=MOST_TAGS)
        shown = [*near, *sorted(set(tags) - set(near))][:MOST_TAGS]
        more = f" and {len(tags) - len(shown)} more" if len(tags) > len(shown) else ""
        return f"check the tag: {name.repository} has {', '.join(shown)}{more}" if shown else None

    def _with_retries(self, question: Callable[[], Result]) -> Result:
        """`question`, asked again when the registry itself said that this may help, and soon."""

        def ask() -> Result | OllamaopsError:
            try:
                return _unless_stopped(question, self._cancel)
            except OllamaopsError as error:
                if _is_worth_asking_again(error):
                    raise
                return error

        answer = attempt(ask, retries=RETRIES, cancel=self._cancel)
        if isinstance(answer, OllamaopsError):
            raise answer
        return answer


def _unless_stopped(question: Callable[[], Result], cancel: CancelToken) -> Result:
    """What `question` returns; Cancelled as soon as somebody asks to stop, who leaves the question behind.

    What is left behind ends with its answer or its timeout, and nobody hears of it.
    """
    cancel.check("stopped before a registry was asked")
    answer: Future[Result] = Future()
    bell: SimpleQueue[None] = SimpleQueue()  # unlike an Event it may be rung by a signal handler

    def ask() -> None:
        try:
            answer.set_result(question())
        except BaseException as error:  # noqa: BLE001  raised again by who waits for it
            answer.set_exception(error)
        bell.put(None)

    with cancel.calling(lambda: bell.put(None)):
        threading.Thread(target=ask, name="registry question", daemon=True).start()
        bell.get()
    cancel.check("stopped while a registry was asked")
    return answer.result()


def _of_registry(error: OllamaopsError, name: ModelName) -> str:
    """What is wrong with the registry, whichever model it was asked for first: all its models are told the same."""
    return str(error).replace(f": manifest of {name.display}: ", ": ", 1)


def _is_worth_asking_again(error: OllamaopsError) -> bool:
    """Not when nobody answers at the address: that costs a timeout each time, and is rarely over in a second."""
    if isinstance(error, AnswerError):
        return error.transient and (error.retry_after_s or 0.0) <= LONGEST_WAIT_S
    return isinstance(error, ConnectionLost)


def _cause(error: OllamaopsError) -> Cause:
    match error:
        case NotFound():
            return "gone"
        case DigestMismatch():
            return "tampered"
        case TransportError():
            return "unreached"
        case _:
            return "refused"


def _upstream_of(answer: Answer) -> RegistryAnswer:
    if isinstance(answer, Unanswered):
        return RegistryAnswer(
            error=answer.error,
            hint=answer.hint,
            answered=answer.cause != "unreached",
            gone=answer.cause == "gone",
        )
    return RegistryAnswer(
        digests=digest_set(answer.raw),
        registry_digest=answer.digest.hex,
        layers=tuple(answer.blobs.items()),
        foreign=not answer.document.is_model,
        has_sizes=not isinstance(answer.document, ManifestList),
    )
