"""Name our tensors as Google's .npz files do.

The names are those of google-research/vision_transformer (`vit_jax/models_vit.py`, `models_resnet.py`), of
google-research/big_vision (`models/vit.py`), and of google-research/big_transfer (`bit_pytorch/models.py`). Kernels are
(in, out) and (height, width, in, out) there; query, key, value and output have heads and their channels as two axes.
"""

from __future__ import annotations

from typing import Literal

import torch

from pipeline.errors import ExchangeError
from pipeline.exchange.pieces import Piece, renamed, tensor_names, transposed
from pipeline.models.base import ModelConfig
from pipeline.models.bit.model import BiTConfig
from pipeline.models.hybrid.model import HybridConfig
from pipeline.models.vit.encoder_config import EncoderConfig

Naming = Literal["vision_transformer", "big_vision"]

_CONV = (2, 3, 1, 0)  # (O, I, h, w) as (h, w, I, O)
_BLOCK: dict[Naming, dict[str, str]] = {
    "vision_transformer": {
        "norm_attention": "LayerNorm_0",
        "attention": "MultiHeadDotProductAttention_1",
        "norm_mlp": "LayerNorm_2",
        "mlp": "MlpBlock_3",
    },
    "big_vision": {
        "norm_attention": "LayerNorm_0",
        "attention": "MultiHeadDotProductAttention_0",
        "norm_mlp": "LayerNorm_1",
        "mlp": "MlpBlock_0",
    },
}
_MAP_HEAD = {"attention": "MultiHeadDotProductAttention_0", "norm": "LayerNorm_0", "mlp": "MlpBlock_0"}


def google_pieces(config: ModelConfig, naming: Naming) -> list[Piece]:
    """Return how Google's files name the tensors of a model.

    Raises:
        ExchangeError: they have no such tensor.
    """
    names = tensor_names(config)
    if isinstance(config, BiTConfig):
        if config.variant != "v2":
            raise ExchangeError("Google's files hold ResNets of BiT as released (model.variant=v2) alone")
        return [_bit_piece(name) for name in names]
    if not isinstance(config, EncoderConfig):
        raise ExchangeError(f"Google's files hold no model of the family {config.family}")
    prefix = "params/" if naming == "big_vision" else ""
    pieces = []
    for name in names:
        piece = _encoder_piece(name, config, naming)
        pieces.append(Piece(piece.ours, tuple(f"{prefix}{theirs}" for theirs in piece.theirs), piece.write, piece.read))
    return pieces


def _encoder_piece(name: str, config: EncoderConfig, naming: Naming) -> Piece:
    if name.startswith("blocks."):
        _, number, rest = name.split(".", 2)
        return _block_piece(name, rest, f"Transformer/encoderblock_{number}", num_heads=config.num_heads, naming=naming)
    if name.startswith("map_head."):
        return _map_piece(name, num_heads=config.num_heads)
    if name.startswith("patch_embed."):
        return _patch_piece(name, is_hybrid=isinstance(config, HybridConfig))
    outside = {
        "class_token": "cls",
        "position": "pos_embedding" if naming == "big_vision" else "Transformer/posembed_input/pos_embedding",
        "norm.weight": "Transformer/encoder_norm/scale",
        "norm.bias": "Transformer/encoder_norm/bias",
    }
    if name in outside:
        return renamed(name, outside[name])
    module, _, kind = name.rpartition(".")
    if module not in ("head", "pre_logits"):
        raise ExchangeError(f"Google's files have no tensor like {name}")
    return _dense(name, f"{module}/{'kernel' if kind == 'weight' else 'bias'}")


def _block_piece(name: str, rest: str, block: str, *, num_heads: int, naming: Naming) -> Piece:
    parts = _BLOCK[naming]
    module, _, kind = rest.rpartition(".")
    if module in ("norm_attention", "norm_mlp"):
        return renamed(name, f"{block}/{parts[module]}/{'scale' if kind == 'weight' else 'bias'}")
    if module == "attention.qkv":
        return _heads(name, [f"{block}/{parts['attention']}/{part}" for part in ("query", "key", "value")], kind, num_heads)
    if module == "attention.out":
        return _out(name, f"{block}/{parts['attention']}/out", kind, num_heads)
    if module in ("mlp.up", "mlp.down"):
        return _mlp(name, f"{block}/{parts['mlp']}", module, kind)
    raise ExchangeError(f"Google's files have no tensor like {name}")


