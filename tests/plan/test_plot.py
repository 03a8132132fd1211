"""Failures are simulated and drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ConfigError
from pipeline.plan.plot import draw_simulation, simulate_failures
from tests.plan.test_forecast import forecast


def test_the_simulation_tries_intervals_around_youngs_and_finds_dalys() -> None:
    checkpoints = forecast(num_nodes=512).checkpoints
    simulation = simulate_failures(checkpoints)
    assert simulation.intervals_s[0] < checkpoints.young_s / 10
    assert simulation.intervals_s[-1] > checkpoints.young_s * 10
    steps = np.diff(np.log(simulation.intervals_s))
    assert steps == pytest.approx(steps[0])
    assert simulation.best_interval_s == pytest.approx(checkpoints.daly_s, rel=0.5)
    assert simulation.lost.mean(axis=0).min() == pytest.approx(checkpoints.lost_at_daly, rel=0.05)
    assert (simulate_failures(checkpoints).lost == simulation.lost).all()  # the same numbers each time


def test_no_interval_is_longer_than_what_is_simulated() -> None:
    assert simulate_failures(forecast(num_nodes=1).checkpoints).intervals_s[-1] <= 30 * 86_400


def test_a_picture_has_the_format_of_its_name(tmp_path: Path) -> None:
    plan = forecast(num_nodes=64)
    simulation = simulate_failures(plan.checkpoints)
    draw_simulation(simulation, forecast=plan, path=tmp_path / "lost.png")
    with Image.open(tmp_path / "lost.png") as picture:
        assert picture.format == "PNG"
        assert np.asarray(picture.convert("L")).std() > 10  # something is drawn
    for name in ("lost.nonsense", "missing/lost.png"):
        with pytest.raises(ConfigError, match=r"cannot be written .*name a \.png in a folder that exists"):
            draw_simulation(simulation, forecast=plan, path=tmp_path / name)
