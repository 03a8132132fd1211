"""Keep a run's loss history with every checkpoint: it shows which ones were saved after the learning was lost.

A run that diverges need not meet a value that is not finite: its weights grow, its loss rises far above what it was, and every
step is taken. Such a checkpoint is whole, and useless. The threshold is reached when the loss has risen from its lowest by half
of its decrease, and by a tenth of the first loss, below which the rise may be noise. It is independent of the loss's kind and
scale. A spike that crosses it costs a few more checkpoints' disk space until the run has recovered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

LOST_PART = 0.5  # part of the loss's decrease
NOISE = 0.1  # part of the first loss


@dataclass(frozen=True)
class LossHistory:
    """Summarises the logged losses, each a mean over the steps since the one before."""

    first: float
    lowest: float
    last: float | None  # None: not finite

    @classmethod
    def begin(cls, loss: float) -> Self | None:
        return cls(first=loss, lowest=loss, last=loss) if math.isfinite(loss) else None

    @classmethod
    def described_by(cls, values: Any) -> Self | None:
        """Return the history that a checkpoint's values describe; None where they say nothing."""
        if not isinstance(values, Mapping):
            return None
        first, lowest, last = (_finite(values.get(name)) for name in ("first", "lowest", "last"))
        return None if first is None or lowest is None else cls(first=first, lowest=lowest, last=last)

    def after(self, loss: float) -> Self:
        """Return the history after one more logged loss."""
        if not math.isfinite(loss):
            return type(self)(first=self.first, lowest=self.lowest, last=None)
        return type(self)(first=self.first, lowest=min(self.lowest, loss), last=loss)

    def to_values(self) -> dict[str, float | None]:
        return asdict(self)

    @property
    def is_lost(self) -> bool:
        """Return whether half of what was learnt is lost."""
        rise = max((self.first - self.lowest) * LOST_PART, self.first * NOISE)
        return self.last is None or self.last > self.lowest + rise


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def choose_kept(steps: Sequence[int], *, lost: frozenset[int], keep_last: int, keep_every_steps: int | None) -> set[int]:
    """Return which checkpoints stay: the last `keep_last`, and the first one of every `keep_every_steps`.

    Checkpoints that were saved after the run had lost what it learnt replace only one another.

    Args:
        steps: steps of all checkpoints, ascending.
        lost: those of them whose loss had risen so far.
    """
    kept = {*steps[-keep_last:], *[step for step in steps if step not in lost][-keep_last:]}
    if keep_every_steps is not None:  # a save may miss the exact step: it was refused, or the intervals do not divide
        first = {step // keep_every_steps: step for step in reversed(steps)}
        kept |= {step for multiple, step in first.items() if multiple > 0}
    return kept
