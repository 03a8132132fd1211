"""Change how a model's repeated blocks are run: in float8, computed again in the backward pass, compiled by themselves."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.models.base import Backbone
from pipeline.train.float8 import use_float8
from pipeline.train.section import TrainerSection

Block = TypeVar("Block")


def prepare_blocks(model: Backbone, trainer: TrainerSection, *, device: torch.device, is_even: bool) -> list[str]:
    """Let blocks compute in float8, compile the model or its blocks, and let blocks be computed again, as the settings say.

    Args:
        is_even: whether all micro-batches have as many images.

    Returns:
        What was chosen, in words: layers of float8, and on a GPU what `trainer.compile=auto` compiles.

    Raises:
        ConfigError: float8 is not for this device, model or environment.
    """
    blocks = model.repeated_blocks()
    said = []
    if trainer.float8 is not None:
        said.append(use_float8(blocks, trainer.float8, layers=trainer.float8_layers, device=device))
    compiled = trainer.compile
    if compiled == "auto":
        reason = why_not_compile(device, has_blocks=bool(blocks), is_even=is_even)
        compiled = "blocks" if reason is None else False
        if device.type == "cuda":
            what = "blocks are compiled" if reason is None else f"nothing is compiled, {reason}"
            said.append(f"{what} (trainer.compile=auto)")
    if trainer.float8 is not None and compiled is False and device.type == "cuda":
        said.append("WARNING: float8 without compiled blocks takes longer than bf16: each rounding reads and writes memory")
    if compiled == "blocks":
        compile_blocks(blocks)
    checkpoint_blocks(every_nth(blocks, trainer.activation_checkpointing))
    if compiled is True:
        model.compile()
    return said


def why_not_compile(device: torch.device, *, has_blocks: bool, is_even: bool) -> str | None:
    """Return why `auto` does not compile the blocks; None if it does."""
    if device.type != "cuda":
        return "a CPU takes minutes to compile what gains little"
    if not has_blocks:
        return "the model lists no repeated blocks"
    if not is_even:
        return "micro-batches differ in size, and each size would be compiled by itself"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not any(shutil.which(name) for name in (os.environ.get("CC") or "cc", "gcc", "clang")):
        return "there is no C compiler, which triton needs: install gcc"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "Python's headers are not there, which triton needs: install python3-dev or python3-devel"
    return None


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
