"""Read a folder of transformers: ViT, I-JEPA, DINOv2 with registers, BiT, and timm's folders as it saves them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

from pipeline.errors import ExchangeError
from pipeline.exchange.labels import read_labels, read_problem
from pipeline.exchange.pieces import (
    Piece,
    Tensors,
    check_shapes,
    compare_epsilon,
    left_out_notes,
    refuse_impossible,
    refuse_strangers,
    to_ours,
)
from pipeline.exchange.preprocessors import with_preprocessing
from pipeline.exchange.pretrained import Pretrained
from pipeline.exchange.transformers_names import Kind, transformers_pieces
from pipeline.image_size import image_size
from pipeline.models.base import ModelConfig
from pipeline.models.bit.model import BiTConfig
from pipeline.models.vit.encoder_config import conflict_of
from pipeline.models.vit.layers import LAYER_NORM_EPS
from pipeline.models.vit.model import ViTConfig

_GELU = {"gelu": "exact", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh"}
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
    refuse_strangers(tensors, pieces, source=source)
    read = to_ours(tensors, pieces, source=source)
    found = read.tensors
    check_shapes(found, described, source=source)
    notes = left_out_notes(read)
    if kind == "dinov2_with_registers" and has_classifier:
        _check_mean_is_unused(tensors, described, source=source)
    names, odd = read_labels(config, described.num_classes) if has_classifier else (None, [])
    notes += [*odd, *_compare_epsilon(config, kind, source=source)]
    model = Pretrained(described, found, source=source, class_names=names, notes=tuple(notes))
    return with_preprocessing(replace(model, probabilities=read_problem(config)), preprocessor)


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
        patch_size=_patch_size(values["patch_size"], source=source),
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


def _patch_size(value: Any, *, source: str) -> int:
    """Return the side of a patch, of a number or of height and width."""
    sides = {int(side) for side in value} if isinstance(value, list | tuple) else {int(value)}
    if len(sides) != 1:
        raise ExchangeError(f"{source} has patches of {value} pixels, ours are squares")
    return sides.pop()


def _compare_epsilon(config: Mapping[str, Any], kind: Kind, *, source: str) -> list[str]:
    """Return what another epsilon of layer norms changes, in words.

    Raises:
        ExchangeError: it is so large that outputs would be others.
    """
    if kind == "bit":
        return []
    default = (_DINO_DEFAULTS if kind == "dinov2_with_registers" else _VIT_DEFAULTS)["layer_norm_eps"]
    return compare_epsilon(float(config.get("layer_norm_eps", default)), LAYER_NORM_EPS, source=source)


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
