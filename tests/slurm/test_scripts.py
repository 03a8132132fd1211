"""Job scripts are clean, hand on what is typed, and end a job by how its training ended; without a cluster."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, environment
from tests.slurm.site import write_site

SCRIPTS = sorted((REPOSITORY / "slurm").glob("*.sh"))


def test_scripts_are_clean() -> None:
    shellcheck = Path(sys.executable).parent / "shellcheck"
    files = [*SCRIPTS, REPOSITORY / "slurm" / "submit", REPOSITORY / "slurm" / "site.env"]
    result = subprocess.run([shellcheck, "--external-sources", *files], cwd=REPOSITORY, text=True, capture_output=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("job", "pattern"),
    [
        ("l16_in21k", "l16_in21k"),
        ("a b/c; $(touch x)", r"a_b_c____touch_x_-\d+"),
        ("-é\n", r"run-__-\d+|run-___-\d+"),
        ("..", r"run\.\.-\d+"),
    ],
)
def test_any_job_name_gives_a_run_folder_of_its_own(job: str, pattern: str, tmp_path: Path) -> None:
    script = f"source slurm/common.sh; run_name {shlex.quote(job)}; echo; run_name {shlex.quote(job + '_')}"
    env = {"PIPELINE_HOME": str(REPOSITORY), "SITE_ENV": str(write_site(tmp_path))}
    result = subprocess.run(
        ["bash", "-c", script], cwd=REPOSITORY, env={**environment(), **env}, text=True, capture_output=True
    )
    name, other = result.stdout.split("\n")
    assert re.fullmatch(pattern, name), result.stdout + result.stderr
    assert name != other


def with_commands(folder: Path, **scripts: str) -> dict[str, str]:
    """Return an environment in which Slurm's commands are these scripts: it tests our reading of their answers, not Slurm."""
    for name, script in scripts.items():
        path = folder / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    return {**environment(), "PATH": path, "PIPELINE_HOME": str(REPOSITORY), "SITE_ENV": str(write_site(folder))}


SCRIPT = "slurm/pretrain_l16.sh"


SUBMITTED = {
    "pretrain_l16.sh --nodes=1": ["--nodes=1", SCRIPT],
    "pretrain_l16.sh": [SCRIPT],
    "pretrain_l16 -N 2 --exclusive -J x optimizer.learning_rate=5e-4": [
        "-N",
        "2",
        "--exclusive",
        "-J",
        "x",
        SCRIPT,
        "optimizer.learning_rate=5e-4",
    ],
    "configs/l16_in21k.yaml name=k --time 1:00 trainer.max_steps=3": [
        "--time",
        "1:00",
        SCRIPT,
        "name=k",
        "trainer.max_steps=3",
    ],
    "slurm/pretrain_l16.sh --nodes=8 -- a.b=c": ["--nodes=8", SCRIPT, "a.b=c"],
}


