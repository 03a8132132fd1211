"""Compute what a run demands of its image store, its decoding cores and its checkpoint disk."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.plan.memory import ParameterSizes


@dataclass(frozen=True)
class Reading:
    """Holds rates of all nodes together, except the cores."""

    images_per_s: float
    bytes_per_s: float
    requests_per_s: float
    cores_per_node: float


def reading_rates(
    *,
    images_per_s: float,
    image_bytes: float,
    block_samples: float,
    num_samples: int | None,
    num_streams: int,
    images_per_s_per_core: float,
    num_nodes: int,
    repeats: int = 1,
) -> Reading:
    """Compute rates at which images are read and decoded.

    A block is one request. Streams (C of pipeline/data/order.py) begin and end inside blocks, so that in an epoch at most
    two blocks a stream are read once more. An image that appears several times in an epoch is read once, and decoded each time.
    """
    again = 0.0 if num_samples is None else 2 * min(num_streams, num_samples) / num_samples
    reads_per_image = (1 / block_samples + again) / repeats
    return Reading(
        images_per_s=images_per_s,
        bytes_per_s=images_per_s * image_bytes * block_samples * reads_per_image,
        requests_per_s=images_per_s * reads_per_image,
        cores_per_node=images_per_s / num_nodes / images_per_s_per_core,
    )


def moments_bytes(sizes: ParameterSizes, *, optimizer_bytes: int) -> int:
    """Return the size of the optimizer's state, which a checkpoint holds: Adam's two moments in fp32 are 8 bytes an element."""
    return optimizer_bytes * sizes.total


def weights_bytes(sizes: ParameterSizes, *, kinds: int = 1) -> int:
    """Return the size of a step's fp32 weights files, which are kept. A checkpoint holds them under second names, which take no
    space.

    Args:
        kinds: 2 where a running average is kept next to the weights.
    """
    return 4 * sizes.total * kinds
