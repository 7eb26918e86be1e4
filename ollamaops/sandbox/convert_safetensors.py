"""Safetensors folders to GGUF, as `create` converts them: names, shapes, metadata. F16 in, F16 out.

The header of the new file is built as the server builds it. The data is taken over unchanged and cut or padded
to its new size: nothing computes with it. Architectures other than those whose tensors are named as Llama's are
refused.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from ollamaops.sandbox.behavior import Behavior
from ollamaops.sandbox.gguf_file import (
    ARRAY,
    BOOL,
    FLOAT32,
    STRING,
    UINT32,
    Field,
    Header,
    Tensor,
    header_bytes,
    padding_after,
    parse_header,
)
from ollamaops.sandbox.gguf_rewrite import block_of

INT32 = 5
_ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "MixtralForCausalLM": "llama",
    "GemmaForCausalLM": "gemma",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "Phi3ForCausalLM": "phi3",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "BertModel": "bert",
    "CohereForCausalLM": "command-r",
}
_NAMES = (
    (r"^model\.embed_tokens\.", "token_embd."),
    (r"^model\.norm\.", "output_norm."),
    (r"^lm_head\.", "output."),
    (r"^model\.layers\.", "blk."),
    (r"\.input_layernorm\.", ".attn_norm."),
    (r"\.post_attention_layernorm\.", ".ffn_norm."),
    (r"\.self_attn\.([qkv])_proj\.", r".attn_\1."),
    (r"\.self_attn\.([qk])_norm\.", r".attn_\1_norm."),
    (r"\.self_attn\.o_proj\.", ".attn_output."),
    (r"\.mlp\.(gate|up|down)_proj\.", r".ffn_\1."),
)
_LORA_NAMES = ((r"^base_model\.model\.", ""), (r"\.lora_([AB])\.weight$", r".weight.lora_\1"))
_CHUNK = 1 << 20


class UnsupportedModel(ValueError):
    """A directory that cannot be converted. `str()` is what the server says."""


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor in a safetensors file: where its bytes are."""

    path: Path
    start: int
    size: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Conversion:
    """A GGUF file to be: its header, and where the data of each of its tensors is."""

    header: Header
    sources: Mapping[str, _Stored]

    def write(self, write: Callable[[bytes], None]) -> None:
        """Write the file, data as far as its new size goes."""
        write(header_bytes(self.header.fields, self.header.tensors))
        for tensor in self.header.tensors:
            source = self.sources[tensor.name]
            with source.path.open("rb") as stream:
                stream.seek(source.start)
                data = stream.read(min(source.size, tensor.size_bytes))
            write(data.ljust(tensor.size_bytes, b"\0") + padding_after(tensor.size_bytes))


def convert_model(files: Mapping[str, Path], behavior: Behavior) -> Conversion:
    """The GGUF file made from a model's directory. UnsupportedModel, OSError."""
    config = _document(files, "config.json")
    architectures = config.get("architectures")
    named = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    if named not in _ARCHITECTURES:
        raise UnsupportedModel(f'unsupported architecture "{named}"')
    if "tokenizer.json" not in files and "tokenizer.model" not in files:
        raise UnsupportedModel("open tokenizer.model: file does not exist")
    sources = {_renamed(name): stored for name, stored in _tensors(files).items()}
    tensors = [_new_tensor(name, stored) for name, stored in sources.items()]
    tensors.sort(key=_by_name if behavior.converts == "go by name" else _by_block)
    fields = _model_fields(_ARCHITECTURES[named], config) | _tokenizer_fields(files, behavior)
    return Conversion(_placed(dict(sorted(fields.items())), tensors), sources)


def convert_adapter(files: Mapping[str, Path], base_architecture: str) -> Conversion:
    """The GGUF file made from an adapter's directory. UnsupportedModel, OSError."""
    config = _document(files, "adapter_config.json")
    if base_architecture not in {"llama", "gemma2"}:
        raise UnsupportedModel("unsupported architecture")
    alpha = config.get("lora_alpha", config.get("alpha", 16))
    sources = {
        re.sub(r"lora_[AB]$", lambda match: match[0].lower(), _renamed(name, _LORA_NAMES + _NAMES)): stored
        for name, stored in _tensors(files).items()
    }
    fields = {
        "adapter.lora.alpha": Field(FLOAT32, float(alpha) if isinstance(alpha, int | float) else 16.0),
        "adapter.type": Field(STRING, "lora"),
        "general.architecture": Field(STRING, base_architecture),
        "general.file_type": Field(UINT32, 1),
        "general.type": Field(STRING, "adapter"),
        "general.version": Field(STRING, "v0.2"),
    }
    tensors = sorted((_new_tensor(name, stored) for name, stored in sources.items()), key=_by_name)
    return Conversion(_placed(fields, tensors), sources)


def _placed(fields: Mapping[str, Field], tensors: list[Tensor]) -> Header:
    data = header_bytes(fields, tensors)
    return parse_header(BytesIO(data), len(data))


def _document(files: Mapping[str, Path], name: str) -> dict[str, object]:
    if name not in files:
        raise UnsupportedModel(f"open {name}: file does not exist")
    try:
        document = json.loads(files[name].read_bytes())
    except ValueError as error:
        raise UnsupportedModel(f"{name}: {error}") from error
    return document if isinstance(document, dict) else {}


