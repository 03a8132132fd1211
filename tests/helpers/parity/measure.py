"""Outputs and the gradients of one step of two models of equal weights, and how far they are apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Precision = Literal["fp32", "bf16"]
Run = Callable[[Tensor], Tensor]
Renamed = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
SILENT = ("k_proj.bias", "k_norm.bias")  # the softmax does not see what is added to all keys: gradients of nothing but rounding


@dataclass(frozen=True)
class Side:
    """A model in eval mode, so that nothing is drawn, and what runs it: images to logits, or to a representation."""

    model: nn.Module
    run: Run


@dataclass(frozen=True)
class Twins:
    """Two models of equal weights.

    Attributes:
        renamed: our tensors by name, as theirs by name.
    """

    ours: Side
    theirs: Side
    renamed: Renamed
    images: Tensor


@dataclass(frozen=True)
class Step:
    """What a model makes of a batch: its output, and the gradients of a loss that weights all of it."""

    output: Tensor
    gradients: dict[str, Tensor]


@dataclass(frozen=True)
class Difference:
    """How far two steps are apart.

    Attributes:
        output: largest difference of the outputs, as a part of the largest output.
        gradients: largest difference of any tensor's gradient, as a part of the largest value of that gradient.
        norm: of the difference of all gradients together, as a part of their norm.
    """

    output: float
    gradients: float
    norm: float


def take_steps(twins: Twins, precision: Precision) -> tuple[Step, Step]:
    """Return our step and theirs, both by their names. With bf16 both are under torch.autocast, with fp32 weights."""
    ours, theirs = (_step(side, twins.images, precision) for side in (twins.ours, twins.theirs))
    return Step(ours.output, twins.renamed(ours.gradients)), theirs


def _step(side: Side, images: Tensor, precision: Precision) -> Step:
    side.model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        output = side.run(images).float()
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    gradients = {name: p.grad.clone() for name, p in side.model.named_parameters() if p.grad is not None}
    return Step(output.detach(), gradients)


def difference(ours: Step, theirs: Step) -> Difference:
    """Return how far they are apart.

    Raises:
        AssertionError: one has a gradient that the other lacks.
    """
    assert ours.gradients.keys() == theirs.gradients.keys(), sorted(ours.gradients.keys() ^ theirs.gradients.keys())
    names = [name for name in theirs.gradients if not name.endswith(SILENT)]
    mine, other = (torch.cat([step.gradients[name].flatten() for name in names]) for step in (ours, theirs))
    return Difference(
        output=_part(ours.output, theirs.output),
        gradients=max(_part(ours.gradients[name], theirs.gradients[name]) for name in names),
        norm=float((mine - other).norm() / other.norm()),
    )


def _part(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())
