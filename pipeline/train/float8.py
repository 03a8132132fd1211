"""Compute the matrix products of a model's blocks in float8, with torchao."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn

from pipeline.errors import ConfigError

Float8Recipe = Literal["tensorwise", "rowwise", "rowwise_with_gw_hp"]
RECIPES: tuple[Float8Recipe, ...] = get_args(Float8Recipe)

HOW_TO_INSTALL = "pip install '.[float8]'"
ALIGNMENT = 16  # torch._scaled_mm needs rows and columns in multiples of it
# The first generations with products of float8 (Ada, Hopper), and with those that are scaled by row (Hopper).
LEAST_CAPABILITY: dict[Float8Recipe, tuple[int, int]] = {"tensorwise": (8, 9), "rowwise": (9, 0), "rowwise_with_gw_hp": (9, 0)}


def use_float8(blocks: Sequence[nn.Module], recipe: Float8Recipe, *, layers: Sequence[str] | None, device: torch.device) -> str:
    """Replace linear layers inside the blocks by torchao's, which round their inputs to float8 before each product.

    Inputs, weights and gradients are scaled by their largest absolute value, of a tensor or of each row and column, as it is
    in this step. The parameters are the same objects: their names, values, gradients and optimizer states do not change.

    Args:
        layers: ends of the names of layers inside a block, such as `mlp.up`; None for all whose sizes allow it.
        device: where the training runs.

    Returns:
        What was replaced, in words.

    Raises:
        ConfigError: torchao is not installed, the device computes no float8, or no layer has such a name or size.
    """
    check_device(recipe, device)
    names = layer_names(blocks)
    chosen = _choose(names, layers)
    from_recipe, convert = _torchao()
    # The rows of a micro-batch are the inner dimension of the weights' gradients, and are padded where 16 does not divide them.
    # On a CPU products of the rounded matrices are fp32's: torch 2.11 has no others there that are scaled by row.
    config = dataclasses.replace(from_recipe(recipe), pad_inner_dim=True, emulate=device.type == "cpu")
    count = 0
    for block in blocks:

        def is_chosen(module: nn.Module, name: str) -> bool:
            return type(module) is nn.Linear and name in chosen

        count += sum(name in chosen for name, _ in linear_layers(block))
        convert(block, module_filter_fn=is_chosen, config=config)
    rest = sorted(name for name in names if name not in chosen)
    kept = f"; not {', '.join(rest)}" if rest else ""
    return f"float8 products, scaled {recipe}, in {count} linear layers: {', '.join(sorted(chosen))}{kept}"


def recipes_of(device: torch.device) -> list[Float8Recipe]:
    """Return the recipes that a device computes."""
    if device.type != "cuda":
        return list(RECIPES)
    return [recipe for recipe in RECIPES if torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY[recipe]]


def check_device(recipe: Float8Recipe, device: torch.device) -> None:
    """Check that a device computes products of float8. A CPU rounds to it and multiplies in fp32, to try trainings.

    Raises:
        ConfigError: it does not.
    """
    if device.type != "cuda":
        return
    found, least = torch.cuda.get_device_capability(device), LEAST_CAPABILITY[recipe]
    if found < least:
        raise ConfigError(
            f"trainer.float8={recipe} needs a GPU of compute capability {least[0]}.{least[1]} or more; "
            f"{torch.cuda.get_device_name(device)} has {found[0]}.{found[1]}; leave it out"
        )


def layer_names(blocks: Sequence[nn.Module]) -> dict[str, bool]:
    """Return the names of linear layers inside the blocks, and whether float8 allows for the sizes of all of a name."""
    names: dict[str, bool] = {}
    for block in blocks:
        for name, layer in linear_layers(block):
            names[name] = names.get(name, True) and allows(layer)
    return names


def linear_layers(block: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the linear layers inside a block. A subclass computes something else, or the same in another way."""
    for name, module in block.named_modules():
        if type(module) is nn.Linear:
            yield name, module


def allows(layer: nn.Linear) -> bool:
    """Return whether float8 allows for a layer's sizes."""
    return layer.in_features % ALIGNMENT == 0 and layer.out_features % ALIGNMENT == 0


def _choose(names: dict[str, bool], layers: Sequence[str] | None) -> set[str]:
    if layers is None:
        chosen = {name for name, fits in names.items() if fits}
        if not chosen:
            why = f"the sizes of {', '.join(names)} are no multiples of {ALIGNMENT}" if names else "they have none"
            raise ConfigError(f"trainer.float8 is about linear layers of a model's repeated blocks; {why}; leave it out")
        return chosen
    chosen = set()
    for end in layers:
        found = [name for name in names if name == end or name.endswith(f".{end}")]
        if not found:
            raise ConfigError(
                f"trainer.float8_layers: no linear layer of a block is called {end!r}; there are {', '.join(names)}"
            )
        for name in found:
            if not names[name]:
                raise ConfigError(
                    f"trainer.float8_layers: {name} cannot be of float8: its numbers of inputs and outputs must be "
                    f"multiples of {ALIGNMENT}; leave it out"
                )
        chosen.update(found)
    return chosen


def _torchao() -> tuple[Any, Any]:
    """Return torchao's function that makes a recipe's configuration, and the one that replaces layers."""
    if importlib.util.find_spec("torchao") is None:
        raise ConfigError(f"trainer.float8 needs torchao, which is not installed: {HOW_TO_INSTALL}")
    with _quietly():
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    return Float8LinearConfig.from_recipe_name, convert_to_float8_training


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Import torchao without its kernels, which this does not use, and without warnings that those are missing."""
    name = "TORCHAO_FORCE_SKIP_LOADING_SO_FILES"
    loggers = [logging.getLogger(each) for each in ("torchao", "torch.utils._pytree")]
    before, levels = os.environ.get(name), [logger.level for logger in loggers]
    os.environ[name] = "1"
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
