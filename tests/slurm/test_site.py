"""Clusters differ and people type different lines: the site file, names, chains, several tasks a GPU node."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, environment
from tests.slurm.jobs import Desk
from tests.slurm.site import write_site

SCRIPTS = sorted((REPOSITORY / "slurm").glob("*.sh"))
PRETRAINING = [path for path in SCRIPTS if path.name.startswith("pretrain_")]
# This replaces the training where a test asks what the script does around it.
RECORDER = """#!/usr/bin/env bash
{
  printf '%s\\n' "$@"
  env | grep -E '^(NCCL|GLOO|LOADED|CUDA_V|SLURM_(LOCALID|CPUS_PER|JOB_ACC|JOB_PART))' | sort
} >"$RECORD.$SLURM_JOB_ID.$SLURM_PROCID"
"""


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


@pytest.fixture
def recorder(tmp_path: Path) -> Path:
    path = tmp_path / "recorder"
    path.write_text(RECORDER)
    path.chmod(0o755)
    return path


def records(recorder: Path, job: str) -> list[list[str]]:
    """Return what each task of a job was started with, then its environment."""
    return [path.read_text().splitlines() for path in sorted(recorder.parent.glob(f"record.{job}.*"))]


@pytest.mark.slow
def test_every_script_would_be_accepted(desk: Desk) -> None:
    for script in PRETRAINING:
        desk.cluster.run("sbatch", "--test-only", "--nodes=4", str(script.relative_to(REPOSITORY)))  # H/14 asks for 16
    desk.cluster.run("sbatch", "--test-only", "slurm/evaluate.sh")


@pytest.mark.slow
def test_the_site_file_reaches_every_task(desk: Desk, recorder: Path) -> None:
    """The site has `module` and a container; account and partition come through slurm/submit."""
    desk.set_site(
        "SITE_ACCOUNT=vision",
        "SITE_PARTITION=scavenge",
        "SITE_MODULES=(cuda/13.0 'python 3')",
        "SITE_INTERFACE=lo",
        f"SITE_CONTAINER=({recorder} exec --nv '/images/with space.sif')",
    )
    # Lmod and Environment Modules define a function, which sbatch passes on.
    module = {
        "BASH_FUNC_module%%": '() { [ "$1" = load ] && shift && export LOADED="$*"; }',
        "RECORD": str(recorder.parent / "record"),
    }
    result = subprocess.run(
        [
            "slurm/submit",
            "pretrain_l16.sh",
            "--nodes=2",
            "--ntasks-per-node=2",
            "--job-name=odd name",
            f"--output={desk.site.parent}/%j.log",
            "--cpus-per-task=3",
            "--",
            "model.name=Ti/8",
            "optimizer.betas=[0.9, 0.99]",
        ],
        cwd=REPOSITORY,
        env={**environment(), **desk.cluster.environment, **module, "SITE_ENV": str(desk.site)},
        text=True,
        capture_output=True,
    )
    assert result.returncode == 0, result.stderr
    job = desk.job_named("odd name")
    assert job.wait_for_end() == "0:0", job.text
    assert job.show("Account") == "vision"
    assert job.show("Partition") == "scavenge"
    tasks = records(recorder, job.id)
    assert len(tasks) == 4
    for task in tasks:
        assert task[:7] == ["exec", "--nv", "/images/with space.sif", "python", "-m", "pipeline", "train"]
        assert "optimizer.betas=[0.9, 0.99]" in task
        assert re.fullmatch(r"name=odd_name-\d+", task[8])
        assert {"LOADED=cuda/13.0 python 3", "NCCL_SOCKET_IFNAME=lo", "GLOO_SOCKET_IFNAME=lo", "SLURM_CPUS_PER_TASK=3"} <= set(
            task
        )
        assert "CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7" in task


@pytest.mark.slow
def test_modules_without_a_module_command_are_answered_in_words(desk: Desk) -> None:
    desk.set_site("SITE_MODULES=(cuda)")
    job = desk.submit("no-modules", nodes=1)
    assert job.wait_for_end() == "2:0"
    assert "SITE_MODULES is set, but there is no `module` command on n1" in job.text


@pytest.mark.slow
def test_each_task_may_have_a_gpu_of_its_own(desk: Desk, recorder: Path) -> None:
    desk.set_site(f"SITE_CONTAINER=({recorder})")
    options = ("--gpus-per-node=2", "--gpus-per-task=1")
    job = desk.submit("own", nodes=1, tasks=2, options=options, RECORD=str(recorder.parent / "record"))
    assert job.wait_for_end() == "0:0", job.text
    assert [[line for line in task if line.startswith("CUDA")] for task in records(recorder, job.id)] == [
        ["CUDA_VISIBLE_DEVICES=0"], ["CUDA_VISIBLE_DEVICES=1"],
    ]  # fmt: skip


@pytest.mark.slow
def test_a_job_that_is_given_no_environment_gives_its_own_to_the_ranks(desk: Desk) -> None:
    """sbatch makes srun pass on as little as it did itself: `python` would be another one, or none."""
    desk.set_site("SITE_CONTAINER=(bash -c 'command -v python; env | grep -E \"^(PYTHONUNB|HOME)\"')")
    job = desk.submit("bare", nodes=1, options=(f"--export=SITE_ENV={desk.site}", "--gpus-per-node=1"))
    assert job.wait_for_end() == "0:0", job.text
    assert str(Path(sys.prefix) / "bin" / "python") in job.text.splitlines()
    assert "PYTHONUNBUFFERED=1" in job.text.splitlines()


@pytest.mark.slow
def test_chains_and_arrays_run_one_after_the_other(desk: Desk) -> None:
    """Jobs of one name never meet in one run folder."""
    turns = desk.site.parent / "turns"
    desk.set_site(f"SITE_CONTAINER=(bash -c 'echo begin >> {turns}; sleep 1; echo end >> {turns}')")
    chain = [desk.submit("chain", nodes=1, options=("--gpus-per-node=1",)) for _ in range(2)]
    array = desk.submit("chain", nodes=1, options=("--gpus-per-node=1", "--array=0-1%1"))
    for job in chain:
        assert job.wait_for_end() == "0:0"
    array.wait(lambda: not desk.cluster.run("squeue", "--noheader", "--name=chain"), "gone")
    assert turns.read_text().split() == ["begin", "end"] * 4


@pytest.mark.slow
def test_the_evaluator_is_a_job_of_its_own(desk: Desk, downstream: dict[str, str]) -> None:
    desk.evaluate_on(downstream)
    training = desk.submit("nearby", nodes=1)
    assert training.wait_for_end() == "0:0", training.text
    with desk.evaluator_of(training) as evaluator:
        assert evaluator.wait_for_end() == "0:0"
        assert "[eval] step 12: bars 1-shot" in evaluator.text
        assert (evaluator.log.parent / "nearby-eval.log").resolve() == evaluator.log
    assert evaluator.show("Partition") == "scavenge"
    assert evaluator.show("NumTasks") == "1"
    assert training.folder.evaluations.read_text().count('"step": 12') > 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_shell_works_under_any_bashrc_and_cuts_a_nodes_power(tmp_path: Path) -> None:
    (tmp_path / ".bashrc").write_text("export PATH=/usr/bin:/bin SLURM_CONF=/nowhere\n")
    typed = (
        "which python; kill-node n2; kill-node n9; until sinfo -h -n n2 | grep -q down; do sleep 0.5; done; start-node "
        "n2; until sinfo -h -p gpu | grep -q '2 *idle'; do sleep 0.5; done; echo both\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", "tests.slurm.cluster", "--nodes=2"],
        cwd=REPOSITORY,
        env={**environment(), "HOME": str(tmp_path)},
        text=True,
        input=typed,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert str(Path(sys.executable).parent / "python") in result.stdout, result.stdout
    assert "name a node: kill-node n2" in result.stdout
    assert "\nboth\n" in result.stdout
