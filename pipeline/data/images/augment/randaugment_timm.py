"""Apply RandAugment as timm has it: `rand-m9-mstd0.5-inc1`, which DeiT, DeiT III's and MAE's fine-tuning use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from pipeline.data.images import planes as ops
from pipeline.data.images.augment.base import AugmentSection, signed
from pipeline.data.images.planes import Fill, Interpolation, Planes

OPERATIONS = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast", "Brightness",
    "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY",
)  # fmt: skip
DRAWS_PER_LAYER = 6  # the operation, whether it is applied, two for a normal magnitude, the sign, the interpolation
MAX_LEVEL = 10.0
TRANSLATE = 0.45  # parts of the image's side, at level 10


class RandAugmentTimm(AugmentSection):
    """Configures the law of timm/data/auto_augment.py (pytorch-image-models). The defaults are `rand-m9-mstd0.5-inc1`."""

    name: Literal["randaugment_timm"] = "randaugment_timm"
    layers: int = Field(default=2, ge=1, description="operations drawn for each image, with replacement; n there")
    magnitude: float = Field(default=9, ge=0, description="mean of the magnitude; m there")
    magnitude_std: float = Field(default=0.5, ge=0, description="standard deviation of the magnitude; mstd there")
    max_magnitude: float = Field(default=10, gt=0, description="magnitudes are cut to this; mmax there")
    increasing: bool = Field(default=True, description="operations that grow stronger with the magnitude; inc there")
    probability: float = Field(default=0.5, ge=0, le=1, description="part of the drawn operations that are applied; p there")
    interpolation: Literal["bilinear", "bicubic", "random"] = Field(
        default="bicubic", description="how geometric operations resample; random: one of the two for each"
    )
    fill: Fill = Field(
        default=(124, 116, 104),
        description="red, green and blue of pixels from outside of the image; there the mean of ImageNet",
    )

    @model_validator(mode="after")
    def _magnitude_is_not_cut(self) -> Self:
        if self.magnitude > self.max_magnitude:
            raise ValueError(
                f"magnitude={self.magnitude:g} is above max_magnitude={self.max_magnitude:g}, to which every "
                "magnitude is cut, as in "
                "timm, whose magnitudes go to 10 and not to 30; lower it, or raise max_magnitude"
            )
        return self

    def build(self) -> TimmLaw:
        return TimmLaw(
            layers=self.layers,
            magnitude=self.magnitude,
            magnitude_std=self.magnitude_std,
            max_magnitude=self.max_magnitude,
            increasing=self.increasing,
            probability=self.probability,
            interpolation=self.interpolation,
            fill=self.fill,
        )


@dataclass(frozen=True)
class TimmLaw:
    """Applies the law that `RandAugmentTimm` configures."""

    layers: int
    magnitude: float
    magnitude_std: float
    max_magnitude: float
    increasing: bool
    probability: float
    interpolation: Literal["bilinear", "bicubic", "random"]
    fill: Fill

    @property
    def num_draws(self) -> int:
        return DRAWS_PER_LAYER * self.layers

    def __call__(self, planes: Planes, draws: Sequence[float]) -> Planes:
        for layer in range(self.layers):
            choice, applied, radius, angle, sign, interpolation = draws[DRAWS_PER_LAYER * layer : DRAWS_PER_LAYER * (layer + 1)]
            if applied < self.probability:
                planes = self.apply(
                    OPERATIONS[int(choice * len(OPERATIONS))],
                    planes,
                    magnitude=self.draw_magnitude(radius, angle),
                    sign=sign,
                    interpolation=self._interpolation(interpolation),
                )
        return planes

    def draw_magnitude(self, radius: float, angle: float) -> float:
        """Return a normal number (Box and Muller 1958), cut to what is allowed."""
        normal = math.sqrt(-2 * math.log(1 - radius)) * math.cos(2 * math.pi * angle)
        return min(max(self.magnitude + self.magnitude_std * normal, 0.0), self.max_magnitude)

    def _interpolation(self, draw: float) -> Interpolation:
        if self.interpolation != "random":
            return self.interpolation
        return "bilinear" if draw < 0.5 else "bicubic"

    def apply(self, operation: str, planes: Planes, *, magnitude: float, sign: float, interpolation: Interpolation) -> Planes:
        """Apply one operation. `sign` below one half makes its argument negative, where it has a sign."""
        level = magnitude / MAX_LEVEL
        match operation:
            case "AutoContrast":
                return ops.autocontrast(planes, precision=np.float64)
            case "Equalize":
                return ops.equalize(planes)
            case "Invert":
                return ops.invert(planes)
            case "Posterize":
                return ops.posterize(planes, 4 - int(level * 4) if self.increasing else int(level * 4))
            case "Solarize":
                threshold = min(256, int(level * 256))
                return ops.solarize(planes, 256 - threshold if self.increasing else threshold)
            case "SolarizeAdd":
                return ops.solarize_add(planes, min(128, int(level * 110)))
            case "Color" | "Contrast" | "Brightness" | "Sharpness":
                return ops.enhance(operation, planes, self.enhancement(level, sign))
            case _:
                return self._warp(operation, planes, level=level, sign=sign, interpolation=interpolation)

    def enhancement(self, level: float, sign: float) -> float:
        """Return the factor of the image in a blend; 1 changes nothing."""
        return max(0.1, 1 + signed(level * 0.9, sign)) if self.increasing else level * 1.8 + 0.1

    def _warp(self, operation: str, planes: Planes, *, level: float, sign: float, interpolation: Interpolation) -> Planes:
        if operation == "Rotate":
            return ops.rotate(planes, signed(level * 30, sign), fill=self.fill, interpolation=interpolation)
        height, width = planes.shape[1:]
        shear, shift = signed(level * 0.3, sign), signed(level * TRANSLATE, sign)
        matrix = ops.warp_matrix(operation, shear=shear, shift=(shift * width, shift * height))
        return ops.affine(planes, matrix, fill=self.fill, interpolation=interpolation)
