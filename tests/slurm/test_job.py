"""The real job script on a real Slurm."""

from __future__ import annotations

from pipeline.checkpoint import RunFolder
from tests.slurm.jobs import Desk
from tests.trainings import assert_same_run


def test_two_nodes_train_what_two_local_ranks_do(desk: Desk, reference: RunFolder) -> None:
    """Bit for bit."""
    job = desk.submit("tiny")
    assert job.wait_for_end() == "0:0", job.text
    assert_same_run(job.folder, reference)
