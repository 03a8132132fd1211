"""Float8 in real training: the same at every ZeRO stage, the same bits after a resume, and a loss next to fp32's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline.run.checkpoint import RunFolder
from pipeline.run.records import read_metrics
from pipeline.run.weights import load_weights
from tests.helpers.trainings import train_together

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = 20


def write(folder: Path, tiny_config: dict[str, Any], name: str, **trainer: Any) -> Path:
    values = {
        **tiny_config,
        "name": name,
        "output_dir": str(folder / "runs"),
        "model": {**tiny_config["model"], "dropout": 0.0},
        "trainer": {**tiny_config["trainer"], "precision": "fp32", "duration": f"{STEPS} steps", **trainer},
        "checkpoint": {"every": f"{STEPS // 2} steps"},
    }
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def losses_of(run: RunFolder) -> list[float]:
    return [row["train/loss"] for row in read_metrics(run.metrics)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_config: dict[str, Any]) -> dict[str, RunFolder]:
    folder = tmp_path_factory.mktemp("float8")
    trainers: dict[str, dict[str, Any]] = {"fp32": {"zero_stage": 1}}
    for recipe in ("tensorwise", "rowwise", "rowwise_with_gw_hp"):
        trainers[recipe] = {"zero_stage": 1, "float8": recipe}
    for stage in (0, 2, 3):
        again = 1 if stage == 3 else None
        trainers[f"stage_{stage}"] = {"zero_stage": stage, "float8": "tensorwise", "activation_checkpointing": again}
    trainers["parts"] = {"zero_stage": 1, "float8": "tensorwise", "max_steps": STEPS // 2}
    train_together([write(folder, tiny_config, name, **each) for name, each in trainers.items()], folder / "first.json")
    rest = write(folder / "rest", tiny_config, "parts", zero_stage=1, float8="tensorwise")
    rest.write_text(rest.read_text().replace(str(folder / "rest" / "runs"), str(folder / "runs")))
    train_together([rest], folder / "second.json")
    return {name: RunFolder(folder / "runs" / name) for name in trainers}


def distance(ours: list[float], theirs: list[float]) -> float:
    return math.dist(ours, theirs) / math.hypot(*theirs)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_every_stage_has_the_same_losses(stage: int, runs: dict[str, RunFolder]) -> None:
    """Stages sum gradients in another order: the same losses, until a value falls on the other side in a rounding to float8.

    From there on they differ by some roundings, and less than by all roundings, which tell float8 from fp32.
    """
    ours, theirs = losses_of(runs[f"stage_{stage}"]), losses_of(runs["tensorwise"])
    assert ours[:3] == pytest.approx(theirs[:3], rel=1e-6)
    assert distance(ours, theirs) < distance(losses_of(runs["fp32"]), theirs) / 2


def test_a_resumed_training_has_the_same_bits(runs: dict[str, RunFolder]) -> None:
    assert losses_of(runs["parts"]) == losses_of(runs["tensorwise"])
    ours, theirs = (load_weights(runs[name].weights_of(STEPS)).model.state_dict() for name in ("parts", "tensorwise"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise", "rowwise_with_gw_hp"])
def test_the_loss_is_that_of_fp32_to_a_per_cent(recipe: str, runs: dict[str, RunFolder]) -> None:
    ours, theirs = losses_of(runs[recipe]), losses_of(runs["fp32"])
    assert ours != theirs
    assert ours == pytest.approx(theirs, rel=0.01)
