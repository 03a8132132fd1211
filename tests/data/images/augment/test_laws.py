"""Every augmentation law keeps these rules inside the training transform."""

from __future__ import annotations

import pickle
from collections import Counter
from typing import get_args

import numpy as np
import pytest
import torch

from pipeline.data.images.augment import Augment, randaugment_tf, randaugment_timm, randaugment_torchvision
from pipeline.data.images.augment.base import AugmentSection
from pipeline.data.images.crop import TrainTransform
from pipeline.data.images.crops.boxes import CropBounds
from pipeline.data.images.erasing import RandomErasing
from pipeline.keyed_random import Purpose, derive_key, few_uniforms
from pipeline.section import members_of
from tests.conftest import encode
from tests.data.images.augment.pictures import picture

MEMBERS: dict[str, type[AugmentSection]] = {name: section for name, section in members_of(Augment).items() if name != "none"}
PNG = encode(picture(0, height=40, width=50).transpose(1, 2, 0), format="PNG")


def transform(section: AugmentSection | None = None, *, erasing: float = 0.0, **changes: object) -> TrainTransform:
    values: dict[str, object] = {
        "image_size": 24,
        "bounds": CropBounds(min_area=0.3, max_area=1.0, min_ratio=0.75, max_ratio=4 / 3),
    }
    values |= {"flip": True, "resize": "bilinear", "decoder": "whole"}
    values |= {"augmentation": None if section is None else section.build()}
    values |= {"erasing": RandomErasing(probability=erasing).build()}
    return TrainTransform(**{**values, **changes})  # type: ignore[arg-type]


def render(law: TrainTransform, *, seed: int = 0, epoch: int = 0, sample_id: int = 0, draw: int = 0) -> np.ndarray:
    out = torch.zeros((3, 24, 24), dtype=torch.uint8)
    law(PNG, seed=seed, epoch=epoch, sample_id=sample_id, draw=draw, out=out)
    return out.numpy()


def test_the_union_has_all_members() -> None:
    assert sorted(MEMBERS) == ["randaugment_tf", "randaugment_timm", "randaugment_torchvision", "three_augment"]
    assert len(get_args(get_args(Augment)[0])) == 5


@pytest.mark.parametrize("name", MEMBERS)
def test_pixels_depend_on_seed_epoch_sample_and_draw_and_on_nothing_else(name: str) -> None:
    law = transform(MEMBERS[name](), erasing=0.5)
    again = pickle.loads(pickle.dumps(law))  # as a worker process gets it
    pictures = {
        key: render(law, seed=key[0], epoch=key[1], sample_id=key[2], draw=key[3])
        for key in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 0, 0, 2)]
    }
    for (seed, epoch, sample_id, draw), pixels in reversed(pictures.items()):  # in another order
        assert np.array_equal(render(again, seed=seed, epoch=epoch, sample_id=sample_id, draw=draw), pixels)
    assert len({pixels.tobytes() for pixels in pictures.values()}) == len(pictures)


@pytest.mark.parametrize("name", MEMBERS)
def test_crop_and_flip_are_drawn_as_without_an_augmentation(name: str) -> None:
    section = MEMBERS[name]()
    law, plain = section.build(), transform()
    for sample_id in range(20):
        draws = few_uniforms(derive_key(3, Purpose.OPERATIONS, 1, sample_id, 0), law.num_draws)
        expected = law(render(plain, seed=3, epoch=1, sample_id=sample_id), draws)
        assert np.array_equal(render(transform(section), seed=3, epoch=1, sample_id=sample_id), expected)


def test_the_first_draw_is_the_only_one_of_a_run_without_repeats() -> None:
    """The pixels are those of runs that began before augmentations and repeats existed."""
    out = torch.zeros((3, 24, 24), dtype=torch.uint8)
    transform()(PNG, seed=3, epoch=2, sample_id=11, out=out)
    assert out.float().mean(dim=(1, 2)).tolist() == pytest.approx(PINNED_MEANS, abs=1e-4)


PINNED_MEANS = [121.2135, 108.2101, 120.1024]


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 2), (17, 33)])
def test_any_size_is_augmented(name: str, size: tuple[int, int]) -> None:
    planes = picture(1, height=size[0], width=size[1])
    for number in range(60):
        law = MEMBERS[name]().build()
        result = law(planes, few_uniforms(derive_key(number), law.num_draws))
        assert result.shape == planes.shape
        assert result.dtype == np.uint8


@pytest.mark.parametrize(
    ("operations", "draws_per_layer"),
    [
        (randaugment_tf.OPERATIONS, randaugment_tf.DRAWS_PER_LAYER),
        (randaugment_torchvision.OPERATIONS, randaugment_torchvision.DRAWS_PER_LAYER),
        (randaugment_timm.OPERATIONS, randaugment_timm.DRAWS_PER_LAYER),
    ],
)
def test_each_operation_is_drawn_as_often_as_any_other(operations: tuple[str, ...], draws_per_layer: int) -> None:
    """Chi-squared is computed over samples and over layers, at p = 0.001, and no layer follows from the one before."""
    num_samples, kinds = 6000, len(operations)
    chosen = np.empty((num_samples, 2), int)
    for sample_id in range(num_samples):
        draws = few_uniforms(derive_key(0, Purpose.OPERATIONS, 0, sample_id, 0), 2 * draws_per_layer)
        chosen[sample_id] = [int(draws[0] * kinds), int(draws[draws_per_layer] * kinds)]
    for layer in range(2):
        assert chi_squared(np.bincount(chosen[:, layer], minlength=kinds)) < LIMITS[kinds - 1]
    pairs = Counter(zip(chosen[:, 0].tolist(), chosen[:, 1].tolist(), strict=True))
    assert chi_squared(np.array([pairs[i, j] for i in range(kinds) for j in range(kinds)])) < LIMITS[kinds * kinds - 1]


# Of the chi-squared distribution by degrees of freedom, p = 0.001.
LIMITS = {2: 13.82, 5: 20.52, 13: 34.53, 14: 36.12, 15: 37.70, 195: 261.8, 224: 295.2, 255: 330.5}


def chi_squared(counts: np.ndarray) -> float:
    return float(((counts - counts.mean()) ** 2 / counts.mean()).sum())


def test_3_augment_takes_each_of_the_three_and_each_order_as_often() -> None:
    draws = np.array([few_uniforms(derive_key(0, Purpose.OPERATIONS, 0, sample_id, 0), 6) for sample_id in range(6000)])
    assert chi_squared(np.bincount((draws[:, 0] * 3).astype(int), minlength=3)) < LIMITS[2]
    assert chi_squared(np.bincount((draws[:, 5] * 6).astype(int), minlength=6)) < LIMITS[5]
