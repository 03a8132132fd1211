"""Work on many shards in parallel. Each finished shard is remembered, so that a killed command resumes where it stopped."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

from pipeline.console.progress import progress
from pipeline.errors import DataError
from pipeline.files import write_whole
from pipeline.json_text import parse_json

Task = TypeVar("Task")
Result = TypeVar("Result")


class WorkerKilledError(DataError):
    """A worker process ended without a message: a library crashed, or the system killed it.

    Attributes:
        tasks: the tasks in work; more than one if several workers were killed.
    """

    def __init__(self, message: str, tasks: Sequence[Any]) -> None:
        super().__init__(message)
        self.tasks = tasks


class Workers(ABC):
    """Calls functions on tasks in parallel: in processes of this machine, or on a cluster."""

    @property
    @abstractmethod
    def count(self) -> int:
        """Return how many tasks are worked on at once, as far as is known now."""

    @abstractmethod
    def map(
        self,
        function: Callable[[Task], Result],
        tasks: Sequence[Task],
        *,
        description: str,
        unit: str,
        name_task: Callable[[Task], str] = str,
    ) -> Iterator[tuple[Task, Result]]:
        """Yield (task, function(task)) as they finish, with a progress bar. At most two tasks a worker wait at a time.

        A function may be called twice on a task, where a machine is lost: its effects are whole files, the same each time.

        Args:
            name_task: what to call a task in messages.

        Raises:
            WorkerKilledError: naming what it was at work on; and whatever `function` raises.
        """


@dataclass(frozen=True)
class LocalWorkers(Workers):
    """Holds a number of processes of this machine."""

    num_processes: int

    @property
    def count(self) -> int:
        return self.num_processes

    def map(
        self,
        function: Callable[[Task], Result],
        tasks: Sequence[Task],
        *,
        description: str,
        unit: str,
        name_task: Callable[[Task], str] = str,
    ) -> Iterator[tuple[Task, Result]]:
        context = multiprocessing.get_context("spawn")
        todo = iter(enumerate(tasks))
        running: dict[Future[Result], Task] = {}
        workers: dict[int, BaseProcess] = {}
        with (
            tempfile.TemporaryDirectory(prefix="data-tools-") as notes,
            progress(total=len(tasks), description=description, unit=unit) as bar,
            ProcessPoolExecutor(max(1, min(self.num_processes, len(tasks))), mp_context=context) as pool,
        ):
            try:
                while True:
                    for number, task in todo:
                        running[pool.submit(_call_noted, notes, number, function, task)] = task
                        workers |= {child.pid: child for child in multiprocessing.active_children() if child.pid is not None}
                        if len(running) >= 2 * self.num_processes:
                            break
                    if not running:
                        return
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        task = running.pop(future)
                        result = future.result()
                        bar.update()
                        yield task, result
            except BrokenProcessPool as error:
                pool.shutdown(wait=True)  # the other workers are ended by SIGTERM; how the first one died is then known
                killed = [child for child in workers.values() if child.exitcode not in (None, 0, -signal.SIGTERM)]
                at_work = [tasks[number] for child in killed if (number := _read_note(notes, child.pid)) is not None]
                raise WorkerKilledError(
                    _describe_death(description, killed, [name_task(task) for task in at_work]), at_work
                ) from error
            finally:
                pool.shutdown(wait=True, cancel_futures=True)  # the workers write their notes below `notes`, which is removed next


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
