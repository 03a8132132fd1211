"""Work in this process: starting others takes longer than the work of most tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from data_tools.parallel import Pool, Workers

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass
class WorkersHere(Workers):
    """Calls functions one by one. Tasks are pickled nowhere; tests with real workers cover that.

    Attributes:
        before: called with the description of each round of work.
        num_left: tasks until the command is interrupted.
        seen: descriptions and names of the tasks that were given.
    """

    before: Callable[[str], None] = lambda description: None
    num_left: float = math.inf
    seen: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return 1

    @contextmanager
    def open_pool(self, function: Callable[[Task], Result], *, description: str) -> Iterator[Pool[Task, Result]]:
        self.before(description)
        yield _PoolHere(function, self, description)


class _PoolHere(Generic[Task, Result]):
    def __init__(self, function: Callable[[Task], Result], workers: WorkersHere, description: str) -> None:
        self._function, self._workers, self._description = function, workers, description
        self._waiting: list[Task] = []

    @property
    def num_running(self) -> int:
        return len(self._waiting)

    def submit(self, task: Task, name: str) -> None:
        self._workers.seen.append(f"{self._description}: {name}")
        self._waiting.append(task)

    def finished(self) -> list[tuple[Task, Callable[[], Result]]]:
        if not self._workers.num_left:
            raise KeyboardInterrupt
        self._workers.num_left -= 1
        task = self._waiting.pop(0)
        return [(task, partial(self._function, task))]

    def describe(self) -> str:
        return ""
