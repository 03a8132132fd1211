"""Compute mean cross-entropy of a linear classifier, its gradient, and its slope along a line, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**19  # logits of a chunk
LEAST_CHUNK = 256  # images
STORED_BYTES = 2**31  # logits of all images, and what a step adds to them, are kept if they are not more


class CrossEntropy:
    """Holds features and labels. A weight is (D + 1, C) in fp64, the bias last. Products are in the type that is asked for.

    Features are standardised. Their fp32 form is kept; the fp64 one is made chunk by chunk from features as they are.

    Args:
        features: (N, D); labels: (N,) int64, below `num_classes`.
    """

    def __init__(self, features: Tensor, labels: Tensor, *, num_classes: int) -> None:
        self.features, self.labels, self.num_classes = features, labels, num_classes
        self.rows = max(LEAST_CHUNK, CHUNK_ELEMENTS // num_classes)
        self.mean, self.std = _moments(features)
        self.standard = torch.cat([self._standardise(part).float() for part in features.split(self.rows)])

    def __len__(self) -> int:
        return len(self.labels)

    def _standardise(self, features: Tensor) -> Tensor:
        return (features.double() - self.mean) / self.std

    def parts(self) -> Iterator[slice]:
        """Yield the images of each chunk."""
        for first in range(0, len(self), self.rows):
            yield slice(first, min(first + self.rows, len(self)))

    def part_features(self, part: slice, *, dtype: torch.dtype) -> Tensor:
        """Return standardised features of a chunk."""
        return self.standard[part] if dtype == torch.float32 else self._standardise(self.features[part])

    def stores(self, dtype: torch.dtype) -> bool:
        return 2 * len(self) * self.num_classes * dtype.itemsize <= STORED_BYTES

    def start(self, weight: Tensor, *, dtype: torch.dtype) -> Point:
        """Return the point at a weight."""
        logits = self.logits(weight, dtype=dtype) if self.stores(dtype) else None
        return Point(self, weight, logits, dtype)

    def logits(self, weight: Tensor, *, dtype: torch.dtype) -> Tensor:
        out = torch.empty(len(self), self.num_classes, dtype=dtype, device=self.labels.device)
        w = weight.to(dtype)
        for part in self.parts():
            torch.addmm(w[-1], self.part_features(part, dtype=dtype), w[:-1], out=out[part])
        return out

    def covariance(self) -> Tensor:
        """Return the mean of x'x over standardised images (D, D), in fp32."""
        size = self.standard.shape[1]
        out = torch.zeros(size, size, device=self.standard.device)
        for part in self.parts():
            out.addmm_(self.standard[part].T, self.standard[part])
        return out / len(self)


class Point:
    """Holds a weight, and the logits of all images there if they are stored."""

    def __init__(self, data: CrossEntropy, weight: Tensor, logits: Tensor | None, dtype: torch.dtype) -> None:
        self.data, self.weight, self.logits, self.dtype = data, weight, logits, dtype

    def chunk_logits(self, part: slice) -> Tensor:
        """Return the logits of a chunk."""
        if self.logits is not None:
            return self.logits[part]
        w = self.weight.to(self.dtype)
        return torch.addmm(w[-1], self.data.part_features(part, dtype=self.dtype), w[:-1])

    def gradient(self) -> tuple[float, Tensor]:
        """Return the mean loss, and its gradient (D + 1, C) in fp64."""
        data = self.data
        gradient = torch.zeros_like(self.weight)
        loss = torch.zeros((), dtype=torch.float64, device=gradient.device)
        for part in data.parts():
            residuals, losses = _residuals(self.chunk_logits(part), data.labels[part])
            loss += losses.double().sum()
            gradient[:-1] += data.part_features(part, dtype=self.dtype).T @ residuals
            gradient[-1] += residuals.sum(dim=0)
        return float(loss) / len(data), gradient / len(data)

    def class_covariance(self, *, whole: bool) -> Tensor:
        """Return the mean of diag(p) - pp' over images (C, C) in fp32, or its diagonal alone."""
        classes = self.data.num_classes
        sums = torch.zeros(classes, device=self.weight.device)
        products = torch.zeros((classes, classes) if whole else (classes,), device=self.weight.device)
        for part in self.data.parts():
            p = torch.softmax(self.chunk_logits(part).float(), dim=1)
            sums += p.sum(dim=0)
            products += p.T @ p if whole else p.square().sum(dim=0)
        return ((torch.diag(sums) if whole else sums) - products) / len(self.data)

    def line(self, direction: Tensor) -> Line:
        """Return the line through this point."""
        moves = None if self.logits is None else self.data.logits(direction, dtype=self.dtype)
        return Line(self, direction, moves)


class Line:
    """Holds a point, a direction, and the change of the logits along it if logits are stored."""

    def __init__(self, point: Point, direction: Tensor, moves: Tensor | None) -> None:
        self.point, self.direction, self.moves = point, direction, moves

    def slope(self, length: float) -> float:
        """Return the derivative of the mean loss by the length of the step, at a length."""
        point, data = self.point, self.point.data
        direction = self.direction.to(point.dtype)
        total = torch.zeros((), dtype=torch.float64, device=direction.device)
        for part in data.parts():
            if self.moves is not None:
                moves = self.moves[part]
            else:
                moves = torch.addmm(direction[-1], data.part_features(part, dtype=point.dtype), direction[:-1])
            residuals, _ = _residuals(torch.add(point.chunk_logits(part), moves, alpha=length), data.labels[part])
            total += residuals.mul_(moves).sum(dim=1).double().sum()
        return float(total) / len(data)

    def move(self, length: float) -> Point:
        """Return the point at a length. The one at the beginning is used up."""
        point = self.point
        logits = None
        if point.logits is not None and self.moves is not None:
            logits = point.logits.add_(self.moves, alpha=length)
        return Point(point.data, point.weight + length * self.direction, logits, point.dtype)


def _residuals(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return probabilities minus the one-hot labels (N, C), and losses (N,).

    p - 1 of a label's own class is minus the sum of the others: a difference would lose all digits where p is near 1.
    """
    p = torch.softmax(logits, dim=1)
    own = labels[:, None]
    right = p.gather(1, own)[:, 0]
    p.scatter_(1, own, 0.0)
    wrong = p.sum(dim=1)
    p.scatter_(1, own, -wrong[:, None])
    tiny = torch.finfo(p.dtype).tiny
    return p, torch.where(right > 0.5, -torch.log1p(-wrong), -right.clamp_min(tiny).log())


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (D,) in fp64, a chunk at a time; a constant feature's deviation is 1."""
    rows = max(LEAST_CHUNK, CHUNK_ELEMENTS // features.shape[1])
    mean = torch.stack([part.sum(dim=0, dtype=torch.float64) for part in features.split(rows)]).sum(dim=0) / len(features)
    squares = torch.stack([(part.double() - mean).square().sum(dim=0) for part in features.split(rows)]).sum(dim=0)
    std = (squares / len(features)).sqrt()
    # A constant feature says nothing and must not divide by zero. Its deviation is rounding, in proportion to its value.
    return mean, torch.where(std > 1e-12 * mean.abs(), std, 1.0)
