"""Write and read Google's .npz files: of vision_transformer (old naming), big_vision (new), and big_transfer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pipeline.errors import ExchangeError
from pipeline.exchange.fold import fill_qkv_bias, fold_layer_scale, fold_positions, refuse
from pipeline.exchange.google_names import Naming, google_pieces
from pipeline.exchange.pieces import (
    Tensors,
    check_shapes,
    left_out_notes,
    refuse_impossible,
    refuse_strangers,
    to_ours,
    to_theirs,
)
from pipeline.exchange.pretrained import Pretrained
from pipeline.image_size import ImageSize, height_and_width, image_size
from pipeline.models.base import ModelConfig
from pipeline.models.bit.model import BiTConfig
from pipeline.models.hybrid.model import HybridConfig
from pipeline.models.vit.encoder_config import EncoderConfig, Pooling, conflict_of
from pipeline.models.vit.model import ViTConfig

TARGET = "a Google .npz file"
# What files put in front of the parameters' names: optimizer checkpoints, models of two towers, plain parameters.
_PREFIXES = ("opt/target/img/", "opt/target/", "params/img/", "params/", "img/")
_POSITIONS: dict[Naming, str] = {
    "vision_transformer": "Transformer/posembed_input/pos_embedding",
    "big_vision": "pos_embedding",
}
_BLOCK = re.compile(r"Transformer/encoderblock_(\d+)/")
_SCANNED = "Transformer/encoderblock/"
_ATTENTION = re.compile(r"Transformer/encoderblock_0/MultiHeadDotProductAttention_\d/")
_BIT_UNIT = re.compile(r"resnet/block(\d+)/unit(\d+)/")
_COMPUTED = re.compile(r"(?:params/)?(?:Transformer/|MAPHead_0/|embedding/|conv_root|gn_root|block\d|resnet/)")
_STAGE_UNIT = re.compile(r"block(\d+)/unit(\d+)/")


def make_npz(model: Pretrained, naming: Naming | None = None) -> tuple[Tensors, Pretrained]:
    """Return the arrays of a file, as tensors, and the model that they are, with notes.

    Args:
        naming: None: of vision_transformer for a ViT with a class token that has a position, or a hybrid; else of big_vision.

    Raises:
        ExchangeError: the files have no such model.
    """
    if not model.has_head:
        raise ExchangeError(f"{model.source}: {TARGET} has a classifier always, and this model none")
    if isinstance(model.config, BiTConfig):
        return to_theirs(model.tensors, google_pieces(model.config, "vision_transformer")), model
    refuse(model, target=TARGET, registers=lambda config: bool(config.registers), qk_norm=lambda config: config.qk_norm)
    model = fill_qkv_bias(fold_layer_scale(model, target=TARGET), target=TARGET)
    config = model.config
    assert isinstance(config, EncoderConfig)
    if naming is None:
        is_first = config.has_class_token and (config.class_token_has_position or isinstance(config, HybridConfig))
        naming = "vision_transformer" if is_first else "big_vision"
    model = fold_positions(model, target=TARGET, class_token_has_one=naming == "vision_transformer")
    if naming == "vision_transformer" and not config.has_class_token:
        raise ExchangeError(
            f"{model.source}: files of vision_transformer have models with a class token alone, not model.pooling="
            f"{config.pooling}; `--naming big_vision` has them"
        )
    if config.gelu == "exact":
        model = model.noting(
            "the model was trained with the exact GELU; Google's code computes its tanh approximation, timm the exact one"
        )
    height, width = config.height_and_width
    if height != width:
        model = model.noting(f"an .npz file does not say the shape of images: read it with `--image-size {height} {width}`")
    assert isinstance(model.config, EncoderConfig)
    return to_theirs(model.tensors, google_pieces(model.config, naming)), model


def read_npz(arrays: Mapping[str, Tensor], *, source: str, size: ImageSize | None = None) -> Pretrained:
    """Return the model that a file's arrays are.

    Args:
        size: height and width of the model's images, where positions do not say them: those of a model with sine-cosine
            positions or of a ResNet, and of a grid of positions that is no square.

    Raises:
        ExchangeError: they are no model that is known here.
    """
    found = _unscanned(_without_prefix(dict(arrays)))
    if any(name.startswith("resnet/") for name in found):
        config: ModelConfig = _bit_config(found, source=source, size=size)
        naming: Naming = "vision_transformer"
    else:
        config, naming = _encoder_config(found, source=source, size=size)
    refuse_impossible(config, found, source=source)
    pieces = google_pieces(config, naming)
    if naming == "big_vision":  # the prefix is gone
        found = {f"params/{name}": tensor for name, tensor in found.items()}
    if "head/kernel" not in found and "params/head/kernel" not in found and not isinstance(config, BiTConfig):
        pieces = [piece for piece in pieces if not piece.ours[0].startswith("head.")]
    refuse_strangers([name for name in found if _COMPUTED.match(name)], pieces, source=source)
    read = to_ours(found, pieces, source=source)
    check_shapes(read.tensors, config, source=source)
    return Pretrained(config, read.tensors, source=source, notes=tuple(left_out_notes(read)))


def _without_prefix(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if any(name.startswith(prefix) and ("embedding/kernel" in name) for name in arrays):
            return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    return arrays


def _unscanned(arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return arrays of one block each where a file has all blocks of a kind in one array, the depth being its first axis."""
    found = {}
    for name, array in arrays.items():
        if not name.startswith(_SCANNED):
            found[name] = array
            continue
        for number, part in enumerate(array):
            found[f"Transformer/encoderblock_{number}/{name.removeprefix(_SCANNED)}"] = part
    return found


