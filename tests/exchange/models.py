"""Models of every family and choice, small and with random weights, for round trips through other libraries' formats."""

from __future__ import annotations

from typing import Any

from pipeline.exchange.pretrained import Pretrained
from pipeline.models.base import ModelConfig
from pipeline.models.bit.section import BiT
from pipeline.models.hybrid.section import Hybrid
from pipeline.models.vit.section import ViT
from tests.helpers.parity.cases import fill

CLASSES = ("ant", "bee", "cat", "dog", "élan", "fox", "gnu")
SMALL: dict[str, Any] = {"representation": "none", "num_classes": len(CLASSES), "depth": 2, "width": 48, "num_heads": 3}
# Settings that differ from a class token, learned 1-D positions at the stem and the exact GELU.
VITS: dict[str, dict[str, Any]] = {
    "class_token": {},
    "tanh_gelu": {"gelu": "tanh"},
    "positions_on_patches": {"position_class_token": False},
    "gap": {"pooling": "gap"},
    "map": {"pooling": "map", "gelu": "tanh"},
    "registers": {"registers": 4, "layer_scale": 0.1},
    "layer_scale": {"layer_scale": 0.1},
    "qk_norm": {"qk_norm": True, "qkv_bias": False},
    "sincos": {"position": "sincos_2d"},
    "learned_2d": {"position": "learned_2d"},
    "no_positions": {"position": "none"},
    "wide_images": {"image_size": (32, 48)},
    "mlp_of_any_width": {"mlp_dim": 101},
    "pre_logits": {"representation": "tanh"},
    "relative": {"position": "relative"},
    "every_layer": {"position_at": "every_layer"},
}


def config_of(name: str) -> ModelConfig:
    if name == "hybrid":
        return Hybrid(name="R26+S/32", image_size=64, **SMALL).resolve()
    if name == "hybrid_root":
        return Hybrid(name="R+Ti/16", image_size=32, **SMALL).resolve()
    if name == "bit":
        return BiT(name="R50x1", num_classes=len(CLASSES), image_size=64).resolve()
    return ViT(**{"name": "Ti/16", "image_size": 32, **SMALL, **VITS[name]}).resolve()


def model_of(name: str) -> Pretrained:
    config = config_of(name)
    return Pretrained(config, dict(fill(config.build()).state_dict()), source=name, class_names=CLASSES)
