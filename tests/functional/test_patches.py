"""Targets and corruption of masked patches against loops over patches."""

from __future__ import annotations

import torch

from pipeline.functional.patches import corrupt_patches, mean_colours, split_patches

IMAGES = torch.randint(0, 256, (2, 3, 8, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_patches_are_those_of_the_patch_embedding() -> None:
    # A convolution whose kernel picks one pixel of its patch: what the embedding calls patch p is what is split as patch p.
    conv = torch.nn.Conv2d(3, 3 * 4 * 4, kernel_size=4, stride=4, bias=False)
    conv.weight.data = torch.eye(48).view(48, 3, 4, 4)
    embedded = conv(IMAGES.float()).flatten(2).transpose(1, 2)  # (B, P, 48)
    assert torch.equal(split_patches(IMAGES, rows=2, columns=3).flatten(2).float(), embedded)


def test_a_mean_colour_has_three_bits_a_channel() -> None:
    patches = split_patches(IMAGES, rows=2, columns=3)
    for image, row in zip(patches, mean_colours(patches.float()).tolist(), strict=True):
        for patch, colour in zip(image.double(), row, strict=True):
            red, green, blue = (int(channel.mean()) // 32 for channel in patch)
            assert colour == 64 * red + 8 * green + blue
    assert mean_colours(torch.full((3, 2, 2), 255.0)) == 511
    assert mean_colours(torch.zeros(3, 2, 2)) == 0


def test_corrupted_patches_are_masked_or_come_from_elsewhere() -> None:
    patches = torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(1))
    token = torch.full((5,), 9.0)
    masked, source = torch.tensor([[True, False, False, False]]), torch.tensor([[0, 3, 2, 3]])
    result = corrupt_patches(patches, mask_token=token, masked=masked, source=source)
    assert torch.equal(result[0], torch.stack([token, patches[0, 3], patches[0, 2], patches[0, 3]]))
