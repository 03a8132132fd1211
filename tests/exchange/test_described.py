"""What lies next to weights is read and written as other libraries mean it: names of classes, pixels, and older exports."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pipeline
from pipeline.build.initial import compare_classes
from pipeline.data.shards.class_names import parse_class_names
from pipeline.errors import ExchangeError
from pipeline.exchange.labels import read_labels, write_labels
from pipeline.exchange.pretrained import Pretrained
from pipeline.exchange.source import read_pretrained
from pipeline.exchange.write import write_model
from tests.exchange.models import CLASSES, model_of
from tests.helpers.parity.cases import fill

TWICE = ("crane", "maillot", "crane", "dog", "maillot", "fox", "gnu")  # as two classes of ImageNet are each


def change(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"id2label": {"2": "c", "0": "a", "1": "b"}}, ("a", "b", "c")),
        ({"id2label": ["a", "b", "c"]}, ("a", "b", "c")),
        ({"label2id": {"c": 2, "a": "0", "b": 1}}, ("a", "b", "c")),
        ({"id2label": {"1": "a", "2": "b", "3": "c"}}, None),  # counted from 1
        ({"id2label": {"a": 0, "b": 1, "c": 2}}, None),  # the other way round
        ({"id2label": {"0": "a"}}, None),
    ],
)
def test_names_of_classes_are_read_where_they_are_those_of_the_classes(
    config: dict[str, Any], names: tuple[str, ...] | None
) -> None:
    found, notes = read_labels(config, 3)
    assert found == names
    assert bool(notes) == (names is None)


def test_names_that_occur_twice_are_kept(timm: ModuleType, tmp_path: Path) -> None:
    """pytorch/vision issues 1734 and 4160: each keeps its own number, and only the way back from names is missing."""
    import transformers  # type: ignore[import-not-found]

    written = write_model(replace(model_of("class_token"), class_names=TWICE), "transformers", tmp_path)
    assert any("label2id is left out: 2 names" in note for note in written.notes)
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    assert tuple(theirs.config.id2label[number] for number in range(len(TWICE))) == TWICE
    assert read_pretrained(tmp_path).class_names == TWICE
    assert write_labels(None, 2)[0]["id2label"] == {"0": "LABEL_0", "1": "LABEL_1"}


def test_a_line_of_classes_txt_is_a_class_whatever_its_name_holds(tmp_path: Path) -> None:
    names = ("ant", "tench,\nTinca tinca", "a\r\nb", "line\u2028separator", "e", "f", "g")
    write_model(replace(model_of("class_token"), class_names=names), "safetensors", tmp_path)
    lines = parse_class_names((tmp_path / "classes.txt").read_bytes(), source="classes.txt")
    assert lines == ["ant", "tench, Tinca tinca", "a b", "line\u2028separator", "e", "f", "g"]
    assert read_pretrained(tmp_path).class_names == names


@pytest.mark.parametrize("target", ["timm", "transformers", "safetensors"])
def test_a_model_of_independent_classes_stays_one(timm: ModuleType, tmp_path: Path, target: Any) -> None:
    """transformers' pipelines choose between softmax and sigmoid by problem_type (its issue 38219, pull request 35848)."""
    write_model(replace(model_of("class_token"), probabilities="sigmoid"), target, tmp_path)
    assert read_pretrained(tmp_path).probabilities == "sigmoid"
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    model = pipeline.load(tmp_path, device="cpu")
    ours = dict(model.predict(image, top=len(CLASSES)))
    with torch.no_grad():
        expected = model.module(model.transform(image)[None]).sigmoid()[0]
    assert [ours[name] for name in CLASSES] == pytest.approx(expected.tolist())
    if target == "transformers":
        import transformers  # type: ignore[import-not-found]

        theirs = transformers.pipeline("image-classification", model=str(tmp_path), top_k=len(CLASSES))
        found = {entry["label"]: entry["score"] for entry in theirs(Image.fromarray(image))}
        assert found == pytest.approx(ours, abs=0.02)  # Pillow resizes in whole numbers


@pytest.mark.parametrize(
    "changes",
    [
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": [1.0, 1.0, 1.0]},
        {"do_rescale": False, "image_mean": [120.0, 110.0, 100.0], "image_std": [60.0, 50.0, 40.0]},
        {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
        {"rescale_factor": 0.00392157},
    ],
)
def test_pixels_are_scaled_as_the_preprocessor_says(timm: ModuleType, tmp_path: Path, changes: dict[str, Any]) -> None:
    """transformers issues 20867 and 23333: what does a processor do to pixels that is not to rescale, or not to normalise?"""
    import transformers  # type: ignore[import-not-found]

    write_model(model_of("class_token"), "transformers", tmp_path)
    change(tmp_path, "preprocessor_config.json", **changes, do_resize=False)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    if not isinstance(changes.get("image_mean", []), float):  # their processors want a list
        processor = transformers.BitImageProcessor.from_pretrained(tmp_path)
        values = processor(pixels, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    else:
        values = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = theirs(values.float()).logits
        ours = read_pretrained(tmp_path).build()(torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous())
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"resample": 1}, "resized by Pillow's filter 1 there, bilinearly here"),
        ({"crop_size": {"height": 64, "width": 64}}, "cropped to 64 x 64 there"),
        ({"size": {"shortest_edge": 24}}, "a short side of 24 px there"),
        ({"size": 32, "crop_size": None, "do_center_crop": None}, "squeezed to the square there"),
    ],
)
def test_what_cannot_be_followed_is_said(tmp_path: Path, changes: dict[str, Any], note: str) -> None:
    write_model(model_of("class_token"), "transformers", tmp_path)
    change(tmp_path, "preprocessor_config.json", **changes)
    found = read_pretrained(tmp_path)
    assert any(note in text for text in found.notes)
    found.preprocessing.transform(found.config)


