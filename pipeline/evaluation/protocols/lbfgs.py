"""Keep the pairs of L-BFGS, and multiply with its inverse Hessian (Nocedal and Wright, Numerical Optimization, section 7.2).

The two loops over the pairs become two triangular systems, so that all vectors are read in four matrix products.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_LEAST_CURVATURE = 1e-10  # s'y over |s||y|; rounding may make it negative


class Pairs:
    """Holds the newest steps s and changes of the gradient y, in fp32: they are a preconditioner, and need no more digits.

    Args:
        shape: of the parameters.
        memory: number of pairs.
    """

    def __init__(self, shape: torch.Size, *, memory: int, device: torch.device) -> None:
        self.shape = shape
        self.steps = torch.zeros(memory, shape.numel(), device=device)  # rows in a ring
        self.changes = torch.zeros(memory, shape.numel(), device=device)
        self.inner = torch.zeros(memory, memory, dtype=torch.float64, device=device)  # s_i'y_j, for s_i not newer than y_j
        self.rows: list[int] = []  # from the oldest to the newest

    def add(self, step: Tensor, change: Tensor) -> None:
        """Keep a pair, in the place of the oldest if there is no other. One without curvature is left out."""
        s, y = step.flatten().float(), change.flatten().float()
        if float(s @ y) <= _LEAST_CURVATURE * float(s.norm() * y.norm()):
            return
        row = self.rows.pop(0) if len(self.rows) == len(self.steps) else len(self.rows)
        self.rows.append(row)
        self.steps[row], self.changes[row] = s, y
        self.inner[:, row] = (self.steps @ y).double()

    def add_curvature(self, curvature: Tensor) -> None:
        """Turn the pairs into those of an objective with curvature / 2 * w^2 more; those without curvature are left out.

        Args:
            curvature: of each parameter; broadcast to the shape of the parameters.
        """
        self.changes += self.steps * curvature.expand(self.shape).flatten()
        self.inner = (self.steps @ self.changes.T).double()
        diagonal = self.inner.diagonal()
        sizes = (self.steps.norm(dim=1) * self.changes.norm(dim=1)).double()
        kept = (diagonal > _LEAST_CURVATURE * sizes).tolist()
        while self.rows and not all(kept[row] for row in self.rows):  # rings have no holes: what is older goes too
            self.rows = self.rows[1:]
        self._compact()

    def _compact(self) -> None:
        count = len(self.rows)
        self.steps[:count], self.changes[:count] = self.steps[self.rows], self.changes[self.rows]
        self.inner[:count, :count] = self.inner[self.rows][:, self.rows]
        self.rows = list(range(count))

    def direction(self, gradient: Tensor, precondition: Callable[[Tensor], Tensor]) -> Tensor:
        """Return minus the inverse Hessian times the gradient.

        Args:
            precondition: multiplies with an inverse Hessian that is known beforehand.
        """
        if not self.rows:
            return -precondition(gradient)
        count = len(self.rows)
        order = torch.tensor(self.rows, device=gradient.device)
        inner = self.inner[order][:, order]
        upper, diagonal = inner.triu(), inner.diagonal()
        steps, changes = self.steps[:count], self.changes[:count]
        g = gradient.flatten()
        weights = torch.linalg.solve_triangular(upper, (steps @ g).double()[order][:, None], upper=True)[:, 0]
        back = torch.empty_like(weights)
        back[order] = weights
        rest = precondition((g - back.float() @ changes).view(self.shape)).flatten()
        right = diagonal * weights - (changes @ rest).double()[order]
        corrections = torch.linalg.solve_triangular(upper.T, right[:, None], upper=False)[:, 0]
        back[order] = corrections
        return -(rest + back.float() @ steps).view(self.shape)
