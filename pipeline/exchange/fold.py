"""Express a model by fewer choices where the result is the same: what a format has no name for is folded, or refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from pipeline.errors import ExchangeError
from pipeline.exchange.pieces import Tensors
from pipeline.exchange.pretrained import Pretrained
from pipeline.models.vit.encoder_config import EncoderConfig
from pipeline.models.vit.position import combine_axes, sincos_2d


def fold_positions(
    model: Pretrained, *, target: str, class_token_has_one: bool | None = None, table_is_needed: bool = True
) -> Pretrained:
    """Return a model whose positions are learned 1-D ones, added at the stem.

    2-D and sine-cosine positions are tables, which learned 1-D ones can hold. The outputs are the same, bit for bit.

    Args:
        class_token_has_one: whether the table has a row for the class token; None: as it is. A row of zeros is added, or the
            row is added to the class token.
        table_is_needed: a model without positions has a table of zeros there.

    Raises:
        ExchangeError: the positions are added elsewhere, or are no table.
    """
    config = encoder_of(model, target=target)
    tensors, notes = dict(model.tensors), list[str]()
    if config.position == "relative":
        raise ExchangeError(f"{model.source}: {target} has no model with model.position=relative; {_ALTERNATIVE}")
    if config.position_at != "stem":
        raise ExchangeError(
            f"{model.source}: {target} has no model with model.position_at={config.position_at}; {_ALTERNATIVE}"
        )
    if config.position in ("learned_2d", "sincos_2d"):
        notes.append(f"model.position={config.position} is written as a table of positions, which gives the same outputs")
        tensors |= _as_table(tensors, config)
        config = replace(config, position="learned_1d", position_class_token="position_class" in tensors)
        for name in ("position_columns", "position_rows", "position_class"):
            tensors.pop(name, None)
    if config.position == "none" and table_is_needed:
        tensors["position"] = torch.zeros(1, config.num_patches, config.width)
        config = replace(config, position="learned_1d", position_class_token=False)
        notes.append("model.position=none is written as positions of zeros")
    if class_token_has_one is not None and config.has_class_token and config.position == "learned_1d":
        config = _move_class_position(tensors, config, into_table=class_token_has_one)
    return replace(model, config=config, tensors=tensors).noting(*notes)


_ALTERNATIVE = "`--to safetensors` and `--to onnx` keep every model"


def _as_table(tensors: Tensors, config: EncoderConfig) -> Tensors:
    if config.position == "sincos_2d":
        return {"position": sincos_2d(config.grid, width=config.width, device=torch.device("cpu"))[None]}
    table = combine_axes(tensors["position_columns"], tensors["position_rows"])
    if "position_class" in tensors:
        table = torch.cat([tensors["position_class"], table], dim=1)
    return {"position": table}


def _move_class_position(tensors: Tensors, config: EncoderConfig, *, into_table: bool) -> EncoderConfig:
    """Give the class token a position of zeros, or add its position to it, in place."""
    if into_table and not config.position_class_token:
        tensors["position"] = torch.cat([torch.zeros(1, 1, config.width), tensors["position"]], dim=1)
    elif not into_table and config.position_class_token:
        own, patches = tensors["position"].split([1, config.num_patches], dim=1)
        tensors["class_token"] = tensors["class_token"] + own
        tensors["position"] = patches
    return replace(config, position_class_token=into_table)


def fold_layer_scale(model: Pretrained, *, target: str) -> Pretrained:
    """Return a model without LayerScale: its factors are multiplied into the layers before them, equal to rounding."""
    config = encoder_of(model, target=target)
    if config.layer_scale is None:
        return model
    tensors = dict(model.tensors)
    for number in range(config.depth):
        for scale, layer in (("scale_attention", "attention.out"), ("scale_mlp", "mlp.down")):
            gamma = tensors.pop(f"blocks.{number}.{scale}.gamma")
            weight, bias = f"blocks.{number}.{layer}.weight", f"blocks.{number}.{layer}.bias"
            tensors[weight] = tensors[weight] * gamma[:, None]
            tensors[bias] = tensors[bias] * gamma
    note = f"LayerScale is multiplied into the layers before it, because {target} has none: outputs are equal to rounding"
    return replace(model, config=replace(config, layer_scale=None), tensors=tensors).noting(note)


def fill_qkv_bias(model: Pretrained, *, target: str) -> Pretrained:
    """Return a model whose queries, keys and values have biases; those that are added are zeros."""
    config = encoder_of(model, target=target)
    if config.qkv_bias:
        return model
    zeros = {f"blocks.{number}.attention.qkv.bias": torch.zeros(3 * config.width) for number in range(config.depth)}
    return replace(model, config=replace(config, qkv_bias=True), tensors=model.tensors | zeros).noting(
        f"biases of zeros are added to queries, keys and values, because {target} always has them"
    )


def drop_head(model: Pretrained) -> Pretrained:
    """Return a model without a classifier of its own: what follows the representation is left out on request."""
    tensors = {name: tensor for name, tensor in model.tensors.items() if not name.startswith("head.")}
    return replace(model, tensors=tensors).noting(f"the classifier ({model.config.num_classes} classes) is left out")


def refuse(model: Pretrained, *, target: str, **choices: Callable[[EncoderConfig], bool]) -> None:
    """Refuse choices of an encoder that a format has no place for.

    Args:
        choices: by the name of a setting, whether a model has made the choice.

    Raises:
        ExchangeError: a choice was made.
    """
    config = encoder_of(model, target=target)
    for name, is_made in choices.items():
        if is_made(config):
            value = getattr(config, name)
            raise ExchangeError(f"{model.source}: {target} has no model with model.{name}={value}; {_ALTERNATIVE}")


def encoder_of(model: Pretrained, *, target: str) -> EncoderConfig:
    """Return the configuration of a model of patches.

    Raises:
        ExchangeError: it is none.
    """
    if not isinstance(model.config, EncoderConfig):
        raise ExchangeError(f"{model.source}: {target} has no model of the family {model.config.family}; {_ALTERNATIVE}")
    return model.config
