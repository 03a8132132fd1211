"""A forecast is written in words and in JSON."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

from pipeline.plan.forecast import Forecast
from pipeline.plan.plot import simulate_failures
from pipeline.plan.text import columns, to_json, to_text
from tests.plan.test_forecast import forecast


def with_loss(plan: Forecast, **changes: Any) -> Forecast:
    return dataclasses.replace(plan, checkpoints=dataclasses.replace(plan.checkpoints, **changes))


def test_json_holds_every_number_and_no_infinity() -> None:
    plan = with_loss(forecast(price=2.0), lost=1.0, expected_failures=float("inf"))

    def refuse(name: str) -> None:
        raise AssertionError(name)

    values = json.loads(to_json(plan, None), parse_constant=refuse)
    assert values["checkpoints"]["expected_failures"] is None
    assert values["compute"]["cost"] == plan.compute.cost
    assert values["memory"][3]["state"]["masters"] == plan.memory[3].state.masters
    assert "simulation" not in values


def test_the_simulation_is_in_both() -> None:
    plan = forecast(num_nodes=64)
    simulation = simulate_failures(plan.checkpoints)
    values = json.loads(to_json(plan, simulation))["simulation"]
    assert values["mean_lost"] == pytest.approx(simulation.lost.mean(axis=0))
    assert values["mean_lost"][values["intervals_s"].index(values["best_interval_s"])] == min(values["mean_lost"])
    assert "Simulated: 30 days of it" in to_text(plan, simulation)
    assert "Simulated" not in to_text(plan, None)


def test_a_run_that_never_ends_gets_no_date_and_no_price() -> None:
    plan = forecast(price=2.0)
    assert re.search(r"of steps; \d.* with failures \(below\)", to_text(plan, None))
    assert re.search(r"GPU hour; [\d,]+ with failures", to_text(plan, None))
    text = to_text(with_loss(plan, lost=1.0, expected_failures=float("inf")), None)
    assert "with failures it never ends (below)" in text
    assert not re.search(r"GPU hour; [\d,]+ with failures", text)
    assert "100.0% lost" in text


def test_a_slow_network_is_said_loudly() -> None:
    fast, slow = (to_text(forecast(network_gb_per_s=rate), None) for rate in (50.0, 2.0))
    assert "LONGER than computing" not in fast
    (most,) = re.findall(r"LONGER than computing: (\d+)% MFU", slow)
    assert 0 < int(most) < 40
    assert f"a step, at {most}% MFU" in slow
    assert "from each node a step" not in to_text(forecast(num_nodes=1), None)  # alone it sends nothing


def test_a_stage_that_reduces_at_the_end_is_told_of_one_that_does_not() -> None:
    advice = "trainer.zero_stage=2 reduces next to the backward pass"
    text = to_text(forecast("trainer.zero_stage=1"), None)
    ((own, other),) = re.findall(rf"the step takes (\d+)% longer; {advice}: (\d+)%", text)
    assert int(other) < int(own)
    assert advice not in to_text(forecast("trainer.zero_stage=2"), None)
    assert advice not in to_text(forecast("trainer.zero_stage=1", "trainer.overlap_comm=false"), None)


def test_a_count_of_one_has_no_plural() -> None:
    assert "on 1 node of 1 H100 (1 GPU)" in to_text(forecast(num_nodes=1, gpus_per_node=1), None)
    assert "on 4 nodes of 8 H100 (32 GPUs)" in to_text(forecast(), None)


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    lines = columns([["a", "bb", "c"], ["ddd", "e", "ffff"]]).split("\n")
    assert lines == ["  a    bb     c", "  ddd  e   ffff"]


def test_the_table_marks_the_configurations_own_stage() -> None:
    text = to_text(forecast("trainer.zero_stage=2"), None)
    marked = [line.split()[0] for line in text.split("\n") if re.match(r"  \d \*", line)]
    assert marked == ["2"]
