"""Handle jobs of the tests' cluster: submit, inspect, stop in mid-step, wait for."""

from __future__ import annotations

import os
import re
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.run.checkpoint import RunFolder
from pipeline.run.records import read_json_lines
from tests.conftest import REPOSITORY, environment
from tests.slurm.cluster import Cluster
from tests.slurm.site import TINY

WAIT_S = 120
CREDENTIALS_S = 3  # a job that starts again in the second in which it was requeued is refused: "Job credential revoked"


@dataclass(frozen=True)
class Job:
    """Describes a submitted job and the run it makes."""

    cluster: Cluster
    id: str
    log: Path
    folder: RunFolder

    def show(self, name: str) -> str:
        """Return one field of `scontrol show job`."""
        text = self.cluster.run("scontrol", "show", "job", "--oneliner", self.id)
        found = re.search(rf"(?:^| ){name}=(.*?)(?= \S+=|$)", text, re.MULTILINE)
        assert found, text
        return found.group(1)

    @property
    def state(self) -> str:
        return self.show("JobState")

    @property
    def text(self) -> str:
        """Return what it has printed so far, over all its restarts."""
        return self.log.read_text() if self.log.exists() else ""

    def wait(self, condition: Callable[[], bool], what: str, *, timeout_s: float = WAIT_S) -> float:
        """Wait until the condition holds. Return the seconds."""
        begin = time.monotonic()
        while not condition():
            waited = time.monotonic() - begin
            assert waited < timeout_s, f"job {self.id} is {self.state}, not {what}, after {waited:.0f} s"
            time.sleep(0.02)
        return time.monotonic() - begin

    def wait_for_state(self, *states: str, timeout_s: float = WAIT_S) -> float:
        return self.wait(lambda: self.state in states, "/".join(states), timeout_s=timeout_s)

    def wait_for_end(self) -> str:
        """Return its exit code, as `code:signal`."""
        self.wait_for_state("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        return self.show("ExitCode")

    def start_now(self) -> None:
        """Start a requeued job, which rests for two minutes unless Slurm itself requeued it after a node's failure."""
        self.wait(lambda: self.show("Reason") == "BeginTime" or self.state == "RUNNING", "resting")
        if self.state != "RUNNING":
            time.sleep(CREDENTIALS_S)
            self.cluster.run("scontrol", "update", f"jobid={self.id}", "StartTime=now")

    def ranks(self, command: str = "train") -> list[int]:
        """Return process ids of its ranks, or of another command of the pipeline, as this machine numbers them."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                arguments = (path / "cmdline").read_bytes().split(b"\0")
                if (
                    command.encode() in arguments
                    and b"pipeline" in arguments
                    and f"SLURM_JOB_ID={self.id}\0".encode() in (path / "environ").read_bytes()
                ):
                    found.append((path / "comm").read_text().strip().startswith("python") and int(path.name))
            except OSError:
                continue
        return sorted(pid for pid in found if pid)

    def stop_in_step(self, step: int, *, num_ranks: int) -> list[int]:
        """Halt all ranks (SIGSTOP) once `step` is logged, so that the next event is in mid-run, however fast the steps are."""
        self.wait(lambda: len(self.ranks()) == num_ranks, f"{num_ranks} ranks")
        pids = self.ranks()
        self.wait(lambda: any(row["step"] >= step for row in read_json_lines(self.folder.metrics)), f"at step {step}")
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        assert not self.folder.complete.exists()
        return pids


@dataclass(frozen=True)
class Desk:
    """Submits the tests' jobs, with a cluster, a site file and a folder for logs and runs."""

    cluster: Cluster
    site: Path

    def submit(
        self,
        name: str,
        *overrides: str,
        nodes: int = 2,
        tasks: int = 1,
        options: tuple[str, ...] = (),
        tiny: tuple[str, ...] = TINY,
        script: str = "slurm/pretrain_l16.sh",
        **extra: str,
    ) -> Job:
        """Submit one of the project's job scripts with sbatch."""
        folder = self.site.parent
        shape = (f"--nodes={nodes}", f"--ntasks-per-node={tasks}", f"--output={folder}/%j.log")
        env = {"SITE_ENV": str(self.site), **environment(), **self.cluster.environment, **extra}
        job = self.cluster.run(
            "sbatch", "--parsable", f"--job-name={name}", *shape, *options, script, *tiny, *overrides, **env
        ).strip()
        return Job(self.cluster, job, folder / f"{job}.log", RunFolder(folder / "runs" / name))

    def set_site(self, *lines: str) -> None:
        """Replace settings of the site file."""
        with self.site.open("a") as site:
            site.write("".join(f"{line}\n" for line in lines))

    def evaluate_on(self, downstream: dict[str, str]) -> None:
        """Have trainings submit an evaluator, which may be preempted without grace time."""
        sets = f"[{{name: bars, train: {downstream['train']}, test: {downstream['test']}}}]"
        self.set_site(f"SITE_EVAL_SETS={shlex.quote(sets)}", "SITE_EVAL_PARTITION=scavenge")

    @contextmanager
    def evaluator_of(self, training: Job) -> Iterator[Job]:
        """Return the job that a training has submitted. Its logs, which the script places, are deleted in the end."""
        name, logs = f"{training.folder.root.name}-eval", REPOSITORY / "slurm" / "logs"
        try:
            # Slurm still lists the evaluators of earlier trainings of this name.
            training.wait(lambda: any(int(job) > int(training.id) for job in self._jobs_named(name)), "with evaluator")
            job = self.job_named(name)
            yield replace(job, log=logs / f"{job.id}.log", folder=training.folder)
        finally:
            for log in (logs / f"{name}.log", (logs / f"{name}.log").resolve()):
                log.unlink(missing_ok=True)

    def urgent_job(self) -> Job:
        """Submit a job that takes all nodes, at once, for a moment."""
        folder = self.site.parent
        shape = (
            f"--nodes={self.cluster.num_nodes}",
            "--gpus-per-node=8",
            "--partition=urgent",
            f"--output={folder}/urgent-%j.log",
        )
        job = self.cluster.run("sbatch", "--parsable", *shape, "--wrap=sleep 1").strip()
        return Job(self.cluster, job, folder / f"urgent-{job}.log", RunFolder(folder))

    def job_named(self, name: str) -> Job:
        """Return the newest job of that name, for jobs that jobs submit."""
        listing = self._jobs_named(name)
        assert listing, f"no job is called {name}"
        job = max(listing, key=int)
        return Job(self.cluster, job, self.site.parent / f"{job}.log", RunFolder(self.site.parent / "runs" / name))

    def _jobs_named(self, name: str) -> list[str]:
        return self.cluster.run("squeue", "--noheader", "--states=all", f"--name={name}", "--format=%i").split()
