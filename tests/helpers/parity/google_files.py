"""Our weights as the arrays of Google's .npz files, which timm reads with a loader of its own.

The names are those of google-research/vision_transformer and google-research/big_vision (`models/vit.py`), and of
google-research/big_transfer (`bit_pytorch/models.py`). Kernels are (in, out) and (height, width, in, out) there; query, key,
value and output have heads and their channels as two axes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.models.vit.encoder_config import EncoderConfig

Arrays = dict[str, NDArray[np.float32]]
Source = Literal["vision_transformer", "big_vision"]
BLOCK = {  # by source: attention, the second norm, the MLP
    "vision_transformer": ("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3"),
    "big_vision": ("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0"),
}


def vit_arrays(state: Mapping[str, Tensor], config: EncoderConfig, *, source: Source) -> Arrays:
    """Of a ViT, or a hybrid, with learned 1-D positions and without pre-logits."""
    attention, norm, mlp = BLOCK[source]
    arrays: Arrays = {}
    for number in range(config.depth):
        ours, theirs = f"blocks.{number}", f"Transformer/encoderblock_{number}"
        arrays |= _norm(state, f"{ours}.norm_attention", f"{theirs}/LayerNorm_0")
        arrays |= _norm(state, f"{ours}.norm_mlp", f"{theirs}/{norm}")
        arrays |= _mlp(state, f"{ours}.mlp", f"{theirs}/{mlp}")
        qkv = {kind: state[f"{ours}.attention.qkv.{kind}"].chunk(3) for kind in ("weight", "bias")}
        for part, weight, bias in zip(("query", "key", "value"), qkv["weight"], qkv["bias"], strict=True):
            arrays |= _heads(weight, bias, f"{theirs}/{attention}/{part}", num_heads=config.num_heads)
        arrays |= _out(state, f"{ours}.attention.out", f"{theirs}/{attention}/out", num_heads=config.num_heads)
    arrays |= _norm(state, "norm", "Transformer/encoder_norm") | _dense(state, "head", "head")
    at_top = source == "big_vision"
    arrays["pos_embedding" if at_top else "Transformer/posembed_input/pos_embedding"] = state["position"].numpy()
    if "class_token" in state:
        arrays["cls"] = state["class_token"].numpy()
    arrays |= _patches(state)
    if "map_head.probe" in state:
        arrays |= _map_head(state, num_heads=config.num_heads)
    return {f"params/{name}": array for name, array in arrays.items()} if at_top else arrays


def bit_arrays(state: Mapping[str, Tensor]) -> Arrays:
    """Of a ResNet of the variant v2."""
    arrays: Arrays = {
        "resnet/root_block/standardized_conv2d/kernel": _kernel(state["trunk.conv_root.weight"]),
        "resnet/head/conv2d/kernel": _kernel(state["head.weight"][:, :, None, None]),
        "resnet/head/conv2d/bias": state["head.bias"].numpy(),
        "resnet/group_norm/gamma": state["trunk.gn_end.weight"].numpy(),
        "resnet/group_norm/beta": state["trunk.gn_end.bias"].numpy(),
    }
    for name, tensor in state.items():
        if not name.startswith("trunk.stages."):
            continue
        _, _, stage, block, layer, kind = name.split(".")
        unit = f"resnet/block{int(stage) + 1}/unit{int(block) + 1:02d}"
        if layer == "conv_proj":
            arrays[f"{unit}/a/proj/standardized_conv2d/kernel"] = _kernel(tensor)
        elif layer.startswith("conv"):
            arrays[f"{unit}/{'abc'[int(layer[-1]) - 1]}/standardized_conv2d/kernel"] = _kernel(tensor)
        else:
            their_kind = "gamma" if kind == "weight" else "beta"
            arrays[f"{unit}/{'abc'[int(layer[-1]) - 1]}/group_norm/{their_kind}"] = tensor.numpy()
    return arrays


def _patches(state: Mapping[str, Tensor]) -> Arrays:
    """Of a dense layer on square patches, or on the feature map of a ResNet of the variant v1."""
    is_hybrid = "patch_embed.1.weight" in state
    own = "patch_embed.1" if is_hybrid else "patch_embed"
    arrays: Arrays = {"embedding/kernel": _kernel(state[f"{own}.weight"]), "embedding/bias": state[f"{own}.bias"].numpy()}
    for name, tensor in state.items():
        if not name.startswith("patch_embed.0."):
            continue
        *path, layer, kind = name.removeprefix("patch_embed.0.").split(".")
        unit = f"block{int(path[1]) + 1}/unit{int(path[2]) + 1}/" if path else ""
        their_kind = "kernel" if layer.startswith("conv") else "scale" if kind == "weight" else "bias"
        arrays[f"{unit}{layer}/{their_kind}"] = _kernel(tensor) if their_kind == "kernel" else tensor.numpy()
    return arrays


def _map_head(state: Mapping[str, Tensor], *, num_heads: int) -> Arrays:
    attention = "MAPHead_0/MultiHeadDotProductAttention_0"
    weights, biases = (state[f"map_head.key_value.{kind}"].chunk(2) for kind in ("weight", "bias"))
    return {
        "MAPHead_0/probe": state["map_head.probe"].numpy(),
        **_heads(state["map_head.query.weight"], state["map_head.query.bias"], f"{attention}/query", num_heads=num_heads),
        **_heads(weights[0], biases[0], f"{attention}/key", num_heads=num_heads),
        **_heads(weights[1], biases[1], f"{attention}/value", num_heads=num_heads),
        **_out(state, "map_head.out", f"{attention}/out", num_heads=num_heads),
        **_norm(state, "map_head.norm", "MAPHead_0/LayerNorm_0"),
        **_mlp(state, "map_head.mlp", "MAPHead_0/MlpBlock_0"),
    }


def _kernel(weight: Tensor) -> NDArray[np.float32]:
    """(O, I, h, w) as (h, w, I, O)."""
    return weight.permute(2, 3, 1, 0).numpy()


def _heads(weight: Tensor, bias: Tensor, name: str, *, num_heads: int) -> Arrays:
    return {
        f"{name}/kernel": weight.T.unflatten(1, (num_heads, -1)).numpy(),  # (D, heads, D/heads)
        f"{name}/bias": bias.unflatten(0, (num_heads, -1)).numpy(),
    }


def _out(state: Mapping[str, Tensor], ours: str, name: str, *, num_heads: int) -> Arrays:
    kernel = state[f"{ours}.weight"].T.unflatten(0, (num_heads, -1))  # (heads, D/heads, D)
    return {f"{name}/kernel": kernel.numpy(), f"{name}/bias": state[f"{ours}.bias"].numpy()}


def _dense(state: Mapping[str, Tensor], ours: str, name: str) -> Arrays:
    return {f"{name}/kernel": state[f"{ours}.weight"].T.numpy(), f"{name}/bias": state[f"{ours}.bias"].numpy()}


def _mlp(state: Mapping[str, Tensor], ours: str, name: str) -> Arrays:
    return _dense(state, f"{ours}.up", f"{name}/Dense_0") | _dense(state, f"{ours}.down", f"{name}/Dense_1")


def _norm(state: Mapping[str, Tensor], ours: str, name: str) -> Arrays:
    return {f"{name}/scale": state[f"{ours}.weight"].numpy(), f"{name}/bias": state[f"{ours}.bias"].numpy()}
