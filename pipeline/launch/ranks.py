"""Say which place a process has among the ranks, and who started them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Launcher = Literal["slurm", "torchrun", "mpi", "local", "none"]


@dataclass(frozen=True)
class Ranks:
    """Says which place a launcher has given this process among the ranks."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    node: int
    num_nodes: int
    launcher: Launcher
    master: tuple[str, int] | None = None  # host and port of rank 0; None where this process may choose them


ALONE = Ranks(rank=0, size=1, local_rank=0, local_size=1, node=0, num_nodes=1, launcher="none", master=None)
