"""These weights and results of a run folder count."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from pipeline.models.vit.model import VisionTransformer, ViTConfig
from pipeline.run.checkpoint import RunFolder
from pipeline.run.evaluations import read_digest, read_results, set_weights_aside, superseded_weights
from pipeline.run.weights import save_weights

CONFIG = ViTConfig(
    image_size=16,
    patch_size=8,
    width=16,
    depth=1,
    mlp_dim=16,
    num_heads=2,
    num_classes=2,
    representation_size=None,
    dropout=0.0,
)


def write(folder: RunFolder, step: int, *, seed: int) -> None:
    torch.manual_seed(seed)
    save_weights(folder.weights_of(step), VisionTransformer(CONFIG).state_dict(), model=CONFIG, step=step, images_seen=8 * step)


def test_weights_that_a_launch_trains_again_are_set_aside_with_their_results(tmp_path: Path) -> None:
    """A start of another model was abandoned, or checkpoints were damaged: results measured there are not of this run."""
    folder = RunFolder(tmp_path)
    folder.weights.mkdir()
    for step in (0, 4, 8):
        write(folder, step, seed=step)
    rows = [
        {
            "step": step,
            "dataset": "bars",
            "protocol": "linear",
            "accuracy": 0.5,
            "weights": read_digest(folder.weights_of(step)),
        }
        for step in (0, 4, 8)
    ]
    folder.evaluations.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [row["step"] for row in read_results(folder).rows] == [0, 4, 8]
    assert set_weights_aside(folder, after=4) == [8]
    assert folder.weight_steps() == [0, 4]
    assert superseded_weights(folder, 8).exists()
    assert [row["step"] for row in read_results(folder).rows] == [0, 4]
    assert set_weights_aside(folder, after=-1) == [0, 4]
    write(folder, 0, seed=7)
    assert read_results(folder).rows == []
    write(folder, 0, seed=0)  # trained again, to the same bits
    assert [row["step"] for row in read_results(folder).rows] == [0]
