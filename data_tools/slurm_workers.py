"""Work on a Slurm cluster: the command runs a Dask scheduler, and submits workers as tasks of one job array.

Each array task is a job of its own, so that one that is preempted, or whose node is lost, is requeued by Slurm alone, while the
others work on. A task that has ended for good (it was cancelled) is submitted again. Connections are encrypted, and both sides
prove who they are: whoever reached a plain scheduler's port could run code as this user.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_tools.cluster import HOW_TO_INSTALL, ClusterWorkers, connect
from pipeline.errors import DataError

SCRIPTS = Path(__file__).parent.parent / "slurm"
SBATCH_S = 120.0  # for a controller that is busy
CREDENTIALS = ("ca.pem", "certificate.pem", "key.pem")  # in the workers' folder; slurm/common.sh has these names too
LOOK_S = 20.0  # between two looks at the queue
WORKER_TTL = "2 minutes"  # without a sign of life a worker is lost: a node without power closes no connection
MAX_SUBMISSIONS = 20  # of tasks that ended for good, a task asked for
WORK_NAME = ".workers"  # in a folder that all nodes see: credentials, logs


@dataclass(frozen=True)
class SlurmShape:
    """Says what to ask Slurm for.

    Attributes:
        nodes: tasks of the array, each on whatever node has room.
        cores: of a task; each is a worker.
        options: more options of sbatch.
    """

    nodes: int
    cores: int
    memory: str | None = None  # of a task, in Slurm's notation
    time: str | None = None  # in Slurm's notation
    options: tuple[str, ...] = ()


@dataclass
class _Array:
    """Keeps tasks of workers in the queue, until `end`.

    Args:
        environment: of sbatch.
    """

    shape: SlurmShape
    logs: Path
    environment: dict[str, str]
    _jobs: list[str] = field(default_factory=list)
    _num_left: int = 0
    _done: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Submit the tasks, and watch over them from a thread.

        Raises:
            DataError: sbatch refuses; the message has its words.
        """
        self._num_left = MAX_SUBMISSIONS * self.shape.nodes
        self._submit(self.shape.nodes)
        threading.Thread(target=self._watch, daemon=True, name="slurm-workers").start()

    def end(self) -> None:
        """Cancel them."""
        self._done.set()
        if self._jobs:
            subprocess.run(["scancel", "--quiet", *self._jobs], timeout=SBATCH_S, capture_output=True, check=False)

    def _submit(self, count: int) -> None:
        shape = self.shape
        wanted = [f"--mem={shape.memory}"] if shape.memory else []
        wanted += [f"--time={shape.time}"] if shape.time else []
        command = [
            str(SCRIPTS / "submit"), "workers.sh", "--parsable", f"--array=0-{count - 1}", f"--cpus-per-task={shape.cores}",
            f"--output={self.logs}/%A_%a.log", *wanted, *shape.options,
        ]  # fmt: skip
        try:
            result = subprocess.run(command, env=self.environment, text=True, capture_output=True, timeout=SBATCH_S)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DataError(f"--cluster slurm: sbatch does not answer ({type(error).__name__}: {error})") from error
        if result.returncode:
            said = " ".join(result.stderr.split()) or " ".join(result.stdout.split())
            raise DataError(f"--cluster slurm: sbatch refuses the workers: {said} ({' '.join(command[1:])})")
        self._jobs.append(result.stdout.strip().split(";")[0])
        self._num_left -= count

    def _watch(self) -> None:
        while not self._done.wait(LOOK_S):
            num_missing = min(self.shape.nodes - self._count(), self._num_left)
            if num_missing <= 0 or self._done.is_set():
                continue
            print(f"[cluster] {num_missing} worker jobs have ended; submitting as many", file=sys.stderr, flush=True)
            try:
                self._submit(num_missing)
            except DataError as error:
                print(f"[cluster] {error}", file=sys.stderr, flush=True)

    def _count(self) -> int:
        """Return how many tasks are in the queue; as many as wanted where it does not answer."""
        command = ["squeue", "--noheader", "--array", f"--jobs={','.join(self._jobs)}", "--format=%i"]  # those not over
        try:
            result = subprocess.run(command, env=self.environment, text=True, capture_output=True, timeout=SBATCH_S)
        except (OSError, subprocess.TimeoutExpired):
            return self.shape.nodes
        if result.returncode:
            # A queue that has forgotten all of them says "Invalid job id specified".
            return 0 if "nvalid job id" in result.stderr else self.shape.nodes
        return len(result.stdout.split())


