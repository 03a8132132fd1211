"""Images and targets mixed in pairs: MixUp (arXiv 1710.09412) and CutMix (arXiv 1905.04899)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def swap_neighbours(values: Tensor) -> Tensor:
    """Rows 2i and 2i + 1 change places.

    Raises:
        ValueError: an odd number of rows.
    """
    if len(values) % 2:
        raise ValueError(f"{len(values)} rows are not pairs")
    return values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def blend(own: Float[Tensor, "B ..."], share: Float[Tensor, " B"]) -> Float[Tensor, "B ..."]:
    """Return each row times its share, plus its neighbour's row times the rest."""
    share = share.view(-1, *(1,) * (own.ndim - 1))
    return own * share + swap_neighbours(own) * (1 - share)


def paste(images: Float[Tensor, "B C H W"], boxes: Int[Tensor, "B 4"]) -> Float[Tensor, "B C H W"]:
    """Return each image with a box (top, left, bottom, right) of its neighbour's pixels; an empty box changes nothing."""
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    top, left, bottom, right = boxes.unbind(1)
    in_rows = (rows >= top[:, None]) & (rows < bottom[:, None])  # (B, H)
    in_columns = (columns >= left[:, None]) & (columns < right[:, None])  # (B, W)
    inside = (in_rows[:, :, None] & in_columns[:, None, :])[:, None]  # (B, 1, H, W)
    return torch.where(inside, swap_neighbours(images), images)
