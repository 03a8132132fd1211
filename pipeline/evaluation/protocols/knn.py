"""Classify by a weighted vote of the nearest train images, in the cosine of frozen features.

This is the measure of DINOv2 and DINOv3 (`eval/knn.py` of both): features of unit length, the k largest cosines s,
each voting for its class with a softmax over s / 0.07. Every k is a measure of its own, so nothing is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from pipeline.data.class_counts import ClassCounts
from pipeline.evaluation.measured import Measured
from pipeline.evaluation.protocols.base import FeatureProtocol, Setting
from pipeline.evaluation.splits import Splits

TEST_ROWS = 1024  # test images at once
TRAIN_ROWS = 2**14  # train images that they are compared with at once


class NearestNeighbours(FeatureProtocol):
    """Classifies each test image by a vote of its nearest train images (DINOv2, DINOv3)."""

    protocol: Literal["knn"] = "knn"
    k: tuple[PositiveInt, ...] = Field(default=(10, 20, 100, 200), description="numbers of neighbours, each measured")
    temperature: float = Field(default=0.07, gt=0, description="of the softmax over cosines that weights the votes")

    @model_validator(mode="after")
    def _nothing_is_there_twice(self) -> Self:
        if len(set(self.k)) < len(self.k):
            once = ",".join(str(value) for value in dict.fromkeys(self.k))
            raise ValueError(f"k: a number is there several times; write k=[{once}]")
        return self

    def settings(self) -> list[Setting]:
        return [Setting(f"{k}-nn", None, (("k", k),)) for k in self.k]

    def measure(self, splits: Splits, setting: Setting) -> Measured:
        """Measure a setting. If train has fewer images, all of them vote."""
        keys = {k: ("knn", self.temperature, k) for k in self.k}
        key = keys[int(dict(setting.parameters)["k"])]
        if key not in splits.known:
            predicted = vote_by_neighbours(
                splits.test,
                train=splits.train,
                train_labels=splits.train_labels,
                num_classes=splits.num_classes,
                neighbours=self.k,
                temperature=self.temperature,
            )
            for k, classes in zip(self.k, predicted, strict=True):
                accuracy = float((classes == splits.test_labels).double().mean())
                splits.known[keys[k]] = Measured(accuracy, {"neighbours": min(k, len(splits.train))})
        return splits.known[key]

    def notes(self, train: ClassCounts, *, class_names: Sequence[str] | None, path: str) -> list[str]:
        del class_names
        large = [k for k in self.k if k > train.num_images]
        if not large:
            return []
        rest = [k for k in self.k if k not in large] or [train.num_images]
        return [
            f"train has {train.num_images} images, and {path}.k asks for {', '.join(map(str, large))} neighbours: all of train "
            f"votes there. Numbers that it has: {path}.k='[{', '.join(map(str, rest))}]'"
        ]

    def warnings(self, row: dict[str, Any]) -> list[str]:
        k, found = row.get("k"), row.get("neighbours")
        if not isinstance(k, int) or not isinstance(found, int) or found >= k:
            return []
        return [f"{row['dataset']} {k}-nn: train has {found} images, and all of them vote"]


def vote_by_neighbours(
    test: Tensor, *, train: Tensor, train_labels: Tensor, num_classes: int, neighbours: Sequence[int], temperature: float
) -> list[Tensor]:
    """Return the predicted classes (M,) for each number of neighbours.

    Cosines are in fp32, votes in fp64. Memory next to a copy of train is bounded.

    Args:
        test: (M, D); train: (N, D); train_labels: (N,) int64.
    """
    train = torch.nn.functional.normalize(train.float(), dim=1)
    most = min(max(neighbours), len(train))
    predicted: list[list[Tensor]] = [[] for _ in neighbours]
    for part in test.split(TEST_ROWS):
        cosines, nearest = _find_nearest(torch.nn.functional.normalize(part.float(), dim=1), train, most=most)
        weights = torch.softmax(cosines.double() / temperature, dim=1)
        labels = train_labels[nearest]
        for k, found in zip(neighbours, predicted, strict=True):
            votes = weights.new_zeros(len(part), num_classes).scatter_add_(1, labels[:, :k], weights[:, :k])
            found.append(votes.argmax(dim=1))
    return [torch.cat(found) for found in predicted]


def _find_nearest(queries: Tensor, train: Tensor, *, most: int) -> tuple[Tensor, Tensor]:
    """Return the largest cosines (Q, most), falling, and the indices of their train images."""
    best, indices = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for first in range(0, len(train), TRAIN_ROWS):
        cosines = queries @ train[first : first + TRAIN_ROWS].T
        values, places = cosines.topk(min(most, cosines.shape[1]), dim=1)
        both, all_indices = torch.cat([best, values], dim=1), torch.cat([indices, places + first], dim=1)
        best, chosen = both.topk(min(most, both.shape[1]), dim=1)
        indices = all_indices.gather(1, chosen)
    return best, indices
