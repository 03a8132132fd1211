"""Name our tensors as timm does: its Vision Transformers, its hybrids, and its ResNets of BiT."""

from __future__ import annotations

from pipeline.errors import ExchangeError
from pipeline.exchange.pieces import Piece, renamed, tensor_names
from pipeline.models.base import ModelConfig
from pipeline.models.bit.model import BiTConfig
from pipeline.models.hybrid.model import HybridConfig
from pipeline.models.vit.encoder_config import EncoderConfig

# Of modules, first those that are longest: `norm` begins other names too.
_ENCODER = {
    "norm_attention": "norm1",
    "norm_mlp": "norm2",
    "attention.qkv": "attn.qkv",
    "attention.norm_query": "attn.q_norm",
    "attention.norm_key": "attn.k_norm",
    "attention.out": "attn.proj",
    "scale_attention": "ls1",
    "scale_mlp": "ls2",
    "mlp.up": "mlp.fc1",
    "mlp.down": "mlp.fc2",
}
_OUTSIDE = {
    "class_token": "cls_token",
    "registers": "reg_token",
    "position": "pos_embed",
    "norm": "norm",
    "pre_logits": "pre_logits.fc",  # until 2022
    "head": "head",
    "map_head.probe": "attn_pool.latent",
    "map_head.query": "attn_pool.q",
    "map_head.key_value": "attn_pool.kv",
    "map_head.out": "attn_pool.proj",
    "map_head.norm": "attn_pool.norm",
    "map_head.mlp.up": "attn_pool.mlp.fc1",
    "map_head.mlp.down": "attn_pool.mlp.fc2",
}
_TRUNK_OUTSIDE = {"conv_root": "stem.conv", "gn_root": "stem.norm", "gn_end": "norm"}
_TRUNK_BLOCK = {"conv_proj": "downsample.conv", "gn_proj": "downsample.norm", "gn1": "norm1", "gn2": "norm2", "gn3": "norm3"}


def timm_pieces(config: ModelConfig) -> list[Piece]:
    """Return how timm names the tensors of a model.

    Raises:
        ExchangeError: its models have no such tensor.
    """
    return [_piece(name, config) for name in tensor_names(config)]


def _piece(name: str, config: ModelConfig) -> Piece:
    if isinstance(config, BiTConfig):
        return _bit_piece(name)
    if isinstance(config, HybridConfig) and name.startswith("patch_embed.0."):
        inner = _trunk_name(name.removeprefix("patch_embed.0."))
        return renamed(name, f"patch_embed.backbone.{inner if config.blocks else inner.removeprefix('stem.')}")
    if not isinstance(config, EncoderConfig):
        raise ExchangeError(f"timm's names for the family {config.family} are not known here")
    own = "patch_embed.1." if isinstance(config, HybridConfig) else "patch_embed."
    if name.startswith(own):
        return renamed(name, f"patch_embed.proj.{name.removeprefix(own)}")
    return renamed(name, _encoder_name(name))


def _encoder_name(name: str) -> str:
    """Return timm's name of a tensor: `blocks.3.mlp.up.weight` is `blocks.3.mlp.fc1.weight`."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    module, _, kind = name.rpartition(".")
    if module in _OUTSIDE:
        return f"{_OUTSIDE[module]}.{kind}"
    blocks, _, rest = module.partition(".")
    number, _, part = rest.partition(".")
    if blocks != "blocks" or part not in _ENCODER:
        raise ExchangeError(f"timm's Vision Transformer has no tensor like {name}")
    return f"blocks.{number}.{_ENCODER[part]}.{kind}"


def _trunk_name(name: str) -> str:
    """Return timm's name of a trunk's tensor: `stages.0.1.gn1.weight` is `stages.0.blocks.1.norm1.weight`."""
    module, _, kind = name.rpartition(".")
    if module in _TRUNK_OUTSIDE:
        return f"{_TRUNK_OUTSIDE[module]}.{kind}"
    _, stage, block, layer = module.split(".")
    return f"stages.{stage}.blocks.{block}.{_TRUNK_BLOCK.get(layer, layer)}.{kind}"


def _bit_piece(name: str) -> Piece:
    """Return the name in a ResNet of BiT, whose classifier is a 1x1 convolution."""
    if name == "head.weight":
        return Piece(
            (name,),
            ("head.fc.weight",),
            write=lambda given: [given[0][:, :, None, None]],
            read=lambda given: [given[0].flatten(1)],
        )
    if name == "head.bias":
        return renamed(name, "head.fc.bias")
    return renamed(name, _trunk_name(name.removeprefix("trunk.")))
