"""Compute the sizes of a run's checkpoints, and what is lost to failures between two of them."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config.run import RunConfig
from pipeline.optim.base import STATE_ELEMENT_BYTES
from pipeline.plan.cluster import Cluster
from pipeline.plan.compute import Compute
from pipeline.plan.corpus import CorpusFacts, to_steps
from pipeline.plan.failures import Interruptions, daly_interval_s, job_mtbf_s, lost_fraction, young_interval_s
from pipeline.plan.memory import ParameterSizes
from pipeline.plan.storage import moments_bytes, weights_bytes


@dataclass(frozen=True)
class Checkpoints:
    """Describes the checkpoints. Sizes are in bytes, times in seconds.

    Attributes:
        kept_bytes: size on disk at the end of the run, weights included.
        interval_s: interval of the configuration; with these numbers it loses `lost`.
    """

    checkpoint_bytes: int
    weights_bytes: int
    kept_bytes: int
    interruptions: Interruptions
    interval_steps: int
    interval_s: float
    lost: float
    young_s: float
    daly_s: float
    lost_at_daly: float
    expected_failures: float


def forecast_checkpoints(
    config: RunConfig, *, cluster: Cluster, sizes: ParameterSizes, compute: Compute, corpus: CorpusFacts
) -> Checkpoints:
    """Return what checkpoints take, and what failures cost with them.

    Raises:
        ConfigError: as `to_steps`.
    """
    section = config.checkpoint
    every = min(compute.steps, to_steps(section.every, "checkpoint.every", config=config, corpus=corpus))
    kept = min(section.keep_last, -(-compute.steps // every))
    if section.keep_every is not None:
        kept += compute.steps // to_steps(section.keep_every, "checkpoint.keep_every", config=config, corpus=corpus)
    averages = 0 if config.optimizer.average is None else 1
    moments = moments_bytes(sizes, optimizer_bytes=config.optimizer.state_bytes - averages * STATE_ELEMENT_BYTES)
    weights = weights_bytes(sizes, kinds=1 + averages)
    costs = Interruptions(
        mtbf_s=job_mtbf_s(node_mtbf_hours=cluster.node_mtbf_hours, num_nodes=cluster.num_nodes),
        save_s=cluster.save_s,
        restart_s=cluster.restart_s,
    )
    interval, daly = every * compute.step_s, daly_interval_s(costs)
    lost = lost_fraction(interval, costs=costs)
    return Checkpoints(
        checkpoint_bytes=moments + weights,
        weights_bytes=weights,
        kept_bytes=kept * moments + (1 + -(-compute.steps // every)) * weights,
        interruptions=costs,
        interval_steps=every,
        interval_s=interval,
        lost=lost,
        young_s=young_interval_s(costs),
        daly_s=daly,
        lost_at_daly=lost_fraction(daly, costs=costs),
        expected_failures=compute.seconds / (1 - lost) / costs.mtbf_s if lost < 1 else float("inf"),
    )
