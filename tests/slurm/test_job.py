"""The real job script runs on a real Slurm, from one node to four, with one or two tasks a node."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from pipeline.run.checkpoint import RunFolder
from pipeline.run.records import read_metrics
from tests.helpers.trainings import assert_same_run
from tests.slurm.jobs import Desk
from tests.slurm.site import TINY, write_bars

# Nodes, tasks a node, ZeRO stage, options.
SHAPES = ((1, 1, 1, ()), (2, 2, 2, ("--gpus-per-node=2", "--gpus-per-task=1")), (3, 1, 3, ()), (4, 1, 1, ()))
STEPS_A_SHAPE = 2


def test_two_nodes_train_what_two_local_ranks_do(desk: Desk, reference: RunFolder) -> None:
    """They agree bit for bit."""
    job = desk.submit("tiny")
    assert job.wait_for_end() == "0:0", job.text
    assert_same_run(job.folder, reference)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_run_goes_on_with_any_number_of_nodes_at_any_stage(desk: Desk) -> None:
    """It sees the same images in the same order as on one node throughout; losses and weights are equal to fp32's rounding."""
    steps = STEPS_A_SHAPE * len(SHAPES)
    common = ("trainer.precision=fp32", "model.dropout=0", "trainer.global_batch_size=24", f"trainer.duration={steps} steps")
    calm = desk.submit("calm", *common, nodes=1)
    assert calm.wait_for_end() == "0:0", calm.text
    for number, (nodes, tasks, stage, options) in enumerate(SHAPES, start=1):
        end = (f"trainer.max_steps={STEPS_A_SHAPE * number}", f"trainer.zero_stage={stage}")
        job = desk.submit("walk", *common, *end, nodes=nodes, tasks=tasks, options=options)
        assert job.wait_for_end() == "0:0", job.text
        assert number == 1 or f"{nodes * tasks} ranks go on where" in job.text
    walk, reference = (desk.site.parent / "runs" / name for name in ("walk", "calm"))
    ours, theirs = (read_metrics(RunFolder(root).metrics) for root in (walk, reference))
    assert [row["data/digest"] for row in ours] == [row["data/digest"] for row in theirs]
    assert [row["train/loss"] for row in ours] == pytest.approx([row["train/loss"] for row in theirs], rel=1e-4)
    weights, expected = (safetensors.torch.load_file(RunFolder(root).weights_of(steps)) for root in (walk, reference))
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_grid_of_fine_tunings_runs_as_an_array_and_a_job_behind_it(desk: Desk, reference: RunFolder, tmp_path: Path) -> None:
    """Each task trains a point. The job behind them reads their results, chooses, and trains finally."""
    shards = write_bars(tmp_path / "bars", count=40)
    settings = (
        f"init_from={reference.root}", f"data.train={shards}", f"evaluation.validation=[{{name: test, shards: {shards}}}]",
        "finetune.grid={optimizer.learning_rate: [0.01, 0.1]}", "finetune.dev=0.25", "trainer.duration=4 steps",
        "model.representation=none", "trainer.devices=1", "trainer.zero_stage=1", "evaluation.short_side=16",
    )  # fmt: skip
    tiny = ("configs/finetune/paper_pets.yaml", *(text for text in TINY if not text.startswith("evaluation.protocols")))
    log = f"--output={tmp_path}/%A_%a.log"
    submitted = {"nodes": 1, "tiny": tiny, "script": "slurm/finetune.sh"}
    array = desk.submit("grid", *settings, options=("--array=0-1", "--gpus-per-node=0", log), **submitted)  # type: ignore[arg-type]
    behind = (f"--dependency=afterok:{array.id}", "--gpus-per-node=0")
    job = desk.submit("grid", *settings, options=behind, **submitted)  # type: ignore[arg-type]
    job.wait_for_state("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", timeout_s=800)
    assert job.show("ExitCode") == "0:0", job.text
    logs = [path.read_text() for path in sorted(tmp_path.glob(f"{array.id}_*.log"))]
    assert len(logs) == 2
    assert all("of the dev images" in text for text in logs)
    assert "chosen by top-1 of the dev images" in job.text
    assert (job.folder.root / "final-s0" / "complete.json").exists()
    for point in (job.folder.root / "grid").glob("*/metrics.jsonl"):  # trained once, by the array
        assert len(read_metrics(point)) == 4
