"""Say what an architecture of timm is that no tensor's shape shows: its heads, its activation, the epsilon of its norms."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from pipeline.errors import ConfigError, ExchangeError
from pipeline.models.timm.library import new_model
from pipeline.models.vit.encoder_config import Gelu
from pipeline.models.vit.layers import LAYER_NORM_EPS

HEADS_OF_WIDTH = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}  # of the sizes that everybody means by these widths
# Names of architectures that are what these widths say, with the exact GELU and the epsilon 1e-6
# (timm/models/vision_transformer.py, vision_transformer_hybrid.py, deit.py).
_PLAIN = re.compile(
    r"(?:vit|deit|deit3)_(?:tiny|small|base|large|huge)_(?:patch\d+|r50_s\d+|r26_s\d+|r_s16_p8)(?:_reg4)?(?:_gap)?(?:_\d+|_dinov2)"
    r"|flexivit_(?:small|base|large)"
)
_OTHER_HEADS = {"vit_base_patch16_gap_224": 16}  # has 16 heads of 48 channels


@dataclass(frozen=True)
class Form:
    """Holds what an architecture is.

    Attributes:
        gelu: None: the activation is another one.
        eps: of the layer norms.
    """

    num_heads: int | None
    gelu: Gelu | None = "exact"
    eps: float = LAYER_NORM_EPS


PLAIN = Form(None)


def looked_up(architecture: str) -> bool:
    """Return whether more than an architecture's name is needed to say what it is."""
    return _PLAIN.fullmatch(architecture) is None


def options_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a folder's model without those that are said otherwise here; timm writes them too."""
    return {name: value for name, value in arguments.items() if name not in ("img_size", "in_chans", "num_classes")}


def form_of(architecture: str, arguments: Mapping[str, Any], *, source: str) -> Form | None:
    """Return the form of an architecture; None where it is no Vision Transformer of ours.

    Names of which more than their sizes must be known are looked up in timm.

    Raises:
        ExchangeError: it must be looked up, and timm is not installed, or has no such architecture.
    """
    name = architecture.rpartition("/")[2].partition(".")[0]  # without the hub's owner and the weights' tag
    if not looked_up(name):
        return Form(_OTHER_HEADS.get(name))
    try:
        model = new_model(name, size=(224, 224), options=options_of(arguments), num_classes=1)
    except ConfigError as error:
        raise ExchangeError(f"{source} is timm's {name}, of which timm itself has to say more: {error}") from error
    return _look_at(model)


def _look_at(model: Any) -> Form | None:
    """Return the form of a model of timm's."""
    if type(model).__module__.rpartition(".")[2] != "vision_transformer" or type(model).__name__ != "VisionTransformer":
        return None
    block, norm = model.blocks[0], next(module for module in model.modules() if isinstance(module, nn.LayerNorm))
    return Form(block.attn.num_heads, _gelu_of(block.mlp.act), norm.eps)


def _gelu_of(act: nn.Module) -> Gelu | None:
    if isinstance(act, nn.GELU):
        return "exact" if act.approximate == "none" else "tanh"
    return "tanh" if type(act).__name__ == "GELUTanh" else None
