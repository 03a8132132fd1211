"""Work on many machines: tasks go to the workers of a Dask scheduler, wherever these run.

The scheduler and its workers are started by whoever runs the cluster (`dask scheduler`, `dask worker`; docs/data-tools.md). The
same functions run there as in processes of one machine, so results are the same. A worker that is lost costs the tasks that it
had: Dask gives them to another.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import pipeline
from data_tools.failures import MAX_FAILURES, WorkerKilledError
from data_tools.parallel import Pool, Workers
from pipeline.data.shards.folder import ShardFolder, is_remote
from pipeline.errors import DataError

HOW_TO_INSTALL = "pip install '.[cluster]'"
Task = TypeVar("Task")
Result = TypeVar("Result")
ANSWER_S = 30.0  # for a scheduler to answer
LOOK_S = 10.0  # between two looks at the cluster while nothing finishes


@dataclass
class ClusterWorkers(Workers):
    """Holds the connection to a scheduler.

    Args:
        client: of `distributed`.
    """

    client: Any

    @property
    def count(self) -> int:
        return max(1, sum(self.client.ncores().values()))

    @contextmanager
    def open_pool(self, function: Callable[[Task], Result], *, description: str) -> Iterator[Pool[Task, Result]]:
        from distributed.comm.core import CommClosedError

        pool = _ClusterPool(self.client, function, description=description)
        try:
            yield pool
        except (CancelledError, OSError, CommClosedError) as error:
            if isinstance(error, OSError) and self.client.status == "running":
                raise  # the function's own: a disk that is full
            raise DataError(
                f"{description}: the scheduler has ended or cannot be reached ({type(error).__name__}: {error}). What is "
                "finished is kept; the same command resumes when it runs again"
            ) from error
        finally:
            pool.end()


class _ClusterPool(Generic[Task, Result]):
    """Runs tasks on a cluster's workers. Dask gives a task whose worker was lost to another, three times."""

    def __init__(self, client: Any, function: Callable[[Task], Result], *, description: str) -> None:
        self._client, self._function, self._description = client, function, description
        self._here = os.getcwd()  # of relative paths
        self._running: dict[Any, tuple[Task, str]] = {}
        self._seen: set[str] = set()  # workers
        self._is_wait_said = False

    @property
    def num_running(self) -> int:
        return len(self._running)

    def submit(self, task: Task, name: str) -> None:
        self._running[self._client.submit(call_at, self._here, self._function, task, pure=False)] = (task, name)

    def finished(self) -> list[tuple[Task, Callable[[], Result]]]:
        """Return futures that are done, once there are any. A cluster without workers is waited for, and said."""
        import distributed

        while True:
            try:
                found: Any = distributed.wait(list(self._running), timeout=LOOK_S, return_when="FIRST_COMPLETED")
            except TimeoutError:
                if not self._client.ncores() and not self._is_wait_said:
                    print(f"{self._description}: the cluster has no workers now; waiting for them{say_queue()}", flush=True)
                    self._is_wait_said = True
            else:
                return [(self._running[future][0], partial(self._result, future)) for future in found.done]

    def describe(self) -> str:
        here = set(self._client.ncores())
        self._seen |= here
        lost = len(self._seen - here)
        return f"{len(here)} workers{f', {lost} lost' if lost else ''}"

    def end(self) -> None:
        """Have unfinished tasks dropped."""
        if self._running and self._client.status == "running":
            self._client.cancel(list(self._running), force=True)

    def _result(self, future: Any) -> Result:
        """Return the result of a finished task, and drop it.

        Raises:
            WorkerKilledError: every worker that was at work on it was killed; and whatever the function raised.
        """
        from distributed import KilledWorker

        task, name = self._running.pop(future)
        try:
            return future.result()
        except KilledWorker as error:
            host = getattr(error.last_worker, "host", None) or str(error.last_worker)
            raise WorkerKilledError(
                f"{self._description}: every worker that was at work on {name} was killed, the last one on {host}: for lack of "
                "memory, or a library crashed. What is finished is kept; the same command resumes from there",
                [task],
            ) from error
        finally:
            future.release()


def call_at(folder: str, function: Callable[[Task], Result], task: Task) -> Result:
    """Call a function in a folder, below which its relative paths are."""
    os.chdir(folder)
    return function(task)


@contextmanager
def open_cluster(
    address: str, *, folders: Sequence[str], wait_s: float, max_failures: int = MAX_FAILURES
) -> Iterator[ClusterWorkers]:
    """Connect to a scheduler, and check on every worker that it can do the work.

    Args:
        address: `tcp://HOST:8786`, or the scheduler's file (`dask scheduler --scheduler-file FILE`).
        folders: local folders that workers have to see.
        wait_s: for the first worker to come.

    Raises:
        DataError: the library is missing, nobody answers, no worker comes, or one of them cannot do the work.
    """
    where: dict[str, Any] = (
        {"address": address} if "://" in address else {"scheduler_file": _await_file(address, wait_s=wait_s)}
    )
    advice = "start some with `dask worker --scheduler-file FILE --nthreads 1`"
    with connect(where, name=address, advice=advice, folders=folders, wait_s=wait_s, max_failures=max_failures) as workers:
        yield workers


