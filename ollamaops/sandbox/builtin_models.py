"""The models that the pretend server can pull without a network: small stand-ins under well-known names.

None of them is the real thing: their weights are tiny and made up from the name, and license, general.name and
description say so. What plans depend on (family, sizes for people, capabilities, parameters, shared layers and
tags) is like the real models'.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ollamaops.sandbox import layers as kinds
from ollamaops.sandbox.gguf_file import (
    ARRAY,
    FLOAT32,
    STRING,
    UINT32,
    Field,
    Tensor,
    header_bytes,
    padding_after,
)
from ollamaops.sandbox.gguf_rewrite import FILE_TYPES
from ollamaops.sandbox.golang import json_line, sorted_map

STAND_IN = "pretend "
"""How `general.name` of a stand-in's weights begins."""
_LICENSE = """Pretend model "{name}" of the ollamaops sandbox, for tests and demonstrations.

These weights are random numbers. They are not {name}, were not made by its authors and can do nothing that it can.
You may use, copy and change this stand-in for any purpose.
"""
_CHAT = (
    "{{- if .System }}<|system|>{{ .System }}<|end|>{{ end }}\n"
    "{{- range .Messages }}<|{{ .Role }}|>{{ .Content }}<|end|>{{ end }}<|assistant|>"
)
_TOOLS = "{{- if .Tools }}<|tools|>{{ range .Tools }}{{ json . }}{{ end }}<|end|>{{ end }}" + _CHAT
_THINKING = (
    "{{- if .Tools }}<|tools|>{{ range .Tools }}{{ json . }}{{ end }}<|end|>{{ end }}\n"
    "{{- range .Messages }}<|{{ .Role }}|>{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ .Content }}"
    "<|end|>{{ end }}<|assistant|>"
)
_INSERT = (
    "{{- if .Suffix }}<|prefix|>{{ .Prompt }}<|suffix|>{{ .Suffix }}<|middle|>{{ else }}"
    + _TOOLS
    + "{{ end }}"
)
_STOP = ["<|end|>"]
_INT32 = 5
_Q8_0 = 8
# the type of the stand-ins' matrices; K types need wider rows than theirs
_QUANTIZED = {"F16": 1, "Q4_0": 2}


@dataclass(frozen=True)
class BuiltinModel:
    """One stand-in: the `name` it is pulled by, other `tags` of the same model, and what the real one looks like."""

    name: str
    family: str
    size: str
    context_length: int
    tags: tuple[str, ...] = ()
    quantization: str = "Q4_K_M"
    template: str = _TOOLS
    system: str = ""
    parameters: Mapping[str, object] = field(default_factory=lambda: {"stop": _STOP})
    embedding_length: int = 64
    is_embedding: bool = False
    sees: bool = False

    @property
    def model(self) -> str:
        return self.name.partition(":")[0]

    @property
    def all_tags(self) -> tuple[str, ...]:
        return (self.name.partition(":")[2], *self.tags)


def _chat(
    name: str, family: str, size: str, context_length: int, *tags: str, **further: object
) -> BuiltinModel:
    return BuiltinModel(name, family, size, context_length, tags, **further)  # type: ignore[arg-type]  # keywords of BuiltinModel


def _embedding(
    name: str, family: str, size: str, context_length: int, length: int, *tags: str
) -> BuiltinModel:
    return BuiltinModel(
        *(name, family, size, context_length, tags),
        quantization="F16",
        template="",
        parameters={},
        embedding_length=length,
        is_embedding=True,
    )


