"""Compute operations, hours and money of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True)
class Compute:
    """Holds a run's length in every unit. Seconds are those without failures.

    Attributes:
        recomputed_flops_per_image: those of activation checkpointing, which `flops_per_image` and `flops` leave out.
        epochs: none if the number of samples is not known.
        computing_s: seconds that the GPUs compute in a step.
        step_s: seconds of a step, with those in which they wait for the network.
        cost: cost in the price's currency; none without a price.
    """

    steps: int
    images: int
    epochs: float | None
    flops_per_image: int
    recomputed_flops_per_image: int
    flops: int
    images_per_s: float
    computing_s: float
    step_s: float
    seconds: float
    gpu_hours: float
    cost: float | None

    def with_waiting(self, seconds: float) -> Self:
        """Return the same run with steps that take so much longer."""
        longer = 1 + seconds / self.step_s
        return replace(
            self,
            images_per_s=self.images_per_s / longer,
            step_s=self.step_s * longer,
            seconds=self.seconds * longer,
            gpu_hours=self.gpu_hours * longer,
            cost=None if self.cost is None else self.cost * longer,
        )


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
        mfu: utilisation without activation checkpointing and without waiting for other nodes.
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
        computing_s=global_batch_size / images_per_s,
        step_s=global_batch_size / images_per_s,
        seconds=seconds,
        gpu_hours=gpu_hours,
        cost=None if price_per_gpu_hour is None else gpu_hours * price_per_gpu_hour,
    )