def _encoder_config(arrays: dict[str, Tensor], *, source: str, size: ImageSize | None) -> tuple[EncoderConfig, Naming]:
    attention = next((match[0] for name in arrays if (match := _ATTENTION.match(name))), None)
    if attention is None or "embedding/kernel" not in arrays:
        names = ", ".join(sorted(arrays)[:3]) or "nothing"
        raise ExchangeError(f"{source} is no Vision Transformer or ResNet of Google's: it holds {names}")
    naming: Naming = "vision_transformer" if attention.endswith("_1/") else "big_vision"
    _, num_heads, head_width = arrays[f"{attention}query/kernel"].shape
    mlp = "MlpBlock_3" if naming == "vision_transformer" else "MlpBlock_0"
    has_class_token, has_map = "cls" in arrays, any(name.startswith("MAPHead_0/") for name in arrays)
    pooling: Pooling = "class_token" if has_class_token else "map" if has_map else "gap"
    position = _move_position(arrays, naming)
    class_token_has_one = has_class_token and position is not None and _has_one_more(position.shape[-2], naming)
    width = num_heads * head_width
    pre_logits = arrays.get("pre_logits/kernel")
    head = arrays.get("head/kernel")
    values: dict[str, Any] = {
        "width": width,
        "depth": 1 + max(int(match[1]) for name in arrays if (match := _BLOCK.match(name))),
        "mlp_dim": arrays[f"Transformer/encoderblock_0/{mlp}/Dense_0/kernel"].shape[1],
        "num_heads": num_heads,
        "num_classes": 1 if head is None else head.shape[1],
        "representation_size": None if pre_logits is None else pre_logits.shape[1],
        "dropout": 0.0,
        "pooling": pooling,
        "gelu": "tanh",  # flax.linen.gelu
        "position": "sincos_2d" if position is None else "learned_1d",
        "position_class_token": class_token_has_one or not has_class_token,
    }
    patches = None if position is None else position.shape[-2] - class_token_has_one
    config = _with_patches(values, arrays, patches, source=source, size=size)
    if (conflict := conflict_of(config)) is not None:
        raise ExchangeError(f"{source}: {conflict}")
    return config, naming


def _move_position(arrays: dict[str, Tensor], naming: Naming) -> Tensor | None:
    """Return the positions, which some files of big_vision have in the older place, and put them in the naming's, in place."""
    here, there = _POSITIONS[naming], _POSITIONS["big_vision" if naming == "vision_transformer" else "vision_transformer"]
    if here not in arrays and there in arrays:
        arrays[here] = arrays.pop(there)
    return arrays.get(here)


def _has_one_more(length: int, naming: Naming) -> bool:
    """Return whether the class token has one of so many positions: those of the patches are a square, unless a size says."""
    squares = [math.isqrt(count) ** 2 == count for count in (length - 1, length)]
    return squares[0] if squares[0] != squares[1] else naming == "vision_transformer"


def _with_patches(
    values: dict[str, Any], arrays: dict[str, Tensor], patches: int | None, *, source: str, size: ImageSize | None
) -> EncoderConfig:
    """Return the configuration with its patch embedding: of a plain ViT, or of a hybrid."""
    patch = arrays["embedding/kernel"].shape[0]
    is_hybrid = "conv_root/kernel" in arrays
    blocks = _count_units(arrays, _STAGE_UNIT) if is_hybrid else ()
    stride = patch * (2 ** (1 + max(1, len(blocks))) if is_hybrid else 1)
    sides = _sides(patches, stride, source=source, size=size)
    if is_hybrid:
        root = arrays["conv_root/kernel"].shape[-1]
        return HybridConfig(image_size=sides, blocks=blocks, root_width=root, patch_size=patch, **values)
    return ViTConfig(image_size=sides, patch_size=patch, **values)


def _sides(patches: int | None, stride: int, *, source: str, size: ImageSize | None) -> ImageSize:
    """Return the image size by the number of positions."""
    if size is not None:
        height, width = height_and_width(size)
        if patches is not None and (height // stride) * (width // stride) != patches:
            raise ExchangeError(f"{source} has positions of {patches} patches, an image of {height} x {width} has others")
        return size
    if patches is None:
        return image_size(224 // stride * stride, 224 // stride * stride)
    side = math.isqrt(patches)
    if side * side != patches:
        raise ExchangeError(f"{source} has positions of {patches} patches, which are no square; give --image-size HEIGHT WIDTH")
    return image_size(side * stride, side * stride)


def _count_units(arrays: dict[str, Tensor], pattern: re.Pattern[str]) -> tuple[int, ...]:
    """Return the number of blocks of each stage of a ResNet."""
    units: dict[int, int] = {}
    for name in arrays:
        if match := pattern.match(name):
            units[int(match[1])] = max(units.get(int(match[1]), 0), int(match[2]))
    return tuple(units[stage] for stage in sorted(units))


def _bit_config(arrays: dict[str, Tensor], *, source: str, size: ImageSize | None) -> BiTConfig:
    root, head = arrays.get("resnet/root_block/standardized_conv2d/kernel"), arrays.get("resnet/head/conv2d/kernel")
    if root is None or head is None:
        raise ExchangeError(f"{source} is no ResNet of BiT: it lacks its root or its head")
    return BiTConfig(
        image_size=224 if size is None else size,
        variant="v2",
        blocks=_count_units(arrays, _BIT_UNIT),
        width=root.shape[-1],
        num_classes=head.shape[-1],
    )
