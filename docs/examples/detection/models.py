"""Make an object detector of the library transformers whose backbone is pretrained weights of this software.

| family of the weights | detector | its backbone |
|---|---|---|
| bit (v2) | DETR (arXiv 2005.12872), Deformable DETR (arXiv 2010.04159) | transformers' BitBackbone |
| timm | the same two | timm's model, of which the last stages' maps are read |
| vit | the same two | transformers' VitDetBackbone: its patches are the map |
| vit | YOLOS (arXiv 2106.00666) | the ViT itself, which reads some more tokens, one for each object |
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.exchange.fold import fold_layer_scale, fold_positions, refuse
from pipeline.exchange.pieces import to_theirs
from pipeline.exchange.pretrained import Pretrained
from pipeline.exchange.resize import resize_images
from pipeline.exchange.timm_names import timm_pieces
from pipeline.exchange.transformers import make_transformers_folder
from pipeline.image_size import height_and_width, image_size
from pipeline.models.bit.model import BiTConfig
from pipeline.models.timm.model import TimmConfig
from pipeline.models.vit.layers import POSITION_STD
from pipeline.models.vit.model import ViTConfig

DetectorName = Literal["yolos", "detr", "deformable-detr"]
GROUPS = 32  # in which Deformable DETR normalises its channels
HEADS = 8  # of DETR's and Deformable DETR's attention
PRIOR = 0.01  # probability of a class at the start of Deformable DETR
FIRST_SIZE = -2.0  # logit of a box's width and height at its start
LEVELS = 3  # stages of the backbone that Deformable DETR reads; it makes a fourth, coarser map itself


@dataclass(frozen=True)
class DetectorSettings:
    """Holds what fixes a detector besides its backbone.

    Attributes:
        name: None is the usual one for the backbone.
        image_size: height and width in pixels of the images that it gets.
        width: channels of DETR's transformer, a multiple of 32. The width of YOLOS is its backbone's.
        layers: of DETR's encoder, and of its decoder.
        queries: the most objects that are found in an image.
    """

    name: DetectorName | None
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    width: int
    layers: int
    queries: int


@dataclass(frozen=True)
class Detector:
    """Holds a detector, and what it has of the pretrained weights.

    Attributes:
        taken: tensors taken over from the weights, by their names in the detector.
        is_plain: whether transformers alone can load it, by `from_pretrained`.
    """

    model: Any
    taken: dict[str, Tensor]
    is_plain: bool


def detectors_for(pretrained: Pretrained) -> tuple[DetectorName, ...]:
    """Return the detectors that a model can be the backbone of, the usual one first; none for some families."""
    if isinstance(pretrained.config, ViTConfig):
        return ("deformable-detr", "detr", "yolos")
    return ("deformable-detr", "detr") if isinstance(pretrained.config, BiTConfig | TimmConfig) else ()


def make_detector(pretrained: Pretrained, settings: DetectorSettings) -> Detector:
    """Return a detector on a pretrained backbone. What is new in it is drawn from torch's global generator.

    Raises:
        ConfigError: there is no detector for this backbone, or it is not the one that is set; or another setting does not fit.
        ExchangeError: transformers has no model with a choice of this backbone.
    """
    possible = detectors_for(pretrained)
    settings = replace(settings, name=settings.name or next(iter(possible), None))
    if settings.name not in possible:
        raise ConfigError(
            f"{pretrained.source} is of the family {pretrained.config.family}, which is a backbone of "
            f"{', '.join(possible) or 'no detector here; use weights of the families vit, bit or timm'}"
        )
    if settings.name != "yolos" and settings.width % GROUPS:
        raise ConfigError(f"--width {settings.width} is not a multiple of {GROUPS}")
    if settings.name == "deformable-detr" and settings.layers < 2:
        raise ConfigError("--layers 1: transformers makes Deformable DETR of two layers or more")
    if isinstance(pretrained.config, ViTConfig):
        return (_yolos if settings.name == "yolos" else _detr_on_vit)(pretrained, pretrained.config, settings)
    if isinstance(pretrained.config, TimmConfig):
        return _detr_on_timm(pretrained, pretrained.config, settings)
    return _detr_on_bit(pretrained, settings)


def _yolos(pretrained: Pretrained, config: ViTConfig, settings: DetectorSettings) -> Detector:
    library = load_transformers()
    refuse(pretrained, target="YOLOS", registers=lambda config: config.registers > 0)
    folder = make_transformers_folder(resize_images(_without_head(pretrained), image_size(*settings.image_size)))
    described = folder.config | {"image_size": list(settings.image_size), "num_detection_tokens": settings.queries}
    del described["model_type"], described["architectures"]
    model = library.YolosForObjectDetection(
        library.YolosConfig(**described, use_mid_position_embeddings=False, **_labels(settings.classes))
    )
    own = model.vit.embeddings
    for new in (own.cls_token, own.detection_tokens, own.position_embeddings):  # tokens that begin equal would stay equal
        nn.init.normal_(new, std=POSITION_STD)
    # hustvl/YOLOS (models/detector.py) leaves both heads as torch draws them; deviations of 0.02 make all boxes alike at first.
    for layer in (*model.class_labels_classifier.layers, *model.bbox_predictor.layers):
        layer.reset_parameters()
    tensors = {f"vit.{name}": tensor for name, tensor in folder.tensors.items()}
    table = tensors.pop("vit.embeddings.position_embeddings")  # of the class token, where there is one, and of the patches
    end = 1 + own.patch_embeddings.num_patches
    detector = _fill(model, tensors, is_plain=True)
    own.position_embeddings.data[:, end - table.shape[1] : end] = table
    return replace(detector, taken=detector.taken | {"vit.embeddings.position_embeddings": table})


def _detr_on_vit(pretrained: Pretrained, config: ViTConfig, settings: DetectorSettings) -> Detector:
    """Let DETR read the last block's patches as one map, as ViTDet does (arXiv 2203.16527): without the class token."""
    height, width = settings.image_size
    if height != width or config.mlp_dim % config.width:
        raise ConfigError("transformers' ViTDet has square images, and an MLP of a multiple of the width")
    refuse(pretrained, target="ViTDet", registers=lambda config: config.registers > 0, qk_norm=lambda config: config.qk_norm)
    model = fold_positions(_without_head(pretrained), target="ViTDet", class_token_has_one=True)
    model = resize_images(fold_layer_scale(model, target="ViTDet"), height)
    pieces = [piece for piece in timm_pieces(model.config) if model.tensors.keys() >= set(piece.ours)]
    tensors = to_theirs(model.tensors, pieces)
    unused = ("cls_token", "norm.weight", "norm.bias")
    tensors = {_vitdet_name(name): tensor for name, tensor in tensors.items() if name not in unused}
    if not config.has_class_token:  # ViTDet's table has a row for it, which it does not read
        position = "model.backbone.model.embeddings.position_embeddings"
        tensors[position] = F.pad(tensors[position], (0, 0, 1, 0))
    backbone = load_transformers().VitDetConfig(
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        mlp_ratio=config.mlp_dim // config.width,
        hidden_act="gelu" if config.gelu == "exact" else "gelu_pytorch_tanh",
        image_size=height,
        pretrain_image_size=height,
        patch_size=config.patch_size,
        qkv_bias=config.qkv_bias,
        out_indices=[config.depth],
    )
    return _fill(_detr(backbone, settings), tensors, is_plain=True)


