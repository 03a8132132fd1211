"""Name our tensors as the files of transformers' models do: ViT, I-JEPA, DINOv2 with registers, and BiT.

These are the names in files of versions 4 and 5: version 5 has other names in memory, and converts what it reads.
"""

from __future__ import annotations

from typing import Literal

import torch

from pipeline.errors import ExchangeError
from pipeline.exchange.pieces import Piece, renamed, split, tensor_names
from pipeline.models.base import ModelConfig
from pipeline.models.bit.model import BiTConfig
from pipeline.models.vit.encoder_config import EncoderConfig

Kind = Literal["vit", "ijepa", "dinov2_with_registers", "bit"]

_VIT_BLOCK = {
    "norm_attention": "layernorm_before",
    "norm_mlp": "layernorm_after",
    "attention.out": "attention.output.dense",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
}
_DINO_BLOCK = {
    "norm_attention": "norm1",
    "norm_mlp": "norm2",
    "attention.out": "attention.output.dense",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}
_DINO_SCALES = {"scale_attention.gamma": "layer_scale1.lambda1", "scale_mlp.gamma": "layer_scale2.lambda1"}
_OUTSIDE = {
    "class_token": "embeddings.cls_token",
    "registers": "embeddings.register_tokens",
    "position": "embeddings.position_embeddings",
    "patch_embed.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
    "pre_logits.weight": "pooler.dense.weight",
    "pre_logits.bias": "pooler.dense.bias",
}
_BIT_BLOCK = {"conv_proj": "downsample.conv", "gn1": "norm1", "gn2": "norm2", "gn3": "norm3"}


def transformers_pieces(config: ModelConfig, kind: Kind, *, has_classifier: bool) -> list[Piece]:
    """Return how transformers' files name the tensors of a model.

    Args:
        kind: `model_type` of its configuration.
        has_classifier: of a model with a classifier the other names begin with the kind.

    Raises:
        ExchangeError: its models have no such tensor.
    """
    names = [name for name in tensor_names(config) if has_classifier or not name.startswith("head.")]
    if isinstance(config, BiTConfig):
        return [_bit_piece(name, prefix="bit." if has_classifier else "") for name in names]
    if not isinstance(config, EncoderConfig):
        raise ExchangeError(f"transformers' names for the family {config.family} are not known here")
    prefix = f"{kind}." if has_classifier else ""
    return [_encoder_piece(name, config, kind, prefix) for name in names]


def _encoder_piece(name: str, config: EncoderConfig, kind: Kind, prefix: str) -> Piece:
    if name == "head.weight" and kind == "dinov2_with_registers":
        return _half_of_the_classifier(config.width)
    if name.startswith("head."):
        return renamed(name, f"classifier.{name.removeprefix('head.')}")
    if name in _OUTSIDE:
        return renamed(name, f"{prefix}{_OUTSIDE[name]}")
    if not name.startswith("blocks."):
        raise ExchangeError(f"transformers' {kind} has no tensor like {name}")
    _, number, rest = name.split(".", 2)
    block = f"{prefix}encoder.layer.{number}"
    if kind == "dinov2_with_registers" and rest in _DINO_SCALES:
        return renamed(name, f"{block}.{_DINO_SCALES[rest]}")
    module, _, last = rest.rpartition(".")
    if module == "attention.qkv":
        return split(name, [f"{block}.attention.attention.{part}.{last}" for part in ("query", "key", "value")])
    parts = _DINO_BLOCK if kind == "dinov2_with_registers" else _VIT_BLOCK
    if module not in parts:
        raise ExchangeError(f"transformers' {kind} has no tensor like {name}")
    return renamed(name, f"{block}.{parts[module]}.{last}")


def _half_of_the_classifier(width: int) -> Piece:
    """Return the classifier of DINOv2, which reads the class token and the patches' mean: of the mean ours has nothing."""
    return Piece(
        ("head.weight",),
        ("classifier.weight",),
        write=lambda given: [torch.cat([given[0], torch.zeros_like(given[0])], dim=1)],
        read=lambda given: [given[0][:, :width]],
    )


def _bit_piece(name: str, *, prefix: str) -> Piece:
    """Return the name in BiT: `trunk.stages.0.1.gn1.weight` is `bit.encoder.stages.0.layers.1.norm1.weight`."""
    module, _, kind = name.removeprefix("trunk.").rpartition(".")
    if module == "head":
        return renamed(name, f"classifier.1.{kind}")
    outside = {"conv_root": "embedder.convolution", "gn_end": "norm"}
    if module in outside:
        return renamed(name, f"{prefix}{outside[module]}.{kind}")
    _, stage, block, layer = module.split(".")
    return renamed(name, f"{prefix}encoder.stages.{stage}.layers.{block}.{_BIT_BLOCK.get(layer, layer)}.{kind}")
