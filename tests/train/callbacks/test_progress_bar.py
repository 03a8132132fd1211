"""The progress bar counts steps and shows the last line of metrics."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.train.callbacks.progress_bar import ProgressBar
from tests.train.callbacks.test_metrics import make_batches, make_metrics, rows_of, train

pytestmark = pytest.mark.usefixtures("rank")


def test_lines_of_a_log_count_steps_and_end_with_the_last_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal there is one line after the first step, when no metrics are known, and one at the end."""
    metrics = make_metrics(log_every=3)
    bar = ProgressBar(metrics, total_steps=14)
    train(make_batches(2 * 7), tmp_path, metrics=metrics, after=[bar], accumulation_steps=2)
    first, last = [text for text in capsys.readouterr().err.splitlines() if text.startswith("train: ")]
    row = rows_of(tmp_path)[-1]
    assert first.startswith("train: step 1 of 14 (7.1 %), ")
    assert "loss" not in first
    assert last.startswith("train: step 7 of 14 (50.0 %), ")
    assert re.search(rf"loss {row['train/loss']:.4g}, {row['speed/images_per_s']:.4g} images/s$", last)
