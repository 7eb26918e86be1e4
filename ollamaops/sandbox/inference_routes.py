"""generate, chat, embed and embeddings: find the model, let `inference` answer, keep the loaded models in step.

The 404s of models that are not there differ by endpoint and version. Answers are computed whole, and sent line
by line where the client streams.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from ollamaops.sandbox import inference
from ollamaops.sandbox.gguf_file import BadGGUF
from ollamaops.sandbox.golang import json_line, time_text
from ollamaops.sandbox.inference import Answer, ModelFacts
from ollamaops.sandbox.inference_requests import (
    integer_option,
    read_chat,
    read_embed,
    read_embeddings,
    read_generate,
)
from ollamaops.sandbox.layers import CorruptManifest
from ollamaops.sandbox.model_name import BothSuffixes, parse_name, strip_source
from ollamaops.sandbox.request_bodies import decode_body
from ollamaops.sandbox.responses import NDJSON, Refusal, answer, bad_request
from ollamaops.sandbox.service import Service
from ollamaops.sandbox.stored_models import NoSuchModel, StoredModel

Endpoint = Literal["generate", "chat", "embed", "embeddings"]
_TRY_PULLING = 'model "{}" not found, try pulling it first'
_NOT_REMOTE = "this server cannot run this remote model"
_UNSUPPORTED = "this model is not supported by your version of Ollama. You may need to upgrade"
_CLOUD_DISABLED = "ollama cloud is disabled: remote model is unavailable"

_LLAMA_CPP = """
afmoe apertus arcee arctic arwkv7 baichuan bailingmoe bailingmoe2 bert bitnet bloom chameleon chatglm
codeshell cogvlm cohere2 command-r dbrx deci deepseek deepseek2 deepseek2-ocr dots1 dream ernie4_5
ernie4_5-moe eurobert exaone exaone4 exaone-moe falcon falcon-h1 gemma gemma2 gemma3 gemma3n gemma4
gemma-embedding glm4 glm4moe glm-dsa gpt2 gptj gptneox gpt-oss granite granitehybrid granitemoe grok
grovemoe hunyuan-dense hunyuan-moe internlm2 jais jais2 jamba jina-bert-v2 jina-bert-v3 kimi-linear lfm2
lfm2moe llada llada-moe llama llama4 llama-embed maincoder mamba mamba2 mimo2 minicpm minicpm3 minimax-m2
mistral3 mistral4 modern-bert mpt nemotron nemotron_h nemotron_h_moe neo-bert nomic-bert nomic-bert-moe olmo
olmo2 olmoe openelm orion paddleocr pangu-embedded phi2 phi3 phimoe plamo plamo2 plamo3 plm qwen qwen2
qwen2moe qwen2vl qwen3 qwen35 qwen35moe qwen3moe qwen3next qwen3vl qwen3vlmoe refact rnd1 rwkv6 rwkv6qwen2
rwkv7 seed_oss smallthinker smollm3 stablelm starcoder starcoder2 step35 t5 t5encoder wavtokenizer-dec
xverse
"""
_OLLAMA = (
    "clip deepseekocr gemma3 gptoss laguna mllama mistral3 nemotron_h_omni qwen25vl solar glm-ocr glmocr"
)
_KNOWN_ARCHITECTURES = frozenset(f"{_LLAMA_CPP} {_OLLAMA}".split())
"""What the server can "run": what llama.cpp knew in 2026, and Ollama's own. Others fail when they are loaded."""


@dataclass(frozen=True)
class _Question:
    """A request that was read: for which model, and how to have it answered."""

    model: str
    ask: Callable[[ModelFacts], Answer]
    options: Mapping[str, object] | None
    streams: bool = False


async def infer(service: Service, endpoint: Endpoint, body: bytes) -> Response:
    """The answer of one of the four endpoints. Refusal."""
    question = _read(service, endpoint, decode_body(body))
    try:
        result = await run_in_threadpool(_ask, service, endpoint, question)
    except Refusal as refusal:
        if refusal.late and question.streams and not service.behavior.errors_end_streams:
            return _ndjson([{"error": refusal.text}])
        raise
    return _ndjson(result.chunks) if result.streamed else answer(result.chunks[-1])


