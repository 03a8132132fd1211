"""Masked patch prediction: how many patches become what, that draws belong to positions, and the loss written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.functional.patches import mean_colours, split_patches
from pipeline.models.vit.section import ViT
from pipeline.objectives.masked_patches import MaskedPatches, draw_patches
from tests.objectives.test_objectives import make_batch

CONFIG = ViT(name="Ti/8", image_size=32, num_classes=5, depth=1, width=8, num_heads=2, representation="none").resolve()
NUM_PATCHES = 16


def test_the_parts_are_the_papers() -> None:
    draws = draw_patches(MaskedPatches(), np.arange(5000), num_patches=NUM_PATCHES, seed=0)
    assert (draws.corrupted.sum(axis=1) == NUM_PATCHES // 2).all()
    count = draws.corrupted.sum()
    swapped = draws.source != np.arange(NUM_PATCHES)
    assert not (draws.masked & ~draws.corrupted).any()
    assert not (swapped & (draws.masked | ~draws.corrupted)).any()
    # Binomial: five standard deviations of 40,000 draws.
    assert abs(draws.masked.sum() / count - 0.8) < 5 * (0.8 * 0.2 / count) ** 0.5
    assert abs(swapped.sum() / count - 0.1) < 5 * (0.1 * 0.9 / count) ** 0.5
    # Every other patch is taken as often, and every patch is corrupted as often.
    offsets = np.bincount(((draws.source - np.arange(NUM_PATCHES)) % NUM_PATCHES)[swapped], minlength=NUM_PATCHES)
    assert offsets[0] == 0
    mean = swapped.sum() / (NUM_PATCHES - 1)
    assert (abs(offsets[1:] - mean) < 5 * mean**0.5).all()
    assert (abs(draws.corrupted.sum(axis=0) - 2500) < 5 * (5000 * 0.25) ** 0.5).all()


@given(first=st.integers(0, 2**40), count=st.integers(1, 5))
def test_draws_belong_to_the_position_alone(first: int, count: int) -> None:
    positions = np.arange(first, first + count)
    together = draw_patches(MaskedPatches(), positions, num_patches=NUM_PATCHES, seed=3)
    alone = [draw_patches(MaskedPatches(), positions[i : i + 1], num_patches=NUM_PATCHES, seed=3) for i in range(count)]
    for name in ("corrupted", "masked", "source"):
        assert np.array_equal(getattr(together, name), np.concatenate([getattr(draws, name) for draws in alone]))


@pytest.mark.parametrize("target", ["mean_colour", "small_patch", "pixels"])
def test_the_loss_is_of_the_corrupted_patches_alone(target: Any) -> None:
    section = MaskedPatches(target=target)
    objective: Any = section.build(CONFIG, seed=0, class_names=None)
    objective.init_weights(0)
    model = CONFIG.build()
    model.init_weights(torch.Generator().manual_seed(0))
    batch = make_batch()
    images = batch["images"]
    draws = draw_patches(section, batch["positions"].numpy(), num_patches=NUM_PATCHES, seed=0)

    def corrupt(patches: torch.Tensor) -> torch.Tensor:
        result = patches.clone()
        for image in range(len(images)):
            for patch in range(NUM_PATCHES):
                if draws.masked[image, patch]:
                    result[image, patch] = objective.mask_token
                else:
                    result[image, patch] = patches[image, draws.source[image, patch]]
        return result

    patches = split_patches(images, rows=4, columns=4).float()
    outputs = model(images, corrupt=corrupt).patches
    losses = []
    for image, patch in zip(*np.nonzero(draws.corrupted), strict=True):
        predicted, pixels = objective.head(outputs[image, patch]), patches[image, patch]
        if target == "pixels":
            losses.append(((predicted - (pixels.flatten() / 127.5 - 1)) ** 2).mean())
        elif target == "mean_colour":
            losses.append(F.cross_entropy(predicted, mean_colours(pixels)))
        else:
            colours = F.avg_pool2d(pixels, 2).flatten(1).T  # (16, 3) of 2 x 2 pixels each
            numbers = (colours / 32).long() @ torch.tensor([64, 8, 1])
            losses.append(F.cross_entropy(predicted.view(16, 512), numbers))
    output = objective(model, batch)
    torch.testing.assert_close(output.loss, torch.stack(losses).mean(), rtol=1e-5, atol=1e-6)
    assert len(output.predictions) == len(output.targets)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in [*model.parameters(), *objective.parameters()])
    assert not model.head.weight.grad.any()


def test_what_does_not_fit_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match=r"masked=0.9 and objective.swapped=0.2 .* at most 1"):
        MaskedPatches(masked=0.9, swapped=0.2).check(CONFIG, class_names=None)
    odd = ViT(name="Ti/7", image_size=28, num_classes=5).resolve()
    with pytest.raises(ConfigError, match="small_patch needs patches whose sides 4 divides, not 7 x 7 pixels"):
        MaskedPatches(target="small_patch").check(odd, class_names=None)
