"""Weights are read as people have them: from caches and downloads, under any name, and in what training programs save."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from pipeline.build.pretrained import open_pretrained
from pipeline.errors import PipelineError
from pipeline.exchange.pretrained import Pretrained
from pipeline.exchange.source import read_pretrained
from pipeline.exchange.write import write_model
from pipeline.models.vit.section import ViT
from tests.exchange.models import CLASSES
from tests.helpers.parity.cases import fill

Make = Callable[[Path], Path]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 346284714\n"
PAGE = "<!DOCTYPE html><html><head><title>Sign in</title></head></html>"


def model() -> Pretrained:
    """Return a model of a width whose number of heads everybody knows: its files need no description."""
    config = ViT(name="Ti/16", image_size=32, representation="none", num_classes=len(CLASSES), depth=2).resolve()
    return Pretrained(config, dict(fill(config.build()).state_dict()), source="made", class_names=CLASSES)


@pytest.fixture(scope="module")
def state_dict(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Give the model's tensors with timm's names."""
    folder = tmp_path_factory.mktemp("timm")
    write_model(model(), "timm", folder)
    return safetensors.torch.load_file(folder / "model.safetensors")


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def prefixed(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def check(path: Path | str) -> Pretrained:
    """Read the model back, every tensor of it."""
    found, expected = read_pretrained(path), model().tensors
    assert found.tensors.keys() == expected.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.items())
    return found


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "backbone.", "encoder.", "visual.trunk."],
)
def test_prefixes_of_wrappers_and_of_larger_models_are_left_out(
    tmp_path: Path, state_dict: dict[str, torch.Tensor], prefix: str
) -> None:
    """DistributedDataParallel, torch.compile (timm's pull request 2003), Lightning, and encoders in larger models."""
    others = {"projector.0.weight": torch.zeros(2, 2)} if prefix in ("backbone.", "encoder.", "visual.trunk.") else {}
    found = check(saved(tmp_path / "w.pth", {"state_dict": prefixed(state_dict, prefix) | others}))
    assert any(f"begin with {prefix}; 1 others" in note for note in found.notes) == bool(others)


def test_a_described_folder_may_hold_wrapped_names_too(tmp_path: Path) -> None:
    for target in ("timm", "transformers"):
        folder = tmp_path / target
        write_model(model(), target, folder)  # type: ignore[arg-type]
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        safetensors.torch.save_file(prefixed(tensors, "module."), folder / "model.safetensors")
        check(folder)


def test_lightnings_checkpoints_are_read(tmp_path: Path, state_dict: dict[str, torch.Tensor]) -> None:
    content = {
        "state_dict": prefixed(state_dict, "model."),
        "epoch": 1,
        "pytorch-lightning_version": "2.5.0",
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}},
        "hyper_parameters": {"lr": 1e-3},
    }
    check(saved(tmp_path / "last.ckpt", content))


def test_a_number_next_to_the_state_dict_does_not_hide_it(tmp_path: Path, state_dict: dict[str, torch.Tensor]) -> None:
    check(saved(tmp_path / "w.pth", {"state_dict": state_dict, "best_loss": torch.tensor(0.5), "epoch": 3}))


def test_of_raw_and_averaged_weights_it_is_said_which_are_read(tmp_path: Path, state_dict: dict[str, torch.Tensor]) -> None:
    average = {name: tensor + 1 for name, tensor in state_dict.items()}
    found = check(saved(tmp_path / "w.pth.tar", {"state_dict": state_dict, "state_dict_ema": average}))
    assert any("holds state_dict, state_dict_ema: state_dict is read" in note for note in found.notes)


def test_of_dinos_two_networks_the_teacher_is_read(tmp_path: Path, state_dict: dict[str, torch.Tensor]) -> None:
    """facebookresearch/dino issue 217, dinov2 issue 235: one file has both, with other prefixes."""
    student = prefixed({name: tensor + 1 for name, tensor in state_dict.items()}, "module.backbone.")
    teacher = prefixed(state_dict, "backbone.") | {"head.mlp.0.weight": torch.zeros(2, 2)}
    found = check(saved(tmp_path / "v1.pth", {"student": student, "teacher": teacher, "epoch": 3}))
    assert any("teacher is read" in note for note in found.notes)
    both = prefixed(student, "student.") | prefixed(teacher, "teacher.")
    found = check(saved(tmp_path / "v2.pth", {"model": both}))
    assert any("begin with teacher.backbone." in note for note in found.notes)
    with pytest.raises(PipelineError, match=r"several models \(a\.backbone\., b\.backbone\.\)"):
        read_pretrained(saved(tmp_path / "w.pth", prefixed(teacher, "a.") | prefixed(teacher, "b.")))


