"""The simple crop against Pillow, torchvision's random crop against torchvision."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp  # type: ignore[import-not-found]

from pipeline.data.images.crop import Box, TrainTransform, resize_box
from pipeline.data.images.crops import Inception, RandomResized, Simple
from pipeline.data.images.crops.boxes import CropBounds
from pipeline.data.images.crops.inception import InceptionLaw
from pipeline.keyed_random import Purpose, derive_key, few_uniforms
from tests.conftest import encode
from tests.data.images.test_crop import psnr, smooth_image

SIZE = 32


def transform(section: Simple, *, flip: bool = True, resize: str = "bicubic_antialias") -> TrainTransform:
    return TrainTransform(
        image_size=SIZE,
        bounds=CropBounds(min_area=0.05, max_area=1.0, min_ratio=0.75, max_ratio=4 / 3),
        flip=flip,
        resize=resize,  # type: ignore[arg-type]
        decoder="region",
        crop=section.build(),
    )


def render(law: TrainTransform, data: bytes, *, sample_id: int) -> np.ndarray:
    out = torch.zeros((3, SIZE, SIZE), dtype=torch.uint8)
    law(data, seed=0, epoch=0, sample_id=sample_id, out=out)
    return out.numpy()


@pytest.mark.parametrize(
    ("section", "resized"),
    [
        (Simple(), {(75, 100): (32, 42), (100, 75): (42, 32), (20, 20): (32, 32), (5, 300): (32, 1920)}),
        (Simple(short_side=40, padding=0), {(75, 100): (40, 53), (100, 75): (53, 40), (64, 64): (40, 40)}),
    ],
)
@pytest.mark.parametrize("resize", ["bicubic_antialias", "bilinear_antialias"])
def test_pixels_are_pillows(section: Simple, resized: dict[tuple[int, int], tuple[int, int]], resize: str) -> None:
    """Short side resized, borders reflected, cut where the numbers say; sizes by hand."""
    resampling = Image.Resampling.BICUBIC if resize.startswith("bicubic") else Image.Resampling.BILINEAR
    for (height, width), (tall, wide) in resized.items():
        pixels = smooth_image(height, width)
        image = np.asarray(Image.fromarray(pixels).resize((wide, tall), resampling))
        padding = section.padding
        padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
        for sample_id in range(5):
            flip, top, left = few_uniforms(derive_key(0, Purpose.AUGMENTATION, 0, sample_id), 3)
            row, column = int(top * (padded.shape[0] - SIZE + 1)), int(left * (padded.shape[1] - SIZE + 1))
            expected = padded[row : row + SIZE, column : column + SIZE]
            expected = (expected[:, ::-1] if flip < 0.5 else expected).transpose(2, 0, 1)
            ours = render(transform(section, resize=resize), encode(pixels, format="PNG"), sample_id=sample_id)
            assert psnr(ours, expected) > 45  # torch's weights have 15 bits, Pillow's 22: a level here and there


def test_every_place_is_as_likely() -> None:
    """Chi-squared over the 9 x 9 places of a square image, at p = 0.001 with 80 degrees of freedom; half are mirrored."""
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.mgrid[0:SIZE, 0:SIZE]
    crop = Simple().build()
    places, flips, count = np.zeros((9, 9)), 0, 4000

    def same(pixels: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
        assert size == (SIZE, SIZE)
        return torch.from_numpy(pixels).permute(2, 0, 1)

    for number in range(count):
        planes, flip = crop(pixels, size=(SIZE, SIZE), key=derive_key(number), resize=same)
        centre = planes[:, 16, 16].astype(int)  # never in the reflected border
        places[centre[0] - 12, centre[1] - 12] += 1
        flips += flip
    assert ((places - count / 81) ** 2 / (count / 81)).sum() < 124.8
    assert flips / count == pytest.approx(0.5, abs=4 * 0.5 / count**0.5)


def test_a_flip_is_not_made_where_none_is_wanted() -> None:
    data = encode(smooth_image(50, 60), format="PNG")
    for sample_id in range(8):
        flip = few_uniforms(derive_key(0, Purpose.AUGMENTATION, 0, sample_id), 1)[0] < 0.5
        plain = render(transform(Simple(), flip=False), data, sample_id=sample_id)
        assert np.array_equal(render(transform(Simple()), data, sample_id=sample_id), plain[..., ::-1] if flip else plain)


def test_the_default_is_the_inception_crop() -> None:
    assert isinstance(Inception().build(), InceptionLaw)


@pytest.mark.parametrize("size", [(48, 48), (224, 96)])
def test_bicubic_resizing_equals_pillows(size: tuple[int, int]) -> None:
    pixels = smooth_image(301, 217)
    ours = resize_box(pixels, Box(11, 7, 250, 200), size=size, resize="bicubic_antialias").permute(1, 2, 0).numpy()
    theirs = np.asarray(Image.fromarray(pixels).crop((7, 11, 207, 261)).resize((size[1], size[0]), Image.Resampling.BICUBIC))
    assert psnr(ours, theirs) > 45


BOUNDS = CropBounds(min_area=0.08, max_area=1.0, min_ratio=3 / 4, max_ratio=4 / 3)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (60, 64), (30, 300), (300, 30), (7, 9)])
def test_random_resized_has_the_law_of_torchvision(height: int, width: int, torchvision: ModuleType) -> None:
    """Areas, ratios and places of many draws are distributed alike (two-sample Kolmogorov-Smirnov)."""
    from torchvision.transforms import RandomResizedCrop

    draws = 3000
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    torch.manual_seed(0)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(draws)])
    law = RandomResized().build()
    boxes = [law.choose(height, width, bounds=BOUNDS, key=derive_key(1, number))[0] for number in range(draws)]
    ours = np.array([(box.top, box.left, box.height, box.width) for box in boxes])
    for name, value in {
        "area": lambda box: box[:, 2] * box[:, 3],
        "ratio": lambda box: box[:, 3] / box[:, 2],
        "top": lambda box: box[:, 0],
        "left": lambda box: box[:, 1],
    }.items():
        assert ks_2samp(value(ours), value(theirs)).pvalue > 1e-3, name


def test_where_no_attempt_fits_the_crop_is_torchvisions(torchvision: ModuleType) -> None:
    from torchvision.transforms import RandomResizedCrop

    law = RandomResized().build()
    for height, width in ((10, 1000), (1000, 10), (40, 45), (1, 50)):
        image = torch.zeros(3, height, width, dtype=torch.uint8)
        narrow = CropBounds(min_area=1.0, max_area=1.0, min_ratio=3 / 4, max_ratio=4 / 3)
        expected = RandomResizedCrop.get_params(image, [4.0, 4.0], [3 / 4, 4 / 3])  # no rectangle of that area fits
        box = law.last(height, width, bounds=narrow)
        assert (box.top, box.left, box.height, box.width) == tuple(expected)


def test_random_resized_decodes_no_more_than_it_needs() -> None:
    """The region decoder gives the pixels of the whole image's crop."""
    data = encode(smooth_image(200, 300), format="JPEG")
    results = []
    for decoder in ("region", "whole"):
        law = TrainTransform(
            image_size=SIZE,
            bounds=BOUNDS,
            flip=True,
            resize="bilinear_antialias",
            decoder=decoder,  # type: ignore[arg-type]
            crop=RandomResized().build(),
        )
        results.append([render(law, data, sample_id=number) for number in range(4)])
    for region, whole in zip(*results, strict=True):
        assert psnr(region, whole) > 40
