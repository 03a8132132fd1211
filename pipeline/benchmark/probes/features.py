"""Make or read the features that the solvers are compared on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.evaluation.embedding_files import read_features_of

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]
SEPARATION = 0.3  # of the class centres, in deviations: linear classifiers are right on some test images, not on all


@dataclass(frozen=True)
class Sizes:
    """Says how large a set of features is."""

    images: int
    width: int
    classes: int
    tests: int


@dataclass(frozen=True)
class FeatureSet:
    """Holds the features of two splits. Labels are from 0 without gaps."""

    train: Floats  # (N, D)
    train_labels: Labels  # (N,)
    test: Floats  # (M, D)
    test_labels: Labels  # (M,); -1 for a class that train does not have

    @property
    def sizes(self) -> Sizes:
        return Sizes(len(self.train), self.train.shape[1], int(self.train_labels.max()) + 1, len(self.test))


def make_features(sizes: Sizes) -> FeatureSet:
    """Draw a mixture of Gaussians, one a class, whose features depend on each other and differ in scale."""
    generator = np.random.default_rng(0)
    scales = np.arange(1, sizes.width + 1) ** -0.5
    mixing = scales[:, None] * generator.normal(size=(sizes.width, sizes.width)) / sizes.width**0.5
    centres = SEPARATION * generator.normal(size=(sizes.classes, sizes.width))

    def draw(labels: Labels) -> Floats:
        parts = np.array_split(labels, max(1, len(labels) // 10_000))
        made = [
            ((centres[part] + generator.normal(size=(len(part), sizes.width))) @ mixing).astype(np.float32) for part in parts
        ]
        return np.concatenate(made)

    train_labels, test_labels = np.arange(sizes.images) % sizes.classes, np.arange(sizes.tests) % sizes.classes
    return FeatureSet(draw(train_labels), train_labels, draw(test_labels), test_labels)


def read_feature_set(train: Path, test: Path) -> FeatureSet:
    """Read what `embed` wrote of two splits.

    Raises:
        DataError: a split has no features.
        ConfigError: a split has not one label an image, or the features differ in number.
    """
    values: list[Floats] = []
    labels: list[Labels] = []
    for path in (train, test):
        found = read_features_of(path)
        features = next(iter(found.values.values()))
        if features.ndim != 2 or len(found.labels) != len(features):
            raise ConfigError(
                f"--features {path}: it has no vector and label for each image; embed it with --features features"
            )
        values.append(np.asarray(features, dtype=np.float32))
        labels.append(np.asarray(found.labels, dtype=np.int64))
    if values[0].shape[1] != values[1].shape[1]:
        raise ConfigError(f"--features: {train} has {values[0].shape[1]} features an image, {test} {values[1].shape[1]}")
    classes, train_labels = np.unique(labels[0], return_inverse=True)
    places = np.searchsorted(classes, labels[1]).clip(max=len(classes) - 1)
    test_labels = np.where(classes[places] == labels[1], places, -1)
    return FeatureSet(values[0], train_labels.astype(np.int64), values[1], test_labels.astype(np.int64))
