"""Solve ridge regression from standardised features to class targets of -1 and +1, for nested supports.

The targets' mean and the constant feature drop out of the equations, since standardised features sum to zero over the support:
with Z the standardised features (N, D) and Y the targets (N, C), the weights are

    (Z'Z + l2)^-1 Z'Y = Z' (ZZ' + l2)^-1 Y, where Y may be twice the one-hot matrix,

and the constant feature b has the weight b sum(Y) / (b^2 N + l2). One Cholesky factorisation in the smaller dimension solves
them. Z'Z follows from the products of raw features, which larger supports only add to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pipeline.evaluation.protocols.classifier import Classifier

BIAS_FEATURE = 100.0
STD_EPS = 1e-5
PANEL = 128  # columns of a symmetric product computed at once; what is above the diagonal is left out
CHUNK_ROWS = 4096
# With fewer images than this part of D they are the smaller dimension. Products of features are kept for larger supports.
DUAL_PART = 0.75
MAX_OFFSET = 1e3  # standard deviations that a mean may be from the shift: the covariance then keeps ten digits


def fit_nested(
    features: Tensor, labels: Tensor, *, supports: Sequence[Tensor], num_classes: int, l2: float
) -> Iterator[Classifier]:
    """Yield the ridge classifier of each support.

    Args:
        features: (N, D); labels: (N,) int64.
        supports: indices of images, each support beginning with all of the one before.
    """
    shift = features[supports[-1][:CHUNK_ROWS]].double().mean(dim=0)
    products: _Products | None = None
    for support in supports:
        if len(support) < DUAL_PART * features.shape[1]:
            yield fit_ridge(features[support], labels[support], num_classes=num_classes, l2=l2)
            continue
        if products is None:
            products = _Products(shift, num_classes=num_classes)
        new = support[products.num_images :]
        for part in new.split(CHUNK_ROWS):
            products.add(features[part], labels[part])
        fitted = products.fit(l2=l2)
        yield fitted or fit_ridge(features[support], labels[support], num_classes=num_classes, l2=l2)


def fit_ridge(features: Tensor, labels: Tensor, *, num_classes: int, l2: float) -> Classifier:
    """Return the ridge classifier of features (N, D) and labels (N,)."""
    x = features.double()
    mean, std = x.mean(dim=0), x.std(dim=0, unbiased=False) + STD_EPS
    targets = 2.0 * torch.nn.functional.one_hot(labels, num_classes).double()
    weight = ridge_weights((x - mean) / std, targets, l2=l2)
    return _fold(weight, mean=mean, std=std, counts=torch.bincount(labels, minlength=num_classes), l2=l2)


def ridge_weights(features: Tensor, targets: Tensor, *, l2: float) -> Tensor:
    """Return the argmin over W of |X W - Y|^2 + l2 |W|^2, for X (N, D) and Y (N, C): W (D, C), in fp64."""
    x, y = features.double(), targets.double()
    if x.shape[0] >= x.shape[1]:
        return _solve(_add_products(x, None), x.T @ y, l2=l2)
    return x.T @ _solve(_add_products(x.T, None), y, l2=l2)


def _solve(gram: Tensor, right: Tensor, *, l2: float) -> Tensor:
    """Return (G + l2)^-1 B for a G of which the lower triangle is given. It is changed."""
    gram.diagonal().add_(l2)
    return torch.cholesky_solve(right, torch.linalg.cholesky(gram))


def _add_products(x: Tensor, out: Tensor | None) -> Tensor:
    """Return `out` (D, D) plus x'x for x (N, D). Above the diagonal its values are undefined."""
    size = x.shape[1]
    beta = 0 if out is None else 1
    out = x.new_zeros(size, size) if out is None else out
    for first in range(0, size, PANEL):
        last = min(first + PANEL, size)
        out[first:last, :last].addmm_(x[:, first:last].T, x[:, :last], beta=beta)
    return out


def _fold(weight: Tensor, *, mean: Tensor, std: Tensor, counts: Tensor, l2: float) -> Classifier:
    """Return the classifier of raw features, for a weight (D, C) of standardised ones, and the images of each class."""
    images = int(counts.sum())
    constant = BIAS_FEATURE**2 * (2.0 * counts - images) / (BIAS_FEATURE**2 * images + l2)
    raw = weight / std[:, None]
    return Classifier(raw, constant - mean @ raw)


class _Products:
    """Sums features, products of two of them, and features of each class, in fp64 and around a shift."""

    def __init__(self, shift: Tensor, *, num_classes: int) -> None:
        self.shift = shift  # (D,), near the mean, so that little cancels
        self.products = torch.zeros(len(shift), len(shift), dtype=torch.float64, device=shift.device)  # lower triangle
        self.class_sums = torch.zeros(num_classes, len(shift), dtype=torch.float64, device=shift.device)
        self.counts = torch.zeros(num_classes, dtype=torch.int64, device=shift.device)
        self.num_images = 0

    def add(self, features: Tensor, labels: Tensor) -> None:
        x = features.double().sub_(self.shift)  # features are a copy here, whatever their type
        _add_products(x, self.products)
        self.class_sums.index_add_(0, labels, x)
        self.counts += torch.bincount(labels, minlength=len(self.counts))
        self.num_images += len(x)

    def fit(self, *, l2: float) -> Classifier | None:
        """Return the ridge classifier of all that was added; None where too many digits would cancel."""
        mean = self.class_sums.sum(dim=0) / self.num_images
        std = (self.products.diagonal() / self.num_images - mean.square()).clamp_min(0).sqrt() + STD_EPS
        if not bool((mean.abs() <= MAX_OFFSET * std).all()):
            return None
        gram = torch.addr(self.products, mean, mean, alpha=-self.num_images)
        gram.div_(std[:, None]).div_(std)
        sums = 2.0 * (self.class_sums - self.counts[:, None] * mean) / std
        return _fold(_solve(gram, sums.T, l2=l2), mean=mean + self.shift, std=std, counts=self.counts, l2=l2)
