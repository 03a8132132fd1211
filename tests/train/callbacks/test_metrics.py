"""Lines of metrics of a real training are compared with torch's own optimizer on the same batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.nn import functional as F

from pipeline.data.shards.remote import Retry
from pipeline.data.streams.train import DIGEST_MODULUS
from pipeline.monitor.loggers import MetricsFile
from pipeline.objectives.accuracy import top_k
from pipeline.run.folder import RunFolder
from pipeline.run.records import read_json_lines
from pipeline.train.callbacks.metrics import TrainingMetrics
from pipeline.train.callbacks.steps import StepCallback
from pipeline.train.callbacks.stragglers import RankTimes
from tests.helpers.one_rank import LEARNING_RATE, fit, make_batch, make_module

pytestmark = pytest.mark.usefixtures("rank")
Batch = dict[str, Any]
BATCH = 2


def make_batches(count: int) -> list[Batch]:
    return [make_batch(number, value=1.0 + number % 3) for number in range(count)]


def make_metrics(**changes: Any) -> TrainingMetrics:
    settings: dict[str, Any] = {
        "metrics": {"train/accuracy": top_k(2, k=1)}, "global_batch_size": BATCH, "epochs_per_image": {"epoch": 0.25},
        "log_every": 1, "flops_per_image": 5e17, "peak_flops": 1e20, "rank_times": RankTimes(zero_stage=0, files=None),
    }  # fmt: skip
    return TrainingMetrics(**{**settings, **changes})


class Lines(StepCallback):
    """Keeps `line` at each step's end."""

    def __init__(self, metrics: TrainingMetrics) -> None:
        self.metrics = metrics
        self.lines: list[dict[str, Any] | None] = []

    def on_step_end(self, trainer: Trainer, step: int, batch: Any, outputs: Any) -> None:
        self.lines.append(self.metrics.line)


def train(
    batches: list[Batch],
    folder: Path,
    *,
    metrics: TrainingMetrics | None = None,
    after: Sequence[Callback] = (),
    **options: Any,
) -> Trainer:
    metrics = metrics or make_metrics()
    steps = len(batches) // options.get("accumulation_steps", 1)
    return fit(
        [metrics.rank_times, metrics, *after], batches, folder=folder, max_steps=steps,
        logger=[MetricsFile(RunFolder(folder).metrics)], **options
    )  # fmt: skip


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return read_json_lines(RunFolder(folder).metrics)


def reference(batches: Iterable[Batch], *, accumulation_steps: int = 1) -> tuple[list[float], list[float], list[float]]:
    """Return losses and hits of every micro-batch, gradient norms of every step, without a trainer."""
    module = make_module()
    model: nn.Module = module.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    losses, norms, hits = [], [], []
    for number, batch in enumerate(batches):
        logits = model(batch["images"])
        loss = F.cross_entropy(logits, batch["labels"])
        (loss / accumulation_steps).backward()
        losses.append(loss.item())
        hits += (logits.argmax(dim=1) == batch["labels"]).float().tolist()
        if (number + 1) % accumulation_steps == 0:
            norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), math.inf)))
            optimizer.step()
            optimizer.zero_grad()
    return losses, norms, hits


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize("accumulation_steps", [1, 2])
@pytest.mark.parametrize("zero_stage", [0, 1])
def test_a_line_is_the_mean_since_the_last_one(accumulation_steps: int, zero_stage: int, tmp_path: Path) -> None:
    """Seven steps are logged in lines of three: the last step has a line of its own."""
    batches = make_batches(7 * accumulation_steps)
    losses, norms, hits = reference(batches, accumulation_steps=accumulation_steps)
    train(
        batches, tmp_path, metrics=make_metrics(log_every=3), accumulation_steps=accumulation_steps, zero_stage=zero_stage
    )  # fmt: skip
    rows = rows_of(tmp_path)
    assert [row["step"] for row in rows] == [3, 6, 7]
    for row, (first, last) in zip(rows, [(0, 3), (3, 6), (6, 7)], strict=True):
        part = slice(first * accumulation_steps, last * accumulation_steps)
        assert row["train/loss"] == pytest.approx(mean(losses[part]), rel=1e-5)
        assert row["train/accuracy"] == pytest.approx(mean(hits[BATCH * part.start : BATCH * part.stop]))
        assert row["train/gradient_norm"] == pytest.approx(norms[last - 1], rel=1e-4)
        assert row["train/learning_rate"] == LEARNING_RATE


