"""Gradients are reduced next to the backward pass where the forecast says so."""

from __future__ import annotations

import json

import pytest

from pipeline.distributed.precision import TrainingPrecision
from pipeline.plan.memory import Stage
from pipeline.plan.network import step_traffic
from tests.helpers.trainings import WriteConfig, run_ranks

BUCKET = 10_000
STEPS = 2  # that the scenario counts


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (1, "bf16"), (1, "fp32"), (2, "fp32")])
def test_gradients_are_reduced_in_the_backward_pass(
    write_config: WriteConfig, stage: Stage, precision: TrainingPrecision
) -> None:
    config = write_config(
        trainer={
            "duration": "6 steps",
            "zero_stage": stage,
            "precision": precision,
            "reduce_bucket_size": BUCKET,
            "overlap_comm": True,
        },
        checkpoint={"every": "100 steps"},
        tracking={"log_every": 100, "mode": "disabled"},
    )
    said = run_ranks("tests.helpers.reduction_scenario", str(config))
    counts = json.loads(said.rpartition("numbers: ")[2])
    early, late = (counts.get(f"all_reduce {phase}", 0) / STEPS for phase in ("backward", "after"))
    traffic = step_traffic(
        round(early + late), stage=stage, precision=precision, num_nodes=2, accumulation_steps=1, bucket_size=BUCKET
    )
    assert (early > 0) == (traffic.overlapped > 0)
    assert early <= traffic.overlapped / 4  # bytes of an all-reduce between two: the last bucket is not full at its best
    assert late <= 2 * BUCKET if early else late > 30_000
