"""The report, from files alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.journal import append_json_line
from pipeline.report import tabulate_evaluations
from tests.conftest import Outcome


def result(step: int, seed: int | None, accuracy: float) -> dict[str, Any]:
    protocol, shots = ("linear", None) if seed is None else ("few_shot", 5)
    return {"step": step, "dataset": "bars", "protocol": protocol, "shots": shots, "seed": seed, "accuracy": accuracy}


def test_the_table_shows_mean_and_deviation_over_seeds_and_counts_repeats_once() -> None:
    rows = [result(0, 0, 0.2), result(0, 1, 0.4), result(0, 1, 0.4), result(9, None, 0.875)]
    lines = tabulate_evaluations(rows).splitlines()
    assert lines[2].split() == ["bars", "5-shot", "30.0", "±", "14.1", "-"]
    assert lines[3].split() == ["bars", "linear", "-", "87.5"]


def test_it_draws_a_picture(tmp_path: Path, call: Callable[..., Outcome]) -> None:
    for step in (10, 20):
        values = {
            "train/loss": 1 / step,
            "speed/images_per_s": 5.0,
            "speed/mfu": 0.4,
            "data/unreadable": 0,
            "images_seen": step,
        }
        append_json_line(tmp_path / "metrics.jsonl", {"step": step, **values})
    append_json_line(tmp_path / "evaluations.jsonl", result(20, None, 0.5))
    outcome = call("report", str(tmp_path))
    assert outcome.code == 0
    assert "loss 0.1 -> 0.05" in outcome.text
    with Image.open(tmp_path / "report.png") as image:
        assert image.size[0] > 1000
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 10


def test_a_folder_without_results_is_answered_in_words(tmp_path: Path, call: Callable[..., Outcome]) -> None:
    outcome = call("report", str(tmp_path))
    assert outcome.code == 2
    assert "has no line of metrics.jsonl or evaluations.jsonl yet" in outcome.text
