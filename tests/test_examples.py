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

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from pipeline.errors import DataError
from pipeline.exchange.source import read_pretrained
from pipeline.models.base import ModelConfig
from pipeline.models.bit.layers import max_pool
from pipeline.models.bit.section import BiT
from pipeline.models.hybrid.section import Hybrid
from pipeline.models.vit.section import ViT
from pipeline.run.weights import save_weights
from tests.conftest import REPOSITORY, environment, find_reference, run_command
from tests.helpers.parity.cases import fill

EXAMPLES = REPOSITORY / "docs" / "examples"
DETECT = "docs/examples/detect.py"
VIT: dict[str, Any] = {"name": "Ti/8", "image_size": 32, "width": 32, "depth": 2, "num_heads": 2, "representation": "none"}
SIDE = 48  # of images, in pixels


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
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


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


def write_squares(folder: Path, count: int) -> None:
    """Write images of noise with one or two bright squares, in two classes: red and green."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    entries, annotations = [], []
    for number in range(count):
        pixels = generator.integers(0, 60, (SIDE, SIDE, 3), dtype=np.uint8)
        for half in range(generator.integers(1, 3)):
            side, label = generator.integers(10, 20), generator.integers(2)
            top, left = generator.integers(SIDE - side + 1), half * SIDE // 2 + generator.integers(SIDE // 2 - side + 1)
            pixels[top : top + side, left : left + side, label] = 255
            box = [int(value) for value in (left, top, side, side)]
            annotations.append({"id": len(annotations), "image_id": number, "category_id": int(label) + 7, "bbox": box})
        Image.fromarray(pixels).save(folder / f"{number}.png")
        entries.append({"id": number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE})
    categories = [{"id": 7, "name": "red"}, {"id": 8, "name": "green"}]
    content = {"images": entries, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))


def test_boxes_are_around_what_they_name_also_when_mirrored(examples: None, tmp_path: Path) -> None:
    from detection.data import Resized, read_folder

    write_squares(tmp_path / "set", 8)
    folder = read_folder(tmp_path / "set")
    assert folder.classes == ("red", "green")
    for position in ((number, flip) for number in range(8) for flip in range(2)):
        pixels, target = Resized(folder, (2 * SIDE, SIDE))[position]  # stretched
        covered = torch.zeros(2, 2 * SIDE, SIDE, dtype=torch.bool)
        for label, (x, y, width, height) in zip(target["class_labels"], target["boxes"], strict=True):
            left, top = round(float(x - width / 2) * SIDE), round(float(y - height / 2) * 2 * SIDE)
            covered[label, top : top + round(float(height) * 2 * SIDE), left : left + round(float(width) * SIDE)] = True
        assert ((pixels[:2] > 0.9) <= covered).all()  # bright is in a box of its colour
        assert (pixels[:2][covered] > 0).float().mean() > 0.95  # and the boxes are full of it, but for interpolated edges


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 7, 8])
def test_boxes_are_those_of_the_size_that_the_annotations_say(examples: None, tmp_path: Path, orientation: int) -> None:
    """Label tools annotate a photo as its EXIF orientation turns it, COCO as it is stored (HumanSignal/label-studio issue 6608,
    voxel51/fiftyone issue 3778): width and height say which."""
    from detection.data import Resized, read_folder

    (tmp_path / "set").mkdir()
    stored = np.zeros((40, 80, 3), np.uint8)
    stored[:10, :20] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "set" / "photo.png", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "set" / "photo.png")))
    rows, columns = (np.flatnonzero(upright[:, :, 0].any(axis)) for axis in (1, 0))
    is_turned = orientation >= 5
    box = [int(columns[0]), int(rows[0]), len(columns), len(rows)] if is_turned else [0, 0, 20, 10]
    width, height = (40, 80) if is_turned else (80, 40)
    content = {
        "images": [{"id": 1, "file_name": "photo.png", "width": width, "height": height}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": box, "iscrowd": False}],
        "categories": [{"id": 1, "name": "corner"}, {"id": 3, "name": "corner"}],
    }
    (tmp_path / "set" / "annotations.json").write_text("\ufeff" + json.dumps(content))
    folder = read_folder(tmp_path / "set")
    assert folder.classes == ("corner",)
    pixels, target = Resized(folder, (height, width))[0, 0]
    x, y, *_ = (target["boxes"][0] * torch.tensor([width, height, width, height])).tolist()
    left, top = round(x - box[2] / 2), round(y - box[3] / 2)
    bright = pixels[0] > 0
    assert bright[top : top + box[3], left : left + box[2]].all()
    assert bright.sum() == 200
    assert target["size"].tolist() == [width, height]


def test_an_epoch_takes_each_image_once_and_a_resumed_one_goes_on(examples: None) -> None:
    from detection.data import batches

    def draw(steps: range) -> list[list[tuple[int, int]]]:
        return list(batches(12, steps, 4, seed=3, flip=True))

    whole = draw(range(9))
    for first in (0, 3, 6):
        assert sorted(number for batch in whole[first : first + 3] for number, _ in batch) == list(range(12))
    assert whole[0] != whole[3]
    assert draw(range(4, 9)) == whole[4:]


def without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda content: {name: value for name, value in content.items() if name != key}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("categories"), "not in COCO's format (images, annotations with bbox, categories): there is no 'categories'"),
        (without("annotations"), "there is no 'annotations'"),
        (lambda content: [content], "not in COCO's format"),
        (lambda content: content | {"annotations": []}, "no image has a box"),
        (lambda content: content | {"annotations": [{"image_id": 0, "category_id": 7, "bbox": [1, 2, 3]}]}, "COCO's format"),
        (
            lambda content: content | {"annotations": [{"image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4]}]},
            "has the category_id 1, which categories has not",
        ),
        (lambda content: content | {"images": content["images"][1:]}, "has the image_id 0, which images has not"),
        (
            lambda content: content | {"annotations": [{"image_id": 0, "category_id": 7, "bbox": [0.1, 0.2, 0.3, 0.4]}]},
            "no box is larger than a pixel",
        ),
        (
            lambda content: content | {"images": [{**entry, "width": 2 * SIDE} for entry in content["images"]]},
            f"has {SIDE} x {SIDE} pixels, and annotations.json says {2 * SIDE} x {SIDE}",
        ),
        (
            lambda content: content | {"images": [{"id": 0, "file_name": "lost.png"}], "annotations": []},
            "lost.png does not exist",
        ),
    ],
)
def test_annotations_of_another_form_are_refused(examples: None, tmp_path: Path, change: Any, said: str) -> None:
    from detection.data import read_folder

    write_squares(tmp_path / "set", 2)
    path = tmp_path / "set" / "annotations.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(DataError) as caught:
        read_folder(tmp_path / "set")
    assert said in str(caught.value)
    path.write_text("{")
    with pytest.raises(DataError, match="is no JSON"):
        read_folder(tmp_path / "set")
    with pytest.raises(DataError, match="cannot be read"):
        read_folder(tmp_path / "elsewhere")


def test_the_made_digits_fill_their_boxes(examples: None, tmp_path: Path) -> None:
    from make_digits import write_set

    ink = np.zeros((3, 28, 28), np.uint8)
    ink[:, 6:20, 9:15] = 255
    photos, generator = [Image.new("RGB", (90, 80))], np.random.default_rng(0)
    write_set(tmp_path / "set", 5, digits=(ink, np.arange(3)), photos=photos, size=70, generator=generator)
    content = json.loads((tmp_path / "set" / "annotations.json").read_text())
    for entry in content["images"]:
        pixels = np.array(Image.open(tmp_path / "set" / entry["file_name"])).max(axis=2)
        boxes = [box["bbox"] for box in content["annotations"] if box["image_id"] == entry["id"]]
        assert boxes
        for left, top, width, height in boxes:
            assert (pixels[top : top + height, left : left + width] > 30).mean() > 0.9
            pixels[top : top + height, left : left + width] = 0
        assert pixels.max() == 0


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
@pytest.mark.parametrize(("family", "name"), [("bit", "detr"), ("bit", "deformable-detr"), ("vit", "yolos")])
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
