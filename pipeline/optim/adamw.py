"""Optimizer and parameter groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

Decayed = Literal["kernels", "all"]


def parameter_groups(model: nn.Module, *, weight_decay: float, decayed: Decayed) -> list[dict[str, Any]]:
    """Split parameters by whether they decay.

    `kernels`: the matrices of dense layers and the patch embedding decay; biases, LayerNorms, position embeddings
    and the class token do not. The paper does not say; this is the common reading of its code. `all` decays
    everything.
    """
    kernels = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with_decay = [p for p in parameters if decayed == "all" or id(p) in kernels]
    without = [p for p in parameters if not (decayed == "all" or id(p) in kernels)]
    groups = [{"params": with_decay, "weight_decay": weight_decay}, {"params": without, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class GuardedAdamW(torch.optim.AdamW):
    """`torch.optim.AdamW` that can refuse a step whose gradients are not finite, and clip the others.

    DeepSpeed's ZeRO optimizers (stages 1-3) do both themselves, before they call this one. At stage 0 nothing checks,
    and DeepSpeed's own clipping hides the norm it clipped, so there `guard_steps` is called once.
    """

    def __init__(self, params: Iterable[Any], **options: Any) -> None:
        super().__init__(params, **options)
        self.overflow = False  # what DeepSpeed's engine asks after each step
        self.gradient_norm: Tensor | None = None  # of the last step, before clipping
        self._guarded = False
        self._clip_norm: float | None = None

    def guard_steps(self, *, clip_norm: float | None) -> None:
        """Check every step from now on; cut the global gradient norm to `clip_norm` where one is given."""
        self._guarded = True
        self._clip_norm = clip_norm

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        if self._guarded:
            parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
            self.gradient_norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
            self.overflow = not bool(torch.isfinite(self.gradient_norm))
            if self.overflow:
                return None
            if self._clip_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, self._clip_norm, self.gradient_norm)
        return super().step(closure)
