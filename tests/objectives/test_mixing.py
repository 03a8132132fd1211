"""The draws of MixUp and CutMix: their distributions against scipy's, and that they belong to positions alone."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats  # type: ignore[import-not-found]
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.streams.train import Division
from pipeline.keyed_random import Purpose, derive_key
from pipeline.objectives.mixing import FIXED_DRAWS, Mixer, Mixing, draw_beta, draw_pairs

PAIRS = np.arange(20_000)
BOTH = Mixing(mixup_alpha=0.8, cutmix_alpha=1.0)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.8, 1.0, 4.0])
def test_shares_are_drawn_from_the_beta_distribution(alpha: float) -> None:
    drawn = draw_beta(derive_key(3, Purpose.MIXING), PAIRS, np.full(len(PAIRS), alpha))
    assert scipy.stats.kstest(drawn, scipy.stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_each_pair_is_mixed_as_the_settings_say() -> None:
    draws = draw_pairs(Mixing(mixup_alpha=0.2, cutmix_alpha=1.0, probability=0.5), PAIRS, seed=1, height=32, width=48)
    area = (draws.boxes[:, 2] - draws.boxes[:, 0]) * (draws.boxes[:, 3] - draws.boxes[:, 1])
    with_box, with_blend = area > 0, draws.blended < 1
    assert not (with_box & with_blend).any()
    # A quarter each; a few boxes and shares are empty, because they are rounded.
    assert abs(with_blend.mean() - 0.25) < 0.02
    assert 0.2 < with_box.mean() < 0.26
    assert (draws.blended >= 0.5).all()
    np.testing.assert_allclose(draws.kept, np.where(with_box, 1 - area / (32 * 48), draws.blended))
    assert (draws.boxes >= 0).all()
    assert (draws.boxes[:, [2, 3]] <= [32, 48]).all()


def test_boxes_have_the_area_that_was_drawn_where_no_border_cuts_them() -> None:
    section = Mixing(cutmix_alpha=1.0)
    height, width = 400, 600
    draws = draw_pairs(section, PAIRS, seed=2, height=height, width=width)
    lam = draw_beta(derive_key(2, Purpose.MIXING), PAIRS, np.ones(len(PAIRS)))
    top, left, bottom, right = draws.boxes.T
    whole = (top > 0) & (left > 0) & (bottom < height) & (right < width)
    assert whole.any()
    # Both sides are rounded down to even numbers of pixels.
    np.testing.assert_allclose(draws.kept[whole], lam[whole], atol=2 * (2 / height + 2 / width))


@given(first=st.integers(0, 2**40), count=st.integers(1, 9))
def test_draws_belong_to_the_pair_alone(first: int, count: int) -> None:
    pairs = np.arange(first, first + count)
    together = draw_pairs(BOTH, pairs, seed=5, height=16, width=16)
    for number, pair in enumerate(pairs):
        alone = draw_pairs(BOTH, np.array([pair]), seed=5, height=16, width=16)
        assert alone.blended[0] == together.blended[number]
        assert alone.kept[0] == together.kept[number]
        assert (alone.boxes[0] == together.boxes[number]).all()


@given(world_size=st.integers(1, 5), accumulation=st.integers(1, 3), step=st.integers(0, 3))
def test_mixed_images_are_the_same_for_any_number_of_ranks(world_size: int, accumulation: int, step: int) -> None:
    batch = 38
    images = torch.randn(4 * batch, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.eye(4 * batch)
    mixer = Mixer(BOTH, seed=7)
    here = slice(step * batch, (step + 1) * batch)
    whole = mixer(images[here], targets[here], positions=torch.arange(here.start, here.stop))
    parts = []
    for rank in range(world_size):
        division = Division(batch, rank, world_size, accumulation, together=2)
        for micro_step in range(accumulation):
            positions = torch.from_numpy(division.positions(step=step, micro_step=micro_step))
            assert len(positions) <= division.micro_batch_size
            parts.append(mixer(images[positions], targets[positions], positions=positions))
    for number in range(2):
        assert torch.equal(torch.cat([part[number] for part in parts]), whole[number])


def test_targets_are_mixed_as_the_pixels_are() -> None:
    # Each image is filled with its own number, so its mean says how much of whom it holds.
    images = torch.arange(64.0).view(-1, 1, 1, 1).expand(64, 3, 32, 32)
    mixed, targets = Mixer(BOTH, seed=0)(images, torch.eye(64), positions=torch.arange(64))
    torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), targets @ torch.arange(64.0), rtol=1e-5, atol=1e-4)
    assert FIXED_DRAWS == 4  # draws of existing runs would change


def test_whole_labels_are_those_of_either_image() -> None:
    images, mixer = torch.rand(64, 3, 32, 32), Mixer(BOTH.model_copy(update={"labels": "whole"}), seed=0)
    shares = Mixer(BOTH, seed=0)(images, torch.eye(64), positions=torch.arange(64))[1]
    whole = mixer(images, torch.eye(64), positions=torch.arange(64))[1]
    assert torch.equal(whole, shares.gt(0.0).float())  # as DeiT's engine.py
    assert (whole.sum(dim=1) == 2).any()
