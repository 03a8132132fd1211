"""Draw what a Vision Transformer has learned, as in the paper's figures 6, 7, 11 and 14: for print, without titles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.console.figures import COLOURS, COLUMN_INCHES, paper_style

NUM_FILTERS = 28  # as many as the paper shows
_FILTER_COLUMNS = 7
_MOST_MAPS = 64  # panels of the similarity of positions: more could not be told apart in one column


@paper_style()
def draw_filters(filters: Tensor) -> Figure:
    """Draw filters (K, 3, h, w) as colours, each on its own scale."""
    rows = -(-len(filters) // _FILTER_COLUMNS)
    figure = Figure(figsize=(COLUMN_INCHES, COLUMN_INCHES * rows / _FILTER_COLUMNS))
    axes = figure.subplots(rows, _FILTER_COLUMNS, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, filter in zip(axes.flat, filters, strict=False):
        low, high = float(filter.min()), float(filter.max())
        axis.imshow(((filter - low) / max(high - low, 1e-12)).permute(1, 2, 0).numpy(), interpolation="nearest")
    return figure


@paper_style()
def draw_position_similarity(similarity: Tensor, grid: tuple[int, int]) -> Figure:
    """Draw the similarity (P, P) of positions: a panel for each patch, at the patch's place; every n-th of a large grid."""
    every = 1
    while -(-grid[0] // every) * -(-grid[1] // every) > _MOST_MAPS:
        every += 1
    shown = [(row, column) for row in range(0, grid[0], every) for column in range(0, grid[1], every)]
    num_columns = -(-grid[1] // every)
    num_rows = len(shown) // num_columns
    figure = Figure(figsize=(COLUMN_INCHES, COLUMN_INCHES * 0.9 * num_rows / num_columns))
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    image = None
    for axis, (row, column) in zip(axes.flat, shown, strict=True):
        panel = similarity[row * grid[1] + column].reshape(grid).numpy()
        image = axis.imshow(panel, vmin=-1, vmax=1, cmap="viridis", interpolation="nearest")
        axis.set(xticks=[], yticks=[])
        if column == 0:
            axis.set_ylabel(str(row + 1), rotation=0, va="center", ha="right", fontsize=6)
        if row == shown[-1][0]:
            axis.set_xlabel(str(column + 1), fontsize=6)
    figure.supxlabel("Input patch column", fontsize=8)
    figure.supylabel("Input patch row", fontsize=8)
    if image is not None:
        figure.colorbar(image, ax=axes, label="Cosine similarity", ticks=[-1, 0, 1], shrink=0.8)
    return figure


@paper_style()
def draw_attention_distance(distances: Sequence[Tensor], *, longest: float) -> Figure:
    """Draw each head's mean attention distance by layer.

    Args:
        distances: of each layer, (h,) in pixels.
        longest: the image's longer side in pixels.
    """
    figure = Figure()
    axis = figure.subplots()
    num_heads = max(len(layer) for layer in distances)
    for head in range(num_heads):
        values = [(number, float(layer[head])) for number, layer in enumerate(distances, 1) if head < len(layer)]
        label = f"Head {head + 1}" if num_heads <= len(COLOURS) else None
        axis.plot(*zip(*values, strict=True), "o", markersize=2.5, color=COLOURS[head % len(COLOURS)], label=label)
    axis.set(xlabel="Network depth (layer)", ylabel="Mean attention distance (pixels)", ylim=(0, longest), xlim=(0, None))
    axis.grid(alpha=0.3)
    if num_heads <= len(COLOURS):
        axis.legend(ncols=2, loc="lower right")
    return figure


@paper_style()
def draw_rollout(images: Tensor, maps: Tensor) -> Figure:
    """Draw images next to what the output attends to in them.

    Args:
        images: (B, 3, H, W) uint8.
        maps: (B, rows, columns), of any scale.
    """
    count = len(images)
    pairs = 3 if count >= 3 else count
    rows = -(-count // pairs)
    figure = Figure(figsize=(COLUMN_INCHES, COLUMN_INCHES * rows / (2 * pairs)))
    axes = figure.subplots(rows, 2 * pairs, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    large = F.interpolate(maps[:, None].float(), size=images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    for number, (image, weights) in enumerate(zip(images, large, strict=True)):
        pixels = image.permute(1, 2, 0).numpy()
        mask = (weights / weights.max()).numpy()[:, :, None]
        left, right = axes[number // pairs, 2 * (number % pairs) : 2 * (number % pairs) + 2]
        left.imshow(pixels)
        right.imshow((pixels * mask).astype(np.uint8))
    return figure
