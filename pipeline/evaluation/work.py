"""List what an evaluator has to do, in the order in which it is done. Several evaluators share the list by claims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.run.folder import WeightsName, name_of_claim

Order = Literal["oldest", "newest"]


@dataclass(frozen=True)
class Work:
    """Names the measurements of some weights on one set: what one evaluator does at a time."""

    name: WeightsName
    dataset: str

    @property
    def claim(self) -> str:
        """Return the name of its claim's file."""
        return name_of_claim(self.name, self.dataset)


def in_order(names: Sequence[WeightsName], order: Order) -> list[WeightsName]:
    """Return weights, which are by step, in the order in which they are measured. Kinds of one step keep theirs."""
    return list(names) if order == "oldest" else sorted(names, key=lambda name: -name.step)
