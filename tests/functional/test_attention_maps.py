"""Attention rollout, distance and the similarity of positions, against plain loops and transformers' attention weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.functional.attention_maps import (
    attention_rollout,
    mean_attention_distance,
    patch_distances,
    position_similarity,
    principal_filters,
)


def random_weights(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(dim=-1)


def test_rollout_is_a_walk_through_the_layers() -> None:
    """Each entry is the chance of a walk that at each layer stays, or goes where a random head attends to."""
    layers = [random_weights(1, 2, 3, 3, seed=seed) for seed in range(3)]
    found = attention_rollout(layers)[0]
    for start in range(3):
        chances = np.eye(3)[start]
        for weights in reversed(layers):  # from the output down to the input
            step = 0.5 * np.eye(3) + 0.5 * weights[0].mean(dim=0).numpy()
            chances = np.array([sum(chances[i] * step[i, j] for i in range(3)) for j in range(3)])
        assert found[start].numpy() == pytest.approx(chances, abs=1e-12)
    assert found.sum(dim=-1).numpy() == pytest.approx(np.ones(3))


def test_rollout_without_attention_stays_where_it_is() -> None:
    identity = torch.eye(4).expand(2, 3, 4, 4)
    assert torch.equal(attention_rollout([identity] * 5), torch.eye(4).expand(2, 4, 4))


def test_distance_is_that_of_a_plain_loop() -> None:
    grid, patch, prefix = (2, 3), 16.0, 2
    weights = random_weights(2, 4, prefix + 6, prefix + 6)
    found = mean_attention_distance(weights, grid=grid, patch_size=patch)
    for head in range(4):
        total = 0.0
        for image in range(2):
            for query in range(6):
                row = weights[image, head, prefix + query, prefix:].numpy()
                for key in range(6):
                    (a, b), (c, d) = divmod(query, 3), divmod(key, 3)
                    total += row[key] / row.sum() * patch * math.hypot(a - c, b - d)
        assert float(found[head]) == pytest.approx(total / 12, rel=1e-12)


def test_attention_to_oneself_has_no_distance_and_uniform_attention_the_mean() -> None:
    own = torch.eye(9).expand(1, 1, 9, 9)
    assert float(mean_attention_distance(own, grid=(3, 3), patch_size=8.0)) == 0.0
    uniform = torch.full((1, 1, 10, 10), 0.1)
    expected = float(patch_distances((3, 3), patch_size=8.0).mean())
    assert float(mean_attention_distance(uniform, grid=(3, 3), patch_size=8.0)) == pytest.approx(expected)


def test_similarity_is_numpys() -> None:
    positions = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = positions.numpy() / np.linalg.norm(positions.numpy(), axis=1, keepdims=True)
    assert position_similarity(positions).numpy() == pytest.approx(unit @ unit.T)


def test_filters_are_the_directions_of_most_variance() -> None:
    """Filters made of two patterns have these as components, up to their signs."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.linalg.qr(torch.randn(48, 2, generator=generator, dtype=torch.float64))[0].T
    amounts = torch.randn(100, 2, generator=generator, dtype=torch.float64) * torch.tensor([5.0, 1.0])
    found = principal_filters((amounts @ patterns).unflatten(1, (3, 4, 4)), 2)
    assert found.shape == (2, 3, 4, 4)
    for component, pattern in zip(found.flatten(1), patterns, strict=True):
        assert abs(float(component @ pattern)) == pytest.approx(1.0, abs=0.05)
