"""Runtime options of a model: which there are, and what Ollama says to a wrong type.

Decides types only. Unknown options are ignored (the server merely logs them), `null` leaves the default.
Source: Ollama 0.3.4 to 0.33.0, `api.Options`; the refusal is a 500 of the load, not a 400 of the request.
"""

from __future__ import annotations

from collections.abc import Mapping

_INTEGERS = (
    "num_keep seed num_predict top_k repeat_last_n num_ctx num_batch num_gpu num_thread main_gpu "
    "draft_num_predict"
)
_FLOATS = "top_p min_p typical_p tfs_z temperature repeat_penalty presence_penalty frequency_penalty"
_FLAGS = "use_mmap"
_GO_TYPES = {
    **dict.fromkeys(_INTEGERS.split(), "integer"),
    **dict.fromkeys(_FLOATS.split(), "float32"),
    **dict.fromkeys(_FLAGS.split(), "boolean"),
    "stop": "array",
}


def option_problem(options: Mapping[str, object]) -> str | None:
    """The server's words about the first option of a wrong type, or None."""
    for name, value in options.items():
        if value is not None and name in _GO_TYPES and not _fits(_GO_TYPES[name], value):
            return f'option "{name}" must be of type {_GO_TYPES[name]}'
        if name == "stop" and isinstance(value, list) and not all(isinstance(item, str) for item in value):
            return 'option "stop" must be of an array of strings'
    return None


def integer_option(options: Mapping[str, object], name: str, otherwise: int) -> int:
    """A whole option that passed `option_problem`, cut like Go's conversion, or the default."""
    value = options.get(name)
    return int(value) if isinstance(value, (int, float)) else otherwise


def stop_sequences(options: Mapping[str, object]) -> tuple[str, ...]:
    """The `stop` texts that are not empty."""
    value = options.get("stop")
    return tuple(str(item) for item in value if item) if isinstance(value, list) else ()


def _fits(go_type: str, value: object) -> bool:
    if go_type == "array":
        return isinstance(value, list)
    if go_type == "boolean":
        return isinstance(value, bool)
    return isinstance(value, (int, float)) and not isinstance(value, bool)
