"""Counts of a model run on tensors without storage: multiply-accumulates, and bytes that autograd saves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from pipeline.distributed.precision import TrainingPrecision

FEW, MORE = 2, 4  # images of the two passes that are compared


@dataclass(frozen=True)
class SavedBytes:
    """What autograd saves for the backward pass, parameters left out.

    Attributes:
        once: whatever the batch; under autocast the bf16 copies of kernels are among them.
        largest: of one tensor, for one image.
    """

    per_image: int
    once: int
    largest: int


def count_macs(build: Callable[[], nn.Module], *, image_size: int) -> int:
    """Multiply-accumulates of one forward pass over one image: convolutions and matrix products, attention's included."""
    with torch.device("meta"):
        model, images = build().eval(), torch.empty(1, 3, image_size, image_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops() // 2


def count_saved_bytes(build: Callable[[], nn.Module], *, image_size: int, precision: TrainingPrecision) -> SavedBytes:
    """Bytes that a forward pass in training mode leaves for the backward pass, as on a GPU."""
    with FakeTensorMode():
        model = build()
        if precision == "bf16":
            for tensor in [*model.parameters(), *model.buffers()]:
                tensor.data = tensor.data.to(torch.bfloat16) if tensor.is_floating_point() else tensor.data
        few, more = (
            _saved_storages(model, torch.empty(batch, 3, image_size, image_size), precision=precision) for batch in (FEW, MORE)
        )
    by_tensor = [(many - some) // (MORE - FEW) for some, many in zip(few, more, strict=True)]
    per_image = sum(by_tensor)
    return SavedBytes(per_image=per_image, once=sum(few) - FEW * per_image, largest=max(by_tensor, default=0))


def _saved_storages(model: nn.Module, images: Tensor, *, precision: TrainingPrecision) -> list[int]:
    """Bytes of each storage that autograd keeps."""
    own = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
    storages: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            storages[storage._cdata] = storage  # kept, so that no other takes its address
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16_autocast")
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), autocast, _AsOnGpus(precision):
        model(images)
    return [storage.nbytes() for storage in storages.values()]


class _AsOnGpus(TorchFunctionMode):
    """Under autocast normalisations and softmax are computed in fp32 on GPUs, and in what they are given on CPUs."""

    IN_FP32 = (F.layer_norm, F.group_norm, F.softmax, torch.softmax, Tensor.softmax)

    def __init__(self, precision: TrainingPrecision) -> None:
        super().__init__()
        self.is_autocast = precision == "bf16_autocast"

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.is_autocast and func in self.IN_FP32:
            args = tuple(arg.float() if isinstance(arg, Tensor) and arg.is_floating_point() else arg for arg in args)
        return func(*args, **(kwargs or {}))
