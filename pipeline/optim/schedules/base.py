"""Define what every schedule says of itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from pipeline.durations import Duration, DurationField
from pipeline.functional.schedules import linear_warmup
from pipeline.section import Relaunch, Section


@dataclass(frozen=True)
class ScheduleSteps:
    """Holds the lengths of a schedule in optimizer steps; the cooldown is the last part of `total`, 0 where there is none."""

    total: int
    warmup: int
    cooldown: int = 0

    def progress(self, step: int) -> float:
        """Return which part of the steps after the warmup is done, from 0 to 1."""
        return min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))

    def cooldown_progress(self, step: int) -> float:
        """Return which part of the cooldown is done: 0 before it, 1 at its end."""
        begin = self.total - self.cooldown
        return min(1.0, max(0.0, (step - begin) / max(1, self.cooldown)))


class ScheduleSection(Section):
    """Configures what every schedule has. The learning rate is a function of the step alone: nothing is saved or restored."""

    relaunch: ClassVar[Relaunch | None] = "told"

    warmup: DurationField = Field(description="linear growth from warmup_start to the peak")
    warmup_start: float = Field(default=0.0, ge=0, description="learning rate of the first step; DeiT III begins at 1e-6")
    end: float = Field(default=1e-5, ge=0, description="learning rate at the end")

    def cooldown_length(self) -> Duration | float | None:
        """Return how long the cooldown at the end is, as a duration or as a part of the whole run; None where there is none."""
        return None

    @abstractmethod
    def after_warmup(self, step: int, *, steps: ScheduleSteps, peak: float, end: float) -> float:
        """Return the learning rate of a step that comes after the warmup; `steps.progress(step)` goes from 0 to 1."""

    def build(self, *, peak: float, steps: ScheduleSteps) -> Callable[[int], float]:
        """Return the function from optimizer step (0 is the first) to learning rate; `end` is reached at `steps.total`."""
        start, end = min(self.warmup_start, peak), min(self.end, peak)

        def learning_rate(step: int) -> float:
            if step < steps.warmup:
                return linear_warmup(step, peak=peak, warmup_steps=steps.warmup, start=start)
            return self.after_warmup(step, steps=steps, peak=peak, end=end)

        return learning_rate