_QWEN3 = {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "stop": _STOP}
_DEEPSEEK = {"temperature": 0.6}
_GEMMA = {"temperature": 1, "top_k": 64, "top_p": 0.95, "stop": _STOP}
BUILTIN_MODELS: tuple[BuiltinModel, ...] = (
    _chat("llama3.2:1b", "llama", "1.2B", 131072, "1b-instruct-q8_0", quantization="Q8_0"),
    _chat("llama3.2:3b", "llama", "3.2B", 131072, "latest", "3b-instruct-q4_K_M"),
    _chat("llama3.1:8b", "llama", "8.0B", 131072, "latest", "8b-instruct-q4_K_M"),
    _chat("llama3:8b", "llama", "8.0B", 8192, "latest", quantization="Q4_0", template=_CHAT),
    _chat("llama3.3:70b", "llama", "70.6B", 131072, "latest", "70b-instruct-q4_K_M"),
    _chat("qwen3:0.6b", "qwen3", "751.63M", 40960, "0.6b-q4_K_M", template=_THINKING, parameters=_QWEN3),
    _chat("qwen3:1.7b", "qwen3", "2.0B", 40960, "1.7b-q4_K_M", template=_THINKING, parameters=_QWEN3),
    _chat("qwen3:4b", "qwen3", "4.0B", 262144, "4b-q4_K_M", template=_THINKING, parameters=_QWEN3),
    _chat("qwen3:8b", "qwen3", "8.2B", 40960, "latest", "8b-q4_K_M", template=_THINKING, parameters=_QWEN3),
    _chat("qwen3:14b", "qwen3", "14.8B", 40960, "14b-q4_K_M", template=_THINKING, parameters=_QWEN3),
    _chat("qwen3:32b", "qwen3", "32.8B", 40960, "32b-q4_K_M", template=_THINKING, parameters=_QWEN3),
    _chat("qwen2.5:0.5b", "qwen2", "494.03M", 32768, system="You are a helpful assistant."),
    _chat("qwen2.5:7b", "qwen2", "7.6B", 32768, "latest", system="You are a helpful assistant."),
    _chat("qwen2.5-coder:1.5b", "qwen2", "1.5B", 32768, template=_INSERT),
    _chat("qwen2.5-coder:7b", "qwen2", "7.6B", 32768, "latest", template=_INSERT),
    _chat("mistral:7b", "llama", "7.2B", 32768, "latest", "7b-instruct-v0.3-q4_K_M"),
    _chat("mistral-nemo:12b", "llama", "12.2B", 131072, "latest", quantization="Q4_0"),
    _chat("gemma3:270m", "gemma3", "268.10M", 32768, template=_CHAT, parameters=_GEMMA, quantization="Q8_0"),
    _chat("gemma3:1b", "gemma3", "999.89M", 32768, template=_CHAT, parameters=_GEMMA),
    _chat("gemma3:4b", "gemma3", "4.3B", 131072, "latest", template=_CHAT, parameters=_GEMMA, sees=True),
    _chat("gemma3:12b", "gemma3", "12.2B", 131072, template=_CHAT, parameters=_GEMMA, sees=True),
    _chat("phi4-mini:3.8b", "phi3", "3.8B", 131072, "latest"),
    _chat("phi4:14b", "phi3", "14.7B", 16384, "latest", template=_CHAT),
    _chat("deepseek-r1:1.5b", "qwen2", "1.8B", 131072, template=_THINKING, parameters=_DEEPSEEK),
    _chat("deepseek-r1:8b", "qwen3", "8.2B", 131072, "latest", template=_THINKING, parameters=_DEEPSEEK),
    _chat("gpt-oss:20b", "gptoss", "20.9B", 131072, "latest", template=_THINKING, quantization="Q8_0"),
    _chat("tinyllama:1.1b", "llama", "1B", 2048, "latest", quantization="Q4_0", template=_CHAT),
    _chat("smollm2:135m", "llama", "134.52M", 8192, quantization="F16"),
    _chat("smollm2:1.7b", "llama", "1.7B", 8192, "latest", quantization="Q8_0"),
    _chat("llava:7b", "llama", "7B", 32768, "latest", template=_CHAT, quantization="Q4_0", sees=True),
    _embedding("nomic-embed-text:v1.5", "nomic-bert", "137M", 2048, 768, "latest"),
    _embedding("all-minilm:22m", "bert", "23M", 512, 384, "latest"),
    _embedding("all-minilm:33m", "bert", "33M", 512, 384),
    _embedding("mxbai-embed-large:335m", "bert", "334M", 512, 1024, "latest"),
    _embedding("bge-m3:567m", "bert", "566.70M", 8192, 1024, "latest"),
)


