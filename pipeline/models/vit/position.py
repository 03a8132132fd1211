"""Compute positions of patches: fixed tables, offsets between tokens, and learned tables at another resolution."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

PositionResize = Literal["corners_aligned_bilinear", "bicubic_antialias"]

TEMPERATURE = 10_000.0  # wavelength of the slowest wave, over 2 pi (Vaswani et al. 2017, section 3.5)


def sincos_2d(grid: tuple[int, int], *, width: int, device: torch.device) -> Float[Tensor, "P D"]:
    """Return the fixed sine and cosine positions of a grid of patches, in raster order, fp32.

    [sin x, cos x, sin y, cos y], each D / 4 wide, at frequencies 10000^(-k / (D / 4 - 1)), k = 0 .. D / 4 - 1: MoCo v3
    (arXiv 2104.02057), and "better plain ViT baselines" (arXiv 2205.01580; big_vision, models/vit.py).

    Args:
        grid: rows and columns.
        width: D, a multiple of 4, at least 8.
    """
    rows, columns = grid
    exponents = torch.arange(width // 4, device=device, dtype=torch.float32) / (width // 4 - 1)
    frequencies = TEMPERATURE**-exponents  # (D/4,)
    x = torch.arange(columns, device=device)[:, None] * frequencies  # (columns, D/4)
    y = torch.arange(rows, device=device)[:, None] * frequencies  # (rows, D/4)
    of_columns, of_rows = torch.cat([x.sin(), x.cos()], dim=1), torch.cat([y.sin(), y.cos()], dim=1)
    return combine_axes(of_columns, of_rows)


def combine_axes(columns: Float[Tensor, "*L W E"], rows: Float[Tensor, "*L H E"]) -> Float[Tensor, "*L P D"]:
    """Return the positions of a grid in raster order, from those of its columns and of its rows: the two side by side, x first.

    D = 2 E and P = H W. With learned tables these are the paper's 2-D positions (appendix D.4).
    """
    height, width = rows.shape[-2], columns.shape[-2]
    x = columns.unsqueeze(-3).expand(*columns.shape[:-2], height, -1, -1)  # (H, W, E)
    y = rows.unsqueeze(-2).expand(*rows.shape[:-1], width, -1).reshape(*rows.shape[:-2], height, width, -1)  # (H, W, E)
    return torch.cat([x, y], dim=-1).flatten(-3, -2)


def by_offset_to_by_key(logits: Float[Tensor, "B h N R"]) -> Float[Tensor, "B h N N"]:
    """Return logits of each query by key, from those by offset. R = 2 N - 1.

    Entry (q, k) of the result is entry (q, k - q + N - 1) of the argument. By padding and reshaping alone, as in "attention
    augmented convolutional networks" (arXiv 1904.09925, appendix): its gradient needs no scattered sums, whose order on a
    GPU is not fixed.
    """
    batch, heads, length, _ = logits.shape
    flat = F.pad(logits, (0, 1)).flatten(2)  # (B, h, N * 2N): each row is one longer than what it is read in below
    flat = F.pad(flat, (0, length - 1))  # (B, h, (N + 1) * (2N - 1))
    return flat.view(batch, heads, length + 1, 2 * length - 1)[:, :, :length, length - 1 :].contiguous()


def resize_grid(
    positions: Float[Tensor, "L P D"], *, before: tuple[int, int], after: tuple[int, int], how: PositionResize
) -> Float[Tensor, "L Q D"]:
    """Return learned positions of a grid of patches for another grid, in raster order.

    corners_aligned_bilinear: what the authors' code does at another resolution (`scipy.ndimage.zoom` with order 1:
    vision_transformer, vit_jax/checkpoint.py; big_vision, models/vit.py). The patches in the corners keep their positions.
    bicubic_antialias: what timm does (timm, layers/pos_embed.py).

    Args:
        before, after: rows and columns; P and Q are their products.
    """
    if before == after:
        return positions
    images = positions.unflatten(1, before).permute(0, 3, 1, 2)  # (L, D, rows, columns)
    if how == "corners_aligned_bilinear":  # fp64, as scipy computes coordinates and weights
        resized = F.interpolate(images.double(), size=after, mode="bilinear", align_corners=True)
    else:
        resized = F.interpolate(images.float(), size=after, mode="bicubic", align_corners=False, antialias=True)
    return resized.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)


def resize_line(positions: Float[Tensor, "L P E"], *, length: int, how: PositionResize) -> Float[Tensor, "L Q E"]:
    """Return learned positions along one axis for another number of rows or columns; see `resize_grid`."""
    return resize_grid(positions, before=(positions.shape[1], 1), after=(length, 1), how=how)
