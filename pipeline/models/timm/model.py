"""Put a dense classifier of our own on a backbone of timm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pipeline.errors import CheckpointError, ConfigError
from pipeline.image_size import ImageSize, height_and_width
from pipeline.models.base import Backbone, ModelConfig, ModelOutputs
from pipeline.models.description import from_plain
from pipeline.models.timm.cost import TimmCost
from pipeline.models.timm.library import (
    CLASSIFIER,
    RESERVED,
    check_name,
    create,
    innermost_blocks,
    installed_version,
    number_layers,
)

LARGEST_OPTION = 2**16  # limit of a number among a file's options: some are numbers of blocks
DROP_OPTIONS = ("drop_rate", "drop_path_rate", "attn_drop_rate", "proj_drop_rate", "pos_drop_rate", "patch_drop_rate")

Options = tuple[tuple[str, Any], ...]  # sorted by name; lists are tuples


HALF = (0.5, 0.5, 0.5)  # pixels become -1 to 1, as in every other family


@dataclass(frozen=True)
class TimmConfig(ModelConfig):
    """Holds everything that fixes the weights of a backbone of timm. Lengths are in pixels.

    Attributes:
        options: passed on to `timm.create_model`.
        timm_version: whose definition of `name` it is.
        mean, std: of the pixels' channels, as parts of 255: what is subtracted, and then divided by.
    """

    family: ClassVar[str] = "timm"

    name: str
    image_size: ImageSize
    options: Options
    timm_version: str
    num_classes: int
    head_bias: float = 0.0
    mean: tuple[float, float, float] = HALF
    std: tuple[float, float, float] = HALF

    @property
    def dropout(self) -> float:  # type: ignore[override]
        """Return the largest rate of anything that drops: all draw from the rank's generator."""
        given = dict(self.options)
        return max(0.0, *(float(given.get(name) or 0.0) for name in DROP_OPTIONS))

    @property
    def least_tensors(self) -> int:
        return 2  # the classifier's

    @property
    def cost(self) -> TimmCost:
        return TimmCost(self)

    def build(self) -> TimmBackbone:
        return TimmBackbone(self)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "options": thaw(self.options)}

    @classmethod
    def from_dict(cls, values: Any) -> TimmConfig:
        """Return the configuration that `to_dict` wrote to a file, as `ModelConfig.from_dict` says.

        Raises:
            CheckpointError: timm is not installed, or of another version: its definition of the model may be another.
        """
        if not isinstance(values, dict) or "options" not in values:
            raise ValueError("the model's description has no options")
        config = from_plain(TimmConfig, {**values, "options": freeze(values["options"])})
        _check_version(config.timm_version)
        return config


def _check_version(written_by: str) -> None:
    try:
        here = installed_version()
    except ConfigError as error:
        raise CheckpointError(f"the weights are of a model of timm {written_by[:40]}: {error}") from error
    if written_by != here:
        raise CheckpointError(
            f"the weights are of a model of timm {written_by[:40]}, and timm {here} is installed, which may define the model "
            f"otherwise; pip install timm=={written_by[:40]}"
        )


def freeze(options: Any) -> Options:
    """Return options as a value that cannot change.

    Raises:
        ValueError: they are no mapping of names to numbers, texts, or lists of them; or one is not for a configuration to set.
    """
    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        raise ValueError(f"the model's options are {str(options)[:40]}")
    if forbidden := sorted(RESERVED & options.keys()):
        raise ValueError(f"the model's options hold {forbidden[0]}")
    return tuple((name, _frozen(value)) for name, value in sorted(options.items()))


