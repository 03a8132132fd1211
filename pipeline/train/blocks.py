"""Change how a model's repeated blocks are run: computed again in the backward pass, compiled by themselves."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.models.base import Backbone
from pipeline.train.section import TrainerSection

Block = TypeVar("Block")


def prepare_blocks(model: Backbone, trainer: TrainerSection) -> None:
    """Compile the model or its blocks, and let blocks be computed again, as the settings say."""
    blocks = model.repeated_blocks()
    if trainer.compile == "blocks":
        compile_blocks(blocks)
    checkpoint_blocks(every_nth(blocks, trainer.activation_checkpointing))
    if trainer.compile is True:
        model.compile()


def every_nth(blocks: Sequence[Block], every: int | None) -> Sequence[Block]:
    """Return the blocks that are computed again: the first and every n-th after it; all where n is 1, none where it is None.

    The first, not the n-th: what the last block keeps is the first to be released, so that keeping it costs the least.
    """
    return [] if every is None else blocks[::every]


def checkpoint_blocks(blocks: Sequence[nn.Module]) -> None:
    """Keep of each block its input alone, and compute it again in the backward pass.

    The same operations run on the same values: torch restores the state of the random generators first, so that the masks
    of dropout and stochastic depth are those of the forward pass. Losses and gradients are bit for bit the same.

    The submodules are called again, and the block itself is not. Under ZeRO-3, which gathers a module's parameters when it is
    called, all parameters must therefore belong to modules inside the block.
    """
    for block in blocks:
        assert not list(block.parameters(recurse=False)), "the parameters of a block belong to modules inside it"
        block.forward = functools.partial(_checkpointed, block.forward)  # type: ignore[method-assign]


def _checkpointed(forward: Callable[..., Any], *arguments: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*arguments)
    # To the end, also where all that is needed was recomputed: DeepSpeed counts on a hook at the end of each module.
    return checkpoint(_ended, forward, *arguments, use_reentrant=False, early_stop=False)


def _ended(forward: Callable[..., Tensor], *arguments: Any) -> Tensor:
    return _EndOfBlock.apply(forward(*arguments))  # type: ignore[return-value]


class _EndOfBlock(torch.autograd.Function):
    """Passes a block's output on, and has the block computed again before anything else of its backward pass.

    torch computes it again when the first saved tensor is asked for. Under ZeRO-3 that must not happen inside of a module's
    backward pass: its parameters were gathered for that, and computing the block again releases them.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor) -> Tensor:
        ctx.save_for_backward(output.new_empty(()))
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        _ = ctx.saved_tensors
        return gradients[0]


def compile_blocks(blocks: Sequence[nn.Module], *, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile each block by itself. Equal blocks share the compiled code, so the time is that of one block."""
    for block in blocks:
        block.forward = torch.compile(block.forward, backend=backend)  # type: ignore[method-assign]
