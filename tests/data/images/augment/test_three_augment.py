"""3-Augment agrees with Pillow and torchvision, of which DeiT III's is made."""

from __future__ import annotations

import importlib
import itertools
from types import ModuleType

import numpy as np
import pytest
from PIL import ImageFilter, ImageOps

from pipeline.data.images.augment.three_augment import ThreeAugment
from tests.data.images.augment.pictures import PICTURES, as_image, as_planes, picture


@pytest.fixture(scope="module")
def functional(torchvision: ModuleType) -> ModuleType:
    del torchvision
    return importlib.import_module("torchvision.transforms.functional")


@pytest.mark.parametrize("number", PICTURES)
def test_each_of_the_three_is_theirs(functional: ModuleType, number: int) -> None:
    law, planes = ThreeAugment(color_jitter=0).build(), picture(number)
    image = as_image(planes)
    rest = [0.5] * 4
    assert np.array_equal(law(planes, [0.1, 0.0, *rest]), as_planes(functional.to_grayscale(image, num_output_channels=3)))
    assert np.array_equal(law(planes, [0.5, 0.0, *rest]), as_planes(ImageOps.solarize(image)))
    for draw in (0.0, 0.35, 0.9999):
        blurred = image.filter(ImageFilter.GaussianBlur(0.1 + 1.9 * draw))
        assert np.array_equal(law(planes, [0.9, draw, *rest]), as_planes(blurred))


@pytest.mark.parametrize("number", PICTURES)
def test_jitter_is_torchvisions_in_every_order(functional: ModuleType, number: int) -> None:
    law, planes = ThreeAugment(color_jitter=0.3).build(), picture(number)
    adjust = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
    draws = [0.05, 0.6, 0.93]
    for order in itertools.permutations(range(3)):
        image = as_image(planes)
        for which in order:
            image = adjust[which](image, 0.7 + 0.6 * draws[which])
        assert np.array_equal(law.jitter(planes, draws, order=order), as_planes(image))


def test_the_jitter_follows_the_other() -> None:
    law, planes = ThreeAugment().build(), picture(0)
    solarized = ThreeAugment(color_jitter=0).build()(planes, [0.5] * 6)
    draws = [0.5, 0.5, 0.1, 0.2, 0.3, 0.99]  # the last order: colour, contrast, brightness
    assert np.array_equal(law(planes, draws), law.jitter(solarized, [0.1, 0.2, 0.3], order=(2, 1, 0)))
