"""Activation checkpointing in real training: the same weights at every ZeRO stage."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline.run.checkpoint import RunFolder
from pipeline.run.records import read_metrics
from pipeline.run.weights import load_weights
from tests.helpers.trainings import train_together

STEPS = 3
# Everything that draws masks or owns parameters inside a block.
MODEL = {
    "dropout": 0.1, "stochastic_depth": 0.3, "stochastic_depth_rule": "uniform", "layer_scale": 0.1, "qk_norm": True,
    "position": "relative", "registers": 1, "depth": 3, "image_size": [16, 24],
}  # fmt: skip


BIT = {"family": "bit", "name": "R26x0.5", "variant": "v2", "blocks": [1, 2], "image_size": 32, "num_classes": 4}


def train_all(
    folder: Path, tiny_config: dict[str, Any], trainers: dict[str, dict[str, Any]], *, models: dict[str, dict[str, Any]]
) -> dict[str, RunFolder]:
    """Train each on two ranks, all in one launch."""
    configs = []
    for name, trainer in trainers.items():
        values = {
            **tiny_config,
            "name": name,
            "output_dir": str(folder / "runs"),
            "model": models[name.partition("_")[0]],
            "trainer": {**tiny_config["trainer"], "precision": "fp32", **trainer, "duration": f"{STEPS} steps"},
            "checkpoint": {**tiny_config["checkpoint"], "every": f"{STEPS} steps"},
            "tracking": {"log_every": 1, "mode": "disabled"},
        }
        configs.append(folder / f"{name}.yaml")
        configs[-1].write_text(yaml.safe_dump(values))
    train_together(configs, folder / "scenarios.json")
    return {path.stem: RunFolder(folder / "runs" / path.stem) for path in configs}


def losses_of(run: RunFolder) -> list[float]:
    return [row["train/loss"] for row in read_metrics(run.metrics)]


def tensors_of(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_weights(run.weights_of(STEPS)).model.state_dict()


@pytest.mark.slow
def test_blocks_that_are_computed_again_change_no_bit(tmp_path: Path, tiny_config: dict[str, Any]) -> None:
    """Dropout and stochastic depth included, whose masks must be drawn the same twice."""
    models = {
        "vit": {**tiny_config["model"], **MODEL},
        "bare": {**tiny_config["model"], "dropout": 0.0},  # a block ends with a dense layer, whose parameters ZeRO-3 gathers
        "bit": BIT,
    }
    runs = train_all(
        tmp_path,
        tiny_config,
        {
            f"{family}_zero{stage}_every_{every}": {
                "zero_stage": stage,
                "activation_checkpointing": every,
                "micro_batch_size": 2,
            }
            for stage, everies in ((0, (None, 1)), (1, (None, 1)), (2, (None, 1)), (3, (None, 1, 2)))
            for every in everies
            for family in models
            if family == "vit" or (stage in (0, 3) and every != 2)
        },
        models=models,
    )
    for family, stage in itertools.product(("bare", "bit"), (0, 3)):
        kept, again = runs[f"{family}_zero{stage}_every_None"], runs[f"{family}_zero{stage}_every_1"]
        assert losses_of(again) == losses_of(kept), (family, stage)
        tensors = tensors_of(again)
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in tensors_of(kept).items()), (family, stage)
    for stage in (0, 1, 2, 3):
        kept = runs[f"vit_zero{stage}_every_None"]
        assert len(losses_of(kept)) == STEPS
        for every in (1, 2) if stage == 3 else (1,):
            again = runs[f"vit_zero{stage}_every_{every}"]
            assert losses_of(again) == losses_of(kept), (stage, every)
            tensors = tensors_of(again)
            assert all(torch.equal(tensor, tensors[name]) for name, tensor in tensors_of(kept).items()), (stage, every)
