"""Rename and reshape tensors between our names and another library's, in both directions, by one description."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import ExchangeError
from pipeline.models.base import ModelConfig

Tensors = dict[str, Tensor]

HEAD = "head."  # begins the names of the classifier's tensors
_MOST_EPS = 1e-5  # of a layer norm: variances are far larger
# Tensors that pretraining alone reads: mask tokens, decoders, the heads of DINO and iBOT, projections of contrastive learning.
_ASIDE = re.compile(
    r"(?:\w+\.)?(?:embeddings\.)?(?:mask_token|decoder\w*|pooler|predictor|projector|projection_head|head|head_\w+|\w+_head|logit_scale)(?:\.|$)"
)
Change = Callable[[Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Piece:
    """Says under which names, and in which form, another library keeps some of our tensors.

    Attributes:
        ours, theirs: names.
        write: makes their tensors from ours, in the order of the names.
        read: undoes `write`.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    write: Change = list
    read: Change = list


def renamed(ours: str, theirs: str) -> Piece:
    """Return a piece whose tensor has another name alone."""
    return Piece((ours,), (theirs,))


def transposed(ours: str, theirs: str, *axes: int) -> Piece:
    """Return a piece whose tensor has its axes in another order.

    Args:
        axes: of our tensor, in their order.
    """
    back = [axes.index(axis) for axis in range(len(axes))]
    return Piece(
        (ours,),
        (theirs,),
        write=lambda given: [tensor.permute(*axes) for tensor in given],
        read=lambda given: [tensor.permute(*back) for tensor in given],
    )


def split(ours: str, theirs: Sequence[str]) -> Piece:
    """Return a piece that is one tensor here and there several, equal parts of its first axis."""
    return Piece(
        (ours,),
        tuple(theirs),
        write=lambda given: list(given[0].chunk(len(theirs))),
        read=lambda given: [torch.cat(list(given))],
    )


def tensor_names(config: ModelConfig) -> list[str]:
    """Return the names of a model's tensors."""
    return list(tensor_shapes(config))


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's tensors by name. No memory is taken for them."""
    try:
        with torch.device("meta"):
            return {name: tuple(tensor.shape) for name, tensor in config.build().state_dict().items()}
    except (RuntimeError, TypeError, OverflowError) as error:  # more elements than a tensor can have
        reason = str(error).splitlines()[0][:100]
        raise ExchangeError(f"no model of the family {config.family} has these sizes ({reason})") from error


def refuse_impossible(config: ModelConfig, tensors: Tensors, *, source: str) -> None:
    """Refuse sizes that no model has, and more blocks than there are tensors for, before a model of that size is made.

    Raises:
        ExchangeError: the configuration is that of no model here, or there are too few tensors.
    """
    try:
        config.from_dict(config.to_dict())
    except ValueError as error:
        raise ExchangeError(f"{source}: {error}") from error
    if config.least_tensors > len(tensors):
        raise ExchangeError(f"{source} holds {len(tensors)} tensors, too few for the model that it describes")


def to_theirs(tensors: Tensors, pieces: Iterable[Piece]) -> Tensors:
    """Return our tensors under their names.

    Raises:
        ExchangeError: a tensor of ours has no name there.
    """
    found: Tensors = {}
    written: set[str] = set()
    for piece in pieces:
        made = piece.write([tensors[name] for name in piece.ours])
        found |= {name: tensor.contiguous() for name, tensor in zip(piece.theirs, made, strict=True)}
        written.update(piece.ours)
    if missing := sorted(tensors.keys() - written):
        raise ExchangeError(f"{some(missing)} cannot be written in this format")
    return found


@dataclass(frozen=True)
class Renamed:
    """Holds another library's tensors under our names.

    Attributes:
        left_out: names of their tensors that no piece has read.
    """

    tensors: Tensors
    left_out: list[str]


