"""Fit multinomial logistic regression to a tolerance: by a Newton method with preconditioned conjugate gradients.

First-order methods need thousands of iterations where the penalty is weak. The Hessian is never formed: a product with it costs
two matrix products. Its preconditioner is a Kronecker product (features times classes), which is exact where all images
have the same probabilities, as at the start, and inverted by two small eigendecompositions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GRADIENT_TOLERANCE = 1e-6  # Euclidean norm
GAP_TOLERANCE = 1e-9  # relative to the objective: how far above its minimum it may be, at most
MAX_NEWTON_STEPS = 200
MAX_PRODUCTS = 20_000  # products with the Hessian, over all steps
MAX_PRODUCTS_A_STEP = 500
MAX_HALVINGS = 30
SUFFICIENT_DECREASE = 1e-4  # Armijo's rule


@dataclass(frozen=True)
class Convergence:
    """Says how a solver ended."""

    converged: bool
    iterations: int  # Newton steps
    products: int  # products with the Hessian, over all steps
    gradient_norm: float  # Euclidean norm of the objective's gradient at the solution
    objective: float


@dataclass(frozen=True)
class Solution:
    """Holds coefficients: logits are x @ weight + bias."""

    weight: Tensor  # (D, C)
    bias: Tensor  # (C,)
    convergence: Convergence


@dataclass(frozen=True)
class _Point:
    """Holds the objective and what its derivatives need, at some coefficients."""

    weight: Tensor  # (D + 1, C), the bias last
    objective: float
    probabilities: Tensor  # (N, C)
    gradient: Tensor  # (D + 1, C)


class _Problem:
    """Computes mean cross-entropy + penalty / 2 * |weight|^2; the bias is free."""

    def __init__(self, x: Tensor, labels: Tensor, *, num_classes: int, penalty: float) -> None:
        self.x = torch.nn.functional.pad(x, (0, 1), value=1.0)  # (N, D + 1)
        self.labels = labels
        self.num_classes = num_classes
        self.penalties = torch.full((x.shape[1] + 1, 1), penalty, dtype=x.dtype, device=x.device)
        self.penalties[-1] = 0.0

    def at(self, weight: Tensor) -> _Point:
        logits = self.x @ weight
        log_sums = logits.logsumexp(dim=1)
        rows = torch.arange(len(logits), device=logits.device)
        loss = (log_sums - logits[rows, self.labels]).mean()
        objective = float(loss + 0.5 * (self.penalties * weight.square()).sum())
        probabilities = logits.sub_(log_sums[:, None]).exp_()
        residuals = probabilities.clone()
        residuals[rows, self.labels] -= 1.0
        gradient = self.x.T @ residuals / len(self.x) + self.penalties * weight
        return _Point(weight, objective, probabilities, gradient)

    def multiply_hessian(self, point: _Point, direction: Tensor) -> Tensor:
        moved = (self.x @ direction).mul_(point.probabilities)
        moved.sub_(point.probabilities * moved.sum(dim=1, keepdim=True))
        return self.x.T @ moved / len(self.x) + self.penalties * direction


class _Preconditioner:
    """Applies the inverse of features' covariance (x) classes' covariance + penalty; for the bias, of the classes' part."""

    def __init__(self, problem: _Problem, point: _Point, *, penalty: float) -> None:
        p = point.probabilities
        certainty = 1.0 - p.square().sum(dim=1)  # the trace of an image's diag(p) - pp'
        total = certainty.sum().clamp_min(1e-300)
        features = problem.x[:, :-1]
        covariance = features.T @ (features * (certainty / total)[:, None])
        classes = (torch.diag(p.sum(dim=0)) - p.T @ p) / len(p)
        self.feature_values, self.feature_vectors = torch.linalg.eigh(covariance)
        self.class_values, self.class_vectors = torch.linalg.eigh(classes)
        scale = self.feature_values.clamp_min(0)[:, None] * self.class_values.clamp_min(0)[None, :] + penalty
        self.inverse = 1.0 / scale  # (D, C)
        floor = 1e-10 * self.class_values.max().clamp_min(1e-300)  # a constant added to every bias changes nothing
        self.bias_inverse = torch.where(self.class_values > floor, 1.0 / self.class_values.clamp_min(1e-300), 0.0)  # (C,)

    def __call__(self, residual: Tensor) -> Tensor:
        rotated = self.feature_vectors.T @ residual[:-1] @ self.class_vectors
        weight = self.feature_vectors @ (rotated * self.inverse) @ self.class_vectors.T
        bias = ((residual[-1:] @ self.class_vectors) * self.bias_inverse) @ self.class_vectors.T
        return torch.cat([weight, bias])


