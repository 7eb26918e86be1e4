"""Asking models what their expectations require: load, generate, chat or embed, with the answer as evidence.

plan/expectations.py decides what the evidence means. Before 0.6.4 no server tells what a model can do, so it is
worked out the way those servers do it, and "does not support generate" means that texts are to be embedded.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from ollamaops.errors import (
    AccessDenied,
    AnswerError,
    DiskFull,
    InvalidRequest,
    RemoteError,
    TimeoutExceeded,
    TooManyRequests,
)
from ollamaops.manifest.types import ModelSpec
from ollamaops.names import ModelName
from ollamaops.observe.contents import look_into
from ollamaops.observe.run import HostTask, Run, for_each
from ollamaops.observe.session import HostSession, reach
from ollamaops.observe.verify_files import check_files
from ollamaops.ollama.contents import contents_of
from ollamaops.ollama.features import Features
from ollamaops.ollama.inference import (
    ChatAnswer,
    ChatRequest,
    EmbedRequest,
    GenerateAnswer,
    GenerateRequest,
    Timings,
)
from ollamaops.ollama.messages import Message
from ollamaops.ollama.wire import ShownModel
from ollamaops.plan.expectations import (
    Evidence,
    Expectation,
    Failure,
    Verdict,
    judge,
    read_expectations,
    without_thinking,
)
from ollamaops.plan.observed import ObservedHost
from ollamaops.plan.results import HostVerdicts
from ollamaops.settings import ParameterValue

OnModel = Callable[[str, ModelName], None]

Depth = Literal["expectations", "answers", "deep"]

MOST_TOKENS = 2048
_QUESTION = Expectation(prompt="Say hello.", options={"num_predict": 8})  # enough to see that a model answers
GREEDY: dict[str, ParameterValue] = {"seed": 0, "temperature": 0}
_SLACK_S = 30.0
# a proxy, or a server that is busy or stopping: nothing that a model can help
_NOT_THE_MODEL = frozenset({408, 499, 502, 503, 504})
# nor that the host has no room for it just now, which servers answer with 500
_NO_ROOM = re.compile(
    r"requires more (?:\w+ )?memory|out of memory|(?:not enough|insufficient) (?:\w+ )?memory|cannot allocate"
    r"|(?:unable|failed) to allocate|bad_alloc|too large for system|resource limitations|signal: killed",
    re.IGNORECASE,
)
_NO_WORDS = re.compile(r"does not support (?:generate|chat)\b", re.IGNORECASE)


def verify_hosts(
    tasks: Sequence[HostTask],
    run: Run,
    *,
    on_model: OnModel | None = None,
    depth: Depth = "expectations",
) -> tuple[HostVerdicts, ...]:
    """Each host's verdicts on the models of its task, in the order of `tasks`: on those that have expectations, or
    (`answers`) on all, which then have to load, answer, and have their weights; `deep` also looks at their texts.

    The models of one host are asked one after the other, because they share its memory. `on_model` is told each model
    before it is asked, from any thread. What fails while the host still answers is one model's verdict; a host that
    goes away keeps the verdicts it has given.
    """

    def verify(task: HostTask) -> HostVerdicts:
        verdicts: list[Verdict] = []

        def ask(host: HostSession) -> None:
            observed = host.models()
            asked = [model for model in task.models if model.expect or _is_asked(model, observed, depth)]
            files = {}
            if depth != "expectations":
                files = check_files(host, observed, asked, deep=depth == "deep")
            for model in asked:
                broken = [failure for failure in files.get(model.name, ()) if failure.what == "files"]
                if broken:
                    verdicts.append(
                        Verdict(model=model.name, expectations=len(model.expect), failures=tuple(broken))
                    )
                    continue
                if on_model is not None:
                    on_model(host.name, model.name)
                expectations = read_expectations(model.expect)
                is_asked = any(each.conversation or each.is_embedding for each in expectations)
                if not is_asked and _is_asked(model, observed, depth):
                    expectations += (_QUESTION,)
                verdict = _try(host, observed, model.name, expectations)
                failures = (*files.get(model.name, ()), *verdict.failures)
                verdicts.append(replace(verdict, expectations=len(model.expect), failures=failures))

        lost = reach(task, run, ask)
        return HostVerdicts(host=task.spec.name, verdicts=tuple(verdicts), unreached=lost)

    return for_each(tasks, verify, jobs=run.options.jobs)


def _is_asked(model: ModelSpec, observed: ObservedHost, depth: Depth) -> bool:
    """Whether the model has to answer although nobody expects anything; one that runs elsewhere is sent no word."""
    there = observed.models.get(model.name)
    return depth != "expectations" and not (there is not None and there.is_cloud)


def _try(
    host: HostSession, observed: ObservedHost, name: ModelName, expectations: Sequence[Expectation]
) -> Verdict:
    """The verdict, or why there is none although the host still answers; RemoteError if it does not."""
    try:
        return _verdict(host, observed, name, expectations)
    except RemoteError as error:
        host.with_retries(partial(host.client.version))
        return Verdict(model=name, expectations=len(expectations), error=str(error), hint=error.hint)


def _verdict(
    host: HostSession, observed: ObservedHost, name: ModelName, expectations: Sequence[Expectation]
) -> Verdict:
    there = observed.models.get(name)
    if name in observed.models.unreadable:
        unclear = Failure("answer", f"its entry cannot be read: {observed.models.unreadable[name]}", None)
        return Verdict(model=name, expectations=len(expectations), failures=(unclear,))
    if there is None:
        missing = Failure("answer", "no such model on the host", "ollamaops apply makes it")
        return Verdict(model=name, expectations=len(expectations), failures=(missing,))
    return verify_model(host, there.name, expectations)


def verify_model(host: HostSession, model: ModelName, expectations: Sequence[Expectation]) -> Verdict:
    """Hold the model to its expectations. `model` is spelt as the host lists it, and is there.

    RemoteError for what is not the model's fault: no connection, no permission, a busy server, no memory left;
    Cancelled.
    """
    began = time.monotonic()
    check = _ModelCheck(host, model)
    failures = tuple(_failures(check, expectations))
    return Verdict(
        model=model,
        expectations=len(expectations),
        failures=failures,
        load_s=check.load_s,
        tokens_per_s=check.tokens_per_s,
        seconds=time.monotonic() - began,
    )


def _failures(check: _ModelCheck, expectations: Iterable[Expectation]) -> Iterator[Failure]:
    """A model that never answered is not asked again: each try may cost as long as a load."""
    for expectation in expectations:
        evidence = check.ask(expectation)
        yield from judge(expectation, evidence)
        if evidence.error and not check.has_answered:
            return


def is_verdict(error: RemoteError) -> bool:
    """Whether the error of a question to the model says something about it, not about its host or the way there."""
    if not isinstance(error, AnswerError):
        return isinstance(error, TimeoutExceeded)
    if isinstance(error, AccessDenied | TooManyRequests | DiskFull) or error.status in _NOT_THE_MODEL:
        return False
    return not _NO_ROOM.search(error.text)


@dataclass(slots=True)
class _ModelCheck:
    """One model being verified. `load_s` is its longest load so far, `tokens_per_s` the last rate."""

    host: HostSession
    model: ModelName
    load_s: float = 0.0
    tokens_per_s: float | None = None
    has_answered: bool = False
    _shown: ShownModel | None = field(default=None, init=False)

    def ask(self, expectation: Expectation) -> Evidence:
        """What comes of one expectation; a refusal of the server is evidence as well."""
        try:
            shown = self._look()
        except AnswerError as error:
            return _refusal(error)
        capabilities = capabilities_of(shown)
        try:
            found = self.host.with_retries(_Question(self.host, self.model, shown, expectation).answer)
        except TimeoutExceeded as error:
            self._reach()
            return replace(_refusal(error), capabilities=capabilities)
        except AnswerError as error:
            return replace(_refusal(error), capabilities=capabilities)
        self.has_answered = True
        self.load_s = max(self.load_s, found.load_s)
        self.tokens_per_s = found.tokens_per_s if found.tokens else self.tokens_per_s
        return replace(
            found,
            capabilities=capabilities,
            load_s=self.load_s,
            context_length=self._context_length(shown, expectation) if expectation.context_length else 0,
        )

    def _reach(self) -> None:
        """RemoteError unless the server still answers: else its silence would count against the model."""
        self.host.with_retries(partial(self.host.client.version))

    def _look(self) -> ShownModel:
        if self._shown is None:
            show = partial(self.host.client.show, self.model)
            self._shown = self.host.with_retries(show)
        return self._shown

    def _context_length(self, shown: ShownModel, expectation: Expectation) -> int:
        """What it is loaded with: as ps tells (0.10.0 and newer), else what was asked for; 0 where it is the server's
        own default, which nothing tells."""
        listed = self.host.loaded()
        lengths = {one.name: one.context_length for one in listed if one.context_length}
        if self.model in lengths:
            return lengths[self.model]
        shared = (length for name, length in lengths.items() if self._has_weights_of(name, shown))
        return next(shared, 0) or _asked_length(shown, expectation)

    def _has_weights_of(self, other: ModelName, shown: ShownModel) -> bool:
        """Whether it uses the runner that is listed under the other name: a server has one for the same weights."""
        client = self.host.client
        features = client.features()
        own = contents_of(shown, "", features)
        ask = partial(self.host.with_retries, partial(client.show, other))
        found = look_into(ask, "", features) if own.blobs else None
        return found is not None and (found.blobs, found.adapters) == (own.blobs, own.adapters)


def _asked_length(shown: ShownModel, expectation: Expectation) -> int:
    """What `num_ctx` of the request, else of the model, asks for, as far as the weights go; 0 without it."""
    wanted = expectation.options.get("num_ctx") or shown.parameter_values.get("num_ctx")
    if not isinstance(wanted, int | float):
        return 0
    return min(int(wanted), shown.context_length or int(wanted))


def _refusal(error: AnswerError | TimeoutExceeded) -> Evidence:
    """The server's own words, or ours when it said nothing; raised again when the model cannot help it."""
    if not is_verdict(error):
        raise error
    return Evidence(error=(error.text if isinstance(error, AnswerError) else "") or str(error))


