"""Define what every augmentation law says of itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

from pipeline.data.images.planes import Planes
from pipeline.section import Section


class Augmentation(Protocol):
    """Applies a law: planes and random numbers in, planes out. Workers get it pickled."""

    @property
    def num_draws(self) -> int:
        """Return how many random numbers one image needs, whatever they turn out to be."""
        ...

    def __call__(self, planes: Planes, draws: Sequence[float]) -> Planes:
        """Return augmented planes, (3, H, W) uint8 like the input, which stays as it is.

        Args:
            draws: `num_draws` numbers in [0, 1).
        """
        ...


class AugmentSection(Section):
    """Holds the settings of a law."""

    @abstractmethod
    def build(self) -> Augmentation | None:
        """Return the law; None for one that does nothing."""


def signed(value: float, draw: float) -> float:
    """Return the value, negative in half of all draws."""
    return -value if draw < 0.5 else value


def between(low: float, high: float, draw: float) -> float:
    """Return a uniform number in [low, high)."""
    return low + draw * (high - low)