def solve_logistic(
    x: Tensor, labels: Tensor, *, num_classes: int, penalty: float, start: tuple[Tensor, Tensor] | None = None
) -> Solution:
    """Minimise mean cross-entropy + penalty / 2 * |weight|^2.

    It has converged when |gradient| is at most `GRADIENT_TOLERANCE`, and |gradient|^2 / (2 penalty), which bounds how far the
    objective is above its minimum, is at most `GAP_TOLERANCE` of the objective.

    Args:
        x: (N, D) fp64; labels: (N,) int64, every class of which has an image.
        penalty: positive.
        start: weight (D, C) and bias (C,) to begin from; zeros if not given. The minimum is unique.
    """
    problem = _Problem(x, labels, num_classes=num_classes, penalty=penalty)
    zeros = torch.zeros(x.shape[1] + 1, num_classes, dtype=x.dtype, device=x.device)
    point = problem.at(zeros if start is None else torch.cat([start[0], start[1][None]]))
    products = steps = 0
    converged = _has_converged(point, penalty)
    while not converged and steps < MAX_NEWTON_STEPS and products < MAX_PRODUCTS:
        direction, used = _newton_direction(problem, point, penalty=penalty)
        products += used
        steps += 1
        moved = _search_line(problem, point, direction)
        if moved is None:  # rounding: the objective does not fall any more
            break
        point = moved
        converged = _has_converged(point, penalty)
    return Solution(
        weight=point.weight[:-1],
        bias=point.weight[-1],
        convergence=Convergence(converged, steps, products, float(point.gradient.norm()), point.objective),
    )


def _has_converged(point: _Point, penalty: float) -> bool:
    return float(point.gradient.norm()) <= min(GRADIENT_TOLERANCE, (2 * penalty * GAP_TOLERANCE * point.objective) ** 0.5)


def _newton_direction(problem: _Problem, point: _Point, *, penalty: float) -> tuple[Tensor, int]:
    """Return the step to the minimum of the local quadratic, as precisely as is worthwhile, and the products it took."""
    precondition = _Preconditioner(problem, point, penalty=penalty)
    residual = -point.gradient
    step = torch.zeros_like(residual)
    z = precondition(residual)
    direction, rz = z, float((residual * z).sum())
    # The solution is rough far from the minimum and finer near it, so that the last steps converge faster than linearly.
    goal = rz * min(0.1, rz**0.5) ** 2
    for used in range(1, MAX_PRODUCTS_A_STEP + 1):
        product = problem.multiply_hessian(point, direction)
        curvature = float((direction * product).sum())
        if curvature <= 0:  # rounding
            return (step if used > 1 else direction), used
        length = rz / curvature
        step = step + length * direction
        residual = residual - length * product
        z = precondition(residual)
        rz, before = float((residual * z).sum()), rz
        if rz <= goal:
            return step, used
        direction = z + (rz / before) * direction
    return step, MAX_PRODUCTS_A_STEP


def _search_line(problem: _Problem, point: _Point, direction: Tensor) -> _Point | None:
    """Halve the step until the objective falls as Armijo's rule requires; None if it never does."""
    slope = float((point.gradient * direction).sum())
    length = 1.0
    for _ in range(MAX_HALVINGS):
        moved = problem.at(point.weight + length * direction)
        if moved.objective <= point.objective + SUFFICIENT_DECREASE * length * slope:
            return moved
        is_rounding = abs(length * slope) <= 1e-13 * abs(point.objective)
        if is_rounding and float(moved.gradient.norm()) < float(point.gradient.norm()):
            return moved
        length /= 2
    return None
