"""Optimize by LAMB, for large batches: Adam's update is scaled, for each parameter, to the norm of its weights.

DeiT III uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from pipeline.optim.adamw import Beta
from pipeline.optim.base import DecayRule, OptimizerSection
from pipeline.optim.guard import GuardedOptimizer
from pipeline.optim.parts import Layout


class Lamb(OptimizerSection):
    """Configures LAMB (arXiv 1904.00962, algorithm 2) as timm and NVIDIA's Apex write it.

    update = Adam's + weight_decay * p; p -= lr * |p| / |update| * update, with the norms of whole parameters. What does not
    decay is not scaled either, unless `always_adapt`. timm and Apex clip the global gradient norm to 1 inside; here that is
    `clip_norm`.
    """

    name: Literal["lamb"] = "lamb"
    weight_decay_rule: DecayRule = Field(
        default="in_update", description="weight decay is a part of the update, before the trust ratio"
    )
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(default=1e-6, gt=0)
    always_adapt: bool = Field(False, description="scale the update of what does not decay too")

    state_names: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")
    decay_rules: ClassVar[tuple[DecayRule, ...]] = ("in_update",)

    def build_from_groups(self, groups: Iterable[dict[str, Any]], *, fused: bool) -> GuardedOptimizer:
        defaults = {"lr": self.learning_rate, "betas": self.betas, "eps": self.eps, "always_adapt": self.always_adapt}
        return GuardedLamb(groups, defaults)


class LambUpdate(torch.optim.Optimizer):
    """Makes the update. `layout` says which parameters the tensors are parts of, and gives their norms."""

    layout: Layout

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._step_group(group, params)
        return None

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        updates = [self._adam_update(p, betas=group["betas"], eps=group["eps"]) for p in params]
        for p, update in zip(params, updates, strict=True):
            update.add_(p, alpha=group["weight_decay"])
        if group["weight_decay"] or group["always_adapt"]:
            self._adapt(params, updates)
        for p, update in zip(params, updates, strict=True):
            p.add_(update, alpha=-group["lr"])

    def _adapt(self, params: list[Tensor], updates: list[Tensor]) -> None:
        """Give each parameter's update the norm of its weights; a norm of zero changes nothing. A collective under ZeRO."""
        parts = [(p, update, part) for p, update in zip(params, updates, strict=True) for part in self.layout.parts_of(p)]
        pieces = [part.of(update) for _, update, part in parts]
        weight_norms, update_norms = self.layout.norms([*(part.of(p) for p, _, part in parts), *pieces]).chunk(2)
        ratios = torch.where((weight_norms > 0) & (update_norms > 0), weight_norms / update_norms, 1.0)
        for piece, ratio in zip(pieces, ratios, strict=True):
            piece.mul_(ratio)

    def _adam_update(self, p: Tensor, *, betas: tuple[float, float], eps: float) -> Tensor:
        """Return Adam's update without the learning rate, from moments that are corrected for their beginning at zero."""
        assert p.grad is not None
        state = self.state[p]
        if "step" not in state:
            state.update(step=torch.zeros(()), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        state["step"] += 1
        count, (beta1, beta2) = int(state["step"]), betas
        state["exp_avg"].lerp_(p.grad, 1.0 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(p.grad, p.grad, value=1.0 - beta2)
        root = state["exp_avg_sq"].sqrt().div_((1.0 - beta2**count) ** 0.5).add_(eps)
        return (state["exp_avg"] / (1.0 - beta1**count)).div_(root)


class GuardedLamb(GuardedOptimizer, LambUpdate):
    """Guards the steps of LAMB."""

    state_names: ClassVar[tuple[str, ...]] = Lamb.state_names
