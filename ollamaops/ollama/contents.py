"""What a model consists of, as `/api/show` tells it: the typed answer → Contents.

Servers ≥ 0.30 may show the weights' Jinja chat template in `template`, and print the one that counts only in
`modelfile`, where quoting loses a little; so every text that may be it is kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal

from msgspec import Struct, field
from msgspec.structs import replace

from ollamaops.names import Digest
from ollamaops.ollama.features import Features
from ollamaops.ollama.shown_modelfile import parse_shown_modelfile
from ollamaops.ollama.wire import ShownModel
from ollamaops.settings import ParameterValue

NO_TEMPLATE = "{{ .Prompt }}"  # what every server shows for a model without a template layer


class Contents(Struct, frozen=True, kw_only=True):
    """What `/api/show` says is in a model, and what could be read out of its `modelfile` text.

    Values of `parameters` have the types that they have on the server: text where the API needs a number stays text.
    `stop` is text only where the server may hold it so (see `text_stop`).

    `blobs` and `adapters` are the digests its FROM and ADAPTER lines end in, model layer first. `templates` are all
    texts the template may be: servers ≥ 0.30 show a Jinja template in one place and print the other lossily.
    `effective_template` is the one that makes prompts: the weights may carry one that the server prefers to the
    model's own (≥ 0.30).
    """

    digest: str
    parent: str = ""
    blobs: tuple[Digest, ...] = ()
    adapters: tuple[Digest, ...] = ()
    template: str = ""
    templates: frozenset[str] = frozenset()
    effective_template: str = ""
    system: str = ""
    parameters: Mapping[str, ParameterValue] = field(default_factory=dict)
    messages: tuple[tuple[str, str], ...] = ()
    license_text: str = ""
    renderer: str = ""
    parser: str = ""
    requires: str = ""
    architecture: str = ""
    parameter_count: int = 0
    quantization: str = ""
    capabilities: tuple[str, ...] = ()
    tensors: frozenset[tuple[str, tuple[int, ...]]] = frozenset()

    @property
    def weights_layers(self) -> tuple[Digest, ...]:
        """Every weights layer that the server prints, each once: model, projectors, adapters, drafts."""
        return tuple(dict.fromkeys((*self.blobs, *self.adapters)))


class Unreadable(Struct, frozen=True):
    """A model that is listed but cannot be opened, in the server's `words`.

    `is_damaged` only if they say that a file of it is missing or broken, so that it has to be fetched anew; `is_gone`
    if it is missing.
    """

    words: str
    is_damaged: bool
    is_gone: bool = False


def contents_of(shown: ShownModel, digest: str, features: Features) -> Contents:
    """The Contents of a model whose tags digest is `digest` (bare hex)."""
    messages = tuple((message.role, message.content) for message in shown.messages)
    texts = [value for _, value in shown.parameters if isinstance(value, str)]
    texts += [shown.system, shown.template, shown.licenses, *(content for _, content in messages)]
    printed = parse_shown_modelfile(shown.modelfile, texts)
    templates = (shown.template, printed.template or "")
    is_printed = features.jinja_in_template and printed.template is not None
    template = templates[1] if is_printed else templates[0]
    model = (printed.model,) if printed.model else ()
    return Contents(
        digest=digest,
        parent=shown.details.parent_model,
        blobs=(*model, *printed.projectors),
        adapters=(*printed.adapters, *printed.drafts),
        template=template,
        templates=frozenset(filter(None, templates)),
        effective_template=shown.template,
        system=shown.system,
        parameters=shown.parameter_values,
        messages=messages,
        license_text=shown.licenses,
        renderer=printed.renderer or "",
        parser=printed.parser or "",
        requires=shown.requires,
        architecture=_text(shown.model_info.get("general.architecture")),
        parameter_count=_count(shown.model_info.get("general.parameter_count")),
        quantization=shown.details.quantization_level,
        capabilities=shown.capabilities or (),
        tensors=frozenset((tensor.name, tensor.shape) for tensor in shown.tensors),
    )


def text_stop(contents: Contents) -> Digest | None:
    """The blob that the model's parameters are in if its only stop word is text there, which makes it fail to load.

    `show` prints a list of one alike. None if there is nothing to tell apart. Servers from 0.5.5 on write parameters
    as Go's JSON encoder does: keys sorted, `<`, `>` and `&` escaped, a newline at the end.
    """
    stop = contents.parameters.get("stop")
    if not isinstance(stop, tuple) or len(stop) != 1:
        return None
    held = sorted({**contents.parameters, "stop": stop[0]}.items(), key=lambda item: item[0].encode())
    text = ",".join(f"{_go_json(name)}:{_go_json(value)}" for name, value in held)
    return Digest.of(f"{{{text}}}\n".encode("utf-8", "replace"))


def _go_json(value: ParameterValue) -> str:
    """A parameter's value as Go's JSON encoder writes it."""
    if isinstance(value, tuple):
        return "[" + ",".join(map(_go_json, value)) + "]"
    if isinstance(value, float) and (value == 0 or 1e-6 <= abs(value) < 1e21):
        return format(Decimal(repr(value)), "f").removesuffix(".0")
    text = json.dumps(value, ensure_ascii=False)
    if isinstance(value, float):
        return re.sub(r"e([+-])0", r"e\1", text)
    return re.sub("[<>&\u2028\u2029]", lambda match: f"\\u{ord(match[0]):04x}", text)


def with_text_stop(contents: Contents) -> Contents:
    """The contents of a model whose stop word is text on the server."""
    stop = contents.parameters["stop"]
    return replace(
        contents, parameters={**contents.parameters, "stop": stop[0] if isinstance(stop, tuple) else stop}
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0