def _frozen(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    if value is None or isinstance(value, str | bool):
        return value
    if type(value) in (int, float) and abs(value) <= LARGEST_OPTION:  # not a NaN either
        return value
    raise ValueError(f"the model's options hold {str(value)[:40]}")


def thaw(options: Options) -> dict[str, Any]:
    """Return options as `timm.create_model` and JSON take them."""
    return {name: _thawed(value) for name, value in options}


def _thawed(value: Any) -> Any:
    return [_thawed(item) for item in value] if isinstance(value, tuple) else value


_BATCH_NORM = nn.modules.batchnorm._BatchNorm
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class TimmBackbone(Backbone):
    """Maps images to class logits. The representation is what timm's own classifier would read.

    Raises:
        ConfigError: timm cannot make the model, or it has state that ranks could not share.
    """

    def __init__(self, config: TimmConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = self._make()
        _refuse_buffers(config.name, self.backbone)
        self.head = nn.Linear(representation_size(self.backbone), config.num_classes)

    def _make(self) -> nn.Module:
        config = self.config
        check_name(config.name)
        with torch.random.fork_rng(devices=[]):  # timm draws weights from the global generator
            return _create(config)

    def scale(self, images: Tensor) -> Tensor:
        """Return uint8 images as floats, normalised by the configuration's mean and deviation; floats as they are."""
        if images.dtype != torch.uint8 or (self.config.mean, self.config.std) == (HALF, HALF):
            return super().scale(images)
        mean, std = (
            torch.stack([torch.full((1, 1), value, device=images.device) for value in values])
            for values in (self.config.mean, self.config.std)
        )
        return (images.float() / 255 - mean) / std

    def forward_representation(self, images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B R"]:
        """Return what timm's classifier reads. uint8 images are normalised here, on the device.

        Floating-point images are taken as already normalised.
        """
        images = self.scale(images)
        backbone: Any = self.backbone
        return backbone.forward_head(backbone.forward_features(images.to(self.head.weight.dtype)), pre_logits=True)

    def forward_outputs(self, images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]) -> ModelOutputs:
        """Return the representation, and the patches where timm says which of its features they are.

        timm does not say what lies between its pooling and its classifier, so there is nothing pooled.
        """
        backbone: Any = self.backbone
        features = backbone.forward_features(self.scale(images).to(self.head.weight.dtype))
        representation = backbone.forward_head(features, pre_logits=True)
        return ModelOutputs(representation, pooled=None, patches=patches_of(backbone, features))

    def forward(self, images: UInt8[Tensor, "B 3 H W"] | Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C"]:
        return self.head(self.forward_representation(images))

    def layer_numbers(self) -> dict[str, int]:
        """Return `Backbone.layer_numbers`, as timm numbers layers where it does."""
        numbers = number_layers(self.backbone)
        if not numbers:
            return super().layer_numbers()
        last = numbers.pop(CLASSIFIER)
        heads = {f"head.{name}": last for name, _ in self.head.named_parameters()}
        return {**{f"backbone.{name}": number for name, number in numbers.items()}, **heads}

    def numbered_blocks(self) -> Sequence[nn.Module]:
        return self.listed_blocks()

    def repeated_blocks(self) -> Sequence[nn.Module]:
        """Return what the innermost lists of blocks hold; nothing where BatchNorm is in them.

        Computing such a block again would update its running statistics twice.
        """
        blocks = innermost_blocks(self.backbone)
        has_batch_norm = any(isinstance(module, _BATCH_NORM) for block in blocks for module in block.modules())
        has_own_parameters = any(list(block.parameters(recurse=False)) for block in blocks)
        return () if has_batch_norm or has_own_parameters else blocks

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Draw timm's own initial weights from `generator` alone. The head's kernel is zeros, its bias `head_bias`."""
        seed = int(torch.randint(2**62, (), generator=generator, dtype=torch.int64))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            drawn = _create(self.config)
        self.backbone.load_state_dict(drawn.state_dict())
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, self.config.head_bias)


def _create(config: TimmConfig) -> nn.Module:
    return create(config.name, size=height_and_width(config.image_size), options=thaw(config.options))


def representation_size(backbone: Any) -> int:
    """Return the width of what timm's classifier reads."""
    return getattr(backbone, "head_hidden_size", None) or backbone.num_features


def patches_of(backbone: Any, features: Any) -> Tensor | None:
    """Return timm's features as patches, (B, P, D): a map, or tokens whose first ones it counts; None for anything else."""
    if not isinstance(features, Tensor):
        return None
    if features.ndim == 4:
        is_channels_last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
        return features.flatten(1, 2) if is_channels_last else features.flatten(2).transpose(1, 2)
    num_others = getattr(backbone, "num_prefix_tokens", None)
    return features[:, num_others:] if features.ndim == 3 and num_others is not None else None


def _refuse_buffers(name: str, backbone: nn.Module) -> None:
    """Refuse a model with buffers that are no running statistics of BatchNorm.

    Nothing says what to make of several ranks' values.

    Raises:
        ConfigError: the model has other state.
    """
    known = {
        f"{path}.{key}" for path, module in backbone.named_modules() if isinstance(module, _BATCH_NORM) for key in _STATISTICS
    }
    parameters = {parameter for parameter, _ in backbone.named_parameters()}
    buffers = sorted(backbone.state_dict().keys() - parameters - known)
    if buffers:
        raise ConfigError(
            f"model.name={name} keeps {len(buffers)} tensors that are neither parameters nor running statistics of BatchNorm "
            f"({buffers[0]}, ...), which ranks could not share; use another model"
        )
