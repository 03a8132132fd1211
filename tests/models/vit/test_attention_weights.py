"""The attention weights that figures show are those that the forward pass uses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.exchange.source import read_pretrained
from pipeline.models.vit.layers import Attention
from pipeline.models.vit.model import VisionTransformer, ViTConfig

CONFIG = ViTConfig(
    image_size=(16, 24),
    patch_size=8,
    width=32,
    depth=3,
    mlp_dim=64,
    num_heads=2,
    num_classes=4,
    representation_size=None,
    dropout=0.0,
)


@pytest.mark.parametrize(
    "changes", [{}, {"position": "relative"}, {"qk_norm": True}, {"registers": 2}, {"pooling": "gap"}], ids=str
)
def test_they_give_the_attentions_own_output(changes: dict[str, Any]) -> None:
    model = VisionTransformer(replace(CONFIG, **changes))
    model.init_weights(torch.Generator().manual_seed(0))
    inputs: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []

    def keep(_module: torch.nn.Module, given: tuple[torch.Tensor], out: torch.Tensor) -> None:
        inputs.append(given[0])
        outputs.append(out)

    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    for attention in attentions:
        attention.register_forward_hook(keep)
    images = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    layers = model.eval().attention_weights(images)
    assert len(layers) == 3
    for attention, weights, given, out in zip(attentions, layers, inputs, outputs, strict=True):
        batch, length, width = given.shape
        assert weights.shape == (batch, 2, length, length)
        value = attention.qkv(given)[..., 2 * width :].unflatten(-1, (2, -1)).transpose(1, 2)
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        torch.testing.assert_close(attention.out(mixed), out, rtol=1e-5, atol=1e-6)


def test_they_are_transformers(timm: Any, tmp_path: Path) -> None:
    """An exported model gives the same weights in transformers."""
    del timm
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=8,
        layer_norm_eps=1e-6, attn_implementation="eager",
    )  # fmt: skip
    theirs = transformers.ViTModel(config, add_pooling_layer=False).eval()
    theirs.save_pretrained(tmp_path)
    found = read_pretrained(tmp_path)
    ours = found.build()
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(images.float() / 127.5 - 1.0, output_attentions=True).attentions
    assert isinstance(ours, VisionTransformer)
    for layer, reference in zip(ours.attention_weights(images), expected, strict=True):
        torch.testing.assert_close(layer, reference, rtol=1e-5, atol=1e-6)