def _map_piece(name: str, *, num_heads: int) -> Piece:
    module, _, kind = name.removeprefix("map_head.").rpartition(".")
    attention = f"MAPHead_0/{_MAP_HEAD['attention']}"
    if name == "map_head.probe":
        return renamed(name, "MAPHead_0/probe")
    if module == "query":
        return _heads(name, [f"{attention}/query"], kind, num_heads)
    if module == "key_value":
        return _heads(name, [f"{attention}/key", f"{attention}/value"], kind, num_heads)
    if module == "out":
        return _out(name, f"{attention}/out", kind, num_heads)
    if module == "norm":
        return renamed(name, f"MAPHead_0/{_MAP_HEAD['norm']}/{'scale' if kind == 'weight' else 'bias'}")
    return _mlp(name, f"MAPHead_0/{_MAP_HEAD['mlp']}", module, kind)


def _patch_piece(name: str, *, is_hybrid: bool) -> Piece:
    own = "patch_embed.1" if is_hybrid else "patch_embed"
    if name == f"{own}.weight":
        return transposed(name, "embedding/kernel", *_CONV)
    if name == f"{own}.bias":
        return renamed(name, "embedding/bias")
    *path, layer, kind = name.removeprefix("patch_embed.0.").split(".")
    unit = f"block{int(path[1]) + 1}/unit{int(path[2]) + 1}/" if path else ""
    if layer.startswith("conv"):
        return transposed(name, f"{unit}{layer}/kernel", *_CONV)
    return renamed(name, f"{unit}{layer}/{'scale' if kind == 'weight' else 'bias'}")


def _bit_piece(name: str) -> Piece:
    """Return the name in BiT's own files: `resnet/block1/unit02/a/group_norm/gamma`."""
    module, _, kind = name.removeprefix("trunk.").rpartition(".")
    if module == "head":
        if kind == "bias":
            return renamed(name, "resnet/head/conv2d/bias")
        return Piece(
            (name,),
            ("resnet/head/conv2d/kernel",),
            write=lambda given: [given[0].T[None, None]],
            read=lambda given: [given[0][0, 0].T],
        )
    if module == "conv_root":
        return transposed(name, "resnet/root_block/standardized_conv2d/kernel", *_CONV)
    scale = "gamma" if kind == "weight" else "beta"
    if module == "gn_end":
        return renamed(name, f"resnet/group_norm/{scale}")
    _, stage, block, layer = module.split(".")
    unit = f"resnet/block{int(stage) + 1}/unit{int(block) + 1:02d}"
    if layer == "conv_proj":
        return transposed(name, f"{unit}/a/proj/standardized_conv2d/kernel", *_CONV)
    letter = "abc"[int(layer[-1]) - 1]
    if layer.startswith("conv"):
        return transposed(name, f"{unit}/{letter}/standardized_conv2d/kernel", *_CONV)
    return renamed(name, f"{unit}/{letter}/group_norm/{scale}")


def _dense(ours: str, theirs: str) -> Piece:
    return transposed(ours, theirs, 1, 0) if theirs.endswith("kernel") else renamed(ours, theirs)


def _mlp(ours: str, block: str, module: str, kind: str) -> Piece:
    layer = {"mlp.up": "Dense_0", "mlp.down": "Dense_1"}[module]
    return _dense(ours, f"{block}/{layer}/{'kernel' if kind == 'weight' else 'bias'}")


def _heads(ours: str, theirs: list[str], kind: str, num_heads: int) -> Piece:
    """Return a projection to heads: ours (parts x D, D), theirs one a part, (D, heads, D / heads)."""
    if kind == "bias":
        return Piece(
            (ours,),
            tuple(f"{name}/bias" for name in theirs),
            write=lambda given: [part.unflatten(0, (num_heads, -1)) for part in given[0].chunk(len(theirs))],
            read=lambda given: [torch.cat([part.flatten() for part in given])],
        )
    return Piece(
        (ours,),
        tuple(f"{name}/kernel" for name in theirs),
        write=lambda given: [part.T.unflatten(1, (num_heads, -1)) for part in given[0].chunk(len(theirs))],
        read=lambda given: [torch.cat([part.flatten(1).T for part in given])],
    )


def _out(ours: str, theirs: str, kind: str, num_heads: int) -> Piece:
    """Return the projection back: ours (D, D), theirs (heads, D / heads, D)."""
    if kind == "bias":
        return renamed(ours, f"{theirs}/bias")
    return Piece(
        (ours,),
        (f"{theirs}/kernel",),
        write=lambda given: [given[0].T.unflatten(0, (num_heads, -1))],
        read=lambda given: [given[0].flatten(0, 1).T],
    )
