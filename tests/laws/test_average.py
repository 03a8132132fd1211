"""Averaged weights in whole trainings: a resumed run publishes the same average, bit for bit, on other ranks too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.run.checkpoint import RunFolder
from pipeline.run.folder import WeightsName
from pipeline.run.weights import load_weights
from tests.helpers.trainings import train_together
from tests.laws.test_elastic import write_scenario

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SCENARIOS: dict[str, tuple[int, str, dict[str, Any]]] = {
    "zero0": (0, "fp32", {"average": {"decay": 0.8}}),
    "zero2_muon": (2, "fp32", {"name": "muon", "average": {"decay": 0.8}}),
    "zero3_lamb": (3, "fp32", {"name": "lamb", "average": {"decay": 0.8, "warmup": "timm"}}),
    "zero1_bf16": (1, "bf16", {"average": {"decay": 0.8}, "layer_decay": 0.8}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_config: dict[str, Any]) -> Path:
    """Each in one go, in two launches of two ranks, and in two launches of which the second has three."""
    folder = tmp_path_factory.mktemp("averages")
    first, second = [], []
    for name, (stage, precision, optimizer) in SCENARIOS.items():
        scenario: dict[str, Any] = {"stage": stage, "precision": precision, "duration": "6 steps"}
        whole, parts, other = (
            {**tiny_config, "output_dir": str(folder / kind), "optimizer": {**tiny_config["optimizer"], **optimizer}}
            for kind in ("whole", "parts", "other")
        )
        first.append(write_scenario(folder / "a", whole, name, **scenario))
        first.append(write_scenario(folder / "b", parts, name, max_steps=3, **scenario))
        first.append(write_scenario(folder / "c", parts, name, **scenario))
        first.append(write_scenario(folder / "d", other, name, max_steps=3, **scenario))
        second.append(write_scenario(folder / "e", other, name, **scenario))
    train_together(first, folder / "first.json")
    train_together(second, folder / "second.json", num_ranks=3)
    return folder


def average_of(folder: Path, name: str) -> dict[str, torch.Tensor]:
    run = RunFolder(folder / name)
    assert run.weight_names()[-2:] == [WeightsName(6), WeightsName(6, "average")]
    return load_weights(run.weights_of(6, "average")).model.state_dict()


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_run_that_is_taken_up_again_has_the_same_average(name: str, folder: Path) -> None:
    ours, theirs = average_of(folder / "parts", name), average_of(folder / "whole", name)
    raw = load_weights(RunFolder(folder / "whole" / name).weights_of(6)).model.state_dict()
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key
    assert any(not torch.equal(raw[key], tensor) for key, tensor in theirs.items())


@pytest.mark.parametrize("name", SCENARIOS)
def test_other_ranks_go_on_with_it(name: str, folder: Path) -> None:
    """bf16 rounds weights and products to 3 digits, so a step of 2e-3 may differ by some of it."""
    tolerance = 2e-3 if "bf16" in name else 2e-4
    theirs = average_of(folder / "whole", name)
    for key, tensor in average_of(folder / "other", name).items():
        torch.testing.assert_close(tensor, theirs[key], atol=tolerance, rtol=1e-3, msg=lambda text, key=key: f"{key}: {text}")
