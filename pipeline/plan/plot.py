"""Simulate failures, and draw the simulation."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.console.figures import house_style
from pipeline.console.words import duration
from pipeline.errors import ConfigError
from pipeline.plan.checkpoints import Checkpoints
from pipeline.plan.failures import Simulation, lost_fraction, simulate
from pipeline.plan.forecast import Forecast

DAYS = 30
NUM_RUNS = 500
NUM_INTERVALS = 160  # even, so that none is Young's own
SPAN = 30.0  # intervals from Young's divided by this to Young's times it
SEED = 0


def simulate_failures(checkpoints: Checkpoints) -> Simulation:
    """Simulate 30 days of the job, over checkpoint intervals around Young's."""
    centre = checkpoints.young_s
    return simulate(
        np.geomspace(centre / SPAN, min(centre * SPAN, DAYS * 86_400), NUM_INTERVALS),
        costs=checkpoints.interruptions,
        duration_s=DAYS * 86_400,
        num_runs=NUM_RUNS,
        generator=np.random.default_rng(SEED),
    )


@house_style()
def draw_simulation(simulation: Simulation, *, forecast: Forecast, path: Path) -> None:
    """Draw lost time against checkpoint interval: simulated runs, Daly's cost function, and the intervals to choose from.

    Raises:
        ConfigError: nothing can be written there, or not in the format that the name asks for.
    """
    from matplotlib.figure import Figure

    checkpoints = forecast.checkpoints
    costs = checkpoints.interruptions
    minutes = simulation.intervals_s / 60
    figure = Figure(figsize=(8, 4.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    low, high = np.percentile(100 * simulation.lost, [10, 90], axis=0)
    mean = 100 * simulation.lost.mean(axis=0)
    axes.fill_between(minutes, low, high, color="tab:blue", alpha=0.18, lw=0, label="simulated, 10th to 90th percentile")
    axes.plot(minutes, mean, color="tab:blue", lw=2.2, label=f"simulated, mean of {len(simulation.lost)} runs")
    expected = [100 * lost_fraction(interval, costs=costs) for interval in simulation.intervals_s]
    axes.plot(minutes, expected, color="black", lw=1, ls=(0, (5, 3)), label="Daly's cost function")
    marks = [
        ("Young", checkpoints.young_s, "tab:orange", "-"),
        ("Daly", checkpoints.daly_s, "tab:red", "--"),
        ("as configured", checkpoints.interval_s, "tab:gray", "-."),
    ]
    for name, interval, colour, style in marks:
        if minutes[0] <= interval / 60 <= minutes[-1]:
            axes.axvline(interval / 60, color=colour, ls=style, lw=1.6, label=f"{name}: {duration(interval)}")
    best = simulation.best_interval_s
    axes.plot(best / 60, mean.min(), "o", color="tab:green", ms=8, zorder=5, label=f"best simulated: {duration(best)}")
    axes.set(
        xscale="log",
        xlabel="minutes between checkpoints",
        ylabel="% of the wall clock lost",
        xlim=(minutes[0], minutes[-1]),
        ylim=(0, min(100.0, 5 * float(mean.min()) + 5)),
    )
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.25, which="both", lw=0.5)
    axes.set_title(
        f"{DAYS} days of {forecast.name} on {forecast.cluster.num_nodes} nodes: a failure in {duration(costs.mtbf_s)}, "
        f"{duration(costs.save_s)} to save, {duration(costs.restart_s)} to restart",
        fontsize=10,
    )
    axes.legend(fontsize=8.5, framealpha=0.9)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--simulate {path}: cannot be written ({error}); name a .png in a folder that exists") from error
