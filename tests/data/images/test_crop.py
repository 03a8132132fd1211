"""Crops, resizes and decoding agree with Pillow and with the law they follow."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.images.crop import Box, EvalTransform, TrainTransform, resize_box
from pipeline.data.images.crops.boxes import CropBounds
from pipeline.data.images.crops.inception import inception_box
from pipeline.data.images.decode import MAX_PIXELS, UnreadableImage, decode_image
from pipeline.image_size import height_and_width
from tests.conftest import encode

BOUNDS = CropBounds(min_area=0.05, max_area=1.0, min_ratio=0.75, max_ratio=4 / 3)


def transform(**changes: object) -> TrainTransform:
    values: dict[str, object] = {"image_size": 32, "bounds": BOUNDS}
    values |= {"flip": True, "resize": "bilinear", "decoder": "whole"}
    return TrainTransform(**{**values, **changes})  # type: ignore[arg-type]


def smooth_image(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([127 + 120 * np.sin(y / 9), 127 + 120 * np.cos(x / 7), 127 + 120 * np.sin((x + y) / 11)], -1).astype(
        np.uint8
    )


def apply(law: TrainTransform, data: bytes, *, sample_id: int) -> np.ndarray:
    out = torch.zeros((3, *height_and_width(law.image_size)), dtype=torch.uint8)
    law(data, seed=0, epoch=0, sample_id=sample_id, out=out)
    return out.numpy()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / max(1e-9, np.mean((a.astype(float) - b.astype(float)) ** 2)))


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (64, 64), (40, 300)])
def test_crops_stay_inside_and_keep_the_law(size: tuple[int, int]) -> None:
    height, width = size
    generator = np.random.default_rng(0)
    boxes = [inception_box(height, width, bounds=BOUNDS, draws=generator.random(4)) for _ in range(3000)]
    kept = [box for box in boxes if box is not None]
    assert len(kept) > 0.5 * len(boxes) or height * 4 < width  # few fit into a strip
    for box in kept:
        assert 0 <= box.top <= box.top + box.height <= height
        assert 0 <= box.left <= box.left + box.width <= width
        assert 0.05 <= box.height * box.width / (height * width) <= 1
    if height > 60:
        assert all(0.75 * box.height - 0.5 <= box.width <= 4 / 3 * box.height + 0.5 for box in kept)  # to whole pixels
        # Every corner of the picture is reached.
        assert min(box.top for box in kept) == 0
        assert max(box.top + box.height for box in kept) == height


def test_crop_heights_are_uniform_given_the_ratio() -> None:
    """This is the law of tf.image.sample_distorted_bounding_box, which is not uniform in the area."""
    generator = np.random.default_rng(1)
    law = CropBounds(min_area=0.04, max_area=1.0, min_ratio=1.0, max_ratio=1.0)
    heights = [box.height for _ in range(8000) if (box := inception_box(400, 400, bounds=law, draws=generator.random(4)))]
    histogram, _ = np.histogram(heights, bins=8, range=(80, 401))
    assert histogram / len(heights) == pytest.approx(np.full(8, 1 / 8), abs=0.02)


def test_an_image_no_crop_fits_is_used_whole() -> None:
    pixels = smooth_image(4, 400)
    law = transform(bounds=replace(BOUNDS, min_area=0.9))
    whole = resize_box(pixels, Box(0, 0, 4, 400), size=(32, 32), resize="bilinear").numpy()
    ours = apply(law, encode(pixels, format="PNG"), sample_id=1)
    assert np.array_equal(ours, whole) or np.array_equal(ours, whole[..., ::-1])


def test_half_of_the_images_are_mirrored() -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, :16] = 255
    data = encode(pixels, format="PNG")
    square = CropBounds(min_area=1.0, max_area=1.0, min_ratio=1.0, max_ratio=1.0)
    law = transform(bounds=square)
    mirrored = [bool(apply(law, data, sample_id=i)[0, 0, 0] == 0) for i in range(1000)]
    assert np.mean(mirrored) == pytest.approx(0.5, abs=0.05)
    unmirrored = transform(bounds=square, flip=False)
    assert all(apply(unmirrored, data, sample_id=i)[0, 0, 0] == 255 for i in range(50))


@pytest.mark.parametrize("size", [(48, 48), (224, 96)])
def test_resizing_with_antialias_equals_pillows(size: tuple[int, int]) -> None:
    pixels = smooth_image(301, 217)
    ours = resize_box(pixels, Box(11, 7, 250, 200), size=size, resize="bilinear_antialias").permute(1, 2, 0).numpy()
    theirs = np.asarray(Image.fromarray(pixels).crop((7, 11, 207, 261)).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    assert psnr(ours, theirs) > 50


def test_evaluation_resizes_the_short_side_and_crops_the_centre() -> None:
    pixels = smooth_image(375, 500)
    ours = EvalTransform(image_size=224, short_side=256)(pixels).permute(1, 2, 0).numpy()
    resized = Image.fromarray(pixels).resize((341, 256), Image.Resampling.BILINEAR)
    theirs = np.asarray(resized.crop((58, 16, 58 + 224, 16 + 224)))
    assert psnr(ours, theirs) > 50


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_formats_decode_as_pillow_does(format: str) -> None:
    data = encode(smooth_image(61, 47), format=format)
    assert psnr(decode_image(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))) > 50


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "LA", "I;16", "1", "P"])
def test_modes_become_rgb(mode: str) -> None:
    buffer = io.BytesIO()
    image = Image.fromarray(smooth_image(20, 30))
    image = image.convert("L").convert(mode) if mode == "I;16" else image.convert(mode)
    image.save(buffer, format="JPEG" if mode in ("L", "CMYK") else "PNG")
    assert decode_image(buffer.getvalue()).shape == (20, 30, 3)


def test_a_jpeg_with_stray_bytes_is_read() -> None:
    """libjpeg warns of them, but Pillow reads on."""
    data = encode(smooth_image(40, 40), format="JPEG")
    stray = data[:-2] + b"\x00\x01\x02" + data[-2:]  # before the end marker
    assert np.array_equal(decode_image(stray), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_a_cut_jpeg_and_a_bomb_are_unreadable() -> None:
    data = encode(smooth_image(100, 100), format="JPEG")
    with pytest.raises(UnreadableImage, match="truncated"):
        decode_image(data[: len(data) // 2])
    with pytest.raises(UnreadableImage):
        decode_image(b"")
    buffer = io.BytesIO()
    side = int(MAX_PIXELS**0.5) + 1
    Image.new("1", (side, side)).save(buffer, format="PNG")
    with pytest.raises(UnreadableImage, match=f"more than {MAX_PIXELS}"):
        decode_image(buffer.getvalue())
