"""Split parameters into groups: by whether they decay, and by the part of the learning rate at which they are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from pipeline.errors import ConfigError

Decayed = Literal["kernels", "all"]


@dataclass(frozen=True)
class Kind:
    """Describes what the parameters of a group have in common.

    Attributes:
        decays: whether weight decay applies.
        layer_scale: of its learning rate, by its layer; 1 without layer-wise decay.
        is_hidden_matrix: whether it is the matrix of a dense layer inside a block; False unless asked for.
    """

    decays: bool
    layer_scale: float = 1.0
    is_hidden_matrix: bool = False


def parameter_groups(
    model: nn.Module,
    objective: nn.Module | None = None,
    *,
    weight_decay: float,
    decayed: Decayed,
    layer_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Split parameters by whether they decay and, with `layer_decay`, by the scale of their learning rate (`lr_scale`).

    See `parameter_kinds`.
    """
    kinds = parameter_kinds(model, objective, decayed=decayed, layer_decay=layer_decay)
    return [
        {"params": parameters, "weight_decay": weight_decay if kind.decays else 0.0, "lr_scale": kind.layer_scale}
        for kind, parameters in kinds.items()
    ]


def parameter_kinds(
    model: nn.Module,
    objective: nn.Module | None = None,
    *,
    decayed: Decayed,
    layer_decay: float | None = None,
    apart: Literal["hidden matrices"] | None = None,
) -> dict[Kind, list[nn.Parameter]]:
    """Return the parameters that are trained, by their kind: those that decay first, then by layer.

    Args:
        objective: what the model is trained for, where it has parameters of its own; they are of the last layer.
        decayed: `kernels`: the matrices of dense layers and the patch embedding decay; biases, LayerNorms, position embeddings
            and the class token do not. The paper does not say; this is the common reading of its code. `all` decays
            everything.
        layer_decay: layer i of 0 to L+1 (`Backbone.layer_numbers`) has the scale layer_decay^(L+1-i).
        apart: keep the matrices of dense layers inside blocks apart from everything else.
    """
    parts = [model] if objective is None else [model, objective]
    modules = [module for part in parts for module in part.modules()]
    kernels = {id(module.weight) for module in modules if isinstance(module, nn.Linear | nn.Conv2d)}
    dense = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    numbers = layer_numbers_of(model) if layer_decay is not None or apart is not None else {}
    last = max(numbers.values(), default=0)
    kinds: dict[Kind, list[nn.Parameter]] = {}
    own = {id(parameter) for parameter in model.parameters()}
    for name, parameter in [named for part in parts for named in part.named_parameters()]:
        if not parameter.requires_grad:
            continue
        number = numbers.get(name, last) if id(parameter) in own else last
        kind = Kind(
            decays=decayed == "all" or id(parameter) in kernels,
            layer_scale=1.0 if layer_decay is None else layer_decay ** (last - number),
            is_hidden_matrix=apart is not None and id(parameter) in dense and 0 < number < last,
        )
        kinds.setdefault(kind, []).append(parameter)
    order = sorted(kinds, key=lambda kind: (not kind.is_hidden_matrix, not kind.decays, kind.layer_scale))
    return {kind: kinds[kind] for kind in order}


def layer_numbers_of(model: nn.Module) -> dict[str, int]:
    """Return the layer of each parameter by name, as the model says (`Backbone.layer_numbers`).

    Raises:
        ConfigError: it has none.
    """
    number_layers = getattr(model, "layer_numbers", None)
    numbers = {} if number_layers is None else number_layers()
    if max(numbers.values(), default=0) < 2:
        raise ConfigError(
            "this model has no blocks whose layers could be numbered, as optimizer.layer_decay and optimizer.name=muon ask; "
            "leave optimizer.layer_decay out, and choose another optimizer.name"
        )
    return numbers
