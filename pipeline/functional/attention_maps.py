"""Compute what attention weights look at: rollout to the input, and mean distance. Weights are softmax values (B, h, N, N)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def attention_rollout(layers: Sequence[Tensor]) -> Tensor:
    """Return how much each output token draws on each input token: (B, N, N), rows sum to 1.

    Weights are averaged over heads, mixed half and half with the identity for the residual branch, and multiplied through the
    layers (Abnar & Zuidema, arXiv 2005.00928, section 3; the paper's appendix D.8).

    Args:
        layers: attention weights of each layer, first to last.
    """
    total: Tensor | None = None
    for weights in layers:
        mean = weights.mean(dim=1)
        mixed = 0.5 * mean + 0.5 * torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
        mixed = mixed / mixed.sum(dim=-1, keepdim=True)
        total = mixed if total is None else mixed @ total
    assert total is not None, "a model has layers"
    return total


def patch_distances(grid: tuple[int, int], *, patch_size: float) -> Tensor:
    """Return the distances between the centres of patches, in pixels: (P, P)."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    centres = patch_size * torch.stack([rows.flatten(), columns.flatten()], dim=1).double()
    return torch.cdist(centres, centres)


def mean_attention_distance(weights: Tensor, *, grid: tuple[int, int], patch_size: float) -> Tensor:
    """Return each head's mean distance between a query patch and what it attends to, in pixels: (h,).

    Distances are weighted by attention, and averaged over queries and images (the paper's appendix D.7, figure 11). Tokens
    before the patches (class token, registers) are left out, and the rest of each row is made to sum to 1.
    """
    patches = grid[0] * grid[1]
    among = weights[..., -patches:, -patches:].double()
    among = among / among.sum(dim=-1, keepdim=True)
    distances = patch_distances(grid, patch_size=patch_size).to(among.device)
    return (among * distances).sum(dim=-1).mean(dim=(0, 2))


def position_similarity(positions: Tensor) -> Tensor:
    """Return the cosine similarity of each position embedding (P, D) with all others: (P, P) (the paper's figure 7, centre)."""
    unit = torch.nn.functional.normalize(positions.double(), dim=1)
    return unit @ unit.T


def principal_filters(filters: Tensor, count: int) -> Tensor:
    """Return the first principal components of filters (D, C, h, w): (count, C, h, w) (the paper's figure 7, left)."""
    flat = filters.double().flatten(1)
    centred = flat - flat.mean(dim=0)
    _, _, components = torch.linalg.svd(centred, full_matrices=False)
    return components[:count].unflatten(1, filters.shape[1:])