@contextmanager
def connect(
    where: Mapping[str, Any], *, name: str, advice: str, folders: Sequence[str], wait_s: float, max_failures: int
) -> Iterator[ClusterWorkers]:
    """Do the same for a scheduler that is given as the arguments of `distributed.Client`.

    Args:
        name: the scheduler's name in messages.
        advice: what to do if no worker comes.

    Raises:
        DataError: as `open_cluster`.
    """
    try:
        import distributed
    except ImportError as error:
        raise DataError(f"--cluster needs distributed, which is not installed ({error}): {HOW_TO_INSTALL}") from error
    try:
        client: Any = distributed.Client(**where, timeout=ANSWER_S)
    except (OSError, TimeoutError, ValueError) as error:
        raise DataError(
            f"no scheduler answers at {name} ({type(error).__name__}: {' '.join(str(error).split())[:200]}); start one with "
            "`dask scheduler --scheduler-file FILE`, and give its address or that file"
        ) from error
    try:
        _await_workers(client, wait_s=wait_s, advice=advice)
        _check_versions(client)
        _check_workers(client, [os.getcwd(), *(folder for folder in folders if not is_remote(folder))])
        _check_stores(client, [folder for folder in folders if is_remote(folder)])
        workers = ClusterWorkers(client, max_failures=max_failures)
        print(
            f"[cluster] {len(client.ncores())} workers with {workers.count} tasks at once; {client.dashboard_link}", flush=True
        )
        yield workers
    finally:
        client.close()


def _await_file(path: str, *, wait_s: float) -> str:
    """Wait until a scheduler that starts has written its file.

    Raises:
        DataError: it has not.
    """
    end = time.monotonic() + wait_s
    while not Path(path).is_file():
        if time.monotonic() > end:
            raise DataError(
                f"--cluster {path}: no such file after {wait_s:.0f} s (--wait){say_queue()}; `dask scheduler --scheduler-file` "
                "writes it; or give an address, tcp://HOST:8786"
            )
        time.sleep(0.2)
    return path


def _await_workers(client: Any, *, wait_s: float, advice: str) -> None:
    try:
        client.wait_for_workers(1, timeout=wait_s)
    except TimeoutError as error:
        raise DataError(
            f"no worker has come to {client.scheduler.address} within {wait_s:.0f} s (--wait){say_queue()}; {advice}"
        ) from error


def say_queue() -> str:
    """Return what Slurm says of this user's jobs, where there is a Slurm."""
    if shutil.which("squeue") is None:
        return ""
    try:
        found = subprocess.run(
            ["squeue", "--me", "--noheader", "--format=%i %j %T %r"],
            text=True,
            capture_output=True,
            timeout=ANSWER_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    jobs = "; ".join(found.stdout.split("\n")[:4]).strip("; ")
    return f"; squeue says: {jobs}" if jobs else "; squeue has no jobs of yours"


def _check_versions(client: Any) -> None:
    """Refuse workers and a scheduler that run other versions.

    Raises:
        DataError: naming the first of them.
    """
    versions = client.get_versions()
    mine = _relevant(versions["client"])
    for who, found in {"the scheduler": versions["scheduler"], **versions["workers"]}.items():
        for name, theirs in _relevant(found).items():
            if theirs != mine[name]:
                raise DataError(f"{who} runs {name} {theirs}, and this command {mine[name]}: install the same there")


def _relevant(versions: Mapping[str, Any]) -> dict[str, str]:
    """Return the versions that have to be one."""
    packages = versions["packages"]
    python = ".".join(str(packages["python"]).split(".")[:2])
    return {"Python": python, **{name: str(packages.get(name)) for name in ("dask", "distributed")}}


def _check_workers(client: Any, folders: Sequence[str]) -> None:
    """Run a check on every worker: the same software, the same folders.

    Raises:
        DataError: naming the first host where something is missing.
    """
    marks = []
    try:
        for folder in folders:
            place = Path(folder).absolute()
            while not place.is_dir():
                place = place.parent
            mark = place / f".cluster-{uuid.uuid4().hex}"
            try:
                mark.touch(exist_ok=False)
            except OSError:  # a source that cannot be written: its name is enough
                mark = place
            else:
                marks.append(mark)
            problems = client.run(_what_is_missing, str(mark), pipeline.__version__)
            if missing := sorted(f"{host}: {problem}" for host, problem in problems.values() if problem):
                more = f" (and {len(missing) - 1} more workers)" if len(missing) > 1 else ""
                raise DataError(f"worker on {missing[0]}{more}")
    finally:
        for mark in marks:
            mark.unlink(missing_ok=True)


def _check_stores(client: Any, urls: Sequence[str]) -> None:
    """Ask every worker for something in the stores: credentials may be on this machine alone.

    Raises:
        DataError: naming the first host that is refused.
    """
    for url in urls:
        problems = client.run(_ask_store, url)
        if refused := sorted(f"{host}: {problem}" for host, problem in problems.values() if problem):
            more = f" (and {len(refused) - 1} more workers)" if len(refused) > 1 else ""
            raise DataError(f"worker on {refused[0]}{more}")


def _ask_store(url: str) -> tuple[str, str | None]:
    """Return this worker's host, and why it cannot use a store."""
    host = socket.gethostname()
    try:
        folder = ShardFolder(url)
        with suppress(FileNotFoundError):  # it is still to be written
            folder.filesystem.info(folder.root)
    except Exception as error:  # of whatever library reads this store
        return host, f"{url} cannot be reached from there ({type(error).__name__}: {error}); are its credentials on the nodes?"
    return host, None


def _what_is_missing(path: str, version: str) -> tuple[str, str | None]:
    """Return this worker's host, and what it lacks."""
    import pipeline as own

    host = socket.gethostname()
    if own.__version__ != version:
        return host, f"runs version {own.__version__} of this software, the command {version}"
    if not Path(path).exists():
        return host, f"does not see {Path(path).parent}: workers and command need a common file system"
    return host, None
