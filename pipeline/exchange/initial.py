"""Begin a model with weights of another: what fits is taken, positions and patches are resized, the rest begins afresh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from pipeline.errors import ExchangeError
from pipeline.exchange.fold import fill_qkv_bias, fold_layer_scale, fold_positions
from pipeline.exchange.patches import resize_patches
from pipeline.exchange.pieces import Tensors
from pipeline.exchange.pretrained import Pretrained
from pipeline.image_size import describe_size, image_size
from pipeline.models.base import Backbone, ModelConfig
from pipeline.models.hybrid.model import HybridConfig
from pipeline.models.timm.model import TimmConfig
from pipeline.models.vit.encoder import EncoderBackbone
from pipeline.models.vit.encoder_config import LEARNED, EncoderConfig
from pipeline.models.vit.model import ViTConfig
from pipeline.models.vit.position import PositionResize

Head = Literal["auto", "new"]
HEAD = ("head.", "pre_logits.")
# Settings of an encoder that must be those of the weights, each with the setting that says it.
_SIZES = {"width": "model.width", "depth": "model.depth", "mlp_dim": "model.mlp_dim", "num_heads": "model.num_heads"}


@dataclass(frozen=True)
class Beginning:
    """Holds the tensors that a model begins with, and where they are from.

    Attributes:
        tensors: all of the model's, by name.
        taken: names of tensors that are the weights' own.
        resized: what was changed in form, in words.
        fresh: names of tensors that are initialised as without weights.
        left_out: names of the weights' tensors that the model has not.
    """

    tensors: Tensors
    taken: Sequence[str]
    resized: Sequence[str]
    fresh: Sequence[str]
    left_out: Sequence[str]
    notes: Sequence[str]
    source: str

    def describe(self) -> list[str]:
        """Return what was taken, resized, begun afresh and left out, a line each."""
        lines = [f"initial weights from {self.source}: {len(self.taken)} of {len(self.tensors)} tensors are taken as they are"]
        lines += [f"initial weights: {text}" for text in (*self.resized, *self.notes)]
        if self.fresh:
            lines.append(f"initial weights: random, as without any: {_grouped(self.fresh)}")
        if self.left_out:
            lines.append(f"initial weights: left out: {_grouped(self.left_out)}")
        return lines


def begin_with(model: Pretrained, fresh: Backbone, config: ModelConfig, *, head: Head, positions: PositionResize) -> Beginning:
    """Return what a model begins with.

    Args:
        model: the weights.
        fresh: the model, initialised as without weights.
        config: of `fresh`.
        head: auto: the classifier and the pre-logits are taken where they have the same sizes; new: never.
        positions: how learned positions are resized to another grid of patches.

    Raises:
        ExchangeError: the weights are of another model: of another family, width, depth or form.
    """
    _check_family(model, config)
    notes = _differences(model, config)
    resized: list[str] = []
    if isinstance(config, EncoderConfig) and isinstance(fresh, EncoderBackbone):
        model, resized = _fit_encoder(model, fresh, config, positions)
    own = fresh.state_dict()
    source = dict(model.tensors)
    if head == "new" or not _same_head(source, own):
        source = {name: tensor for name, tensor in source.items() if not name.startswith(HEAD)}
    missing = [name for name in own if name not in source and not name.startswith(HEAD) and _is_essential(name)]
    if missing:
        raise ExchangeError(f"init_from={model.source} lacks {missing[0]} and {len(missing) - 1} more tensors of this model")
    for name in own.keys() & source.keys():
        if own[name].shape != source[name].shape:
            raise ExchangeError(
                f"init_from={model.source}: {name} is {list(source[name].shape)} there, {list(own[name].shape)} in this model"
            )
    taken = [name for name in own if name in source]
    tensors = {**own, **{name: source[name] for name in taken}}
    return Beginning(
        tensors=tensors,
        taken=taken,
        resized=resized,
        fresh=[name for name in own if name not in source],
        left_out=sorted(model.tensors.keys() - set(taken)),
        notes=notes,
        source=model.source,
    )


def _check_family(model: Pretrained, config: ModelConfig) -> None:
    theirs = model.config
    if theirs.family != config.family:
        raise ExchangeError(
            f"init_from={model.source} is of the family {theirs.family}, this model is of {config.family}; set model.family"
        )
    if isinstance(theirs, TimmConfig) and isinstance(config, TimmConfig) and theirs.name != config.name:
        raise ExchangeError(f"init_from={model.source} is timm's {theirs.name}, this model is {config.name}; set model.name")
    if not isinstance(theirs, EncoderConfig) or not isinstance(config, EncoderConfig):
        return
    for name, setting in _SIZES.items():
        before, now = getattr(theirs, name), getattr(config, name)
        if before != now:
            raise ExchangeError(
                f"init_from={model.source} has a {name} of {before}, this model one of {now}: set {setting}={before}, or the "
                "model.name of that size"
            )


def _differences(model: Pretrained, config: ModelConfig) -> list[str]:
    """Return choices that differ, which no shape shows, in words."""
    theirs = model.config
    notes = list(model.notes)
    if isinstance(theirs, EncoderConfig) and isinstance(config, EncoderConfig):
        for name in ("gelu", "pooling"):
            before, now = getattr(theirs, name), getattr(config, name)
            if before != now:
                notes.append(f"the weights were trained with model.{name}={before}, this model has {now}")
    return notes


def _fit_encoder(
    model: Pretrained, fresh: EncoderBackbone, config: EncoderConfig, how: PositionResize
) -> tuple[Pretrained, list[str]]:
    """Return the weights in the form of a model's choices: its positions, its patches, its parts."""
    resized: list[str] = []
    before = _encoder(model)
    if before.layer_scale is not None and config.layer_scale is None:
        model = fold_layer_scale(model, target="this model")
        resized.append("LayerScale is multiplied into the layers before it")
    if config.qkv_bias and not before.qkv_bias:
        model = fill_qkv_bias(model, target="this model")
    if not config.qkv_bias and before.qkv_bias:
        raise ExchangeError(f"init_from={model.source} has biases of queries, keys and values: set model.qkv_bias=true")
    model, texts = _fit_patches(model, config)
    resized += texts
    model, texts = _fit_positions(model, fresh, config, how)
    return model, resized + texts


