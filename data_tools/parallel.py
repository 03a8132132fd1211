"""Work on many tasks in parallel. Each finished shard is remembered, so that a killed command resumes where it stopped."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from data_tools.failures import MAX_FAILURES, Failures, WorkerKilledError
from data_tools.shares import Share, ShareDone
from pipeline.console.progress import progress
from pipeline.errors import DataError
from pipeline.files import write_whole
from pipeline.json_text import parse_json

Task = TypeVar("Task")
Result = TypeVar("Result")
AHEAD = 2  # tasks that a worker has: one in work, one waiting
DEFAULT_MEMORY_BYTES = 4 * 10**9  # that a worker may use, where the work is divided by it
MAX_DEATHS = 2  # of a task's worker, before the task is given up


class Pool(Protocol, Generic[Task, Result]):
    """Runs one function on tasks, for the time of a `with`."""

    @property
    def num_running(self) -> int:
        """Return how many tasks have been given and are not finished."""
        ...

    def submit(self, task: Task, name: str) -> None:
        """Give a task to the workers."""

    def finished(self) -> list[tuple[Task, Callable[[], Result]]]:
        """Return tasks that have finished, once there are any, each with a function that returns or raises its result."""
        ...

    def describe(self) -> str:
        """Return the workers' state for the progress display; empty if there is nothing to say."""
        ...


@dataclass
class Workers(ABC):
    """Calls functions on tasks in parallel: in processes of this machine, or on a cluster.

    Attributes:
        max_failures: the work goes on while at most so many tasks have failed.
        share: the part of the tasks whose results are kept that this command does; it then ends. None for all.
    """

    max_failures: int = field(default=MAX_FAILURES, kw_only=True)
    share: Share | None = field(default=None, kw_only=True)

    def lock_name(self, name: str) -> str:
        """Return the name of the lock that this command needs: shares work in one folder at the same time."""
        return name if self.share is None else f"{name}.{self.share.number}-of-{self.share.count}"

    @property
    @abstractmethod
    def count(self) -> int:
        """Return how many tasks are worked on at once, as far as is known now."""

    @abstractmethod
    def open_pool(self, function: Callable[[Task], Result], *, description: str) -> AbstractContextManager[Pool[Task, Result]]:
        """Make ready for the tasks of one function."""

    def map(
        self,
        function: Callable[[Task], Result],
        tasks: Sequence[Task],
        *,
        description: str,
        unit: str,
        name_task: Callable[[Task], str] = str,
        count_images: Callable[[Task, Result], int] | None = None,
        are_kept: bool = False,
    ) -> Iterator[tuple[Task, Result]]:
        """Yield (task, function(task)) as they finish, with a progress bar. At most two tasks a worker wait at a time.

        A function may be called twice on a task, where a worker is lost: its effects are whole files, the same each time.
        A task that fails (`DataError`) is named at once, and the others go on, until more than `max_failures` have failed.
        Anything else that a function raises ends the work.

        Args:
            name_task: what to call a task in messages.
            count_images: how many images a finished task had, for the progress display.
            are_kept: whether results are kept where other commands find them, so that each may do a share.

        Raises:
            DataError: tasks have failed; `WorkerKilledError` if they have killed their workers.
            ShareDone: this command's share of kept results is done.
        """
        share = self.share if are_kept else None
        tasks = tasks if share is None else share.of(tasks)
        todo, rate = iter(tasks), _Rate()
        failures = Failures[Task](description, unit, name_task, len(tasks), self.max_failures)
        with (
            progress(total=len(tasks), description=description, unit=unit) as bar,
            self.open_pool(function, description=description) as pool,
        ):
            while self._fill(pool, todo, name_task):
                for task, result_of in pool.finished():
                    try:
                        result = result_of()
                    except DataError as error:
                        failures.add(task, error)
                        continue
                    rate.add(0 if count_images is None else count_images(task, result))
                    bar.set_postfix_str(_join(rate, pool, failures), refresh=False)
                    bar.update()
                    yield task, result
        failures.end()
        if share is not None:
            raise ShareDone(f"{description}: this share's {len(tasks)} {unit}s are done")

    def _fill(self, pool: Pool[Task, Any], todo: Iterator[Task], name_task: Callable[[Task], str]) -> bool:
        """Give the workers their next tasks. Return whether they have any."""
        for task in islice(todo, max(0, AHEAD * self.count - pool.num_running)):
            pool.submit(task, name_task(task))
        return bool(pool.num_running)


@dataclass
class _Rate:
    """Counts images."""

    num_images: int = 0
    start: float = field(default_factory=time.monotonic)

    def add(self, num_images: int) -> None:
        self.num_images += num_images

    def describe(self) -> str:
        seconds = time.monotonic() - self.start
        return f"{self.num_images} images, {self.num_images / seconds:.0f} a second" if self.num_images and seconds > 0 else ""


class _Describes(Protocol):
    def describe(self) -> str: ...


def _join(*parts: _Describes) -> str:
    return ", ".join(text for part in parts if (text := part.describe()))


@dataclass
class LocalWorkers(Workers):
    """Holds a number of processes of this machine."""

    num_processes: int

    @property
    def count(self) -> int:
        return max(1, self.num_processes)

    @contextmanager
    def open_pool(self, function: Callable[[Task], Result], *, description: str) -> Iterator[Pool[Task, Result]]:
        with tempfile.TemporaryDirectory(prefix="data-tools-") as notes:
            pool = _LocalPool(function, num_processes=self.count, description=description, notes=notes)
            try:
                yield pool
            finally:
                pool.end()  # the processes write into `notes`, which is removed next


