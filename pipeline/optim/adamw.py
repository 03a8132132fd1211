"""Optimize by Adam with decoupled weight decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from pipeline.optim.base import DecayRule, OptimizerSection
from pipeline.optim.guard import GuardedOptimizer

Beta = Annotated[float, Field(ge=0, lt=1)]


class AdamW(OptimizerSection):
    """Configures Adam with decoupled weight decay (`torch.optim.AdamW`: each step subtracts lr * weight_decay * weight)."""

    name: Literal["adamw"] = "adamw"
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), description="paper, section 4.1")
    eps: float = Field(default=1e-8, gt=0)

    state_names: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")
    decay_rules: ClassVar[tuple[DecayRule, ...]] = ("decoupled_lr", "decoupled_schedule")

    def build_from_groups(self, groups: Iterable[dict[str, Any]], *, fused: bool) -> GuardedOptimizer:
        return GuardedAdamW(groups, lr=self.learning_rate, betas=self.betas, eps=self.eps, fused=fused or None)


class GuardedAdamW(GuardedOptimizer, torch.optim.AdamW):
    """Guards the steps of `torch.optim.AdamW`."""

    state_names: ClassVar[tuple[str, ...]] = AdamW.state_names
