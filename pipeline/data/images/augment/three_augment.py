"""Apply 3-Augment of DeiT III: the image is made grey, solarized or blurred, then its colours are jittered."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from pipeline.data.images import planes as ops
from pipeline.data.images.augment.base import AugmentSection, between
from pipeline.data.images.planes import Planes

NUM_DRAWS = 6  # which of three, the blur's radius, three factors, their order
SOLARIZE_THRESHOLD = 128
BLUR_RADIUS = (0.1, 2.0)  # pixels
JITTERED = ("Brightness", "Contrast", "Color")
_ORDERS = tuple(itertools.permutations(range(len(JITTERED))))


class ThreeAugment(AugmentSection):
    """Configures arXiv 2204.07118 (facebookresearch/deit, augment.py): one of three, then brightness, contrast, saturation."""

    name: Literal["three_augment"] = "three_augment"
    color_jitter: float = Field(
        default=0.3,
        ge=0,
        description="brightness, contrast and saturation change by a factor within 1 plus or minus this; 0: none",
    )

    def build(self) -> ThreeAugmentLaw:
        return ThreeAugmentLaw(self.color_jitter)


@dataclass(frozen=True)
class ThreeAugmentLaw:
    """Applies the law that `ThreeAugment` configures."""

    color_jitter: float

    @property
    def num_draws(self) -> int:
        return NUM_DRAWS

    def __call__(self, planes: Planes, draws: Sequence[float]) -> Planes:
        choice, radius, *factors, order = draws
        match int(choice * 3):
            case 0:
                planes = ops.repeat_grey(ops.grey(planes))
            case 1:
                planes = ops.solarize(planes, SOLARIZE_THRESHOLD)
            case _:
                planes = ops.gaussian_blur(planes, between(*BLUR_RADIUS, radius))
        return self.jitter(planes, factors, order=_ORDERS[int(order * len(_ORDERS))]) if self.color_jitter else planes

    def jitter(self, planes: Planes, draws: Sequence[float], *, order: Sequence[int]) -> Planes:
        """Apply torchvision's `ColorJitter` without hue: the three in an order that is drawn too."""
        low, high = max(0.0, 1 - self.color_jitter), 1 + self.color_jitter
        for number in order:
            planes = ops.enhance(JITTERED[number], planes, between(low, high, draws[number]))
        return planes
