"""Split GGUF files: `<prefix>-00001-of-00003.gguf` and its siblings are one model, and naming one means all of them.

File names count from 1 and the header's `split.no` counts from 0. A server (Ollama ≥ 0.30) goes by the names, so the
two must agree.

The naming is llama.cpp's: `llama_split_path` in https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from msgspec import Struct

from ollamaops.errors import WeightsError
from ollamaops.files.gguf_types import GgufHeader

MAX_SHARDS = 9999
_NAME = re.compile(r"(?P<prefix>.*)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL)
_SHOWN = 8


class Shard(Struct, frozen=True):
    """One file of a split model. `prefix` is all of its path or URL before the numbers; `number` counts from 1."""

    prefix: str
    number: int
    count: int

    @property
    def name(self) -> str:
        """The path or URL that says all this."""
        return f"{self.prefix}-{self.number:05d}-of-{self.count:05d}.gguf"

    @property
    def names_of_all(self) -> tuple[str, ...]:
        """The names of the whole set, in order."""
        return tuple(Shard(self.prefix, number, self.count).name for number in range(1, self.count + 1))


def parse_shard(name: str) -> Shard | None:
    """The shard that a path or URL names, None for any other name. WeightsError for a shard that cannot be."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    shard = Shard(match["prefix"], int(match["number"]), int(match["count"]))
    if not 1 <= shard.number <= shard.count:
        raise WeightsError(
            f"{name}: there is no shard {shard.number} of {shard.count}",
            hint="shards are numbered from 00001; check the file's name",
        )
    if shard.count > MAX_SHARDS:
        raise WeightsError(f"{name}: {shard.count} shards; at most {MAX_SHARDS} are possible")
    return shard


def complete_shards(declared: Sequence[str], found: Collection[str]) -> tuple[str, ...]:
    """`declared` with every split model in full: its shards in order, at the place of the first one named.

    `found` holds the names of all files beside them. WeightsError lists the shards that are missing, and refuses a
    shard named twice and two sets of one prefix with different totals.
    """
    shards = {name: parse_shard(name) for name in declared}
    _refuse_repeats(name for name in declared if shards[name])
    _refuse_mixed_totals(shard for shard in shards.values() if shard)
    complete: list[str] = []
    for name in declared:
        shard = shards[name]
        if shard is None:
            complete.append(name)
        elif name not in complete:
            complete += _whole_set(shard, found)
    return tuple(complete)


def _refuse_repeats(names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise WeightsError(
                f"{name}: this shard is named twice", hint="name one shard; it means all of them"
            )
        seen.add(name)


def _refuse_mixed_totals(shards: Iterable[Shard]) -> None:
    first: dict[str, Shard] = {}
    for shard in shards:
        other = first.setdefault(shard.prefix, shard)
        if other.count != shard.count:
            raise WeightsError(
                f"{shard.name}: it is one of {shard.count}, but {_base(other.name)} is one of {other.count}",
                hint="these are two different splits of the model; name a shard of one of them",
            )


def _whole_set(shard: Shard, found: Collection[str]) -> tuple[str, ...]:
    names = shard.names_of_all
    missing = [number for number, name in enumerate(names, 1) if name not in found]
    if missing:
        others = sorted({other.count for other in _same_prefix(shard, found) if other.count != shard.count})
        also = f"; beside it are shards of a set of {others[0]}" if others else ""
        raise WeightsError(
            f"{shard.name}: {render_missing(missing, shard.count)}{also}",
            hint=f"put {_base(names[missing[0] - 1])} beside it",
        )
    return names


def render_missing(numbers: Sequence[int], count: int) -> str:
    """`shard 2 of 3 is missing`, `shards 3–4 of 4 are missing`."""
    if len(numbers) == 1:
        return f"shard {numbers[0]} of {count} is missing"
    return f"shards {_ranges(numbers)} of {count} are missing"


def _same_prefix(shard: Shard, found: Collection[str]) -> list[Shard]:
    matches = (_NAME.fullmatch(name) for name in found)
    return [
        Shard(match["prefix"], int(match["number"]), int(match["count"]))
        for match in matches
        if match and match["prefix"] == shard.prefix
    ]


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _ranges(numbers: Sequence[int]) -> str:
    """`2, 4–6, 9`; what is too long ends in `…`."""
    parts: list[str] = []
    start = last = numbers[0]
    for number in (*numbers[1:], 0):
        if number != last + 1:
            parts.append(str(start) if start == last else f"{start}–{last}")
            start = number
        last = number
    return ", ".join(parts[:_SHOWN]) + (", …" if len(parts) > _SHOWN else "")


def check_shard_headers(headers: Mapping[str, GgufHeader]) -> None:
    """WeightsError unless every header agrees with its file's name and the sets are complete.

    `headers` are those of all GGUF files of a model, by name. A file whose header says that it is one shard of
    several must be called so. Missing numbers are accepted: older splitters write no `split.*`.
    """
    tensors: dict[tuple[str, int], int] = {}
    for name, header in headers.items():
        shard = parse_shard(name)
        _check_numbers(name, shard, header)
        if shard is not None:
            key = (shard.prefix, shard.count)
            tensors[key] = tensors.get(key, 0) + len(header.tensors)
    for name, header in headers.items():
        shard, promised = parse_shard(name), header.number("split.tensors.count")
        if shard is None or promised is None:
            continue
        there = tensors[shard.prefix, shard.count]
        if there != promised:
            raise WeightsError(
                f"{name}: its header promises {promised} tensors in all shards, {there} are there",
                hint="the shards come from different splits; download them again",
            )


def _check_numbers(name: str, shard: Shard | None, header: GgufHeader) -> None:
    number, count = header.number("split.no"), header.number("split.count")
    if count is None or (shard is None and count <= 1):
        return
    says = f"its header says shard {'?' if number is None else number + 1} of {count}"
    if shard is None:
        raise WeightsError(
            f"{name}: {says}, its name does not",
            hint=f"keep the name it was made with, …-{(number or 0) + 1:05d}-of-{count:05d}.gguf, and all its shards",
        )
    if count != shard.count or (number is not None and number + 1 != shard.number):
        raise WeightsError(
            f"{name}: {says}, its name says shard {shard.number} of {shard.count}",
            hint="give it back the name it was made with",
        )
