"""`figures` draws a model's filters, positions and attention: files that are there, the same every time, with their numbers."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.images.crop import EvalTransform
from pipeline.functional.attention_maps import mean_attention_distance
from pipeline.models.vit.model import VisionTransformer
from pipeline.run.checkpoint import RunFolder
from pipeline.run.weights import load_weights
from tests.conftest import Outcome
from tests.helpers.evaluations import add_weights

Call = Callable[..., Outcome]
NAMES = {"filters", "position_similarity", "attention_distance", "attention_rollout"}


@pytest.fixture
def folder(tmp_path: Path, write_config: Callable[..., Path], downstream: dict[str, str]) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "tiny")
    folder.root.mkdir(parents=True)
    folder.config.write_bytes(write_config(evaluation={"datasets": [downstream]}).read_bytes())
    for step in (4, 8):
        add_weights(folder, step)
    return folder


@pytest.mark.slow
def test_every_checkpoint_has_its_figures_the_same_every_time(folder: RunFolder, call: Call) -> None:
    assert call("figures", str(folder.root), "--all-steps", "--count", "4").code == 0
    root = folder.root / "figures"
    before = {path.relative_to(root): path.read_bytes() for path in root.rglob("*.*")}
    assert {path.stem for path in before if path.suffix == ".png"} == NAMES
    assert {path.stem for path in before if path.suffix == ".svg"} == NAMES
    assert {path.parent.name for path in before} == {"step_00000004", "step_00000008"}
    for path, data in before.items():
        if path.suffix == ".png":
            assert Image.open(io.BytesIO(data)).width > 600  # one column at 300 dots an inch
    assert call("figures", str(folder.root), "--all-steps", "--count", "4").code == 0
    assert {path.relative_to(root): path.read_bytes() for path in root.rglob("*.*")} == before


def test_its_numbers_are_those_of_the_images_it_names(folder: RunFolder, tmp_path: Path, call: Call) -> None:
    generator = np.random.default_rng(0)
    pixels = [generator.integers(0, 256, (20, 24, 3)).astype(np.uint8) for _ in range(3)]
    paths = [tmp_path / f"photo {number}.PNG" for number in range(3)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    out = tmp_path / "out"
    assert call("figures", str(folder.root), "--step", "4", "--out", str(out), "--images", *map(str, paths)).code == 0
    numbers = json.loads((out / "step_00000004" / "figures.json").read_text())
    model = load_weights(folder.weights_of(4)).model
    assert isinstance(model, VisionTransformer)
    images = torch.stack([EvalTransform(image_size=16, short_side=18)(image) for image in pixels])
    (layer,) = model.attention_weights(images)
    expected = mean_attention_distance(layer, grid=(2, 2), patch_size=8.0)
    assert numbers["attention_distance_pixels"] == [pytest.approx(expected.tolist(), abs=1e-3)]
    assert numbers["step"] == 4


def test_a_model_alone_has_figures_without_images(folder: RunFolder, tmp_path: Path, call: Call) -> None:
    outcome = call("figures", str(folder.weights_of(4)), "--out", str(tmp_path / "out"), "--formats", "svg")
    assert outcome.code == 0
    assert "without them there are no figures of attention" in outcome.text
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"filters.svg", "position_similarity.svg", "figures.json"}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--images", "nothing.png"), "nothing.png"),
        (("--count", "0"), "at least 1"),
        (("--step", "4", "--all-steps"), "exclude each other"),
        (("--step", "5"), "no weights of step 5"),
    ],
)
def test_bad_commands_are_answered_in_words(more: tuple[str, ...], words: str, folder: RunFolder, call: Call) -> None:
    outcome = call("figures", str(folder.root), *more)
    assert outcome.code == 2
    assert words in outcome.text