class _Question(Struct, frozen=True):
    """One expectation as requests to a model of which `shown` is known. Each method raises RemoteError, Cancelled."""

    host: HostSession
    model: ModelName
    shown: ShownModel
    expectation: Expectation

    def answer(self) -> Evidence:
        """What the right endpoint answers."""
        expectation, capabilities = self.expectation, capabilities_of(self.shown)
        is_embedder = "embedding" in capabilities and "completion" not in capabilities
        if expectation.texts and (expectation.is_embedding or is_embedder):
            return self._embed()
        try:
            return self._speak() if expectation.conversation else self._load()
        except InvalidRequest as error:
            # a model that is said to speak, and does not, is broken: it is not made to embed instead
            if not _NO_WORDS.search(error.text) or "completion" in (self.shown.capabilities or ()):
                raise
            return self._embed() if expectation.texts else self._load_embedder()

    @property
    def _patience_s(self) -> float:
        """How long nothing may be heard: a load says nothing until it is over."""
        limits, allowed_s = self.host.client.transport.limits, self.expectation.max_load_s
        return limits.quiet_s if allowed_s is None else max(limits.stall_s, allowed_s + _SLACK_S)

    def _load(self) -> Evidence:
        """Load it as it will be asked: options may change what has to be loaded."""
        if not self.expectation.options:
            return self._load_embedder()
        began = time.monotonic()
        request = GenerateRequest(model=self.model, options=self.expectation.options)
        self.host.client.generate(request, idle_s=self._patience_s)
        return Evidence(load_s=time.monotonic() - began)

    def _load_embedder(self) -> Evidence:
        """Load it, with whichever endpoint does that; an answer without words has no durations."""
        began = time.monotonic()
        self.host.client.load(self.model)
        return Evidence(load_s=time.monotonic() - began)

    def _speak(self) -> Evidence:
        expectation, client = self.expectation, self.host.client
        if not (expectation.messages or expectation.tools):
            asked = GenerateRequest(
                model=self.model,
                prompt=expectation.prompt,
                format=self._format(),
                options=self._options(),
                think=self._think(),
            )
            return _evidence_of_text(client.generate_stream(asked, idle_s=self._patience_s))
        request = ChatRequest(
            model=self.model,
            messages=tuple(Message(role, content) for role, content in expectation.conversation),
            tools=tuple(map(_tool, expectation.tools)),
            format=self._format(),
            options=self._options(),
            think=self._think(),
        )
        if expectation.tools:  # which servers before 0.8.0 do not stream
            return _evidence_of_text([client.chat(request, idle_s=self._patience_s)])
        return _evidence_of_text(client.chat_stream(request, idle_s=self._patience_s))

    def _options(self) -> dict[str, ParameterValue]:
        """Greedy, and with an end: a model of noise may never stop, and servers up to 0.33 let it go on."""
        limit = {} if "num_predict" in self.shown.parameter_values else {"num_predict": MOST_TOKENS}
        return {**GREEDY, **limit, **self.expectation.options}

    def _think(self) -> bool | str | None:
        """As declared; else a model that can think is asked not to, because servers let it (by 0.12.0 at the latest)
        and thoughts may use up all tokens before there is an answer."""
        can_think = "thinking" in capabilities_of(self.shown)
        return self.expectation.think if self.expectation.think is not None or not can_think else False

    def _format(self) -> str | dict[str, object] | None:
        if self.expectation.json_schema and self._features.format_takes_schema:
            schema: dict[str, object] = json.loads(self.expectation.json_schema)
            return schema
        return "json" if self.expectation.is_json or self.expectation.json_schema else None

    @property
    def _features(self) -> Features:
        return self.host.client.features()

    def _embed(self) -> Evidence:
        began = time.monotonic()
        answer = self.host.client.embed(
            EmbedRequest(model=self.model, inputs=self.expectation.texts, options=self.expectation.options),
            idle_s=self._patience_s,
        )
        timings = answer.timings
        return Evidence(
            vectors=answer.embeddings,
            load_s=timings.load_s if timings.total_s else time.monotonic() - began,
            tokens=timings.prompt_tokens,
            tokens_per_s=_rate(timings.prompt_tokens, timings.total_s - timings.load_s),
        )


