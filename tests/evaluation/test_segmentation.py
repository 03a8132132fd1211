"""A linear classifier of patches, against scikit-learn's and torchmetrics' of the same features and pixels."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression  # type: ignore[import-not-found]
from torchmetrics.classification import MulticlassJaccardIndex

from data_tools.__main__ import main as data_tools
from data_tools.index import index_folder
from data_tools.make.write_shard import add_sample
from data_tools.parallel import LocalWorkers
from pipeline.data.images.crop import EvalTransform
from pipeline.data.images.decode import UnreadableImage
from pipeline.data.images.masks import IGNORED, decode_mask, resize_mask
from pipeline.data.shards.index import load_index
from pipeline.errors import DataError
from pipeline.evaluation.feature_source import FeatureSource
from pipeline.evaluation.mask_scores import classes_of_patches, confusion, scores_of
from pipeline.evaluation.mask_sets import open_mask_set
from pipeline.evaluation.reading import Reading
from pipeline.evaluation.section import SegmentationSection
from pipeline.evaluation.segmentation import collect_patches
from pipeline.files import write_whole
from pipeline.run.checkpoint import RunFolder
from pipeline.run.records import read_json_lines
from pipeline.run.weights import load_weights
from tests.conftest import Outcome
from tests.helpers.evaluations import add_weights

Call = Callable[..., Outcome]
COLOURS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])


def png(pixels: NDArray[Any], mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels, mode).save(buffer, "PNG")
    return buffer.getvalue()


def make_scene(generator: np.random.Generator, *, side: int = 32) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return a noisy picture of coloured quarters, and their classes with some pixels of no class."""
    quarters = generator.integers(0, 3, size=(2, 2))
    mask = quarters.repeat(side // 2, axis=0).repeat(side // 2, axis=1).astype(np.uint8)
    pixels = np.clip(COLOURS[mask] + generator.normal(0, 50, (side, side, 3)), 0, 255).astype(np.uint8)
    mask[: side // 8] = IGNORED
    return pixels, mask


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, str]:
    folders = {}
    for seed, (split, count) in enumerate({"train": 24, "test": 10}.items()):
        folder = tmp_path / split
        folder.mkdir()
        generator = np.random.default_rng(seed)
        with tarfile.open(folder / "shard-000000.tar", "w") as tar:
            for number in range(count):
                pixels, mask = make_scene(generator)
                add_sample(tar, f"{number:04d}", {"png": png(pixels), "seg.png": png(mask)})
        index_folder(str(folder), block_samples=4, workers=LocalWorkers(1))
        folders[split] = str(folder)
    return folders


@pytest.fixture
def folder(tmp_path: Path, write_config: Callable[..., Path]) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "tiny")
    folder.root.mkdir(parents=True)
    write_whole(folder.config, write_config(evaluation={"datasets": [], "precision": "fp32"}).read_bytes())
    write_whole(folder.wandb_id, b"abc123")
    return folder


def test_its_values_are_those_of_other_programs(folder: RunFolder, sets: dict[str, str], call: Call) -> None:
    """scikit-learn fits the patches with the chosen penalty, and torchmetrics scores the pixels."""
    add_weights(folder, 4)
    named = f"evaluation.segmentation=[{{name: scenes, train: {sets['train']}, test: {sets['test']}}}]"
    assert call("evaluate", str(folder.root), named).code == 0
    rows = {row["measure"]: row for row in read_json_lines(folder.evaluations)}
    assert set(rows) == {"mIoU", "pixel accuracy"}
    row = rows["mIoU"]
    assert (row["test_images"], row["train_images"], row["classes"], row["protocol_version"]) == (10, 24, 3, 1)

    weights = load_weights(folder.weights_of(4))
    model = weights.model
    reading = Reading(device=torch.device("cpu"), precision="fp32", batch_size=7, num_workers=0)
    transform = EvalTransform(image_size=16, short_side=18).showing_all()
    source, index = FeatureSource(reading, cache=None, num_replicas=1), load_index(sets["train"])
    train = collect_patches(weights, index, grid=(2, 2), transform=transform, source=source, description="train")
    x, labels = train.values.double().numpy(), train.labels.numpy()
    mean, std = x.mean(axis=0), x.std(axis=0)
    theirs = LogisticRegression(C=1 / (row["penalty"] * len(x)), tol=1e-10, max_iter=10_000).fit((x - mean) / std, labels)
    metric, right, total = MulticlassJaccardIndex(num_classes=3, ignore_index=IGNORED), 0, 0
    generator = np.random.default_rng(1)
    for _ in range(10):
        pixels, mask = make_scene(generator)
        seen = resize_mask(mask, 16)
        with torch.no_grad():
            patches = model.forward_outputs(transform(pixels)[None]).patches
        assert patches is not None
        scores = theirs.decision_function((patches[0].double().numpy() - mean) / std)
        logits = F.interpolate(torch.from_numpy(scores).T.reshape(1, 3, 2, 2).float(), size=(16, 16), mode="bilinear")
        found = logits.argmax(dim=1)[0]
        metric.update(found, torch.from_numpy(seen).long())
        right, total = right + int((found.numpy() == seen).sum()), total + int((seen != IGNORED).sum())
    assert row["accuracy"] == pytest.approx(float(metric.compute()), abs=1e-6)
    assert rows["pixel accuracy"]["accuracy"] == pytest.approx(right / total, abs=1e-9)
    assert row["accuracy"] > 1 / 3


