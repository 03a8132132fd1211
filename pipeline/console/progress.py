"""Show progress: a bar on a terminal, plain lines at an interval in a log. This module imports nothing heavy."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, Protocol, Self, TextIO, TypeVar

from tqdm import tqdm

from pipeline.console.words import duration

T = TypeVar("T")
LINE_EVERY_S = 60.0


class Progress(Protocol):
    """Counts work, however it is shown."""

    def update(self, n: int = 1, /) -> Any: ...

    def set_postfix_str(self, s: str, /, refresh: bool = True) -> Any: ...

    def close(self) -> Any: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> Any: ...


class Lines:
    """Prints lines of a log: after the first piece of work, then one a minute, and at the end.

    Args:
        leave: if false, nothing is shown of work that takes less than a minute.
    """

    def __init__(
        self,
        *,
        total: int | None,
        description: str,
        unit: str,
        initial: int = 0,
        leave: bool = True,
        file: TextIO | None = None,
        every_s: float = LINE_EVERY_S,
    ) -> None:
        self._total = total
        self._description = description
        self._unit = unit
        self._initial = self._count = self._shown = initial
        self._file = file or sys.stderr
        self._every_s = every_s
        self._postfix = ""
        self._start = time.monotonic()
        self._next = self._start + (0.0 if leave else every_s)
        self._leave = leave

    def update(self, n: int = 1, /) -> None:
        self._count += n
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._every_s
            self._show()

    def set_postfix_str(self, s: str, /, refresh: bool = True) -> None:
        self._postfix = s

    def close(self) -> None:
        if self._leave and self._count > self._shown:
            self._show()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        self.close()

    def _show(self) -> None:
        self._shown = self._count
        elapsed_s = time.monotonic() - self._start
        rate = (self._count - self._initial) / elapsed_s if elapsed_s > 0 else 0.0
        parts = [f"{self._description}: {self._count} {self._unit}s"]
        if self._total:
            share = 100 * self._count / self._total
            parts = [f"{self._description}: {self._unit} {self._count} of {self._total} ({share:.1f} %)"]
        parts.append(f"{rate:.3g} {self._unit}s/s")
        if self._total and rate > 0 and self._count < self._total:
            parts.append(f"{duration((self._total - self._count) / rate)} left")
        if self._postfix:
            parts.append(self._postfix)
        print(", ".join(parts), file=self._file, flush=True)


def progress(
    *, total: int | None, description: str, unit: str, initial: int = 0, leave: bool = True, shown: bool = True
) -> Progress:
    """Count work on standard error.

    Args:
        leave: keep a terminal's bar at the end.
        shown: false where another process shows its own.
    """
    if not shown:
        return tqdm(total=total, disable=True)
    if sys.stderr is None or not sys.stderr.isatty():  # type: ignore[redundant-expr]  # None where the shell has closed it
        return Lines(total=total, description=description, unit=unit, initial=initial, leave=leave)
    has_size = os.get_terminal_size(sys.stderr.fileno()).columns > 0  # some containers' terminals have no size
    size: dict[str, Any] = {"dynamic_ncols": True} if has_size else {"ncols": 80, "nrows": 24}
    return tqdm(total=total, desc=description, unit=unit, initial=initial, leave=leave, **size)


def track(items: Iterable[T], *, description: str, unit: str) -> Iterator[T]:
    """Count items as they are taken."""
    total = len(items) if isinstance(items, Sized) else None
    with progress(total=total, description=description, unit=unit) as bar:
        for item in items:
            yield item
            bar.update()
