"""Blocks that are computed again, and blocks that are compiled, against the plain model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline.config.read import load_config
from pipeline.config.resolve import resolve_run
from pipeline.errors import ConfigError
from pipeline.models.vit.model import VisionTransformer, ViTConfig
from pipeline.train.blocks import checkpoint_blocks, every_nth
from tests.conftest import run_command
from tests.train.compiled_blocks import train_once

# Everything that draws masks or owns parameters inside a block.
CONFIG = ViTConfig(
    image_size=16, patch_size=8, width=24, depth=4, mlp_dim=32, num_heads=3, num_classes=5, representation_size=24, dropout=0.1,
    stochastic_depth=0.3, layer_scale=0.1, position="relative", registers=2, qk_norm=True,
)  # fmt: skip


@pytest.mark.parametrize("every", [1, 2, 3, 9])
def test_computing_again_changes_no_bit(every: int) -> None:
    plain, again = train_once(CONFIG), train_once(CONFIG, every=every)
    assert plain.keys() == again.keys()
    assert all(torch.equal(again[name], value) for name, value in plain.items())


def test_every_nth_begins_with_the_first() -> None:
    blocks = list(range(7))
    assert [every_nth(blocks, every) for every in (None, 1, 2, 3, 9)] == [[], blocks, [0, 2, 4, 6], [0, 3, 6], [0]]


def test_without_gradients_nothing_is_kept_or_computed_again() -> None:
    model = VisionTransformer(CONFIG).eval()
    checkpoint_blocks(model.repeated_blocks())
    plain = VisionTransformer(CONFIG).eval()
    plain.load_state_dict(model.state_dict())
    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(model(images), plain(images))


def test_a_family_without_blocks_is_told_so(tmp_path: Path, tiny_config: dict[str, Any]) -> None:
    path = tmp_path / "bit.yaml"
    path.write_text(yaml.safe_dump({**tiny_config, "model": {"family": "bit", "name": "R26x1", "num_classes": 4}}))
    for setting in ("trainer.activation_checkpointing=1", "trainer.compile=blocks"):
        with pytest.raises(ConfigError, match=f"{setting} is about a model's repeated blocks, .* family bit"):
            resolve_run(load_config(path, [setting]), world_size=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_is_equal_to_rounding() -> None:
    """By blocks and as a whole, with and without computing again: fp32 sums in another order, some units of 2^-24 of each."""
    done = run_command(module="tests.train.compiled_blocks", timeout_s=900)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    # One piece for all blocks, and one for the first, which never skips: not one for each rate, of which torch compiles eight.
    assert lines[:2] == [{"rule": "uniform", "graphs": 1}, {"rule": "linear", "graphs": 2}], done.stdout
    rows = lines[2:]
    assert [(row["compiled"], row["every"]) for row in rows] == [("blocks", None), ("blocks", 1), ("model", None), ("model", 1)]
    assert all(row["worst"] < 1e-4 for row in rows), rows
