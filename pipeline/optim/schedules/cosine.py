"""Decay the learning rate as a cosine: the paper's choice for ImageNet-1k (Table 3)."""

from __future__ import annotations

from typing import Literal

from pipeline.functional.schedules import cosine_decay
from pipeline.optim.schedules.base import ScheduleSection, ScheduleSteps


class Cosine(ScheduleSection):
    """Configures cosine decay: the paper's choice for ImageNet-1k (Table 3)."""

    decay: Literal["cosine"] = "cosine"

    def after_warmup(self, step: int, *, steps: ScheduleSteps, peak: float, end: float) -> float:
        return cosine_decay(steps.progress(step), peak=peak, end=end)
