"""Linear decay: the paper's choice for ImageNet-21k and JFT (Table 3)."""

from __future__ import annotations

from typing import Literal

from pipeline.functional.schedules import linear_decay
from pipeline.optim.schedules.base import ScheduleSection


class Linear(ScheduleSection):
    """Linear decay: the paper's choice for ImageNet-21k and JFT (Table 3)."""

    decay: Literal["linear"] = "linear"

    def after_warmup(self, progress: float, *, peak: float, end: float) -> float:
        return linear_decay(progress, peak=peak, end=end)
