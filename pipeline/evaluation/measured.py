"""Define what measuring gives: a value, and what kind of value it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

ValueKind = Literal["proportion", "score", "loss"]
"""A part of the test images, which has a confidence interval; another value from 0 to 1; or a loss."""


@dataclass(frozen=True)
class Measured:
    """Holds a value and what is worth keeping with it."""

    value: float
    detail: dict[str, Any] = field(default_factory=dict)
    kind: ValueKind = "proportion"
