"""Hold the peak until the cooldown (warmup, stable, decay), so that one run serves several lengths."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.durations import Duration, DurationField
from pipeline.functional.schedules import CooldownShape, cool_down
from pipeline.optim.schedules.base import ScheduleSection, ScheduleSteps


class WarmupStableDecay(ScheduleSection):
    """Configures warmup-stable-decay (MiniCPM, arXiv 2404.06395, section 4).

    Shapes and length of the cooldown are from arXiv 2405.18392.
    """

    decay: Literal["wsd"] = "wsd"
    end: float = Field(default=0.0, ge=0, description="learning rate at the end of the cooldown")
    cooldown: DurationField | None = Field(
        default=None, description="its length, at the end of the run; null: cooldown_fraction says"
    )
    cooldown_fraction: float = Field(default=0.2, gt=0, le=1, description="its part of the whole run, where cooldown is null")
    shape: CooldownShape = Field(default="1-sqrt", description="curve of the cooldown")

    def cooldown_length(self) -> Duration | float | None:
        return self.cooldown_fraction if self.cooldown is None else self.cooldown

    def after_warmup(self, step: int, *, steps: ScheduleSteps, peak: float, end: float) -> float:
        return cool_down(steps.cooldown_progress(step), rate=peak, end=end, shape=self.shape)
