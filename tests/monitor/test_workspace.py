"""A view of a run's panels is written by the real client to a server on loopback, and pictures arrive at their steps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.monitor.pictures import Picture, find_pictures
from pipeline.monitor.workspace import arrange
from pipeline.run.checkpoint import RunFolder
from pipeline.run.records import append_json_lines
from tests.conftest import Outcome, encode, make_image
from tests.helpers.wandb_server import Serving

NAMES = {
    "step", "images_seen", "exaflops", "train/loss", "train/learning_rate", "speed/images_per_s", "data/retries",
    "eval/cifar10/linear", "eval/cifar10/few_shot_5shot", "eval/cifar10/few_shot_5shot_std", "eval/cifar10/linear_ci95",
    "eval/cifar10/diagnostics_uniformity", "eval/pets/knn_20nn", "figures/filters",
}  # fmt: skip


def test_the_loss_comes_first_and_nothing_is_left_out() -> None:
    groups = arrange(NAMES)
    assert [group.name for group in groups] == [
        "Training", "Evaluation by step", "Evaluation by images seen", "Speed", "Pictures", "Loss by its cost", "More",
    ]  # fmt: skip
    assert groups[0].panels[0].y == ("train/loss",)
    assert [panel.title for panel in groups[1].panels] == [
        "cifar10 diagnostics over steps", "cifar10 over steps", "pets over steps",
    ]  # fmt: skip
    assert groups[1].panels[1].y == ("eval/cifar10/few_shot_5shot", "eval/cifar10/linear")
    assert {panel.x for panel in groups[2].panels} == {"images_seen"}
    assert [(panel.title, panel.kind) for panel in groups[4].panels] == [("filters", "pictures")]
    assert (groups[-1].is_open, [panel.title for panel in groups[-1].panels]) == (False, ["data/retries"])
    shown = {name for group in groups for panel in group.panels for name in panel.y}
    assert shown == {name for name in NAMES if "/" in name and not name.endswith(("_std", "_ci95"))}
    assert arrange({"step"}) == []


def test_pictures_are_found_by_their_steps(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for name in ("samples.png", "step_00000020/filters.png", "step_00000005.average/filters.png", "step_00000020/filters.svg"):
        path = folder.figures / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    assert find_pictures(folder) == [
        Picture("figures/samples", 1, folder.figures / "samples.png"),
        Picture("figures/filters_average", 5, folder.figures / "step_00000005.average" / "filters.png"),
        Picture("figures/filters", 20, folder.figures / "step_00000020" / "filters.png"),
    ]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_view_is_written_once_and_kept(
    server: Serving, reference: RunFolder, tmp_path: Path, call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path / "copied")
    shutil.copytree(reference.root, folder.root, ignore=shutil.ignore_patterns("wandb", "checkpoints"))
    monkeypatch.setenv("WANDB_MODE", "online")  # `call` is offline
    (folder.figures / "step_00000004").mkdir(parents=True)
    (folder.figures / "step_00000004" / "filters.png").write_bytes(encode(make_image(1, num_classes=4, size=16), format="PNG"))
    first = call("workspace", str(folder.root), "--pictures")
    assert first.code == 0, first.text
    assert "2 pictures sent" in first.text
    (view,) = server.views.values()
    assert (view["displayName"], view["projectName"], view["entityName"]) == ("ViT pretraining", "vit-pretraining", "me")
    sections = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    assert sections[0]["name"] == "Training"
    assert "Pictures" in [section["name"] for section in sections]
    (run,) = server.runs.values()
    assert [row["step"] for row in run.rows_with("figures/filters")] == [4]
    assert [row["step"] for row in run.rows_with("figures/samples")] == [1]
    assert sum(name.startswith("media/images/figures/") for name in run.files) == 2
    # The same view again, with what was measured since, and with the pictures that it has.
    append_json_lines(folder.metrics, [{"step": 9, "train/new": 1.0}])
    again = call("workspace", str(folder.root))
    assert again.code == 0, again.text
    (same,) = server.views.values()
    assert same["name"] == view["name"]
    assert "train/new" in same["spec"]
    assert "figures/filters" in same["spec"]
    # A view that was deleted there is written as a new one.
    server.views.clear()
    assert call("workspace", str(folder.root)).code == 0
    assert len(server.views) == 1


def test_what_is_missing_is_said(reference: RunFolder, tmp_path: Path, call: Callable[..., Outcome]) -> None:
    dry = call("workspace", str(reference.root), "--dry-run")
    assert dry.code == 0
    assert "Training\n  train/loss: train/loss over step" in dry.text
    assert "is not a run folder" in call("workspace", str(tmp_path)).text
    assert "a view needs a key of W&B" in call("workspace", str(reference.root)).text