def _vitdet_name(name: str) -> str:
    """Return ViTDet's name of a tensor of timm's: `blocks.3.attn.qkv.weight` is `encoder.layer.3.attention.qkv.weight`."""
    parts = {
        "blocks.": "encoder.layer.",
        ".attn.": ".attention.",
        "patch_embed.proj": "embeddings.projection",
        "pos_embed": "embeddings.position_embeddings",
    }
    for theirs, its in parts.items():
        name = name.replace(theirs, its)
    return f"model.backbone.model.{name}"


def _without_head(pretrained: Pretrained) -> Pretrained:
    """Return a model without what follows its last normalisation."""
    config = pretrained.config
    if isinstance(config, ViTConfig):
        pooling = "gap" if config.pooling == "map" else config.pooling  # neither has a class token
        config = replace(config, pooling=pooling, representation_size=None)
    after_norm = ("head.", "pre_logits.", "map_head.")
    tensors = {name: tensor for name, tensor in pretrained.tensors.items() if not name.startswith(after_norm)}
    return replace(pretrained, config=config, tensors=tensors)


def _detr_on_bit(pretrained: Pretrained, settings: DetectorSettings) -> Detector:
    folder = make_transformers_folder(_without_head(pretrained))
    stages = len(folder.config["depths"])
    described = {key: value for key, value in folder.config.items() if key not in ("model_type", "architectures")}
    backbone = load_transformers().BitConfig(**described, out_indices=_last(stages, settings, first=1))
    names = {f"model.backbone.model.bit.{name}": tensor for name, tensor in folder.tensors.items()}
    return _fill(_detr(backbone, settings), names, is_plain=True)


