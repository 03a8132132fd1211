"""TensorFlow's law is checked by hand, by its formulas in numpy's single precision, and by Pillow where they agree.

TensorFlow is not installed; its code says which Pillow operation each of its own is made after.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from pipeline.data.images.augment.randaugment_tf import OPERATIONS, RandAugmentTF, TensorFlowLaw, cut_out, grey
from tests.data.images.augment.pictures import PICTURES, as_image, as_planes, picture

CENTRE = (0.5, 0.5)
MAGNITUDES = (0, 5, 10, 15, 20)  # of AugReg: none to strong; 5 for a factor that is 1
F32 = np.float32


def law(**settings: Any) -> TensorFlowLaw:
    return RandAugmentTF(**settings).build()


def apply(operation: str, planes: np.ndarray, *, sign: float = 0.9, **settings: Any) -> np.ndarray:
    return law(**settings).apply(operation, planes, sign=sign, centre=CENTRE)


def tf_blend(first: np.ndarray, second: np.ndarray, factor: float) -> np.ndarray:
    """Return the source's `blend`, in its precision and order."""
    mixed = first.astype(F32) + F32(factor) * (second.astype(F32) - first.astype(F32))
    return np.clip(mixed, 0, 255).astype(np.uint8)


def row(*values: int) -> np.ndarray:
    """Return one line of pixels, equal in all three planes: (3, 1, n)."""
    return np.repeat(np.array(values, np.uint8)[None, None], 3, axis=0)


def test_the_operations_are_the_sources() -> None:
    assert len(OPERATIONS) == len(set(OPERATIONS)) == 16
    assert "Identity" not in OPERATIONS


@pytest.mark.parametrize(
    ("operation", "magnitude", "before", "after"),
    [
        ("Invert", 10, (0, 1, 128, 255), (255, 254, 127, 0)),
        ("AutoContrast", 10, (50, 100, 150), (0, 127, 255)),
        ("AutoContrast", 10, (7, 7, 7), (7, 7, 7)),
        ("Posterize", 10, (0x0F, 0x1F, 0xF3, 0xFF), (0x00, 0x10, 0xF0, 0xF0)),  # 4 bits
        ("Posterize", 15, (0x03, 0x07, 0xF3, 0xFF), (0x00, 0x04, 0xF0, 0xFC)),  # 6 bits
        ("Posterize", 20, (1, 2, 3, 255), (1, 2, 3, 255)),  # 8 bits
        ("Posterize", 0, (0, 127, 128, 255), (0, 0, 128, 128)),  # TensorFlow clamps a shift of 8 to 7: one bit
        ("Solarize", 5, (0, 127, 128, 255), (0, 127, 127, 0)),  # threshold 128
        ("Solarize", 0, (0, 127, 128, 255), (255, 128, 127, 0)),  # threshold 0
        ("Solarize", 10, (0, 127, 128, 255), (255, 128, 127, 0)),  # 256 overflows to 0
        ("Solarize", 15, (0, 127, 128, 255), (0, 127, 127, 0)),  # 384 to 128
        ("SolarizeAdd", 10, (0, 100, 127, 128, 255), (110, 210, 237, 128, 255)),
        ("SolarizeAdd", 20, (0, 100, 127, 128, 255), (220, 255, 255, 128, 255)),
        ("SolarizeAdd", 0, (0, 127, 128), (0, 127, 128)),
        ("Brightness", 10, (0, 100, 134, 135, 255), (0, 190, 254, 255, 255)),  # 1.9
        ("Brightness", 0, (0, 9, 10, 255), (0, 0, 1, 25)),  # 0.1
        ("Contrast", 10, (0, 100, 200), (0, 100, 255)),  # 1.9 from the mean, 100
        ("Contrast", 0, (0, 100, 200), (90, 100, 110)),
        ("Color", 10, (0, 100, 200), (0, 100, 200)),  # grey has no colour
        ("TranslateX", 0.2, (1, 2, 3, 4, 5), (3, 4, 5, 128, 128)),
        ("Cutout", 0.25, (1, 2, 3, 4, 5), (1, 128, 128, 4, 5)),  # a square of two pixels whose centre is pixel 2
    ],
)
def test_by_hand(operation: str, magnitude: float, before: tuple[int, ...], after: tuple[int, ...]) -> None:
    assert apply(operation, row(*before), magnitude=magnitude).tolist() == row(*after).tolist()


def test_a_negative_translation_goes_the_other_way() -> None:
    assert apply("TranslateX", row(1, 2, 3), magnitude=0.1, sign=0.1).tolist() == row(128, 1, 2).tolist()
    column = row(1, 2, 3).transpose(0, 2, 1)
    assert apply("TranslateY", column, magnitude=0.1).tolist() == row(2, 3, 128).transpose(0, 2, 1).tolist()


