"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from pipeline.optim.base import OptimizerSection
from pipeline.optim.guard import GuardedOptimizer


class SGD(OptimizerSection):
    """SGD with momentum (`torch.optim.SGD`). The weight decay is coupled: it is added to the gradient, before the momentum."""

    name: Literal["sgd"] = "sgd"
    momentum: float = Field(default=0.9, gt=0, lt=1, description="paper, Table 4 (fine-tuning)")
    nesterov: bool = False

    state_names: ClassVar[tuple[str, ...]] = ("momentum_buffer",)

    def build_from_groups(self, groups: Iterable[dict[str, Any]], *, fused: bool) -> GuardedOptimizer:
        return GuardedSGD(groups, lr=self.learning_rate, momentum=self.momentum, nesterov=self.nesterov, fused=fused or None)


class GuardedSGD(GuardedOptimizer, torch.optim.SGD):
    """`torch.optim.SGD` with guarded steps."""

    state_names: ClassVar[tuple[str, ...]] = SGD.state_names
