"""Describe where a run would go: its GPUs, and what is assumed of them."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import ConfigError


@dataclass(frozen=True)
class Cluster:
    """Describes where a run would go, and what is assumed of it.

    Attributes:
        gpu_memory_gib: memory of one GPU; none: the data sheet's.
        headroom: part of the memory left to CUDA, NCCL and the allocator's fragments.
        price: price of a GPU for an hour.
        network_gb_per_s: rate at which a node sends to others, in 10^9 bytes.
        network_measured_on: number of machines between which that rate was measured; None: it was not.
        save_s: time that training waits for a checkpoint.
        restart_s: time from a node's failure to the next step.
    """

    gpu: str
    num_nodes: int
    gpus_per_node: int
    gpu_memory_gib: float | None
    headroom: float
    mfu: float
    price: float | None
    network_gb_per_s: float
    node_mtbf_hours: float
    save_s: float
    restart_s: float
    images_per_s_per_core: float
    network_measured_on: int | None = None


def check_cluster(cluster: Cluster) -> None:
    """Refuse numbers that no cluster has.

    Raises:
        ConfigError: a number is out of its range; the text names its option.
    """
    positive = {
        "--nodes": cluster.num_nodes,
        "--gpus-per-node": cluster.gpus_per_node,
        "--gpu-memory-gib": cluster.gpu_memory_gib,
        "--mfu": cluster.mfu,
        "--node-mtbf-hours": cluster.node_mtbf_hours,
        "--save-seconds": cluster.save_s,
        "--images-per-core": cluster.images_per_s_per_core,
        "--network-gb": cluster.network_gb_per_s,
    }
    for name, value in positive.items():
        if value is not None and value <= 0:
            raise ConfigError(f"{name} {value:g}: must be more than 0")
    if cluster.mfu > 1 or not 0 <= cluster.headroom < 1:
        raise ConfigError(f"--mfu {cluster.mfu:g}, --headroom {cluster.headroom:g}: parts of a whole, as 0.4 and 0.1 are")
    if cluster.restart_s < 0 or (cluster.price or 0) < 0:
        raise ConfigError("--restart-seconds and --price cannot be less than 0")
