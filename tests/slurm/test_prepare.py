"""A corpus that Slurm's jobs prepare has the bytes of one that two processes prepare, also when nodes and jobs are lost."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, environment
from tests.slurm.cluster import Cluster
from tests.slurm.prepare_campaign import campaign, write_photos


@pytest.fixture
def root() -> Iterator[Path]:
    """Give a folder that nodes see under its own name."""
    with tempfile.TemporaryDirectory(prefix="prepare-") as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_corpus_prepared_by_jobs_has_the_bytes_of_one_machine(cluster: Cluster, root: Path) -> None:
    assert campaign(cluster, root, num_faults=0, num_images=200) == []
    assert not list(root.glob(".workers-*"))  # the credentials and the logs of a command that has succeeded


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_faults_change_no_byte(cluster: Cluster, root: Path) -> None:
    assert campaign(cluster, root, num_faults=20) == []


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_what_sbatch_refuses_is_said_in_its_words(cluster: Cluster, root: Path) -> None:
    write_photos(root / "photos", count=50)
    command = [sys.executable, "-m", "data_tools", "make", str(root / "photos"), str(root / "out"), "--cluster", "slurm"]
    options = ["--nodes", "1", "--cores", "1", "--time", "soon", "--cluster-folder", str(root)]
    env = {**environment(), **cluster.environment}
    result = subprocess.run([*command, *options], cwd=REPOSITORY, env=env, text=True, capture_output=True)
    assert result.returncode == 2
    assert "sbatch refuses the workers: sbatch: error: " in result.stderr
    assert "Invalid --time specification" in result.stderr
    assert not list(root.glob(".workers-*/*.pem"))
    options = ["--nodes", "1", "--cores", "1", "--wait", "2", "--cluster-folder", str(root)]
    cluster.run("scontrol", "update", "partitionname=gpu", "state=down")
    try:
        result = subprocess.run([*command, *options], cwd=REPOSITORY, env=env, text=True, capture_output=True)
    finally:
        cluster.run("scontrol", "update", "partitionname=gpu", "state=up")
    assert result.returncode == 2
    assert "no worker has come to" in result.stderr
    assert "PartitionDown" in result.stderr
    assert cluster.run("squeue", "--noheader", "--states=PENDING,RUNNING").strip() == ""
