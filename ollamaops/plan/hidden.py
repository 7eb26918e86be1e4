"""Shows `${env:NAME}` in the place of what came from the environment, in everything that is shown or written down.

Values are whole here, so that neither cutting a text nor escaping it comes first. Of a text that is declared with a
secret, what a server has in its place may hold an older one; so its other lines are not shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TypeVar, cast

from msgspec import Struct
from msgspec.structs import asdict, replace

from ollamaops.names import Digest
from ollamaops.plan.actions import Difference
from ollamaops.state.records import Fingerprint

T = TypeVar("T")
_DIGEST = re.compile(r"(?:sha256[:-])?[0-9a-f]{12,64}")
NOT_SHOWN = "…"
# never what a user wrote: names of hosts, kinds and ids, by which values are found
_NAMING = frozenset({"host", "kind", "rule", "action", "action_id", "id", "run_id", "at", "needs", "format"})


class Hidden:
    """`texts`: what came from the environment → how it is shown, which is `${env:NAME}`."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        forms = {form: shown for text, shown in texts.items() for form in _forms_of(text)}
        self._forms, self._texts = forms, {shown: text for text, shown in texts.items()}
        self._hiding, self._restoring = _any_of(forms), _any_of(self._texts)

    def hide(self, value: T) -> T:
        """The same value (one of plan/ or of events, JSON, or text), as it may be shown."""
        return cast("T", self._hide(value)) if self._forms else value

    def _hide(self, value: object) -> object:
        match value:
            case Digest() | Fingerprint():
                return value
            case str():
                is_digest = value not in self._forms and _DIGEST.fullmatch(value) is not None
                return value if is_digest else self._hiding.sub(lambda match: self._forms[match[0]], value)
            case Difference(desired=desired) if self._hiding.search(desired):
                observed = _only_lines_of(desired, value.observed)
                return replace(value, desired=self._hide(desired), observed=self._hide(observed))
            case Struct():
                fields = {name: item for name, item in asdict(value).items() if name not in _NAMING}
                return replace(value, **{name: self._hide(item) for name, item in fields.items()})
            case Mapping():
                return {key: item if key in _NAMING else self._hide(item) for key, item in value.items()}
            case tuple():
                return tuple(map(self._hide, value))
            case list():
                return [self._hide(item) for item in value]
            case _:
                return value

    def restore(self, document: object) -> object:
        """A JSON document of hidden values with what stands in the environment now."""
        match document:
            case str():
                return self._restoring.sub(lambda match: self._texts[match[0]], document)
            case dict():
                return {key: item if key in _NAMING else self.restore(item) for key, item in document.items()}
            case list():
                return [self.restore(item) for item in document]
            case _:
                return document


def _forms_of(text: str) -> set[str]:
    """The text, and as it stands in JSON that is itself a text; servers drop white space around it."""
    plain = {text, text.strip()}
    return plain | {
        json.dumps(form, ensure_ascii=is_ascii)[1:-1] for form in plain for is_ascii in (True, False)
    }


def _any_of(texts: Mapping[str, object]) -> re.Pattern[str]:
    """Matches the longest of the texts; nothing where there are none."""
    longest_first = sorted(texts, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first)) if longest_first else "(?!)")


def _only_lines_of(desired: str, observed: str) -> str:
    """The observed text without the lines that are not declared."""
    declared = set(desired.split("\n"))
    return (
        "\n".join(line if line in declared else NOT_SHOWN for line in observed.split("\n"))
        if observed
        else ""
    )
