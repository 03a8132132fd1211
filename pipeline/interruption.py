"""Being asked to stop: a signal only sets a flag, the ranks agree at a step's end.

A handler that saves by itself deadlocks when another rank is inside another collective (Lightning issues #20806 and
#21406). Imports nothing heavy: it is installed before torch is loaded, or an early signal would kill the rank.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from types import FrameType

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: the same command goes on where this one stopped
EXIT_HANGING = 70  # EX_SOFTWARE of sysexits.h: no step has ended for too long
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@dataclass
class StopRequest:
    """Whether this rank was told to stop, and by which signal."""

    received: list[str] = field(default_factory=list)

    def install(self) -> None:
        """Take over SIGTERM (preemption), SIGUSR1 (time limit near) and SIGINT (Ctrl-C; a second one is not waited for)."""
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and "SIGINT" in self.received:
            raise KeyboardInterrupt
        self.received.append(signal.Signals(number).name)

    @property
    def is_set(self) -> bool:
        return bool(self.received)
