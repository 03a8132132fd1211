"""The report is made from files alone."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from PIL import Image

from pipeline.report.report import tabulate_results
from pipeline.run.checkpoint import RunFolder
from pipeline.run.records import append_json_line
from tests.conftest import REPOSITORY, Outcome, environment


def result(step: int, seed: int | None, accuracy: float | None) -> dict[str, Any]:
    protocol, shots = ("linear", None) if seed is None else ("few_shot", 5)
    return {"step": step, "dataset": "bars", "protocol": protocol, "shots": shots, "seed": seed, "accuracy": accuracy}


def line(step: int, loss: float | None) -> dict[str, Any]:
    values = {"speed/images_per_s": 5.0, "speed/mfu": 0.4, "data/unreadable": 0}
    return {"step": step, "images_seen": step, "train/loss": loss, **values}


def fill(run: Path, losses: list[float | None], *results: dict[str, Any]) -> None:
    run.mkdir(exist_ok=True)
    for number, loss in enumerate(losses):
        append_json_line(run / "metrics.jsonl", line(10 * (number + 1), loss))
    for row in results:
        append_json_line(run / "evaluations.jsonl", row)


def colours(picture: Path) -> int:
    with Image.open(picture) as image:
        assert image.size[0] > 1000
        return len(image.convert("RGB").getcolors(1 << 24) or [])


def test_the_table_shows_mean_and_deviation_over_seeds_and_counts_repeats_once() -> None:
    rows = [result(0, 0, 0.2), result(0, 1, 0.4), result(0, 1, 0.4), result(9, None, 0.875)]
    lines = tabulate_results(rows).splitlines()
    assert lines[2].split() == ["bars", "5-shot", "30.0", "±", "14.1", "-"]
    assert lines[3].split() == ["bars", "linear", "-", "87.5"]


def test_a_table_of_many_checkpoints_fits_on_a_screen() -> None:
    lines = tabulate_results(
        [result(2500 * number, seed, 0.5 + seed / 10) for number in range(401) for seed in (0, 1)]
    ).splitlines()
    steps = [int(text) for text in lines[0].split()[3::2]]
    assert (steps[0], steps[-1], len(steps)) == (0, 1_000_000, 8)
    assert all(abs(b - a - 1_000_000 / 7) <= 2500 for a, b in itertools.pairwise(steps))
    assert lines[-1] == "(8 of 401 checkpoints; evaluations.jsonl has them all)"
    assert max(map(len, lines)) < 160


@pytest.mark.parametrize("name", [b"lat\xe9n", "実験一".encode(), b"$\\frac{$a$"])
def test_any_folder_and_any_matplotlibrc_will_do(
    name: bytes, tmp_path: Path, call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    for setting, value in {"text.usetex": True, "font.family": ["nowhere"], "backend": "module://nowhere"}.items():
        monkeypatch.setitem(matplotlib.rcParams, setting, value)
    run = tmp_path / os.fsdecode(name)
    fill(run, [1.5, 1.4], result(20, None, 0.5))
    outcome = call("report", str(run))
    assert outcome.code == 0, outcome.text
    assert "bars linear     50.0" in outcome.text
    assert "Warning" not in outcome.text
    assert colours(run / "report.png") > 10


def test_a_picture_that_cannot_be_drawn_does_not_keep_the_table_back(
    tmp_path: Path, call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, [1.5, 1.4], result(20, None, 0.5))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as an installation that is damaged
    outcome = call("report", str(tmp_path))
    assert outcome.code == 0, outcome.text
    assert "bars linear     50.0" in outcome.text
    assert "report.png cannot be written: import of matplotlib.figure halted" in outcome.text


def test_it_draws_a_picture(tmp_path: Path, call: Callable[..., Outcome]) -> None:
    fill(tmp_path, [0.1, 0.05], result(20, None, 0.5))
    outcome = call("report", str(tmp_path))
    assert outcome.code == 0
    assert "loss 0.1 -> 0.05" in outcome.text
    assert colours(tmp_path / "report.png") > 10


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ([1.5, 1.4, None, None], "step 40, 40 images seen, loss 1.5 -> 1.4 at step 20, not finite since"),
        ([math.nan, math.inf], "step 20, 20 images seen, loss not finite"),
        ([1.5], "step 10, 10 images seen, loss 1.5, median"),
        ([1e38, 1.5], "loss 1e+38 -> 1.5"),
    ],
)
def test_losses_that_are_not_finite_and_single_lines_are_shown(
    losses: list[float | None], told: str, tmp_path: Path, call: Callable[..., Outcome]
) -> None:
    fill(tmp_path, losses)
    outcome = call("report", str(tmp_path))
    assert outcome.code == 0, outcome.text
    assert told in outcome.text
    assert "no evaluations" in outcome.text
    assert colours(tmp_path / "report.png") > 10


def test_a_measurement_that_failed_is_named(tmp_path: Path, call: Callable[..., Outcome]) -> None:
    fill(tmp_path, [1.5, 1.4], result(10, None, 0.5), {**result(20, None, None), "error": "no test images"})
    outcome = call("report", str(tmp_path))
    assert outcome.code == 0, outcome.text
    assert "! bars linear has no result at step 20: no test images" in outcome.text


def test_results_without_metrics_are_reported(tmp_path: Path, call: Callable[..., Outcome]) -> None:
    fill(tmp_path, [], result(10, 0, 0.5), result(10, 1, 0.7), {"step": "x"}, {**result(10, 2, 0.1), "dataset": None})
    outcome = call("report", str(tmp_path))
    assert outcome.code == 0, outcome.text
    assert "no training metrics" in outcome.text
    assert "60.0 ± 14.1" in outcome.text
    assert "! 2 lines of evaluations.jsonl passed over" in outcome.text


def test_a_picture_that_cannot_be_written_does_not_keep_the_table_back(
    tmp_path: Path, call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "$a_run$"  # matplotlib would read mathematics
    fill(run, [1.5, 1.4], result(20, None, 0.5))
    (run / "report.png").mkdir()  # root may write anywhere, but not over a folder
    outcome = call("report", str(run))
    assert outcome.code == 0, outcome.text
    assert "bars linear     50.0" in outcome.text
    assert f"picture {run}/report.png cannot be written: Is a directory; --out FILE puts it elsewhere" in outcome.text

    (tmp_path / "pictures").mkdir()
    assert call("report", str(run), "--out", str(tmp_path / "pictures")).code == 0
    assert call("report", str(run), "--out", str(tmp_path / "pictures" / "without_ending")).code == 0
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["$a_run$.png", "without_ending"]
    for wrong in ("curves.docx", "not_there/curves.png"):
        outcome = call("report", str(run), "--out", str(tmp_path / wrong))
        assert (outcome.code, "bars linear     50.0" in outcome.text) == (2, True)
        assert f"error: picture {tmp_path / wrong} cannot be written" in outcome.text
        assert "Traceback" not in outcome.text


def test_a_folder_without_results_is_answered_in_words(tmp_path: Path, call: Callable[..., Outcome]) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1')
    outcome = call("report", str(tmp_path))
    assert outcome.code == 2
    assert "has no line of metrics.jsonl or evaluations.jsonl yet" in outcome.text


def test_a_reader_that_has_seen_enough_is_no_error(reference: RunFolder) -> None:
    command = [sys.executable, "-m", "pipeline", "report", str(reference.root)]
    shell = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$@" | true', "-", *command],
        cwd=REPOSITORY,
        env=environment(),
        text=True,
        stderr=subprocess.PIPE,
    )
    assert (shell.returncode, shell.stderr) in ((141, ""), (0, ""))