def test_distances_are_in_pixels_or_parts_of_224() -> None:
    for size in (224, 112, 56):
        planes = picture(4, height=size, width=size)
        scaled, plain = law(distances="scaled"), law(magnitude=10 * size / 224)
        for operation in ("TranslateX", "TranslateY", "Cutout"):
            ours = scaled.apply(operation, planes, sign=0.9, centre=CENTRE)
            assert np.array_equal(ours, plain.apply(operation, planes, sign=0.9, centre=CENTRE))
    assert (apply("TranslateX", picture(4, height=64, width=64)) == 128).all()


def test_solarize_without_the_overflow_does_nothing_from_ten_on() -> None:
    planes = picture(0)
    for magnitude in (10, 15, 20):
        assert np.array_equal(apply("Solarize", planes, magnitude=magnitude, solarize="fixed"), planes)
    both = [apply("Solarize", planes, magnitude=7, solarize=choice) for choice in ("fixed", "source")]
    assert np.array_equal(*both)


@pytest.mark.parametrize(("size", "level"), [(224, 196), (64, 16), (384, 255)])  # 196: google-research/big_vision issue #109
def test_contrast_of_the_source_has_the_area_in_place_of_the_mean(size: int, level: int) -> None:
    planes = picture(1, height=size, width=size)
    for magnitude in (0, 10, 15):
        constant = np.full_like(planes, level)
        expected = tf_blend(constant, planes, magnitude / 10 * 1.8 + 0.1)
        assert np.array_equal(apply("Contrast", planes, magnitude=magnitude, contrast="source"), expected)


def test_the_issues_calibration_colours() -> None:
    """Two colours have a mean that is their grey level: 192, 64, 64 and 64, 192, 192 (big_vision issue #109)."""
    planes = np.array([[[192, 64]], [[64, 192]], [[64, 192]]], np.uint8)
    planes = np.tile(planes, (1, 224, 112))
    assert apply("Contrast", planes, magnitude=10, contrast="source")[:, 0, 0].tolist() == [188, 0, 0]
    assert apply("Contrast", planes, magnitude=10)[:, 0, 0].tolist() == [249, 6, 6]


@pytest.mark.parametrize("number", PICTURES)
def test_grey_levels_are_tensorflows(number: int) -> None:
    """It scales to [0, 1] in single precision, weights, scales by 255.5 and cuts. At a limit of two levels sums may differ."""
    planes = picture(number, height=224, width=224)
    scaled = planes.astype(F32) * F32(1 / 255)
    luma = scaled[0] * F32(0.2989) + scaled[1] * F32(0.587) + scaled[2] * F32(0.114)
    expected = (luma * F32(255.5)).astype(np.uint8)
    difference = np.abs(grey(planes).astype(int) - expected)
    assert difference.max() <= 1
    # Sums differ by 2e-5 + 5e-5 of a level at most, by rounding here and by the weights' 23 bits there.
    assert np.count_nonzero(difference) <= 1e-3 * difference.size
    if number != 7:
        assert np.abs(expected.astype(int) - np.asarray(as_image(planes).convert("L"))).max() <= 1  # Pillow's rounds


@pytest.mark.parametrize("number", PICTURES)
@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_colour_operations_follow_the_sources_formulas(number: int, magnitude: int) -> None:
    planes = picture(number)
    factor = magnitude / 10 * 1.8 + 0.1
    level = grey(planes)
    expected = {
        "Color": tf_blend(np.repeat(level[None], 3, axis=0), planes, factor),
        "Contrast": tf_blend(np.full_like(planes, int(level.mean())), planes, factor),
        "Brightness": tf_blend(np.zeros_like(planes), planes, factor),
        "Sharpness": tf_blend(tf_smooth(planes), planes, factor),
        "AutoContrast": np.stack([tf_autocontrast(plane) for plane in planes]),
        "Equalize": as_planes(ImageOps.equalize(as_image(planes))),
        "Invert": as_planes(ImageOps.invert(as_image(planes))),
        "Brightness of Pillow": as_planes(ImageEnhance.Brightness(as_image(planes)).enhance(factor)),
    }
    for name, pixels in expected.items():
        assert np.array_equal(apply(name.removesuffix(" of Pillow"), planes, magnitude=magnitude), pixels), name


def tf_smooth(planes: np.ndarray) -> np.ndarray:
    """Return a weighted mean of 3 x 3 by exact integers, cut; the border is the image's."""
    result = planes.copy()
    values = planes.astype(int)
    height, width = planes.shape[1:]
    total = 4 * values[:, 1:-1, 1:-1]
    for top in range(3):
        for left in range(3):
            total = total + values[:, top : height - 2 + top, left : width - 2 + left]
    result[:, 1:-1, 1:-1] = total // 13
    return result


