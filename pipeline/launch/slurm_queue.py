"""Ask Slurm's controller about a job. This module imports nothing heavy. A missing or unreadable answer counts as none."""

from __future__ import annotations

import shutil
import subprocess
from typing import Literal

JobLife = Literal["alive", "over", "unknown"]
ANSWER_TIMEOUT_S = 15.0
# See squeue(1). In these states processes of the job may run, or are being ended.
ALIVE = {
    "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "CONFIGURING", "RESIZING", "PREEMPTED",
    "REQUEUED",
}  # fmt: skip
OVER = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT", "PENDING",
    "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT",
}  # fmt: skip


def ask_after_job(job_id: str) -> JobLife:
    """Return whether processes of a job may still run.

    A job that the controller does not know is "unknown", not over: it may belong to another cluster, and a controller that has
    lost its state knows no job at all.
    """
    if shutil.which("squeue") is None:
        return "unknown"
    command = ["squeue", "--noheader", "--states=all", f"--jobs={job_id}", "--format=%A %T"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=ANSWER_TIMEOUT_S)
    except (subprocess.TimeoutExpired, OSError):
        return "unknown"
    return "unknown" if asked.returncode != 0 else read_answer(asked.stdout, job_id=job_id)


def read_answer(text: str, *, job_id: str) -> JobLife:
    """Return the life of one job from lines of `job state`. Other jobs' lines (an array's tasks) are passed over."""
    states = {words[1] for line in text.splitlines() if len(words := line.split()) == 2 and words[0] == job_id}
    if states & ALIVE:
        return "alive"
    return "over" if states and states <= OVER else "unknown"
