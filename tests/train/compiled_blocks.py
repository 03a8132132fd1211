"""Run by test_blocks.py in a process without checks of shapes, which torch.compile would have to follow.

    python -m tests.train.compiled_blocks

The program prints a line of JSON for each rule of stochastic depth, with the pieces of code that ten blocks are compiled to.
Then it prints a line for each way to compile a model: the largest difference of logits and of gradients from the plain model's,
as a part of the largest value of the tensor, or of 1 % of the largest of all. The bias of the keys' norm has no gradient but
rounding, for the softmax does not see it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Literal

import torch
import torch._dynamo.utils
from torch import Tensor

from pipeline.models.base import ModelConfig
from pipeline.models.vit.model import VisionTransformer, ViTConfig
from pipeline.train.blocks import checkpoint_blocks, compile_blocks, every_nth

Compiled = Literal["blocks", "model"]

# Compiled code draws other masks, so this is without any.
CONFIG = ViTConfig(
    image_size=16, patch_size=8, width=24, depth=2, mlp_dim=32, num_heads=3, num_classes=5, representation_size=24, dropout=0.0,
    layer_scale=0.1, position="relative", registers=2, qk_norm=True,
)  # fmt: skip


def train_once(config: ModelConfig, *, every: int | None = None, compiled: Compiled | None = None) -> dict[str, Tensor]:
    """Return the logits and the gradients of a training pass, by name."""
    model: Any = config.build()
    model.init_weights(torch.Generator().manual_seed(0))
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
    if compiled == "blocks":
        compile_blocks(model.repeated_blocks())
    checkpoint_blocks(every_nth(model.repeated_blocks(), every))
    if compiled == "model":
        model.compile()
    images = torch.randint(
        0, 256, (4, 3, *config.height_and_width), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)
    )
    torch.manual_seed(5)
    logits = model(images)
    logits.square().sum().backward()
    return {"logits": logits.detach(), **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


def count_graphs(config: ViTConfig) -> int:
    """Return how many pieces of code the blocks are compiled to. Code without a piece runs uncompiled."""
    graphs: list[Any] = []

    def keep(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model = VisionTransformer(config).train()
    model.init_weights(torch.Generator().manual_seed(0))
    compile_blocks(model.repeated_blocks(), backend=keep)
    model(torch.zeros(2, 3, 16, 16)).sum().backward()
    assert not torch._dynamo.utils.counters["unimplemented"]
    return len(graphs)


def main() -> None:
    torch.set_num_threads(1)
    for rule in ("uniform", "linear"):
        deep = replace(CONFIG, depth=10, stochastic_depth=0.2, stochastic_depth_rule=rule)
        print(json.dumps({"rule": rule, "graphs": count_graphs(deep)}), flush=True)
    torch._dynamo.reset()
    plain = train_once(CONFIG)
    floor = 0.01 * max(float(value.abs().max()) for value in plain.values())
    choices: list[tuple[Compiled, int | None]] = [("blocks", None), ("blocks", 1), ("model", None), ("model", 1)]
    for compiled, every in choices:
        found = train_once(CONFIG, every=every, compiled=compiled)
        worst = max(
            float((found[name] - value).abs().max()) / max(float(value.abs().max()), floor) for name, value in plain.items()
        )
        print(json.dumps({"compiled": compiled, "every": every, "worst": worst}), flush=True)


if __name__ == "__main__":
    main()
