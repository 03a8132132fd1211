"""This machine is examined for real: limits, the file system, ranks together, and a tiny training with a resume."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.preflight.machine import examine_limits, examine_software
from pipeline.preflight.storage import own_folder, read_shards, try_folder
from tests.conftest import REPOSITORY, environment, run_command
from tests.helpers.store import free_port


def test_software_is_what_is_installed() -> None:
    import torch

    found = {measure.name: measure.value for measure in examine_software()}
    assert found["torch"] == torch.__version__
    assert found["Python"] == ".".join(map(str, sys.version_info[:3]))


def test_a_low_limit_of_open_files_has_advice() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        found = {measure.name: measure for measure in examine_limits(ranks_here=1)}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found["open files"].value == 256
    assert "ulimit -n" in str(found["open files"].advice)
    assert found["size of a file at most"].text == "unlimited"
    many = {measure.name: measure for measure in examine_limits(ranks_here=10**6)}
    assert "--shm-size" in str(many["/dev/shm free"].advice)


def test_a_limit_of_the_size_of_files_is_a_problem() -> None:
    """Slurm gives a job the limits of the shell that submits it: nothing there can be saved."""
    code = (
        "import resource; from pipeline.preflight.machine import examine_limits; from pipeline.preflight.measure import *;"
        "from pipeline.preflight.table import *;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**30, resource.RLIM_INFINITY));"
        "machine = Machine('a', (0,), tuple(examine_limits(ranks_here=1)));"
        "print(*describe_findings(find_odd([machine]), num_machines=1), sep='\\n')"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, text=True, capture_output=True, check=True).stdout
    assert "PROBLEM  size of a file at most: 1 GiB; checkpoints and shards are larger: ulimit -f unlimited" in said


def test_a_file_system_is_tried_and_left_clean(tmp_path: Path) -> None:
    with own_folder(tmp_path, "own") as folder:
        found = {measure.name: measure for measure in try_folder(folder)}
    assert found["file operations"].value == "all"
    assert float(found["checkpoint written at"].value) > 0
    assert abs(float(found["file system's clock is ahead by"].value)) < 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_links_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)  # as exFAT and some FUSE file systems
    with own_folder(tmp_path, "own") as folder:
        found = {measure.name: measure for measure in try_folder(folder)}
    assert found["file operations"].value == "without hard link (Operation not permitted)"
    assert found["file operations"].severity == "warning"


def test_shards_are_read_or_the_reason_is_told(corpus: Path, tmp_path: Path) -> None:
    found = {measure.name: measure for measure in read_shards(str(corpus), rank=1, world_size=3)}
    assert float(found["shards read at"].value) > 0
    (missing,) = read_shards(str(tmp_path), rank=0, world_size=1)
    assert missing.severity == "problem"
    assert str(tmp_path) in str(missing.advice)


def test_one_process_is_examined(tmp_path: Path, corpus: Path) -> None:
    out = tmp_path / "found.json"
    done = run_command("preflight", "--folder", str(tmp_path / "runs"), "--data", str(corpus), "--json", str(out))
    assert done.returncode == 0, done.stdout
    values = json.loads(out.read_text())
    (machine,) = values["machines"]
    found = {measure["name"]: measure["value"] for measure in machine["measures"]}
    assert machine["name"] == socket.gethostname()
    assert found["resumed differs by"] == 0
    assert found["fp32 matrix product"] > 0
    assert not [finding for finding in values["findings"] if finding["severity"] == "problem"]
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.slow
def test_two_ranks_are_examined_together(tmp_path: Path) -> None:
    done = run_command("preflight", "--folder", str(tmp_path / "runs"), "--ranks", "2")
    assert done.returncode == 0, done.stdout
    lines = {line[:34].strip(): line[34:].strip() for line in done.stdout.splitlines()}
    assert "1 machine, 2 ranks" in done.stdout
    assert lines["resumed differs by"].startswith("0 % of 2 steps in ")
    assert {"all-reduce", "small all-reduce", "clock ahead of rank 0's by", "sees rank 0's files after"} <= lines.keys()


def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run_command("preflight", "--folder", str(tmp_path / "file" / "runs"), "--no-training")
    assert done.returncode == 2
    assert "PROBLEM  file operations: none; nothing can be written to" in done.stdout


# A processor that computes bf16 about as fast as fp32: each measurement says otherwise.
UNDECIDED = """
import itertools, runpy, sys
import pipeline.build.resume
import pipeline.preflight.trial
speedups = itertools.cycle([0.9, 0.9, 1.1])
for module in (pipeline.build.resume, pipeline.preflight.trial):
    module.measure_bf16_speedup = lambda device: next(speedups)
sys.argv[0] = "pipeline"
runpy.run_module("pipeline", run_name="__main__")
"""


@pytest.mark.slow
def test_all_launches_of_the_tiny_training_have_one_precision(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNDECIDED, "preflight", "--folder", str(tmp_path)],
        cwd=REPOSITORY,
        env=environment(),
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 % of 2 steps in fp32" in done.stdout


@pytest.mark.slow
def test_ranks_that_do_not_come_are_named(tmp_path: Path) -> None:
    ranks = {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "preflight", "--folder", str(tmp_path), "--join", "5"],
        cwd=REPOSITORY,
        env=environment(**ranks, MASTER_PORT=str(free_port())),
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "the 3 ranks did not join in 5 s" in done.stderr
    assert "of rank 1, 2: not started, or another folder there" in done.stderr
