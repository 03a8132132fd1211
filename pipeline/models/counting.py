"""Count what a model does on tensors without storage: multiply-accumulates, and bytes that autograd saves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from pipeline.distributed.precision import TrainingPrecision
from pipeline.image_size import ImageSize, height_and_width
from pipeline.models.base import Backbone, BlockCost, ModelConfig

Value = TypeVar("Value")

FEW, MORE = 2, 4  # images of the two passes that are compared


@dataclass(frozen=True)
class SavedBytes:
    """Holds the bytes that autograd saves for the backward pass, without parameters.

    Attributes:
        once: whatever the batch; under autocast the bf16 copies of kernels are among them.
        largest: of one tensor, for one image.
    """

    per_image: int
    once: int
    largest: int


def count_macs(build: Callable[[], nn.Module], *, image_size: ImageSize) -> int:
    """Return the multiply-accumulates of a forward pass over one image: convolutions and matrix products, with attention's."""
    with torch.device("meta"):
        # The counter asks for the gradient function of what a module is called with, where that needs a gradient. A view of a
        # parameter, such as a class token for each image, has none here.
        model, images = build().eval().requires_grad_(False), torch.empty(1, 3, *height_and_width(image_size))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops() // 2


def count_saved_bytes(build: Callable[[], nn.Module], *, image_size: ImageSize, precision: TrainingPrecision) -> SavedBytes:
    """Return the bytes that a forward pass in training mode leaves for the backward pass, as on a GPU."""
    with torch.device("meta"):
        model = build().to(torch.bfloat16 if precision == "bf16" else torch.float32)
        few, more = (
            _saved_storages(model, torch.empty(batch, 3, *height_and_width(image_size)), precision=precision)
            for batch in (FEW, MORE)
        )
    by_tensor = [(many - some) // (MORE - FEW) for some, many in zip(few, more, strict=True)]
    per_image = sum(by_tensor)
    return SavedBytes(per_image=per_image, once=sum(few) - FEW * per_image, largest=max(by_tensor, default=0))


@cache
def count_blocks(config: ModelConfig, precision: TrainingPrecision) -> list[BlockCost]:
    """Return what each of a model's repeated blocks does on one image, in training mode.

    What a block saves is what nothing before it has saved. Its input is not counted again where something before it keeps
    that anyway.
    """
    passes = []
    for batch in (FEW, MORE):
        with torch.device("meta"):
            model = config.build().to(torch.bfloat16 if precision == "bf16" else torch.float32)
            images = torch.empty(batch, 3, *config.height_and_width)
        passes.append(_saved_by_blocks(model, images, precision=precision))
    return [
        BlockCost(macs, (more_saved - saved) // (MORE - FEW), (more_input - given) // (MORE - FEW))
        for macs, (saved, given), (more_saved, more_input) in zip(_macs_of_blocks(config), *passes, strict=True)
    ]


def _macs_of_blocks(config: ModelConfig) -> list[int]:
    with torch.device("meta"):  # see `count_macs`
        model, image = config.build().eval().requires_grad_(False), torch.empty(1, 3, *config.height_and_width)
    with (
        torch.no_grad(),
        FlopCounterMode(display=False) as counter,
        _watched(model, lambda _: counter.get_total_flops()) as found,
    ):
        model(image)
    return [(after - before) // 2 for before, after in found.values()]


def _saved_by_blocks(model: Backbone, images: Tensor, *, precision: TrainingPrecision) -> list[tuple[int, int]]:
    """Return the saved bytes and the input's bytes of each block for a batch."""
    storages = _Storages(model)

    def read(given: Tensor) -> tuple[int, int]:
        return storages.total, 0 if given in storages else given.nbytes

    with _watched(model, read) as found, storages, _OnGpu(is_autocast=precision == "bf16_autocast"):
        model(images)
    return [(after[0] - before[0], before[1]) for before, after in found.values()]


@contextmanager
def _watched(model: Backbone, read: Callable[[Tensor], Value]) -> Iterator[dict[nn.Module, tuple[Value, Value]]]:
    """Give, for each repeated block in order, what is read of its input before it and after it."""
    blocks = model.repeated_blocks()
    before: dict[nn.Module, Value] = {}
    found: dict[nn.Module, tuple[Value, Value]] = {}

    def input_of(arguments: tuple[Any, ...]) -> Tensor:
        return next(argument for argument in arguments if isinstance(argument, Tensor))

    def enter(block: nn.Module, arguments: tuple[Any, ...]) -> None:
        before[block] = read(input_of(arguments))

    def leave(block: nn.Module, arguments: tuple[Any, ...], _output: Any) -> None:
        found[block] = before[block], read(input_of(arguments))

    hooks = [block.register_forward_pre_hook(enter) for block in blocks]
    hooks += [block.register_forward_hook(leave) for block in blocks]
    yield found
    for hook in hooks:
        hook.remove()


class _Storages:
    """Collects the storages that autograd keeps, without a model's own, while it is entered."""

    def __init__(self, model: nn.Module) -> None:
        self._own = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
        self._kept: dict[int, torch.UntypedStorage] = {}  # kept, so that no other takes its address
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._note, lambda tensor: tensor)

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._own:
            self._kept[storage._cdata] = storage
        return tensor

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._kept

    def __enter__(self) -> None:
        self._hooks.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    @property
    def sizes(self) -> list[int]:
        return [storage.nbytes() for storage in self._kept.values()]

    @property
    def total(self) -> int:
        return sum(self.sizes)


def _saved_storages(model: nn.Module, images: Tensor, *, precision: TrainingPrecision) -> list[int]:
    """Return the bytes of each storage that autograd keeps."""
    storages = _Storages(model)
    with storages, _OnGpu(is_autocast=precision == "bf16_autocast"):
        model(images)
    return storages.sizes


class _OnGpu(TorchFunctionMode):
    """Does what fused attention and torch.autocast do on a GPU, for tensors without storage, which they do not know.

    The functions are those of autocast's lists that models use (torch 2.13, "CUDA Ops that can autocast").
    """

    IN_BF16: ClassVar[set[Any]] = {
        F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose2d, F.scaled_dot_product_attention, torch.matmul, Tensor.matmul,
        Tensor.__matmul__, torch.bmm, torch.baddbmm, torch.mm, torch.addmm, torch.einsum,
    }  # fmt: skip
    IN_FP32: ClassVar[set[Any]] = {
        F.layer_norm, F.group_norm, F.normalize, F.softmax, torch.softmax, Tensor.softmax, F.softplus, Tensor.norm, torch.norm,
        Tensor.pow, torch.pow, Tensor.rsqrt, torch.rsqrt, Tensor.sum, torch.sum,
    }  # fmt: skip

    def __init__(self, *, is_autocast: bool) -> None:
        super().__init__()
        self.is_autocast = is_autocast

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        wanted = torch.bfloat16 if func in self.IN_BF16 else torch.float32 if func in self.IN_FP32 else None
        if self.is_autocast and wanted is not None:
            args, kwargs = _cast(args, wanted), {name: _cast(value, wanted) for name, value in kwargs.items()}
        if func is F.scaled_dot_product_attention:
            return _attend(*args, **kwargs)
        return func(*args, **kwargs)


def _attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **settings: Any) -> Tensor:
    return _FusedAttention.apply(query, key, value, attn_mask)  # type: ignore[return-value]


class _FusedAttention(torch.autograd.Function):
    """Keeps what fused attention keeps (arXiv 2205.14135): its inputs, its output, and one fp32 number a head and query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        *batch, heads, length, _ = query.shape
        mixed = query.new_empty(*batch, length, heads, value.shape[-1]).transpose(-2, -3)  # so that heads are joined by a view
        log_sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mixed, log_sums, *([] if mask is None else [mask]))
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError("it is counted, not computed")


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_cast(item, dtype) for item in value)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
