"""What every optimizer says of itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from pipeline.optim.groups import Decayed, parameter_groups
from pipeline.optim.guard import GuardedOptimizer
from pipeline.section import TOLD, Section

STATE_ELEMENT_BYTES = 4  # fp32


class OptimizerSection(Section):
    """The settings that every optimizer has.

    `state_names` are the tensors that the optimizer keeps for each parameter, of the parameter's shape, in fp32 and zero before
    the first step: ZeRO cuts them, checkpoints hold them, `plan` counts them.
    """

    learning_rate: float = Field(gt=0, description="peak, after warmup", json_schema_extra=TOLD)
    weight_decay: float = Field(ge=0)
    decayed: Decayed = Field(
        default="kernels", description="kernels leaves biases, LayerNorms, positions and class token alone"
    )
    clip_norm: float | None = Field(default=None, gt=0, description="global gradient norm is cut to this")

    state_names: ClassVar[tuple[str, ...]]

    @property
    def state_bytes(self) -> int:
        """Of one element of a parameter."""
        return STATE_ELEMENT_BYTES * len(self.state_names)

    def build(self, model: nn.Module, *, fused: bool) -> GuardedOptimizer:
        """The optimizer of a model's parameters.

        Args:
            fused: one kernel for all parameters, where the optimizer has one; on GPUs.
        """
        return self.build_from_groups(
            parameter_groups(model, weight_decay=self.weight_decay, decayed=self.decayed), fused=fused
        )

    @abstractmethod
    def build_from_groups(self, groups: Iterable[dict[str, Any]], *, fused: bool) -> GuardedOptimizer:
        """The optimizer of parameter groups, each with its own `weight_decay`."""
