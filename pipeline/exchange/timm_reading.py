"""Read a folder of timm's, or a file with timm's names: as a model of our own where it is one, else of the family timm."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.data.images.crop import Resize
from pipeline.errors import ExchangeError
from pipeline.exchange.labels import read_labels, read_problem
from pipeline.exchange.pieces import (
    HEAD,
    Tensors,
    check_shapes,
    compare_epsilon,
    left_out_notes,
    refuse_impossible,
    refuse_strangers,
    strangers,
    to_ours,
)
from pipeline.exchange.pixels import normalise, read_as_rgb, three
from pipeline.exchange.pretrained import Preprocessing, Pretrained
from pipeline.exchange.state_dicts import StateDict, part_of
from pipeline.exchange.timm_architectures import HEADS_OF_WIDTH, PLAIN, Form, form_of
from pipeline.exchange.timm_family import read_timm_family
from pipeline.exchange.timm_names import timm_pieces
from pipeline.image_size import image_size
from pipeline.models.bit.model import BiTConfig
from pipeline.models.hybrid.model import HybridConfig
from pipeline.models.vit.encoder_config import EncoderConfig, Gelu, Pooling, Position, conflict_of
from pipeline.models.vit.layers import LAYER_NORM_EPS
from pipeline.models.vit.model import ViTConfig

_BLOCK = re.compile(r"blocks\.(\d+)\.")
_BIT_UNIT = re.compile(r"stages\.(\d+)\.blocks\.(\d+)\.")
_BIT = re.compile(r"resnetv2_\d+x\d_bit")
_STAGE = re.compile(r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\.")
_ROOTS = ("patch_embed.backbone.stem.conv.weight", "patch_embed.backbone.conv.weight")  # of hybrids
_POOLING: dict[str, Pooling] = {"token": "class_token", "avg": "gap", "map": "map"}
_GELU: dict[str, Gelu] = {"gelu": "exact", "gelu_tanh": "tanh"}
# Arguments of timm's Vision Transformer that change what it computes and that ours has no setting for.
_UNKNOWN = (
    "pre_norm",
    "scale_attn_norm",
    "scale_mlp_norm",
    "norm_layer",
    "embed_norm_layer",
    "block_fn",
    "mlp_layer",
    "attn_layer",
)


def read_timm_folder(config: Mapping[str, Any], tensors: Tensors, *, source: str) -> Pretrained:
    """Return the model of a folder.

    Args:
        config: what `config.json` holds.

    Raises:
        ExchangeError: it is no model that is known here.
    """
    rgb = read_as_rgb(_fold_register_positions(tensors), source=source)
    tensors = rgb.tensors
    cfg = {**config, **(config.get("pretrained_cfg") or {})}
    arguments = dict(config.get("model_args") or {})
    architecture = str(config.get("architecture"))
    found = _describe(architecture, arguments, cfg, tensors, source=source)
    if found is not None:
        vit, form = found
        model = read_vit(tensors, vit, source=source).noting(*compare_epsilon(form.eps, LAYER_NORM_EPS, source=source))
    elif _BIT.fullmatch(architecture):
        model = _read_bit(cfg, tensors, source=source)
    else:
        model = read_timm_family(architecture, arguments, cfg, tensors, source=source)
    mean, std = cfg.get("mean") or _IMAGENET_MEAN, cfg.get("std") or _IMAGENET_STD
    model = normalise(model.noting(*rgb.notes), three(mean, source=source), three(std, source=source))
    labels = {"id2label": config.get("label_names") if model.has_head else None}
    known, odd = read_labels(labels, model.config.num_classes)
    model = model.noting(*odd)
    if cfg.get("crop_mode") not in (None, "center"):
        model = model.noting(f"its images are cropped by the mode {cfg['crop_mode']} there; here the centre is taken")
    return replace(
        model,
        class_names=known,
        preprocessing=_preprocessing(cfg, min(model.config.height_and_width)),
        probabilities=read_problem(config),
    )


def _describe(
    architecture: str, arguments: Mapping[str, Any], cfg: Mapping[str, Any], tensors: Tensors, *, source: str
) -> tuple[EncoderConfig, Form] | None:
    """Return the configuration of a folder's Vision Transformer, and what its architecture's name says; None if it is none."""
    if not looks_like_vit(tensors):
        return None
    form = form_of(architecture, arguments, source=source)
    if form is None:
        return None
    given = dict(arguments)
    if cfg.get("fixed_input_size") and "img_size" not in given and cfg.get("input_size"):
        given["img_size"] = list(cfg["input_size"])[-2:]  # as timm does (models/_builder.py)
    vit = describe_vit(tensors, given, source=source, form=form)
    if vit is None or strangers(tensors, timm_pieces(vit)):
        return None
    return vit, form


_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # timm's defaults


def looks_like_vit(tensors: Tensors) -> bool:
    """Return whether tensors have the names of timm's Vision Transformer, or of one of its many relatives."""
    names = ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight", "norm.weight")
    if not all(name in tensors for name in names) or tensors[names[0]].ndim != 4:
        return False  # also timm's own mean of the patches, whose norm follows the mean
    is_hybrid = any(name.startswith("patch_embed.backbone.") for name in tensors)
    return not is_hybrid or any(name in tensors for name in _ROOTS)


