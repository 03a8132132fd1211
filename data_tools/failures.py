"""Tasks that fail are named at once and the others go on, until too many have failed."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pipeline.errors import DataError

Task = TypeVar("Task")
MAX_FAILURES = 10
SHOWN_FAILURES = 5


class WorkerKilledError(DataError):
    """A worker process ended without a message: a library crashed, or the system killed it.

    Attributes:
        tasks: the tasks in work; more than one if several workers were killed.
    """

    def __init__(self, message: str, tasks: Sequence[Any]) -> None:
        super().__init__(message)
        self.tasks = tasks


@dataclass
class Failures(Generic[Task]):
    """Collects the tasks that have failed, and names each at once."""

    description: str
    unit: str
    name_task: Callable[[Task], str]
    num_tasks: int
    max_failures: int
    errors: list[tuple[Task, DataError]] = field(default_factory=list)

    def add(self, task: Task, error: DataError) -> None:
        """Note a failure.

        Raises:
            DataError: there are too many.
        """
        self.errors.append((task, error))
        if self.num_tasks > 1:
            print(f"\n{self.description}: {self.name_task(task)} failed: {error}", file=sys.stderr, flush=True)
        if len(self.errors) > self.max_failures:
            raise self._as_error(is_over=False) from error

    def end(self) -> None:
        """Raise one error for all failures, if there are any.

        Raises:
            DataError: some tasks have failed.
        """
        if self.errors:
            raise self._as_error(is_over=True)

    def describe(self) -> str:
        """Return their number for the progress display; empty if there are none."""
        return f"{len(self.errors)} failed" if self.errors else ""

    def _as_error(self, *, is_over: bool) -> DataError:
        """Return one error for all. That of a single task is the error itself."""
        first = self.errors[0][1]
        if len(self.errors) == 1:
            return first
        kinds = Counter(" ".join(str(error).split()) for _, error in self.errors)
        several = {reason: f" ({count} times)" if count > 1 else "" for reason, count in kinds.most_common(SHOWN_FAILURES)}
        shown = "; ".join(f"{reason}{times}" for reason, times in several.items())
        more = f"; and {len(kinds) - SHOWN_FAILURES} other reasons" if len(kinds) > SHOWN_FAILURES else ""
        rest = (
            "the others are finished, and the same command tries these again"
            if is_over
            else "that is more than --max-failures, so the work stops; what is finished is kept, and the same command resumes"
        )
        message = f"{self.description}: {len(self.errors)} of {self.num_tasks} {self.unit}s failed; {rest}. {shown}{more}"
        killed = [error for _, error in self.errors if isinstance(error, WorkerKilledError)]
        if len(killed) == len(self.errors):
            return WorkerKilledError(message, [task for error in killed for task in error.tasks])
        return DataError(message)
