"""The learning rate against torch's own schedulers."""

from __future__ import annotations

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler

from pipeline.functional.schedules import learning_rate

SCHEDULE = {"peak": 0.5, "warmup_steps": 10, "total_steps": 50}


def rates_of(scheduler: LRScheduler, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_warmup_rises_in_equal_steps_from_zero_to_the_peak() -> None:
    rates = [learning_rate(step, **SCHEDULE, decay="linear") for step in range(11)]
    assert rates == pytest.approx([0.05 * step for step in range(11)])


def test_linear_decay_equals_torchs() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs = rates_of(LinearLR(optimizer, start_factor=1.0, end_factor=0.02, total_iters=40), optimizer, 41)
    ours = [learning_rate(10 + step, **SCHEDULE, decay="linear", end=0.01) for step in range(41)]
    assert ours == pytest.approx(theirs)


def test_cosine_decay_equals_torchs() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs = rates_of(CosineAnnealingLR(optimizer, T_max=40, eta_min=0.01), optimizer, 41)
    ours = [learning_rate(10 + step, **SCHEDULE, decay="cosine", end=0.01) for step in range(41)]
    assert ours == pytest.approx(theirs)


def test_the_end_is_held() -> None:
    assert learning_rate(500, **SCHEDULE, decay="linear", end=0.01) == pytest.approx(0.01)
    assert learning_rate(500, **SCHEDULE, decay="constant") == 0.5
