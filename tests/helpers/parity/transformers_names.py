"""transformers' models of the same definition as ours, and our tensors under their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models.bit.model import BiTConfig
from pipeline.models.vit.model import ViTConfig

EPS = 1e-6  # of LayerNorm; transformers' own default is 1e-12
BLOCK = {
    "norm_attention": "layernorm_before", "norm_mlp": "layernorm_after", "attention.out": "attention.o_proj",
    "mlp.up": "mlp.fc1", "mlp.down": "mlp.fc2",
}  # fmt: skip
SIGLIP_BLOCK = {
    **BLOCK, "norm_attention": "layer_norm1", "norm_mlp": "layer_norm2", "attention.out": "self_attn.out_proj"
}  # fmt: skip
REGISTERS_BLOCK = {
    **BLOCK, "norm_attention": "norm1", "norm_mlp": "norm2", "scale_attention": "layer_scale1", "scale_mlp": "layer_scale2"
}  # fmt: skip


def sizes_of(config: ViTConfig) -> dict[str, Any]:
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim,
        "image_size": list(config.height_and_width),
        "patch_size": config.patch_size,
        "layer_norm_eps": EPS,
        "hidden_act": "gelu" if config.gelu == "exact" else "gelu_pytorch_tanh",
        "qkv_bias": config.qkv_bias,
        "num_labels": config.num_classes,
    }


def vit(config: ViTConfig) -> nn.Module:
    """`ViTForImageClassification`, or `IJepaForImageClassification`, whose head reads the patches' mean."""
    import transformers  # type: ignore[import-not-found]

    name = "ViT" if config.has_class_token else "IJepa"
    return getattr(transformers, f"{name}ForImageClassification")(getattr(transformers, f"{name}Config")(**sizes_of(config)))


def to_vit(tensors: Mapping[str, Tensor], *, prefix: str) -> dict[str, Tensor]:
    """Args: prefix: `vit` or `ijepa`."""
    outside = {
        "class_token": f"{prefix}.embeddings.cls_token",
        "position": f"{prefix}.embeddings.position_embeddings",
        "patch_embed": f"{prefix}.embeddings.patch_embeddings.projection",
        "norm": f"{prefix}.layernorm",
        "head": "classifier",
    }
    return _rename(tensors, outside=outside, blocks=f"{prefix}.layers", block=BLOCK, attention="attention")


def _square_sizes_of(config: ViTConfig) -> dict[str, Any]:
    """Return the sizes for models whose images are square by definition."""
    return {**sizes_of(config), "image_size": config.height_and_width[0]}


def siglip(config: ViTConfig) -> nn.Module:
    """SigLIP's vision model: no class token, attention pooling, as in "Scaling Vision Transformers". Without a classifier."""
    import transformers  # type: ignore[import-not-found]

    size = _square_sizes_of(config)
    return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**size))


def to_siglip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value of the pooling are one matrix there, as in `nn.MultiheadAttention`."""
    outside = {
        "patch_embed": "embeddings.patch_embedding",
        "norm": "post_layernorm",
        "map_head.probe": "head.probe",
        "map_head.out": "head.attention.out_proj",
        "map_head.norm": "head.layernorm",
        "map_head.mlp.up": "head.mlp.fc1",
        "map_head.mlp.down": "head.mlp.fc2",
    }
    apart = ("map_head.query", "map_head.key_value", "position", "head.")
    plain = {name: tensor for name, tensor in tensors.items() if not name.startswith(apart)}
    renamed = _rename(plain, outside=outside, blocks="encoder.layers", block=SIGLIP_BLOCK, attention="self_attn")
    for kind in ("weight", "bias"):
        parts = [tensors[f"map_head.query.{kind}"], tensors[f"map_head.key_value.{kind}"]]
        renamed[f"head.attention.in_proj_{kind}"] = torch.cat(parts)
    return {**renamed, "embeddings.position_embedding.weight": tensors["position"][0]}


def registers(config: ViTConfig) -> nn.Module:
    """DINOv2's model with registers and LayerScale. Without a classifier."""
    import transformers  # type: ignore[import-not-found]

    size = _square_sizes_of(config)
    del size["intermediate_size"]
    their = transformers.Dinov2WithRegistersConfig(
        **size, mlp_ratio=config.mlp_dim // config.width, num_register_tokens=config.registers, layerscale_value=1.0
    )
    return transformers.Dinov2WithRegistersModel(their)


def to_registers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    outside = {
        "class_token": "embeddings.cls_token",
        "registers": "embeddings.register_tokens",
        "position": "embeddings.position_embeddings",
        "patch_embed": "embeddings.patch_embeddings.projection",
        "norm": "layernorm",
    }
    plain = {name.replace(".gamma", ".lambda1"): value for name, value in tensors.items() if not name.startswith("head.")}
    return _rename(plain, outside=outside, blocks="encoder.layer", block=REGISTERS_BLOCK, attention="attention")


def bit(config: BiTConfig) -> nn.Module:
    """`BitForImageClassification` with pre-activation blocks: BiT as released."""
    import transformers  # type: ignore[import-not-found]

    their = transformers.BitConfig(
        embedding_size=config.width,
        hidden_sizes=[4 * config.width * 2**stage for stage in range(len(config.blocks))],
        depths=list(config.blocks),
        layer_type="preactivation",
        num_labels=config.num_classes,
    )
    return transformers.BitForImageClassification(their)


def to_bit(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`trunk.stages.0.1.gn1.weight` is `bit.encoder.stages.0.layers.1.norm1.weight`."""
    parts = {"conv_proj": "downsample.conv", "gn1": "norm1", "gn2": "norm2", "gn3": "norm3"}
    outside = {"conv_root": "bit.embedder.convolution", "gn_end": "bit.norm"}
    renamed = {}
    for name, tensor in tensors.items():
        module, _, kind = name.removeprefix("trunk.").rpartition(".")
        if module == "head":
            renamed[f"classifier.1.{kind}"] = tensor
        elif module in outside:
            renamed[f"{outside[module]}.{kind}"] = tensor
        else:
            _, stage, block, layer = module.split(".")
            renamed[f"bit.encoder.stages.{stage}.layers.{block}.{parts.get(layer, layer)}.{kind}"] = tensor
    return renamed


def _rename(
    tensors: Mapping[str, Tensor], *, outside: Mapping[str, str], blocks: str, block: Mapping[str, str], attention: str
) -> dict[str, Tensor]:
    """Rename what is outside of the blocks and in them, and cut query, key and value apart."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        if not name.startswith("blocks."):
            renamed[outside[name] if name in outside else f"{outside[module]}.{kind}"] = tensor
            continue
        _, number, inner = module.split(".", 2)
        if inner != "attention.qkv":
            renamed[f"{blocks}.{number}.{block[inner]}.{kind}"] = tensor
            continue
        for part, value in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True):
            renamed[f"{blocks}.{number}.{attention}.{part}.{kind}"] = value
    return renamed
