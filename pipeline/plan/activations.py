"""Compute what activation checkpointing saves in memory and costs in operations."""

from __future__ import annotations

from pipeline.distributed.precision import TrainingPrecision
from pipeline.models.base import Cost


def activation_bytes(cost: Cost, *, precision: TrainingPrecision, every: int | None) -> int:
    """Return the most bytes that activations of one image take at once in the backward pass.

    A block that is computed again keeps its input alone until its turn comes; then it holds what it would have saved. Blocks
    behind it have released theirs by then.

    Args:
        every: trainer.activation_checkpointing.
    """
    blocks = cost.blocks(precision=precision)
    around = cost.saved_bytes(precision=precision) - sum(block.saved_bytes for block in blocks)
    most = kept = 0
    for number, block in enumerate(blocks):
        is_again = every is not None and number % every == 0
        kept += block.input_bytes if is_again else block.saved_bytes
        most = max(most, kept + (block.saved_bytes - block.input_bytes if is_again else 0))
    return around + most + cost.working_bytes(precision=precision)


def recomputed_flops(cost: Cost, *, every: int | None) -> int:
    """Return the floating-point operations of one image that are computed again: two for each multiply-accumulate."""
    if every is None:
        return 0
    return 2 * sum(block.macs for block in cost.blocks(precision="bf16")[::every])


def sparsest_that_fits(cost: Cost, *, precision: TrainingPrecision, most_bytes: float) -> int | None:
    """Return the largest n for which the activations of one image fit when every n-th block is computed again, if any."""
    depths = range(len(cost.blocks(precision=precision)), 0, -1)
    return next((n for n in depths if activation_bytes(cost, precision=precision, every=n) <= most_bytes), None)
