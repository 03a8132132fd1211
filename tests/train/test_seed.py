"""The generators of a step are seeded as torch seeds them."""

from __future__ import annotations

import torch

from pipeline.train.module import seed_generators


def test_draws_are_those_of_torchs_own_seed() -> None:
    for seed in (0, 7, 2**62 + 11):
        torch.manual_seed(seed)
        expected = torch.rand(5), torch.nn.functional.dropout(torch.ones(64), 0.5)
        torch.rand(3)
        seed_generators(seed, torch.device("cpu"))
        assert torch.equal(torch.rand(5), expected[0])
        assert torch.equal(torch.nn.functional.dropout(torch.ones(64), 0.5), expected[1])
