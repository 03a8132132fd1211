"""Count how many images each class has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class ClassCounts:
    """Holds the classes that have images, by ascending id, and how many each has: two arrays of one length."""

    ids: NDArray[np.int64]
    images: NDArray[np.int64]  # at least one for each class

    @classmethod
    def of_labels(cls, labels: ArrayLike) -> ClassCounts:
        """Count labels, one class id an image."""
        return cls(*np.unique(np.asarray(labels, np.int64), return_counts=True))

    @classmethod
    def join(cls, parts: Iterable[Mapping[int, int]]) -> ClassCounts:
        """Return the sum of several counts, each of images by class id."""
        total: dict[int, int] = {}
        for part in parts:
            for label, count in part.items():
                total[label] = total.get(label, 0) + count
        ids = sorted(total)
        return cls(np.array(ids, np.int64), np.array([total[label] for label in ids], np.int64))

    @property
    def num_images(self) -> int:
        return int(self.images.sum())

    def check(self, num_labels: int | None) -> None:
        """Refuse what no data can have.

        Args:
            num_labels: of all images; None where images have several, and nobody has counted them.

        Raises:
            ValueError: not ascending, a class without images, or another total.
        """
        if len(self.ids) != len(self.images) or (np.diff(self.ids, prepend=-1) <= 0).any() or (self.images < 1).any():
            raise ValueError("its classes are not in order")
        if num_labels is not None and self.num_images != num_labels:
            raise ValueError("its images of each class are not as many as its samples with a label")
