"""Grids of fine-tunings: their points, their choice, their table, and that a kill changes nothing."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.read import load_config
from pipeline.errors import ConfigError, TrainingError
from pipeline.finetune.grid import check_beginnings, choose
from pipeline.finetune.points import configure_final, configure_point, list_points
from pipeline.report.finetune import Final, PointResult, Table, draw_table, read_table, write_table
from pipeline.run.folder import RunFolder
from pipeline.run.records import read_metrics
from tests.conftest import Outcome, environment

GRID = {"optimizer.learning_rate": [0.01, 0.003], "trainer.duration": ["4 steps", "8 steps"]}


def test_every_combination_is_a_point() -> None:
    names = [point.name for point in list_points(GRID)]
    assert names == [
        "learning_rate0.01-duration4steps",
        "learning_rate0.01-duration8steps",
        "learning_rate0.003-duration4steps",
        "learning_rate0.003-duration8steps",
    ]
    assert [point.settings for point in list_points({})] == [{}]
    names = [point.name for point in list_points({"data.augment": [{"name": "none"}, {"name": "[none]"}]})]
    assert len(set(names)) == 2


def test_a_point_is_measured_on_the_dev_images_and_a_final_run_on_the_test_images(write_config: Callable[..., Path]) -> None:
    path = write_config(evaluation={"validation": [{"name": "test", "shards": "TEST"}]}, finetune={"grid": GRID, "seeds": 2})
    base = load_config(path)
    point = list_points(GRID)[1]
    config = configure_point(base, point, train="REST", dev="DEV")
    assert (config.data.train, config.optimizer.learning_rate, str(config.trainer.duration)) == ("REST", 0.01, "8 steps")
    (dev,) = config.evaluation.validation
    assert (dev.name, dev.shards.path, config.evaluation.datasets) == ("dev", "DEV", ())
    assert config.run_dir == base.run_dir / "grid" / point.name
    final = configure_final(base, point, seed=1)
    assert (final.seed, final.data, final.evaluation) == (1, base.data, base.evaluation)
    assert final.run_dir == base.run_dir / "final-s1"


def test_the_best_point_is_chosen_the_lowest_loss_or_the_highest_accuracy() -> None:
    points = [PointResult(str(value), {}, value) for value in (0.2, 0.5, 0.5)] + [PointResult("broken", {}, None, error="no")]
    assert choose(points) is points[1]
    losses = [PointResult(str(value), {}, value, quantity="loss") for value in (2.0, 0.5, 0.7)]
    assert choose(losses) is losses[1]
    diverged = [PointResult("nan", {}, math.nan), PointResult("inf", {}, math.inf), *points]
    assert choose(diverged).name == "0.5"
    with pytest.raises(Exception, match="no point of the grid has a result: no"):
        choose(points[3:])


def test_points_that_began_with_other_weights_are_not_compared(tmp_path: Path) -> None:
    """The weights of a run that still trains are its newest when a point begins."""
    folders = [RunFolder(tmp_path / name) for name in "abc"]
    for folder, digest in zip(folders, ("1f", "1f", "2e"), strict=True):
        folder.root.mkdir()
        folder.initial.write_text(json.dumps({"digest": digest, "source": f"step_{digest}.safetensors"}))
    check_beginnings(folders[:2])
    with pytest.raises(TrainingError, match=r"step_1f\.safetensors \(a\) and step_2e\.safetensors \(c\); give one file"):
        check_beginnings(folders)


def test_the_table_is_read_as_it_was_written_and_drawn(tmp_path: Path) -> None:
    points = [PointResult("a", {"optimizer.learning_rate": 0.1}, 0.5, seconds=3), PointResult("b", {}, None, error="lost")]
    finals = [Final(seed, {"test top-1": {"value": 0.5 + seed / 10, "quantity": "accuracy"}}, "w") for seed in range(2)]
    table = Table("cars", "top-1", points, chosen="a", finals=finals)
    write_table(tmp_path, table)
    assert read_table(tmp_path) == table
    text = table.to_text()
    for part in ("| 0.1 | 50.0 % | chosen |", "|  | failed | lost |", "test top-1: 55.0 % ± 7.1 % (2 seeds)"):
        assert part in text
    assert draw_table(table, format="png").startswith(b"\x89PNG")
    (tmp_path / "finetune.json").write_text("{}")
    with pytest.raises(ConfigError, match="is damaged"):
        read_table(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["init_from=null"], "set init_from=RUN_OR_WEIGHTS"),
        (["evaluation.validation=[]"], "names no set"),
        (["finetune.grid={optimizer.rate: [1]}"], "optimizer.rate"),
        (["finetune.grid={optimiser.rate: [1]}"], "optimiser.rate is no setting"),
        (["finetune.grid={optimizer.learning_rate: []}"], "has no values"),
        (["finetune.grid={optimizer.learning_rate: [1, 1]}"], "has a value twice"),
        (["finetune.dev=1.5"], "finetune.dev"),
        (["init_from=nowhere"], "weights nowhere do not exist"),
        (["--point", "9"], "has the points 0 to 3"),
    ],
)
def test_mistakes_are_answered_before_anything_is_trained(
    reference: RunFolder,
    write_config: Callable[..., Path],
    call: Callable[..., Outcome],
    settings: list[str],
    message: str,
    corpus: Path,
) -> None:
    config = grid_config(write_config, reference, corpus)
    result = call("finetune", str(config), *settings)
    assert result.code == 2
    assert message in result.text
    assert not list(config.parent.glob("runs/tiny/grid/*"))


def grid_config(write_config: Callable[..., Path], reference: RunFolder, corpus: Path, **more: Any) -> Path:
    return write_config(
        init_from=str(reference.root),
        model={"representation": "none", "dropout": 0.0},
        trainer={"devices": 1, "zero_stage": 0, "precision": "fp32"},
        checkpoint={"every": "2 steps"},
        evaluation={"datasets": [], "validation": [{"name": "test", "shards": str(corpus), "class_map": "numbers"}]},
        finetune={"grid": GRID, "dev": 0.25},
        **more,
    )


def test_the_points_are_listed(write_config: Callable[..., Path], call: Callable[..., Outcome]) -> None:
    text = call("finetune", str(write_config(finetune={"grid": GRID})), "--list").text
    assert text.splitlines()[3].split("\t")[:2] == ["3", "learning_rate0.003-duration8steps"]


def start(config: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pipeline", "finetune", str(config)]
    return subprocess.Popen(command, env=environment(), start_new_session=True, stdout=subprocess.DEVNULL)


def results_of(root: Path) -> tuple[dict[str, Any], list[Any]]:
    """Return the table without durations, and the digests and losses of every run."""
    table = json.loads((root / "finetune.json").read_text())
    for point in table["points"]:
        del point["seconds"]
    for final in table["finals"]:
        final["weights"] = Path(final["weights"]).name
    folders = sorted(path.parent for path in root.rglob("metrics.jsonl"))
    rows = [[(row["data/digest"], row["train/loss"]) for row in read_metrics(folder / "metrics.jsonl")] for folder in folders]
    return table, rows


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_killed_five_times_it_gives_the_same_table(
    reference: RunFolder, write_config: Callable[..., Path], call: Callable[..., Outcome], corpus: Path
) -> None:
    undisturbed = grid_config(write_config, reference, corpus, name="undisturbed")
    assert start(undisturbed).wait() == 0
    config = grid_config(write_config, reference, corpus, name="killed")
    root, draw = config.parent / "runs" / "killed", random.Random(0)
    for _ in range(5):
        process = start(config)
        time.sleep(draw.uniform(4, 22))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert start(config).wait() == 0
    table, rows = results_of(root)
    expected, expected_rows = results_of(config.parent / "runs" / "undisturbed")
    assert {**table, "name": ""} == {**expected, "name": ""}
    assert rows == expected_rows
    assert table["chosen"] is not None
    text = call("report", str(root)).text
    assert "chosen" in text
    assert "test top-1: " in text
    assert (root / "report.png").exists()
