"""Targets and corruption of masked patch prediction (arXiv 2010.11929, appendix B.1.2)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

LEVELS = 8  # of a colour channel: three bits
NUM_COLOURS = LEVELS**3


def split_patches(images: Shaped[Tensor, "B C H W"], *, rows: int, columns: int) -> Shaped[Tensor, "B P C h w"]:
    """Images cut into a grid of equal parts, in raster order."""
    height, width = images.shape[2] // rows, images.shape[3] // columns
    cut = images.unflatten(3, (columns, width)).unflatten(2, (rows, height))  # (B, C, rows, h, columns, w)
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


def mean_colours(patches: Float[Tensor, "*N 3 h w"]) -> Int[Tensor, "*N"]:
    """Return the mean colour of patches of values in [0, 255], three bits a channel: 64 r + 8 g + b.

    The paper gives the bits; the order of the channels in the number is ours.
    """
    levels = (patches.mean(dim=(-2, -1)) * (LEVELS / 256)).long().clamp(0, LEVELS - 1)  # (*N, 3)
    return levels[..., 0] * LEVELS**2 + levels[..., 1] * LEVELS + levels[..., 2]


def corrupt_patches(
    patches: Float[Tensor, "B P D"],
    *,
    mask_token: Float[Tensor, " D"],
    masked: Bool[Tensor, "B P"],
    source: Int[Tensor, "B P"],
) -> Float[Tensor, "B P D"]:
    """Embeddings with some replaced: by the mask token where `masked`, else by the embedding of patch `source`, which is the
    patch itself where nothing is replaced."""
    taken = patches.gather(1, source[..., None].expand_as(patches))
    return torch.where(masked[..., None], mask_token.to(patches.dtype), taken)
