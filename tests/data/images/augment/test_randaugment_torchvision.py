"""torchvision's law gives torchvision's pixels on Pillow images, operation by operation."""

from __future__ import annotations

import importlib
from types import ModuleType

import numpy as np
import pytest
import torch

from pipeline.data.images.augment.randaugment_torchvision import OPERATIONS, RandAugmentTorchvision
from tests.data.images.augment.pictures import PICTURES, as_image, as_planes, picture

SIGNED = {"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness"}


@pytest.fixture(scope="module")
def theirs(torchvision: ModuleType) -> ModuleType:
    del torchvision
    return importlib.import_module("torchvision.transforms.autoaugment")


@pytest.mark.parametrize("bins", [31, 11])
def test_arguments_are_torchvisions(theirs: ModuleType, bins: int) -> None:
    space = theirs.RandAugment(num_magnitude_bins=bins)._augmentation_space(bins, (61, 47))
    assert tuple(space) == OPERATIONS
    for magnitude in range(bins):
        law = RandAugmentTorchvision(magnitude=magnitude, bins=bins).build()
        for name, (magnitudes, signed) in space.items():
            expected = float(magnitudes[magnitude]) if magnitudes.ndim else 0.0
            assert law.argument(name, height=61, width=47) == expected
            assert signed == (name in SIGNED)


@pytest.mark.parametrize("number", PICTURES)
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_operations_give_torchvisions_pixels(theirs: ModuleType, number: int, interpolation: str) -> None:
    planes = picture(number)
    mode = theirs.InterpolationMode(interpolation)
    for magnitude in (0, 1, 9, 17, 30):
        law = RandAugmentTorchvision(magnitude=magnitude, interpolation=interpolation, fill=(9, 99, 199)).build()
        for name in OPERATIONS:
            value = law.argument(name, height=61, width=47)
            for argument in (value, -value) if name in SIGNED else (value,):
                expected = as_planes(theirs._apply_op(as_image(planes), name, argument, mode, [9, 99, 199]))
                assert np.array_equal(law.apply(name, planes, argument), expected), (name, argument)


def test_layers_follow_each_other_with_the_drawn_operations_and_signs() -> None:
    planes = picture(0)
    law = RandAugmentTorchvision(layers=3, magnitude=20).build()
    chosen = [(1, 0.2), (10, 0.9), (5, 0.7)]
    expected = planes
    for operation, sign in chosen:
        value = law.argument(OPERATIONS[operation], height=61, width=47)
        expected = law.apply(OPERATIONS[operation], expected, -value if sign < 0.5 else value)
    draws = [number for operation, sign in chosen for number in ((operation + 0.5) / len(OPERATIONS), sign)]
    assert len(draws) == law.num_draws
    assert np.array_equal(law(planes, draws), expected)
    assert np.array_equal(planes, picture(0))  # the input stays


def test_the_whole_law_is_torchvisions(theirs: ModuleType) -> None:
    """The test reads torchvision's generator, and uses the numbers that torchvision drew."""
    for seed in range(40):
        torch.manual_seed(seed)
        augment = theirs.RandAugment(num_ops=2, magnitude=13)
        expected = as_planes(augment(as_image(picture(seed % 8))))
        torch.manual_seed(seed)
        draws: list[float] = []
        for _ in range(2):
            operation = int(torch.randint(len(OPERATIONS), (1,)))
            is_signed = OPERATIONS[operation] in SIGNED
            draws += [(operation + 0.5) / len(OPERATIONS), 0.2 if is_signed and int(torch.randint(2, (1,))) else 0.8]
        law = RandAugmentTorchvision(layers=2, magnitude=13).build()
        assert np.array_equal(law(picture(seed % 8), draws), expected)


def test_a_magnitude_is_one_of_the_bins() -> None:
    with pytest.raises(ValueError, match="magnitude must be less than bins=31"):
        RandAugmentTorchvision(magnitude=31)
