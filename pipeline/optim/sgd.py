"""Optimize by stochastic gradient descent with momentum."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from pipeline.optim.base import DecayRule, OptimizerSection
from pipeline.optim.guard import GuardedOptimizer


class SGD(OptimizerSection):
    """Configures SGD with momentum (`torch.optim.SGD`).

    By default the weight decay is coupled: it is added to the gradient, before the momentum. big_vision's recipes decouple it.
    """

    name: Literal["sgd"] = "sgd"
    weight_decay_rule: DecayRule = Field(
        default="coupled", description="what weight_decay is multiplied by; docs/optimizers.md"
    )
    momentum: float = Field(default=0.9, gt=0, lt=1, description="paper, Table 4 (fine-tuning)")
    nesterov: bool = False

    state_names: ClassVar[tuple[str, ...]] = ("momentum_buffer",)
    decay_rules: ClassVar[tuple[DecayRule, ...]] = ("coupled", "decoupled_lr", "decoupled_schedule")

    def build_from_groups(self, groups: Iterable[dict[str, Any]], *, fused: bool) -> GuardedOptimizer:
        options = {"lr": self.learning_rate, "momentum": self.momentum, "nesterov": self.nesterov, "fused": fused or None}
        if self.weight_decay_rule == "coupled":
            return GuardedSGD(groups, **options)
        apart = [{**group, "weight_decay": 0.0, "decoupled": group.get("weight_decay", 0.0)} for group in groups]
        return GuardedSGDW(apart, **options)


class GuardedSGD(GuardedOptimizer, torch.optim.SGD):
    """Guards the steps of `torch.optim.SGD`."""

    state_names: ClassVar[tuple[str, ...]] = SGD.state_names


class SGDW(torch.optim.SGD):
    """Decays the weights by lr * `decoupled`, which each group has, then steps as `torch.optim.SGD` (arXiv 1711.05101).

    This is algorithm 1 of the paper.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"] if group["decoupled"] else ():
                if p.grad is not None:
                    p.mul_(1.0 - group["lr"] * group["decoupled"])
        return super().step(closure)


class GuardedSGDW(GuardedOptimizer, SGDW):
    """Guards the steps of SGD with decoupled weight decay."""

    state_names: ClassVar[tuple[str, ...]] = SGD.state_names
