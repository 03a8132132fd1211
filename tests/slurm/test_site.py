"""What differs between clusters, and what people type: the site file, names, chains, several tasks a GPU node."""

from __future__ import annotations

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
# Stands in for the training where a test asks what the script does around it.
RECORDER = """#!/usr/bin/env bash
{ printf '%s\\n' "$@"; env | grep -E '^(NCCL|GLOO|LOADED|CUDA_V|SLURM_(LOCALID|CPUS_PER|JOB_ACC|JOB_PART))' | sort; } >"$RECORD.$SLURM_JOB_ID.$SLURM_PROCID"
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


@pytest.fixture
def recorder(tmp_path: Path) -> Path:
    path = tmp_path / "recorder"
    path.write_text(RECORDER)
    path.chmod(0o755)
    return path


def records(recorder: Path, job: str) -> list[list[str]]:
    """What each task of a job was started with, then its environment."""
    return [path.read_text().splitlines() for path in sorted(recorder.parent.glob(f"record.{job}.*"))]


@pytest.mark.slow
def test_every_script_would_be_accepted(desk: Desk) -> None:
    for script in PRETRAINING:
        desk.cluster.run("sbatch", "--test-only", "--nodes=4", str(script.relative_to(REPOSITORY)))  # H/14 asks for 16
    desk.cluster.run("sbatch", "--test-only", "slurm/evaluate.sh")


@pytest.mark.slow
def test_the_site_file_reaches_every_task(desk: Desk, recorder: Path) -> None:
    """`module` and a container, as a site would have them; account and partition through slurm/submit."""
    desk.set_site(
        "SITE_ACCOUNT=vision", "SITE_PARTITION=scavenge", "SITE_MODULES=(cuda/13.0 'python 3')", "SITE_INTERFACE=lo",
        f"SITE_CONTAINER=({recorder} exec --nv '/images/with space.sif')",
    )  # fmt: skip
    # Lmod and Environment Modules define a function, which sbatch hands on.
    module = {
        "BASH_FUNC_module%%": '() { [ "$1" = load ] && shift && export LOADED="$*"; }',
        "RECORD": str(recorder.parent / "record"),
    }
    result = subprocess.run(
        ["slurm/submit", "pretrain_l16.sh", "--nodes=2", "--ntasks-per-node=2", "--job-name=odd name", f"--output={desk.site.parent}/%j.log",
         "--cpus-per-task=3", "--", "model.name=Ti/8", "optimizer.betas=[0.9, 0.99]"],
        cwd=REPOSITORY, env={**environment(), **desk.cluster.environment, **module, "SITE_ENV": str(desk.site)}, text=True, capture_output=True,
    )  # fmt: skip
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
    training = desk.submit("beside", nodes=1)
    assert training.wait_for_end() == "0:0", training.text
    with desk.evaluator_of(training) as evaluator:
        assert evaluator.wait_for_end() == "0:0"
        assert "[eval] step 12: bars 1-shot" in evaluator.text
        assert (evaluator.log.parent / "beside-eval.log").resolve() == evaluator.log
    assert evaluator.show("Partition") == "scavenge"
    assert evaluator.show("NumTasks") == "1"
    assert training.folder.evaluations.read_text().count('"step": 12') > 0
