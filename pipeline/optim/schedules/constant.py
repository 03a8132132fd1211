"""Keep the learning rate constant after the warmup."""

from __future__ import annotations

from typing import Literal

from pipeline.optim.schedules.base import ScheduleSection, ScheduleSteps


class Constant(ScheduleSection):
    """Configures a constant learning rate after the warmup."""

    decay: Literal["constant"] = "constant"

    def after_warmup(self, step: int, *, steps: ScheduleSteps, peak: float, end: float) -> float:
        return peak
