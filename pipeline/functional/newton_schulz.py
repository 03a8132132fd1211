"""Compute, roughly and by matrix products alone, the orthogonal matrix nearest to a given one (Newton-Schulz iteration)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

# Chosen by K. Jordan for a steep slope at zero: singular values end between about 0.7 and 1.2
# (https://kellerjordan.github.io/posts/muon/).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
EPS = 1e-7


def orthogonalize(matrix: Float[Tensor, "M N"], *, steps: int) -> Float[Tensor, "M N"]:
    """Return U S' V^T for a matrix U S V^T, with S' near the identity.

    The result is bf16. The operations are those of `torch.optim.Muon`, in the same order.

    Args:
        steps: iterations x -> a x + (b (x x^T) + c (x x^T)^2) x.
    """
    a, b, c = COEFFICIENTS
    x = matrix.to(torch.bfloat16)
    is_tall = x.shape[0] > x.shape[1]
    if is_tall:
        x = x.T  # the products are of the shorter side
    x = x / x.norm().clamp(min=EPS)  # no singular value above 1
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x
