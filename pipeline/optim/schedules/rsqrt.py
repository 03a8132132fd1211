"""Decay as a reciprocal square root, then cool down. A run's length need not be known until the cooldown begins."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.durations import Duration, DurationField
from pipeline.functional.schedules import cool_down, reciprocal_sqrt
from pipeline.optim.schedules.base import ScheduleSection, ScheduleSteps


class ReciprocalSqrt(ScheduleSection):
    """Configures `peak / sqrt(1 + (step - warmup) / timescale)`, then a linear cooldown.

    The source is "Scaling Vision Transformers" (arXiv 2106.04560).
    """

    decay: Literal["rsqrt"] = "rsqrt"
    end: float = Field(default=0.0, ge=0, description="learning rate at the end of the cooldown")
    timescale_steps: int = Field(
        default=10_000, gt=0, description="steps after which the peak is divided by sqrt(2); the default is big_vision's"
    )
    cooldown: DurationField = Field(
        default=Duration(50_000, "steps"), description="its length, at the end of the run; arXiv 2106.04560: 50k steps"
    )

    def cooldown_length(self) -> Duration | float | None:
        return self.cooldown

    def after_warmup(self, step: int, *, steps: ScheduleSteps, peak: float, end: float) -> float:
        rate = reciprocal_sqrt(step - steps.warmup, peak=peak, timescale_steps=self.timescale_steps)
        return cool_down(steps.cooldown_progress(step), rate=rate, end=min(end, rate), shape="linear")
