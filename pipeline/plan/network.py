"""Compute what a step sends between nodes, and how much longer the step takes for it."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.distributed.precision import TrainingPrecision, weight_bytes
from pipeline.plan.memory import PREFETCH_ELEMENTS, Stage

BACKWARD_PART = 2 / 3  # of a step's operations (Kaplan et al. 2020, arXiv 2001.08361, section 2.1: 2 of 3 products)


@dataclass(frozen=True)
class Traffic:
    """Holds what every node sends to others in a step.

    Attributes:
        total: bytes.
        overlapped: of them, those that are sent while the GPUs compute.
        window: part of the step's computing that they can be sent in.
    """

    total: float
    overlapped: float
    window: float

    def seconds(self, bytes_per_s: float) -> float:
        return self.total / bytes_per_s

    def waiting_s(self, bytes_per_s: float, *, computing_s: float) -> float:
        """Return the seconds that a step of `computing_s` takes longer."""
        hidden = self.overlapped / bytes_per_s
        return (self.total - self.overlapped) / bytes_per_s + max(0.0, hidden - self.window * computing_s)


@dataclass(frozen=True)
class StepNetwork:
    """Holds a step's traffic and what it costs.

    Attributes:
        traffic_bytes: that a node sends to others.
        seconds: for it, by itself.
        waiting_s: seconds that the step takes longer.
        stage_2_waiting_s: the same at ZeRO stage 2; None where the run has that or stage 3.
    """

    traffic_bytes: float
    seconds: float
    waiting_s: float
    stage_2_waiting_s: float | None


def step_traffic(
    num_parameters: int,
    *,
    stage: Stage,
    precision: TrainingPrecision,
    num_nodes: int,
    accumulation_steps: int,
    bucket_size: int,
    overlap: bool = True,
) -> Traffic:
    """Return what every node sends to others in a step, by ring algorithms.

    A ring all-reduce of S bytes sends 2 S (N - 1) / N over each link. A reduce-scatter or all-gather sends half of that
    (Patarasu and Yuan 2009). Between nodes there is one link a ring, whatever the GPUs in a node. Gradients travel in fp32.
    They are all-reduced once a step at stages 0 and 1 and once a micro-batch at stage 2 (DeepSpeed's default), and scattered at
    stage 3. Weights are gathered once a step, at stage 3 once a micro-batch (they stay between forward and backward).

    DeepSpeed reduces gradients next to the backward pass at stages 2 and 3, and at stage 1 unless precision is bf16
    (`BF16_Optimizer` reduces all at the end; tests/train/test_reduction.py counts them). The last bucket is always left to
    the end. Weights are gathered next to the forward pass at stage 3 alone, but for the first that it asks for.

    Args:
        bucket_size: numbers that are reduced at once.
        overlap: `trainer.overlap_comm` on a GPU.
    """
    sent = num_parameters * (num_nodes - 1) / num_nodes
    gradients = sent * {0: 8, 1: 8, 2: 8 * accumulation_steps, 3: 4 * accumulation_steps}[stage]
    weights = sent * weight_bytes(precision) * {0: 0, 1: 1, 2: 1, 3: accumulation_steps}[stage]
    total = gradients + weights
    if not overlap or stage == 0 or (stage == 1 and precision == "bf16"):
        return Traffic(total, 0.0, 0.0)
    overlapped = gradients * max(0.0, 1 - bucket_size / num_parameters)
    if stage == 3:
        return Traffic(total, overlapped + weights * max(0.0, 1 - PREFETCH_ELEMENTS / num_parameters), 1.0)
    return Traffic(total, overlapped, BACKWARD_PART / (accumulation_steps if stage == 1 else 1))