def to_fp32(name: str, tensor: Tensor, *, source: str) -> Tensor:
    """Return a tensor of weights in fp32.

    Raises:
        ExchangeError: it is of whole numbers or 8 bits, as quantised weights are, or has values that are not finite.
    """
    kind = str(tensor.dtype).removeprefix("torch.")
    if not tensor.is_floating_point() or tensor.dtype.itemsize < 2:
        raise ExchangeError(
            f"{source}: {name} is of {kind}: the weights are quantised, and their scales are not read; take the weights in "
            "fp32, bf16 or fp16"
        )
    values = tensor.float()
    if not torch.isfinite(values).all():
        count = int((~torch.isfinite(values)).sum())
        raise ExchangeError(
            f"{source}: {count} of the {values.numel()} values of {name} are infinite or no numbers (it is of {kind}): "
            "a training that diverged, or a conversion to fp16 that overflowed; take earlier weights, or those in fp32"
        )
    return values


def to_ours(theirs: Tensors, pieces: Iterable[Piece], *, source: str) -> Renamed:
    """Return their tensors under our names, fp32.

    Raises:
        ExchangeError: one is missing, or has another form, or values that are no weights.
    """
    ours: Tensors = {}
    read: set[str] = set()
    for piece in pieces:
        missing = [name for name in piece.theirs if name not in theirs]
        if missing:
            raise ExchangeError(f"{source} lacks {some(missing)}")
        try:
            made = piece.read([to_fp32(name, theirs[name], source=source) for name in piece.theirs])
        except RuntimeError as error:
            raise ExchangeError(f"{source}: {some(list(piece.theirs))} has another form: {error}") from error
        ours |= {name: tensor.contiguous() for name, tensor in zip(piece.ours, made, strict=True)}
        read.update(piece.theirs)
    return Renamed(ours, sorted(theirs.keys() - read))


def strangers(names: Iterable[str], pieces: Iterable[Piece]) -> list[str]:
    """Return the names that no piece reads and that a model computes with: they are of another model."""
    read = {name for piece in pieces for name in piece.theirs}
    return sorted(name for name in names if name not in read and not _ASIDE.match(name))


def refuse_strangers(names: Iterable[str], pieces: Iterable[Piece], *, source: str) -> None:
    """Refuse a model that computes with tensors that ours has not: without them outputs would be others.

    Raises:
        ExchangeError: it has some.
    """
    if odd := strangers(names, pieces):
        raise ExchangeError(f"{source} is another model than ours can be: it computes with {some(odd)}, which ours has not")


def left_out_notes(read: Renamed) -> list[str]:
    """Return which tensors were not read, in words."""
    modules = list(dict.fromkeys(".".join(name.split(".")[:2]).removesuffix(".weight") for name in read.left_out))
    return [f"not read: {some(modules)}"] if modules else []


def compare_epsilon(theirs: float, ours: float, *, source: str) -> list[str]:
    """Return what another epsilon of layer norms changes, in words.

    Raises:
        ExchangeError: it is so large that outputs would be others.
    """
    if theirs == ours:
        return []
    if not 0 <= theirs <= _MOST_EPS:
        raise ExchangeError(f"{source} has the epsilon {theirs:g} in its layer norms, ours {ours:g}: outputs differ")
    return [f"layer norms have the epsilon {ours:g} here, as in the authors' code, and {theirs:g} there"]


def check_shapes(tensors: Tensors, config: ModelConfig, *, source: str) -> None:
    """Compare tensors with those of the model that they are for. The classifier may be missing, as a whole.

    Raises:
        ExchangeError: one is missing, or has another shape.
    """
    expected = tensor_shapes(config)
    if not any(name.startswith(HEAD) for name in tensors):
        expected = {name: shape for name, shape in expected.items() if not name.startswith(HEAD)}
    if missing := sorted(expected.keys() - tensors.keys()):
        raise ExchangeError(f"{source} lacks the tensors of {some(missing)}")
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise ExchangeError(f"{source}: the tensor of {name} is {list(tensors[name].shape)}, this model's is {list(shape)}")


def some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(name[:100] for name in names[:3])}{more}"
