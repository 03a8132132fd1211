"""A step's traffic and what it costs are computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.plan.network import BACKWARD_PART, Traffic, step_traffic

RATE = 100.0  # bytes a second


def traffic(num_parameters: int = 1000, **changes: Any) -> Traffic:
    values = {
        "stage": 2, "precision": "bf16", "num_nodes": 2, "accumulation_steps": 1, "bucket_size": 100, "overlap": True, **changes
    }  # fmt: skip
    return step_traffic(num_parameters, **values)


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

    def sent(stage: int, accumulation_steps: int) -> float:
        return traffic(numel, stage=stage, precision="fp32", num_nodes=num_nodes, accumulation_steps=accumulation_steps).total

    for parts in (1, 5):
        assert sent(0, parts) == pytest.approx(whole)
        assert sent(1, parts) == pytest.approx(whole + half)
        assert sent(2, parts) == pytest.approx(parts * whole + half)
        assert sent(3, parts) == pytest.approx(parts * (half + half))


def test_bf16_weights_travel_in_half_the_bytes() -> None:
    def weights(precision: str) -> float:
        return traffic(stage=1, precision=precision).total - traffic(stage=0, precision=precision).total

    assert weights("fp32") == weights("bf16_autocast") == 2 * weights("bf16")


def test_what_is_sent_after_the_backward_pass_makes_a_step_longer() -> None:
    """1,000 parameters between two nodes: 4,000 bytes of gradients and 1,000 of bf16 weights, a tenth in the last bucket."""
    late = traffic(stage=1)
    assert (late.total, late.overlapped) == (5000, 0)
    assert late.waiting_s(RATE, computing_s=1000) == late.seconds(RATE) == 50
    early = traffic(stage=2)
    assert (early.total, early.overlapped) == (5000, pytest.approx(3600))
    assert early.waiting_s(RATE, computing_s=1000) == pytest.approx(14)
    assert early.waiting_s(RATE, computing_s=30) == pytest.approx(14 + 36 - 20)  # two thirds of it are backward
    assert traffic(stage=1, precision="fp32").overlapped == pytest.approx(3600)
    assert traffic(stage=1, precision="fp32", accumulation_steps=4).window == BACKWARD_PART / 4  # of the last micro-batch
    assert traffic(stage=2, accumulation_steps=4).window == BACKWARD_PART


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_nothing_is_hidden_where_it_is_not_asked_for_or_where_one_bucket_holds_all(stage: int) -> None:
    assert traffic(stage=stage, overlap=False).overlapped == 0
    assert traffic(stage=stage, bucket_size=10**6).overlapped == 0
    assert traffic(stage=stage, num_nodes=1).waiting_s(RATE, computing_s=1) == 0
