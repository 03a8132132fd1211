"""Compute how often to save when nodes fail, and what failures cost. Times are in seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Llama 3 (arXiv 2407.21783, section 3.3.4): 419 unexpected interruptions in 54 days on 16,384 GPUs, 8 in a node.
LLAMA_3_NODE_MTBF_HOURS = 54 * 24 * (16_384 / 8) / 419

Float64s = NDArray[np.float64]


@dataclass(frozen=True)
class Interruptions:
    """Says what stops a job, and what stopping costs.

    Attributes:
        mtbf_s: mean time between failures of the whole job: any node's failure stops it.
        save_s: time of a checkpoint, in which no step is made.
        restart_s: time from a failure to the first step after it.
    """

    mtbf_s: float
    save_s: float
    restart_s: float


def job_mtbf_s(*, node_mtbf_hours: float, num_nodes: int) -> float:
    """Return the mean time between failures of a job on nodes that fail independently (a Poisson process each)."""
    return node_mtbf_hours * 3600 / num_nodes


def young_interval_s(costs: Interruptions) -> float:
    """Return the best time from a checkpoint to the next save, to first order: sqrt(2 save MTBF) (Young 1974, CACM 17(9))."""
    return math.sqrt(2 * costs.save_s * costs.mtbf_s)


def daly_interval_s(costs: Interruptions) -> float:
    """Return the same to higher order (Daly 2006, FGCS 22(3), doi 10.1016/j.future.2004.11.016, equation 37)."""
    if costs.save_s >= 2 * costs.mtbf_s:
        return costs.mtbf_s
    part = costs.save_s / (2 * costs.mtbf_s)
    return young_interval_s(costs) * (1 + math.sqrt(part) / 3 + part / 9) - costs.save_s


def lost_fraction(interval_s: float, *, costs: Interruptions) -> float:
    """Return the expected part of the wall clock that is not training: saving, work done twice, restarting.

    This is Daly's complete cost function (same paper). With Poisson failures, which strike while saving and restarting too,
    work of T seconds takes M exp(R / M) (exp((interval + save) / M) - 1) T / interval.
    """
    mtbf = costs.mtbf_s
    exponent = (interval_s + costs.save_s) / mtbf
    if exponent + costs.restart_s / mtbf > 700:  # exp would overflow: nothing is ever finished
        return 1.0
    return 1 - interval_s / (mtbf * math.exp(costs.restart_s / mtbf) * math.expm1(exponent))


@dataclass(frozen=True)
class Simulation:
    """Holds the lost part of the wall clock of simulated runs.

    Attributes:
        intervals_s: (I,) checkpoint intervals tried.
        lost: (runs, I) lost part of the wall clock.
    """

    intervals_s: Float64s
    lost: Float64s

    @property
    def best_interval_s(self) -> float:
        """Return the interval with the least loss on average."""
        return float(self.intervals_s[np.argmin(self.lost.mean(axis=0))])


def simulate(
    intervals_s: Float64s, *, costs: Interruptions, duration_s: float, num_runs: int, generator: np.random.Generator
) -> Simulation:
    """Simulate runs of a fixed wall-clock length, failure by failure. Each run's failures are the same for every interval.

    After a failure come the restart and then segments of work and save until the next one. A segment that a failure cuts is
    lost. The last segment's work counts, as a run saves when it ends.
    """
    lost_to = np.zeros((num_runs, len(intervals_s)))
    remaining = np.full(num_runs, float(duration_s))
    restart = np.zeros(num_runs)  # the first start is not lost time
    segment = intervals_s + costs.save_s
    while np.any(remaining > 0):
        gap = generator.exponential(costs.mtbf_s, num_runs)
        up = np.minimum(gap, remaining)
        computing = np.maximum(up - restart, 0)[:, None]
        done, rest = np.divmod(computing, segment)
        ends_here = (gap >= remaining)[:, None]
        work = done * intervals_s + np.where(ends_here, np.minimum(rest, intervals_s), 0)
        lost_to += up[:, None] - work
        remaining -= up
        restart = np.full(num_runs, costs.restart_s)
    return Simulation(intervals_s, lost_to / duration_s)
