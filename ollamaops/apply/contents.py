"""What a model consists of, read out of `/api/show`: the typed answer → Contents.

Decides when a model counts as one that cannot be opened. The fact a reader would miss: servers ≥ 0.30 may show the
weights' Jinja chat template in `template`, and print the one that counts only in `modelfile`, where quoting loses a
little; so every text that may be it is kept.
"""

from __future__ import annotations

from collections.abc import Callable

from ollamaops.errors import AnswerError
from ollamaops.manifest.shown import parse_shown_modelfile
from ollamaops.ollama.version import Features
from ollamaops.ollama.wire import ShownModel
from ollamaops.plan.observed import Contents

# weights gone: 404; damaged: 500; a name that this version cannot address: 400, or refused by our own client (0)
_CANNOT_BE_OPENED = frozenset({0, 400, 404, 500})


def look_into(show: Callable[[], ShownModel], digest: str, features: Features) -> Contents | None:
    """What `show` finds in the model whose tags digest is `digest`; None when it is listed but cannot be opened.

    RemoteError for everything that says nothing about the model: no connection, a proxy in between, no permission.
    """
    try:
        return contents_of(show(), digest, features)
    except AnswerError as error:
        if error.status in _CANNOT_BE_OPENED:
            return None
        raise


def contents_of(shown: ShownModel, digest: str, features: Features) -> Contents:
    """The Contents of a model whose tags digest is `digest` (bare hex)."""
    printed = parse_shown_modelfile(shown.modelfile)
    texts = [shown.template, printed.template or ""]
    template = texts[1] if features.jinja_in_template and printed.template is not None else texts[0]
    model = (printed.model,) if printed.model else ()
    return Contents(
        digest=digest,
        parent=shown.details.parent_model,
        blobs=(*model, *printed.projectors),
        adapters=(*printed.adapters, *printed.drafts),
        template=template,
        templates=frozenset(text for text in (template, *texts) if text),
        system=shown.system,
        parameters=shown.parameter_values,
        messages=tuple((message.role, message.content) for message in shown.messages),
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
