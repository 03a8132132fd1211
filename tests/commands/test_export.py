"""`export` and `import` as their users type them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

from pipeline.exchange.source import read_pretrained
from pipeline.files import write_whole
from pipeline.run.checkpoint import RunFolder
from pipeline.run.weights import load_weights
from tests.helpers.evaluations import Call, add_weights
from tests.helpers.model_hub import serve_models

RESULTS = {4: (0.5, 0.25), 8: (0.25, 0.75)}  # by step: linear, 5-shot
CLASSES = ("ant", "bee", "cat", "dog")


@pytest.fixture
def folder(tmp_path: Path, write_config: Callable[..., Path]) -> RunFolder:
    """Make a run of two checkpoints, the second with an average, and some results."""
    folder = RunFolder(tmp_path / "runs" / "tiny")
    folder.root.mkdir(parents=True)
    write_whole(folder.config, write_config().read_bytes())
    write_whole(folder.classes, "".join(f"{name}\n" for name in CLASSES).encode())
    rows = []
    for step, values in RESULTS.items():
        add_weights(folder, step)
        for measure, value in zip(("linear", "5-shot"), values, strict=True):
            row = {"step": step, "dataset": "bars", "protocol": "few_shot", "measure": measure, "seed": None, "accuracy": value}
            rows.append(json.dumps(row))
    add_weights(folder, 8, seed=1, kind="average")
    write_whole(folder.evaluations, "\n".join([*rows, ""]))
    return folder


def weights_at(folder: RunFolder, step: int, **kind: str) -> dict[str, torch.Tensor]:
    return load_weights(folder.weights_of(step, **kind)).model.state_dict()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "step"),
    [((), 8), (("--step", "4"), 4), (("--best", "bars linear"), 4), (("--best", "bars 5-shot"), 8)],
)
def test_the_chosen_weights_are_written(
    folder: RunFolder, call: Call, tmp_path: Path, options: tuple[str, ...], step: int
) -> None:
    result = call("export", str(folder.root), "--to", "safetensors", str(tmp_path / "out"), *options)
    assert result.code == 0, result.text
    found = read_pretrained(tmp_path / "out")
    assert (found.step, found.class_names) == (step, CLASSES)
    for name, tensor in weights_at(folder, step).items():
        assert torch.equal(found.tensors[name], tensor)


def test_every_step_and_the_average(folder: RunFolder, call: Call, tmp_path: Path) -> None:
    assert call("export", str(folder.root), "--to", "npz", str(tmp_path / "all"), "--all-steps").code == 0
    assert {path.name for path in (tmp_path / "all").glob("*.npz")} == {"step_00000004.npz", "step_00000008.npz"}
    assert call("export", str(folder.root), "--to", "safetensors", str(tmp_path / "average"), "--average").code == 0
    average = read_pretrained(tmp_path / "average").tensors
    assert torch.equal(average["head.weight"], weights_at(folder, 8, kind="average")["head.weight"])


def test_the_card_has_what_the_run_knows(folder: RunFolder, call: Call, tmp_path: Path) -> None:
    line = ("export", str(folder.root), "--to", "transformers", "--without-head", "--license", "apache-2.0")
    assert call(*line, str(tmp_path / "out"), "--step", "4").code == 0
    _, matter, text = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    front = yaml.safe_load(matter)
    assert (front["library_name"], front["license"], front["pipeline_tag"]) == (
        "transformers",
        "apache-2.0",
        "image-feature-extraction",
    )
    (results,) = front["model-index"][0]["results"]
    assert results["metrics"] == [
        {"type": "accuracy", "name": "5-shot", "value": 25.0},
        {"type": "accuracy", "name": "linear", "value": 50.0},
    ]
    for part in ("| bars | linear | 50.0 % |", "trained for | 4 steps, 32 images", "AutoModel.from_pretrained", "| seed | 3 |"):
        assert part in text


def test_back_from_googles_file(folder: RunFolder, call: Call, tmp_path: Path) -> None:
    assert call("export", str(folder.root), "--to", "npz", str(tmp_path / "w.npz")).code == 0
    line = ("import", str(tmp_path / "w.npz"), str(tmp_path / "back"), "--gelu", "exact", "--classes", str(folder.classes))
    assert call(*line).code == 0
    back = load_weights(tmp_path / "back" / "model.safetensors").model.state_dict()
    for name, tensor in weights_at(folder, 8).items():
        assert torch.equal(back[name], tensor)
    assert read_pretrained(tmp_path / "back").class_names == CLASSES


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("RUN --to timm OUT --best cars", "has 'bars 5-shot', 'bars linear'"),
        ("RUN --to timm OUT --best bars", "fits several measures"),
        ("RUN --to timm OUT --step 5", "the newest are of the steps 4, 8"),
        ("RUN --to timm OUT --sizes 224", "--sizes is an option of --to onnx"),
        ("RUN --to timm OUT", "`--without-head` leaves both out"),
        ("RUN --to onnx OUT", "name it OUT.onnx"),
        ("RUN/weights/step_00000004.safetensors --to npz OUT.npz --step 4", "is for run folders"),
        ("RUN --to timm OUT --push tiny", "a repository is owner/name"),
        ("RUN --to timm OUT --push me/tiny", "set HF_TOKEN"),
        ("nowhere --to timm OUT", "do not exist"),
        ("RUN/weights --to timm OUT", "holds no weights (step_00000004.safetensors, "),
    ],
)
def test_mistakes_are_answered_in_words(
    folder: RunFolder, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timm: ModuleType, words: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    result = call("export", *words.replace("RUN", str(folder.root)).split())
    assert result.code == 2
    assert message in result.text
    assert not list(tmp_path.glob("OUT*/*"))


def test_it_is_uploaded_as_one_commit(
    folder: RunFolder, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timm: ModuleType
) -> None:
    out = tmp_path / "out"
    line = ("export", str(folder.root), "--to", "transformers", "--without-head", str(out), "--push", "me/tiny")
    assert "would upload model.safetensors" in call(*line, "--dry-run").text
    with serve_models() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", "hf_a_token_of_this_test")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # another protocol for large files
        (out / "notes.txt").write_text("mine")
        result = call(*line, "--private")
        assert result.code == 0, result.text
        assert f"{hub.url}/me/tiny/commit/1" in result.text
        uploaded = {path: data for (_, path), data in hub.files.items()}
        names = ("model.safetensors", "config.json", "preprocessor_config.json", "README.md", "classes.txt")
        assert uploaded == {name: (out / name).read_bytes() for name in names}
        assert hub.private == {"me/tiny": True}
        assert hub.tokens == {"Bearer hf_a_token_of_this_test"}
        hub.refuses = True
        result = call(*line)
        assert result.code == 2
        assert "has not taken me/tiny" in result.text
        assert "hf_a_token" not in result.text
