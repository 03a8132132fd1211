"""Detectors on pretrained weights: the backbone computes what it did, and the example trains, resumes and refuses in words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.exchange.source import read_pretrained
from pipeline.models.base import ModelConfig
from pipeline.models.bit.layers import max_pool
from pipeline.models.bit.section import BiT
from pipeline.models.hybrid.section import Hybrid
from pipeline.models.vit.section import ViT
from pipeline.run.weights import save_weights
from tests.conftest import REPOSITORY, environment, find_reference, run_command
from tests.helpers.detection import SIDE, write_squares
from tests.helpers.parity.cases import fill

DETECT = "docs/examples/detect.py"
VIT: dict[str, Any] = {"name": "Ti/8", "image_size": 32, "width": 32, "depth": 2, "num_heads": 2, "representation": "none"}


def config_of(family: str, **settings: Any) -> ModelConfig:
    if family == "vit":
        return ViT(**{**VIT, "num_classes": 5, **settings}).resolve()
    if family == "hybrid":
        return Hybrid(name="R26+S/32", image_size=64, width=48, depth=1, num_heads=3, num_classes=5).resolve()
    return BiT(name="R26x0.5", blocks=[1, 1, 1], num_classes=5, image_size=32, **settings).resolve()


@pytest.fixture
def write_weights(tmp_path: Path) -> Callable[..., Path]:
    """Write the weights of a small model, none of them zero."""

    def write(family: str, **settings: Any) -> Path:
        path = tmp_path / "weights" / f"{family}.safetensors"
        config = config_of(family, **settings)
        save_weights(path, fill(config.build()).state_dict(), model=config, step=3, images_seen=24)
        return path

    return write


@pytest.fixture
def make(examples: None) -> Callable[..., Any]:
    """Make a detector of images of SIDE pixels."""
    find_reference("transformers")
    from detection.models import DetectorSettings, make_detector

    def detector(path: Path, name: str, *, queries: int = 6) -> Any:
        settings = DetectorSettings(name, ("a", "b"), (SIDE, SIDE), width=32, layers=2, queries=queries)
        return make_detector(read_pretrained(path), settings)

    return detector


def model_of(path: Path) -> Any:
    return read_pretrained(path).build()


def images() -> Tensor:
    return torch.rand((1, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0)) * 2 - 1


def maps_of(detector: Any) -> list[Tensor]:
    with torch.no_grad():
        found = detector.model.model.backbone.model.eval()(images())
    return list(getattr(found, "feature_maps", found))


@pytest.mark.parametrize(("name", "count"), [("detr", 1), ("deformable-detr", 3)])
def test_the_maps_of_a_resnet_are_those_of_its_stages(write_weights: Any, make: Any, name: str, count: int) -> None:
    path = write_weights("bit")
    detector = make(path, name)
    trunk = model_of(path).trunk
    with torch.no_grad():
        features, expected = max_pool(trunk.conv_root(images()), variant="v2"), []
        for stage in trunk.stages:
            features = stage(features)
            expected.append(features)
    for ours, theirs in zip(expected[-count:], maps_of(detector), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)  # another epsilon in each normalisation
    assert len(detector.taken) == len(trunk.state_dict())


def test_the_map_of_a_vit_is_that_of_its_patches(write_weights: Any, make: Any) -> None:
    """Up to the last normalisation, which ViTDet does not have; without a class token, which it drops."""
    path = write_weights("vit", pooling="gap", position="sincos_2d", image_size=SIDE)
    detector, ours = make(path, "deformable-detr"), model_of(path)
    with torch.no_grad():
        tokens = ours.norm(maps_of(detector)[0].flatten(2).transpose(1, 2))
        torch.testing.assert_close(tokens, ours.forward_tokens(images()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pooling", ["class_token", "map"])
def test_yolos_that_reads_every_token_twice_is_the_vit(write_weights: Any, make: Any, pooling: str) -> None:
    """Attention to equal tokens is that to one of them: detection tokens that are the image's own change nothing."""
    path = write_weights("vit", pooling=pooling, image_size=SIDE)
    ours = model_of(path)
    count = (SIDE // 8) ** 2 + 1
    yolos = make(path, "yolos", queries=count).model.vit.eval()
    own = yolos.embeddings
    with torch.no_grad():
        own.detection_tokens[:] = torch.cat([own.cls_token, own.patch_embeddings(images())], dim=1)
        own.position_embeddings[:, count:] = own.position_embeddings[:, :count]
        theirs = yolos(images()).last_hidden_state
        torch.testing.assert_close(theirs[:, :count], theirs[:, count:], rtol=1e-4, atol=1e-4)
        if pooling == "class_token":  # the other ViT has no such token, and attends to patches alone
            torch.testing.assert_close(theirs[:, count:], ours.forward_tokens(images()), rtol=1e-4, atol=1e-4)


def test_the_maps_of_swin_are_timms_at_another_size(timm: Any, make: Any, tmp_path: Path) -> None:
    from pipeline.models.timm.section import Timm

    options = {"embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 2], "window_size": 2}
    config = Timm(name="swin_tiny_patch4_window7_224", image_size=64, options=options, num_classes=5).resolve()
    model: Any = fill(config.build())
    path = tmp_path / "weights" / "swin.safetensors"
    save_weights(path, model.state_dict(), model=config, step=3, images_seen=24)
    found = maps_of(make(path, "deformable-detr"))
    model.backbone.set_input_size((SIDE, SIDE), window_size=2)
    with torch.no_grad():
        expected = model.backbone.eval().forward_intermediates(images(), indices=[1, 2, 3], intermediates_only=True)
    assert [tuple(ours.shape) for ours in found] == [(1, 32, 6, 6), (1, 64, 3, 3), (1, 128, 2, 2)]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_batch_norm_keeps_statistics_and_activation_in_training(timm: Any, make: Any, tmp_path: Path) -> None:
    """A backbone whose BatchNorm holds its activation, which DETR's own frozen BatchNorm would drop."""
    from pipeline.models.timm.section import Timm

    config = Timm(name="mobilenetv3_small_050", image_size=SIDE, num_classes=5).resolve()
    model: Any = fill(config.build())
    path = tmp_path / "weights" / "mobilenet.safetensors"
    save_weights(path, model.state_dict(), model=config, step=3, images_seen=24)
    backbone = make(path, "detr").model.train().model.backbone.model
    with torch.no_grad():
        expected = model.backbone.forward_intermediates(images(), indices=1, intermediates_only=True)[0]
        torch.testing.assert_close(backbone(images())[0], expected)


def detect(weights: Path, root: Path, out: str, *options: str) -> list[str]:
    """Return the arguments of a short training."""
    small = ["--image-size", str(SIDE), "--width", "32", "--layers", "2", "--queries", "6", "--batch-size", "4", "--every", "2"]
    return [DETECT, str(weights), str(root / "set"), str(root / "set"), "--out", str(root / out), *small, *options]


def results_of(folder: Path) -> list[dict[str, Any]]:
    try:
        return json.loads((folder / "results.json").read_text())
    except FileNotFoundError:
        return []


def checkpoint_of(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def run_detect(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    find_reference("transformers")
    find_reference("pycocotools")
    return run_command(*arguments, module="tests.helpers.run_example", timeout_s=900)


def kill_after(step: int, arguments: list[str], folder: Path) -> None:
    """Start a training, and kill it once it has saved a step."""
    command = [sys.executable, "-m", "tests.helpers.run_example", *arguments]
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment(), stdout=subprocess.DEVNULL)
    while not any(row["step"] >= step for row in results_of(folder)):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("family", "name"),
    [
        pytest.param("bit", "detr", marks=pytest.mark.long),
        ("bit", "deformable-detr"),
        pytest.param("vit", "yolos", marks=pytest.mark.long),
    ],
)
def test_a_killed_training_goes_on_to_the_same_bits(write_weights: Any, tmp_path: Path, family: str, name: str) -> None:
    """Weights, moments and measurements; and transformers opens what was written as it was trained."""
    write_squares(tmp_path / "set", 8)
    weights, steps = write_weights(family), ["--detector", name, "--steps", "12"]
    assert run_detect(detect(weights, tmp_path, "whole", *steps)).returncode == 0
    kill_after(4, detect(weights, tmp_path, "killed", *steps), tmp_path / "killed")
    assert results_of(tmp_path / "killed")[-1]["step"] < 12
    done = run_detect(detect(weights, tmp_path, "killed", *steps))
    assert done.returncode == 0, done.stdout
    whole, killed = checkpoint_of(tmp_path / "whole"), checkpoint_of(tmp_path / "killed")
    assert [row["step"] for row in whole["results"]] == [0, 2, 4, 6, 8, 10, 12]
    assert whole["results"] == killed["results"]
    torch.testing.assert_close(whole["model"], killed["model"], rtol=0, atol=0)
    torch.testing.assert_close(whole["optimizer"], killed["optimizer"], rtol=0, atol=0)
    import transformers  # type: ignore[import-not-found]

    opened = transformers.AutoModelForObjectDetection.from_pretrained(tmp_path / "whole" / "detector")
    torch.testing.assert_close(dict(opened.state_dict()), dict(whole["model"]), rtol=0, atol=0)
    other = run_detect(detect(weights, tmp_path, "killed", "--detector", name, "--steps", "14"))
    assert other.returncode == 2
    assert "was written with steps 12, not 14" in other.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ap_rises(write_weights: Any, tmp_path: Path) -> None:
    """On squares of two colours, from random weights."""
    write_squares(tmp_path / "set", 64)
    training = ["--steps", "200", "--every", "100", "--lr", "2e-3", "--backbone-lr", "1e-3", "--batch-size", "8"]
    done = run_detect(detect(write_weights("bit"), tmp_path, "out", "--backbone", "random", *training))
    assert done.returncode == 0, done.stdout
    rows = results_of(tmp_path / "out")
    assert rows[0]["AP"] < 1
    assert rows[1]["loss"] > rows[2]["loss"]
    assert rows[-1]["AP50"] > 50


def test_boxes_of_yolos_begin_unlike_each_other(write_weights: Any, make: Any) -> None:
    """With transformers' draw of deviation 0.02 they begin alike, and what one is told moves all of them."""
    detector = make(write_weights("vit"), "yolos").model.eval()
    with torch.no_grad():
        boxes = detector(images()).pred_boxes[0]  # (queries, 4)
    assert boxes.std(dim=0).min() > 1e-3


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_ap_of_yolos_rises(write_weights: Any, tmp_path: Path) -> None:
    write_squares(tmp_path / "set", 64)
    training = ["--steps", "1500", "--every", "500", "--lr", "2e-3", "--backbone-lr", "2e-3", "--batch-size", "8"]
    options = ["--detector", "yolos", "--backbone", "random", "--queries", "6"]
    done = run_detect(detect(write_weights("vit"), tmp_path, "out", *options, *training))
    assert done.returncode == 0, done.stdout
    rows = results_of(tmp_path / "out")
    assert rows[0]["AP"] < 1
    assert rows[-1]["AP50"] > 80


@pytest.mark.parametrize(
    ("family", "options", "said"),
    [
        (
            "hybrid",
            [],
            "of the family hybrid, which is a backbone of no detector here; use weights of the families vit, bit or timm",
        ),
        ("bit", ["--detector", "yolos"], "of the family bit, which is a backbone of deformable-detr, detr"),
        ("bit", ["--width", "40"], "--width 40 is not a multiple of 32"),
        ("vit", ["--image-size", "30"], "an image of 30 px is not divisible by the 8 pixels of a token"),
        ("vit", ["--image-size", "1", "2", "3"], "--image-size takes one number, or height and width"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(
    examples: None, write_weights: Any, tmp_path: Path, monkeypatch: Any, capsys: Any, family: str, options: Any, said: str
) -> None:
    from detect import main

    write_squares(tmp_path / "set", 2)
    monkeypatch.setattr(sys, "argv", detect(write_weights(family), tmp_path, "out", *options))
    assert main() == 2
    assert capsys.readouterr().err.endswith(f"{said}\n")
    assert not (tmp_path / "out").exists()


def test_missing_weights_and_folders_are_named(
    examples: None, write_weights: Any, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    from detect import main

    weights = tmp_path / "lost.safetensors"
    monkeypatch.setattr(sys, "argv", detect(weights, tmp_path, "out"))
    assert main() == 2
    assert f"{tmp_path / 'set' / 'annotations.json'} cannot be read: No such file" in capsys.readouterr().err
    write_squares(tmp_path / "set", 2)
    assert main() == 2
    assert f"weights {weights} do not exist" in capsys.readouterr().err