def describe_vit(tensors: Tensors, arguments: Mapping[str, Any], *, source: str, form: Form = PLAIN) -> EncoderConfig | None:
    """Return the configuration of a Vision Transformer, or a hybrid, by its tensors; None if ours is none of this form.

    Args:
        form: what the architecture is where `arguments` do not say it.

    Raises:
        ExchangeError: it is one, and ours cannot be it.
    """
    if not looks_like_vit(tensors) or any(arguments.get(name) for name in _UNKNOWN) or arguments.get("fc_norm"):
        return None
    patch, first = tensors["patch_embed.proj.weight"], tensors["blocks.0.attn.qkv.weight"]
    _check_patches(patch, source=source)
    is_hybrid = any(name.startswith("patch_embed.backbone.") for name in tensors)
    width = first.shape[1]
    num_heads = _num_heads(tensors, arguments, width, form=form, source=source)
    has_class_token, registers = "cls_token" in tensors, tensors.get("reg_token")
    pooling = "map" if "attn_pool.latent" in tensors else "class_token" if has_class_token else "gap"
    if arguments.get("global_pool") not in (None, next(key for key, value in _POOLING.items() if value == pooling)):
        return None
    gelu = _GELU.get(arguments["act_layer"]) if arguments.get("act_layer") else form.gelu
    head, hidden = tensors.get("head.weight"), tensors.get("pre_logits.fc.weight")
    if gelu is None:
        return None
    values: dict[str, Any] = {
        "width": width,
        "depth": 1 + max(int(match[1]) for name in tensors if (match := _BLOCK.match(name))),
        "mlp_dim": tensors["blocks.0.mlp.fc1.weight"].shape[0],
        "num_heads": num_heads,
        "num_classes": 1 if head is None else head.shape[0],
        "representation_size": None if hidden is None else hidden.shape[0],
        "dropout": 0.0,
        "pooling": pooling,
        "gelu": gelu,
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        "qk_norm": "blocks.0.attn.q_norm.weight" in tensors,
        "layer_scale": 1.0 if "blocks.0.ls1.gamma" in tensors else None,
        "registers": 0 if registers is None else registers.shape[1],
    }
    return _with_positions(values, tensors, arguments, is_hybrid=is_hybrid, source=source)


def _check_patches(kernel: Tensor, *, source: str) -> None:
    """Refuse patches that are no squares."""
    _, _, height, width = kernel.shape
    if height != width:
        raise ExchangeError(f"{source} has patches of {height} x {width} pixels, ours are squares")


def _num_heads(tensors: Tensors, arguments: Mapping[str, Any], width: int, *, form: Form, source: str) -> int:
    """Return the number of heads, which no tensor's shape says but that of their norms."""
    if "blocks.0.attn.q_norm.weight" in tensors:
        return width // tensors["blocks.0.attn.q_norm.weight"].shape[0]
    given = arguments.get("num_heads", form.num_heads or HEADS_OF_WIDTH.get(width))
    if not isinstance(given, int):
        raise ExchangeError(
            f"{source} does not say how many heads a width of {width} has; add model_args.num_heads to its config.json"
        )
    return given


