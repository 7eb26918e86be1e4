"""Modelfiles as Ollama prints them, in `show` and in its own test vectors."""

from __future__ import annotations

from ollamaops.manifest.modelfile import Command, Modelfile, head_of, value_of


def render_modelfile(modelfile: Modelfile) -> str:
    """The text as Ollama prints it, in `show` too. Quotes are not escaped: what is read back may differ."""
    return "".join(f"{head_of(command)} {_printed_value(command)}\n" for command in modelfile.commands)


def _printed_value(command: Command) -> str:
    value = value_of(command)
    if command.name == "model" or not ("\n" in value or value.startswith(" ") or value.endswith(" ")):
        return value
    return f'"""{value}"""' if '"' in value else f'"{value}"'
