"""Define what a check finds on one machine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

# How the machines of one training should compare: none slower, none with a larger value, all the same, or of no account.
Rule = Literal["none less", "none more", "same", "any"]
Severity = Literal["problem", "warning"]


@dataclass(frozen=True)
class Measure:
    """Holds one value of one machine.

    Attributes:
        advice: what is wrong with the value by itself, and how to mend it; None where nothing is.
        severity: of that: a problem ends trainings, a warning slows or surprises them.
    """

    name: str
    value: float | str
    unit: str = ""
    rule: Rule = "any"
    advice: str | None = None
    severity: Severity = "warning"

    @property
    def text(self) -> str:
        """Return the value as it is shown."""
        if isinstance(self.value, str):
            return self.value
        if math.isinf(self.value):
            return "unlimited"
        number = f"{self.value:.0f}" if float(self.value).is_integer() else f"{self.value:.4g}"
        return f"{number} {self.unit}".rstrip()


@dataclass(frozen=True)
class Machine:
    """Holds what was found on one machine."""

    name: str
    ranks: tuple[int, ...]
    measures: tuple[Measure, ...]

    def find(self, name: str) -> Measure | None:
        return next((measure for measure in self.measures if measure.name == name), None)


def wanted(
    name: str, value: float, unit: str, *, at_least: float, advice: str, rule: Rule = "any", severity: Severity = "warning"
) -> Measure:
    """Return a measure that has advice where the value is below what a training wants."""
    return Measure(name, value, unit, rule, None if value >= at_least else advice, severity)
