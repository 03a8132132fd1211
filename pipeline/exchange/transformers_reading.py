"""Read a folder of transformers: ViT, I-JEPA, DINOv2 with registers, BiT, and timm's folders as it saves them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

from pipeline.data.images.crop import Resize
from pipeline.errors import ExchangeError
from pipeline.exchange.pieces import Piece, Tensors, check_shapes, refuse_impossible, to_ours
from pipeline.exchange.pretrained import Preprocessing, Pretrained
from pipeline.exchange.timm_reading import empty_head, normalise
from pipeline.exchange.transformers_names import Kind, transformers_pieces
from pipeline.image_size import image_size
from pipeline.models.base import ModelConfig
from pipeline.models.bit.model import BiTConfig
from pipeline.models.vit.encoder_config import conflict_of
from pipeline.models.vit.layers import LAYER_NORM_EPS
from pipeline.models.vit.model import ViTConfig

_GELU = {"gelu": "exact", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh"}
_LABEL = re.compile(r"LABEL_\d+")
_HALF = (0.5, 0.5, 0.5)
# Of what a field is where a configuration leaves it out: transformers writes only what differs from these.
_VIT_DEFAULTS = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "hidden_act": "gelu",
    "layer_norm_eps": 1e-12, "image_size": 224, "patch_size": 16, "num_channels": 3, "qkv_bias": True,
}  # fmt: skip
_DINO_DEFAULTS = {**_VIT_DEFAULTS, "layer_norm_eps": 1e-6, "mlp_ratio": 4, "num_register_tokens": 4, "use_swiglu_ffn": False}
_BIT_DEFAULTS = {
    "embedding_size": 64, "hidden_sizes": [256, 512, 1024, 2048], "depths": [3, 4, 6, 3], "layer_type": "preactivation",
    "global_padding": None, "num_groups": 32, "output_stride": 32, "width_factor": 1, "embedding_dynamic_padding": False,
}  # fmt: skip

_BIT_FORM = ("layer_type", "global_padding", "num_groups", "output_stride", "width_factor", "embedding_dynamic_padding")
_MOST_EPS = 1e-5  # of a layer norm: variances are far larger


def read_transformers_folder(
    config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None, tensors: Tensors, *, source: str
) -> Pretrained:
    """Return the model of a folder.

    Args:
        config: what `config.json` holds.
        preprocessor: what `preprocessor_config.json` holds, if it is there.

    Raises:
        ExchangeError: it is no model that is known here.
    """
    kind: Kind | None = next((known for known in get_args(Kind) if known == config.get("model_type")), None)
    if kind is None:
        known = ", ".join(get_args(Kind))
        found = str(config.get("model_type"))[:40]
        raise ExchangeError(f"{source} is transformers' {found}; those that are read are {known}, and timm's folders")
    described = _describe_bit(config, source=source) if kind == "bit" else _describe_vit(kind, config, tensors, source=source)
    refuse_impossible(described, tensors, source=source)
    has_classifier = any(name.startswith("classifier.") for name in tensors)
    if not has_classifier:  # a folder of a model without one, whose names may still begin with the kind
        prefix = f"{kind}."
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    pieces: list[Piece] = transformers_pieces(described, kind, has_classifier=has_classifier)
    read = to_ours(tensors, pieces, source=source)
    found = read.tensors
    if not has_classifier:
        found |= _empty_head(described)
    check_shapes(found, described, source=source)
    notes = [f"not read: {', '.join(read.left_out)}"] if read.left_out else []
    if kind == "dinov2_with_registers" and has_classifier:
        _check_mean_is_unused(tensors, described, source=source)
    names = _class_names(config, described.num_classes)
    notes += _compare_epsilon(config, kind, source=source)
    model = Pretrained(described, found, source=source, class_names=names, notes=tuple(notes))
    return _with_preprocessing(model, preprocessor)


def _describe_vit(kind: Kind, config: Mapping[str, Any], tensors: Tensors, *, source: str) -> ViTConfig:
    is_dino = kind == "dinov2_with_registers"
    values = {**(_DINO_DEFAULTS if is_dino else _VIT_DEFAULTS), **{k: v for k, v in config.items() if v is not None}}
    if values["hidden_act"] not in _GELU:
        raise ExchangeError(
            f"{source} has the activation {values['hidden_act']!r}; ours is GELU, exact or its tanh approximation"
        )
    if values["num_channels"] != 3 or values.get("use_swiglu_ffn"):
        raise ExchangeError(f"{source} has {values['num_channels']} channels or a gated MLP, which ours has not")
    width, sides = int(values["hidden_size"]), values["image_size"]
    height, across = (sides, sides) if isinstance(sides, int) else tuple(sides)
    classifier = tensors.get("classifier.weight")
    pooler = next((tensor for name, tensor in tensors.items() if name.endswith("pooler.dense.weight")), None)
    described = ViTConfig(
        image_size=image_size(int(height), int(across)),
        patch_size=int(values["patch_size"]),
        width=width,
        depth=int(values["num_hidden_layers"]),
        mlp_dim=width * int(values["mlp_ratio"]) if is_dino else int(values["intermediate_size"]),
        num_heads=int(values["num_attention_heads"]),
        num_classes=1 if classifier is None else classifier.shape[0],
        representation_size=pooler.shape[0] if pooler is not None and classifier is None else None,
        dropout=0.0,
        pooling="gap" if kind == "ijepa" else "class_token",
        gelu=_GELU[values["hidden_act"]],  # type: ignore[arg-type]
        qkv_bias=bool(values["qkv_bias"]),
        layer_scale=1.0 if is_dino else None,
        registers=int(values["num_register_tokens"]) if is_dino else 0,
    )
    if (conflict := conflict_of(described)) is not None:
        raise ExchangeError(f"{source}: {conflict}")
    return described


def _compare_epsilon(config: Mapping[str, Any], kind: Kind, *, source: str) -> list[str]:
    """Return what another epsilon of layer norms changes, in words.

    Raises:
        ExchangeError: it is so large that outputs would be others.
    """
    if kind == "bit":
        return []
    default = (_DINO_DEFAULTS if kind == "dinov2_with_registers" else _VIT_DEFAULTS)["layer_norm_eps"]
    theirs = float(config.get("layer_norm_eps", default))
    if theirs == LAYER_NORM_EPS:
        return []
    if not 0 <= theirs <= _MOST_EPS:
        raise ExchangeError(f"{source} has the epsilon {theirs:g} in its layer norms, ours {LAYER_NORM_EPS:g}: outputs differ")
    return [f"layer norms have the epsilon {LAYER_NORM_EPS:g} here, as in the authors' code, and {theirs:g} there"]


def _describe_bit(config: Mapping[str, Any], *, source: str) -> BiTConfig:
    values = {**_BIT_DEFAULTS, **{k: v for k, v in config.items() if v is not None}}
    expected = [4 * int(values["embedding_size"]) * 2**stage for stage in range(len(values["depths"]))]
    odd = [key for key in _BIT_FORM if values[key] != _BIT_DEFAULTS[key]]
    if odd or list(values["hidden_sizes"]) != expected:
        what = odd[0] if odd else "hidden_sizes"
        raise ExchangeError(f"{source} is a ResNet of another form than BiT as released: {what}={values[what]}")
    labels = config.get("id2label")
    return BiTConfig(
        image_size=224,
        variant="v2",
        blocks=tuple(int(count) for count in values["depths"]),
        width=int(values["embedding_size"]),
        num_classes=len(labels) if isinstance(labels, dict) else 1,
    )


def _check_mean_is_unused(tensors: Tensors, config: ModelConfig, *, source: str) -> None:
    """Refuse a classifier of DINOv2 that reads the patches' mean: ours reads the class token alone."""
    assert isinstance(config, ViTConfig)
    if tensors["classifier.weight"][:, config.width :].any():
        raise ExchangeError(
            f"{source}: its classifier reads the class token and the patches' mean, ours the class token alone; read the "
            "model without its classifier"
        )


