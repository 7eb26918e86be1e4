"""Pretend inference: a typed request and a model's facts to the answer that Ollama would send, or its refusal.

Statuses, keys, token counts and the order of the checks are decided here, the words in `replies`. Nothing here
reads a clock: durations follow from counts (100 tokens a second), and equal requests to equal weights get equal
answers. The server finds the model, asks here, does with the runner what `Answer.runner` says, and sends
`Answer.chunks`.

An empty prompt is not an error: it loads the model, and with `keep_alive` 0 unloads it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ollamaops.sandbox.behavior import NEWEST_RULES, InferenceRules
from ollamaops.sandbox.inference_requests import (
    ChatMessage,
    ChatRequest,
    EmbeddingsRequest,
    EmbedRequest,
    GenerateRequest,
    integer_option,
    is_unload,
    option_problem,
    stop_sequences,
)
from ollamaops.sandbox.replies import ToolCall, Turn, reply_to, thoughts_on, tool_call_for
from ollamaops.sandbox.responses import Refusal
from ollamaops.sandbox.schema_instance import UnsatisfiableSchema, build_instance
from ollamaops.sandbox.seeded_choice import SeededChoice
from ollamaops.sandbox.tokens import detokenize, embed_text, normalized, split_tokens, tokenize

LOAD_NS = 1_000_000
PROMPT_TOKEN_NS = 100_000
TOKEN_NS = 10_000_000
_DEFAULT_CONTEXT = 4096
_NO_TIME = "0001-01-01T00:00:00Z"
_SAMPLING = ("seed", "temperature", "top_k", "top_p", "min_p")
_NO_VISION = {
    "code": 400,
    "message": "Multimodal data provided, but model does not support multimodal requests.",
    "type": "invalid_request_error",
}
_NO_EMBEDDING = {
    "code": 501,
    "message": "This server does not support embeddings. Start it with `--embeddings`",
    "type": "not_supported_error",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What inference needs to know of a stored model.

    `capabilities` are those of the model itself (completion, embedding, tools, insert, vision, thinking), also for
    server versions that do not show them. `weights` is the model layer's digest: equal weights speak alike.
    """

    full_name: str
    capabilities: frozenset[str] = frozenset({"completion"})
    weights: str = ""
    context_length: int = _DEFAULT_CONTEXT
    embedding_length: int = 384
    template: str = ""
    speaks_bytes: bool = False
    """The weights know no words: what they say is random bytes."""
    system: str = ""
    parameters: Mapping[str, object] = field(default_factory=dict)
    messages: tuple[ChatMessage, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """A 200: the JSON objects to send, as NDJSON lines when `streamed`, else the only one as a document.

    `runner` says what becomes of the runner: loaded (or kept) for `keep_alive_s` more seconds after the answer
    (None: the server's default; infinity: for ever), unloaded, or untouched.
    """

    chunks: tuple[dict[str, object], ...]
    streamed: bool
    runner: Literal["load", "unload", "untouched"]
    keep_alive_s: float | None = None


@dataclass(frozen=True, slots=True)
class _Speech:
    """A finished generation: the tokens of its thoughts and of its words, or a tool call instead of words."""

    thoughts: tuple[str, ...]
    words: tuple[str, ...]
    tool_call: ToolCall | None
    done_reason: str
    prompt_tokens: int

    @property
    def content(self) -> str:
        return "".join(self.words)

    def metrics(self, model: ModelFacts, rules: InferenceRules) -> dict[str, object]:
        count = max(len(self.thoughts) + len(self.words) + (self.tool_call is not None), 1)
        prompt_ns, eval_ns = self.prompt_tokens * PROMPT_TOKEN_NS, count * TOKEN_NS
        if rules.durations_in_ms and model.speaks_bytes:
            prompt_ns = 0  # weights that small read a prompt in less than a millisecond
        return {
            "total_duration": LOAD_NS + prompt_ns + eval_ns,
            "load_duration": LOAD_NS,
            "prompt_eval_count": self.prompt_tokens,
            **({"prompt_eval_duration": prompt_ns} if prompt_ns else {}),
            "eval_count": count,
            "eval_duration": eval_ns,
        }


def generate(
    request: GenerateRequest, model: ModelFacts, *, created_at: str, rules: InferenceRules = NEWEST_RULES
) -> Answer:
    """The answer of POST /api/generate; raises Refusal."""
    head = {"model": request.model, "created_at": created_at}
    if not request.prompt and _asks_unload(request.keep_alive_s, rules):
        return _runner_answer({**head, "response": ""}, "unload", request.keep_alive_s)
    if request.raw and (request.template or request.system or request.context):
        raise Refusal(400, "raw mode does not support template, system, or context")
    think = _wanted_thinking(request, model, rules)
    options = _checked_options(request, model, "insert" if request.suffix else "", "generate", rules)
    if not request.prompt:
        return _runner_answer({**head, "response": ""}, "load", request.keep_alive_s)
    turns = _generate_turns(request, model)
    _check_images(request.images, model, rules)
    choice = _choice(model, turns, options, (request.suffix, request.template, request.raw, request.format))
    speech = _speech(turns, (), request.format, think, options, choice)
    if (said_before := _before_bad_text(speech, model, rules)) is not None:
        return _broken_off(request, [{**head, "response": word} for word in said_before], {"response": ""})
    prompt = "\n".join(turn.content for turn in turns)
    last = {
        **head,
        "response": "",
        "done": True,
        "done_reason": speech.done_reason,
        **({} if request.raw else {"context": tokenize(f"{prompt}\n{speech.content}\n")}),
        **speech.metrics(model, rules),
    }
    if not request.stream:
        return _whole({**last, "response": speech.content, **_thinking(speech)}, request.keep_alive_s)
    said = [{"response": "", "thinking": token} for token in speech.thoughts]
    said += [{"response": token} for token in speech.words]
    chunks = [{**head, **piece, "done": False} for piece in said]
    return Answer((*chunks, last), True, "load", request.keep_alive_s)


def chat(
    request: ChatRequest, model: ModelFacts, *, created_at: str, rules: InferenceRules = NEWEST_RULES
) -> Answer:
    """The answer of POST /api/chat; raises Refusal."""
    head = {"model": request.model, "created_at": created_at}
    silent = {**head, "message": {"role": "assistant", "content": ""}}
    if not request.messages and _asks_unload(request.keep_alive_s, rules):
        return _runner_answer(silent, "unload", request.keep_alive_s)
    think = _wanted_thinking(request, model, rules)
    options = _checked_options(request, model, "tools" if request.tools else "", "chat", rules)
    if not request.messages:
        return _runner_answer(silent, "load", request.keep_alive_s)
    turns = _chat_turns(request, model)
    _check_images([image for message in request.messages for image in message.images], model, rules)
    choice = _choice(model, turns, options, (request.tools, request.format))
    speech = _speech(turns, request.tools, request.format, think, options, choice)
    if (said_before := _before_bad_text(speech, model, rules)) is not None:
        lines: list[dict[str, object]] = [
            {**head, "message": {"role": "assistant", "content": word}} for word in said_before
        ]
        return _broken_off(request, lines, {"message": {"role": "", "content": ""}})
    last = {**silent, "done": True, "done_reason": speech.done_reason, **speech.metrics(model, rules)}
    called = _called(speech, choice, rules)
    if not request.stream:
        message = {"role": "assistant", "content": speech.content, **_thinking(speech), **called}
        return _whole({**last, "message": message}, request.keep_alive_s)
    said: list[dict[str, object]] = [{"content": "", "thinking": token} for token in speech.thoughts]
    said += [{"content": token} for token in speech.words]
    said += [{"content": "", **called}] if called else []
    chunks = [{**head, "message": {"role": "assistant", **piece}, "done": False} for piece in said]
    return Answer((*chunks, last), True, "load", request.keep_alive_s)


def embed(request: EmbedRequest, model: ModelFacts, *, rules: InferenceRules = NEWEST_RULES) -> Answer:
    """The answer of POST /api/embed; raises Refusal."""
    nothing: dict[str, object] = {"model": request.model, "embeddings": []}
    if not request.inputs and not rules.empty_embed:
        return Answer((nothing,), False, "untouched")
    options = _options(request.options, model)
    if not request.inputs:
        return _whole(nothing, request.keep_alive_s)
    _check_embedding(model, rules, 501)
    limit = min(integer_option(options, "num_ctx", model.context_length), model.context_length)
    texts = [_fitted(text, limit, truncate=request.truncate) for text in request.inputs]
    count = sum(len(tokens) for tokens in texts)
    document: dict[str, object] = {
        "model": request.model,
        "embeddings": [_vector("".join(tokens), model, request.dimensions) for tokens in texts],
        "total_duration": LOAD_NS + count * PROMPT_TOKEN_NS,
        "load_duration": LOAD_NS,
        "prompt_eval_count": count,
    }
    return _whole(document, request.keep_alive_s)


def embeddings(
    request: EmbeddingsRequest, model: ModelFacts, *, rules: InferenceRules = NEWEST_RULES
) -> Answer:
    """The answer of POST /api/embeddings, the older form; raises Refusal."""
    _options(request.options, model)
    if not request.prompt:
        return _whole({"embedding": []}, request.keep_alive_s)
    _check_embedding(model, rules, 500)
    tokens = _fitted(request.prompt, model.context_length, truncate=True)
    return _whole({"embedding": _vector("".join(tokens), model, 0)}, request.keep_alive_s)


# --- what is asked --------------------------------------------------------------------------------------------------


def _asks_unload(keep_alive_s: float | None, rules: InferenceRules) -> bool:
    return rules.unload_without_loading and is_unload(keep_alive_s, fractions=rules.fractional_keep_alive)


def _wanted_thinking(
    request: GenerateRequest | ChatRequest, model: ModelFacts, rules: InferenceRules
) -> bool:
    """Whether the answer shows its thinking; a model that can think does so unless told not to."""
    if not rules.thinking:
        return False
    if "thinking" in model.capabilities:
        return request.think is not False
    if request.think:
        raise Refusal(400, f'"{request.model}" does not support thinking')
    return False


def _checked_options(
    request: GenerateRequest | ChatRequest,
    model: ModelFacts,
    capability: str,
    verb: str,
    rules: InferenceRules,
) -> Mapping[str, object]:
    """The model's and the request's options as one; Refusal where `capability` is missing or an option is wrong."""
    if "completion" not in model.capabilities:
        raise Refusal(400, f'"{request.model}" does not support {verb}')
    if capability and capability not in model.capabilities:
        shown = model.full_name if rules.full_name_in_refusals else request.model
        raise Refusal(400, f"{shown} does not support {capability}")
    return _options(request.options, model)


def _options(options: Mapping[str, object] | None, model: ModelFacts) -> Mapping[str, object]:
    merged = {**model.parameters, **(options or {})}
    if problem := option_problem(merged):
        raise Refusal(500, problem)
    return merged


def _check_images(images: Sequence[bytes], model: ModelFacts, rules: InferenceRules) -> None:
    if images and rules.strict_modalities and "vision" not in model.capabilities:
        raise Refusal(400, _runner_error(_NO_VISION), late=True)


def _check_embedding(model: ModelFacts, rules: InferenceRules, status: int) -> None:
    if rules.strict_modalities and "embedding" not in model.capabilities:
        raise Refusal(status, _runner_error(_NO_EMBEDDING))


def _runner_error(error: Mapping[str, object]) -> str:
    """The runner's own JSON, which newer servers hand on as the text of theirs."""
    return json.dumps({"error": error}, separators=(",", ":"))


# --- what the model reads and says ----------------------------------------------------------------------------------


def _generate_turns(request: GenerateRequest, model: ModelFacts) -> tuple[Turn, ...]:
    asked = Turn("user", request.prompt, len(request.images))
    if request.raw:
        return (asked,)
    system = request.system or model.system
    before = [Turn("system", system)] if system else []
    if request.context is not None:
        return (*before, Turn("context", detokenize(request.context)), asked)
    return (*before, *map(_turn, model.messages), asked)


def _chat_turns(request: ChatRequest, model: ModelFacts) -> tuple[Turn, ...]:
    turns = tuple(map(_turn, (*model.messages, *request.messages)))
    if model.system and request.messages[0].role != "system":
        return (Turn("system", model.system), *turns)
    return turns


def _turn(message: ChatMessage) -> Turn:
    return Turn(message.role, message.content, len(message.images), message.tool_name)


def _choice(
    model: ModelFacts, turns: Sequence[Turn], options: Mapping[str, object], further: Sequence[object]
) -> SeededChoice:
    """What this conversation is drawn from. At temperature 0 the seed does not matter, as with real samplers."""
    greedy = options.get("temperature") == 0
    sampling = [] if greedy else [(name, options.get(name)) for name in _SAMPLING]
    told = [(turn.role, turn.content, turn.images) for turn in turns]
    key = json.dumps([model.weights, model.template, told, sampling, further], default=repr, sort_keys=True)
    return SeededChoice(hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest())


def _speech(
    turns: Sequence[Turn],
    tools: Sequence[Mapping[str, object]],
    wanted_format: object,
    think: bool,
    options: Mapping[str, object],
    choice: SeededChoice,
) -> _Speech:
    """Everything the model says, cut by stop sequences and by num_predict."""
    thoughts = split_tokens(thoughts_on(turns, choice.branch("think"))) if think else []
    call = tool_call_for(turns, tools, choice.branch("tool"))
    words: list[str] = []
    if call is None:
        content = _content(turns, wanted_format, choice.branch("say"))
        words = split_tokens(_cut_at_stop(content, stop_sequences(options)))
    most = integer_option(options, "num_predict", -1)
    is_cut = 0 < most < len(thoughts) + len(words) + (call is not None)
    if is_cut:
        thoughts, words, call = thoughts[:most], words[: max(most - len(thoughts), 0)], None
    return _Speech(
        *(tuple(thoughts), tuple(words), call),
        done_reason="length" if is_cut else "stop",
        prompt_tokens=sum(len(split_tokens(turn.content)) for turn in turns),
    )


def _content(turns: Sequence[Turn], wanted_format: object, choice: SeededChoice) -> str:
    if wanted_format is None:
        return reply_to(turns, choice)
    if wanted_format == "json":
        return json.dumps({"answer": reply_to(turns, choice)}, ensure_ascii=False)
    if not isinstance(wanted_format, Mapping):
        shown = json.dumps(json.dumps(wanted_format))
        raise Refusal(
            500, f'invalid format: {shown}; expected "json" or a valid JSON Schema object', late=True
        )
    try:
        return json.dumps(build_instance(wanted_format, choice), ensure_ascii=False)
    except UnsatisfiableSchema as error:
        raise Refusal(500, "invalid JSON schema in format", late=True) from error


def _cut_at_stop(text: str, stops: Iterable[str]) -> str:
    places = [place for place in map(text.find, stops) if place >= 0]
    return text[: min(places)] if places else text


# --- how it is answered ---------------------------------------------------------------------------------------------


def _runner_answer(
    silent: Mapping[str, object], reason: Literal["load", "unload"], keep_alive_s: float | None
) -> Answer:
    """The answer to an empty prompt: never a stream."""
    return Answer(({**silent, "done": True, "done_reason": reason},), False, reason, keep_alive_s)


def _whole(document: dict[str, object], keep_alive_s: float | None) -> Answer:
    return Answer((document,), False, "load", keep_alive_s)


def _before_bad_text(speech: _Speech, model: ModelFacts, rules: InferenceRules) -> tuple[str, ...] | None:
    """The words before the one that is not UTF-8; None if there is none, or it does not end the answer."""
    limit = rules.words_before_bad_text
    if not model.speaks_bytes or limit is None or len(speech.words) <= limit:
        return None
    return speech.words[:limit]


def _broken_off(
    request: GenerateRequest | ChatRequest, lines: list[dict[str, object]], silence: Mapping[str, object]
) -> Answer:
    """The answer of a model that stops in the middle: nothing says that it is done."""
    if request.stream:
        return Answer(tuple({**line, "done": False} for line in lines), True, "load", request.keep_alive_s)
    whole = _joined(lines) if lines else {"model": "", "created_at": _NO_TIME, **silence}
    return _whole({**whole, "done": False}, request.keep_alive_s)


def _joined(lines: list[dict[str, object]]) -> dict[str, object]:
    """The lines of a stream as the one document of an answer without `stream`."""
    if "response" in lines[0]:
        return {**lines[0], "response": "".join(str(line["response"]) for line in lines)}
    content = "".join(line["message"]["content"] for line in lines)  # type: ignore[index]  # made above
    return {**lines[0], "message": {"role": "assistant", "content": content}}


def _thinking(speech: _Speech) -> dict[str, object]:
    return {"thinking": "".join(speech.thoughts)} if speech.thoughts else {}


def _called(speech: _Speech, choice: SeededChoice, rules: InferenceRules) -> dict[str, object]:
    if speech.tool_call is None:
        return {}
    function: dict[str, object] = {
        "name": speech.tool_call.name,
        "arguments": dict(speech.tool_call.arguments),
    }
    if not rules.tool_call_ids:
        return {"tool_calls": [{"function": function}]}
    number = choice.branch("call").below(36**8)
    return {"tool_calls": [{"id": f"call_{number:08x}", "function": {"index": 0, **function}}]}


def _fitted(text: str, limit: int, *, truncate: bool) -> list[str]:
    """The tokens of a text, at most `limit`; Refusal 400 when it is longer and may not be truncated."""
    tokens = split_tokens(text)
    if len(tokens) > limit and not truncate:
        raise Refusal(400, "input length exceeds maximum context length")
    return tokens[:limit]


def _vector(text: str, model: ModelFacts, dimensions: int) -> list[float]:
    vector = embed_text(text, model.embedding_length)
    return normalized(vector[:dimensions]) if 0 < dimensions < len(vector) else vector