def test_other_callbacks_see_the_line_of_a_step_that_has_one(tmp_path: Path) -> None:
    metrics = make_metrics(log_every=3)
    seen = Lines(metrics)
    train(make_batches(2 * 7), tmp_path, metrics=metrics, after=[seen], accumulation_steps=2)
    assert [None if line is None else line["step"] for line in seen.lines] == [None, None, 3, None, None, 6, 7]
    assert [line["train/loss"] for line in seen.lines if line is not None] == [row["train/loss"] for row in rows_of(tmp_path)]


def test_counts_follow_from_the_step(tmp_path: Path) -> None:
    train(make_batches(4), tmp_path)
    for step, row in enumerate(rows_of(tmp_path), start=1):
        assert (row["images_seen"], row["epoch"], row["exaflops"]) == (2 * step, 0.5 * step, step)
        assert row["speed/images_per_s"] * row["speed/step_time_s"] == pytest.approx(BATCH)
        assert row["speed/mfu"] == pytest.approx(row["speed/images_per_s"] * 5e17 / 1e20)


def test_without_a_peak_there_is_no_mfu(tmp_path: Path) -> None:
    train(make_batches(1), tmp_path, metrics=make_metrics(peak_flops=None))
    assert "speed/mfu" not in rows_of(tmp_path)[0]


def test_the_wait_for_data_is_a_part_of_the_time(tmp_path: Path) -> None:
    waits = [0.0, 0.0, 1e-9, 1e6]
    batches = [make_batch(number, wait_s=wait_s) for number, wait_s in enumerate(waits)]
    train(batches, tmp_path)
    rows = rows_of(tmp_path)
    assert [row["speed/data_wait_fraction"] for row in rows[:2]] == [0, 0]
    assert 0 < rows[2]["speed/data_wait_fraction"] < 1e-4
    assert rows[3]["speed/data_wait_fraction"] == 1


def test_the_waits_of_all_micro_batches_count(tmp_path: Path) -> None:
    train([make_batch(number, wait_s=1e-6) for number in range(4)], tmp_path, accumulation_steps=2)
    for row in rows_of(tmp_path):
        assert row["speed/data_wait_fraction"] * row["speed/step_time_s"] == pytest.approx(2e-6, rel=1e-3)


def test_the_first_batch_is_waited_for_within_the_first_step(tmp_path: Path) -> None:
    train([make_batch(0, wait_s=5.0)], tmp_path)
    (row,) = rows_of(tmp_path)
    assert 5 < row["speed/step_time_s"] < 60
    assert row["speed/data_wait_fraction"] == pytest.approx(5 / row["speed/step_time_s"])


def test_a_refused_step_is_counted_and_its_loss_is_null(tmp_path: Path) -> None:
    batches = [make_batch(0), make_batch(1, value=math.inf), make_batch(2)]
    train(batches, tmp_path)
    rows = rows_of(tmp_path)
    assert [row["train/skipped_steps"] for row in rows] == [0, 1, 1]
    assert [row["train/loss"] is None for row in rows] == [False, True, False]


def test_totals_go_on_after_a_resume_as_if_nothing_had_happened(tmp_path: Path) -> None:
    batches = [
        make_batch(number, digest=DIGEST_MODULUS - 7 + number, retries=number * [Retry("a.tar", "reset")])
        for number in range(6)
    ]
    for name in ("whole", "first", "second"):
        (tmp_path / name).mkdir()
    train(batches, tmp_path / "whole", accumulation_steps=2)
    first, second = (make_metrics() for _ in range(2))
    train(batches[:2], tmp_path / "first", metrics=first, accumulation_steps=2)
    second.load_state_dict(first.state_dict())
    train(batches[2:], tmp_path / "second", metrics=second, accumulation_steps=2)
    whole, parts = (
        [(row["data/digest"], row["data/retries"]) for name in names for row in rows_of(tmp_path / name)]
        for names in (["whole"], ["first", "second"])
    )
    assert whole == parts
    assert whole[-1] == ((-7 * 6 + 15) % DIGEST_MODULUS, 15)
    assert all(0 <= digest < DIGEST_MODULUS for digest, _ in whole)


def test_the_loss_history_is_kept_with_a_checkpoint(tmp_path: Path) -> None:
    metrics = make_metrics()
    train(make_batches(5), tmp_path, metrics=metrics)
    losses = [row["train/loss"] for row in rows_of(tmp_path)]
    assert metrics.state_dict()["loss"] == {"first": losses[0], "lowest": min(losses), "last": losses[-1]}
    assert losses[0] == pytest.approx(math.log(2))  # zero weights
    assert len(set(losses)) == 5
