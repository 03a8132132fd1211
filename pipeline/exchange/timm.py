"""Write a folder that `timm.create_model('local-dir:FOLDER', pretrained=True)` opens, and transformers as TimmWrapperModel.

The folder holds `model.safetensors` with timm's names, and `config.json` (timm `models/_hub.py`): an architecture, the
arguments of its constructor, and what images go through. timm itself is needed for models of the family timm alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from pipeline.errors import ExchangeError
from pipeline.exchange.fold import fold_positions
from pipeline.exchange.labels import write_problem
from pipeline.exchange.pieces import Tensors, to_theirs
from pipeline.exchange.pixels import pixels_of
from pipeline.exchange.pretrained import Pretrained
from pipeline.exchange.timm_names import timm_pieces
from pipeline.models.bit.model import BiTConfig
from pipeline.models.hybrid.model import HybridConfig
from pipeline.models.timm.library import classifier_name, new_model
from pipeline.models.timm.model import TimmConfig, thaw
from pipeline.models.vit.encoder_config import EncoderConfig
from pipeline.models.vit.model import ViTConfig

_POOLING = {"class_token": "token", "gap": "avg", "map": "map"}
# Architectures of timm with these sizes: width, blocks, heads.
_VITS = {(192, 12, 3): "tiny", (384, 12, 6): "small", (768, 12, 12): "base", (1024, 24, 16): "large", (1280, 32, 16): "huge"}
_VIT_PATCHES = {"tiny": (16,), "small": (16, 32), "base": (8, 16, 32), "large": (14, 16, 32), "huge": (14,)}
_HYBRIDS = {
    ((3, 4, 9), 1): "vit_base_r50_s16_224",
    ((3, 4, 6, 3), 1): "vit_large_r50_s32_224",
    ((2, 2, 2, 2), 1): "vit_small_r26_s32_224",
    ((), 8): "vit_tiny_r_s16_p8_224",
}
_BITS: dict[tuple[int, ...], str] = {
    (3, 4, 6, 3): "resnetv2_50x{}_bit",
    (3, 4, 23, 3): "resnetv2_101x{}_bit",
    (3, 8, 36, 3): "resnetv2_152x{}_bit",
}
_BIT_WIDTHS: dict[tuple[int, ...], tuple[int, ...]] = {(3, 4, 6, 3): (1, 3), (3, 4, 23, 3): (1, 3), (3, 8, 36, 3): (2, 4)}
_ROOT_WIDTH = 64
_IMAGENETS = (1000, 11221, 11821, 21841, 21842, 21843)  # numbers of classes that timm takes for one of ImageNet's


@dataclass(frozen=True)
class TimmFolder:
    """Holds what the folder's two files hold."""

    config: dict[str, Any]
    tensors: Tensors
    notes: tuple[str, ...]


def make_timm_folder(model: Pretrained) -> TimmFolder:
    """Return a model in timm's form.

    Raises:
        ExchangeError: timm has no such model.
    """
    if isinstance(model.config, TimmConfig):
        return _make_own(model, model.config)
    if isinstance(model.config, BiTConfig):
        architecture, arguments = _describe_bit(model, model.config), {}
        model = model.noting("timm standardises kernels with another epsilon: outputs are equal to about 1e-5")
        first, classifier = "stem.conv", "head.fc"
    else:
        if not model.has_head:
            model = without_pre_logits(model)
        _refuse_pre_logits(model)
        has_registers = isinstance(model.config, EncoderConfig) and bool(model.config.registers)
        # There registers have positions where the class token has one.
        model = fold_positions(
            model, target="timm", class_token_has_one=False if has_registers else None, table_is_needed=False
        )
        config = model.config
        assert isinstance(config, EncoderConfig)
        architecture, arguments = _describe_encoder(model, config)
        stem = "stem.conv" if isinstance(config, HybridConfig) and config.blocks else "conv"
        first = f"patch_embed.backbone.{stem}" if isinstance(config, HybridConfig) else "patch_embed.proj"
        classifier = "head"
        if isinstance(config, HybridConfig):
            model = model.noting("timm's group normalisation has the epsilon 1e-5, ours 1e-6: outputs are equal to about 1e-4")
    model = model.noting(*_unnamed(model))
    tensors = to_theirs(model.tensors, [piece for piece in timm_pieces(model.config) if piece.ours[0] in model.tensors])
    described = _describe(model, architecture, arguments, first=first, classifier=classifier)
    return TimmFolder(described, tensors, model.notes)


def _unnamed(model: Pretrained) -> list[str]:
    """Return in words that transformers names classes without names by ImageNet's, where there are as many of them."""
    if model.class_names is not None or not model.has_head or model.config.num_classes not in _IMAGENETS:
        return []
    return [
        f"the {model.config.num_classes} classes have no names: transformers names them as ImageNet's; "
        "where they are others, `import --classes FILE` names them"
    ]


def _refuse_pre_logits(model: Pretrained) -> None:
    if isinstance(model.config, EncoderConfig) and model.config.representation_size is not None:
        raise ExchangeError(
            f"{model.source}: timm's models have no pre-logits layer (model.representation=tanh), and its tanh cannot be "
            "folded into the classifier; `--without-head` leaves both out, as fine-tuning does"
        )