def test_a_file_is_what_its_bytes_are(tmp_path: Path, state_dict: dict[str, torch.Tensor]) -> None:
    """Names in capitals, two endings, and blobs of the hub's cache without any."""
    safetensors.torch.save_file(state_dict, tmp_path / "W.SAFETENSORS")
    safetensors.torch.save_file(state_dict, tmp_path / "73f2ab")
    torch.save(state_dict, tmp_path / "W.PTH")
    torch.save(state_dict, tmp_path / "checkpoint.pth.tar")
    torch.save(state_dict, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("W.SAFETENSORS", "73f2ab", "W.PTH", "checkpoint.pth.tar", "old.pth"):
        check(tmp_path / name)
    write_model(model(), "npz", tmp_path / "w.npz")
    (tmp_path / "w.npz").rename(tmp_path / "W.NPZ")
    check(tmp_path / "W.NPZ")


def cache_of(folder: Path, *, commits: tuple[str, ...] = ("c0ffee",), main: str | None = "c0ffee") -> Path:
    """Make a cache as huggingface_hub does: snapshots whose files are links to blobs."""
    root = folder / "models--google--vit"
    (root / "blobs").mkdir(parents=True)
    (root / "refs").mkdir()
    if main is not None:
        (root / "refs" / "main").write_text(main)
    write_model(model(), "timm", folder / "written")
    for number, name in enumerate(("config.json", "model.safetensors")):
        (folder / "written" / name).rename(root / "blobs" / f"{number:040x}")
        for commit in commits:
            (root / "snapshots" / commit).mkdir(parents=True, exist_ok=True)
            (root / "snapshots" / commit / name).symlink_to(f"../../blobs/{number:040x}")
    return root


def test_a_cache_of_the_model_hub_is_read(tmp_path: Path) -> None:
    root = cache_of(tmp_path)
    for path in (root, root / "snapshots" / "c0ffee", root / "snapshots" / "c0ffee" / "model.safetensors"):
        assert check(path).class_names == CLASSES
    several = cache_of(tmp_path / "several", commits=("a", "b"), main=None)
    with pytest.raises(PipelineError, match="snapshots a, b; give one"):
        read_pretrained(several)


def test_a_path_is_what_the_shell_and_timm_mean_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_model(model(), "timm", tmp_path / "mein modèle №1")
    for path in ("~/mein modèle №1", f"local-dir:{tmp_path}/mein modèle №1", f"file://{tmp_path}/mein modèle №1"):
        check(path)
        open_pretrained(path)


def test_another_programs_config_does_not_hide_a_file(tmp_path: Path, state_dict: dict[str, torch.Tensor]) -> None:
    (tmp_path / "config.json").write_text('{"editor": {"fontSize": 12}}')
    check(saved(tmp_path / "w.pth", state_dict))


def text_file(name: str, text: str) -> Make:
    def make(folder: Path) -> Path:
        (folder / name).write_text(text)
        return folder / name

    return make


def dangling(folder: Path) -> Path:
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").symlink_to("../../blobs/73f2")
    return folder


def adapter(folder: Path) -> Path:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_text("{}")
    return folder


def variant(folder: Path) -> Path:
    (folder / "model.fp16.safetensors").write_text("{}")
    return folder


def without_a_part(folder: Path) -> Path:
    listed = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    safetensors.torch.save_file({"a": torch.zeros(1)}, folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(listed))
    (folder / "config.json").write_text('{"model_type": "vit"}')
    return folder


def packed(folder: Path) -> Path:
    with tarfile.open(folder / "weights.tar", "w") as archive:
        archive.add(text_file("a.txt", "a")(folder))
    return folder / "weights.tar"


def with_namespace(folder: Path) -> Path:
    import argparse

    return saved(folder / "mae.pth", {"model": {"a": torch.zeros(1)}, "args": argparse.Namespace(lr=1)})


def with_a_score(folder: Path) -> Path:
    return saved(folder / "deit.pth", {"model": {"a": torch.zeros(1)}, "max_accuracy": np.float64(81.8)})


def of_itself(folder: Path) -> Path:
    content: dict[str, Any] = {"epoch": 1}
    content["model"] = content
    return saved(folder / "loop.pth", content)


ABSENT: dict[str, tuple[Make, str]] = {
    "a pointer of git-lfs": (text_file("model.safetensors", POINTER), "git-lfs pointer; `git lfs pull` brings the file"),
    "a pointer in place of an npz": (text_file("L_16.npz", POINTER), "git-lfs pointer"),
    "a pointer in place of a pickle": (text_file("w.pth", POINTER), "git-lfs pointer"),
    "a page in place of a file": (text_file("w.bin", PAGE), "is HTML"),
    "an empty file": (text_file("w.npz", ""), "has 0 bytes"),
    "a link to a blob that is gone": (dangling, "is a link to ../../blobs/73f2, which does not exist"),
    "an adapter alone": (adapter, "merge it into its model with peft"),
    "a file of another variant": (variant, "give the file itself"),
    "a part that was not downloaded": (without_a_part, "names model-00002-of-00002.safetensors, which is not there"),
    "an archive": (packed, "is a tar archive: unpack it first"),
    "weights of Keras": (lambda folder: (folder / "w.h5", (folder / "w.h5").write_bytes(b"\x89HDF\r\n\x1a\n"))[0], "is HDF5"),
    "a checkpoint with its arguments": (with_namespace, "it asks for argparse.Namespace"),
    "a checkpoint with NumPy's numbers": (with_a_score, "multiarray.scalar"),
    "nothing that is a model": (lambda folder: saved(folder / "w.pth", {"epoch": 1}), "no state dict (it holds epoch)"),
    "a checkpoint that holds itself": (of_itself, "no state dict (it holds epoch, model)"),
    "an address of Google's store": (lambda _: Path("gs://vit_models/augreg/L_16.npz"), "`gcloud storage cp` does"),
    "a name of timm's on the hub": (lambda _: Path("hf-hub:timm/vit_base_patch16_224"), "`hf download` does"),
    "a name on the hub": (
        lambda _: Path("google/vit-base-patch16-224"),
        "`hf download google/vit-base-patch16-224 --local-dir",
    ),
}


@pytest.mark.parametrize("name", ABSENT)
def test_what_is_not_there_is_said_with_the_way_on(tmp_path: Path, name: str) -> None:
    make, message = ABSENT[name]
    (tmp_path / "weights").mkdir()
    with pytest.raises(PipelineError) as caught:
        read_pretrained(make(tmp_path / "weights"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
