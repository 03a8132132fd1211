"""Find parameters in the tensors that an optimizer updates: at ZeRO 1 to 3 these are flat parts of many parameters.

An update that looks at each element alone needs none of this. One that looks at whole parameters (their norms, or them as
matrices) puts them together from the ranks' parts with the functions here. The sums that do so have one term that is not zero
an element, so they are exact, whatever the number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

MOST_AT_ONCE = 16  # limit of whole parameters that a rank holds at one moment


@dataclass(frozen=True)
class Part:
    """Describes what a tensor of this rank holds of one parameter: `numel` elements from `offset` on, at `start` of the tensor.

    `numel` is 0 where the rank holds nothing of it.
    """

    shape: tuple[int, ...]
    start: int
    offset: int
    numel: int

    def of(self, tensor: Tensor) -> Tensor:
        """Return the elements, as a view of one dimension."""
        return tensor.view(-1).narrow(0, self.start, self.numel)


@dataclass(frozen=True)
class Layout:
    """Holds the parts of the tensors that an optimizer updates, in the same order on every rank.

    Attributes:
        parts: of each tensor; a tensor that is not listed is one whole parameter.
        num_ranks: that share the parameters between them; 1 where each has them whole.
    """

    parts: Mapping[Tensor, tuple[Part, ...]] = field(default_factory=dict)
    num_ranks: int = 1

    def parts_of(self, tensor: Tensor) -> tuple[Part, ...]:
        return self.parts.get(tensor) or (Part(tuple(tensor.shape), 0, 0, tensor.numel()),)

    def norms(self, pieces: Sequence[Tensor]) -> Tensor:
        """Return L2 norms of whole parameters, from this rank's piece of each: (P,). It is a collective under ZeRO."""
        own = torch.stack([piece.norm() for piece in pieces])
        if self.num_ranks == 1:
            return own
        squares = own.square()
        dist.all_reduce(squares)
        return squares.sqrt()

    def map_whole(
        self, tensor: Tensor, parts: Sequence[Part], function: Callable[[Tensor], Tensor], *, out_dtype: torch.dtype
    ) -> list[Tensor]:
        """Apply a function to each whole parameter, and return this rank's piece of each result.

        Under ZeRO each rank computes every n-th of them, and all get the results: it is a collective.

        Args:
            function: of a tensor of the parameter's shape, to one of the same shape and of `out_dtype`.
        """
        if self.num_ranks == 1:
            return [function(part.of(tensor).view(part.shape)).reshape(-1) for part in parts]
        results: list[Tensor] = []
        step = min(self.num_ranks, MOST_AT_ONCE)
        for first in range(0, len(parts), step):
            chunk = parts[first : first + step]
            results += self._map_chunk(tensor, chunk, function, out_dtype=out_dtype)
        return results

    def _map_chunk(
        self, tensor: Tensor, parts: Sequence[Part], function: Callable[[Tensor], Tensor], *, out_dtype: torch.dtype
    ) -> list[Tensor]:
        rank = dist.get_rank()
        wholes = []
        for part in parts:
            whole = tensor.new_zeros(math.prod(part.shape))
            whole.narrow(0, part.offset, part.numel).copy_(part.of(tensor))
            wholes.append(whole)
        _wait([dist.reduce(whole, dst=owner, async_op=True) for owner, whole in enumerate(wholes)])
        results = [
            function(whole.view(part.shape)).reshape(-1).contiguous()
            if owner == rank
            else torch.empty_like(whole, dtype=out_dtype)
            for owner, (part, whole) in enumerate(zip(parts, wholes, strict=True))
        ]
        _wait([dist.broadcast(result, src=owner, async_op=True) for owner, result in enumerate(results)])
        return [result.narrow(0, part.offset, part.numel) for part, result in zip(parts, results, strict=True)]


def _wait(works: Sequence[dist.Work | None]) -> None:
    for work in works:
        if work is not None:
            work.wait()
