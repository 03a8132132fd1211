"""Checkpoint intervals agree with published values, and the cost function with simulated runs."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.plan.failures import (
    LLAMA_3_NODE_MTBF_HOURS,
    Interruptions,
    daly_interval_s,
    job_mtbf_s,
    lost_fraction,
    simulate,
    young_interval_s,
)

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0


@pytest.mark.parametrize(("mtbf_s", "minutes"), [(24 * HOUR, 117), (6 * HOUR, 57), (15 * MINUTE, 9.1)])
def test_dalys_own_examples(mtbf_s: float, minutes: float) -> None:
    """The captions of figures 3 to 5 of Daly 2006 have 5 minutes to save and 10 to restart."""
    costs = Interruptions(mtbf_s=mtbf_s, save_s=5 * MINUTE, restart_s=10 * MINUTE)
    assert daly_interval_s(costs) / MINUTE == pytest.approx(minutes, rel=0.006)


@pytest.mark.parametrize(("mtbf_s", "save_s"), [(24 * HOUR, 300.0), (3 * HOUR, 60.0), (1 * HOUR, 300.0)])
def test_dalys_interval_is_the_cheapest(mtbf_s: float, save_s: float) -> None:
    costs = Interruptions(mtbf_s=mtbf_s, save_s=save_s, restart_s=600.0)
    intervals = np.geomspace(10, 2 * mtbf_s, 2000)
    lost = [lost_fraction(interval, costs=costs) for interval in intervals]
    assert daly_interval_s(costs) == pytest.approx(intervals[np.argmin(lost)], rel=0.02)
    assert lost_fraction(daly_interval_s(costs), costs=costs) <= lost_fraction(young_interval_s(costs), costs=costs)


def test_played_runs_lose_what_the_cost_function_says() -> None:
    """Means of 400 runs of 30 days agree within four standard errors and what the run's two ends may add."""
    costs = Interruptions(mtbf_s=3 * HOUR, save_s=60.0, restart_s=600.0)
    intervals = np.array([200.0, 1200.0, 4000.0])
    played = simulate(intervals, costs=costs, duration_s=30 * DAY, num_runs=400, generator=np.random.default_rng(0))
    error = played.lost.std(axis=0) / np.sqrt(len(played.lost))
    for interval, mean, deviation in zip(intervals, played.lost.mean(axis=0), error, strict=True):
        ends = (interval + costs.restart_s) / (30 * DAY)
        assert abs(mean - lost_fraction(interval, costs=costs)) < 4 * deviation + ends


def test_llama_3_kept_more_than_ninety_percent() -> None:
    """It kept 90 % of its time (arXiv 2407.21783, section 3.3.4), with a failure in 3.1 hours. The formulas allow that where a
    save stops training for at most ten seconds and a restart takes ten minutes; a minute for each save would not.
    """
    mtbf_s = job_mtbf_s(node_mtbf_hours=LLAMA_3_NODE_MTBF_HOURS, num_nodes=2048)
    assert mtbf_s == pytest.approx(54 * DAY / 419)
    quick, slow = (Interruptions(mtbf_s=mtbf_s, save_s=save_s, restart_s=600.0) for save_s in (10.0, 60.0))
    assert lost_fraction(daly_interval_s(quick), costs=quick) < 0.10 < lost_fraction(daly_interval_s(slow), costs=slow)
