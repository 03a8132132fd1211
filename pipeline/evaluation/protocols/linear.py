"""Fit a linear probe: multinomial logistic regression on frozen features, its penalty chosen on a part of train.

The test split is used once, after the penalty is chosen and the classifier is fitted again on all of train.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.data.class_counts import ClassCounts
from pipeline.errors import EvaluationError
from pipeline.evaluation.measured import Measured
from pipeline.evaluation.protocols.base import FeatureProtocol, Setting
from pipeline.evaluation.protocols.classifier import Classifier
from pipeline.evaluation.protocols.logistic import GAP_TOLERANCE, Convergence, LogisticSolver, memory_bytes
from pipeline.evaluation.requirements import why_no_linear
from pipeline.evaluation.splits import Splits

HELD_OUT = 0.2  # part of train to choose the penalty on
CHOICE_TOLERANCE = 1e-6  # of the objective, for the classifiers that choose the penalty
LARGE_BYTES = 2**31  # memory that is announced before it is taken
PENALTIES = tuple(10.0**exponent for exponent in range(-5, 2))  # of the mean loss: 1e-5 to 10


class Linear(FeatureProtocol):
    """Fits multinomial logistic regression to all of train."""

    protocol: Literal["linear"] = "linear"

    def settings(self) -> list[Setting]:
        return [Setting("linear")]

    def measure(self, splits: Splits, setting: Setting) -> Measured:
        del setting
        needed = memory_bytes(images=len(splits.train), features=splits.train.shape[1], classes=splits.num_classes)
        if needed >= LARGE_BYTES:
            print(
                f"[eval] linear: {len(splits.train):,} images of {splits.num_classes:,} classes take about "
                f"{needed / 2**30:.1f} GiB next to their features",
                flush=True,
            )
        result = linear_probe(
            train_features=splits.train,
            train_labels=splits.train_labels,
            test_features=splits.test,
            test_labels=splits.test_labels,
            num_classes=splits.num_classes,
        )
        fit = result.convergence  # a classifier that is not at its optimum is not the one that the protocol names
        return Measured(
            result.accuracy,
            {
                "penalty": result.penalty,
                "held_out_accuracy": result.held_out_accuracy,
                "held_out_images": result.held_out_images,
                "converged": fit.converged,
                "iterations": fit.iterations,
                "gradient_norm": fit.gradient_norm,
                "objective_gap": fit.gap,
                "not_converged_penalties": list(result.not_converged),
            },
        )

    def why_impossible(self, train: ClassCounts) -> str | None:
        return why_no_linear(train)

    def warnings(self, row: dict[str, Any]) -> list[str]:
        found = []
        if row.get("converged") is False:
            found.append(
                f"WARNING: {row['dataset']} linear: the solver stopped before the optimum ({row['iterations']} "
                f"iterations, gradient norm {row['gradient_norm']:.2g}); the accuracy is of the classifier it had reached"
            )
        if row.get("not_converged_penalties"):
            found.append(
                f"WARNING: {row['dataset']} linear: the solver stopped before the optimum at penalties "
                f"{', '.join(f'{p:g}' for p in row['not_converged_penalties'])}, which may have changed the choice of "
                "the penalty"
            )
        return found


@dataclass(frozen=True)
class LinearProbe:
    """Holds a fitted classifier: logits are (x - mean) / std @ weight + bias."""

    weight: Tensor  # (D, C)
    bias: Tensor  # (C,)
    mean: Tensor  # (D,)
    std: Tensor  # (D,)
    convergence: Convergence

    def predict(self, features: Tensor) -> Tensor:
        """Map features (N, D) to class ids (N,)."""
        raw = self.weight / self.std[:, None]
        return Classifier(raw, self.bias - self.mean @ raw).predict(features)

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        return float((self.predict(features) == labels).double().mean())


@dataclass(frozen=True)
class LinearResult:
    """Holds test accuracy, and the penalty that the held-out part of train chose."""

    accuracy: float
    penalty: float
    held_out_accuracy: float
    held_out_images: int
    convergence: Convergence  # of the tested classifier
    not_converged: tuple[float, ...]  # penalties whose classifiers did not reach the tolerance when the penalty was chosen


def fit_logistic(
    features: Tensor, labels: Tensor, *, num_classes: int, penalty: float, start: LinearProbe | None = None
) -> LinearProbe:
    """Minimise mean cross-entropy + penalty / 2 * |weight|^2; the bias is free. Features are standardised first.

    Args:
        features: (N, D); labels: (N,) int64, every class of which has an image.
        start: a probe of similar features or another penalty. The minimum is unique: it changes nothing but the time.
    """
    begin = (start.weight, start.bias) if start else None
    (probe,) = fit_path(features, labels, num_classes=num_classes, penalties=[penalty], start=begin)
    return probe


def fit_path(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    penalties: Sequence[float],
    tolerance: float = GAP_TOLERANCE,
    start: tuple[Tensor, Tensor] | None = None,
) -> Iterator[LinearProbe]:
    """Yield the probe of each penalty, in the order given. Each begins from the last, so neighbours should be near.

    Args:
        tolerance: of the objective, relative to its minimum.
        start: weight (D, C) and bias (C,) to begin from.
    """
    solver = LogisticSolver(features, labels, num_classes=num_classes, start=start)
    for penalty in penalties:
        solution = solver.solve(penalty, tolerance=tolerance)
        yield LinearProbe(solution.weight, solution.bias, solver.data.mean, solver.data.std, solution.convergence)


def split_train(labels: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
    """Return indices to fit on and to choose on: `HELD_OUT` of every class, at least one image where it has two."""
    generator = np.random.default_rng(seed)
    fit: list[np.ndarray] = []
    choose: list[np.ndarray] = []
    for label in np.unique(labels.numpy()):
        members = generator.permutation(np.flatnonzero(labels.numpy() == label))
        held = max(1, round(HELD_OUT * len(members))) if len(members) > 1 else 0
        choose.append(members[:held])
        fit.append(members[held:])
    return torch.from_numpy(np.concatenate(fit)), torch.from_numpy(np.concatenate(choose))


def linear_probe(
    *, train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor, num_classes: int, seed: int = 0
) -> LinearResult:
    """Choose the penalty on a part of train, fit on all of train, report on test.

    Args:
        train_labels: every class has an image.

    Raises:
        EvaluationError: no class has two images in train, so nothing can be held out.
    """
    if (reason := why_no_linear(ClassCounts.of_labels(train_labels.cpu()))) is not None:
        raise EvaluationError(reason)
    fit, choose = (part.to(train_labels.device) for part in split_train(train_labels.cpu(), seed=seed))
    path = tuple(reversed(PENALTIES))  # the strongest first: each solution is near the one before
    fits = fit_path(train_features[fit], train_labels[fit], num_classes=num_classes, penalties=path, tolerance=CHOICE_TOLERANCE)
    probes = dict(zip(path, fits, strict=True))
    scores = {penalty: probe.accuracy(train_features[choose], train_labels[choose]) for penalty, probe in probes.items()}
    best = max(scores.values())
    penalty = max(p for p, score in scores.items() if score == best)  # the strongest of equals
    probe = fit_logistic(train_features, train_labels, num_classes=num_classes, penalty=penalty, start=probes[penalty])
    return LinearResult(
        accuracy=probe.accuracy(test_features, test_labels),
        penalty=penalty,
        held_out_accuracy=best,
        held_out_images=len(choose),
        convergence=probe.convergence,
        not_converged=tuple(p for p, fitted in probes.items() if not fitted.convergence.converged),
    )
