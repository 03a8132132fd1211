"""Apply RandAugment as torchvision has it: `torchvision.transforms.RandAugment` on Pillow images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from pipeline.data.images import planes as ops
from pipeline.data.images.augment.base import AugmentSection, signed
from pipeline.data.images.planes import Fill, Interpolation, Planes

OPERATIONS = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness",
    "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip
DRAWS_PER_LAYER = 2  # the operation and its sign
_LARGEST = {"ShearX": 0.3, "ShearY": 0.3, "Rotate": 30.0, "Brightness": 0.9, "Color": 0.9, "Contrast": 0.9, "Sharpness": 0.9}


class RandAugmentTorchvision(AugmentSection):
    """Configures the law of torchvision 0.28, transforms/autoaugment.py: 14 operations, signed arguments, always applied."""

    name: Literal["randaugment_torchvision"] = "randaugment_torchvision"
    layers: int = Field(default=2, ge=1, description="operations on each image; num_ops there")
    magnitude: int = Field(default=9, ge=0, description="bin of every operation's magnitude")
    bins: int = Field(default=31, ge=2, description="num_magnitude_bins there")
    interpolation: Literal["nearest", "bilinear"] = Field(default="nearest", description="how geometric operations resample")
    fill: Fill = Field(default=(0, 0, 0), description="red, green and blue of pixels from outside of the image")

    @model_validator(mode="after")
    def _magnitude_is_a_bin(self) -> Self:
        if self.magnitude >= self.bins:
            raise ValueError(f"magnitude must be less than bins={self.bins}: it counts them from 0")
        return self

    def build(self) -> TorchvisionLaw:
        return TorchvisionLaw(self.layers, self.magnitude, self.bins, self.interpolation, self.fill)


@dataclass(frozen=True)
class TorchvisionLaw:
    """Applies the law that `RandAugmentTorchvision` configures."""

    layers: int
    magnitude: int
    bins: int
    interpolation: Interpolation
    fill: Fill

    @property
    def num_draws(self) -> int:
        return DRAWS_PER_LAYER * self.layers

    def __call__(self, planes: Planes, draws: Sequence[float]) -> Planes:
        for layer in range(self.layers):
            choice, sign = draws[DRAWS_PER_LAYER * layer : DRAWS_PER_LAYER * (layer + 1)]
            operation = OPERATIONS[int(choice * len(OPERATIONS))]
            height, width = planes.shape[1:]
            planes = self.apply(operation, planes, signed(self.argument(operation, height=height, width=width), sign))
        return planes

    def argument(self, operation: str, *, height: int, width: int) -> float:
        """Return what the magnitude means for an operation on an image of this size, without its sign."""
        match operation:
            case "Posterize":
                return 8 - round(self.magnitude / ((self.bins - 1) / 4))
            case "Solarize":
                return self._on_scale(255.0, 0.0)
            case "TranslateX" | "TranslateY":
                return self._on_scale(0.0, 150.0 / 331.0 * (width if operation == "TranslateX" else height))
            case _:
                return self._on_scale(0.0, _LARGEST.get(operation, 0.0))

    def _on_scale(self, start: float, end: float) -> float:
        return torch.linspace(start, end, self.bins)[self.magnitude].item()

    def apply(self, operation: str, planes: Planes, argument: float) -> Planes:
        """Apply one operation. The sign of the argument counts where torchvision's is signed."""
        match operation:
            case "Identity":
                return planes
            case "Brightness" | "Color" | "Contrast" | "Sharpness":
                return ops.enhance(operation, planes, 1 + argument)
            case "Posterize":
                return ops.posterize(planes, int(abs(argument)))
            case "Solarize":
                return ops.solarize(planes, abs(argument))
            case "AutoContrast":
                return ops.autocontrast(planes, precision=np.float64)
            case "Equalize":
                return ops.equalize(planes)
            case "Rotate":
                return ops.rotate(planes, argument, fill=self.fill, interpolation=self.interpolation)
            case _:
                shift = -int(argument)
                matrix = ops.warp_matrix(operation, shear=math.tan(math.atan(argument)), shift=(shift, shift))
                return ops.affine(planes, matrix, fill=self.fill, interpolation=self.interpolation)
