"""Where the facts about a host are kept: in the ledger of the state folder, or in a tiny model on the host itself.

The model's system text is the ledger; every server since 0.3 returns it byte for byte. Servers from 0.30 on pass
weights through llama-quantize, so even a model that never runs has to be a whole one: a llama of one layer, with a
vocabulary of bytes and all its weights zero. Only a run that has the host's lock (apply/locks.py) may write to a
ledger on a host; to everyone else it is read-only.
"""

from __future__ import annotations

import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from ollamaops.errors import InvalidName, NotFound, ServerFault
from ollamaops.files.gguf_types import GgufValue
from ollamaops.files.gguf_writer import TensorData, array_of, build_gguf
from ollamaops.names import Digest, ModelName
from ollamaops.observe.run import HostTask, Run
from ollamaops.ollama.client import OllamaClient
from ollamaops.ollama.upload import upload_blob
from ollamaops.plan.actions import Blob, Recipe
from ollamaops.plan.create_request import build_request, render_request
from ollamaops.state.ledger_document import LEDGER_NAME
from ollamaops.state.records import LedgerStore
from ollamaops.state.server_ledger import ServerLedger

_FILE = "ollamaops-ledger.gguf"
_WIDTH, _HIDDEN, _HEADS, _CONTEXT = 32, 64, 4, 512
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6  # llama.cpp's kinds of tokens


def ledger_of(task: HostTask, client: OllamaClient, run: Run) -> LedgerStore:
    """The store of what is remembered of the task's host."""
    if task.state == "local":
        return run.ledger
    return run.server_ledgers.get(task.spec.name) or server_ledger(client, run, writing=False)


def server_ledger(client: OllamaClient, run: Run, *, writing: bool) -> ServerLedger:
    """The ledger on the client's host."""
    return ServerLedger(LedgerModel(client), writing=writing, now=run.moment, pause=run.cancel.wait)


class LedgerModel:
    """The ledger's text on one host. Every method raises RemoteError when the host does not do it.

    No request can be cancelled: they are few and quick, and what was done has to be remembered after a Ctrl-C too.
    """

    def __init__(self, client: OllamaClient) -> None:
        self._client = client.without_cancel()
        self._is_sound = False

    @property
    def host(self) -> str:
        """The host's name, for messages."""
        return self._client.host

    def digest(self) -> str | None:
        """The tags digest of the ledger's model; None when there is none."""
        for tagged in self._client.tags():
            with suppress(InvalidName):
                if ModelName.parse(tagged.name) == LEDGER_NAME:
                    return tagged.digest.hex
        self._is_sound = False
        return None

    def read(self) -> str | None:
        """The text; None when the model is listed but cannot be opened."""
        try:
            text = self._client.show(LEDGER_NAME).system
        except NotFound:
            self._is_sound = False
            return None
        self._is_sound = True
        return text

    def write(self, text: str) -> None:
        """Make the model with this text: from itself when it is there, else from weights sent along."""
        if self._is_sound:
            with suppress(ServerFault, NotFound):
                self._create(Recipe(base=LEDGER_NAME, system=text))
                return
            self._is_sound = False  # newer servers show it from memory although its weights are gone
        self._create(self._from_weights(text))

    def _create(self, recipe: Recipe) -> None:
        features = self._client.features()
        if features.structured_create:
            self._client.create(build_request(LEDGER_NAME, recipe, features))
        else:
            self._client.create_from_modelfile(LEDGER_NAME, render_request(recipe, recipe.base))

    def _from_weights(self, text: str) -> Recipe:
        data = ledger_weights()
        digest = Digest.of(data)
        with tempfile.TemporaryDirectory(prefix="ollamaops-") as folder:
            path = Path(folder) / _FILE
            path.write_bytes(data)
            upload_blob(self._client, digest, path, len(data))
        return Recipe(files=(Blob(_FILE, digest),), system=text)


@cache
def ledger_weights() -> bytes:
    """A complete GGUF of architecture llama, 115 kB; always the same bytes."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256]
    metadata: dict[str, GgufValue] = {
        "general.architecture": "llama",
        "general.name": "ollamaops-ledger",
        "llama.context_length": _CONTEXT,
        "llama.embedding_length": _WIDTH,
        "llama.block_count": 1,
        "llama.feed_forward_length": _HIDDEN,
        "llama.attention.head_count": _HEADS,
        "llama.attention.head_count_kv": _HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": _WIDTH // _HEADS,
        "general.file_type": 0,
        "llama.vocab_size": len(tokens),
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": array_of(tokens, "string"),
        "tokenizer.ggml.scores": array_of([0.0] * len(tokens), "float32"),
        "tokenizer.ggml.token_type": array_of(kinds, "int32"),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    return build_gguf(metadata, [_zeros(name, shape) for name, shape in _tensors(len(tokens)).items()])


def _tensors(vocabulary: int) -> dict[str, tuple[int, ...]]:
    square = (_WIDTH, _WIDTH)
    return {
        "token_embd.weight": (_WIDTH, vocabulary),
        "output_norm.weight": (_WIDTH,),
        "output.weight": (_WIDTH, vocabulary),
        "blk.0.attn_norm.weight": (_WIDTH,),
        "blk.0.ffn_norm.weight": (_WIDTH,),
        "blk.0.attn_q.weight": square,
        "blk.0.attn_k.weight": square,
        "blk.0.attn_v.weight": square,
        "blk.0.attn_output.weight": square,
        "blk.0.ffn_gate.weight": (_WIDTH, _HIDDEN),
        "blk.0.ffn_up.weight": (_WIDTH, _HIDDEN),
        "blk.0.ffn_down.weight": (_HIDDEN, _WIDTH),
    }


def _zeros(name: str, shape: tuple[int, ...]) -> TensorData:
    size = 4
    for length in shape:
        size *= length
    return TensorData(name, shape, "F32", bytes(size))
