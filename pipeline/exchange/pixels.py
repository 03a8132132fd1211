"""Fold how a model's pixels are scaled, and how many channels they have, into its first convolution, or keep it with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pipeline.errors import ExchangeError
from pipeline.exchange.pieces import Tensors
from pipeline.exchange.pretrained import Pretrained
from pipeline.exchange.state_dicts import StateDict
from pipeline.models.base import ModelConfig
from pipeline.models.timm.model import HALF, TimmConfig
from pipeline.models.vit.model import ViTConfig

Triple = tuple[float, float, float]
_KERNEL = "patch_embed.proj.weight"


def pixels_of(config: ModelConfig) -> tuple[Triple, Triple]:
    """Return the mean and the deviation by which a model normalises pixels in [0, 1]."""
    return (config.mean, config.std) if isinstance(config, TimmConfig) else (HALF, HALF)


def describe_pixels(config: ModelConfig) -> str:
    """Return how a model normalises pixels, in words."""
    mean, std = pixels_of(config)
    if (mean, std) == (HALF, HALF):
        return "scaled to [-1, 1]: mean 0.5 and standard deviation 0.5 of values in [0, 1]"
    return f"normalised by the mean {list(mean)} and the standard deviation {list(std)} of values in [0, 1]"


def three(values: Any, *, source: str) -> Triple:
    """Return a value for each channel, of one for all or one for each.

    Raises:
        ExchangeError: there are neither one nor three.
    """
    found = [float(values)] if isinstance(values, int | float) else [float(value) for value in values]
    if len(found) not in (1, 3):
        raise ExchangeError(f"{source} scales {len(found)} channels, ours has 3")
    red, green, blue = found * 3 if len(found) == 1 else found
    return red, green, blue


def read_as_rgb(tensors: Tensors, *, source: str) -> StateDict:
    """Return a Vision Transformer's tensors with a kernel for three channels, where it reads one.

    A third of the kernel reads each channel: of grey images, whose channels are equal, the outputs are the same to rounding.

    Raises:
        ExchangeError: it reads another number of channels.
    """
    kernel = tensors.get(_KERNEL)
    is_hybrid = any(name.startswith("patch_embed.backbone") for name in tensors)  # its kernel reads a ResNet's channels
    if kernel is None or kernel.ndim != 4 or kernel.shape[1] == 3 or is_hybrid:
        return StateDict(tensors)
    if kernel.shape[1] != 1:
        raise ExchangeError(f"{source} reads images of {kernel.shape[1]} channels, ours has 3")
    note = "it reads grey images: a third of its kernel reads each of three channels, which is the same for grey ones"
    return StateDict(tensors | {_KERNEL: kernel.float().expand(-1, 3, -1, -1) / 3}, (note,))


def normalise(model: Pretrained, mean: Sequence[float], std: Sequence[float]) -> Pretrained:
    """Fold another normalisation of pixels than ours, to [-1, 1], into the patch embedding; or keep it, for a model of timm's.

    A convolution without padding reads (p / 255 - mean) / std, p / 255 = (x + 1) / 2 of our x. Outputs are equal to rounding.
    One that pads, or has no bias, cannot be folded: a model of the family timm then normalises its pixels itself.

    Raises:
        ExchangeError: it cannot be folded into a model of another family.
    """
    if (tuple(mean), tuple(std)) == (HALF, HALF):
        return model
    names = _first_convolution(model)
    if names is None and isinstance(model.config, TimmConfig):
        return replace(model, config=replace(model.config, mean=(mean[0], mean[1], mean[2]), std=(std[0], std[1], std[2])))
    if names is None:
        raise ExchangeError(
            f"{model.source} normalises pixels by the mean {list(mean)} and deviation {list(std)}. Ours are scaled to [-1, 1], "
            "and the difference cannot be folded into a model whose first convolution pads its images or has no bias"
        )
    scale = torch.tensor([0.5 / deviation for deviation in std])
    shift = torch.tensor([(0.5 - centre) / deviation for centre, deviation in zip(mean, std, strict=True)])
    kernel, bias = (model.tensors[name].double() for name in names)
    folded = {
        names[0]: (kernel * scale[:, None, None]).float(),
        names[1]: (bias + (kernel * shift[:, None, None]).sum(dim=(1, 2, 3))).float(),
    }
    return replace(model, tensors=model.tensors | folded).noting(
        f"the normalisation of pixels by the mean {list(mean)} and deviation {list(std)} is folded into the patch embedding"
    )


def _first_convolution(model: Pretrained) -> tuple[str, str] | None:
    """Return the names of the kernel and bias that embed patches; None where there is no such convolution, or it pads."""
    if isinstance(model.config, ViTConfig):
        return "patch_embed.weight", "patch_embed.bias"
    if not isinstance(model.config, TimmConfig):
        return None
    module = f"backbone.{_KERNEL.removesuffix('.weight')}"
    if {f"{module}.weight", f"{module}.bias"} - model.tensors.keys():
        return None
    with torch.device("meta"):
        convolution = model.config.build().get_submodule(module)
    if not isinstance(convolution, nn.Conv2d) or any(convolution.padding) or convolution.stride != convolution.kernel_size:
        return None
    return f"{module}.weight", f"{module}.bias"
