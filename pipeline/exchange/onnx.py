"""Write a model as ONNX, one graph for each image size, and compare what onnxruntime computes with torch.

The batch is dynamic. Positions belong to a number of patches, so each size has a graph of its own. A message of protobuf has at
most 2 GiB: the weights of a larger model (ViT-H/14) lie in a second file, which the graph names.
"""

from __future__ import annotations

import importlib
import logging
import shutil
import tempfile
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.errors import ExchangeError
from pipeline.exchange.pretrained import Pretrained
from pipeline.exchange.resize import resize_images
from pipeline.image_size import ImageSize, describe_size, height_and_width
from pipeline.models.base import Backbone

HOW_TO_INSTALL = "pip install '.[onnx]'"
INPUT, OUTPUT = "images", "logits"
FEATURES = "features"
COMPARED = 3  # images; the model is traced with another number
# Of logits and features relative to the largest: what other orders of sums change in fp32.
TOLERANCE = 1e-4
MOST_BYTES = 2**31 - 2**24  # of weights in the graph's own file; the graph takes some too
DATA_SUFFIX = ".data"  # after the graph's name: torch's choice


class _Exported(nn.Module):
    """Maps floats in [-1, 1], (B, 3, H, W), to logits, or to the representation of a model without a classifier."""

    def __init__(self, model: Backbone, *, has_head: bool) -> None:
        super().__init__()
        self.model = model
        self.has_head = has_head

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images) if self.has_head else self.model.forward_representation(images)


@dataclass(frozen=True)
class Graph:
    """Says what was written.

    Attributes:
        paths: the graph, and the file of its weights where it has one.
        difference: the largest difference of onnxruntime's outputs to torch's, as a part of the largest output.
    """

    paths: tuple[Path, ...]
    difference: float


def write_onnx(model: Pretrained, path: Path, *, size: ImageSize | None = None, most_bytes: int = MOST_BYTES) -> Graph:
    """Write one graph, whole or not at all, after onnxruntime has computed the same from it.

    Args:
        size: height and width of the images; None: the model's own.
        most_bytes: weights of more bytes get a file of their own, `path` + ".data".

    Raises:
        ExchangeError: the exporter is not installed, fails, or its model computes something else.
        OSError: a file cannot be written.
    """
    _require("onnxscript", "onnx", "onnxruntime")
    if size is not None and size != model.config.image_size:
        model = resize_images(model, size)
    exported = _Exported(model.build(), has_head=model.has_head)
    height, width = height_and_width(model.config.image_size)
    num_bytes = sum(tensor.numel() for tensor in model.tensors.values()) * torch.float32.itemsize
    # A folder, because the graph holds the name of the second file.
    drafts = Path(tempfile.mkdtemp(prefix=f".{path.name}.part.", dir=path.parent))
    try:
        draft = drafts / path.name
        _export(
            exported,
            draft,
            height=height,
            width=width,
            output=OUTPUT if model.has_head else FEATURES,
            apart=num_bytes > most_bytes,
        )
        difference = _compare(exported, draft, height=height, width=width)
        if not difference <= TOLERANCE:
            size_text = describe_size(model.config.image_size)
            raise ExchangeError(
                f"{model.source}: at {size_text} onnxruntime's outputs differ from torch's by {difference:.1e} of the largest; "
                "the file is not written"
            )
        return Graph(_publish(draft, path), difference)
    finally:
        shutil.rmtree(drafts)


def _publish(draft: Path, path: Path) -> tuple[Path, ...]:
    """Move the files of a graph. No graph ever lies next to another model's weights."""
    weights, target = _data_path(draft), _data_path(path)
    path.unlink(missing_ok=True)
    target.unlink(missing_ok=True)
    if not weights.exists():
        draft.replace(path)
        return (path,)
    weights.replace(target)
    draft.replace(path)
    return (path, target)


def _data_path(path: Path) -> Path:
    return path.with_name(path.name + DATA_SUFFIX)


def _export(exported: nn.Module, path: Path, *, height: int, width: int, output: str, apart: bool) -> None:
    images = torch.zeros(2, 3, height, width)
    batch = torch.export.Dim("batch", min=1)
    # A faster attention gives its output other strides than the exported operations do, and a reshape is exported as what it
    # is for the strides at hand: a view, which those have none of.
    plain = sdpa_kernel(SDPBackend.MATH)
    with warnings.catch_warnings(), redirect_stdout(StringIO()), plain:  # it prints its progress
        warnings.simplefilter("ignore")
        for name in ("onnxscript", "torch.onnx._internal.exporter._registration"):
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            program = torch.onnx.export(
                exported.eval(),
                (images,),
                dynamo=True,
                dynamic_shapes=({0: batch},),
                input_names=[INPUT],
                output_names=[output],
                verbose=False,
            )
        except Exception as error:  # the exporter raises almost anything
            raise ExchangeError(f"torch cannot export this model to ONNX: {' '.join(str(error).split())[:300]}") from error
        assert program is not None
        program.save(str(path), external_data=apart)


def _compare(exported: nn.Module, path: Path, *, height: int, width: int) -> float:
    onnxruntime: Any = importlib.import_module("onnxruntime")
    images = torch.rand(COMPARED, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {INPUT: images.numpy()})
    with torch.no_grad():
        ours = exported(images)
    scale = ours.abs().max().clamp(min=1e-6)
    return float((torch.from_numpy(theirs) - ours).abs().max() / scale)


def _require(*libraries: str) -> None:
    for library in libraries:
        try:
            importlib.import_module(library)
        except ImportError as error:
            raise ExchangeError(f"writing ONNX needs {library} ({error}); {HOW_TO_INSTALL}") from error