def _with_positions(
    values: dict[str, Any], tensors: Tensors, arguments: Mapping[str, Any], *, is_hybrid: bool, source: str
) -> EncoderConfig | None:
    """Return the configuration with its image size and positions."""
    patch = tensors["patch_embed.proj.weight"].shape[-1]
    blocks = _stages(tensors, _STAGE)
    stride = patch * (2 ** (1 + max(1, len(blocks))) if is_hybrid else 1)
    positions = tensors.get("pos_embed")
    has_class_token = values["pooling"] == "class_token"
    size = arguments.get("img_size")
    position: Position = "none" if positions is None else "learned_1d"
    length = 0 if positions is None else positions.shape[1]
    prefix = has_class_token + values["registers"]
    if size is None and positions is not None:
        sides = [math.isqrt(length - extra) for extra in (0, 1, prefix) if is_square(length - extra)]
        size = sides[0] * stride if sides else 0
    height, width = (size, size) if isinstance(size, int) else tuple(size or (224, 224))
    extra = length - (height // stride) * (width // stride) if positions is not None else 0
    if extra not in (0, 1) or (extra == 1 and not has_class_token) or not height * width:
        return None  # registers with positions, or a distillation token
    values |= {
        "position": position,
        "position_class_token": extra == 1 or not has_class_token,
        "image_size": image_size(height, width),
    }
    if is_hybrid:
        stem = "patch_embed.backbone.stem.conv.weight"
        root = tensors[stem if blocks else "patch_embed.backbone.conv.weight"].shape[0]
        config: EncoderConfig = HybridConfig(blocks=blocks, root_width=root, patch_size=patch, **values)
    else:
        config = ViTConfig(patch_size=patch, **values)
    if (conflict := conflict_of(config)) is not None:
        raise ExchangeError(f"{source}: {conflict}")
    return config


def _fold_register_positions(tensors: Tensors) -> Tensors:
    """Add the positions of registers to the registers, where they have some."""
    registers, positions = tensors.get("reg_token"), tensors.get("pos_embed")
    if registers is None or positions is None:
        return tensors
    first, count, length = int("cls_token" in tensors), registers.shape[1], positions.shape[1]
    if not is_square(length - first - count) or is_square(length - first) or is_square(length):
        return tensors
    own, theirs, patches = positions.split([first, count, length - first - count], dim=1)
    return tensors | {"reg_token": registers + theirs, "pos_embed": torch.cat([own, patches], dim=1)}


def is_square(count: int) -> bool:
    """Return whether as many patches can be a square."""
    return count > 0 and math.isqrt(count) ** 2 == count


def _stages(tensors: Tensors, pattern: re.Pattern[str]) -> tuple[int, ...]:
    """Return the number of blocks of each stage of a ResNet."""
    units: dict[int, int] = {}
    for name in tensors:
        if match := pattern.match(name):
            units[int(match[1])] = max(units.get(int(match[1]), 0), int(match[2]) + 1)
    return tuple(units[stage] for stage in sorted(units))


def _read_bit(cfg: Mapping[str, Any], tensors: Tensors, *, source: str) -> Pretrained:
    """Return a ResNet of BiT."""
    sides = cfg.get("input_size") or (3, 224, 224)
    head = tensors.get("head.fc.weight")
    root = tensors.get("stem.conv.weight")
    if head is None or root is None:
        raise ExchangeError(f"{source} lacks stem.conv.weight or head.fc.weight, which timm's ResNets of BiT have")
    config = BiTConfig(
        image_size=image_size(int(sides[-2]), int(sides[-1])),
        variant="v2",
        blocks=_stages(tensors, _BIT_UNIT),
        width=root.shape[0],
        num_classes=head.shape[0],
    )
    refuse_impossible(config, tensors, source=source)
    read = to_ours(tensors, timm_pieces(config), source=source)
    check_shapes(read.tensors, config, source=source)
    return Pretrained(config, read.tensors, source=source)


def read_vit(tensors: Tensors, config: EncoderConfig, *, source: str) -> Pretrained:
    """Return the model that timm's tensors are."""
    has_head = "head.weight" in tensors
    refuse_impossible(config, tensors, source=source)
    pieces = [piece for piece in timm_pieces(config) if has_head or not piece.ours[0].startswith(HEAD)]
    refuse_strangers(tensors, pieces, source=source)
    read = to_ours(tensors, pieces, source=source)
    check_shapes(read.tensors, config, source=source)
    return Pretrained(config, read.tensors, source=source, notes=tuple(left_out_notes(read)))


def _preprocessing(cfg: Mapping[str, Any], crop: int) -> Preprocessing:
    share = float(cfg.get("crop_pct") or 0)
    resize: Resize = "bicubic_antialias" if cfg.get("interpolation", "bicubic") == "bicubic" else "bilinear_antialias"
    return Preprocessing(short_side=int(crop / share) if 0 < share <= 1 else None, resize=resize)


def read_timm_file(path: Path, state: StateDict) -> Pretrained:
    """Return the Vision Transformer that a file of timm's names without a description is, alone or as a part of something.

    Raises:
        ExchangeError: it is none of the usual sizes.
    """
    state = part_of(state, anchors=("patch_embed.proj.weight", "blocks.0.attn.qkv.weight"), source=str(path))
    rgb = read_as_rgb(state.tensors, source=str(path))
    state = StateDict(rgb.tensors, (*state.notes, *rgb.notes))
    config = describe_vit(state.tensors, {}, source=str(path))
    if config is None:
        names = ", ".join(sorted(state.tensors)[:3])
        raise ExchangeError(
            f"{path} is no Vision Transformer in timm's names that ours can be (it holds {names}, ...); timm's config.json "
            "next to it would say what it is"
        )
    return read_vit(state.tensors, config, source=str(path)).noting(
        *state.notes,
        "pixels are taken as scaled to [-1, 1] and GELU as exact: a config.json of timm next to the file would say",
    )
