"""Our ViT's tensors under timm's names, for comparisons of the two."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models.vit.model import VisionTransformer, ViTConfig

PARTS = {
    "patch_embed.": "patch_embed.proj.",
    "norm_attention.": "norm1.",
    "attention.qkv.": "attn.qkv.",
    "attention.norm_query.": "attn.q_norm.",
    "attention.norm_key.": "attn.k_norm.",
    "attention.out.": "attn.proj.",
    "scale_attention.": "ls1.",
    "norm_mlp.": "norm2.",
    "scale_mlp.": "ls2.",
    "map_head.probe": "attn_pool.latent",
    "map_head.query.": "attn_pool.q.",
    "map_head.key_value.": "attn_pool.kv.",
    "map_head.out.": "attn_pool.proj.",
    "map_head.norm.": "attn_pool.norm.",
    "map_head.mlp.": "attn_pool.mlp.",
    "mlp.up.": "mlp.fc1.",
    "mlp.down.": "mlp.fc2.",
    "class_token": "cls_token",
    "registers": "reg_token",
    "position": "pos_embed",
}


def timm_name(name: str) -> str:
    """timm's name of one of our tensors."""
    for ours, theirs in PARTS.items():
        if name.startswith(ours) or f".{ours}" in name:
            name = name.replace(ours, theirs, 1)
    return name


def to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors (or their gradients) by timm's names."""
    return {timm_name(name): tensor for name, tensor in state.items()}


def timm_model(timm: ModuleType, config: ViTConfig, **changes: Any) -> nn.Module:
    """timm's model of the same choices, where it has them, in eval mode."""
    settings = {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "mlp_ratio": config.mlp_dim / config.width,
        "num_classes": config.num_classes,
        "global_pool": {"class_token": "token", "gap": "avg", "map": "map"}[config.pooling],
        "class_token": config.has_class_token,
        "no_embed_class": not config.class_token_has_position,
        "pos_embed": "none" if config.position == "none" else "learn",
        "reg_tokens": config.registers,
        "qkv_bias": config.qkv_bias,
        "qk_norm": config.qk_norm,
        "init_values": config.layer_scale,
        "drop_path_rate": config.stochastic_depth,
        "act_layer": "gelu" if config.gelu == "exact" else "gelu_tanh",
        "fc_norm": False,  # the final norm before the mean
    }
    return timm.models.vision_transformer.VisionTransformer(**{**settings, **changes}).eval()


def random_model(config: ViTConfig) -> VisionTransformer:
    """Weights away from zero everywhere, so that no part of the model is silent."""
    model = VisionTransformer(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.05, generator=generator)
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.add_(1)
    return model.eval()
