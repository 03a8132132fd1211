"""Solve the same problems with numpy and scikit-learn, as others do."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.benchmark.probes.features import FeatureSet
from pipeline.benchmark.turns import REPOSITORY
from pipeline.evaluation.protocols.few_shot import L2_PENALTY
from pipeline.evaluation.protocols.ridge import BIAS_FEATURE, STD_EPS

Array = NDArray[Any]


def few_shot_by_eigenvalues(data: FeatureSet, support: Array, *, dtype: type[np.floating[Any]]) -> Array:
    """Return predicted classes (M,) by the algorithm of big_vision's `evaluators/fewshot_lsr.py`.

    A symmetric eigendecomposition in the smaller dimension, dense targets, and standardised test features for every fit.
    """
    x = data.train[support].astype(dtype)
    mean, std = x.mean(axis=0), x.std(axis=0) + dtype(STD_EPS)

    def prepare(values: Array) -> Array:
        return np.pad((values - mean) / std, ((0, 0), (0, 1)), constant_values=BIAS_FEATURE)

    x = prepare(x)
    targets = 2 * np.eye(data.sizes.classes, dtype=dtype)[data.train_labels[support]] - 1
    if x.shape[0] >= x.shape[1]:
        values, vectors = np.linalg.eigh(x.T @ x)
        left, right = vectors, vectors.T @ (x.T @ targets)
    else:
        values, vectors = np.linalg.eigh(x @ x.T)
        left, right = x.T @ vectors, vectors.T @ targets
    weight = (left / (values + dtype(L2_PENALTY))) @ right
    return (prepare(data.test.astype(dtype)) @ weight).argmax(axis=1)


def why_no_scikit_learn() -> str | None:
    """Return why scikit-learn is left out; None where it is installed."""
    reference = REPOSITORY / ".reference" / "scientific"
    if importlib.util.find_spec("sklearn") is None and reference.is_dir():
        sys.path.append(str(reference))
    if importlib.util.find_spec("sklearn") is not None:
        return None
    return "scikit-learn is left out: it is not installed (`make test` installs it, or `pip install scikit-learn`)"


def logistic_by_scikit_learn(
    features: Array, labels: Array, *, penalties: Sequence[float], tolerance: float
) -> Iterator[tuple[Array, Array]]:
    """Yield weight (D, C) and bias (C,) of each penalty, each fit beginning from the last. There are three classes or more.

    Args:
        features: (N, D), standardised.
    """
    linear_model = importlib.import_module("sklearn.linear_model")
    model = linear_model.LogisticRegression(warm_start=True, tol=tolerance, max_iter=20_000)
    for penalty in penalties:
        model.set_params(C=1 / (penalty * len(features)))  # scikit-learn sums the losses
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of line searches that rounding ends: the objective is computed anyway
            model.fit(features, labels)
        yield model.coef_.T.astype(np.float64), model.intercept_.astype(np.float64)
