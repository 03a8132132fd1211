"""A run's length and cost are computed."""

from __future__ import annotations

import pytest

from pipeline.plan.compute import Compute, run_compute


def compute(*, num_gpus: int = 8, price: float | None = 2.0, num_samples: int | None = 2_048_000) -> Compute:
    return run_compute(
        steps=1000, global_batch_size=4096, num_samples=num_samples, flops_per_image=10**12, peak_flops=1e15, mfu=0.5,
        num_gpus=num_gpus, price_per_gpu_hour=price,
    )  # fmt: skip


def test_by_hand() -> None:
    """Eight GPUs do 4e15 operations a second on 4,000 images of 1e12 each."""
    run = compute()
    assert (run.images, run.epochs, run.flops) == (4_096_000, 2.0, 4_096_000 * 10**12)
    assert (run.images_per_s, run.step_s, run.seconds) == (4000, 1.024, 1024)
    assert run.gpu_hours == pytest.approx(8 * 1024 / 3600)
    assert run.cost == pytest.approx(2 * 8 * 1024 / 3600)


def test_more_gpus_take_less_time_for_the_same_money() -> None:
    one, many = compute(num_gpus=8), compute(num_gpus=64)
    assert many.seconds == pytest.approx(one.seconds / 8)
    assert many.cost == pytest.approx(one.cost)


def test_what_is_not_known_is_not_said() -> None:
    run = compute(price=None, num_samples=None)
    assert (run.cost, run.epochs) == (None, None)


def test_waiting_makes_a_run_longer_and_dearer() -> None:
    run = compute()
    slower = run.with_waiting(run.step_s / 4)
    assert slower.computing_s == run.step_s == run.computing_s
    assert [slower.step_s, slower.seconds, slower.gpu_hours, slower.cost] == pytest.approx(
        [1.25 * value for value in (run.step_s, run.seconds, run.gpu_hours, run.cost or 0)]
    )
    assert slower.images_per_s == pytest.approx(run.images_per_s / 1.25)
    assert (slower.flops, slower.images) == (run.flops, run.images)
