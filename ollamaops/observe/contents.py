"""What a model consists of, read out of `/api/show`: the typed answer → Contents.

Decides when a model counts as one that cannot be opened, and when that is because its files are damaged. The fact a
reader would miss: a server that cannot show a model may just be too old for it (a pull does not parse templates,
show does: ollama#11706), so damage is only what the server calls so in words that are known.

Servers ≥ 0.30 may show the weights' Jinja chat template in `template`, and print the one that counts only in
`modelfile`, where quoting loses a little; so every text that may be it is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ollamaops.errors import AnswerError
from ollamaops.ollama.features import Features
from ollamaops.ollama.shown_modelfile import parse_shown_modelfile
from ollamaops.ollama.wire import ShownModel
from ollamaops.plan.observed import Contents

# weights gone: 404; damaged or not understood: 500; a name that this version cannot address: 400, or refused by our
# own client (0)
_CANNOT_BE_OPENED: Final = frozenset({0, 400, 404, 500})

# what Go says of a file that has gone, is cut short, or is not what it should be; not of one that it may not open
_DAMAGE: Final = re.compile(
    r"invalid file magic"
    r"|(?:^|[^\"]: |^unexpected |[^\"]: unexpected )EOF$"
    r"|[\\/](?:blobs|manifests)[\\/].*(?:no such file or directory|the system cannot find)"
    r"|^invalid character .* looking for beginning of value$"
    r"|^unexpected end of JSON input$",
    re.IGNORECASE,
)
_OF_A_TEMPLATE: Final = re.compile(r"^template\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A model that is listed but cannot be opened, in the server's `words`.

    `is_damaged` only if they say that a file of it is missing or broken, so that it has to be fetched anew.
    """

    words: str
    is_damaged: bool


def examine(show: Callable[[], ShownModel], digest: str, features: Features) -> Contents | Unreadable:
    """What `show` finds in the model whose tags digest is `digest`, or why it cannot be opened.

    RemoteError for everything that says nothing about the model: no connection, a proxy in between, no permission.
    """
    try:
        return contents_of(show(), digest, features)
    except AnswerError as error:
        if error.status not in _CANNOT_BE_OPENED:
            raise
        return Unreadable(_words_of(error), _is_damage(error))


def look_into(show: Callable[[], ShownModel], digest: str, features: Features) -> Contents | None:
    """As `examine`; None when the model cannot be opened, for whatever reason."""
    found = examine(show, digest, features)
    return None if isinstance(found, Unreadable) else found


def _is_damage(error: AnswerError) -> bool:
    if error.status == 404:
        return True
    return not _OF_A_TEMPLATE.match(error.text) and _DAMAGE.search(error.text) is not None


def _words_of(error: AnswerError) -> str:
    return error.text or (f"HTTP {error.status}" if error.status else str(error))


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


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0


def short_digest(digest: str | None) -> str:
    """The first 12 digits, or that the model is not there."""
    return digest[:12] if digest else "not there"
