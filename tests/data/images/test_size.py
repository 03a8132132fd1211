"""Images that are not square, and squares that are given by both sides."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.images.crop import EvalTransform, TrainTransform
from pipeline.data.images.crops.boxes import CropBounds
from pipeline.data.images.decode import has_region_decoder


def make_photo(height: int, width: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    small = generator.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def train_pixels(data: bytes, size: Any, *, sample_id: int, out_shape: tuple[int, int], **changes: Any) -> torch.Tensor:
    settings = {
        "bounds": CropBounds(min_area=0.1, max_area=1.0, min_ratio=0.75, max_ratio=4 / 3),
        "flip": True,
        "resize": "bilinear_antialias",
        "decoder": "whole",
        **changes,
    }
    out = torch.zeros((3, *out_shape), dtype=torch.uint8)
    TrainTransform(image_size=size, **settings)(data, seed=1, epoch=0, sample_id=sample_id, out=out)
    return out


@pytest.mark.parametrize("size", [(20, 36), (37, 13), (8, 200)])
@pytest.mark.parametrize("resize", ["bilinear", "bilinear_antialias"])
def test_the_region_decoder_gives_the_pixels_of_the_whole_image(size: tuple[int, int], resize: str) -> None:
    if not has_region_decoder():
        pytest.skip("the region decoder is not built")
    data = encode(make_photo(120, 170))
    for sample_id in range(4):
        whole, region = (
            train_pixels(data, size, sample_id=sample_id, out_shape=size, decoder=decoder, resize=resize)
            for decoder in ("whole", "region")
        )
        assert torch.equal(whole, region)
        assert whole.float().std() > 10


def test_a_square_by_both_sides_is_the_square_by_one() -> None:
    data, photo = encode(make_photo(90, 70)), make_photo(90, 70)
    by_one, by_both = (train_pixels(data, size, sample_id=3, out_shape=(24, 24)) for size in (24, (24, 24)))
    assert torch.equal(by_one, by_both)
    one, both = (EvalTransform(image_size=size, short_side=27)(photo) for size in (24, (24, 24)))
    assert torch.equal(one, both)


@pytest.mark.parametrize(("height", "width"), [(100, 300), (300, 100), (224, 224), (128, 64)])
@pytest.mark.parametrize("size", [(64, 32), (32, 64), (40, 40)])
def test_evaluation_covers_the_enlarged_size_and_crops_the_centre(height: int, width: int, size: tuple[int, int]) -> None:
    """Pillow's resize to the smallest size of the photo's shape that covers 8 / 7 of the input, and its centre."""
    photo = make_photo(height, width)
    short = round(min(size) * 8 / 7)
    found = EvalTransform(image_size=size, short_side=short)(photo)
    enlarged = [side * short / min(size) for side in size]
    scale = max(enlarged[0] / height, enlarged[1] / width)
    whole = Image.fromarray(photo).resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
    top, left = (whole.height - size[0]) // 2, (whole.width - size[1]) // 2
    wanted = np.asarray(whole.crop((left, top, left + size[1], top + size[0])))
    difference = np.abs(found.permute(1, 2, 0).numpy().astype(int) - wanted)
    assert difference.max() <= 1  # both round twice
