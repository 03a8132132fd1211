"""Write a folder that transformers opens by `from_pretrained(FOLDER)`: `config.json`, `model.safetensors`, a preprocessor.

| ours | theirs | what they hold |
|---|---|---|
| class token | ViTForImageClassification | pre-logits have no layer there |
| class token, without the classifier | ViTModel | pre-logits with tanh are its pooler |
| mean of the patches | IJepaForImageClassification | |
| registers, LayerScale | Dinov2WithRegistersForImageClassification | reads the patches' mean too: that half is zeros |
| BiT v2 | BitForImageClassification | |

Other models (attention pooling, hybrids, the family timm) go through timm's folder, which transformers opens as
TimmWrapperForImageClassification.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from pipeline.errors import ExchangeError
from pipeline.exchange.fold import fill_qkv_bias, fold_layer_scale, fold_positions, refuse
from pipeline.exchange.labels import write_labels, write_problem
from pipeline.exchange.pieces import Tensors, to_theirs
from pipeline.exchange.pretrained import Pretrained
from pipeline.exchange.transformers_names import Kind, transformers_pieces
from pipeline.image_size import height_and_width
from pipeline.models.bit.model import BiTConfig
from pipeline.models.vit.encoder_config import EncoderConfig
from pipeline.models.vit.layers import LAYER_NORM_EPS
from pipeline.models.vit.model import ViTConfig

_CLASSES: dict[Kind, tuple[str, str]] = {  # with a classifier, without
    "vit": ("ViTForImageClassification", "ViTModel"),
    "ijepa": ("IJepaForImageClassification", "IJepaModel"),
    "dinov2_with_registers": ("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersModel"),
    "bit": ("BitForImageClassification", "BitModel"),
}
_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers
_ALTERNATIVE = "`--to timm` writes a folder that transformers opens as TimmWrapperForImageClassification"


@dataclass(frozen=True)
class TransformersFolder:
    """Holds what the folder's three files hold."""

    config: dict[str, Any]
    preprocessor: dict[str, Any]
    tensors: Tensors
    notes: tuple[str, ...]


def make_transformers_folder(model: Pretrained) -> TransformersFolder:
    """Return a model in transformers' form.

    Raises:
        ExchangeError: transformers has no such model.
    """
    if isinstance(model.config, BiTConfig):
        kind: Kind = "bit"
        described = _describe_bit(model, model.config)
    elif isinstance(model.config, ViTConfig):
        kind = _kind_of(model.config)
        model = _fold(model, kind)
        config = model.config
        assert isinstance(config, ViTConfig)
        described = _describe_encoder(config, kind)
    else:
        raise ExchangeError(f"{model.source}: transformers has no model of the family {model.config.family}; {_ALTERNATIVE}")
    pieces = transformers_pieces(model.config, kind, has_classifier=model.has_head)
    labels, notes = write_labels(model.class_names, model.config.num_classes) if model.has_head else ({}, [])
    model = model.noting(*notes)
    config_json = {
        "model_type": kind,
        "architectures": [_CLASSES[kind][0 if model.has_head else 1]],
        **described,
        **labels,
        **(write_problem(model.probabilities) if model.has_head else {}),
        "torch_dtype": "float32",
    }
    tensors = to_theirs(model.tensors, pieces)
    if kind == "dinov2_with_registers":  # a parameter that pretraining alone reads
        prefix = f"{kind}." if model.has_head else ""
        tensors[f"{prefix}embeddings.mask_token"] = torch.zeros(1, config_json["hidden_size"])
    return TransformersFolder(config_json, _describe_preprocessing(model), tensors, model.notes)


def _kind_of(config: EncoderConfig) -> Kind:
    if config.registers:
        return "dinov2_with_registers"
    return "vit" if config.has_class_token else "ijepa"


def _fold(model: Pretrained, kind: Kind) -> Pretrained:
    """Express a model by what transformers has."""
    target = "transformers"
    config = model.config
    assert isinstance(config, ViTConfig)
    if config.pooling == "map" or (config.registers and not config.has_class_token):
        raise ExchangeError(
            f"{model.source}: transformers has no classifier with model.pooling={config.pooling}"
            f"{' and registers' if config.registers else ''}; {_ALTERNATIVE}"
        )
    refuse(model, target=target, qk_norm=lambda config: config.qk_norm)
    if config.representation_size is not None and (model.has_head or kind != "vit"):
        raise ExchangeError(
            f"{model.source}: transformers' {_CLASSES[kind][0]} has no pre-logits layer (model.representation=tanh); "
            "`--without-head` writes it as the pooler of ViTModel, and fine-tuning replaces it with the classifier"
        )
    model = fold_positions(model, target=target, class_token_has_one=True)
    if kind != "dinov2_with_registers":
        return fold_layer_scale(model, target=target)
    model = fill_qkv_bias(model, target=target)
    config = model.config
    assert isinstance(config, ViTConfig)
    if config.layer_scale is not None:
        return model
    ones = {
        f"blocks.{number}.{scale}.gamma": torch.ones(config.width)
        for number in range(config.depth)
        for scale in ("scale_attention", "scale_mlp")
    }
    return replace(model, config=replace(config, layer_scale=1.0), tensors=model.tensors | ones)


def _describe_encoder(config: ViTConfig, kind: Kind) -> dict[str, Any]:
    height, width = config.height_and_width
    described: dict[str, Any] = {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "hidden_act": "gelu" if config.gelu == "exact" else "gelu_pytorch_tanh",
        "layer_norm_eps": LAYER_NORM_EPS,
        "image_size": height if height == width else [height, width],
        "patch_size": config.patch_size,
        "num_channels": 3,
        "qkv_bias": config.qkv_bias,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    if kind != "dinov2_with_registers":
        pooler = {} if config.representation_size is None else {"pooler_output_size": config.representation_size}
        return {**described, "intermediate_size": config.mlp_dim, **pooler, "pooler_act": "tanh"}
    if config.mlp_dim % config.width:
        raise ExchangeError(f"transformers' DINOv2 has an MLP of a multiple of the width {config.width}, not {config.mlp_dim}")
    if height != width:
        raise ExchangeError(f"transformers' DINOv2 has square images, not {height} x {width}")
    return {
        **described,
        "mlp_ratio": config.mlp_dim // config.width,
        "num_register_tokens": config.registers,
        "apply_layernorm": True,
    }


def _describe_bit(model: Pretrained, config: BiTConfig) -> dict[str, Any]:
    if config.variant != "v2":
        raise ExchangeError(f"{model.source}: transformers has BiT as released (model.variant=v2) alone, not {config.variant}")
    return {
        "embedding_size": config.width,
        "hidden_sizes": [4 * config.width * 2**stage for stage in range(len(config.blocks))],
        "depths": list(config.blocks),
        "layer_type": "preactivation",
        "num_channels": 3,
    }


def _describe_preprocessing(model: Pretrained) -> dict[str, Any]:
    """Return `preprocessor_config.json`: the short side is resized and the centre cropped, as the evaluator does.

    ViTImageProcessor resizes to the square, whatever the image's shape. BitImageProcessor has the crop.
    """
    height, width = height_and_width(model.config.image_size)
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": model.preprocessing.pixels(model.config)},
        "resample": _RESAMPLE[model.preprocessing.resize.partition("_")[0]],
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
