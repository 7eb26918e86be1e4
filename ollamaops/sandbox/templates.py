"""Chat templates that servers recognize in a GGUF's own (Jinja) template, and what they store in its place.

Decides which built-in template a model gets; its text and stop words become layers. The servers compare by edit
distance: a Jinja template less than 100 edits away from a known one is taken for it.
"""

from __future__ import annotations

from dataclasses import dataclass

_NEAR = 100


@dataclass(frozen=True, slots=True)
class BuiltinTemplate:
    """One recognized template: `jinja` as models carry it, the `text` stored in its place, its `stop` words."""

    name: str
    jinja: str
    text: str
    stop: tuple[str, ...] = ()


_CHATML_JINJA = (
    r"{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'"
    r" + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CHATML_STOP = ("<|im_start|>", "<|im_end|>")
_TEMPLATES = (
    BuiltinTemplate(
        "chatml",
        _CHATML_JINJA,
        "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n",
        _CHATML_STOP,
    ),
)
_OLD_TEMPLATES = (
    BuiltinTemplate(
        "chatml",
        _CHATML_JINJA,
        "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}{{ if .Prompt }}<|im_start|>user\n"
        "{{ .Prompt }}<|im_end|>\n{{ end }}<|im_start|>assistant\n{{ .Response }}<|im_end|>\n",
        _CHATML_STOP,
    ),
)


def recognize(jinja: str, *, old: bool) -> BuiltinTemplate | None:
    """The built-in template nearest to a model's own, if it is near enough."""
    known = _OLD_TEMPLATES if old else _TEMPLATES
    near = [(_distance(jinja, template.jinja), template) for template in known]
    distance, template = min(near, key=lambda pair: pair[0])
    return template if distance < _NEAR else None


def _distance(left: str, right: str) -> int:
    """The edit distance, or `_NEAR` when it is at least that."""
    if abs(len(left) - len(right)) >= _NEAR:
        return _NEAR
    row = list(range(len(right) + 1))
    for number, char in enumerate(left, 1):
        before, row[0] = row[0], number
        for column, other in enumerate(right, 1):
            before, row[column] = (
                row[column],
                min(row[column] + 1, row[column - 1] + 1, before + (char != other)),
            )
    return min(row[-1], _NEAR)
