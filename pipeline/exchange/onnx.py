"""Write a model as ONNX, one file for each image size, and compare what onnxruntime computes with torch.

The batch is dynamic. Positions belong to a number of patches, so each size has a file of its own.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from contextlib import redirect_stdout
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
MOST_BYTES = 2**31 - 2**24  # the graph takes some too


class _Exported(nn.Module):
    """Maps floats in [-1, 1], (B, 3, H, W), to logits, or to the representation of a model without a classifier."""

    def __init__(self, model: Backbone, *, has_head: bool) -> None:
        super().__init__()
        self.model = model
        self.has_head = has_head

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images) if self.has_head else self.model.forward_representation(images)


def write_onnx(model: Pretrained, path: Path, *, size: ImageSize | None = None) -> float:
    """Write one file, whole or not at all, after onnxruntime has computed the same from it.

    Args:
        size: height and width of the images; None: the model's own.

    Returns:
        The largest difference to torch's outputs, as a part of the largest output.

    Raises:
        ExchangeError: the exporter is not installed, fails, or its model computes something else.
        OSError: the file cannot be written.
    """
    _require("onnxscript", "onnx", "onnxruntime")
    if size is not None and size != model.config.image_size:
        model = resize_images(model, size)
    refuse_too_large(sum(tensor.numel() for tensor in model.tensors.values()), source=model.source)
    exported = _Exported(model.build(), has_head=model.has_head)
    height, width = height_and_width(model.config.image_size)
    draft = path.with_name(f".{path.name}.part")
    try:
        _export(exported, draft, height=height, width=width, output=OUTPUT if model.has_head else FEATURES)
        difference = _compare(exported, draft, height=height, width=width)
        if not difference <= TOLERANCE:
            size_text = describe_size(model.config.image_size)
            raise ExchangeError(
                f"{model.source}: at {size_text} onnxruntime's outputs differ from torch's by {difference:.1e} of the largest; "
                "the file is not written"
            )
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return difference


def refuse_too_large(num_values: int, *, source: str) -> None:
    """Refuse a model whose weights one file of ONNX cannot hold: a message of protobuf has at most 2 GiB.

    Raises:
        ExchangeError: it is larger.
    """
    num_bytes = num_values * torch.float32.itemsize
    if num_bytes > MOST_BYTES:
        raise ExchangeError(
            f"{source}: its weights take {num_bytes / 2**30:.1f} GiB, and one file of ONNX holds 2 GiB; `--to timm`, and from "
            "its folder torch.onnx.export writes the weights to a second file (external_data=True)"
        )


def _export(exported: nn.Module, path: Path, *, height: int, width: int, output: str) -> None:
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
        program.save(str(path), external_data=False)


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
