"""timm's law gives timm's pixels, operation by operation."""

from __future__ import annotations

import math
import random
from types import ModuleType

import numpy as np
import pytest

from pipeline.data.images.augment.randaugment_timm import OPERATIONS, RandAugmentTimm
from pipeline.keyed_random import derive_key, few_uniforms
from tests.conftest import timm_file
from tests.data.images.augment.pictures import PICTURES, as_image, as_planes, picture

FILL = (124, 116, 104)


@pytest.fixture(scope="module")
def theirs() -> ModuleType:
    return timm_file("data/auto_augment.py")


def plain(name: str) -> str:
    return name.removesuffix("Increasing").removesuffix("Rel")


@pytest.mark.parametrize("number", PICTURES)
@pytest.mark.parametrize("increasing", [True, False])
def test_operations_give_timms_pixels(theirs: ModuleType, number: int, increasing: bool) -> None:
    planes = picture(number)
    law = RandAugmentTimm(increasing=increasing).build()
    names = theirs.rand_augment_choices("", increasing=increasing)
    assert tuple(sorted(plain(name) for name in names)) == tuple(sorted(OPERATIONS))
    resamplings = {"bilinear": theirs.Image.Resampling.BILINEAR, "bicubic": theirs.Image.Resampling.BICUBIC}
    for magnitude, (interpolation, resampling) in [
        (0.0, ("bicubic", 3)),
        (4.3, ("bilinear", 2)),
        (9.0, ("bicubic", 3)),
        (10.0, ("bilinear", 2)),
    ]:
        assert resamplings[interpolation] == resampling
        for name in names:
            operation = theirs.AugmentOp(
                name, prob=1.0, magnitude=magnitude, hparams={"img_mean": FILL, "interpolation": resampling}
            )
            for seed in (0, 1):  # one of either sign
                random.seed(seed)
                sign = 0.0 if random.random() > 0.5 else 1.0
                random.seed(seed)
                if name.startswith("Posterize") and operation.level_fn(magnitude, {}) == (0,):
                    expected = np.zeros_like(planes)  # Pillow refuses to keep no bit 13
                else:
                    expected = as_planes(operation(as_image(planes)))
                ours = law.apply(plain(name), planes, magnitude=magnitude, sign=sign, interpolation=interpolation)
                assert np.array_equal(ours, expected), (name, magnitude, sign)


def test_the_defaults_are_rand_m9_mstd05_inc1(theirs: ModuleType) -> None:
    transform = theirs.rand_augment_transform("rand-m9-mstd0.5-inc1", {"img_mean": FILL})
    law = RandAugmentTimm().build()
    assert law.layers == transform.num_layers
    for operation in transform.ops:
        assert (operation.prob, operation.magnitude, operation.magnitude_std) == (
            law.probability, law.magnitude, law.magnitude_std
        )  # fmt: skip
        assert operation.magnitude_max is None
        assert law.max_magnitude == theirs._LEVEL_DENOM
    assert [plain(operation.name) for operation in transform.ops] == list(OPERATIONS)


def test_magnitudes_are_normal_and_cut() -> None:
    """The distribution is within the largest deviation of 5,000 draws at p = 0.001 (Kolmogorov, 1.95 / sqrt(n))."""
    law = RandAugmentTimm(magnitude=9, magnitude_std=0.5).build()
    drawn = np.sort([law.draw_magnitude(*few_uniforms(derive_key(0, number), 2)) for number in range(5000)])
    below = drawn[drawn < 10]
    expected = np.array([0.5 * (1 + math.erf((value - 9) / 0.5 / math.sqrt(2))) for value in below])
    assert np.abs(expected - np.arange(1, len(below) + 1) / len(drawn)).max() < 1.95 / math.sqrt(5000)
    assert (drawn <= 10).all()
    assert 1 - len(below) / len(drawn) == pytest.approx(0.0228, abs=0.007)  # two deviations above the mean: all cut to 10


def test_an_operation_is_applied_as_often_as_is_set() -> None:
    law = RandAugmentTimm(layers=1, probability=0.3).build()
    invert = (OPERATIONS.index("Invert") + 0.5) / len(OPERATIONS)
    planes = picture(0)
    for applied, changes in ((0.29, True), (0.31, False)):
        assert np.array_equal(law(planes, [invert, applied, 0.5, 0.5, 0.5, 0.5]), 255 - planes if changes else planes)


def test_a_magnitude_that_would_be_cut_is_refused() -> None:
    """Magnitudes go to 30 in the paper and in torchvision (tensorflow/tpu #614): 15 here would be 10 without a word."""
    with pytest.raises(ValueError, match=r"magnitude=15 is above max_magnitude=10, .* raise max_magnitude"):
        RandAugmentTimm(magnitude=15)
    assert RandAugmentTimm(magnitude=15, max_magnitude=20).build().max_magnitude == 20
