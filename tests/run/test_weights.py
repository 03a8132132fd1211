"""Weights files are read to the model that was saved, or refused before they cost memory."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline.errors import CheckpointError
from pipeline.models.vit.model import VisionTransformer, ViTConfig
from pipeline.run.weights import load_weights, read_weights_header, save_weights

CONFIG = ViTConfig(
    image_size=8, patch_size=4, width=8, depth=2, mlp_dim=12, num_heads=2, num_classes=3, representation_size=None, dropout=0.1
)  # fmt: skip


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    model = VisionTransformer(CONFIG)
    model.init_weights(torch.Generator().manual_seed(0))
    path = tmp_path / "weights" / "step_00000007.safetensors"
    save_weights(path, dict(model.state_dict()), model=CONFIG, step=7, images_seen=56)
    return path


def rewrite(path: Path, **facts: str) -> None:
    """Write other facts into the header, and leave the tensors as they are."""
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    save_file(load_file(path), path, metadata={**header, **facts})


def test_weights_are_read_as_they_were_saved(weights: Path) -> None:
    loaded = load_weights(weights)
    assert (loaded.header.model, loaded.header.step, loaded.header.images_seen) == (CONFIG, 7, 56)
    assert all(torch.equal(tensor, load_file(weights)[name]) for name, tensor in loaded.model.state_dict().items())


@pytest.mark.parametrize(
    "change",
    [
        {"depth": 10**9}, {"depth": 3}, {"width": 2**31 - 2}, {"num_classes": 2**31 - 1}, {"image_size": 2**31 - 4},
        {"mlp_dim": 2**20},
        {"representation_size": 2**30}, {"depth": True}, {"width": 8.0}, {"width": "8"}, {"num_heads": 0}, {"num_heads": 3},
        {"patch_size": -4}, {"dropout": float("nan")}, {"dropout": 1}, {"head_bias": "0"}, {"image_size": 9}, {"unknown": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_header_that_describes_another_model_is_refused_before_one_is_made(weights: Path, change: dict[str, object]) -> None:
    rewrite(weights, model=json.dumps({**CONFIG.to_dict(), **change}))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (256 << 20), before[1]))
    try:
        with pytest.raises(CheckpointError, match="damaged"):
            load_weights(weights)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize(
    "facts", [{"step": "-7"}, {"step": "7.0"}, {"images_seen": "²"}, {"model": "[" * 5}, {"model": "null"}], ids=str
)
def test_other_facts_are_refused(weights: Path, facts: dict[str, str]) -> None:
    rewrite(weights, **facts)
    with pytest.raises(CheckpointError, match="damaged"):
        read_weights_header(weights)


def test_a_flipped_bit_is_noticed(weights: Path) -> None:
    data = bytearray(weights.read_bytes())
    data[-10] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match="differ from the digest"):
        load_weights(weights)
