"""Rename and reshape tensors between our names and another library's, in both directions, by one description."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import ExchangeError
from pipeline.models.base import ModelConfig

Tensors = dict[str, Tensor]
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
        raise ExchangeError(f"{_some(missing)} cannot be written in this format")
    return found


@dataclass(frozen=True)
class Renamed:
    """Holds another library's tensors under our names.

    Attributes:
        left_out: names of their tensors that no piece has read.
    """

    tensors: Tensors
    left_out: list[str]


def to_ours(theirs: Tensors, pieces: Iterable[Piece], *, source: str) -> Renamed:
    """Return their tensors under our names, fp32.

    Raises:
        ExchangeError: one is missing, or has another form.
    """
    ours: Tensors = {}
    read: set[str] = set()
    for piece in pieces:
        missing = [name for name in piece.theirs if name not in theirs]
        if missing:
            raise ExchangeError(f"{source} lacks {_some(missing)}")
        try:
            made = piece.read([theirs[name] for name in piece.theirs])
        except RuntimeError as error:
            raise ExchangeError(f"{source}: {_some(list(piece.theirs))} has another form: {error}") from error
        ours |= {name: tensor.float().contiguous() for name, tensor in zip(piece.ours, made, strict=True)}
        read.update(piece.theirs)
    return Renamed(ours, sorted(theirs.keys() - read))


def check_shapes(tensors: Tensors, config: ModelConfig, *, source: str) -> None:
    """Compare tensors with those of the model that they are for.

    Raises:
        ExchangeError: one is missing, or has another shape.
    """
    expected = tensor_shapes(config)
    if missing := sorted(expected.keys() - tensors.keys()):
        raise ExchangeError(f"{source} lacks the tensors of {_some(missing)}")
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise ExchangeError(f"{source}: the tensor of {name} is {list(tensors[name].shape)}, this model's is {list(shape)}")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(name[:100] for name in names[:3])}{more}"
