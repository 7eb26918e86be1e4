"""What a model is made with beside its files: what a manifest's entry, a plan's recipe and a create request all say.

A new setting is a field here: fingerprints, saved plans and create requests walk over the fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from msgspec import Struct, field

ParameterValue = int | float | bool | str | tuple[str, ...] | None
WEIGHTS_SETTINGS = ("quantize", "draft_quantize")  # these change the weights, all others only words


class Message(NamedTuple):
    """One MESSAGE: role (system, user, assistant) and content."""

    role: str
    content: str


class Settings(Struct, frozen=True, kw_only=True):
    """None and empty mean "not given": inherited from the base, or whatever the server detects in the weights.

    A parameter of value None un-sets the inherited one, `stop: ()` clears the inherited stops. `messages` are
    (role, content).
    """

    template: str | None = None
    system: str | None = None
    parameters: Mapping[str, ParameterValue] = field(default_factory=dict)
    messages: tuple[tuple[str, str], ...] = ()
    licenses: tuple[str, ...] = ()
    quantize: str | None = None
    draft_quantize: str | None = None
    renderer: str | None = None
    parser: str | None = None
    requires: str | None = None


SETTINGS = Settings.__struct_fields__


def settings_of(value: Settings) -> dict[str, Any]:
    """The settings alone, by name."""
    return {name: getattr(value, name) for name in SETTINGS}
