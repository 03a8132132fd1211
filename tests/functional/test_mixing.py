"""MixUp and CutMix of pairs against sums written out by hand."""

from __future__ import annotations

import pytest
import torch

from pipeline.functional.mixing import blend, paste, swap_neighbours

IMAGES = torch.randn(4, 3, 5, 7, generator=torch.Generator().manual_seed(0))


def test_neighbours_change_places() -> None:
    assert torch.equal(swap_neighbours(torch.arange(6)), torch.tensor([1, 0, 3, 2, 5, 4]))
    with pytest.raises(ValueError, match="3 rows are not pairs"):
        swap_neighbours(torch.arange(3))


def test_a_blend_is_a_weighted_sum_of_both() -> None:
    shares = torch.tensor([0.75, 0.75, 1.0, 1.0])
    mixed = blend(IMAGES, shares)
    torch.testing.assert_close(mixed[0], 0.75 * IMAGES[0] + 0.25 * IMAGES[1])
    torch.testing.assert_close(mixed[1], 0.75 * IMAGES[1] + 0.25 * IMAGES[0])
    assert torch.equal(mixed[2:], IMAGES[2:])


def test_a_box_is_the_neighbours() -> None:
    mixed = paste(IMAGES, torch.tensor([[1, 2, 3, 6], [1, 2, 3, 6], [0, 0, 0, 0], [4, 6, 5, 7]]))
    expected = IMAGES.clone()
    expected[0, :, 1:3, 2:6] = IMAGES[1, :, 1:3, 2:6]
    expected[1, :, 1:3, 2:6] = IMAGES[0, :, 1:3, 2:6]
    expected[3, :, 4, 6] = IMAGES[2, :, 4, 6]
    assert torch.equal(mixed, expected)
