"""Few-shot accuracy: regularised least squares from frozen features to -1/+1 class targets, in closed form.

The paper's few-shot measure (section 4.1, "Metrics"), with the settings of big_vision's
`evaluators/fewshot_lsr.py`: features standardised by the support set, a constant feature of 100 as bias, ridge
penalty 2^10, support drawn by `numpy.random.default_rng(seed)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.data.class_counts import ClassCounts
from pipeline.evaluation.requirements import short_classes

BIAS_FEATURE = 100.0
L2_PENALTY = 2.0**10
STD_EPS = 1e-5


@dataclass(frozen=True)
class Support:
    """The images a few-shot classifier may see."""

    indices: Tensor  # (n,) into the train split
    short_classes: tuple[int, ...]  # classes with fewer than `shots` images


def choose_support(labels: Tensor, *, shots: int, seed: int) -> Support:
    """Up to `shots` images a class, at random under `seed`; a smaller draw is a prefix of a larger one."""
    generator = np.random.default_rng(seed)
    array = labels.numpy()
    chosen: list[np.ndarray] = []
    for label in np.unique(array):
        members = generator.permutation(np.flatnonzero(array == label))[:shots]
        chosen.append(members)
    short = short_classes(ClassCounts.of_labels(array), shots)
    return Support(indices=torch.from_numpy(np.concatenate(chosen)), short_classes=short)


def ridge_weights(features: Tensor, targets: Tensor, *, l2: float) -> Tensor:
    """argmin over W of |X W - Y|^2 + l2 |W|^2, for X (N, D) and Y (N, C): W (D, C), in fp64.

    Solved in the smaller of the two dimensions (W = (X'X + l2)^-1 X'Y = X' (XX' + l2)^-1 Y), through a symmetric
    eigendecomposition.
    """
    x, y = features.double(), targets.double()
    primal = x.shape[0] >= x.shape[1]
    gram = x.T @ x if primal else x @ x.T
    eigenvalues, eigenvectors = torch.linalg.eigh(gram)
    inverse = (eigenvectors / (eigenvalues + l2)) @ eigenvectors.T
    return inverse @ (x.T @ y) if primal else x.T @ (inverse @ y)


def few_shot_accuracy(
    *, train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor, support: Support,
    num_classes: int, l2: float = L2_PENALTY,
) -> float:  # fmt: skip
    """Part of the test images classified right by the ridge classifier of `support`.

    Args:
        train_features: (N, D); train_labels: (N,).
        test_features: (M, D); test_labels: (M,).
    """
    chosen = support.indices.to(train_features.device)
    x = train_features[chosen].double()
    mean, std = x.mean(dim=0), x.std(dim=0, unbiased=False) + STD_EPS
    targets = 2.0 * torch.nn.functional.one_hot(train_labels[chosen], num_classes).double() - 1.0

    def prepare(features: Tensor) -> Tensor:
        standard = (features.double() - mean) / std
        return torch.nn.functional.pad(standard, (0, 1), value=BIAS_FEATURE)

    weights = ridge_weights(prepare(x), targets, l2=l2)
    predicted = (prepare(test_features) @ weights).argmax(dim=1)
    return float((predicted == test_labels).double().mean())