class BuiltinModels:
    """The stand-ins as a registry: manifests by name and tag, blobs by digest. Each is made when first asked for."""

    def __init__(self, models: Iterable[BuiltinModel] = BUILTIN_MODELS) -> None:
        self._by_name = {(builtin.model, tag): builtin for builtin in models for tag in builtin.all_tags}
        self._manifests: dict[str, bytes] = {}
        self._blobs: dict[str, bytes] = {}

    def names(self) -> list[str]:
        """Every `model:tag` that can be pulled, sorted."""
        return sorted(f"{model}:{tag}" for model, tag in self._by_name)

    def manifest(self, repository: str, tag: str) -> bytes | None:
        """The registry manifest of `library/model` at `tag`, as the registry writes it; None if there is none."""
        namespace, _, model = repository.lower().partition("/")
        builtin = self._by_name.get((model, tag.lower())) if namespace == "library" else None
        if builtin is None:
            return None
        if builtin.name not in self._manifests:
            self._manifests[builtin.name] = self._make(builtin)
        return self._manifests[builtin.name]

    def manifest_of_digest(self, repository: str, digest: str) -> bytes | None:
        """The registry manifest of `library/model` that has this digest, whatever its tag; None if there is none."""
        documents = self._documents(repository)
        return next((raw for raw in documents if _digest(raw) == digest), None)

    def blob(self, digest: str) -> bytes:
        """A blob that a manifest given out refers to. KeyError."""
        return self._blobs[digest]

    def blob_of(self, repository: str, digest: str) -> bytes | None:
        """A blob that some tag of `library/model` refers to; None if there is none."""
        return (
            self._blobs.get(digest)
            if any(digest.encode() in raw for raw in self._documents(repository))
            else None
        )

    def _documents(self, repository: str) -> list[bytes]:
        """The manifests of every tag of `library/model`."""
        model = repository.lower().partition("/")[2]
        found = (self.manifest(repository, tag) for each, tag in self._by_name if each == model)
        return [raw for raw in found if raw is not None]

    def _make(self, builtin: BuiltinModel) -> bytes:
        layers = [self._layer(media_type, data) for media_type, data in _contents(builtin)]
        config = {
            "model_format": "gguf",
            "model_family": builtin.family,
            "model_families": [builtin.family],
            "model_type": builtin.size,
            "file_type": builtin.quantization,
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
        }
        document = {
            "schemaVersion": 2,
            "mediaType": kinds.MANIFEST_TYPE,
            "config": self._layer(kinds.CONFIG_TYPE, json.dumps(config).encode()),
            "layers": layers,
        }
        return json.dumps(document, indent=3).encode()

    def _layer(self, media_type: str, data: bytes) -> dict[str, object]:
        digest = _digest(data)
        self._blobs[digest] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data)}


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _contents(builtin: BuiltinModel) -> Iterator[tuple[str, bytes]]:
    """Media type and bytes of each layer, in the order of real library models."""
    yield kinds.MODEL, pretend_weights(builtin)
    if builtin.template:
        yield kinds.TEMPLATE, builtin.template.encode()
    if builtin.system:
        yield kinds.SYSTEM, builtin.system.encode()
    yield kinds.LICENSE, _LICENSE.format(name=builtin.name).encode()
    if builtin.parameters:
        yield kinds.PARAMS, json_line(sorted_map(builtin.parameters)).rstrip(b"\n")


def pretend_weights(builtin: BuiltinModel) -> bytes:
    """A small GGUF file of the right architecture, its values made from the name."""
    tensors = list(_tensors(builtin))
    data = [header_bytes(_metadata(builtin), tensors)]
    for tensor in tensors:
        noise = hashlib.shake_128(f"{builtin.name}/{tensor.name}".encode()).digest(tensor.size_bytes)
        data += [noise, padding_after(tensor.size_bytes)]
    return b"".join(data)


def _metadata(builtin: BuiltinModel) -> dict[str, Field]:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256))]
    whole = {
        "context_length": builtin.context_length,
        "embedding_length": builtin.embedding_length,
        "block_count": 1,
        "feed_forward_length": 2 * builtin.embedding_length,
        "attention.head_count": 4,
        "attention.head_count_kv": 4,
    }
    if builtin.is_embedding:
        whole["pooling_type"] = 1
    if builtin.sees:
        whole["vision.block_count"] = 1
    return {
        "general.architecture": Field(STRING, builtin.family),
        "general.name": Field(STRING, f"{STAND_IN}{builtin.name}"),
        "general.description": Field(
            STRING, "random numbers for tests and demonstrations, not the real model"
        ),
        "general.file_type": Field(UINT32, FILE_TYPES.index(builtin.quantization)),
        "general.quantization_version": Field(UINT32, 2),
        **{f"{builtin.family}.{key}": Field(UINT32, value) for key, value in whole.items()},
        f"{builtin.family}.attention.layer_norm_rms_epsilon": Field(FLOAT32, 1e-5),
        "tokenizer.ggml.model": Field(STRING, "llama"),
        "tokenizer.ggml.tokens": Field(ARRAY, list(tokens), STRING),
        "tokenizer.ggml.scores": Field(ARRAY, [0.0] * len(tokens), FLOAT32),
        "tokenizer.ggml.token_type": Field(ARRAY, [2, 3, 3, *[6] * 256], _INT32),
        "tokenizer.ggml.bos_token_id": Field(UINT32, 1),
        "tokenizer.ggml.eos_token_id": Field(UINT32, 2),
    }


def _tensors(builtin: BuiltinModel) -> Iterator[Tensor]:
    width, kind = builtin.embedding_length, _QUANTIZED.get(builtin.quantization, _Q8_0)
    yield Tensor("token_embd.weight", (width, 259), kind)
    yield Tensor("output_norm.weight", (width,), 0)
    for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
        yield Tensor(f"blk.0.{part}.weight", (width, width), kind)
    yield Tensor("blk.0.attn_norm.weight", (width,), 0)
