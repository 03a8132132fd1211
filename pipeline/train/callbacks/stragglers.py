"""Find the rank that the others wait for: each rank's own time is gathered when a line is logged.

In synchronous training every rank's step takes as long as the slowest rank's, so step times show no straggler. The time that a
rank spends before it first waits for others does:

- waiting for its own loader, and
- the forward pass: on a GPU between two events of its stream, on a CPU by the clock. Under ZeRO 0-2 nothing is
  communicated in it. Under ZeRO-3 it gathers parameters, so that all forward passes take equally long: there the wait
  for data alone is measured, and the report says so.

Shares of a batch may differ by an image. A rank's time grows with its images, or hardly does with small batches. So a rank
counts as slower by the smaller of two readings: as measured, and for an equal share.

A rank that is slow in the backward pass or the optimizer alone is not detected. A slow device is slow in the forward pass too.

    RUN_DIR/stragglers.json     a table by node, of the last line logged
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean, median
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from pipeline.run.live_files import LiveFiles


@dataclass(frozen=True)
class Slowest:
    """Describes the slowest rank, compared with the others.

    Args:
        ratio: its own time to the others' median.
        cost: what it is slower by, as a part of the step: the others wait that long. 0 if all are equal.
    """

    rank: int
    ratio: float
    cost: float


def find_slowest(own_s: Sequence[float], *, weights: Sequence[float], step_time_s: float) -> Slowest:
    """Compare at least two ranks' own times a step.

    Args:
        weights: each rank's share of the images, 1 if all are equal.
    """
    readings = (list(own_s), [time_s / weight for time_s, weight in zip(own_s, weights, strict=True)])
    excesses_s = [min(_excess(reading, rank)[0] for reading in readings) for rank in range(len(own_s))]
    rank = max(range(len(own_s)), key=lambda i: excesses_s[i])
    excess_s, usual = min((_excess(reading, rank) for reading in readings), key=lambda pair: pair[0])
    excess_s = max(0.0, excess_s)
    return Slowest(rank=rank, ratio=1 + excess_s / usual if usual > 0 else 1.0, cost=min(1.0, excess_s / step_time_s))


def _excess(times_s: Sequence[float], rank: int) -> tuple[float, float]:
    """Return how much slower a rank is than the others' median, and that median."""
    usual = median([*times_s[:rank], *times_s[rank + 1 :]])
    return times_s[rank] - usual, usual


@dataclass(frozen=True)
class NodeTimes:
    """Holds the times of one node's ranks, in seconds a step."""

    host: str
    ranks: list[int]
    median_s: float
    slowest_rank: int
    slowest_s: float
    slowest_data_wait_s: float  # time of that rank


def tabulate_nodes(hosts: Sequence[str], wait_s: Sequence[float], own_s: Sequence[float]) -> list[NodeTimes]:
    """Return times by host, the slowest first."""
    nodes = []
    for host in dict.fromkeys(hosts):
        ranks = [rank for rank, other in enumerate(hosts) if other == host]
        slowest = max(ranks, key=lambda rank: own_s[rank])
        nodes.append(NodeTimes(host, ranks, median(own_s[r] for r in ranks), slowest, own_s[slowest], wait_s[slowest]))
    return sorted(nodes, key=lambda node: -node.slowest_s)


class RankTimes(Callback):
    """Measures this rank's own time; `gather` compares the ranks.

    Args:
        zero_stage: DeepSpeed's stage, which decides what can be measured.
        files: where the report goes; None on other ranks than the first.
    """

    def __init__(self, *, zero_stage: int, files: LiveFiles | None) -> None:
        self.measures = ["data wait"] if zero_stage == 3 else ["data wait", "forward"]
        self.files = files
        self._hosts: list[str] = []
        self._wait_s = 0.0
        self._forward_s = 0.0
        self._weights: list[float] = []  # of micro-batches: one with more images takes longer, and is not a straggler
        self._start: Any = None
        self._events: list[tuple[Any, Any]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        hosts: list[Any] = [None] * trainer.world_size
        dist.all_gather_object(hosts, socket.gethostname())
        self._hosts = hosts

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._wait_s += float(batch["wait_s"])
        self._weights.append(float(batch["loss_weight"]))
        if "forward" in self.measures:
            self._start = _now(pl_module.device)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self._start is None:
            return
        if pl_module.device.type == "cuda":  # read when a line is logged: reading it now would wait for the device
            self._events.append((self._start, _now(pl_module.device)))
        else:
            self._forward_s += time.perf_counter() - self._start
        self._start = None

    def gather(self, trainer: Trainer, *, steps: int, step_time_s: float) -> dict[str, float]:
        """Return what goes into a line of metrics. This is a collective: one small gather.

        Args:
            steps: since the last line.
            step_time_s: mean over them.
        """
        for start, end in self._events:
            end.synchronize()
            self._forward_s += start.elapsed_time(end) / 1e3
        mine = torch.tensor(
            [self._wait_s / steps, self._forward_s / steps, mean(self._weights)], device=trainer.strategy.root_device
        )
        self._wait_s, self._forward_s, self._events, self._weights = 0.0, 0.0, [], []
        if trainer.world_size == 1:
            return {}
        parts = [torch.empty_like(mine) for _ in range(trainer.world_size)]
        dist.all_gather(parts, mine)
        waits_s, forwards_s, weights = torch.stack(parts).T.tolist()
        own_s = [wait + forward for wait, forward in zip(waits_s, forwards_s, strict=True)]
        slowest = find_slowest(own_s, weights=weights, step_time_s=step_time_s)
        if self.files is not None:
            nodes = tabulate_nodes(self._hosts, waits_s, own_s)
            self.files.put(
                self.files.folder.stragglers,
                {
                    "time": round(time.time(), 3),
                    "step": trainer.global_step,
                    "step_time_s": step_time_s,
                    "measured": self.measures,
                    **asdict(slowest),
                    "nodes": [asdict(node) for node in nodes],
                },
            )
        return {
            "speed/slowest_rank": slowest.rank,
            "speed/slowest_rank_ratio": slowest.ratio,
            "speed/slowest_rank_cost": slowest.cost,
        }


def _now(device: torch.device) -> Any:
    """Return a moment: on a GPU an event of its stream, else seconds."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
