"""Apply stochastic depth (Huang et al. 2016, arXiv 1603.09382): in training a sample skips a residual branch at random."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.models.vit.encoder_config import StochasticDepthRule


def block_rates(rate: float, *, depth: int, rule: StochasticDepthRule) -> list[float]:
    """Return the probability of skipping a branch, by block.

    linear: from 0 in the first block to `rate` in the last (AugReg, arXiv 2106.10270, section 3.3; timm).
    uniform: the same in all (DeiT III, arXiv 2204.07118).
    """
    if rule == "uniform" or depth == 1:
        return [rate] * depth if rule == "uniform" else [0.0] * depth
    return [rate * block / (depth - 1) for block in range(depth)]


class StochasticDepth(nn.Module):
    """Zeroes a residual branch for whole samples, and divides the others' by what is kept, so that the mean stays.

    Draws from torch's generator of the device, as dropout does: one number a sample.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        if not self.training or self.rate == 0:
            return branch
        shape = (branch.shape[0], 1, 1)
        if torch.compiler.is_compiling():
            # bernoulli_ makes the rate a constant of the compiled code: blocks of different rates could not share it, and those
            # beyond torch's limit of 8 variants would not be compiled at all.
            kept = (torch.rand(shape, device=branch.device) < 1 - self.rate).to(branch.dtype)
        else:
            kept = branch.new_empty(shape).bernoulli_(1 - self.rate)
        return branch * kept.div_(1 - self.rate)
