"""Write run folders as trainings leave them, by the product's own writers without a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from pipeline.models.vit.model import VisionTransformer, ViTConfig
from pipeline.run.checkpoint import (
    FORMAT,
    MODEL_FILE,
    CheckpointMeta,
    RunFolder,
    describe_files,
    files_of,
    publish,
    write_meta,
)
from pipeline.run.weights import save_tensors, save_weights

TINY = ViTConfig(
    image_size=8, patch_size=4, width=16, depth=1, mlp_dim=16, num_heads=2, num_classes=3, representation_size=None, dropout=0.0
)


def write_weights(run: RunFolder, step: int, *, seed: int = 0, model: ViTConfig = TINY) -> Path:
    """Write weights of a step, different for each step and seed."""
    vit = VisionTransformer(model)
    vit.init_weights(torch.Generator().manual_seed(1000 * seed + step))
    run.root.mkdir(exist_ok=True)
    save_weights(run.weights_of(step), vit.state_dict(), model=model, step=step, images_seen=8 * step)
    return run.weights_of(step)


def write_checkpoint(run: RunFolder, step: int, *, seed: int = 0, model: ViTConfig = TINY, **meta: Any) -> Path:
    """Write a checkpoint of a step, and its weights."""
    weights = write_weights(run, step, seed=seed, model=model)
    staging = run.staging_of(step)
    staging.mkdir(parents=True)
    (staging / MODEL_FILE).hardlink_to(weights)
    save_tensors(
        staging / "moments-00000-of-00001.safetensors",
        {"exp_avg/head.weight": torch.ones(3), "exp_avg_sq/head.weight": torch.ones(3)},
    )
    values: dict[str, Any] = {
        "format": FORMAT,
        "step": step,
        "images_seen": 8 * step,
        "num_updates": step,
        "skipped_steps": 0,
        "callbacks": {},
        "world_size": 1,
        "zero_stage": 1,
        "wandb_id": "abc",
        "data_fingerprint": "f",
        "order_version": 1,
        "versions": {"pipeline": "1.0"},
    }
    write_meta(staging, CheckpointMeta(**{**values, **meta}))
    publish(staging, run.checkpoint_of(step), manifest=describe_files(staging, files_of(staging)))
    return run.checkpoint_of(step)


def rewrite_manifest(checkpoint: Path) -> None:
    """Rewrite the manifest, so that a test's change passes for what was written."""
    (checkpoint / "manifest.json").write_text(json.dumps(describe_files(checkpoint, files_of(checkpoint))))