def _ndjson(chunks: Sequence[object]) -> Response:
    return StreamingResponse(map(json_line, chunks), headers={"content-type": NDJSON})


def _read(service: Service, endpoint: Endpoint, document: object) -> _Question:
    rules, now = service.behavior.inference, time_text(time.time_ns())
    match endpoint:
        case "generate":
            wanted = read_generate(document, rules)
            ask = partial(inference.generate, wanted, created_at=now, rules=rules)
            return _Question(wanted.model, ask, wanted.options, wanted.stream)
        case "chat":
            talk = read_chat(document, rules)
            return _Question(
                talk.model,
                partial(inference.chat, talk, created_at=now, rules=rules),
                talk.options,
                talk.stream,
            )
        case "embed":
            texts = read_embed(document, rules)
            return _Question(texts.model, partial(inference.embed, texts, rules=rules), texts.options)
        case "embeddings":
            text = read_embeddings(document, rules)
            return _Question(text.model, partial(inference.embeddings, text, rules=rules), text.options)


def _ask(service: Service, endpoint: Endpoint, question: _Question) -> Answer:
    model = _find(service, endpoint, question.model)
    facts = model.for_inference()
    is_readable = bool(facts.capabilities & {"completion", "embedding"})
    if not is_readable and not service.behavior.show_capabilities:  # older servers find out when they load it
        facts = replace(facts, capabilities=facts.capabilities | {"completion"})
    result = question.ask(facts)
    if result.runner == "load":
        _check_loading(service, model, question.model)
    options = {**model.options, **(question.options or {})}
    context_length = integer_option(options, "num_ctx", 4096)
    limit = facts.context_length if service.behavior.ps_context_capped else context_length
    service.runners.apply(result, model, options, min(context_length, limit))
    return result


def _check_loading(service: Service, model: StoredModel, given: str) -> None:
    """Refusal when the weights cannot be loaded."""
    try:
        model.check_weights()
    except FileNotFoundError as error:
        raise Refusal(404, _TRY_PULLING.format(given)) from error
    except BadGGUF as error:
        raise Refusal(500, f"unable to load model: {model.weights}") from error
    header = model.header()
    if header and header.architecture not in _KNOWN_ARCHITECTURES:
        raise Refusal(500, _UNSUPPORTED)


def _find(service: Service, endpoint: Endpoint, given: str) -> StoredModel:
    behavior, text = service.behavior, given
    if behavior.source_suffixes:
        try:
            reference = strip_source(given)
        except BothSuffixes as error:
            raise bad_request(str(error)) from error
        if reference.is_cloud:
            raise Refusal(403, _CLOUD_DISABLED)
        text = reference.name
    name = parse_name(text)
    if not name.is_valid:
        raise _unqualified(service, endpoint, given)
    try:
        model = service.models.load(name if endpoint == "embeddings" else service.models.spelled(name))
    except (NoSuchModel, FileNotFoundError) as error:
        raise _missing(service, endpoint, given) from error
    except CorruptManifest as error:
        raise Refusal(500, str(error)) from error
    if model.config.remote_host:
        raise Refusal(403, _CLOUD_DISABLED) if behavior.cloud_status_endpoint else bad_request(_NOT_REMOTE)
    return model


def _unqualified(service: Service, endpoint: Endpoint, given: str) -> Refusal:
    """What a server says to a name that is none; it looks for the model only in the oldest."""
    if given and service.behavior.source_suffixes:
        return bad_request("invalid model name")
    if endpoint == "chat" and (not given or service.behavior.names_fold_case):
        return bad_request("model is required")
    if not given and not service.behavior.names_fold_case:
        return bad_request("model is required")
    return _missing(service, endpoint, given)


def _missing(service: Service, endpoint: Endpoint, given: str) -> Refusal:
    words = {"generate": service.behavior.generate_missing, "chat": service.behavior.chat_missing}
    return Refusal(404, words.get(endpoint, _TRY_PULLING).format(given))
