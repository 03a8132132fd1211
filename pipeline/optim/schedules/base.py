"""What every schedule says of itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

from pydantic import Field

from pipeline.durations import DurationField
from pipeline.functional.schedules import linear_warmup
from pipeline.section import Relaunch, Section


class ScheduleSection(Section):
    """The settings that every schedule has. The learning rate is a function of the step alone: nothing is saved or restored."""

    relaunch: ClassVar[Relaunch | None] = "told"

    warmup: DurationField = Field(description="linear, from 0")
    end: float = Field(default=1e-5, ge=0, description="learning rate at the end")

    @abstractmethod
    def after_warmup(self, progress: float, *, peak: float, end: float) -> float:
        """Learning rate when `progress` of the steps after the warmup are done, from 0 to 1."""

    def build(self, *, peak: float, warmup_steps: int, total_steps: int) -> Callable[[int], float]:
        """Optimizer step (0 is the first) to learning rate; `end` is reached at `total_steps`."""
        end = min(self.end, peak)

        def learning_rate(step: int) -> float:
            if step < warmup_steps:
                return linear_warmup(step, peak=peak, warmup_steps=warmup_steps)
            progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
            return self.after_warmup(progress, peak=peak, end=end)

        return learning_rate