def tf_autocontrast(plane: np.ndarray) -> np.ndarray:
    low, high = F32(plane.min()), F32(plane.max())
    if high <= low:
        return plane
    scale = F32(255.0) / (high - low)
    return np.clip(plane.astype(F32) * scale + -low * scale, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("number", PICTURES)
def test_the_degenerate_images_are_pillows_but_for_rounding(number: int) -> None:
    """Pillow rounds where TensorFlow cuts: a level of the mean, and less than a level of the smoothed image."""
    planes = picture(number)
    image = as_image(planes)
    factors = {"Sharpness": ImageEnhance.Sharpness(image), "Contrast": ImageEnhance.Contrast(image)}
    for magnitude in MAGNITUDES:
        factor = magnitude / 10 * 1.8 + 0.1
        for name, enhancer in factors.items():
            difference = apply(name, planes, magnitude=magnitude).astype(int) - as_planes(enhancer.enhance(factor))
            assert np.abs(difference).max() <= math.ceil(2 * abs(1 - factor)) + 1  # two greys of one level, scaled, and cut


WARPS = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")


@pytest.mark.parametrize("sign", [0.0, 0.9])
@pytest.mark.parametrize("magnitude", [1, 5, 10, 15, 20])
@pytest.mark.parametrize("operation", WARPS)
def test_geometry_is_the_sources(operation: str, magnitude: int, sign: float) -> None:
    """Each pixel is the input's nearest to where the source's matrix points, or grey outside.

    Pillow's coordinates are fixed-point numbers of 2^-16: an error of (height + width) 2^-17 at most, 0.004 pixels here, so a
    pixel whose source lies that near to the limit of two others may be either. Those pixels are not compared.
    """
    planes = picture(2, height=224, width=196)
    result = apply(operation, planes, magnitude=magnitude, sign=sign)
    x, y = source_coordinates(operation, magnitude if sign >= 0.5 else -magnitude, height=224, width=196)
    expected, clear = nearest(planes, x, y, margin=(224 + 196) * 2.0**-17)
    assert np.array_equal(result[:, clear], expected[:, clear])
    if not operation.startswith("Shear"):  # of a shear by a tenth every tenth row lies at a limit
        assert clear.mean() > 0.95


def source_coordinates(operation: str, magnitude: float, *, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return where each output pixel comes from, pixel centres at whole numbers, by tensorflow_addons' matrices."""
    y, x = np.mgrid[0:height, 0:width].astype(float)
    match operation:
        case "Rotate":
            angle = math.radians(magnitude / 10 * 30)
            cos, sin = math.cos(angle), math.sin(angle)
            x_offset = ((width - 1) - (cos * (width - 1) - sin * (height - 1))) / 2
            y_offset = ((height - 1) - (sin * (width - 1) + cos * (height - 1))) / 2
            return cos * x - sin * y + x_offset, sin * x + cos * y + y_offset
        case "ShearX":
            return x + magnitude / 10 * 0.3 * y, y
        case "ShearY":
            return x, magnitude / 10 * 0.3 * x + y
        case "TranslateX":
            return x + magnitude * 10, y
        case _:
            return x, y + magnitude * 10


def nearest(planes: np.ndarray, x: np.ndarray, y: np.ndarray, *, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest pixels, grey outside; and where no coordinate is within the margin of a limit between two."""
    columns, rows = np.floor(x + 0.5).astype(int), np.floor(y + 0.5).astype(int)
    height, width = planes.shape[1:]
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    result = np.full((3, *x.shape), 128, np.uint8)
    result[:, inside] = planes[:, rows[inside], columns[inside]]
    clear = np.ones(x.shape, bool)
    for values in (x, y):
        clear &= np.abs((values + 0.5) - np.round(values + 0.5)) > margin
    return result, clear


@pytest.mark.parametrize("half_side", [0, 1, 7, 100])
def test_a_cutout_is_a_square_around_a_pixel_that_is_cut_off_at_the_border(half_side: int) -> None:
    planes = picture(3, height=20, width=30)
    for centre in ((0.0, 0.0), (0.999, 0.999), (0.4, 0.7)):
        row_number, column = int(centre[0] * 20), int(centre[1] * 30)
        expected = planes.copy()
        for i in range(20):
            for j in range(30):
                if row_number - half_side <= i < row_number + half_side and column - half_side <= j < column + half_side:
                    expected[:, i, j] = 128
        assert np.array_equal(cut_out(planes, half_side=half_side, centre=centre), expected)


def test_layers_follow_each_other() -> None:
    planes = picture(0)
    draws = [(OPERATIONS.index("Cutout") + 0.5) / 16, 0.1, 0.3, 0.8, (OPERATIONS.index("ShearY") + 0.5) / 16, 0.1, 0.2, 0.2]
    first = law().apply("Cutout", planes, sign=0.1, centre=(0.3, 0.8))
    assert np.array_equal(law()(planes, draws), law().apply("ShearY", first, sign=0.1, centre=CENTRE))
    assert np.array_equal(planes, picture(0))


def test_pillow_rotates_counterclockwise_as_the_source_does() -> None:
    planes = np.zeros((3, 5, 5), np.uint8)
    planes[:, 2, 4] = 255  # right of the centre
    turned = law(magnitude=30).apply("Rotate", planes, sign=0.9, centre=CENTRE)  # by 90 degrees
    assert turned[0, 0, 2] == 255  # above
    assert Image.fromarray(planes[0]).rotate(90).getpixel((2, 0)) == 255
