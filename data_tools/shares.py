"""Do a share of some tasks, where other commands do the other shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Task = TypeVar("Task")


class ShareDone(Exception):  # noqa: N818  # no error
    """This command's share of the work is done; the rest belongs to others."""


@dataclass(frozen=True)
class Share:
    """Says which tasks are this command's: of every `count`, that of this number.

    Attributes:
        number: from 0.
    """

    number: int
    count: int

    def of(self, tasks: Sequence[Task]) -> Sequence[Task]:
        """Return this share of some tasks, each made on its turn."""
        return _Picked(tasks, range(self.number, len(tasks), self.count))


class _Picked(Sequence[Task]):
    """Holds some of the items of a sequence, and takes each on its turn."""

    def __init__(self, items: Sequence[Task], numbers: range) -> None:
        self._items, self._numbers = items, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: Any) -> Any:
        return self._items[self._numbers[number]]
