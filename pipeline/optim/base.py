"""Define what every optimizer says of itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from pipeline.optim.average import AverageSection
from pipeline.optim.groups import Decayed, parameter_groups
from pipeline.optim.guard import GuardedOptimizer
from pipeline.section import TOLD, Section

STATE_ELEMENT_BYTES = 4  # fp32

DecayRule = Literal["decoupled_lr", "decoupled_schedule", "coupled", "in_update"]


class OptimizerSection(Section):
    """Configures what every optimizer has.

    `state_names` are the tensors that the optimizer keeps for each parameter, of the parameter's shape, in fp32 and zero before
    the first step: ZeRO cuts them, checkpoints hold them, `plan` counts them. With `average` there is one more.

    What `weight_decay` (w) means, by `weight_decay_rule`, for a weight p at a step's learning rate lr of the peak `peak`:

        decoupled_lr        p -= lr * w * p              torch's AdamW; AugReg's paper
        decoupled_schedule  p -= lr / peak * w * p       big_vision: times the schedule, not times the peak
        coupled             gradient += w * p            L2 regularisation; torch's Adam and SGD
        in_update           update += w * p              LAMB: before the trust ratio, so times lr and the ratio

    AdamW with w = 0.1 at a peak of 1e-3 by the first rule is w = 1e-4 by the second.
    """

    learning_rate: float = Field(gt=0, description="peak, after warmup", json_schema_extra=TOLD)
    scale_lr: Literal["none", "linear", "sqrt"] = Field(
        default="none",
        description="learning_rate is that of reference_batch_size images, and grows with the batch size or its square root",
        json_schema_extra=TOLD,
    )
    reference_batch_size: int | None = Field(
        default=None, ge=1, description="images for scale_lr; 256 for MAE's blr", json_schema_extra=TOLD
    )
    weight_decay: float = Field(ge=0)
    weight_decay_rule: DecayRule = Field(
        default="decoupled_lr", description="what weight_decay is multiplied by; docs/optimizers.md"
    )
    decayed: Decayed = Field(
        default="kernels", description="kernels leaves biases, LayerNorms, positions and class token alone"
    )
    layer_decay: float | None = Field(
        default=None, gt=0, le=1, description="learning rate of layer i of 0 to L+1 times layer_decay^(L+1-i) (BEiT, MAE)"
    )
    clip_norm: float | None = Field(default=None, gt=0, description="global gradient norm is cut to this")
    average: AverageSection | None = Field(default=None, description="a running average of the weights, evaluated next to them")

    state_names: ClassVar[tuple[str, ...]]
    decay_rules: ClassVar[tuple[DecayRule, ...]]  # those that make sense
    looks_at_layers: ClassVar[bool] = False  # whether `make_groups` asks in which layer a parameter is, whatever the settings

    @model_validator(mode="after")
    def _rule_makes_sense(self) -> Self:
        if self.weight_decay_rule not in self.decay_rules:
            name = getattr(self, "name", "")
            other = {"adamw": "adam", "adam": "adamw"}.get(name)
            raise ValueError(
                f"weight_decay_rule={self.weight_decay_rule} is none of {name}'s; use {' or '.join(self.decay_rules)}"
                f"{f', or name={other}' if other is not None else ''}"
            )
        return self

    @model_validator(mode="after")
    def _scale_has_a_reference(self) -> Self:
        if self.scale_lr != "none" and self.reference_batch_size is None:
            raise ValueError(f"scale_lr={self.scale_lr} needs reference_batch_size, the batch size that learning_rate is for")
        if self.scale_lr == "none" and self.reference_batch_size is not None:
            raise ValueError(
                "reference_batch_size does nothing with scale_lr=none; set scale_lr=linear or sqrt, or leave it out"
            )
        return self

    @property
    def state_bytes(self) -> int:
        """Return the bytes of state of one element of a parameter, at most."""
        return STATE_ELEMENT_BYTES * (len(self.state_names) + (self.average is not None))

    def peak_at(self, global_batch_size: int) -> float:
        """Return the learning rate after the warmup, at this batch size."""
        if self.reference_batch_size is None:
            return self.learning_rate
        ratio = global_batch_size / self.reference_batch_size
        return self.learning_rate * (ratio if self.scale_lr == "linear" else ratio**0.5)

    def build(
        self, model: nn.Module, objective: nn.Module | None = None, *, fused: bool, peak: float | None = None
    ) -> GuardedOptimizer:
        """Return the optimizer of a model's parameters, and of those that its objective has.

        Args:
            fused: one kernel instead of a dozen, where the optimizer has one. On a CPU too it takes a fifth of the time.
            peak: learning rate after the warmup, if it is not `learning_rate`.

        Raises:
            ConfigError: `layer_decay` for a model that has no layers.
        """
        peak = self.learning_rate if peak is None else peak
        groups = self.make_groups(model, objective)
        for group in groups:
            group["lr"] = peak * group["lr_scale"]
            if self.weight_decay_rule == "decoupled_schedule":
                group["weight_decay"] /= group["lr"]
        optimizer = self.build_from_groups(groups, fused=fused)
        if self.average is not None:
            optimizer.average_weights(self.average.decay_at)
        return optimizer

    def check(self, build: Callable[[], nn.Module]) -> None:
        """Refuse a model that has not the layers that the settings ask for, before anything expensive starts.

        Args:
            build: makes the model; it is called where no tensor takes memory.

        Raises:
            ConfigError: `layer_decay`, or an optimizer of matrices, for a model that has no blocks, or no matrices in them.
        """
        if self.layer_decay is None and not self.looks_at_layers:
            return
        with torch.device("meta"):
            self.make_groups(build())

    def make_groups(self, model: nn.Module, objective: nn.Module | None = None) -> list[dict[str, Any]]:
        """Return parameter groups, each with `weight_decay` and `lr_scale`, which multiplies the schedule's learning rate."""
        return parameter_groups(
            model, objective, weight_decay=self.weight_decay, decayed=self.decayed, layer_decay=self.layer_decay
        )

    @abstractmethod
    def build_from_groups(self, groups: Iterable[dict[str, Any]], *, fused: bool) -> GuardedOptimizer:
        """Return the optimizer of parameter groups, each with its own `weight_decay`: what the update multiplies with `lr`."""
