"""Classify features by a linear function: the classes are those of fp64, most of them found in fp32."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_BYTES = 2**26  # of fp32 logits
_UNIT_ROUNDOFF = {"highest": 2.0**-24, "high": 2.0**-11, "medium": 2.0**-9}  # of a product under each matmul precision
_SMALLEST = 1e-37  # covers underflow


@dataclass(frozen=True)
class Classifier:
    """Holds coefficients for features as they are, not standardised: logits are x @ weight + bias."""

    weight: Tensor  # (D, C) fp64
    bias: Tensor  # (C,) fp64

    def logits(self, features: Tensor) -> Tensor:
        """Map features (N, D) to fp64 logits (N, C)."""
        return features.double() @ self.weight + self.bias

    def predict(self, features: Tensor, *, norms: Tensor | None = None) -> Tensor:
        """Map features (N, D) to class ids (N,): the argmax of fp64 logits.

        A product in fp32 takes half the time. It decides where the largest logit leads by more than twice the bound on its
        rounding, D u |x||w| for any order of summation (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1).
        The other images are classified in fp64.

        Args:
            norms: `row_norms(features)`, for several classifiers of the same features.
        """
        weight, bias = self.weight.float(), self.bias.float()
        longest = float(torch.linalg.vector_norm(self.weight, dim=0).max())
        unit = _UNIT_ROUNDOFF[torch.get_float32_matmul_precision()]
        norms = row_norms(features) if norms is None else norms
        error = unit * ((len(weight) + 4) * longest * norms.double() + 4 * float(self.bias.abs().max())) + _SMALLEST
        chunk = max(1, CHUNK_BYTES // (4 * weight.shape[1]))
        found = []
        for x, bound in zip(features.split(chunk), error.split(chunk), strict=True):
            logits = torch.addmm(bias, x.float(), weight)
            best, classes = logits.max(dim=1)
            logits.scatter_(1, classes[:, None], -torch.inf)
            is_clear = best.double() - logits.amax(dim=1).double() > 2 * bound  # not so where something is not finite
            unclear = torch.nonzero(~is_clear).flatten()
            classes[unclear] = self.logits(x[unclear]).argmax(dim=1)
            found.append(classes)
        return torch.cat(found)

    def accuracy(self, features: Tensor, labels: Tensor, *, norms: Tensor | None = None) -> float:
        """Return the part of features (N, D) that are classified as labels (N,)."""
        return float((self.predict(features, norms=norms) == labels).double().mean())


def row_norms(features: Tensor) -> Tensor:
    """Return upper bounds (N,) on the Euclidean norms of features (N, D); infinity where fp32 overflows."""
    return 1.001 * torch.linalg.vector_norm(features.float(), dim=1)  # the sum of squares is rounded by D units at most
