"""Blocks that are computed again, and blocks that are compiled, against the plain model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml
from torch import Tensor

from pipeline.config.read import load_config
from pipeline.config.resolve import resolve_run
from pipeline.errors import ConfigError
from pipeline.models.vit.model import VisionTransformer, ViTConfig
from pipeline.train.blocks import checkpoint_blocks, compile_blocks, every_nth

# Everything that draws masks or owns parameters inside a block.
CONFIG = ViTConfig(
    image_size=16, patch_size=8, width=24, depth=4, mlp_dim=32, num_heads=3, num_classes=5, representation_size=24, dropout=0.1,
    stochastic_depth=0.3, layer_scale=0.1, position="relative", registers=2, qk_norm=True,
)  # fmt: skip


def train_once(
    config: ViTConfig, *, every: int | None = None, compiled: Literal["blocks", "model"] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and gradients of a training pass."""
    model = VisionTransformer(config)
    model.init_weights(torch.Generator().manual_seed(0))
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
    if compiled == "blocks":
        compile_blocks(model.repeated_blocks())
    checkpoint_blocks(every_nth(model.repeated_blocks(), every))
    if compiled == "model":
        model.compile()
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(5)
    logits = model(images)
    logits.square().sum().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("every", [1, 2, 3, 9])
def test_computing_again_changes_no_bit(every: int) -> None:
    (logits, gradients), (again, of_again) = train_once(CONFIG), train_once(CONFIG, every=every)
    assert torch.equal(again, logits)
    assert of_again.keys() == gradients.keys()
    assert all(torch.equal(of_again[name], gradient) for name, gradient in gradients.items())


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
@pytest.mark.parametrize("every", [None, 1])
@pytest.mark.parametrize("compiled", ["blocks", "model"])
def test_compiled_is_equal_to_rounding(compiled: Literal["blocks", "model"], every: int | None) -> None:
    """Compiled code rounds in another order, and draws other masks, so this is without masks."""
    config = replace(CONFIG, dropout=0.0, stochastic_depth=0.0, depth=2)
    (logits, gradients), (other, others) = train_once(config), train_once(config, every=every, compiled=compiled)
    torch.testing.assert_close(other, logits, atol=1e-5 * float(logits.abs().max()), rtol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, atol=1e-5 * float(gradient.abs().max()), rtol=1e-4)