def _empty_head(config: ModelConfig) -> Tensors:
    if isinstance(config, ViTConfig):
        return empty_head(config)
    raise ExchangeError("a ResNet of BiT without a classifier is not read")


def _class_names(config: Mapping[str, Any], num_classes: int) -> tuple[str, ...] | None:
    """Return the names of classes; None where a configuration has transformers' own stand-ins alone."""
    labels = config.get("id2label")
    if not isinstance(labels, dict) or len(labels) != num_classes:
        return None
    names = tuple(str(labels.get(str(number), "")) for number in range(num_classes))
    return None if all(_LABEL.fullmatch(name) for name in names) else names


def _with_preprocessing(model: Pretrained, preprocessor: Mapping[str, Any] | None) -> Pretrained:
    if preprocessor is None:
        return model.noting("no preprocessor_config.json: pixels are taken as scaled to [-1, 1]")
    mean = tuple(map(float, preprocessor.get("image_mean") or _HALF))
    std = tuple(map(float, preprocessor.get("image_std") or _HALF))
    model = normalise(model, mean, std)
    resize: Resize = "bicubic_antialias" if preprocessor.get("resample") == 3 else "bilinear_antialias"
    size = preprocessor.get("size")
    short = size.get("shortest_edge") if isinstance(size, dict) else None
    if isinstance(short, int) and preprocessor.get("do_center_crop", True):
        return replace(model, preprocessing=Preprocessing(short_side=short, resize=resize))
    side = min(model.config.height_and_width)
    model = replace(model, preprocessing=Preprocessing(short_side=side, resize=resize))
    return model.noting("its images are squeezed to the square there; here the centre square is taken, at the same size")