def _evidence_of_text(pieces: Iterable[GenerateAnswer | ChatAnswer]) -> Evidence:
    """What was said, all pieces of the answer together; the last one has the durations."""
    words: list[str] = []
    calls: list[str] = []
    timings, is_cut, has_thought = Timings(), False, False
    for piece in pieces:
        if isinstance(piece, ChatAnswer):
            words.append(piece.message.content)
            has_thought = has_thought or bool(piece.message.thinking)
            calls += (call.name for call in piece.message.tool_calls)
        else:
            words.append(piece.response)
            has_thought = has_thought or bool(piece.thinking)
        timings, is_cut = piece.timings, piece.done_reason == "length"
    said = "".join(words)
    text = without_thinking(said)
    return Evidence(
        text=text,
        has_thought=has_thought or text != said,
        tool_calls=tuple(calls),
        load_s=timings.load_s,
        tokens=timings.tokens,
        tokens_per_s=_rate(timings.tokens, timings.generate_s),
        is_cut=is_cut,
    )


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if seconds > 0 else None


def _tool(name: str) -> dict[str, object]:
    """A function without parameters; its description are the words of its name."""
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": " ".join(re.findall(r"[A-Z]?[a-z]+|[A-Z]+|[0-9]+", name)),
            "parameters": {"type": "object", "properties": {}, "required": []},
        },
    }


def capabilities_of(shown: ShownModel) -> tuple[str, ...]:
    """What the model can do: as the server lists it (0.6.4 and newer), else as such a server works it out itself
    (server/model.go: the pooling of the weights, the variables of the template, a projector)."""
    if shown.capabilities is not None:
        return shown.capabilities
    architecture = shown.model_info.get("general.architecture")
    embeds = f"{architecture}.pooling_type" in shown.model_info
    sees = bool(shown.projector_info) or f"{architecture}.vision.block_count" in shown.model_info
    found = {
        "completion": not embeds,
        "embedding": embeds,
        "vision": sees,
        "tools": ".Tools" in shown.template,
        "insert": ".Suffix" in shown.template,
    }
    return tuple(name for name, is_there in found.items() if is_there)
