"""Read what images go through before a model of transformers, from its preprocessor_config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pipeline.data.images.crop import Resize
from pipeline.exchange.pixels import normalise, three
from pipeline.exchange.pretrained import Preprocessing, Pretrained
from pipeline.image_size import describe_size

_HALF = 0.5
_BILINEAR, _BICUBIC = 2, 3  # Pillow's numbers
_BYTE = 255


def with_preprocessing(model: Pretrained, preprocessor: Mapping[str, Any] | None) -> Pretrained:
    """Return a model with what its images go through. How pixels are scaled is folded into its patch embedding.

    Raises:
        ExchangeError: they are scaled in a way that cannot be folded.
    """
    if preprocessor is None:
        return model.noting("no preprocessor_config.json: pixels are taken as scaled to [-1, 1]")
    model = normalise(model, *_scaling(preprocessor, source=model.source))
    resample = preprocessor.get("resample", _BILINEAR)
    resize: Resize = "bicubic_antialias" if resample == _BICUBIC else "bilinear_antialias"
    if resample not in (_BILINEAR, _BICUBIC, None):
        model = model.noting(f"its images are resized by Pillow's filter {resample} there, bilinearly here")
    size, side = preprocessor.get("size"), min(model.config.height_and_width)
    short = size.get("shortest_edge") if isinstance(size, dict) else None
    if isinstance(short, int) and preprocessor.get("do_center_crop", True):
        if short < side:
            text = f"its images are resized to a short side of {short} px there, less than the model's {side} px: {side} here"
            return replace(model, preprocessing=Preprocessing(short_side=side, resize=resize)).noting(text)
        model = replace(model, preprocessing=Preprocessing(short_side=short, resize=resize))
        return model.noting(*_other_crop(model, preprocessor))
    model = replace(model, preprocessing=Preprocessing(short_side=side, resize=resize))
    return model.noting("its images are squeezed to the square there; here the centre square is taken, at the same size")


def _scaling(preprocessor: Mapping[str, Any], *, source: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and deviation of pixels in [0, 1], whatever they are rescaled to there."""
    mean, std = (three(_given(preprocessor, name, _HALF), source=source) for name in ("image_mean", "image_std"))
    if not _given(preprocessor, "do_normalize", default=True):
        mean, std = (0.0,) * 3, (1.0,) * 3
    is_rescaled = bool(_given(preprocessor, "do_rescale", default=True))
    factor = float(_given(preprocessor, "rescale_factor", 1 / _BYTE)) if is_rescaled else 1.0
    if math.isclose(factor, 1 / _BYTE, rel_tol=1e-6):  # some write fewer digits
        return mean, std
    range_ = factor * _BYTE  # of rescaled pixels
    return tuple(value / range_ for value in mean), tuple(value / range_ for value in std)


def _given(preprocessor: Mapping[str, Any], name: str, default: Any) -> Any:
    """Return an entry that may be missing, or null."""
    value = preprocessor.get(name)
    return default if value is None else value


def _other_crop(model: Pretrained, preprocessor: Mapping[str, Any]) -> list[str]:
    """Return whether images are cropped to another size than the model's, in words."""
    crop = preprocessor.get("crop_size")
    if isinstance(crop, dict):
        sides = crop.get("height"), crop.get("width")
    elif isinstance(crop, int):
        sides = crop, crop
    else:
        return []
    if sides == model.config.height_and_width:
        return []
    own = describe_size(model.config.image_size)
    return [f"its images are cropped to {sides[0]} x {sides[1]} there, and to the model's {own} here"]
