"""Give a model another image size: learned positions are resized to the new grid of patches, everything else stays."""

from __future__ import annotations

from dataclasses import replace

import torch

from pipeline.errors import ConfigError, ExchangeError
from pipeline.exchange.pretrained import Pretrained
from pipeline.image_size import ImageSize, describe_size, height_and_width
from pipeline.models.vit.encoder import EncoderBackbone
from pipeline.models.vit.encoder_config import EncoderConfig
from pipeline.models.vit.position import PositionResize


def resize_images(model: Pretrained, size: ImageSize, *, how: PositionResize = "corners_aligned_bilinear") -> Pretrained:
    """Return the model for another image size.

    Raises:
        ExchangeError: its patches do not divide the size, or its positions belong to one size.
    """
    config = model.config
    if config.image_size == size:
        return model
    if not isinstance(config, EncoderConfig):
        return replace(model, config=replace(config, image_size=size))  # type: ignore[type-var]  # each is a dataclass
    pixels = height_and_width(config.image_size)[0] // config.grid[0]
    if any(side % pixels for side in height_and_width(size)):
        raise ExchangeError(
            f"{model.source}: an image of {describe_size(size)} is not divisible by the {pixels} pixels of a token"
        )
    resized = replace(config, image_size=size)
    with torch.device("meta"):
        built = resized.build()
    assert isinstance(built, EncoderBackbone)
    try:
        tensors = built.resize_positions(model.tensors, before=config, how=how)
    except ConfigError as error:
        raise ExchangeError(f"{model.source}: {error}") from error
    return replace(model, config=resized, tensors=tensors)
