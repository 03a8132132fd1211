"""Random erasing agrees with timm's law and with its distribution."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from pipeline.data.images.erasing import RandomErasing, normals
from pipeline.keyed_random import derive_key, few_uniforms
from tests.conftest import timm_file

HEIGHT, WIDTH = 40, 56


def erased(**settings: object) -> list[tuple[int, int, int, int]]:
    """Return top, left, height and width of the rectangles of 2,000 images; none for those that are spared."""
    law = RandomErasing(**{"probability": 1.0, **settings}).build()  # type: ignore[arg-type]
    assert law is not None
    found = [law.choose(HEIGHT, WIDTH, draws=few_uniforms(derive_key(0, number), 41)) for number in range(2000)]
    return [(box.top, box.left, box.height, box.width) for box in found if box is not None]


def timms(**settings: object) -> list[tuple[int, int, int, int]]:
    """Return the same of timm, found in the pixels."""
    law = timm_file("data/random_erasing.py").RandomErasing(probability=1.0, device="cpu", **settings)
    random.seed(0)
    boxes: list[tuple[int, int, int, int]] = []
    for _ in range(2000):
        rows, columns = torch.nonzero(law(torch.ones(1, HEIGHT, WIDTH))[0] == 0, as_tuple=True)
        if len(rows):
            top, left = int(rows.min()), int(columns.min())
            boxes.append((top, left, int(rows.max()) - top + 1, int(columns.max()) - left + 1))
    return boxes


@pytest.mark.parametrize("areas", [(0.02, 1 / 3), (0.3, 0.9)])
def test_rectangles_are_distributed_as_timms(areas: tuple[float, float]) -> None:
    """Two samples of each of five numbers are within Kolmogorov and Smirnov's distance at p = 0.001."""
    ours = np.array(erased(min_area=areas[0], max_area=areas[1]))
    theirs = np.array(timms(min_area=areas[0], max_area=areas[1]))
    limit = 1.95 * math.sqrt(1 / len(ours) + 1 / len(theirs))
    assert len(ours) / 2000 == pytest.approx(len(theirs) / 2000, abs=0.05)  # the others fitted in none of ten attempts
    for column in range(4):
        assert distance(ours[:, column], theirs[:, column]) < limit
    assert distance(ours[:, 2] / ours[:, 3], theirs[:, 2] / theirs[:, 3]) < limit


def distance(first: np.ndarray, second: np.ndarray) -> float:
    values = np.union1d(first, second)
    cumulative = [np.searchsorted(np.sort(sample), values, side="right") / len(sample) for sample in (first, second)]
    return float(np.abs(cumulative[0] - cumulative[1]).max())


def test_as_many_images_are_erased_as_is_set_and_nothing_else_is_touched() -> None:
    law = RandomErasing(probability=0.25).build()
    assert law is not None
    image = np.full((3, HEIGHT, WIDTH), 77, np.uint8)
    changed = 0
    for number in range(2000):
        planes = image.copy()
        key = derive_key(1, number)
        law(planes, key=key)
        box = law.choose(HEIGHT, WIDTH, draws=few_uniforms(key, 41))
        changed += box is not None
        if box is not None:
            planes[:, box.top : box.top + box.height, box.left : box.left + box.width] = 77
        assert np.array_equal(planes, image)
    assert changed / 2000 == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 2000))


def test_the_fills() -> None:
    inside = {}
    for fill in ("mean", "color", "noise"):
        law = RandomErasing(probability=1.0, fill=fill, min_area=0.3).build()
        assert law is not None
        planes = np.zeros((3, HEIGHT, WIDTH), np.uint8)
        key = derive_key(5, 1)
        law(planes, key=key)
        box = law.choose(HEIGHT, WIDTH, draws=few_uniforms(key, 41))
        assert box is not None
        inside[fill] = planes[:, box.top : box.top + box.height, box.left : box.left + box.width].reshape(3, -1)
    assert np.unique(inside["mean"], axis=1).T.tolist() == [[124, 116, 104]]  # of ImageNet, 0 after normalising
    assert len(np.unique(inside["color"], axis=1).T) == 1
    assert len(np.unique(inside["noise"], axis=1).T) > 500


def test_normals_are_standard_normal() -> None:
    """They are within Kolmogorov's distance at p = 0.001."""
    values = np.sort(normals(derive_key(7), 20_000))
    expected = np.array([0.5 * (1 + math.erf(value / math.sqrt(2))) for value in values])
    assert np.abs(expected - np.arange(1, 20_001) / 20_000).max() < 1.95 / math.sqrt(20_000)


def test_nothing_is_built_by_default() -> None:
    assert RandomErasing().build() is None
