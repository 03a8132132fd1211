"""Compute the bytes that a GPU holds in training: weights, gradients, Adam's moments and buffers at each ZeRO stage.

ZeRO's own count (Rajbhandari et al. 2020, arXiv 1910.02054, section 3.1) is 16 bytes a parameter: 2 for the bf16 weight, 2 for
its gradient, 12 for fp32 master and two moments. Stage 1 divides the 12 by the ranks, stage 2 the gradients too, stage 3
everything. DeepSpeed with this project's settings (fp32 gradients) holds more than that. The numbers here were read in
DeepSpeed 0.19's code, and tests/plan/test_memory.py checks them against running engines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from pipeline.distributed.precision import TrainingPrecision, weight_bytes

Stage = Literal[0, 1, 2, 3]

STAGES: tuple[Stage, ...] = (0, 1, 2, 3)
# These are DeepSpeed's defaults (deepspeed.runtime.zero.config), in elements.
PERSISTENCE_THRESHOLD = 100_000
PREFETCH_ELEMENTS = 50_000_000
MAX_LIVE_ELEMENTS = 1_000_000_000


@dataclass(frozen=True)
class ParameterSizes:
    """Holds the elements of each parameter of a model, by the optimizer's group."""

    groups: tuple[tuple[int, ...], ...]

    @property
    def total(self) -> int:
        return sum(map(sum, self.groups))

    @property
    def small(self) -> int:
        """Return elements in parameters so small that ZeRO-3 keeps them whole on every rank."""
        return sum(size for group in self.groups for size in group if size < PERSISTENCE_THRESHOLD)

    def partition(self, *, stage: Stage, num_ranks: int) -> int:
        """Return elements that one rank owns, padding included.

        Stages 1 and 2 lay a group out in one line and cut it into equal parts of an even length. Stage 3 cuts every parameter.
        """
        if stage == 0:
            return self.total
        if stage == 3:
            return sum(-(-size // num_ranks) for group in self.groups for size in group)
        return sum(2 * -(-sum(group) // (2 * num_ranks)) for group in self.groups)


def sizes_of_groups(groups: list[dict[str, list[nn.Parameter]]]) -> ParameterSizes:
    """Return sizes of an optimizer's parameter groups, which may be on torch's meta device."""
    return ParameterSizes(tuple(tuple(parameter.numel() for parameter in group["params"]) for group in groups))


def saved_bytes_per_pass(num_kernel_elements: int, *, precision: TrainingPrecision) -> int:
    """Return bytes saved once, whatever the batch: autocast keeps a bf16 copy of every kernel until the backward pass."""
    return 2 * num_kernel_elements if precision == "bf16_autocast" else 0


@dataclass(frozen=True)
class StateBytes:
    """Holds what one rank needs besides activations, in bytes.

    Attributes:
        parameters: what the forward pass reads; at stage 3 this rank's part, and the small ones whole.
        masters: fp32 weights that the optimizer updates, where they are not the same.
        gradients: gradients at the end of a backward pass (before it where DeepSpeed holds all of them there and drops some).
        moments: the optimizer's state; Adam's two moments.
        buffers: the most that reduction and gathering take at one moment, in addition to these.
    """

    parameters: int
    masters: int
    gradients: int
    moments: int
    buffers: int

    @property
    def total(self) -> int:
        return self.parameters + self.masters + self.gradients + self.moments + self.buffers


def state_bytes(
    sizes: ParameterSizes,
    *,
    stage: Stage,
    precision: TrainingPrecision,
    num_ranks: int,
    optimizer_bytes: int,
    accumulation_steps: int = 1,
    bucket_elements: int,
    staging_buckets: int = 2,
) -> StateBytes:
    """Return bytes a rank holds for weights, gradients and optimizer.

    Args:
        optimizer_bytes: bytes of the optimizer's state of one element; 8 for Adam.
        bucket_elements: `trainer.reduce_bucket_size`.
        staging_buckets: 2 where communication overlaps with computing, as on GPUs; else 1.

    Raises:
        ValueError: bf16 with stage 0, which no configuration has: ZeRO keeps the masters.
    """
    if stage == 0 and precision == "bf16":
        raise ValueError("bf16 keeps its masters in ZeRO: there is no stage 0 of it")
    own = sizes.partition(stage=stage, num_ranks=num_ranks)
    whole = own * num_ranks if stage in (1, 2) else sizes.total
    weight = weight_bytes(precision)
    reduced = 4 * min(bucket_elements, sizes.total)  # a bucket on its way, in fp32
    moments = optimizer_bytes * own
    match stage:
        case 0:  # torch's own optimizer; DeepSpeed all-reduces a flat copy of the gradients
            return StateBytes(4 * whole, 0, 4 * whole, moments, 4 * whole)
        case 1 if precision == "bf16":  # BF16_Optimizer: fp32 gradients, those of autograd, and a flat copy to reduce
            return StateBytes(2 * whole, 4 * own, 4 * whole + 2 * sizes.total, moments, 4 * whole)
        case 1 | 2:
            # autocast has a bucket for each of the two types that its parameters communicate in
            kinds = 2 if precision == "bf16_autocast" else 1
            staged = weight * kinds * staging_buckets * bucket_elements
            held = 4 * own
            if stage == 1:
                held += 4 * sizes.total  # all gradients, then the partition made of them
            elif precision != "bf16" and accumulation_steps > 1:
                held += 4 * own  # the sum so far and the new gradients
            return StateBytes(weight * whole, 4 * own, held, moments, staged + max(reduced, 4 * own))
        case 3:
            # Parameters are dropped only if they are needed again later than DeepSpeed's `stage3_max_reuse_distance`, 1e9
            # elements on. So a model below half of that is gathered once in the forward pass and stays.
            gathered = weight * (min(sizes.total, MAX_LIVE_ELEMENTS) - sizes.small)
            gathering = weight * min(sizes.total, PREFETCH_ELEMENTS)
            buffers = weight * bucket_elements + max(gathered + max(gathering, reduced), 4 * own)
            return StateBytes(weight * (own + sizes.small), 4 * own, 4 * own, moments, buffers)
