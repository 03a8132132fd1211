"""Fit multinomial logistic regression to a proven tolerance, for one penalty or a path of them.

L-BFGS begins from a preconditioner: the inverse of features' covariance (x) classes' covariance + penalty, a Kronecker product,
which is the Hessian where all images have the same probabilities. Pairs are kept from one penalty to the next, with their
curvature corrected. Passes are in fp32; the last ones are in fp64, in which the tolerance is checked.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.evaluation.protocols.cross_entropy import STORED_BYTES, CrossEntropy, Line, Point
from pipeline.evaluation.protocols.lbfgs import Pairs

GAP_TOLERANCE = 1e-9  # relative to the objective: how far above its minimum it may be, at most
FP32_GAP = 1e-7  # fp32 cannot show much less
MAX_ITERATIONS = 5000
MOST_PAIRS, FEWEST_PAIRS, PAIRS_BYTES = 50, 10, 2**30
MOST_CLASSES = 4096  # whose covariance is decomposed; of more only the diagonal is used
SLOPE_PART = 0.2  # of the slope at the beginning, that a step may leave
MAX_TRIALS = 30  # of step lengths
PATIENCE = 300  # iterations without a smaller gap: rounding


@dataclass(frozen=True)
class Convergence:
    """Says how a solver ended."""

    converged: bool
    iterations: int
    gradient_norm: float  # Euclidean norm of the objective's gradient at the solution, in fp64
    gap: float  # bound on the relative distance from the minimum
    objective: float  # in fp64


@dataclass(frozen=True)
class Solution:
    """Holds coefficients of standardised features: logits are (x - mean) / std @ weight + bias."""

    weight: Tensor  # (D, C)
    bias: Tensor  # (C,)
    convergence: Convergence


@dataclass(frozen=True)
class _State:
    """Holds the objective at a point."""

    point: Point
    objective: float
    gradient: Tensor  # (D + 1, C)
    gap: float


class LogisticSolver:
    """Minimises mean cross-entropy + penalty / 2 * |weight|^2 for one penalty after the other. The bias is free.

    Args:
        features: (N, D); labels: (N,) int64, every class of which has an image.
        start: weight (D, C) and bias (C,) to begin from; if not given, zeros and the log frequencies.
    """

    def __init__(
        self, features: Tensor, labels: Tensor, *, num_classes: int, start: tuple[Tensor, Tensor] | None = None
    ) -> None:
        self.data = CrossEntropy(features, labels, num_classes=num_classes)
        shape = torch.Size([features.shape[1] + 1, num_classes])
        device = features.device
        if start is None:  # the solution without weights: it matters to rare classes
            bias = torch.bincount(labels, minlength=num_classes).double().log()
            start = torch.zeros(features.shape[1], num_classes, device=device), bias - bias.mean()
        self.weight = torch.cat([start[0], start[1][None]]).double()
        self.pairs = Pairs(shape, memory=_num_pairs(*shape), device=device)
        self.penalised = torch.ones(shape[0], 1, dtype=torch.float64, device=device)
        self.penalised[-1] = 0.0
        self.feature_values, self.feature_vectors = torch.linalg.eigh(self.data.covariance())
        self._decomposes = num_classes <= MOST_CLASSES
        self._penalty: float | None = None

    def solve(self, penalty: float, *, tolerance: float = GAP_TOLERANCE) -> Solution:
        """Minimise from the last solution.

        It has converged when a bound on how far the objective is above its minimum is at most `tolerance` of the objective:
        |g|^2 / (2 penalty) by the weight's gradient, as the objective is strongly convex there, and what a Newton step of the
        bias alone would gain.
        """
        if self._penalty is not None:
            self.pairs.add_curvature((penalty - self._penalty) * self.penalised.float())
        self._penalty = penalty
        iterations = 0
        precondition: _Preconditioner | None = None
        for dtype, goal in ((torch.float32, max(0.8 * tolerance, FP32_GAP)), (torch.float64, tolerance)):
            point = self.data.start(self.weight, dtype=dtype)
            precondition = precondition or _Preconditioner(self, point.class_covariance(whole=self._decomposes))
            state, used = self._descend(self._evaluate(point, precondition), precondition, goal=goal)
            self.weight = state.point.weight
            iterations += used
        convergence = Convergence(state.gap <= tolerance, iterations, float(state.gradient.norm()), state.gap, state.objective)
        return Solution(self.weight[:-1].clone(), self.weight[-1].clone(), convergence)

    def _evaluate(self, point: Point, precondition: _Preconditioner) -> _State:
        assert self._penalty is not None
        penalties = self._penalty * self.penalised
        loss, gradient = point.gradient()
        gradient += penalties * point.weight
        objective = loss + 0.5 * float((penalties * point.weight.square()).sum())
        of_weight = float(gradient[:-1].square().sum()) / (2 * self._penalty)
        of_bias = 0.5 * float((gradient[-1:] * precondition.of_bias(gradient[-1:].float())).sum())
        return _State(point, objective, gradient, (of_weight + of_bias) / objective)

    def _descend(self, state: _State, precondition: _Preconditioner, *, goal: float) -> tuple[_State, int]:
        """Iterate until the gap is at most `goal`, or rounding ends it. Return the number of iterations too."""
        best, since = state.gap, 0
        for iteration in range(MAX_ITERATIONS):
            if state.gap <= goal or since > PATIENCE:
                return state, iteration
            direction = self.pairs.direction(state.gradient.float(), precondition).double()
            line = state.point.line(direction)
            length = self._search(line, slope=float((state.gradient * direction).sum()))
            if length is None:
                return state, iteration
            before, start = state.gradient, state.point.weight
            state = self._evaluate(line.move(length), precondition)
            self.pairs.add(state.point.weight - start, state.gradient - before)
            best, since = (state.gap, 0) if state.gap < best else (best, since + 1)
        return state, MAX_ITERATIONS

    def _search(self, line: Line, *, slope: float) -> float | None:
        """Return a length at which most of the slope is gone; None if there is no descent. The function is convex."""
        assert self._penalty is not None
        if not slope < 0:
            return None
        weight, direction = line.point.weight[:-1], line.direction[:-1]
        at_zero = self._penalty * float((weight * direction).sum())
        rate = self._penalty * float(direction.square().sum())
        low, low_slope, high, length = 0.0, slope, None, 1.0
        for _ in range(MAX_TRIALS):
            found = line.slope(length) + at_zero + rate * length
            if abs(found) <= SLOPE_PART * -slope:
                return length
            secant = length - found * (length - low) / (found - low_slope) if found > low_slope else 4 * length
            if found < 0:
                low, low_slope = length, found
            else:
                high = length
            if high is None:
                length = min(max(secant, 1.5 * length), 4 * length)
            else:
                margin = 0.1 * (high - low)
                length = min(max(secant, low + margin), high - margin)
        return low or None


class _Preconditioner:
    """Applies the inverse of features' covariance (x) classes' covariance + penalty; for the bias, of the classes' part."""

    def __init__(self, solver: LogisticSolver, covariance: Tensor) -> None:
        if covariance.ndim == 2:
            values, self.class_vectors = torch.linalg.eigh(covariance)
        else:
            values, self.class_vectors = covariance, None
        self.feature_vectors = solver.feature_vectors
        assert solver._penalty is not None
        self.inverse = 1.0 / (solver.feature_values.clamp_min(0)[:, None] * values.clamp_min(0) + solver._penalty)  # (D, C)
        floor = 1e-6 * values.max().clamp_min(1e-30)  # a constant added to every bias changes nothing
        self.bias_inverse = torch.where(values > floor, 1.0 / values.clamp_min(1e-30), 0.0)  # (C,)

    def __call__(self, gradient: Tensor) -> Tensor:
        rotated = self._rotate(self.feature_vectors.T @ gradient[:-1]) * self.inverse
        return torch.cat([self.feature_vectors @ self._rotate_back(rotated), self.of_bias(gradient[-1:])])

    def of_bias(self, gradient: Tensor) -> Tensor:
        """Apply the part of the bias to its gradient (1, C)."""
        return self._rotate_back(self._rotate(gradient) * self.bias_inverse)

    def _rotate(self, values: Tensor) -> Tensor:
        return values if self.class_vectors is None else values @ self.class_vectors

    def _rotate_back(self, values: Tensor) -> Tensor:
        return values if self.class_vectors is None else values @ self.class_vectors.T


def _num_pairs(features: int, classes: int) -> int:
    return min(MOST_PAIRS, max(FEWEST_PAIRS, PAIRS_BYTES // (8 * features * classes)))


def memory_bytes(*, images: int, features: int, classes: int) -> int:
    """Return about how much memory a solver takes, next to the features that it is given."""
    logits = min(2 * 8 * images * classes, STORED_BYTES)
    pairs = 8 * (features + 1) * classes * _num_pairs(features + 1, classes)
    vectors = 8 * 8 * (features + 1) * classes  # weight, gradient, direction, in fp64, and copies
    return 4 * images * features + logits + pairs + vectors + 4 * 3 * min(classes, MOST_CLASSES) ** 2 + 4 * 3 * features**2
