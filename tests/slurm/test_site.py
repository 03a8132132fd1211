"""Clusters differ and people type different lines: the site file, names, chains, several tasks a GPU node."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, environment
from tests.slurm.jobs import Desk

PRETRAINING = sorted((REPOSITORY / "slurm").glob("pretrain_*.sh"))
# This replaces the training where a test asks what the script does around it.
RECORDER = """#!/usr/bin/env bash
{
  printf '%s\\n' "$@"
  env | grep -E '^(NCCL|GLOO|LOADED|CUDA_V|SLURM_(LOCALID|CPUS_PER|JOB_ACC|JOB_PART))' | sort
} >"$RECORD.$SLURM_JOB_ID.$SLURM_PROCID"
"""


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