def _detr_on_timm(pretrained: Pretrained, config: TimmConfig, settings: DetectorSettings) -> Detector:
    """timm's own reader of feature maps takes the place of a small ResNet with as many channels.

    transformers' TimmBackbone passes neither image size nor options on to timm, and gives Swin's maps channels last.
    """
    timm_model = _timm_model(pretrained, config, settings.image_size)
    indices = _last(len(timm_model.feature_info), settings, first=0)
    reader = importlib.import_module("timm.models._features").FeatureGetterNet(timm_model, out_indices=indices)
    importlib.import_module("timm.utils.model").freeze_batch_norm_2d(reader)  # batches are small: as DETR does
    channels = reader.feature_info.channels()
    stages = list(range(1, len(channels) + 1))
    sizes = {"embedding_size": GROUPS, "hidden_sizes": channels, "depths": [1] * len(channels), "layer_type": "basic"}
    model = _detr(load_transformers().ResNetConfig(**sizes, out_indices=stages), settings)
    model.model.backbone.model = reader
    prefix = "model.backbone."
    taken = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(prefix)}
    return Detector(model=model, taken=taken, is_plain=False)


def _timm_model(pretrained: Pretrained, config: TimmConfig, image_size: tuple[int, int]) -> Any:
    model = replace(config, image_size=image_size).build().backbone
    if not hasattr(model, "forward_intermediates"):
        raise ConfigError(f"{pretrained.source}: timm's {config.name} gives no feature maps (it has no forward_intermediates)")
    prefix = "backbone."
    tensors = {name.removeprefix(prefix): value for name, value in pretrained.tensors.items() if name.startswith(prefix)}
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:  # positions, for example
        size = " ".join(map(str, height_and_width(config.image_size)))
        raise ConfigError(
            f"{pretrained.source}: tensors of timm's {config.name} depend on the image size; use --image-size {size}"
        ) from error
    return model


def _last(stages: int, settings: DetectorSettings, *, first: int) -> list[int]:
    """Return the indices of the backbone's stages that a detector reads."""
    count = min(LEVELS, stages) if settings.name == "deformable-detr" else 1
    return list(range(first + stages - count, first + stages))


def _detr(backbone: Any, settings: DetectorSettings) -> Any:
    library = load_transformers()
    shared = {
        "backbone_config": backbone,
        "d_model": settings.width,
        "encoder_layers": settings.layers,
        "decoder_layers": settings.layers,
        "encoder_ffn_dim": 4 * settings.width,
        "decoder_ffn_dim": 4 * settings.width,
        "encoder_attention_heads": HEADS,
        "decoder_attention_heads": HEADS,
        "num_queries": settings.queries,
        "auxiliary_loss": True,
        **_labels(settings.classes),
    }
    if settings.name == "detr":
        return _draw_as_the_authors(library.DetrForObjectDetection(library.DetrConfig(**shared)))
    levels = len(backbone.out_indices) + 1
    config = library.DeformableDetrConfig(**shared, num_feature_levels=levels, with_box_refine=True)
    return _draw_as_the_authors(library.DeformableDetrForObjectDetection(config))


@torch.no_grad()
def _draw_as_the_authors(model: Any) -> Any:
    """Draw what is new in DETR and Deformable DETR as their authors' code does, and return the model.

    transformers draws kernels and queries of deviation 0.02, and has no prior for rare objects: it expects trained weights.
    Sources: facebookresearch/detr (models/detr.py, models/transformer.py), fundamentalvision/Deformable-DETR
    (models/deformable_detr.py).
    """
    kept = ("sampling_offsets", "attention_weights")  # are drawn as they should be
    for name, module in model.model.named_modules():
        if isinstance(module, nn.Linear) and not name.startswith("backbone.") and not name.endswith(kept):
            nn.init.xavier_uniform_(module.weight)
    nn.init.normal_(model.model.query_position_embeddings.weight)
    if model.config.model_type == "detr":
        for module in (model.class_labels_classifier, *model.bbox_predictor.layers, model.model.input_projection):
            module.reset_parameters()
        return model
    for head in model.class_embed:
        head.reset_parameters()
        nn.init.constant_(head.bias, -math.log((1 - PRIOR) / PRIOR))
    for head in model.bbox_embed:
        for layer in head.layers:
            layer.reset_parameters()
        nn.init.zeros_(head.layers[-1].weight)
        nn.init.zeros_(head.layers[-1].bias)
    nn.init.constant_(model.bbox_embed[0].layers[-1].bias[2:], FIRST_SIZE)
    for convolution, _ in model.model.input_proj:
        nn.init.xavier_uniform_(convolution.weight)
        nn.init.zeros_(convolution.bias)
    return model


def _labels(classes: tuple[str, ...]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(classes)), "label2id": {name: number for number, name in enumerate(classes)}}


def _fill(model: Any, tensors: dict[str, Tensor], *, is_plain: bool) -> Detector:
    unknown = model.load_state_dict(tensors, strict=False).unexpected_keys
    if unknown:
        raise ConfigError(f"this version of transformers has no {unknown[0]}; use the version in requirements.lock")
    return Detector(model=model, taken=tensors, is_plain=is_plain)


def load_transformers() -> Any:
    """Return the library.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        library: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise ConfigError(f"a detector needs transformers ({error}); docs/detection.md says how to install it") from error
    library.utils.logging.disable_progress_bar()
    return library
