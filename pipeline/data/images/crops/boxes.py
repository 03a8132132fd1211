"""Define crops that are rectangles of the stored image: only these let a JPEG be decoded in part."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pipeline.data.images.planes import Box
from pipeline.keyed_random import few_uniforms, uniforms

DRAWS_PER_ATTEMPT = 4


@dataclass(frozen=True, kw_only=True)
class CropBounds:
    """Holds the bounds of a crop's area, as a part of the image's, and of its ratio, width / height."""

    min_area: float
    max_area: float
    min_ratio: float
    max_ratio: float


class BoxLaw(ABC):
    """Draws rectangles until one fits into the image."""

    attempts: ClassVar[int]

    @abstractmethod
    def draw(self, height: int, width: int, *, bounds: CropBounds, draws: Sequence[float]) -> Box | None:
        """Try once. Return None where the rectangle does not fit.

        Args:
            draws: `DRAWS_PER_ATTEMPT` numbers in [0, 1).
        """

    @abstractmethod
    def last(self, height: int, width: int, *, bounds: CropBounds) -> Box:
        """Return the rectangle that is taken after `attempts` have failed."""

    def choose(self, height: int, width: int, *, bounds: CropBounds, key: int) -> tuple[Box, bool]:
        """Return the rectangle of an image of this size by the numbers of a key, and whether a flip was drawn."""
        draws: Sequence[float] = few_uniforms(key, 1 + DRAWS_PER_ATTEMPT)
        flip = draws[0] < 0.5
        for attempt in range(self.attempts):
            if attempt == 1:  # rarely reached, so the rest is drawn only now
                draws = uniforms(key, 1 + DRAWS_PER_ATTEMPT * self.attempts).tolist()
            start = 1 + DRAWS_PER_ATTEMPT * attempt
            box = self.draw(height, width, bounds=bounds, draws=draws[start : start + DRAWS_PER_ATTEMPT])
            if box is not None:
                return box, flip
        return self.last(height, width, bounds=bounds), flip
