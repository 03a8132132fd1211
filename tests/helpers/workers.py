"""Work in this process: starting others takes longer than the work of most tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from data_tools.parallel import Workers

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass
class WorkersHere(Workers):
    """Calls functions one by one. Tasks are pickled nowhere; tests with real workers cover that.

    Attributes:
        before: called with the description of each round of work.
    """

    before: Callable[[str], None] = lambda description: None
    seen: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return 1

    def map(
        self,
        function: Callable[[Task], Result],
        tasks: Sequence[Task],
        *,
        description: str,
        unit: str,
        name_task: Callable[[Task], str] = str,
    ) -> Iterator[tuple[Task, Result]]:
        self.before(description)
        self.seen += [f"{description}: {name_task(tasks[number])}" for number in range(len(tasks))]
        for number in range(len(tasks)):
            task = tasks[number]
            yield task, function(task)
