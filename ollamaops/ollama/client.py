"""An Ollama server: one method per endpoint, the same for every version from 0.3 to 0.33.

Each endpoint is asked so that an old server does no harm. There are no retries and no loops over hosts here.

`create` from a base looks at tags first, because servers look a base up by exact case and, up to 0.12.5, wrote an
empty model over the old one when it was missing.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from msgspec.structs import replace

from ollamaops.errors import (
    AnswerError,
    CutStream,
    InvalidName,
    InvalidRequest,
    NotFound,
    RemoteError,
    TimeoutExceeded,
)
from ollamaops.http.cancel import CancelToken
from ollamaops.http.session import Credentials, TimeLimits, TlsFiles
from ollamaops.names import Digest, ModelName
from ollamaops.ollama.answer_errors import build_line_error
from ollamaops.ollama.features import Features, ServerVersion, features_of, first_version_with
from ollamaops.ollama.fields import Fields
from ollamaops.ollama.messages import render_keep_alive
from ollamaops.ollama.stall import Watch
from ollamaops.ollama.transport import JsonAnswer, JsonObject, Stream, Transport
from ollamaops.ollama.wire import (
    CreateRequest,
    Listed,
    LoadedModel,
    Progress,
    ShownModel,
    TaggedModel,
    read_listed,
)

if TYPE_CHECKING:
    from ollamaops.ollama.inference import (
        ChatAnswer,
        ChatRequest,
        EmbedAnswer,
        EmbedRequest,
        GenerateAnswer,
        GenerateRequest,
    )

ProgressSink = Callable[[Progress], None]
Chunk = TypeVar("Chunk", "GenerateAnswer", "ChatAnswer")

_DRAIN_S, _OLDEST = 5.0, (0, 3, 0)


class OllamaClient:
    """One host's API. Errors are RemoteError (and Cancelled); every message names the host. Thread-safe."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self._features: list[Features] = []  # at most one, shared with what `without_cancel` gives
        self.router = ""  # what calls itself one in the answers

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        host_name: str = "",
        headers: Mapping[str, str] | None = None,
        auth: Credentials | None = None,
        tls: TlsFiles | None = None,
        proxy: str | None = None,
        limits: TimeLimits | None = None,
        cancel: CancelToken | None = None,
    ) -> OllamaClient:
        """A client for the server at `url`, without asking it anything yet. `host_name` is for messages.

        `cancel` ends every call, whoever waits for it: the call then raises Cancelled.
        """
        name = host_name or urlsplit(url).netloc.rpartition("@")[2]
        return cls(
            Transport(
                name, url, headers=headers, auth=auth, tls=tls, proxy=proxy, limits=limits, cancel=cancel
            )
        )

    def without_cancel(self) -> OllamaClient:
        """The same client, same connections, for calls that must go on when the run is cancelled."""
        client = copy.copy(self)
        client.transport = self.transport.without_cancel()
        return client

    def __enter__(self) -> OllamaClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connections."""
        self.transport.close()

    @property
    def host(self) -> str:
        """The host's name in the manifest."""
        return self.transport.host_name

    # what the server is

    def version(self) -> ServerVersion:
        """What the server says it is; one request each time."""
        what = "ask for the version"
        answer = self.transport.request("GET", "/api/version", what=what)
        self.router = answer.router
        fields = self._whole(answer, what)
        if not fields.has("version"):
            raise fields.wrong("version", "a string")
        return ServerVersion.parse(fields.text("version"))

    def features(self) -> Features:
        """What the server can do; asked once, then remembered."""
        if not self._features:
            version = self.version()
            features = features_of(version)
            if not version.is_known and self._takes_modelfiles():
                features = replace(features_of(replace(version, number=_OLDEST)), version=version)
            self._features.append(features)
        return self._features[0]

    def _takes_modelfiles(self) -> bool:
        """Ask a server that does not know its version for a model of nothing: which one it misses tells its age."""
        try:
            self._post("/api/create", {"model": "x", "stream": False}, "probe the version")
        except AnswerError as error:
            return "odelfile" in error.text
        return False

    # what is there

    def tags(self) -> tuple[TaggedModel, ...]:
        """Every model of the host whose entry can be read, in the server's order."""
        return tuple(model for model in self.list_models() if isinstance(model, TaggedModel))

    def list_models(self) -> tuple[Listed, ...]:
        """Every model of the host, in the server's order."""
        what = "list models"
        return read_listed(self._whole(self.transport.request("GET", "/api/tags", what=what), what))

    def ps(self) -> tuple[LoadedModel, ...]:
        """Every model that is loaded now."""
        what = "list loaded models"
        answer = self.transport.request("GET", "/api/ps", what=what)
        return self._whole(answer, what).objects("models", LoadedModel.read)

    def show(self, model: ModelName, *, verbose: bool = False) -> ShownModel:
        """What the model is made of. `verbose` fills tensors and long arrays. NotFound if it is not there."""
        what = f"show {model}"
        self._check_addressable(model, what)
        body: dict[str, object] = {"model": model.display}
        answer = self._post("/api/show", body | ({"verbose": True} if verbose else {}), what)
        return ShownModel.read(self._whole(answer, what))

    def has_blob(self, digest: Digest) -> bool:
        """Whether the server has a file of that digest; its content is not looked at."""
        try:
            self.transport.request("HEAD", f"/api/blobs/{digest}", what=f"look for blob {digest.short}")
        except NotFound:
            return False
        return True

    # changing it

    def create(
        self,
        request: CreateRequest,
        *,
        on_progress: ProgressSink | None = None,
    ) -> None:
        """Make or replace a model, on servers from 0.5.5 on.

        InvalidRequest for what this version would not do or silently pass over; NotFound for a missing base where
        asking would do harm. The blobs of `files` must be there.
        """
        what = f"create {request.model}"
        features = self.features()
        self._check_create(request, features, what)
        body = dict(request.to_json())
        if request.from_ is None or features.stream_ends_at_error:
            base = self._find_spelling(request.from_) if request.from_ else None
            self._follow("/api/create", _with_base(body, base), what, on_progress, inner_pulls=True)
            return
        base = self._find_spelling(request.from_)
        if base is None:
            raise NotFound(
                f"{self.host}: {what}: the base '{request.from_}' is not there",
                host=self.host,
                hint="pull it first",
            )
        self._run_silently("/api/create", _with_base(body, base), what, on_progress)

    def create_from_modelfile(
        self,
        model: ModelName,
        modelfile: str,
        *,
        quantize: str | None = None,
        on_progress: ProgressSink | None = None,
    ) -> None:
        """Make or replace a model from the text of a Modelfile, on servers up to 0.5.4.

        FROM and ADAPTER name models that are there, or uploaded files as `@sha256:…`.
        """
        what = f"create {model}"
        if not self.features().models_from_modelfile:
            raise self._refuse(what, "servers from 0.5.5 on take no Modelfile", "send a structured request")
        body: dict[str, object] = {"model": model.display, "modelfile": modelfile}
        body |= {"quantize": quantize} if quantize else {}
        self._follow("/api/create", body, what, on_progress, inner_pulls=True)

    def copy(self, source: ModelName, destination: ModelName) -> None:
        """Make `destination` the same model as `source`, replacing what was there. NotFound without a source."""
        body = {"source": source.display, "destination": destination.display}
        self._post("/api/copy", body, f"copy {source} to {destination}", self.transport.limits.stall_s)

    def delete(self, model: ModelName) -> bool:
        """Remove the model. False if it was not there."""
        what = f"delete {model}"
        self._check_addressable(model, what)
        try:
            self.transport.request(
                "DELETE",
                "/api/delete",
                body={"model": model.display},
                what=what,
                idle_s=self.transport.limits.stall_s,
            )
        except NotFound:
            return False
        return True

    def pull(
        self,
        model: ModelName,
        *,
        insecure: bool = False,
        on_progress: ProgressSink | None = None,
        stall_s: float | None = None,
    ) -> None:
        """Download the model from its registry. `insecure` means plain http.

        TimeoutExceeded when no byte arrives for `stall_s` (default: the host's); pulling again resumes.
        """
        what = f"pull {model}"
        self._check_addressable(model, what)
        body = {"model": model.display} | ({"insecure": True} if insecure else {})
        self._follow("/api/pull", body, what, on_progress, stall_s=stall_s)

    def push(
        self,
        model: ModelName,
        *,
        insecure: bool = False,
        on_progress: ProgressSink | None = None,
        stall_s: float | None = None,
    ) -> None:
        """Upload the model to the registry that its name points to, with the key of the server."""
        body = {"model": model.display} | ({"insecure": True} if insecure else {})
        self._follow("/api/push", body, f"push {model}", on_progress, stall_s=stall_s)

    # using it

    def load(self, model: ModelName, *, keep_alive_s: float | None = None) -> None:
        """Load the model and wait until it is. `keep_alive_s`: negative forever, None as the server likes."""
        keep = {} if keep_alive_s is None else {"keep_alive": render_keep_alive(keep_alive_s)}
        self._set_residency(model, keep, f"load {model}")

    def unload(self, model: ModelName) -> None:
        """Drop the model from memory; `ps` may list it a moment longer. Up to 0.3.10 it is loaded first."""
        self._set_residency(model, {"keep_alive": 0}, f"unload {model}")

    def generate(self, request: GenerateRequest, *, idle_s: float | None = None) -> GenerateAnswer:
        """The whole completion. `idle_s` bounds the wait for it, loading included."""
        what = f"generate with {request.model}"
        self._check_addressable(request.model, what)
        answer = self._post("/api/generate", _unstreamed(request.to_json()), what, self._wait(idle_s))
        return request.read(self._answered(answer, what))

    def generate_stream(
        self, request: GenerateRequest, *, idle_s: float | None = None
    ) -> Iterator[GenerateAnswer]:
        """The completion piece by piece; the last piece has `done` and the timings."""
        what = f"generate with {request.model}"
        self._check_addressable(request.model, what)
        return self._chunks("/api/generate", request.to_json(), what, request.read, idle_s)

    def chat(self, request: ChatRequest, *, idle_s: float | None = None) -> ChatAnswer:
        """The whole answer of the assistant."""
        what = f"chat with {request.model}"
        self._check_addressable(request.model, what)
        answer = self._post("/api/chat", _unstreamed(request.to_json()), what, self._wait(idle_s))
        return request.read(self._answered(answer, what))

    def chat_stream(self, request: ChatRequest, *, idle_s: float | None = None) -> Iterator[ChatAnswer]:
        """The answer of the assistant piece by piece; the last piece has `done` and the timings."""
        what = f"chat with {request.model}"
        self._check_addressable(request.model, what)
        return self._chunks("/api/chat", request.to_json(), what, request.read, idle_s)

    def embed(self, request: EmbedRequest, *, idle_s: float | None = None) -> EmbedAnswer:
        """One vector per input."""
        what = f"embed with {request.model}"
        self._check_addressable(request.model, what)
        answer = self._post("/api/embed", request.to_json(), what, self._wait(idle_s))
        return request.read(self._answered(answer, what))

    # how

    def _whole(self, answer: JsonAnswer, what: str) -> Fields:
        """The object in a 200 answer; CutStream when nothing came, which is how a proxy's broken answer looks."""
        if not answer.text.strip():
            raise CutStream(f"{self.host}: {what}: the answer is empty", host=self.host)
        return self._fields(answer.json, what)

    def _fields(self, value: object, what: str) -> Fields:
        return Fields(value, f"{self.host}: {what}: the answer", self.host)

    def _answered(self, answer: JsonAnswer, what: str) -> Fields:
        """The object in a 200 answer, unless it is an error after all."""
        fields = self._whole(answer, what)
        if fields.has("error"):
            raise build_line_error(self.host, what, fields.values)
        return fields

    def _wait(self, idle_s: float | None) -> float:
        return self.transport.limits.stall_s if idle_s is None else idle_s

    def _post(
        self,
        path: str,
        body: JsonObject,
        what: str,
        idle_s: float | None = None,
    ) -> JsonAnswer:
        return self.transport.request("POST", path, body=body, what=what, idle_s=idle_s)

    def _refuse(self, what: str, why: str, hint: str) -> InvalidRequest:
        return InvalidRequest(f"{self.host}: {what}: {why}", host=self.host, hint=hint)

    def _check_addressable(self, model: ModelName, what: str) -> None:
        """Refuse `x:local` where the server would act on `x:latest` instead (0.18.0 and newer)."""
        if model.source_suffix == "local" and self.features().suffix_routing:
            raise self._refuse(
                what,
                f"servers from 0.18.0 on take '{model}' for '{model.pull_name}'",
                "copy it to a name that does not end in :local and use that one",
            )

    def _check_create(self, request: CreateRequest, features: Features, what: str) -> None:
        if not features.structured_create:
            raise self._refuse(
                what,
                f"ollama {features.version} takes a Modelfile only",
                f"a structured request needs {first_version_with('structured_create')} or newer",
            )
        if (request.from_ is None) == (not request.files):
            raise self._refuse(what, "needs a base or files, and not both", "give exactly one of them")
        for name, flag in request.unknown_fields(features):
            raise self._refuse(
                what,
                f"ollama {features.version} would pass over '{name}'",
                f"it needs {first_version_with(flag)} or newer",
            )
        if request.from_ is not None and features.suffix_routing:
            self._check_addressable(request.from_, what)

    def _find_spelling(self, model: ModelName) -> str | None:
        """How the server spells the name of this model, None if it has none; if it has two, as it is asked for."""
        found = []
        for tagged in self.tags():
            with contextlib.suppress(InvalidName):
                if ModelName.parse(tagged.name) == model:
                    found.append(tagged.name)
        return model.display if model.display in found else next(iter(found), None)

    def _set_residency(self, model: ModelName, keep: Mapping[str, object], what: str) -> None:
        self._check_addressable(model, what)
        quiet_s = self.transport.limits.quiet_s
        body: dict[str, object] = {"model": model.display, **keep}
        try:
            self._answered(self._post("/api/generate", body, what, quiet_s), what)
        except InvalidRequest as error:
            if "does not support" not in error.text:
                raise
            by_embed = self.features().embed_empty_loads
            path, body["prompt"] = ("/api/embed" if by_embed else "/api/embeddings"), ""
            self._answered(self._post(path, body, what, quiet_s), what)

    def _chunks(
        self,
        path: str,
        body: JsonObject,
        what: str,
        read: Callable[[Fields], Chunk],
        idle_s: float | None,
    ) -> Iterator[Chunk]:
        done = False
        with self.transport.stream(
            "POST", path, body={**body, "stream": True}, what=what, idle_s=self._wait(idle_s)
        ) as stream:
            for line in stream:
                if line.get("error") is not None:
                    raise build_line_error(self.host, what, line)
                chunk = read(self._fields(line, what))
                done = chunk.done
                yield chunk
        if not done:
            raise CutStream(f"{self.host}: {what}: the answer ends before its last piece", host=self.host)

    def _run_silently(
        self,
        path: str,
        body: JsonObject,
        what: str,
        on_progress: ProgressSink | None,
    ) -> None:
        """Without a stream: one answer at the end, and no harm done by an error on the way."""
        answer = self._post(path, _unstreamed(body), what, self.transport.limits.quiet_s)
        progress = Progress.read(self._answered(answer, what))
        if progress.status != "success":
            raise CutStream(f"{self.host}: {what}: ended with '{progress.status}'", host=self.host)
        if on_progress is not None:
            on_progress(progress)

    def _follow(
        self,
        path: str,
        body: JsonObject,
        what: str,
        on_progress: ProgressSink | None,
        *,
        stall_s: float | None = None,
        inner_pulls: bool = False,
    ) -> None:
        """With a stream: read it to its end, and believe only a `success` that is the last word."""
        limits = self.transport.limits
        stall_s = limits.stall_s if stall_s is None else stall_s
        watch = Watch(limits.quiet_s if inner_pulls else stall_s, limits.quiet_s, self.transport.clock)
        try:
            with self.transport.stream(
                "POST", path, body={**body, "stream": True}, what=what, idle_s=watch.patience_s
            ) as stream:
                self._watch_lines(stream, watch, what, on_progress)
        except TimeoutExceeded as error:
            raise (self._stalled(what, watch) if watch.patience_s <= 0 else error) from error.__cause__
        if not watch.is_done(inner_pulls):
            last = watch.latest.status if watch.latest else "nothing"
            raise CutStream(
                f"{self.host}: {what}: the answer ends after '{last}', without success", host=self.host
            )

    def _watch_lines(self, stream: Stream, watch: Watch, what: str, on_progress: ProgressSink | None) -> None:
        """Hand each line on; raise the first error line, and when nothing moves any more."""
        lines = iter(stream)
        for line in lines:
            if line.get("error") is not None:
                with contextlib.suppress(RemoteError):  # a server up to 0.12.5 goes on; let it finish
                    stream.allow_silence(_DRAIN_S)
                    for _ in lines:
                        pass
                raise build_line_error(self.host, what, line)
            progress = Progress.read(self._fields(line, what))
            watch.see(progress)
            if on_progress is not None:
                on_progress(progress)
            if watch.patience_s <= 0:
                raise self._stalled(what, watch)
            stream.allow_silence(watch.patience_s)

    def _stalled(self, what: str, watch: Watch) -> TimeoutExceeded:
        return TimeoutExceeded(
            f"{self.host}: {what}: stalled: {watch.describe_stall()}",
            host=self.host,
            hint="the server waits for its registry or its disk; the next attempt resumes where it stopped",
        )


def _unstreamed(body: JsonObject) -> dict[str, object]:
    return {**body, "stream": False}


def _with_base(body: JsonObject, base: str | None) -> dict[str, object]:
    return {**body, "from": base} if base is not None else dict(body)
