"""Tell all ranks at each step what holds on some of them, without letting a GPU wait for the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

When = Literal["at once", "a step later"]


@dataclass(frozen=True)
class Answer:
    """Holds for each fact whether it held on some rank.

    Attributes:
        about: what the question was about; None before the first answer.
    """

    facts: tuple[bool, ...]
    about: Any


class Votes:
    """Asks the ranks about the same facts again and again. The answer is the same on every rank.

    On a GPU each answer is the previous question's: reading this one's would wait for all that the GPU has still to do, and
    then leave it idle while the next step's first kernels are launched. By the next question it has arrived.

    Args:
        when: `at once` waits for each answer; None: as the device asks for.
    """

    def __init__(self, when: When | None = None) -> None:
        self._when = when
        self._sent: tuple[Tensor, Any, Any] | None = None

    def ask(self, *facts: bool, about: Any, device: torch.device) -> Answer:
        """Return an answer. This is a collective.

        Args:
            about: what the facts are about, for the answer.
        """
        if self._when is None and dist.get_world_size() == 1:
            return Answer(facts, about)
        when = self._when or ("a step later" if device.type == "cuda" else "at once")
        if when == "at once":
            flags, _ = _send(facts, device)
            return Answer(tuple(flags.bool().tolist()), about)
        before, self._sent = self._sent, (*_send(facts, device), about)
        if before is None:
            return Answer((False,) * len(facts), None)
        flags, arrived, asked_about = before
        if arrived is not None:
            arrived.synchronize()
        return Answer(tuple(flags.bool().tolist()), asked_about)


def _send(facts: tuple[bool, ...], device: torch.device) -> tuple[Tensor, Any]:
    """Begin to ask. Return where the answer will be on the host, and an event after which it is there."""
    if device.type != "cuda":
        flags = torch.tensor(facts, dtype=torch.int32, device=device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return flags, None
    flags = torch.tensor(facts, dtype=torch.int32, pin_memory=True).to(device, non_blocking=True)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    answer = torch.empty(len(facts), dtype=torch.int32, pin_memory=True)
    answer.copy_(flags, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return answer, arrived
