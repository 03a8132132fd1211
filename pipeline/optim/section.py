"""The settings of the optimizer and of the learning rate."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from pipeline.durations import DurationField
from pipeline.functional.schedules import Decay
from pipeline.section import TOLD, Relaunch, Section

Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerSection(Section):
    """Adam with decoupled weight decay (`torch.optim.AdamW`: each step subtracts lr * weight_decay * weight)."""

    learning_rate: float = Field(gt=0, description="peak, after warmup", json_schema_extra=TOLD)
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), description="paper, section 4.1")
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(ge=0)
    decayed: Literal["kernels", "all"] = Field(
        "kernels", description="kernels leaves biases, LayerNorms, positions and class token alone"
    )
    clip_norm: float | None = Field(None, gt=0, description="global gradient norm is cut to this")


class ScheduleSection(Section):
    """The learning rate over the run."""

    relaunch: ClassVar[Relaunch | None] = "told"

    warmup: DurationField = Field(description="linear, from 0")
    decay: Decay = Field("linear")
    end: float = Field(1e-5, ge=0, description="learning rate at the end")
