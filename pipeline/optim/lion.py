"""Optimize by Lion: the update is the sign of a momentum. The state is half of Adam's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from pipeline.optim.adamw import Beta
from pipeline.optim.base import DecayRule, OptimizerSection
from pipeline.optim.guard import GuardedOptimizer


class Lion(OptimizerSection):
    """Configures Lion (arXiv 2302.06675, algorithm 2), with decoupled weight decay.

    Its authors advise a learning rate 3 to 10 times lower than AdamW's, and a weight decay as many times higher (section 5).
    """

    name: Literal["lion"] = "lion"
    betas: tuple[Beta, Beta] = Field(
        default=(0.9, 0.99), description="decay in the sign's mean, and of the momentum that is kept"
    )

    state_names: ClassVar[tuple[str, ...]] = ("exp_avg",)
    decay_rules: ClassVar[tuple[DecayRule, ...]] = ("decoupled_lr", "decoupled_schedule")

    def build_from_groups(self, groups: Iterable[dict[str, Any]], *, fused: bool) -> GuardedOptimizer:
        return GuardedLion(groups, {"lr": self.learning_rate, "betas": self.betas})


class LionUpdate(torch.optim.Optimizer):
    """Makes the update: update = sign(lerp(momentum, gradient, 1 - beta1)); momentum = lerp(momentum, gradient, 1 - beta2)."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                momentum = state["exp_avg"] if "exp_avg" in state else state.setdefault("exp_avg", torch.zeros_like(p))
                p.mul_(1.0 - group["lr"] * group["weight_decay"])
                p.add_(momentum.lerp(p.grad, 1.0 - beta1).sign_(), alpha=-group["lr"])
                momentum.lerp_(p.grad, 1.0 - beta2)
        return None


class GuardedLion(GuardedOptimizer, LionUpdate):
    """Guards the steps of Lion."""

    state_names: ClassVar[tuple[str, ...]] = Lion.state_names
