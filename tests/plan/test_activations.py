"""What activation checkpointing is predicted to save and cost, against what torch allocates and counts."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from pipeline.functional.losses import one_hot_targets, sigmoid_cross_entropy
from pipeline.models.vit.model import VisionTransformer, ViTConfig
from pipeline.plan.activations import activation_bytes, recomputed_flops, sparsest_that_fits
from pipeline.plan.text import to_text
from pipeline.train.blocks import checkpoint_blocks, every_nth
from tests.plan.test_forecast import forecast

MODEL = ViTConfig(
    image_size=64, patch_size=8, width=96, depth=6, mlp_dim=384, num_heads=3, num_classes=10, representation_size=None,
    dropout=0.0
)  # fmt: skip


def make_model(every: int | None) -> VisionTransformer:
    model = VisionTransformer(MODEL)
    model.init_weights(torch.Generator().manual_seed(0))
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(1))
    checkpoint_blocks(every_nth(model.repeated_blocks(), every))
    return model


def peak_bytes(every: int | None, *, batch: int) -> int:
    model = make_model(every)
    images = torch.randint(0, 255, (batch, 3, 64, 64), dtype=torch.uint8)
    targets = one_hot_targets(torch.arange(batch) % 10, num_classes=10)

    def pass_once() -> None:
        sigmoid_cross_entropy(model(images), targets).backward()

    pass_once()  # gradients exist from here on
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recording:
        pass_once()
    events = [event for event in recording.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.slow
def test_the_peak_of_a_pass_is_what_is_predicted() -> None:
    """Of an image: never more than predicted, nor a quarter less, with and without; so what is saved is right too."""
    found = {every: (peak_bytes(every, batch=8) - peak_bytes(every, batch=4)) / 4 for every in (None, 1, 2, 3)}
    wanted = {every: activation_bytes(MODEL.cost, precision="fp32", every=every) for every in found}
    for every in found:
        assert 0.75 * wanted[every] < found[every] <= 1.01 * wanted[every], (every, found, wanted)
    assert found[1] < found[2] < found[3] < found[None]


def test_operations_equal_what_torch_counts() -> None:
    counts = {}
    for every in (None, 1, 4):
        # By the definition of fused attention; of a CPU's kernel for it torch counts the backward pass alone.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            make_model(every)(torch.randn(1, 3, 64, 64)).sum().backward()
        counts[every] = counter.get_total_flops()
    for every in (1, 4):
        assert counts[every] - counts[None] == recomputed_flops(MODEL.cost, every=every)
    assert recomputed_flops(MODEL.cost, every=None) == 0


def test_the_sparsest_that_fits_fits_and_the_next_does_not() -> None:
    cost = replace(MODEL, depth=12).cost
    sizes = {n: activation_bytes(cost, precision="bf16", every=n) for n in range(1, 13)}
    assert activation_bytes(cost, precision="bf16", every=None) == cost.saved_bytes(precision="bf16") + cost.working_bytes(
        precision="bf16"
    )
    for most in (sizes[1], sizes[2], sizes[3] + 1, sizes[12]):
        found = sparsest_that_fits(cost, precision="bf16", most_bytes=most)
        assert found is not None
        assert sizes[found] <= most
        assert all(sizes[n] > most for n in range(found + 1, 13))
    assert sparsest_that_fits(cost, precision="bf16", most_bytes=sizes[1] - 1) is None


def test_plan_recommends_a_value_with_which_the_batch_fits_and_counts_its_cost() -> None:
    settings = (
        "trainer.zero_stage=1",
        "trainer.precision=bf16",
        "trainer.global_batch_size=16384",
        "trainer.micro_batch_size=null",
    )
    plan = forecast(*settings)
    chosen = next(memory for memory in plan.memory if memory.chosen)
    assert not chosen.fits
    every = chosen.fitting_checkpointing
    assert every is not None
    assert f"or trainer.activation_checkpointing={every}, with which the batch fits" in to_text(plan, None)
    with_it = forecast(*settings, f"trainer.activation_checkpointing={every}")
    memory = next(memory for memory in with_it.memory if memory.chosen)
    assert memory.fits
    assert memory.fitting_checkpointing is None
    sparser = forecast(*settings, f"trainer.activation_checkpointing={every + 1}")
    assert not next(memory for memory in sparser.memory if memory.chosen).fits
    assert with_it.compute.flops == plan.compute.flops
    longer = with_it.compute.computing_s / plan.compute.computing_s
    assert longer == pytest.approx(1 + with_it.compute.recomputed_flops_per_image / plan.compute.flops_per_image)
    assert chosen.recomputed == pytest.approx(longer - 1)
    text = to_text(with_it, None)
    assert f"{longer - 1:.0%} more for activation checkpointing" in text
    busy = with_it.compute.computing_s / with_it.compute.step_s
    assert f"({0.4 * busy:.0%} with what is computed again)" in text
