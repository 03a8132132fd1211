"""The learning rate is compared with torch's own schedulers, timm's, and published formulas."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler

from pipeline.optim.schedules import Constant, Cosine, Linear, ReciprocalSqrt, WarmupStableDecay
from pipeline.optim.schedules.base import ScheduleSection, ScheduleSteps


def learning_rate(step: int, schedule: type[ScheduleSection], *, end: float = 0.0, cooldown: int = 0, **settings: Any) -> float:
    section = schedule.model_validate({"warmup": "10 steps", "end": end, **settings})
    return section.build(peak=0.5, steps=ScheduleSteps(total=50, warmup=10, cooldown=cooldown))(step)


def make_optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)


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
    optimizer = make_optimizer()
    theirs = rates_of(LinearLR(optimizer, start_factor=1.0, end_factor=0.02, total_iters=40), optimizer, 41)
    ours = [learning_rate(10 + step, Linear, end=0.01) for step in range(41)]
    assert ours == pytest.approx(theirs)


def test_cosine_decay_equals_torchs() -> None:
    optimizer = make_optimizer()
    theirs = rates_of(CosineAnnealingLR(optimizer, T_max=40, eta_min=0.01), optimizer, 41)
    ours = [learning_rate(10 + step, Cosine, end=0.01) for step in range(41)]
    assert ours == pytest.approx(theirs)


@pytest.mark.parametrize("start", [0.0, 1e-3])
def test_warmup_and_cosine_are_timms(start: float, timm: ModuleType) -> None:
    from timm.scheduler import CosineLRScheduler

    scheduler = CosineLRScheduler(
        make_optimizer(), t_initial=40, lr_min=0.01, warmup_t=10, warmup_lr_init=start, warmup_prefix=True, cycle_limit=1
    )
    ours = [learning_rate(step, Cosine, end=0.01, warmup_start=start) for step in range(51)]
    assert ours == pytest.approx([scheduler._get_lr(step)[0] for step in range(51)])


@pytest.mark.parametrize(
    ("schedule", "settings", "theirs"),
    [
        (WarmupStableDecay, {"shape": "linear"}, {"decay_fn": "linear"}),
        (WarmupStableDecay, {"shape": "1-sqrt"}, {"decay_fn": "1-sqrt"}),
        (ReciprocalSqrt, {"timescale_steps": 7}, {"stable_fn": "rsqrt", "stable_timescale": 7, "decay_fn": "linear"}),
    ],
)
def test_schedules_with_a_cooldown_are_timms(
    schedule: type[ScheduleSection], settings: dict[str, Any], theirs: dict[str, Any], timm: ModuleType
) -> None:
    from timm.scheduler.wsd_lr import WSDLRScheduler

    scheduler = WSDLRScheduler(
        make_optimizer(), t_initial=40, decay_t=12, lr_min=0.01, warmup_t=10, warmup_lr_init=0.002, **theirs
    )
    ours = [learning_rate(step, schedule, end=0.01, cooldown=12, warmup_start=0.002, **settings) for step in range(55)]
    assert ours == pytest.approx([scheduler._get_lr(step)[0] for step in range(55)])


@pytest.mark.parametrize("step", [0, 1, 5, 10, 11, 25, 38, 45, 49, 50])
def test_rsqrt_is_big_visions_formula(step: int) -> None:
    """big_vision/utils.py, `create_learning_rate_schedule`, decay_type rsqrt, shift 0, with warmup and cooldown."""
    rate = 0.5 / math.sqrt(1 + (step - 10) / 7) if step >= 10 else 0.5
    expected = rate * min(1.0, step / 10) * min(1.0, (50 - step) / 12)
    assert learning_rate(step, ReciprocalSqrt, cooldown=12, timescale_steps=7) == pytest.approx(expected)


def test_a_schedule_is_a_function_of_the_step_alone() -> None:
    """Asked in any order, and again, it says the same."""
    for schedule in (Linear, Cosine, Constant, ReciprocalSqrt, WarmupStableDecay):
        section = schedule.model_validate({"warmup": "10 steps"})
        first, other = (section.build(peak=0.5, steps=ScheduleSteps(50, 10, 12)) for _ in range(2))
        forwards = [first(step) for step in range(51)]
        assert [other(step) for step in reversed(range(51))] == forwards[::-1]


def test_the_end_is_held() -> None:
    assert learning_rate(500, Linear, end=0.01) == pytest.approx(0.01)
    assert learning_rate(500, Constant) == 0.5
    assert learning_rate(500, WarmupStableDecay, end=0.01, cooldown=12) == pytest.approx(0.01)


def test_an_end_above_the_peak_is_the_peak() -> None:
    assert learning_rate(50, Linear, end=2.0) == 0.5
