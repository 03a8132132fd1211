"""Turn encoded images into pixels, for every contender of `benchmark loader` in the same way."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.data.images.crop import TrainTransform
from pipeline.data.images.crops.boxes import CropBounds
from pipeline.data.images.crops.inception import InceptionLaw
from pipeline.data.shards.index import load_index
from pipeline.data.shards.reader import BlockReader
from pipeline.image_size import ImageSize, height_and_width
from pipeline.keyed_random import Purpose, derive_key

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Settings:
    """Holds the settings that are the same for all contenders."""

    folder: str
    converted: str  # folder for copies in the peers' own formats
    num_workers: int
    batch_size: int
    image_size: ImageSize

    @property
    def shards(self) -> list[str]:
        return sorted(str(path) for path in Path(self.folder).glob("*.tar"))


def make_transform(settings: Settings, decoder: str) -> TrainTransform:
    """Make the Inception crop of 5 to 100 % with antialiased resize, which is also what Pillow does."""
    return TrainTransform(
        image_size=settings.image_size,
        bounds=CropBounds(min_area=0.05, max_area=1.0, min_ratio=3 / 4, max_ratio=4 / 3),
        flip=True,
        resize="bilinear_antialias",
        decoder="region" if decoder == "region" else "whole",
    )


class PillowTransform:
    """Applies the usual transform: Pillow decodes all and resizes the crop; then fp32, normalised. The crop law is ours."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.law = make_transform(settings, "whole")
        self.mean = torch.tensor(IMAGENET_MEAN)[:, None, None]
        self.std = torch.tensor(IMAGENET_STD)[:, None, None]
        self.calls = 0

    def __call__(self, image: Image.Image) -> torch.Tensor:
        self.calls += 1
        box, flip = InceptionLaw().choose(
            image.height, image.width, bounds=self.law.bounds, key=derive_key(0, Purpose.AUGMENTATION, 0, self.calls)
        )
        height, width = height_and_width(self.settings.image_size)
        corners = (box.left, box.top, box.left + box.width, box.top + box.height)
        image = image.convert("RGB").crop(corners).resize((width, height), Image.Resampling.BILINEAR)
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div_(255)
        return pixels.sub_(self.mean).div_(self.std)


class OurTransform:
    """Turns bytes into uint8 pixels with our decoder, for a peer's loader."""

    def __init__(self, settings: Settings, decoder: str) -> None:
        self.transform = make_transform(settings, decoder)
        self.calls = 0

    def __call__(self, data: bytes) -> torch.Tensor:
        self.calls += 1
        out = torch.empty((3, *height_and_width(self.transform.image_size)), dtype=torch.uint8)
        self.transform(data, seed=0, epoch=0, sample_id=self.calls, out=out)
        return out


def pillow_decode(data: bytes) -> Any:
    return Image.open(io.BytesIO(data)).convert("RGB")


def encoded_images(settings: Settings) -> list[bytes]:
    """Return all images of the folder, in memory."""
    index = load_index(settings.folder)
    reader = BlockReader(index, capacity=1)
    return [sample.image for block in range(index.num_blocks) for sample in reader.read(block)]
