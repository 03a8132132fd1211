"""docs/adding.md is followed to the letter: a copy of the program gets an objective and a protocol, trains and measures."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.run.folder import RunFolder
from pipeline.run.records import read_json_lines, read_metrics
from tests.conftest import REPOSITORY, environment

STEP = re.compile(r"`(pipeline/\S+\.py)`:\n\n```(python|diff)\n(.*?)```", re.S)


def apply(diff: str, text: str) -> str:
    """Apply a diff: lines with + replace the line with - before them, or go below the line of context before them."""
    for old, added in re.findall(r"([ -].*\n)((?:\+.*\n)*)", diff):
        kept, line = old[0] == " ", old[1:]
        assert text.count(line) == 1, line
        text = text.replace(line, line * kept + added.replace("\n+", "\n").removeprefix("+"))
    return text


@pytest.mark.slow
def test_an_objective_and_a_protocol_are_one_file_and_one_name_each(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(REPOSITORY / "pipeline", copy / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    steps = STEP.findall((REPOSITORY / "docs" / "adding.md").read_text())
    assert [Path(path).name for path, _, _ in steps] == ["focal.py", "__init__.py", "nearest_mean.py", "__init__.py"]
    for path, kind, content in steps:
        file = copy / path
        assert file.exists() == (kind == "diff")
        file.write_text(content if kind == "python" else apply(content, file.read_text()))
    config = write_config("toy")
    folder = RunFolder(tmp_path / "runs" / "toy")

    def call(*words: str) -> str:
        result = subprocess.run(
            [sys.executable, "-m", "pipeline", *words],
            cwd=copy,
            env=environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=240,
        )
        assert result.returncode == 0, result.stdout
        return result.stdout

    settings = ["objective.name=focal", "objective.gamma=1.5", "evaluation.protocols={nearest_mean: {}}"]
    shown = call("show-config", str(config), *settings)
    assert "gamma: 1.5" in shown
    assert "protocol: nearest_mean" in shown
    call("train", str(config), *settings, "trainer.max_steps=3", "trainer.devices=1")
    losses = [row["train/loss"] for row in read_metrics(folder.metrics)]
    assert len(losses) == 3
    assert losses[0] == pytest.approx(0.75**1.5 * 1.3863, rel=1e-3)  # a head of zeros: four classes, p = 1/4 each
    call("evaluate", str(folder.root))
    rows = read_json_lines(folder.evaluations)
    assert {(row["step"], row["measure"]) for row in rows} == {(0, "nearest mean"), (3, "nearest mean")}
    assert all(row["accuracy"] > 0.5 for row in rows)
    assert "bars nearest mean" in call("report", str(folder.root))
