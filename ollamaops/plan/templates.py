"""Which template makes a model's prompts: the declared one, or one that the weights carry.

Servers from 0.30 on use the weights' own Jinja template (`tokenizer.chat_template`) where it offers what the model's
template does not (measured: tools). It wins over the template of every model made from such weights, and of what is
made from that, so making a model again would change nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from ollamaops.manifest.types import Pull
from ollamaops.names import Digest, ModelName
from ollamaops.ollama.contents import Contents
from ollamaops.ollama.shown_modelfile import read_back
from ollamaops.plan.actions import Difference
from ollamaops.plan.desired import DeclaredSetting, DesiredHost, DesiredModel
from ollamaops.plan.diff import is_ignored

# what is offered → what a Jinja template has that offers it, and the variable of a Go template that does
_OFFERS: Final = (
    ("tools", r"\btools\b|tool_call", "Tools"),
    ("thinking", "<think>.*</think>", "Thinking"),
)


def find_override(
    host: str, model: DesiredModel, wanted: DeclaredSetting, own: Contents
) -> Difference | None:
    """How the template that makes the prompts differs, if the model has the declared one and it is not in force."""
    effective = own.effective_template
    if not effective or effective.strip() == wanted.text.strip() or read_back(wanted.text) != own.template:
        return None
    if is_ignored("template", model.spec.ignore):
        return None
    return Difference(
        host=host,
        model=model.name,
        kind="template",
        path="effective_template",
        desired=wanted.text,
        observed=effective,
    )


def find_unlocked(host: str, model: DesiredModel, own: Contents) -> Difference | None:
    """How the template that makes the prompts of a locked model differs from what the lock has."""
    locked, effective = model.spec.templates, template_digest(own)
    if effective is None or not locked or effective in locked or is_ignored("template", model.spec.ignore):
        return None
    return Difference(
        host=host,
        model=model.name,
        kind="effective",
        path="effective_template",
        desired=" or ".join(map(str, locked)),
        observed=str(effective),
    )


def template_digest(own: Contents) -> Digest | None:
    """The digest of the template that makes the model's prompts; None if the server shows none."""
    return Digest.of(own.effective_template.encode()) if own.effective_template else None


def say_unlocked(own: Contents) -> str:
    """Which template it is."""
    if own.effective_template != own.template:
        return "the server uses the weights' own template"
    return "the server uses the model's template"


def weights_template(
    desired: DesiredHost, model: DesiredModel, shown: Contents | None, carried: Mapping[ModelName, str]
) -> str:
    """The template that the model's weights carry, as their file says, or `shown`: the model or its base as it is
    now, or what is `carried` by weights that would be pulled. "" where there is none, or none that is known of."""
    if shown is not None and shown.effective_template != shown.template:
        return shown.effective_template
    one: DesiredModel | None = model
    while one is not None and not one.weights:
        one = desired.find(one.made_from)
    if one is not None:
        return next((info.chat_template for info in one.weights if info.chat_template), "")
    origin: DesiredModel | None = model
    while origin is not None and not isinstance(origin.spec.source, Pull):
        origin = desired.find(origin.made_from)
    return carried.get(origin.spec.source.ref, "") if origin and isinstance(origin.spec.source, Pull) else ""


def offers_more(jinja: str, declared: str) -> tuple[str, ...]:
    """What the weights' template offers and the declared one does not: then servers use the weights'."""
    return tuple(
        what
        for what, words, variable in _OFFERS
        if re.search(words, jinja, re.DOTALL) and not re.search(rf"\.{variable}\b", declared)
    )


def say_override(model: ModelName, wanted: DeclaredSetting, jinja: str, *, is_plan: bool = False) -> str:
    """What is the matter, and why."""
    whose = "the declared template" if wanted.by == model else f"the template that '{wanted.by}' declares"
    more = " and ".join(offers_more(jinja, wanted.text))
    is_not = "will not be in force on this server" if is_plan else "is not in force"
    why = f"it offers {more}" if more else "the server prefers it"
    return f"{whose} {is_not}: the weights' own template is used: {why}"


def ways_out(wanted: DeclaredSetting, jinja: str) -> str:
    """What can be done about it."""
    more = " and ".join(offers_more(jinja, wanted.text))
    handle = f"handle {more} in the declared template, " if more else ""
    return f"{handle}drop template:, or set OLLAMA_GO_TEMPLATE=1 in the server's environment"
