"""The learning rate is compared with torch's own schedulers."""

from __future__ import annotations

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler

from pipeline.optim.schedules import Constant, Cosine, Linear
from pipeline.optim.schedules.base import ScheduleSection


def learning_rate(step: int, schedule: type[ScheduleSection], *, end: float = 0.0) -> float:
    section = schedule.model_validate({"warmup": "10 steps", "end": end})
    return section.build(peak=0.5, warmup_steps=10, total_steps=50)(step)


def rates_of(scheduler: LRScheduler, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_warmup_rises_in_equal_steps_from_zero_to_the_peak() -> None:
    rates = [learning_rate(step, Linear) for step in range(11)]
    assert rates == pytest.approx([0.05 * step for step in range(11)])


def test_linear_decay_equals_torchs() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs = rates_of(LinearLR(optimizer, start_factor=1.0, end_factor=0.02, total_iters=40), optimizer, 41)
    ours = [learning_rate(10 + step, Linear, end=0.01) for step in range(41)]
    assert ours == pytest.approx(theirs)


def test_cosine_decay_equals_torchs() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs = rates_of(CosineAnnealingLR(optimizer, T_max=40, eta_min=0.01), optimizer, 41)
    ours = [learning_rate(10 + step, Cosine, end=0.01) for step in range(41)]
    assert ours == pytest.approx(theirs)


def test_the_end_is_held() -> None:
    assert learning_rate(500, Linear, end=0.01) == pytest.approx(0.01)
    assert learning_rate(500, Constant) == 0.5


def test_an_end_above_the_peak_is_the_peak() -> None:
    assert learning_rate(50, Linear, end=2.0) == 0.5
