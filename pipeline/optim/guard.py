"""Let optimizers refuse steps whose gradients are not finite, clip the others, and average the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pipeline.optim.average import AVERAGE
from pipeline.optim.parts import Layout


class GuardedOptimizer(torch.optim.Optimizer):
    """Guards an optimizer of torch, as a base class before it: `class GuardedAdamW(GuardedOptimizer, torch.optim.AdamW)`.

    DeepSpeed's ZeRO optimizers (stages 1-3) check and clip themselves, before they call the optimizer that they wrap. At
    stage 0 nothing checks, and DeepSpeed's own clipping hides the norm it clipped, so there `guard_steps` is called once.
    At stage 3 a step is one call for each flat part, so nothing here counts calls: `num_updates` is set from outside.
    """

    state_names: ClassVar[tuple[str, ...]]  # see `OptimizerSection`

    def __init__(self, params: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(params, *arguments, **options)
        self.overflow = False  # what DeepSpeed's engine asks after each step
        self.gradient_norm: Tensor | None = None  # the last step's, before clipping
        self.layout = Layout()
        self.num_updates = 0  # taken before the coming one
        self._guarded = False
        self._clip_norm: float | None = None
        self._average_decay: Callable[[int], float] | None = None
        # By the model's own parameters: ZeRO puts flat ones in their place.
        self._names_of = {id(p): self.names_for(group) for group in self.param_groups for p in group["params"]}

    def names_for(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Return the names of what is kept for the parameters of a group, except the average."""
        return self.state_names

    def state_names_of(self, parameter: nn.Parameter) -> tuple[str, ...]:
        """Return the names of what is kept for one of the model's parameters."""
        return self._names_of[id(parameter)] + self._average_names()

    def _average_names(self) -> tuple[str, ...]:
        return () if self._average_decay is None else (AVERAGE,)

    def first_state(self, tensor: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        """Return what is kept for a tensor before the first step: zeros, and for the average the weights themselves."""
        zeros = {name: torch.zeros_like(tensor) for name in self.names_for(group)}
        return {**zeros, **{name: tensor.detach().clone() for name in self._average_names()}}

    def average_weights(self, decay_at: Callable[[int], float]) -> None:
        """Keep a running average of the weights from now on.

        Args:
            decay_at: number of the update, counted from 1, to the decay.
        """
        self._average_decay = decay_at

    def set_learning_rate(self, value: float) -> None:
        """Set the learning rate of the coming step, in every group by its scale."""
        for group in self.param_groups:
            group["lr"] = value * group.get("lr_scale", 1.0)

    def guard_steps(self, *, clip_norm: float | None) -> None:
        """Check every step from now on; cut the global gradient norm to `clip_norm` where one is given."""
        self._guarded = True
        self._clip_norm = clip_norm

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if self._guarded:
            self.gradient_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
            self.overflow = not bool(torch.isfinite(self.gradient_norm))
            if self.overflow:
                return None
            if self._clip_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, self._clip_norm, self.gradient_norm)
        result = super().step(closure)
        if self._average_decay is not None:
            for p in parameters:
                self.state[p][AVERAGE].lerp_(p, 1.0 - self._average_decay(self.num_updates + 1))
        return result
