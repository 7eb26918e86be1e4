"""Three answers to "is this model as declared?".

A closed union, so that each caller says what it does with each answer.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from ollamaops.names import ModelName
from ollamaops.plan.actions import Difference

# unverified: the server stores the weights rewritten; hidden: it does not show them. Only headers agree then.
WeightsEvidence = Literal["compared", "unverified", "hidden"]


class InSync(Struct, frozen=True):
    """The model is as declared, as far as `weights` says that this can be known."""

    weights: WeightsEvidence = "compared"


class Differs(Struct, frozen=True):
    """The model is not as declared; there is at least one difference."""

    differences: tuple[Difference, ...]


class Unknown(Struct, frozen=True):
    """It cannot be told. `waits_for` is the model that has to be there first; without one, `why` is for the user."""

    why: str = ""
    hint: str | None = None
    waits_for: ModelName | None = None


Comparison = InSync | Differs | Unknown
