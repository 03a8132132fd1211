"""Describe frozen features without a classifier: their effective rank, their uniformity, and the alignment of classes.

- Effective rank (RankMe, Garrido et al. 2023, arXiv 2210.02885, eq. 1-2): exp of the entropy of p_k = s_k / sum(s) + 1e-7,
  where s are the singular values of the features of at most 25,600 train images, as there. The value is its part of D.
- Uniformity (Wang & Isola 2020, arXiv 2005.10242, section 4.1.2): log of the mean of exp(-2 |x - y|^2) over pairs of test
  images, features of unit length. It is 0 where all are alike, and about -4 where they are spread over a sphere.
- Alignment (section 4.1.1 there): mean of |x - y|^2 over positive pairs. The paper's pairs are two views of an image. Here they
  are two test images of a class.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pipeline.errors import EvaluationError
from pipeline.evaluation.measured import Measured
from pipeline.evaluation.protocols.base import FeatureProtocol, Setting
from pipeline.evaluation.splits import Splits

RANK_IMAGES = 25_600
SMALLEST_PART = 1e-7  # of a singular value in the sum of all
TEMPERATURE = 2.0  # of the uniformity
ROWS = 1024  # of the pairs at once


class Diagnostics(FeatureProtocol):
    """Describes features without a classifier: effective rank, uniformity, alignment of classes."""

    protocol: Literal["diagnostics"] = "diagnostics"
    images: int = Field(default=5000, ge=2, description="test images whose pairs are taken, drawn by a fixed seed")

    def settings(self) -> list[Setting]:
        return [Setting("effective rank"), Setting("uniformity"), Setting("class alignment")]

    def measure(self, splits: Splits, setting: Setting) -> Measured:
        """Measure a setting.

        Raises:
            EvaluationError: there are too few images.
        """
        # Under a name of its own a protocol's measures begin with that name.
        if setting.measure.endswith("effective rank"):
            chosen = _draw(len(splits.train), RANK_IMAGES).to(splits.train.device)
            rank = effective_rank(splits.train[chosen])
            detail = {"effective_rank": rank, "images": len(chosen)}
            return Measured(rank / splits.train.shape[1], detail, "score")
        chosen = _draw(len(splits.test), self.images).to(splits.test.device)
        features = torch.nn.functional.normalize(splits.test[chosen].double(), dim=1)
        if setting.measure.endswith("uniformity"):
            if len(features) < 2:
                raise EvaluationError("uniformity needs two test images")
            return Measured(uniformity(features), {"images": len(features)}, "loss")
        value, num_pairs = class_alignment(features, splits.test_labels[chosen])
        if not num_pairs:
            raise EvaluationError("class alignment needs two test images of one class")
        return Measured(value, {"images": len(features), "pairs": num_pairs}, "loss")


def _draw(count: int, most: int) -> Tensor:
    """Return at most so many indices, ascending, the same for every checkpoint."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most].sort().values


def effective_rank(features: Tensor) -> float:
    """Return the effective rank of features (N, D), from 1 to min(N, D), by their Gram matrix in fp64."""
    values = features.double()
    gram = values.T @ values if len(values) >= values.shape[1] else values @ values.T
    singular = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    total = float(singular.sum())
    if total == 0:  # all features are zero
        return 0.0
    parts = singular / total + SMALLEST_PART
    return math.exp(float(-(parts * parts.log()).sum()))


def uniformity(features: Tensor) -> float:
    """Return the uniformity of features (N, D) of unit length: over all pairs of two different images."""
    total = 0.0
    for first in range(0, len(features), ROWS):
        part = features[first : first + ROWS]
        potential = torch.exp(-TEMPERATURE * (2 - 2 * part @ features.T).clamp_min(0))
        own = torch.arange(len(part), device=part.device)
        potential[own, own + first] = 0
        total += float(potential.sum())
    pairs = len(features) * (len(features) - 1)
    return math.log(max(total / pairs, 5e-324))


def class_alignment(features: Tensor, labels: Tensor) -> tuple[float, int]:
    """Return the mean squared distance of two images of one class, and the number of pairs.

    The sum over the pairs of n vectors of unit length is n^2 - |their sum|^2.

    Args:
        features: (N, D) of unit length.
        labels: (N,); images of class -1 have no partner.
    """
    total, num_pairs = 0.0, 0
    for label in labels.unique().tolist():
        some = features[labels == label]
        if label < 0 or len(some) < 2:
            continue
        total += len(some) ** 2 - float(some.sum(dim=0).square().sum())
        num_pairs += len(some) * (len(some) - 1) // 2
    return (total / num_pairs if num_pairs else 0.0), num_pairs
