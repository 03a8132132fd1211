"""The protocol `finetune` takes its value from the command of that name, and says why it has none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import ExitCode
from pipeline.run.checkpoint import RunFolder
from pipeline.run.records import read_json_lines
from tests.helpers.evaluations import Call, add_weights


@pytest.fixture
def recipe(tmp_path: Path, write_config: Callable[..., Path]) -> Callable[..., str]:
    """Write a recipe without a model: it is that of the weights."""

    def write(**trainer: Any) -> str:
        path = write_config(
            "recipe",
            trainer={"devices": 1, "zero_stage": 0, "precision": "fp32", "duration": "4 steps", **trainer},
            checkpoint={"every": "2 steps"},
            evaluation={"datasets": []},
            finetune={"grid": {"optimizer.learning_rate": [0.01]}, "dev": 0.25, "seeds": 2},
        )
        values = yaml.safe_load(path.read_text())
        values["model"] = {"num_classes": 1, "image_size": 16, "representation": "none", "dropout": 0.0}
        path.write_text(yaml.safe_dump(values))
        return str(path)

    return write


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_checkpoint_is_fine_tuned_once_and_its_table_is_kept(
    folder: RunFolder, call: Call, recipe: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    add_weights(folder, 4)
    settings = f"evaluation.protocols={{finetune: {{recipe: {recipe()}}}}}"
    done = call("evaluate", str(folder.root), settings)
    assert done.code == 0, done.text
    assert "finetune " in done.text
    assert "kept features" not in done.text
    (row,) = read_json_lines(folder.evaluations)
    (kept,) = (path for path in (folder.root / "finetune").iterdir() if path.is_dir())
    assert [path.name for path in kept.iterdir()] == ["finetune.json"]
    finals = json.loads((kept / "finetune.json").read_text())["finals"]
    assert row["values"] == [final["results"][f"{row['dataset']} top-1"]["value"] for final in finals]
    assert row["accuracy"] == pytest.approx(sum(row["values"]) / 2)
    assert (row["measure"], row["chosen"], row["points"]) == ("fine-tuned", "learning_rate0.01", 1)
    # A result that was not recorded is read, not computed again.
    folder.evaluations.unlink()
    monkeypatch.setattr("pipeline.evaluation.protocols.fine_tune.run_logged", lambda *_, **__: pytest.fail("trained again"))
    assert call("evaluate", str(folder.root), settings).code == 0
    assert read_json_lines(folder.evaluations) == [row]


@pytest.mark.slow
def test_a_recipe_that_cannot_be_followed_costs_its_own_measurement_alone(
    folder: RunFolder, call: Call, recipe: Callable[..., str]
) -> None:
    add_weights(folder, 4)
    settings = (
        f"evaluation.protocols={{knn: {{k: [1]}}, nowhere: {{protocol: finetune, recipe: {folder.root}/none.yaml}}, "
        f"finetune: {{recipe: {recipe()}, overrides: [trainer.duration=soon]}}}}"
    )
    done = call("evaluate", str(folder.root), settings)
    assert done.code == ExitCode.ERROR
    rows = {row["protocol"]: row for row in read_json_lines(folder.evaluations)}
    assert rows["knn"]["accuracy"] is not None
    assert "none.yaml: No such file or directory" in rows["nowhere"]["error"]
    assert "fine-tuning ended with exit code 2: " in rows["finetune"]["error"]
    assert "trainer.duration" in rows["finetune"]["error"]
    assert "the next evaluation tries it again" in rows["finetune"]["error"]
