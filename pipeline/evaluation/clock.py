"""Add up what an evaluator's seconds go to: waiting for images, running the model, each protocol."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
_SHORTEST_S = 0.05  # parts below are not worth a word


class Clock:
    """Adds up seconds by part. A part that begins inside another stops the other one's time.

    Attributes:
        seconds: by part, in the order in which parts began.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time until the end of the block, without that of parts inside."""
        self._credit()
        self.seconds.setdefault(name, 0.0)
        self._open.append(name)
        try:
            yield
        finally:
            self._credit()
            self._open.pop()

    def waiting(self, items: Iterable[Item], name: str) -> Iterator[Item]:
        """Yield items, and count the time until each is there."""
        iterator = iter(items)
        while True:
            with self.part(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def describe(self) -> str:
        """Return the parts, and begin again: `images 3.1, features 9.0, linear 0.8`."""
        text = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.seconds.items() if seconds >= _SHORTEST_S)
        self.seconds.clear()
        return text

    def _credit(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now