@pytest.mark.parametrize("line", SUBMITTED)
def test_what_is_typed_reaches_sbatch_with_a_separator_or_without(line: str, tmp_path: Path) -> None:
    env = with_commands(tmp_path, sbatch="printf '%s\\n' \"$@\"")
    result = subprocess.run(["slurm/submit", *line.split()], cwd=REPOSITORY, env=env, text=True, capture_output=True)
    assert result.stdout.splitlines() == SUBMITTED[line], result.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("pretrain_l16.sh -- --nodes=1", "--nodes=1 is neither an option of sbatch"),
        ("pretrain_l16.sh eight", "eight is neither an option of sbatch"),
        ("pretrain_x.sh", "no script pretrain_x.sh in slurm/; there are pretrain_h14.sh"),
        ("configs/demo.yaml", "no script of slurm/ trains configs/demo.yaml"),
    ],
)
def test_what_can_be_neither_is_not_ignored(line: str, message: str, tmp_path: Path) -> None:
    env = with_commands(tmp_path, sbatch="echo submitted")
    result = subprocess.run(["slurm/submit", *line.split()], cwd=REPOSITORY, env=env, text=True, capture_output=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr


def test_an_option_behind_the_script_ends_the_job_with_a_word(tmp_path: Path) -> None:
    """`sbatch slurm/pretrain_l16.sh --nodes=1` makes it the script's argument."""
    env = with_commands(tmp_path, srun="echo trained")
    result = subprocess.run(
        ["bash", SCRIPT, "--nodes=1"],
        cwd=REPOSITORY,
        env={**env, "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "x"},
        text=True,
        capture_output=True,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert "options of sbatch come before the script (sbatch --nodes=1 slurm/pretrain_...)" in result.stderr


@pytest.mark.parametrize(
    ("code", "state", "restarts", "requeued", "counted", "cancelled"),
    [
        (75, "RUNNING", 1, True, False, False),  # a time limit is near, or a preemption with grace time
        (143, "RUNNING", 1, True, False, False),  # the same, while Python was starting
        (138, "RUNNING", 1, True, False, False),
        (137, "RUNNING", 1, True, True, False),  # its own fault, or the kernel's
        (1, "RUNNING", 1, True, True, False),
        (137, "COMPLETING", 2, False, False, False),  # preempted, or a node has failed: Slurm has requeued it
        (143, "COMPLETING", 2, False, False, False),
        (75, "COMPLETING", 2, False, False, False),
        (137, "COMPLETING", 1, False, False, True),  # cancelled, or out of time
        (75, "COMPLETING", 1, False, False, True),
        (143, "COMPLETING", 1, False, False, True),
        (2, "RUNNING", 1, False, False, False),
        (75, "", 1, False, False, False),  # nobody answers
    ],
)  # fmt: skip
def test_what_follows_from_how_a_job_ended(
    code: int, state: str, restarts: int, requeued: bool, counted: bool, cancelled: bool, tmp_path: Path
) -> None:
    """Ranks that Slurm has ended have not failed; a training that is cancelled takes its waiting evaluator along."""
    shown = (
        f'echo "   JobState={state} Reason=None"; echo "   Requeue=1 Restarts={restarts} BatchFlag=1"' if state else "exit 1"
    )
    env = with_commands(
        tmp_path,
        scontrol=f'if [ "$1" = requeue ]; then echo requeue "$2" >>{tmp_path}/did; else {shown}; fi',
        squeue="[[ $* == *--name=x-eval* ]] && echo 8 || echo 7",
        scancel=f'echo cancel "$@" >>{tmp_path}/did',
        srun=":",
    )
    script = (
        "SLURM_JOB_ID=7 SLURM_JOB_NAME=x SLURM_NNODES=1 SLURM_RESTART_COUNT=1; source slurm/common.sh; end_job "
        f"{code} {tmp_path}/run"
    )
    result = subprocess.run(["bash", "-c", script], cwd=REPOSITORY, env=env, text=True, capture_output=True)
    assert result.returncode == code, result.stderr
    did = (tmp_path / "did").read_text() if (tmp_path / "did").exists() else ""
    assert ("requeue 7" in did) == requeued
    assert ("cancel" in did and "--state=PENDING --name=x-eval" in did) == cancelled
    assert (tmp_path / "run" / "broken-off.log").exists() == counted


def test_a_link_of_a_chain_that_is_cancelled_leaves_the_next_ones_evaluator(tmp_path: Path) -> None:
    env = with_commands(
        tmp_path,
        scontrol="echo JobState=COMPLETING",
        squeue='[[ $* == *--name=x-eval* ]] && echo 9 || printf "7\n8\n"',
        scancel=f"touch {tmp_path}/cancelled",
    )
    script = f"SLURM_JOB_ID=7 SLURM_JOB_NAME=x; source slurm/common.sh; end_job 75 {tmp_path}/run"
    result = subprocess.run(["bash", "-c", script], cwd=REPOSITORY, env=env, text=True, capture_output=True)
    assert "not requeued from here (the job is over)" in result.stderr
    assert not (tmp_path / "cancelled").exists()


def test_a_task_of_an_array_speaks_of_itself_alone(tmp_path: Path) -> None:
    """The last task's number is also the array's: `scontrol requeue` of it would requeue every task."""
    env = with_commands(tmp_path, scontrol=f'echo "$@" >>{tmp_path}/asked; echo "JobState=RUNNING"')
    script = (
        "SLURM_JOB_ID=7 SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=3 SLURM_JOB_NAME=x; source slurm/common.sh; end_job "
        f"75 {tmp_path}/run"
    )
    result = subprocess.run(["bash", "-c", script], cwd=REPOSITORY, env=env, text=True, capture_output=True)
    assert result.returncode == 75, result.stderr
    assert set((tmp_path / "asked").read_text().splitlines()) == {"show job 7_3", "requeue 7_3"}


@pytest.mark.parametrize(("queue", "ends"), [("", True), ("echo 7", False), ("exit 1", False)])
def test_an_evaluator_whose_training_is_gone_measures_what_is_there_and_ends(queue: str, ends: bool, tmp_path: Path) -> None:
    """The training is cancelled, failed or out of time. A queue that does not answer is no reason to end."""
    watching = (
        "[[ $* != *--watch* ]] && exec echo the rest; trap 'exit 75' TERM; for _ in $(seq 40); do sleep 0.1; done; "
        "echo complete"
    )
    env = with_commands(tmp_path, squeue=queue, srun=watching, scontrol="echo JobState=RUNNING")
    values = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "x-eval",
        "TRAINING": "x",
        "RUN_DIR": str(tmp_path / "run"),
        "LOOK_EVERY_S": "0.3",
    }
    result = subprocess.run(
        ["bash", "slurm/evaluate.sh"], cwd=REPOSITORY, env={**env, **values}, text=True, capture_output=True
    )
    assert result.returncode == 0, result.stderr
    assert ("the rest" in result.stdout) == ends
    assert ("complete" in result.stdout) != ends