@pytest.mark.slow
def test_three_processes_measure_what_one_does(folder: RunFolder, sets: dict[str, str], call: Call) -> None:
    add_weights(folder, 4)
    named = f"evaluation.segmentation=[{{name: scenes, train: {sets['train']}, test: {sets['test']}}}]"
    assert call("evaluate", str(folder.root), named).code == 0
    rows = read_json_lines(folder.evaluations)
    folder.evaluations.unlink()
    assert call("evaluate", str(folder.root), named, "evaluation.replicas=3").code == 0
    assert read_json_lines(folder.evaluations) == rows


def test_the_class_of_a_patch_is_that_of_most_pixels() -> None:
    masks = torch.from_numpy(np.random.default_rng(0).choice([0, 1, 7, IGNORED], size=(5, 12, 8)).astype(np.uint8))
    found = classes_of_patches(masks, (3, 2))
    for image in range(5):
        for row in range(3):
            for column in range(2):
                patch = masks[image, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten().numpy()
                assert found[image, 2 * row + column] == np.bincount(patch).argmax()


def test_scores_count_classes_that_are_there_or_predicted() -> None:
    masks = torch.tensor([[[0, 0, 1, IGNORED]]], dtype=torch.uint8)
    found = scores_of(confusion(torch.tensor([[[0, 5, 1, 9]]]), masks))
    assert (found.num_classes, found.pixel_accuracy) == (3, 2 / 3)  # 9 is predicted where nothing is known
    assert found.mean_iou == pytest.approx((1 / 2 + 1 + 0) / 3)


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16"])
def test_a_mask_is_its_numbers_whatever_its_mode(mode: str) -> None:
    numbers = np.array([[0, 1], [1, 0]], dtype=np.uint8)
    image = Image.fromarray(numbers.astype(np.uint16) if mode == "I;16" else numbers * (255 if mode == "1" else 1))
    if mode == "P":
        image.putpalette([200, 0, 0, 0, 200, 0])
    buffer = io.BytesIO()
    (image.convert("1") if mode == "1" else image).save(buffer, "PNG")
    assert (decode_mask(buffer.getvalue()) == numbers).all()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (png(np.zeros((2, 2, 3), np.uint8)), "colours"),
        (png(np.full((2, 2), 300, np.uint16)), "class number 300"),
        (png(np.zeros((9, 9), np.uint8))[:40], "mask: "),
        (b"no image", "mask: "),
    ],
)
def test_what_is_no_mask_is_refused_in_words(data: bytes, words: str) -> None:
    with pytest.raises(UnreadableImage, match=words):
        decode_mask(data)


def test_masks_are_resized_by_the_nearest_pixel() -> None:
    mask = np.random.default_rng(0).integers(0, 9, (7, 5)).astype(np.uint8)
    for size in ((14, 10), (3, 2), (7, 5)):
        theirs = F.interpolate(torch.from_numpy(mask)[None, None].float(), size=size, mode="nearest-exact")[0, 0]
        assert (resize_mask(mask, size) == theirs.numpy()).all()


def test_images_without_masks_are_refused_before_a_run(downstream: dict[str, str]) -> None:
    section = SegmentationSection.model_validate({"name": "scenes", "train": downstream["train"], "test": downstream["test"]})
    with pytest.raises(DataError, match="has no mask"):
        open_mask_set(section)


def test_make_keeps_masks_next_to_images_without_labels(sets: dict[str, str], tmp_path: Path) -> None:
    assert data_tools(["make", f"{sets['train']}/shard-000000.tar", str(tmp_path / "made"), "--split", "0.5"]) == 0
    section = {"name": "scenes", "train": str(tmp_path / "made" / "train"), "test": str(tmp_path / "made" / "val")}
    opened = open_mask_set(SegmentationSection.model_validate(section))
    assert opened.train.num_samples + opened.test.num_samples == 24