def _tensors(files: Mapping[str, Path]) -> dict[str, _Stored]:
    found: dict[str, _Stored] = {}
    for name in sorted(files):
        if name.endswith(".safetensors"):
            found |= _read_safetensors(files[name])
    return found


def _read_safetensors(path: Path) -> dict[str, _Stored]:
    with path.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length <= path.stat().st_size:
            raise UnsupportedModel("unexpected EOF")
        try:
            listed = json.loads(stream.read(length))
        except ValueError as error:
            raise UnsupportedModel(f"invalid safetensors header: {error}") from error
    return {
        name: _Stored(
            path, 8 + length + about["data_offsets"][0], _span(about["data_offsets"]), tuple(about["shape"])
        )
        for name, about in listed.items()
        if name != "__metadata__"
    }


def _span(offsets: list[int]) -> int:
    return offsets[1] - offsets[0]


def _renamed(name: str, rules: tuple[tuple[str, str], ...] = _NAMES) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _new_tensor(name: str, stored: _Stored) -> Tensor:
    """Matrices become F16, the rest F32; dimensions are listed the other way round."""
    return Tensor(name, tuple(reversed(stored.shape)), 1 if len(stored.shape) > 1 else 0)


def _by_name(tensor: Tensor) -> tuple[float, str]:
    block = block_of(tensor.name)
    return (float("inf") if block is None else block, tensor.name)


def _by_block(tensor: Tensor) -> float:
    block = block_of(tensor.name)
    return -1 if block is None else block


def _whole(config: Mapping[str, object], key: str, otherwise: int = 0) -> int:
    value = config.get(key)
    return value if isinstance(value, int) else otherwise


def _real(config: Mapping[str, object], key: str, otherwise: float) -> float:
    value = config.get(key)
    return float(value) if isinstance(value, int | float) else otherwise


def _model_fields(architecture: str, config: Mapping[str, object]) -> dict[str, Field]:
    heads = _whole(config, "num_attention_heads")
    width = _whole(config, "hidden_size")
    whole = {
        "vocab_size": _whole(config, "vocab_size"),
        "block_count": _whole(config, "num_hidden_layers"),
        "context_length": _whole(config, "max_position_embeddings"),
        "embedding_length": width,
        "feed_forward_length": _whole(config, "intermediate_size"),
        "attention.head_count": heads,
        "attention.head_count_kv": _whole(config, "num_key_value_heads", heads),
        "rope.dimension_count": _whole(config, "head_dim", width // heads if heads else 0),
    }
    fields = {f"{architecture}.{key}": Field(UINT32, value) for key, value in whole.items() if value}
    fields |= {
        "general.architecture": Field(STRING, architecture),
        "general.file_type": Field(UINT32, 1),
        "general.quantization_version": Field(UINT32, 2),
        f"{architecture}.attention.layer_norm_rms_epsilon": Field(
            FLOAT32, _real(config, "rms_norm_eps", 1e-6)
        ),
    }
    if "rope_theta" in config:
        fields[f"{architecture}.rope.freq_base"] = Field(FLOAT32, _real(config, "rope_theta", 10000.0))
    return fields


def _tokenizer_fields(files: Mapping[str, Path], behavior: Behavior) -> dict[str, Field]:
    if "tokenizer.json" not in files:
        return {"tokenizer.ggml.model": Field(STRING, "llama")}
    tokens, special = _vocabulary(_document(files, "tokenizer.json"))
    fields = {
        "tokenizer.ggml.model": Field(STRING, "gpt2"),
        "tokenizer.ggml.pre": Field(STRING, "default"),
        "tokenizer.ggml.tokens": Field(ARRAY, list(tokens), STRING),
        "tokenizer.ggml.scores": Field(ARRAY, [float(number) for number in range(len(tokens))], FLOAT32),
        "tokenizer.ggml.token_type": Field(ARRAY, [3 if token in special else 1 for token in tokens], INT32),
    }
    chosen = _document(files, "tokenizer_config.json") if "tokenizer_config.json" in files else {}
    for key, kind in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown")):
        token = chosen.get(f"{key}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if text in tokens:
            fields[f"tokenizer.ggml.{kind}_token_id"] = Field(UINT32, tokens.index(str(text)))
            if behavior.converted_bos_flags:
                fields[f"tokenizer.ggml.add_{kind}_token"] = Field(
                    BOOL, chosen.get(f"add_{key}_token") is True
                )
    template = chosen.get("chat_template")
    return fields | (
        {"tokenizer.chat_template": Field(STRING, template)} if isinstance(template, str) else {}
    )


def _vocabulary(tokenizer: Mapping[str, object]) -> tuple[list[str], set[str]]:
    """The tokens by number, and which of them are special."""
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens")
    numbered = dict(model.get("vocab") or {}) if isinstance(model, dict) else {}
    special: set[str] = set()
    for token in added if isinstance(added, list) else ():
        numbered[token["content"]] = token["id"]
        special.add(token["content"])
    return sorted(numbered, key=lambda token: int(numbered[token])), special