def _fit_patches(model: Pretrained, config: EncoderConfig) -> tuple[Pretrained, list[str]]:
    """Resize the kernel that embeds a patch, where patches have another size."""
    before = _encoder(model)
    if isinstance(before, HybridConfig) and isinstance(config, HybridConfig):
        if (before.blocks, before.root_width, before.patch_size) != (config.blocks, config.root_width, config.patch_size):
            raise ExchangeError(f"init_from={model.source} has another ResNet below its encoder: set model.name")
        return model, []
    assert isinstance(before, ViTConfig)
    assert isinstance(config, ViTConfig)
    if before.patch_size == config.patch_size:
        return model, []
    kernel = resize_patches(model.tensors["patch_embed.weight"], size=config.patch_size)
    rows, columns = before.grid
    size = image_size(rows * config.patch_size, columns * config.patch_size)
    moved = replace(before, patch_size=config.patch_size, image_size=size)
    text = f"patches of {before.patch_size} px are resized to {config.patch_size} px"
    return replace(model, config=moved, tensors=model.tensors | {"patch_embed.weight": kernel}), [text]


def _fit_positions(
    model: Pretrained, fresh: EncoderBackbone, config: EncoderConfig, how: PositionResize
) -> tuple[Pretrained, list[str]]:
    """Resize positions to another grid, and fit who has one."""
    texts: list[str] = []
    before = _encoder(model)
    if not before.has_class_token or not config.has_class_token:
        model = _without_class_position(model)
        before = _encoder(model)
    if "relative" in (config.position, before.position):
        if config.position != before.position:
            raise _other_positions(model)
        return replace(model, tensors=fresh.resize_positions(model.tensors, before=before, how=how)), texts
    if config.position not in LEARNED or before.position == "none":  # nothing to take: the model computes its own
        names = [name for name in model.tensors if name.startswith("position")]
        return replace(model, tensors={name: value for name, value in model.tensors.items() if name not in names}), texts
    if config.position == "learned_1d" and config.position_at == "stem" and before.position_at == "stem":
        has_one = config.class_token_has_position if before.has_class_token else None
        model = fold_positions(model, target="this model", class_token_has_one=has_one)
        before = _encoder(model)
    if (before.position, before.position_at) != (config.position, config.position_at):
        raise _other_positions(model)
    if before.grid != config.grid:
        grids, sizes = ([f"{rows} x {columns}" for rows, columns in (before.grid, config.grid)], (before, config))
        old, new = (describe_size(some.image_size) for some in sizes)
        texts.append(f"positions of {grids[0]} patches ({old}) are resized to {grids[1]} ({new}), {how}")
        same_kind = replace(before, position_class_token=config.position_class_token)
        model = replace(model, tensors=fresh.resize_positions(model.tensors, before=same_kind, how=how))
    return model, texts


def _other_positions(model: Pretrained) -> ExchangeError:
    before = _encoder(model)
    return ExchangeError(
        f"init_from={model.source} has model.position={before.position} at {before.position_at}, and this model has positions "
        "of another kind: set model.position and model.position_at"
    )


def _without_class_position(model: Pretrained) -> Pretrained:
    """Return weights whose class token has no position: it is added to the token, which may be left out."""
    before = _encoder(model)
    if not before.class_token_has_position or before.position != "learned_1d":
        return model
    own, patches = model.tensors["position"].split([1, before.num_patches], dim=1)
    tensors = model.tensors | {"position": patches, "class_token": model.tensors["class_token"] + own}
    return replace(model, config=replace(before, position_class_token=False), tensors=tensors)


def _encoder(model: Pretrained) -> EncoderConfig:
    assert isinstance(model.config, EncoderConfig)
    return model.config


def _same_head(theirs: Tensors, ours: dict[str, Tensor]) -> bool:
    """Return whether classifier and pre-logits have the same sizes, or none: one alone would be of no use."""
    shapes = [{name: tensor.shape for name, tensor in some.items() if name.startswith(HEAD)} for some in (theirs, ours)]
    return shapes[0] == shapes[1]


def _is_essential(name: str) -> bool:
    """Return whether a model makes no sense with a random tensor of this name next to trained ones."""
    return not name.startswith(("class_token", "registers", "map_head.", "position")) and "scale_" not in name


def _grouped(names: Sequence[str]) -> str:
    """Return the modules of tensors, each once."""
    modules = dict.fromkeys(name.rpartition(".")[0] or name for name in names)
    shown = list(modules)[:6]
    return ", ".join(shown) + (f" and {len(modules) - 6} more" if len(modules) > 6 else "")