def test_a_side_of_patches_may_be_two_numbers(tmp_path: Path) -> None:
    write_model(model_of("class_token"), "transformers", tmp_path)
    change(tmp_path, "config.json", patch_size=[16, 16])
    assert read_pretrained(tmp_path).config == model_of("class_token").config
    change(tmp_path, "config.json", patch_size=[16, 8])
    with pytest.raises(ExchangeError, match="ours are squares"):
        read_pretrained(tmp_path)


def test_timms_labels_of_another_number_of_classes_are_said(tmp_path: Path) -> None:
    write_model(model_of("class_token"), "timm", tmp_path)
    change(tmp_path, "config.json", label_names=[f"LABEL_{number}" for number in range(7)])  # transformers' stand-ins
    assert read_pretrained(tmp_path).class_names is None
    change(tmp_path, "config.json", label_names=["a", "b"])
    found = read_pretrained(tmp_path)
    assert found.class_names is None
    assert any("its 2 labels are not those of the classes 0 to 6" in note for note in found.notes)


def test_a_fixed_size_of_timms_says_the_grid_of_positions(timm: ModuleType, tmp_path: Path) -> None:
    """16 positions are those of 2 x 8 patches as well as of 4 x 4 (huggingface/pytorch-image-models pull request 2737)."""
    config = replace(model_of("class_token").config, image_size=(32, 128))  # type: ignore[type-var]
    model = Pretrained(config, dict(fill(config.build()).state_dict()), source="wide")
    write_model(model, "timm", tmp_path)
    arguments = json.loads((tmp_path / "config.json").read_text())["model_args"]
    change(tmp_path, "config.json", model_args={name: value for name, value in arguments.items() if name != "img_size"})
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert read_pretrained(tmp_path).config.image_size == theirs.patch_embed.img_size == (32, 128)


def test_an_export_over_an_older_one_leaves_nothing_of_it(tmp_path: Path) -> None:
    unnamed = replace(model_of("gap"), class_names=None)
    names = {
        "transformers": {"model.safetensors", "config.json", "preprocessor_config.json"},
        "safetensors": {"model.safetensors"},
    }
    names["timm"] = {"model.safetensors", "config.json"}
    for target, expected in names.items():
        folder = tmp_path / target
        write_model(model_of("class_token"), "transformers", folder)
        assert (folder / "classes.txt").exists()
        write_model(unnamed, target, folder)  # type: ignore[arg-type]
        assert {path.name for path in folder.iterdir()} == expected
        assert read_pretrained(folder).class_names is None


def test_weights_that_are_replaced_have_no_description_until_theirs_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(model_of("class_token"), "timm", tmp_path)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.exchange.write.write_whole", killed)
    with pytest.raises(KeyboardInterrupt):
        write_model(replace(model_of("gap"), class_names=None), "timm", tmp_path)
    with pytest.raises(ExchangeError, match=r"config\.json does not exist"):
        read_pretrained(tmp_path)


def test_a_full_disk_leaves_an_older_export_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(model_of("class_token"), "timm", tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.exchange.write.save_tensors", full)
    with pytest.raises(OSError, match="No space"):
        write_model(model_of("gap"), "timm", tmp_path)
    assert read_pretrained(tmp_path).config == model_of("class_token").config


def test_an_npz_of_images_that_are_no_squares_says_how_to_read_it(tmp_path: Path) -> None:
    written = write_model(model_of("wide_images"), "npz", tmp_path / "w.npz")
    assert any("--image-size 32 48" in note for note in written.notes)


def test_classes_without_names_that_are_as_many_as_imagenets_are_said(tmp_path: Path) -> None:
    """transformers' pull request 35553 names them."""
    model = model_of("class_token")
    tensors = model.tensors | {"head.weight": torch.zeros(1000, 48), "head.bias": torch.zeros(1000)}
    config = replace(model.config, num_classes=1000)  # type: ignore[type-var]
    written = write_model(replace(model, config=config, tensors=tensors, class_names=None), "timm", tmp_path)
    assert any("transformers names them as ImageNet's" in note for note in written.notes)


def test_a_classifier_of_other_classes_is_told() -> None:
    """CIFAR-10 and STL-10 have ten classes each; folders of numbers are sorted as texts (CSAILVision/places365 issue 22)."""
    assert compare_classes(["cat", "dog"], ["cat", "dog"]) == compare_classes(None, ["cat"]) == []
    (note,) = compare_classes(["0", "1", "10", "2"], ["0", "1", "2", "10"])
    assert "others, in another order: class 2 is '10' there and '2' here; init.head=new" in note
    assert "in another order" not in compare_classes(["a"], ["b"])[0]
