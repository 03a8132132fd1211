"""Trainings of every model family: they go on bit for bit where they were stopped, and their weights are evaluated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

from pipeline.run.checkpoint import RunFolder
from pipeline.run.records import read_json_lines, read_metrics
from pipeline.run.weights import load_weights
from tests.conftest import Outcome
from tests.helpers.trainings import train_together

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 4
FAMILIES: dict[str, dict[str, Any]] = {
    "bit_v1": {"family": "bit", "name": "R50x0.5", "variant": "v1", "blocks": [1, 1], "image_size": 32},
    "hybrid": {
        "family": "hybrid",
        "name": "R26+Ti/32",
        "blocks": [1, 1],
        "root_width": 32,
        "image_size": 32,
        "width": 32,
        "depth": 2,
        "num_heads": 2,
    },
    "bit_v2": {"family": "bit", "name": "R50x0.5", "variant": "v2", "blocks": [1, 1], "image_size": 32},
}
TIMM: dict[str, dict[str, Any]] = {
    "swin": {
        "name": "swin_tiny_patch4_window7_224",
        "options": {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 2,
                    "drop_path_rate": 0.1},
    },
    "pvt_v2": {"name": "pvt_v2_b0", "options": {"depths": [1, 1, 1, 1], "embed_dims": [16, 32, 80, 64]}},
    "batch_norm": {"name": "test_resnet", "options": {}},
    "convnext": {"name": "convnext_atto", "options": {"depths": [1, 1, 2, 1], "dims": [8, 16, 32, 64]}},
}  # fmt: skip


def train_whole_and_in_parts(
    folder: Path,
    tiny_config: dict[str, Any],
    models: dict[str, dict[str, Any]],
    *,
    module: str = "tests.helpers.rank_scenarios",
) -> Path:
    """Each model under ZeRO-2 on two ranks, in one launch: in FOLDER/whole in one go, in FOLDER/parts stopped half-way."""
    configs = []
    for name, model in models.items():
        for runs, stop_step in (("whole", STEPS), ("parts", STEPS // 2), ("parts", STEPS)):
            trainer = {**tiny_config["trainer"], "duration": f"{STEPS} steps", "max_steps": stop_step, "precision": "fp32"}
            values = {
                **tiny_config,
                "name": name,
                "output_dir": str(folder / runs),
                "model": {**model, "num_classes": 4},
                "checkpoint": {"every": "100 steps"},
                "trainer": trainer,
            }
            configs.append(folder / f"{runs}-{stop_step}" / f"{name}.yaml")
            configs[-1].parent.mkdir(exist_ok=True)
            configs[-1].write_text(yaml.safe_dump(values))
    train_together(configs, folder / "scenarios.json", module=module)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_config: dict[str, Any]) -> Path:
    return train_whole_and_in_parts(tmp_path_factory.mktemp("families"), tiny_config, FAMILIES)


@pytest.fixture(scope="module")
def trained_timm(tmp_path_factory: pytest.TempPathFactory, tiny_config: dict[str, Any], timm: ModuleType) -> Path:
    models = {name: {"family": "timm", "image_size": 64, **model} for name, model in TIMM.items()}
    folder = tmp_path_factory.mktemp("timm")
    return train_whole_and_in_parts(folder, tiny_config, models, module="tests.helpers.timm_scenarios")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_run_goes_on_with_the_same_bits_and_is_evaluated(name: str, trained: Path, call: Callable[..., Outcome]) -> None:
    assert_goes_on_with_the_same_bits(trained, name)
    assert_is_evaluated(trained, name, call)


@pytest.mark.parametrize("name", TIMM)
def test_a_run_of_a_timm_model_does_so_too(name: str, trained_timm: Path, call: Callable[..., Outcome]) -> None:
    assert_goes_on_with_the_same_bits(trained_timm, name)
    assert_is_evaluated(trained_timm, name, call)


def assert_goes_on_with_the_same_bits(folder: Path, name: str) -> None:
    whole, parts = (RunFolder(folder / runs / name) for runs in ("whole", "parts"))
    assert parts.checkpoint_steps() == [STEPS // 2, STEPS]
    ours, theirs, first = (
        load_weights(run.weights_of(step)).model.state_dict() for run, step in ((parts, STEPS), (whole, STEPS), (whole, 0))
    )
    for key, tensor in theirs.items():
        if ".running_" in key:  # ranks have their own, and begin again with their mean: in another order to the last bit
            torch.testing.assert_close(ours[key], tensor, rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(ours[key], tensor), key
    assert any(not torch.equal(first[key], tensor) for key, tensor in theirs.items())
    ours, theirs = read_metrics(parts.metrics), read_metrics(whole.metrics)
    for key in ("step", "train/loss", "train/gradient_norm", "data/digest"):
        assert [row[key] for row in ours] == [row[key] for row in theirs], key
    assert all(row["train/gradient_norm"] > 0 for row in ours)


def assert_is_evaluated(folder: Path, name: str, call: Callable[..., Outcome]) -> None:
    run = RunFolder(folder / "whole" / name)
    outcome = call("evaluate", str(run.root))
    assert outcome.code == 0, outcome.text
    rows = list(read_json_lines(run.evaluations))
    assert {row["step"] for row in rows} == {0, STEPS}
    assert all(0 <= row["accuracy"] <= 1 for row in rows)
