"""docs/notebook.md is run as it is, on a small run; what its functions return is what the evaluator and torch compute."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pipeline
from pipeline.data.images.crop import EvalTransform
from pipeline.data.images.decode import decode_image
from pipeline.errors import ConfigError, DataError
from pipeline.exchange.write import Options, Target, write_model
from pipeline.run.folder import RunFolder
from pipeline.run.weights import load_weights, save_weights
from tests.conftest import REPOSITORY, Outcome, WriteShards, encode, environment, make_image
from tests.exchange.models import CLASSES, model_of
from tests.helpers.evaluations import MODEL, add_weights

BLOCK = re.compile(r"```(python)?\n(.*?)```", re.S)
COMMAND = "python -m pipeline "
NAMES = ("ant", "bee", "cat", "dog")


@pytest.fixture
def run(tmp_path: Path, write_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """Give a run as a training leaves it, next to a photo; the working folder is theirs."""
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(tmp_path / "runs" / "l16")
    folder.root.mkdir(parents=True)
    folder.config.write_bytes(write_config().read_bytes())
    folder.classes.write_text("\n".join(NAMES) + "\n")
    for step in (0, 4):
        add_weights(folder, step)
    Path("photo.jpg").write_bytes(encode(make_image(1, num_classes=4, size=40), format="JPEG"))
    return folder


def set_head(folder: RunFolder, *, seed: int = 0) -> None:
    """Give the newest weights a classifier that tells images apart."""
    model = load_weights(folder.weights_of(4)).model
    torch.nn.init.normal_(model.get_submodule("head").weight, generator=torch.Generator().manual_seed(seed))  # type: ignore[arg-type]
    save_weights(folder.weights_of(4), dict(model.state_dict()), model=MODEL, step=4, images_seen=32)


def test_the_page_runs_as_it_is(
    run: RunFolder, tmp_path: Path, write_shards: WriteShards, call: Callable[..., Outcome], capfd: pytest.CaptureFixture[str]
) -> None:
    set_head(run)
    targets: dict[Target, str] = {"timm": "timm-l16", "transformers": "transformers-l16", "npz": "L_16.npz"}
    Path("models").mkdir()
    for target, name in targets.items():
        write_model(model_of("class_token"), target, Path("models") / name)
    index = write_shards(tmp_path / "data" / "flowers", shard_sizes=[9, 5])
    names: dict[str, Any] = {}
    printed = ""
    for language, code in BLOCK.findall((REPOSITORY / "docs" / "notebook.md").read_text()):
        if language == "python":
            exec(code, names)
            printed += capfd.readouterr().out
        else:
            assert code.startswith(COMMAND)
            # `auto` would choose bf16 where the processor computes it fast; what is compared below is fp32.
            done = call(*code.removeprefix(COMMAND).split(), "--precision", "fp32")
            assert done.code == 0, done.text
    model, found = names["model"], names["found"]
    assert model.class_names == NAMES
    assert (model.step, names["earlier"].step) == (4, 0)
    for other in ("ours_or_timm", "transformers"):
        assert names[other].class_names == CLASSES
    assert names["google"].config.width == model_of("class_token").config.width  # type: ignore[attr-defined]
    assert names["keys"] == [f"{number:05d}" for number in range(9)] == found.keys[:9]
    assert found.labels.tolist() == (np.arange(index.num_samples) % 4).tolist()
    pictures = [make_image(number, num_classes=4, size=24) for number in range(index.num_samples)]
    files = [decode_image(encode(pixels, format="JPEG")) for pixels in pictures]
    torch.testing.assert_close(model.features(files), found.values["features"], rtol=1e-5, atol=1e-6)  # other batches
    logits = model.module(model.transform("photo.jpg")[None])[0].detach()
    values, order = logits.softmax(dim=0).sort(descending=True)
    assert [name for name, _ in names["first"]] == [NAMES[number] for number in order[:3]]
    assert [value for _, value in names["first"]] == pytest.approx(values[:3].tolist(), rel=1e-5)
    assert f"{values[0]:6.1%}  {NAMES[order[0]]}\n" in printed
    assert re.search(r"\n-?[01]\.\d{3}  000\d\d  class [0-3]\n", printed)


def test_the_package_alone_imports_nothing_heavy() -> None:
    code = (
        "import sys, pipeline; assert {'load', 'read_features'} <= set(dir(pipeline)); "
        "print(sorted({'torch', 'numpy', 'deepspeed', 'lightning', 'wandb', 'pydantic', 'yaml', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environment(), capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
    with pytest.raises(AttributeError, match="has no attribute 'laod'"):
        _ = pipeline.laod


def test_an_image_is_the_same_from_a_file_pillow_and_an_array(run: RunFolder) -> None:
    set_head(run)
    model = pipeline.load(run.root)
    png = Path("picture.png")
    pixels = make_image(2, num_classes=4, size=50)
    png.write_bytes(encode(pixels, format="PNG"))
    expected = EvalTransform(image_size=16, short_side=18)(pixels)
    for image in (str(png), png, Image.open(png), pixels):
        assert torch.equal(model.transform(image), expected)
    grey = Image.fromarray(pixels).convert("L")
    assert model.transform(grey).shape == (3, 16, 16)
    assert not model.module.training
    assert model.features([]).shape == (0, 32)
    assert model.predict([]) == []
    with pytest.raises(ConfigError, match="no trained classifier"):
        pipeline.load(run.root, step=0).predict(png)  # its classifier is zeros, as it begins
    for wrong in (pixels[:, :, 0], pixels.astype(np.float32), 7):
        with pytest.raises(ConfigError, match="an image is a path, an image of Pillow, or an array"):
            model.transform(wrong)
    png.write_bytes(b"\x89PNG and then nothing")
    with pytest.raises(DataError, match=r"picture\.png cannot be decoded"):
        model.predict(png)
    with pytest.raises(DataError, match=r"missing\.jpg cannot be read: No such file"):
        model.predict(["photo.jpg", "missing.jpg"])


@pytest.mark.parametrize("objective", ["softmax", "sigmoid", "multi_label", "masked_patches"])
def test_probabilities_are_those_of_the_objective(run: RunFolder, write_config: Callable[..., Path], objective: str) -> None:
    set_head(run)
    run.config.write_bytes(write_config(objective={"name": objective}).read_bytes())
    model = pipeline.load(run.root)
    logits = model.module(model.transform("photo.jpg")[None])[0].detach()
    if objective == "masked_patches":
        with pytest.raises(ConfigError, match="no trained classifier; `features` gives"):
            model.predict("photo.jpg")
        return
    expected = logits.softmax(dim=0) if objective == "softmax" else logits.sigmoid()
    found = dict(model.predict("photo.jpg"))
    assert found == pytest.approx(dict(zip(NAMES, expected.tolist(), strict=True)), rel=1e-5)
    other = pipeline.load(run.root, probabilities="sigmoid", step=4)
    assert dict(other.predict("photo.jpg")) == pytest.approx(dict(zip(NAMES, logits.sigmoid().tolist(), strict=True)), rel=1e-5)


def test_a_model_without_classifier_has_features_and_one_without_names_numbers(run: RunFolder, tmp_path: Path) -> None:
    published = model_of("class_token")
    write_model(replace(published, class_names=None), "npz", tmp_path / "x.npz")
    model = pipeline.load("x.npz")
    assert {name for name, _ in model.predict("photo.jpg", top=99)} == {str(number) for number in range(len(CLASSES))}
    write_model(published, "timm", tmp_path / "headless", Options(has_head=False))
    headless = pipeline.load("headless")
    assert headless.features("photo.jpg").shape == (1, 48)
    with pytest.raises(ConfigError, match="no trained classifier"):
        headless.predict("photo.jpg")
    with torch.no_grad():
        theirs = published.build().forward_representation(headless.transform("photo.jpg")[None])
    assert torch.equal(headless.features("photo.jpg"), theirs)


def test_arrays_are_taken_as_notebooks_have_them(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Read by OpenCV and turned to RGB (pytorch/pytorch issue 92680), flipped, cut out, and read-only ones of Pillow."""
    write_model(model_of("class_token"), "timm", tmp_path)
    model = pipeline.load(tmp_path, device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    locked = pixels.copy()
    locked.flags.writeable = False
    for array in (pixels[:, :, ::-1], pixels[::-1], pixels[5:30, 3:40], np.asfortranarray(pixels), locked):
        assert model.predict(array) == model.predict(np.ascontiguousarray(array).copy())
    assert not [warning for warning in recwarn if "writable" in str(warning.message)]
    with pytest.raises(ConfigError, match=r"not uint8 \(0, 5, 3\)"):
        model.predict(pixels[:0, :5])
