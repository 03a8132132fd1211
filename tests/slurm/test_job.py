"""The real job script on a real Slurm, from one node to four, with one or two tasks a node."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from pipeline.checkpoint import RunFolder
from pipeline.tracking import read_metrics
from tests.slurm.jobs import Desk
from tests.trainings import assert_same_run

# Nodes, tasks a node, ZeRO stage, options.
SHAPES = ((1, 1, 1, ()), (2, 2, 2, ("--gpus-per-node=2", "--gpus-per-task=1")), (3, 1, 3, ()), (4, 1, 1, ()))
STEPS = 4


def test_two_nodes_train_what_two_local_ranks_do(desk: Desk, reference: RunFolder) -> None:
    """Bit for bit."""
    job = desk.submit("tiny")
    assert job.wait_for_end() == "0:0", job.text
    assert_same_run(job.folder, reference)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_any_number_of_nodes_and_any_stage_train_the_same(desk: Desk) -> None:
    """The same images in the same order; losses and weights equal to fp32's rounding."""
    common = ("trainer.precision=fp32", "model.dropout=0", "trainer.global_batch_size=24", f"trainer.duration={STEPS} steps")
    jobs = []
    for nodes, tasks, stage, options in SHAPES:
        name = f"{nodes}x{tasks}-zero{stage}"
        job = desk.submit(name, *common, f"trainer.zero_stage={stage}", nodes=nodes, tasks=tasks, options=options)
        assert job.wait_for_end() == "0:0", job.text
        jobs.append(job)
    rows = [read_metrics(job.folder.metrics) for job in jobs]
    weights = [safetensors.torch.load_file(job.folder.weights_of(STEPS)) for job in jobs]
    for ours, theirs in zip(rows[1:], weights[1:], strict=True):
        assert [row["data/digest"] for row in ours] == [row["data/digest"] for row in rows[0]]
        assert [row["train/loss"] for row in ours] == pytest.approx([row["train/loss"] for row in rows[0]], rel=1e-4)
        for name, tensor in theirs.items():
            torch.testing.assert_close(tensor, weights[0][name], rtol=1e-3, atol=1e-4, msg=name)
