"""Predicted activations against the tensors that autograd saves, each storage counted once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pipeline.distributed.precision import TrainingPrecision
from pipeline.functional.losses import one_hot_targets, sigmoid_cross_entropy
from pipeline.models.vit.model import VisionTransformer, ViTConfig
from pipeline.models.vit.section import ViT
from pipeline.plan.memory import saved_bytes_per_pass

MODEL = ViTConfig(
    image_size=96, patch_size=16, width=192, depth=4, mlp_dim=768, num_heads=3, num_classes=1000,
    representation_size=192, dropout=0.0,
)  # fmt: skip


def saved_bytes(model: nn.Module, *, batch: int, precision: TrainingPrecision, size: int) -> int:
    """Return bytes that a forward pass leaves for the backward pass, parameters left out."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage
        return tensor

    images = torch.randint(0, 255, (batch, 3, size, size), dtype=torch.uint8)
    targets = one_hot_targets(torch.arange(batch), num_classes=MODEL.num_classes)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16_autocast")
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), autocast:
        loss = sigmoid_cross_entropy(model(images), targets)
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("precision", ["bf16", "bf16_autocast", "fp32"])
def test_what_autograd_saves(precision: TrainingPrecision, dropout: float) -> None:
    """Within 0.2 % without autocast. On a CPU bf16's LayerNorm statistics are bf16 and a dropout mask is no boolean."""
    config = replace(MODEL, dropout=dropout)
    model = VisionTransformer(config)
    model.init_weights(torch.Generator().manual_seed(0))
    model.to(torch.bfloat16 if precision == "bf16" else torch.float32)
    few, more = (saved_bytes(model, batch=batch, precision=precision, size=config.image_size) for batch in (2, 6))
    predicted = config.cost.saved_bytes(precision=precision, mask_bytes=4 if precision == "fp32" else 2)
    assert (more - few) / 4 == pytest.approx(predicted, rel=0.01 if precision == "bf16_autocast" else 0.002)
    kernels = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d))
    assert few - (more - few) / 2 == saved_bytes_per_pass(kernels, precision=precision)


def test_a_block_of_l16_is_34_bytes_times_width_and_the_mask_after_gelu() -> None:
    """Korthikanti et al. 2022, equation 1, without its attention matrix, which fused attention does not save."""
    one, two = (
        ViT(name="L/16", num_classes=10, dropout=0.1, depth=depth).resolve().cost.saved_bytes(precision="bf16")  # type: ignore[call-arg]
        for depth in (1, 2)
    )  # fmt: skip
    width, hidden, tokens = 1024, 4096, 197
    assert two - one == pytest.approx(tokens * (34 * width + hidden), rel=0.003)
