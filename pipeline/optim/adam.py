"""Optimize by Adam with coupled weight decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from pipeline.optim.adamw import Beta
from pipeline.optim.base import DecayRule, OptimizerSection
from pipeline.optim.guard import GuardedOptimizer


class Adam(OptimizerSection):
    """Configures Adam (arXiv 1412.6980). Weight decay is added to the gradient, before the moments (`torch.optim.Adam`)."""

    name: Literal["adam"] = "adam"
    weight_decay_rule: DecayRule = Field(
        default="coupled", description="weight decay is added to the gradient; for other rules use name=adamw"
    )
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), description="paper, section 4.1")
    eps: float = Field(default=1e-8, gt=0)

    state_names: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")
    decay_rules: ClassVar[tuple[DecayRule, ...]] = ("coupled",)

    def build_from_groups(self, groups: Iterable[dict[str, Any]], *, fused: bool) -> GuardedOptimizer:
        return GuardedAdam(groups, lr=self.learning_rate, betas=self.betas, eps=self.eps, fused=fused or None)


class GuardedAdam(GuardedOptimizer, torch.optim.Adam):
    """Guards the steps of `torch.optim.Adam`."""

    state_names: ClassVar[tuple[str, ...]] = Adam.state_names
