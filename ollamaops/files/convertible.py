"""Safetensors and PyTorch weights, which a server converts: which files belong together, and whether one is missing.

The check is ours to make, because no server counts shards: it converts those that it was sent, and half a network
becomes a model without an error.

Index files: https://huggingface.co/docs/transformers/en/big_models (`weight_map`: tensor → file beside the index).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec import Struct

from ollamaops.errors import WeightsError, cut_text
from ollamaops.files.regular_file import open_weights
from ollamaops.files.shards import render_missing

MAX_INDEX_BYTES = 1 << 25
MAX_PARSED_BYTES = 1 << 20
INDEX = ".index.json"
DOCUMENTS = ("config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json")
"""The JSON files beside the weights that servers read when they convert, but not those in folders below."""

_TOKENIZERS = ("tokenizer.json", "tokenizer.model")
_SHARD = re.compile(
    r"(?P<prefix>.*-)(?P<number>[0-9]{1,6})-of-(?P<count>[0-9]{1,6})(?P<ending>\.(?:safetensors|bin|pth))",
    re.DOTALL,
)
_ENDS_BYTES = 512
_WHITE = b" \t\r\n"


class _Shard(Struct, frozen=True):
    """One file of several. Digits are counted as they are: some publishers write -00001-of-000163."""

    name: str
    prefix: str
    digits: str
    total: str
    ending: str

    @property
    def number(self) -> int:
        return int(self.digits)

    @property
    def count(self) -> int:
        return int(self.total)

    def name_of(self, number: int) -> str:
        return f"{self.prefix}{number:0{len(self.digits)}d}-of-{self.total}{self.ending}"


def require_all_shards(names: Iterable[str]) -> None:
    """WeightsError unless every file whose name says that it is one of several has its siblings.

    `names` are paths with `/`; shards belong together within a folder. Other names are ignored.
    """
    sets: dict[tuple[str, str], list[_Shard]] = {}
    for name in names:
        if match := _SHARD.fullmatch(name):
            shard = _Shard(name, match["prefix"], match["number"], match["count"], match["ending"])
            sets.setdefault((shard.prefix, shard.ending), []).append(shard)
    for shards in sets.values():
        _require_whole_set(shards)


def _require_whole_set(shards: Sequence[_Shard]) -> None:
    """Shards are numbered from 1; some publishers begin with 0, of whom some give the last number as the total."""
    first, numbers = shards[0], {shard.number for shard in shards}
    for other in shards:
        if other.count != first.count:
            raise WeightsError(
                f"{other.name}: it is one of {other.count}, but {_base(first.name)} is one of {first.count}",
                hint="these are two different splits of the model; keep the files of one of them",
            )
    wanted = range(1, first.count + 1)
    if 0 in numbers:
        wanted = range(first.count + (first.count in numbers))
    if beyond := sorted(numbers - set(wanted)):
        raise WeightsError(
            f"{first.name_of(beyond[0])}: there is no shard {beyond[0]} of {first.count}",
            hint="give it back the name it was made with",
        )
    if missing := [number for number in wanted if number not in numbers]:
        raise WeightsError(
            f"{first.name}: {render_missing(missing, first.count)}",
            hint=f"put {_base(first.name_of(missing[0]))} beside it",
        )


def require_indexed(index: str, indexed: Iterable[str], names: Sequence[str]) -> None:
    """WeightsError unless everything that an index names is among `names`.

    `index` is its path as in `names`, such as st/model.safetensors.index.json, which speaks of st/model*.safetensors.
    One that speaks of none of the files is passed over, and so is one beside st/model.safetensors alone: that is all
    of the tensors in one.
    """
    folder = index[: len(index) - len(_base(index))]
    alone = index.removesuffix(INDEX)
    prefix, _, ending = alone.rpartition(".")
    spoken_of = [
        name
        for name in names
        if name.startswith(prefix) and name.endswith(f".{ending}") and "/" not in name[len(folder) :]
    ]
    missing = sorted({folder + name for name in indexed}.difference(names))
    if missing and spoken_of and spoken_of != [alone]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise WeightsError(
            f"{index}: it names {cut_text(_base(missing[0]), 80)}{more}, and no such file is there",
            hint="download the files again, all from one revision",
        )


def require_companions(names: Iterable[str], *, is_adapter: bool) -> None:
    """WeightsError unless the files are there without which no server converts weights.

    A model needs its configuration and a tokenizer, an adapter its own configuration (Ollama 0.3 to 0.33).
    """
    found = {_base(name) for name in names}
    config = "adapter_config.json" if is_adapter else "config.json"
    if config not in found:
        raise WeightsError(
            f"no {config} beside the weights", hint="put it there: servers convert no weights without"
        )
    if not is_adapter and found.isdisjoint(_TOKENIZERS):
        raise WeightsError(
            f"no {' or '.join(_TOKENIZERS)} beside the weights",
            hint="put one there: servers convert no weights without",
        )


def read_index(path: Path) -> frozenset[str]:
    """The names of the files that an index has tensors in. WeightsError if it cannot be read or is not an index."""
    with open_weights(path) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        if size_bytes > MAX_INDEX_BYTES:
            raise _bad(path, f"the file is too large: {MAX_INDEX_BYTES} bytes are allowed")
        text = file.read(MAX_INDEX_BYTES)
    document = _parse(path, text)
    weight_map = document.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise _bad(path, "is not an index of weights: it has no weight_map of file names")
    return frozenset(weight_map.values())


def require_object(path: Path) -> None:
    """WeightsError unless the file is a JSON object. Of more than a MiB only the ends are looked at."""
    with open_weights(path) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        if size_bytes <= MAX_PARSED_BYTES:
            _parse(path, file.read(MAX_PARSED_BYTES))
            return
        start = file.read(_ENDS_BYTES)
        file.seek(-_ENDS_BYTES, os.SEEK_END)
        end = file.read(_ENDS_BYTES)
    if not (start.lstrip(_WHITE).startswith(b"{") and end.rstrip(_WHITE).endswith(b"}")):
        raise _bad(path, "is not a JSON object")


def _parse(path: Path, text: bytes) -> dict[str, object]:
    try:
        document: object = json.loads(text.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        raise _bad(path, "is not valid JSON") from None
    if not isinstance(document, dict):
        raise _bad(path, "is not a JSON object")
    return document


def _bad(path: Path, why: str) -> WeightsError:
    return WeightsError(f"{path}: {why}", hint="download or copy it again")


def _base(name: str) -> str:
    return name.rpartition("/")[2]
