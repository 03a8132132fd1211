"""Apply RandAugment as TensorFlow has it: the law of AugReg and of the better plain ViT baselines.

The source is google-research/big_vision, big_vision/pp/archive/autoaugment.py (`distort_image_with_randaugment`). It has
sixteen operations; one is drawn uniformly for each layer and always applied. torchvision's law has others (no Invert, Cutout,
SolarizeAdd, but Identity).

Geometry is Pillow's, after which TensorFlow's is made. TensorFlow differs from it where a source coordinate lies at the limit
of two pixels. It fills a pixel whose source is outside of the outermost pixel centres; here that is outside of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.data.images import planes as ops
from pipeline.data.images.augment.base import AugmentSection, signed
from pipeline.data.images.planes import Planes

OPERATIONS = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness",
    "ShearX", "ShearY", "TranslateX", "TranslateY", "Cutout", "SolarizeAdd",
)  # fmt: skip
DRAWS_PER_LAYER = 4  # the operation, its sign, and the row and column of a cutout's centre
MAX_LEVEL = 10.0
GREY = (128, 128, 128)
TRANSLATE_PX, CUTOUT_PX = 100, 40  # at level 10
USUAL_SIZE = 224  # pixels of the image side that these are meant for

# This is tf.image.rgb_to_grayscale: (0.2989 R + 0.587 G + 0.114 B) / 255, made whole again as floor(255.5 x). In units of
# 2^-23.
_LUMA = tuple(np.uint32(round(weight * 255.5 / 255 * 2**23)) for weight in (0.2989, 0.587, 0.114))


class RandAugmentTF(AugmentSection):
    """Configures the law of google-research/big_vision. Its defaults are what that code does today."""

    name: Literal["randaugment_tf"] = "randaugment_tf"
    layers: int = Field(default=2, ge=1, description="operations on each image")
    magnitude: float = Field(default=10, ge=0, le=30, description="strength of every operation; 0 still changes images")
    contrast: Literal["fixed", "source"] = Field(
        default="fixed",
        description="grey level of Contrast: the image's mean; or as it was when AugReg was trained, height x width / 256",
    )
    solarize: Literal["source", "fixed"] = Field(
        default="source",
        description="threshold of Solarize: modulo 256, as in the source, so that 10 inverts everything; or without that, "
        "where 10 and more change nothing",
    )

    distances: Literal["pixels", "scaled"] = Field(
        default="pixels",
        description="length of Translate and Cutout: 100 and 40 pixels at magnitude 10, as in the source, whatever the "
        "image's size, so that 64 px become grey; scaled: these as parts of 224",
    )

    def build(self) -> TensorFlowLaw:
        return TensorFlowLaw(self.layers, self.magnitude, self.contrast, self.solarize, self.distances)


@dataclass(frozen=True)
class TensorFlowLaw:
    """Applies the law that `RandAugmentTF` configures."""

    layers: int
    magnitude: float
    contrast: Literal["fixed", "source"]
    solarize: Literal["source", "fixed"]
    distances: Literal["pixels", "scaled"]

    @property
    def num_draws(self) -> int:
        return DRAWS_PER_LAYER * self.layers

    def __call__(self, planes: Planes, draws: Sequence[float]) -> Planes:
        for layer in range(self.layers):
            choice, sign, row, column = draws[DRAWS_PER_LAYER * layer : DRAWS_PER_LAYER * (layer + 1)]
            planes = self.apply(OPERATIONS[int(choice * len(OPERATIONS))], planes, sign=sign, centre=(row, column))
        return planes

    def apply(self, operation: str, planes: Planes, *, sign: float, centre: tuple[float, float]) -> Planes:
        """Apply one operation.

        Args:
            sign: below one half makes the argument of a geometric operation negative.
            centre: row and column of a cutout, as parts of height and width.
        """
        level = self.magnitude / MAX_LEVEL
        enhancement = level * 1.8 + 0.1
        match operation:
            case "AutoContrast":
                return ops.autocontrast(planes, precision=np.float32)
            case "Equalize":
                return ops.equalize(planes)
            case "Invert":
                return ops.invert(planes)
            case "Posterize":
                return ops.posterize(planes, max(int(level * 4), 1))  # TensorFlow shifts 8 bits by 7 at most
            case "Solarize":
                threshold = int(level * 256)
                return ops.solarize(planes, threshold % 256 if self.solarize == "source" else threshold)
            case "SolarizeAdd":
                return ops.solarize_add(planes, int(level * 110))
            case "Color":
                return ops.blend(ops.repeat_grey(grey(planes)), planes, enhancement)
            case "Contrast":
                return ops.blend_with_level(planes, self._contrast_level(planes), enhancement)
            case "Brightness":
                return ops.blend_with_level(planes, 0, enhancement)
            case "Sharpness":
                return ops.blend(ops.smooth(planes, rounding="down"), planes, enhancement)
            case "Cutout":
                return cut_out(planes, half_side=int(level * CUTOUT_PX * self._scale(planes)), centre=centre)
            case _:
                return self._warp(operation, planes, sign=sign)

    def _warp(self, operation: str, planes: Planes, *, sign: float) -> Planes:
        level = self.magnitude / MAX_LEVEL
        if operation == "Rotate":
            return ops.rotate(planes, signed(level * 30, sign), fill=GREY, interpolation="nearest")
        shear, shift = signed(level * 0.3, sign), signed(level * TRANSLATE_PX * self._scale(planes), sign)
        # TensorFlow counts coordinates from the first pixel's centre, Pillow from its corner.
        matrix = ops.warp_matrix(operation, shear=shear, shift=(shift, shift), centre=0.5)
        return ops.affine(planes, matrix, fill=GREY, interpolation="nearest")

    def _scale(self, planes: Planes) -> float:
        return 1.0 if self.distances == "pixels" else min(planes.shape[1:]) / USUAL_SIZE

    def _contrast_level(self, planes: Planes) -> int:
        if self.contrast == "fixed":
            return int(ops.mean_level(grey(planes)))
        return min(planes.shape[1] * planes.shape[2] // 256, 255)


def grey(planes: Planes) -> NDArray[np.uint8]:
    """Return `tf.image.rgb_to_grayscale` of uint8, (H, W). Unlike Pillow's it has other weights, and does not round."""
    red, green, blue = planes.astype(np.uint32)
    return ((red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2]) >> np.uint32(23)).astype(np.uint8)


def cut_out(planes: Planes, *, half_side: int, centre: tuple[float, float]) -> Planes:
    """Put a grey square of twice `half_side` pixels around a pixel of the image, cut off at its border."""
    height, width = planes.shape[1:]
    row, column = int(centre[0] * height), int(centre[1] * width)
    result = planes.copy()
    result[:, max(0, row - half_side) : row + half_side, max(0, column - half_side) : column + half_side] = GREY[0]
    return result
