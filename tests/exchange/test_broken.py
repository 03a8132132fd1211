"""Files that are no weights, or not what they say: each is answered in a sentence, and nothing in them is executed."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from pipeline.errors import PipelineError
from pipeline.exchange.source import read_pretrained
from pipeline.exchange.write import write_model
from tests.exchange.models import model_of


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def truncated_npz(path: Path) -> Path:
    write_model(model_of("class_token"), "npz", path / "w.npz")
    data = (path / "w.npz").read_bytes()
    (path / "w.npz").write_bytes(data[: len(data) // 2])
    return path / "w.npz"


def npz_of(path: Path, **arrays: Any) -> Path:
    np.savez(path / "w.npz", **arrays)
    return path / "w.npz"


def npz_without(name: str) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        write_model(model_of("class_token"), "npz", path / "w.npz")
        arrays = {key: array for key, array in np.load(path / "w.npz").items() if key != name}
        return npz_of(path, **arrays)

    return make


def npz_member(name: str) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        data = io.BytesIO()
        np.save(data, np.zeros(3))
        with zipfile.ZipFile(path / "w.npz", "w") as archive:
            archive.writestr(name, data.getvalue())
        return path / "w.npz"

    return make


def inflating_npz(path: Path) -> Path:
    with zipfile.ZipFile(path / "w.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as file:
        for _ in range(300):
            file.write(bytes(2**20))
    return path / "w.npz"


def wrong_count(path: Path) -> Path:
    """Say in an array's header that it is larger than its file."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**9,)})
    with zipfile.ZipFile(path / "w.npz", "w") as archive:
        archive.writestr("a.npy", header.getvalue() + bytes(16))
    return path / "w.npz"


def bomb(path: Path) -> Path:
    torch.save({"state_dict": Bomb(path / "executed")}, path / "w.pth")
    return path / "w.pth"


def plain_pickle(path: Path) -> Path:
    (path / "w.bin").write_bytes(pickle.dumps(Bomb(path / "executed")))
    return path / "w.bin"


def truncated_safetensors(path: Path) -> Path:
    write_model(model_of("class_token"), "timm", path)
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[:-100])
    return path


def own_damaged(path: Path) -> Path:
    write_model(model_of("class_token"), "safetensors", path)
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (path / "model.safetensors").write_bytes(bytes(data))
    return path


def folder_of(config: dict[str, Any] | None, tensors: dict[str, Any]) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        safetensors.torch.save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, path / "model.safetensors")
        if config is not None:
            (path / "config.json").write_text(json.dumps(config))
        return path

    return make


def changed_timm(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        write_model(model_of("class_token"), "timm", path)
        tensors = safetensors.torch.load_file(path / "model.safetensors")
        change(tensors)
        safetensors.torch.save_file(tensors, path / "model.safetensors")
        return path

    return make


def listed_elsewhere(path: Path) -> Path:
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    (path / "config.json").write_text("{}")
    return path


BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a pickle that runs a command": (bomb, "could run any code"),
    "a bare pickle": (plain_pickle, "could run any code"),
    "a truncated npz": (truncated_npz, "cannot be read as .npz"),
    "an npz of objects": (lambda path: npz_of(path, a=np.array([{"x": 1}], dtype=object)), "pickled objects"),
    "an npz that leads out of itself": (npz_member("../../etc/passwd.npy"), "no array of a model"),
    "an npz with another file": (npz_member("run.py"), "no array of a model"),
    "an npz that inflates": (inflating_npz, "which no weights do"),
    "an array larger than its file": (wrong_count, "is truncated"),
    "an npz of something else": (lambda path: npz_of(path, x=np.zeros(3)), "no Vision Transformer or ResNet of Google's"),
    "an npz without a norm": (npz_without("Transformer/encoder_norm/scale"), "lacks Transformer/encoder_norm/scale"),
    "truncated safetensors": (truncated_safetensors, "damaged"),
    "a bit of ours flipped": (own_damaged, "damaged"),
    "a tensor of another shape": (
        changed_timm(lambda tensors: tensors.update({"norm.weight": torch.zeros(5)})),
        "is [5], this model's is [48]",
    ),
    "a missing tensor": (changed_timm(lambda tensors: tensors.pop("blocks.1.mlp.fc1.bias")), "lacks blocks.1.mlp.fc1.bias"),
    "another library's model": (
        folder_of({"model_type": "bert"}, {"bert.embeddings.word_embeddings.weight": (3, 2)}),
        "transformers' bert; those that are read are vit",
    ),
    "a folder that says nothing": (folder_of({"name": "x"}, {"a": (1,)}), "neither timm (architecture) nor transformers"),
    "tensors without a description": (folder_of(None, {"a": (1,)}), "config.json does not exist"),
    "an empty folder": (lambda path: path, "holds no weights"),
    "an index of files elsewhere": (listed_elsewhere, "not next to it"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_it_is_answered_in_a_sentence(tmp_path: Path, name: str) -> None:
    make, message = BROKEN[name]
    folder = tmp_path / "weights"
    folder.mkdir()
    path = make(folder)
    with pytest.raises(PipelineError) as caught:
        read_pretrained(path)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (folder / "executed").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model_type": 3}', '{"architecture": null, "model_args": 3}', "\x00" * 9])
def test_descriptions_of_any_content(tmp_path: Path, text: str) -> None:
    write_model(model_of("class_token"), "timm", tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(PipelineError):
        read_pretrained(tmp_path)
