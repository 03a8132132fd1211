"""A run's length, cost and traffic are computed."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.plan.compute import Compute, run_compute, step_traffic_bytes


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


class Ring:
    """Simulates nodes that hold a vector each and send chunks to their right neighbours. It counts what each of them sends."""

    def __init__(self, num_nodes: int, chunk: int) -> None:
        self.size = num_nodes
        self.vectors = np.random.default_rng(0).integers(0, 9, (num_nodes, num_nodes, chunk)).astype(float)  # node, chunk
        self.sent = np.zeros(num_nodes)

    def pass_on(self, first: int, *, add: bool) -> None:
        """Play N - 1 rounds: in round r node n sends chunk n + first - r."""
        for turn in range(self.size - 1):
            moving = [(node, (node + first - turn) % self.size) for node in range(self.size)]
            values = [self.vectors[node, chunk].copy() for node, chunk in moving]
            for (node, chunk), value in zip(moving, values, strict=True):
                right = (node + 1) % self.size
                self.vectors[right, chunk] = value + (self.vectors[right, chunk] if add else 0)
                self.sent[node] += value.size

    def reduce_scatter(self) -> None:
        self.pass_on(0, add=True)

    def all_gather(self) -> None:
        self.pass_on(1, add=False)


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 8])
def test_traffic_is_that_of_rings_that_are_played(num_nodes: int) -> None:
    """Traffic is counted in bytes of fp32: gradients once a step or once a micro-batch, then weights."""
    reduce, both = Ring(num_nodes, chunk=6), Ring(num_nodes, chunk=6)
    expected = both.vectors.sum(axis=0)
    reduce.reduce_scatter()
    both.reduce_scatter()
    both.all_gather()
    assert (both.vectors == expected).all()  # an all-reduce it is
    numel, half, whole = 6 * num_nodes, 4 * reduce.sent[0], 4 * both.sent[0]

    def traffic(stage: int, accumulation_steps: int) -> float:
        return step_traffic_bytes(
            numel, stage=stage, precision="fp32", num_nodes=num_nodes, accumulation_steps=accumulation_steps  # type: ignore[arg-type]
        )  # fmt: skip

    for parts in (1, 5):
        assert traffic(0, parts) == pytest.approx(whole)
        assert traffic(1, parts) == pytest.approx(whole + half)
        assert traffic(2, parts) == pytest.approx(parts * whole + half)
        assert traffic(3, parts) == pytest.approx(parts * (half + half))


def test_bf16_weights_travel_in_half_the_bytes() -> None:
    def weights(precision: str) -> float:
        sizes = [
            step_traffic_bytes(100, stage=stage, precision=precision, num_nodes=2, accumulation_steps=1)  # type: ignore[arg-type]
            for stage in (1, 0)
        ]
        return sizes[0] - sizes[1]

    assert weights("fp32") == weights("bf16_autocast") == 2 * weights("bf16")