@dataclass(frozen=True)
class _Given(Generic[Task]):
    """A task in work."""

    number: int
    task: Task
    name: str


class _LocalPool(Generic[Task, Result]):
    """Runs tasks in processes. Where one is killed, all are started again, and are given the tasks that were in work."""

    def __init__(self, function: Callable[[Task], Result], *, num_processes: int, description: str, notes: str) -> None:
        self._function, self._num_processes, self._description, self._notes = function, num_processes, description, notes
        self._executor: ProcessPoolExecutor | None = None
        self._processes: dict[int, BaseProcess] = {}
        self._running: dict[Future[Result], _Given[Task]] = {}
        self._deaths: Counter[int] = Counter()
        self._num_unexplained = 0  # deaths in a row of which no task is suspected
        self._next = 0

    @property
    def num_running(self) -> int:
        return len(self._running)

    def submit(self, task: Task, name: str) -> None:
        self._submit(_Given(self._next, task, name))
        self._next += 1

    def finished(self) -> list[tuple[Task, Callable[[], Result]]]:
        finished: list[tuple[Task, Callable[[], Result]]] = []
        while not finished:
            done = wait(self._running, return_when=FIRST_COMPLETED).done
            broken = {future for future in done if isinstance(future.exception(), BrokenProcessPool)}
            finished = [(self._running.pop(future).task, future.result) for future in done - broken]
            if broken:
                finished += self._start_again()
        return finished

    def describe(self) -> str:
        num_deaths = self._deaths.total()
        return f"{num_deaths} {'worker was' if num_deaths == 1 else 'workers were'} killed" if num_deaths else ""

    def end(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def _submit(self, given: _Given[Task]) -> None:
        if self._executor is None:
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self._num_processes, mp_context=context)
        try:
            future = self._executor.submit(_call_noted, self._notes, given.number, self._function, given.task)
        except BrokenProcessPool as error:  # a process was killed while it had nothing to do
            future = Future()
            future.set_exception(error)
        self._running[future] = given
        self._processes |= {child.pid: child for child in multiprocessing.active_children() if child.pid is not None}

    def _start_again(self) -> list[tuple[Task, Callable[[], Result]]]:
        """Start new processes, and give them what was in work. Return the tasks that have killed too many of the old ones.

        Raises:
            WorkerKilledError: it is not known which task did it, and it happens again and again.
        """
        self.end()  # the other processes are ended by SIGTERM; how the first one died is then known
        killed = [child for child in self._processes.values() if child.exitcode not in (None, 0, -signal.SIGTERM)]
        at_work = {number for child in killed if (number := _read_note(self._notes, child.pid)) is not None}
        given = sorted(self._running.values(), key=lambda one: one.number)
        self._running, self._processes, self._executor = {}, {}, None
        for path in Path(self._notes).iterdir():
            path.unlink()
        self._num_unexplained = 0 if at_work else self._num_unexplained + 1
        if self._num_unexplained > MAX_DEATHS:
            raise WorkerKilledError(_describe_death(self._description, killed, []), [])
        self._deaths.update(at_work)
        given_up = [one for one in given if self._deaths[one.number] >= MAX_DEATHS]
        for one in given:
            if one not in given_up:
                self._submit(one)
        return [
            (one.task, _raising(WorkerKilledError(_describe_death(self._description, killed, [one.name]), [one.task])))
            for one in given_up
        ]


def _raising(error: Exception) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


def _call_noted(notes: str, number: int, function: Callable[[Task], Result], task: Task) -> Result:
    """Leave a note of this process's current task: a killed process can no longer report it."""
    Path(notes, str(os.getpid())).write_text(str(number))
    return function(task)


def _read_note(notes: str, pid: int | None) -> int | None:
    path = Path(notes, str(pid))
    return int(path.read_text()) if path.exists() else None


def _describe_death(description: str, killed: Sequence[BaseProcess], names: Sequence[str]) -> str:
    codes = {child.exitcode or 0 for child in killed}
    causes = ", ".join(sorted(signal.Signals(-code).name if code < 0 else f"exit code {code}" for code in codes))
    advice = (
        "most likely for lack of memory: try fewer --workers"
        if codes <= {-signal.SIGKILL}
        else "a library crashed: the same will happen there again"
    )
    at_work = f" while at work on {' and '.join(names)}" if names else ""
    return (
        f"{description}: a worker process was killed ({causes or 'unknown cause'}){at_work}, {advice}. "
        f"What is finished is kept; the same command resumes from there"
    )


def remember(
    function: Callable[[], dict[str, Any]],
    *,
    path: Path,
    facts: Sequence[object],
    is_final: Callable[[dict[str, Any]], bool] = lambda _: True,
) -> dict[str, Any]:
    """Return the result of an earlier call with the same facts, kept at `path` (JSON), or else that of calling now.

    Args:
        facts: everything the result depends on, for example a shard's size and the options.
        is_final: whether a result is to be kept; one that may be another the next time is not.
    """
    key = hashlib.blake2b(repr(tuple(facts)).encode(), digest_size=16).hexdigest()
    try:
        stored = parse_json(path.read_text())
    except (FileNotFoundError, ValueError):  # never made, or written by another program
        stored = {}
    if isinstance(stored, dict) and stored.get("key") == key and isinstance(stored.get("result"), dict):
        return stored["result"]
    result = function()
    if is_final(result):
        write_json(path, {"key": key, "result": result})
    return result


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all.

    Raises:
        DataError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(value, indent=1) + "\n")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}") from error
