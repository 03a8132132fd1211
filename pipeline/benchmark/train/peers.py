"""Build other libraries' Vision Transformers of the same shape as ours. Their weights are their own."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from pipeline.benchmark.torchvision_operators import declare_torchvision_operators
from pipeline.errors import ConfigError
from pipeline.image_size import height_and_width
from pipeline.models.vit.model import ViTConfig

# What both libraries' plain models have; a configuration of anything else is measured without them.
PLAIN = {
    "pooling": "class_token", "position": "learned_1d", "position_at": "stem", "position_class_token": True,
    "representation_size": None, "qkv_bias": True, "qk_norm": False, "layer_scale": None, "registers": 0,
    "stochastic_depth": 0.0, "gelu": "exact", "dropout": 0.0,
}  # fmt: skip


def check_plain(config: Any) -> ViTConfig:
    """Return the configuration if other libraries' plain models have its shape.

    Raises:
        ConfigError: they have not.
    """
    if not isinstance(config, ViTConfig):
        raise ConfigError(f"left out: a plain Vision Transformer is not a model of the family {config.family}")
    differs = [name for name, value in PLAIN.items() if getattr(config, name) != value]
    if differs:
        raise ConfigError(f"left out: its plain model has no such {', '.join(differs)}")
    return config


def timm_model(config: Any) -> nn.Module:
    """Return timm's `VisionTransformer`.

    Raises:
        ConfigError: it has no such model.
        ImportError: timm is not installed.
    """
    config = check_plain(config)
    declare_torchvision_operators()
    library = importlib.import_module("timm.models.vision_transformer")
    return library.VisionTransformer(
        img_size=height_and_width(config.image_size),
        patch_size=config.patch_size,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_dim / config.width,
        num_classes=config.num_classes,
    )


def transformers_model(config: Any) -> nn.Module:
    """Return transformers' `ViTForImageClassification`.

    Raises:
        ConfigError: it has no such model.
        ImportError: transformers is not installed.
    """
    config = check_plain(config)
    declare_torchvision_operators()
    library = importlib.import_module("transformers")
    settings = library.ViTConfig(
        image_size=height_and_width(config.image_size),
        patch_size=config.patch_size,
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        intermediate_size=config.mlp_dim,
        num_labels=config.num_classes,
        attn_implementation="sdpa",
    )
    return library.ViTForImageClassification(settings)
