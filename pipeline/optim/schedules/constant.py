"""No decay."""

from __future__ import annotations

from typing import Literal

from pipeline.optim.schedules.base import ScheduleSection, ScheduleSteps


class Constant(ScheduleSection):
    """No decay."""

    decay: Literal["constant"] = "constant"

    def after_warmup(self, step: int, *, steps: ScheduleSteps, peak: float, end: float) -> float:
        return peak