@contextmanager
def open_slurm(
    shape: SlurmShape,
    *,
    work: Path,
    folders: Sequence[str],
    wait_s: float,
    max_failures: int,
    interface: str | None,
) -> Iterator[ClusterWorkers]:
    """Start a scheduler in this process and workers as Slurm jobs, which are cancelled in the end.

    Args:
        work: a folder that all nodes see: credentials and logs go into a folder in it.
        folders: that all workers have to see.
        wait_s: for the first worker to come.
        interface: the network interface of the scheduler and the workers; Dask chooses if None.

    Raises:
        DataError: no sbatch, a library is missing, sbatch refuses, no worker comes, or one of them cannot do the work.
    """
    _check_slurm()
    place = _make_place(work)
    try:
        with _open_scheduler(interface) as (address, security):
            _write_credentials(place, security)
            array = _Array(shape, place, _environment(place, address, interface))
            array.start()
            try:
                print(f"[cluster] {shape.nodes} worker jobs of {shape.cores} cores are submitted; logs: {place}", flush=True)
                where = {"address": address, "security": security}
                advice = (
                    f"their logs are in {place}. Where jobs run and no worker comes, their nodes cannot reach this machine: "
                    "name a network that both have with --interface, or run the command in a job (slurm/prepare.sh)"
                )
                with connect(
                    where, name="slurm", advice=advice, folders=folders, wait_s=wait_s, max_failures=max_failures
                ) as workers:
                    yield workers
            finally:
                array.end()  # before the scheduler: workers that lose it would look for it
    except BaseException:
        for name in CREDENTIALS:
            (place / name).unlink(missing_ok=True)
        raise  # the logs may say why
    shutil.rmtree(place, ignore_errors=True)


def _check_slurm() -> None:
    if shutil.which("sbatch") is None:
        raise DataError("--cluster slurm: no sbatch on this machine; run it where jobs are submitted, or give --workers")
    if not (SCRIPTS / "workers.sh").is_file():
        raise DataError(f"--cluster slurm needs {SCRIPTS / 'workers.sh'}, which a clone of the project has: run it from there")


@contextmanager
def _open_scheduler(interface: str | None) -> Iterator[tuple[str, Any]]:
    """Run a scheduler in this process, with certificates of its own. Give its address and these.

    Raises:
        DataError: a library is missing.
    """
    try:
        import dask.config
        from distributed import Security, SpecCluster
        from distributed.scheduler import Scheduler
        from distributed.utils import get_ip

        security = Security.temporary()
    except ImportError as error:
        raise DataError(f"--cluster slurm needs distributed and cryptography ({error}): {HOW_TO_INSTALL}") from error
    options: dict[str, Any] = {"port": 0, "protocol": "tls://", "dashboard_address": ":0", "security": security}
    options |= {"interface": interface} if interface else {"host": get_ip()}
    setup: dict[str, Any] = {
        "scheduler": {"cls": Scheduler, "options": options},
        "workers": {},
        "security": security,
        "silence_logs": logging.CRITICAL,
    }
    with dask.config.set({"distributed.scheduler.worker-ttl": WORKER_TTL}), SpecCluster(**setup) as opened:
        cluster: Any = opened  # its types are those of its asynchronous use
        yield cluster.scheduler_address, security


def _make_place(work: Path) -> Path:
    try:
        work.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"{WORK_NAME}-", dir=work)).absolute()  # its owner alone can read it
    except OSError as error:
        raise DataError(f"--cluster slurm: {work} cannot be written ({error.strerror or error})") from error


def _write_credentials(place: Path, security: Any) -> None:
    contents = (security.tls_ca_file, security.tls_worker_cert, security.tls_worker_key)
    for name, content in zip(CREDENTIALS, contents, strict=True):
        path = place / name
        path.touch(mode=0o600)
        path.write_text(content)


def _environment(place: Path, address: str, interface: str | None) -> dict[str, str]:
    """Return the environment of the worker jobs. Of a job that this process itself runs in, they must inherit nothing."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name == "SLURM_CONF" or not name.startswith(("SLURM_", "SRUN_", "SBATCH_", "SLURMD_"))
    }
    return {
        **kept,
        "WORKERS_SCHEDULER": address,
        "WORKERS_PLACE": str(place),
        "WORKERS_INTERFACE": interface or "",
    }