def _describe_encoder(model: Pretrained, config: EncoderConfig) -> tuple[str, dict[str, Any]]:
    """Return an architecture, and the arguments that make the model of it."""
    arguments = {
        "img_size": list(config.height_and_width),
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "mlp_ratio": config.mlp_dim / config.width,
        "global_pool": _POOLING[config.pooling],
        "class_token": config.has_class_token,
        "no_embed_class": not config.class_token_has_position,
        "pos_embed": "none" if config.position == "none" else "learn",
        "reg_tokens": config.registers,
        "qkv_bias": config.qkv_bias,
        "qk_norm": config.qk_norm,
        "init_values": config.layer_scale,
        "act_layer": "gelu" if config.gelu == "exact" else "gelu_tanh",
        "fc_norm": False,  # the final norm precedes the mean
    }
    if int(config.width * arguments["mlp_ratio"]) != config.mlp_dim:  # timm computes the width from the ratio
        arguments["mlp_ratio"] = (config.mlp_dim + 0.5) / config.width
    if isinstance(config, ViTConfig):
        size = _VITS.get((config.width, config.depth, config.num_heads), "base")
        patch = config.patch_size if config.patch_size in _VIT_PATCHES[size] else 16
        name = f"vit_{size}_patch{min(_VIT_PATCHES[size], key=lambda known: abs(known - patch))}_224"
        return name, {"patch_size": config.patch_size, **arguments}
    assert isinstance(config, HybridConfig)
    name = _HYBRIDS.get((config.blocks, config.patch_size))
    if name is None or config.root_width != _ROOT_WIDTH:
        known = ", ".join(f"{list(blocks)}" for blocks, _ in _HYBRIDS if blocks)
        raise ExchangeError(
            f"{model.source}: timm has hybrids on ResNets of {known} blocks and roots of {_ROOT_WIDTH} channels alone, not "
            f"{list(config.blocks)} and {config.root_width}; `--to safetensors` and `--to onnx` keep every model"
        )
    return name, arguments


def _describe_bit(model: Pretrained, config: BiTConfig) -> str:
    factor = config.width // _ROOT_WIDTH
    if config.variant != "v2" or factor not in _BIT_WIDTHS.get(config.blocks, ()) or config.width % _ROOT_WIDTH:
        known = ", ".join(pattern.format(width) for blocks, pattern in _BITS.items() for width in _BIT_WIDTHS[blocks])
        raise ExchangeError(
            f"{model.source}: timm has of BiT's ResNets {known} alone, not variant {config.variant} with {list(config.blocks)} "
            f"blocks and a root of {config.width} channels; `--to safetensors` and `--to onnx` keep every model"
        )
    return _BITS[config.blocks].format(factor)


def _make_own(model: Pretrained, config: TimmConfig) -> TimmFolder:
    """Return a model of the family timm, whose classifier moves to where timm has it."""
    num_classes = config.num_classes if model.has_head else 0
    theirs = new_model(config.name, size=config.height_and_width, options=thaw(config.options), num_classes=num_classes)
    pretrained = dict(getattr(theirs, "pretrained_cfg", {}))
    classifier = classifier_name(config.name, theirs)
    tensors = {name.removeprefix("backbone."): tensor for name, tensor in model.tensors.items() if name.startswith("backbone.")}
    expected = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    for kind in ("weight", "bias") if model.has_head else ():
        tensors[f"{classifier}.{kind}"] = model.tensors[f"head.{kind}"].reshape(expected[f"{classifier}.{kind}"])
    if tensors.keys() != expected.keys():
        odd = ", ".join(sorted(tensors.keys() ^ expected.keys())[:3])
        raise ExchangeError(f"{model.source}: timm's {config.name} with a classifier has other tensors ({odd})")
    arguments = thaw(config.options)
    if pretrained.get("fixed_input_size"):
        arguments["img_size"] = list(config.height_and_width)
    described = _describe(model, config.name, arguments, first=pretrained.get("first_conv"), classifier=classifier)
    return TimmFolder(described, {name: tensor.contiguous() for name, tensor in tensors.items()}, model.notes)


def _describe(
    model: Pretrained, architecture: str, arguments: dict[str, Any], *, first: str | None, classifier: str
) -> dict[str, Any]:
    """Return `config.json`."""
    height, width = model.config.height_and_width
    resize = model.preprocessing.resize
    num_classes = model.config.num_classes if model.has_head else 0
    mean, std = pixels_of(model.config)
    labels = {"label_names": list(model.class_names)} if model.class_names is not None and model.has_head else {}
    return {
        "architecture": architecture,
        "num_classes": num_classes,
        "num_features": model.num_features,
        **({"global_pool": arguments["global_pool"]} if "global_pool" in arguments else {}),
        **labels,
        **(write_problem(model.probabilities) if model.has_head else {}),
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "",
            "custom_load": False,
            "input_size": [3, height, width],
            "fixed_input_size": "img_size" in arguments,
            "interpolation": "bicubic" if resize.startswith("bicubic") else "bilinear",
            "crop_pct": crop_share(min(height, width), model.preprocessing.pixels(model.config)),
            "crop_mode": "center",
            "mean": list(mean),
            "std": list(std),
            "num_classes": num_classes,
            "pool_size": None,
            "first_conv": first,
            "classifier": classifier,
        },
    }


def crop_share(crop: int, short_side: int) -> float:
    """Return timm's `crop_pct`, of which it computes the short side as floor(crop / share)."""
    share = crop / short_side
    return share if math.floor(crop / share) == short_side else crop / (short_side + 0.5)


def without_pre_logits(model: Pretrained) -> Pretrained:
    """Return a model without a classifier whose pre-logits are left out too: its features are the pooled tokens."""
    config = model.config
    if not isinstance(config, EncoderConfig) or config.representation_size is None:
        return model
    tensors = {name: tensor for name, tensor in model.tensors.items() if not name.startswith("pre_logits.")}
    return replace(model, config=replace(config, representation_size=None), tensors=tensors).noting(
        "the pre-logits layer is left out with the classifier: the features are what it read"
    )
