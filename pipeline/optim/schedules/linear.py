"""Decay the learning rate linearly: the paper's choice for ImageNet-21k and JFT (Table 3)."""

from __future__ import annotations

from typing import Literal

from pipeline.functional.schedules import linear_decay
from pipeline.optim.schedules.base import ScheduleSection, ScheduleSteps


class Linear(ScheduleSection):
    """Configures linear decay: the paper's choice for ImageNet-21k and JFT (Table 3)."""

    decay: Literal["linear"] = "linear"

    def after_warmup(self, step: int, *, steps: ScheduleSteps, peak: float, end: float) -> float:
        return linear_decay(steps.progress(step), peak=peak, end=end)
