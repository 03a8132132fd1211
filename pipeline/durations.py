"""Parse lengths of training with their unit: `90 epochs`, `10000 steps`, `1.3e9 images`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, PlainSerializer

Unit = Literal["steps", "epochs", "images"]
MAX_AMOUNT = 1e15  # beyond any training, and small enough to be multiplied
_PATTERN = re.compile(r"^\s*([0-9][0-9_]*\.?[0-9]*(?:[eE][+-]?[0-9]+)?)\s*([a-z]+)\s*$")


@dataclass(frozen=True)
class Duration:
    """Describes an amount of training. It is converted to optimizer steps once batch size and corpus size are known."""

    amount: float
    unit: Unit

    def to_steps(self, *, global_batch_size: int, num_samples: int) -> int:
        """Return optimizer steps, rounded to the nearest.

        Args:
            global_batch_size: images in one optimizer step, over all ranks.
            num_samples: images in one epoch.
        """
        images = {"steps": self.amount * global_batch_size, "epochs": self.amount * num_samples}
        return math.floor(images.get(self.unit, self.amount) / global_batch_size + 0.5)

    def __str__(self) -> str:
        short = f"{self.amount:.12g}"
        return f"{short if float(short) == self.amount else repr(self.amount)} {self.unit}"


def parse_duration(text: Any) -> Duration:
    """Read `"<number> <steps|epochs|images>"`; the unit's final s is optional.

    Raises:
        ValueError: not a number with a unit (pydantic turns it into a message with the key's name).
    """
    if isinstance(text, Duration):
        return text
    match = _PATTERN.match(str(text))
    unit = match.group(2).rstrip("s") + "s" if match else None
    if match is None or unit not in get_args(Unit):
        raise ValueError(
            f"{repr(text)[:60]} is not a duration; write a number and a unit: '500 steps', '90 epochs', '1e9 images'"
        )
    amount = float(match.group(1).replace("_", ""))
    if amount > MAX_AMOUNT:
        raise ValueError(f"{repr(text)[:60]} is longer than any training; at most {MAX_AMOUNT:g} {unit}")
    return Duration(amount=amount, unit=unit)  # type: ignore[arg-type]


DurationField = Annotated[Duration, BeforeValidator(parse_duration), PlainSerializer(str)]
