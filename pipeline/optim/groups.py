"""Parameter groups: which parameters decay."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

Decayed = Literal["kernels", "all"]


def parameter_groups(model: nn.Module, *, weight_decay: float, decayed: Decayed) -> list[dict[str, Any]]:
    """Split parameters by whether they decay.

    `kernels`: the matrices of dense layers and the patch embedding decay; biases, LayerNorms, position embeddings
    and the class token do not. The paper does not say; this is the common reading of its code. `all` decays
    everything.
    """
    kernels = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with_decay = [p for p in parameters if decayed == "all" or id(p) in kernels]
    without = [p for p in parameters if not (decayed == "all" or id(p) in kernels)]
    groups = [{"params": with_decay, "weight_decay": weight_decay}, {"params": without, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
