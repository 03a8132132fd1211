"""Optimizers that can refuse a step whose gradients are not finite, and clip the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor


class GuardedOptimizer(torch.optim.Optimizer):
    """Mixed in before an optimizer of torch: `class GuardedAdamW(GuardedOptimizer, torch.optim.AdamW)`.

    DeepSpeed's ZeRO optimizers (stages 1-3) check and clip themselves, before they call the optimizer that they wrap. At
    stage 0 nothing checks, and DeepSpeed's own clipping hides the norm it clipped, so there `guard_steps` is called once.
    """

    state_names: ClassVar[tuple[str, ...]]  # see `OptimizerSection`

    def __init__(self, params: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(params, *arguments, **options)
        self.overflow = False  # what DeepSpeed's engine asks after each step
        self.gradient_norm: Tensor | None = None  # of the last step, before clipping
        self._guarded = False
        self._clip_norm: float | None = None

    def guard_steps(self, *, clip_norm: float | None) -> None:
        """Check every step from now on; cut the global gradient norm to `clip_norm` where one is given."""
        self._guarded = True
        self._clip_norm = clip_norm

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        if self._guarded:
            parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
            self.gradient_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
            self.overflow = not bool(torch.isfinite(self.gradient_norm))
            if self.overflow:
                return None
            if self._clip_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, self._clip_norm, self.gradient_norm)
        return super().step(closure)
