"""Nothing in a step reads from the device between two log lines: that would wait for a GPU, and then leave it idle.

The device of most tests here is torch's `meta`, whose tensors have no values: whatever reads one raises.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from pipeline.models.vit.section import ViT
from pipeline.objectives import Objective
from pipeline.objectives.accuracy import top_k
from pipeline.train.callbacks.metrics import TrainingMetrics
from pipeline.train.callbacks.stops import StopOnNonFinite, StopOnUnreadable
from pipeline.train.callbacks.stragglers import RankTimes
from tests.helpers.trainings import WriteConfig, run_ranks

META = torch.device("meta")
CLASSES, BATCH = 6, 4
OBJECTIVES: dict[str, dict[str, Any]] = {
    "softmax": {"name": "softmax", "label_smoothing": 0.1},
    "sigmoid, mixed": {"name": "sigmoid", "mixing": {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}},
    "several labels": {"name": "multi_label"},
    "several labels, hierarchy": {"name": "multi_label", "hierarchy": "classes.tsv"},
    "masked patches": {"name": "masked_patches"},
    "masked patches, pixels": {"name": "masked_patches", "target": "pixels"},
}


@pytest.fixture(autouse=True)
def _hierarchy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "classes.tsv").write_text("0 1\n1 2\n3 2\n")
    monkeypatch.chdir(tmp_path)


def make_batch(labels_of: list[int]) -> dict[str, Any]:
    return {
        "images": torch.zeros(BATCH, 3, 32, 32, dtype=torch.uint8, device=META),
        "labels": torch.zeros(sum(labels_of), dtype=torch.int64, device=META),
        "label_ends": torch.zeros(BATCH, dtype=torch.int64, device=META),
        "positions": torch.arange(BATCH),
        "sample_ids": torch.arange(BATCH),
        "loss_weight": 1.0,
        "wait_s": 0.25,
        "digest": 7,
        "unreadable": [],
        "retries": [],
    }


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_reads_nothing(name: str) -> None:
    section = TypeAdapter(Objective).validate_python(OBJECTIVES[name])
    config = ViT(name="Ti/16", image_size=32, num_classes=CLASSES, depth=1).resolve()  # type: ignore[call-arg]
    with META:
        model = config.build().train()
        objective = section.build(config, seed=0, class_names=None).train()
    batch = make_batch([2, 0, 1, 3] if section.labels == "several" else [1] * BATCH)
    output = objective(model, batch)
    output.loss.backward()
    assert output.loss.device == META
    for metric in section.metrics(config).values():
        metric.to(META).update(output.predictions, output.targets)


def test_reading_from_such_a_device_raises() -> None:
    """The test above can fail."""
    targets = torch.zeros(BATCH, CLASSES, device=META)
    with pytest.raises((RuntimeError, NotImplementedError)):
        float(targets.sum())
    with pytest.raises((RuntimeError, NotImplementedError)):
        targets[targets > 0]
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.repeat_interleave(targets[:, 0].long())


def test_callbacks_read_nothing_between_lines() -> None:
    metrics = TrainingMetrics(
        metrics={"train/accuracy": top_k(CLASSES, k=1)},
        global_batch_size=BATCH,
        epochs_per_image={},
        log_every=100,
        flops_per_image=1.0,
        peak_flops=None,
        rank_times=RankTimes(zero_stage=1, files=None),
    )
    callbacks = [metrics.rank_times, metrics, StopOnUnreadable(metrics, budget=0.1), StopOnNonFinite(max_skipped_steps=3)]
    trainer: Any = SimpleNamespace(
        global_step=0, max_steps=10**9, accumulate_grad_batches=1, strategy=SimpleNamespace(skipped_steps=0), loggers=[]
    )
    module: Any = SimpleNamespace(device=META)
    metrics._of_outputs.to(META)
    outputs = {
        "micro_loss": torch.zeros((), device=META),
        "predictions": torch.zeros(BATCH, CLASSES, device=META),
        "targets": torch.zeros(BATCH, dtype=torch.int64, device=META),
    }
    for step in range(1, 6):
        batch = make_batch([1] * BATCH)
        trainer.global_step = step
        for callback in callbacks:
            callback.on_train_batch_start(trainer, module, batch, step - 1)
        for callback in callbacks:
            callback.on_before_backward(trainer, module, outputs["micro_loss"])
        for callback in callbacks:
            callback.on_train_batch_end(trainer, module, outputs, batch, step - 1)
    assert metrics.line is None
    assert metrics._pending == [35, 0, 0]


@pytest.mark.slow
def test_no_rank_asks_another_before_a_step(write_config: WriteConfig) -> None:
    """Lightning asks rank 0 before each batch whether its handler noted a signal, and waits for the device to know (#21487)."""
    config = write_config(
        trainer={"duration": "10 steps", "zero_stage": 1},
        checkpoint={"every": "100 steps"},
        tracking={"log_every": 100, "mode": "disabled"},
    )
    said = run_ranks("tests.helpers.collective_scenario", str(config))
    counts = json.loads(said.rpartition("collectives: ")[2])
    assert counts.keys() == {"all_reduce"}, counts
