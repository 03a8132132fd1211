"""Describe the Slurm job that a process belongs to, from the environment or from a file's values."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.launch.variables import Environment, count_or_zero


@dataclass(frozen=True)
class SlurmJob:
    """Describes a Slurm job, as its processes know it."""

    id: str
    restart: int  # number of earlier requeues; 0 where nothing says
    cluster: str | None

    @staticmethod
    def from_environment(environment: Environment | None = None) -> SlurmJob | None:
        """Return the job that this process belongs to, if any."""
        env = os.environ if environment is None else environment
        job = env.get("SLURM_JOB_ID") or env.get("SLURM_JOBID")
        if not job:
            return None
        return SlurmJob(job, restart=count_or_zero(env.get("SLURM_RESTART_COUNT")), cluster=env.get("SLURM_CLUSTER_NAME"))

    @staticmethod
    def described_by(values: Mapping[str, Any]) -> SlurmJob | None:
        """Return the job that a file's values describe."""
        job, cluster = values.get("slurm_job_id"), values.get("slurm_cluster")
        if not isinstance(job, str) or not job:
            return None
        restart = count_or_zero(values.get("slurm_restart"))
        return SlurmJob(job, restart=restart, cluster=cluster if isinstance(cluster, str) else None)

    def to_values(self) -> dict[str, str | None]:
        return {"slurm_job_id": self.id, "slurm_restart": str(self.restart), "slurm_cluster": self.cluster}

    def is_later_start_of(self, other: SlurmJob) -> bool:
        """Return whether Slurm has requeued the job since `other`."""
        # Slurm counts from 1, and says nothing before. Without a count (srun into a running job) this is not a later start.
        return self.is_same_job_as(other) and other.restart < self.restart

    def is_same_job_as(self, other: SlurmJob) -> bool:
        return self.id == other.id and not self.is_of_another_cluster_than(other)

    def is_of_another_cluster_than(self, other: SlurmJob) -> bool:
        return None not in (self.cluster, other.cluster) and self.cluster != other.cluster
