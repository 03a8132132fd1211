"""Compute operations, hours and money of a run."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.distributed.precision import TrainingPrecision, weight_bytes
from pipeline.plan.memory import Stage


@dataclass(frozen=True)
class Compute:
    """Holds a run's length in every unit. Seconds are those of computing alone, without failures.

    Attributes:
        recomputed_flops_per_image: those of activation checkpointing, which `flops_per_image` and `flops` leave out.
        epochs: none if the number of samples is not known.
        cost: cost in the price's currency; none without a price.
    """

    steps: int
    images: int
    epochs: float | None
    flops_per_image: int
    recomputed_flops_per_image: int
    flops: int
    images_per_s: float
    step_s: float
    seconds: float
    gpu_hours: float
    cost: float | None


def run_compute(
    *,
    steps: int,
    global_batch_size: int,
    num_samples: int | None,
    flops_per_image: int,
    recomputed_flops_per_image: int = 0,
    peak_flops: float,
    mfu: float,
    num_gpus: int,
    price_per_gpu_hour: float | None,
) -> Compute:
    """Compute length and cost of a run.

    Model FLOP/s utilisation is counted operations over what the devices could do at best (PaLM, arXiv 2204.02311,
    appendix B), so a run takes counted operations / (MFU x peak x GPUs) seconds. What activation checkpointing computes
    again is not counted, and takes time at the same rate.

    Args:
        mfu: utilisation without activation checkpointing.
    """
    images = steps * global_batch_size
    images_per_s = num_gpus * peak_flops * mfu / (flops_per_image + recomputed_flops_per_image)
    seconds = images / images_per_s
    gpu_hours = seconds * num_gpus / 3600
    return Compute(
        steps=steps,
        images=images,
        epochs=None if num_samples is None else images / num_samples,
        flops_per_image=flops_per_image,
        recomputed_flops_per_image=recomputed_flops_per_image,
        flops=images * flops_per_image,
        images_per_s=images_per_s,
        step_s=global_batch_size / images_per_s,
        seconds=seconds,
        gpu_hours=gpu_hours,
        cost=None if price_per_gpu_hour is None else gpu_hours * price_per_gpu_hour,
    )


def step_traffic_bytes(
    num_parameters: int, *, stage: Stage, precision: TrainingPrecision, num_nodes: int, accumulation_steps: int
) -> float:
    """Return the bytes that every node sends to others in a step, by ring algorithms.

    A ring all-reduce of S bytes sends 2 S (N - 1) / N over each link. A reduce-scatter or all-gather sends half of that
    (Patarasu and Yuan 2009). Between nodes there is one link a ring, whatever the GPUs in a node. Gradients travel in fp32.
    They are all-reduced once a step at stages 0 and 1 and once a micro-batch at stage 2 (DeepSpeed's default), and scattered at
    stage 3. Weights are gathered once a step, at stage 3 once a micro-batch (they stay between forward and backward).
    """
    weight = weight_bytes(precision)
    per_parameter = {
        0: 8,
        1: 8 + weight,
        2: 8 * accumulation_steps + weight,
        3: (4 + weight) * accumulation_steps,
    }[stage]
    return per_parameter * num_parameters * (num_nodes - 1) / num_nodes
