"""Measure what a machine computes and copies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch

from pipeline.distributed.hardware import listed_flops
from pipeline.distributed.precision import measure_matmul_flops
from pipeline.preflight.measure import Measure, wanted

PRODUCT_SIZE = {"cpu": 1024, "cuda": 8192}
REPEATS = 8
COPY_BYTES = 256 * 2**20
LEAST_OF_DATA_SHEET = 0.6  # an H200 gave 790 of 989 TFLOP/s
LEAST_COPY_GB_S = 8.0  # half of what sixteen lanes of PCIe 3 carry


def measure_rates(device: torch.device) -> Iterator[Measure]:
    """Yield the rates of matrix products, and on a GPU that of copies from page-locked memory."""
    size = PRODUCT_SIZE[device.type]
    rates = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        # A CPU that emulates bf16 takes a hundred times as long.
        rows = size // 4 if device.type == "cpu" and dtype == torch.bfloat16 else size
        rates[name] = measure_matmul_flops(device, dtype=dtype, size=rows, repeats=REPEATS) / 1e12
    yield _same_bits(device)
    sheet = listed_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    yield Measure("fp32 matrix product", rates["fp32"], "TFLOP/s", rule="none less")
    if sheet is None:
        yield Measure("bf16 matrix product", rates["bf16"], "TFLOP/s", rule="none less")
        return
    yield wanted(
        "bf16 matrix product",
        rates["bf16"],
        "TFLOP/s",
        at_least=LEAST_OF_DATA_SHEET * sheet / 1e12,
        rule="none less",
        advice=f"{100 * rates['bf16'] * 1e12 / sheet:.0f} % of the data sheet's {sheet / 1e12:.0f}: another program computes "
        "there, or the GPU is held back (nvidia-smi -q -d PERFORMANCE)",
    )
    yield wanted(
        "copies to the GPU",
        _copy_rate(device),
        "GB/s",
        at_least=LEAST_COPY_GB_S,
        rule="none less",
        advice="the GPU's link to the processor is slow: fewer PCIe lanes, or a process on the other socket",
    )


def _same_bits(device: torch.device) -> Measure:
    """Return whether a product has the same bits again and again: a processor that computes wrongly does so now and then."""
    size = PRODUCT_SIZE[device.type]
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, size, generator=generator).to(device) for _ in range(2))
    first = left @ right
    differ = sum(not torch.equal(left @ right, first) for _ in range(REPEATS))
    text = "equal" if differ == 0 and bool(first.isfinite().all()) else f"{differ} of {REPEATS} differ"
    advice = None if text == "equal" else "this machine computes wrongly: take it out"
    return Measure("repeated products", text, rule="same", advice=advice, severity="problem")


def _copy_rate(device: torch.device) -> float:
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(source, device=device)
    return COPY_BYTES / 1e9 / best_time(lambda: target.copy_(source, non_blocking=True), device=device)


def best_time(work: Callable[[], object], *, device: torch.device, repeats: int = 5) -> float:
    """Return the least seconds of some tries, after one that warms up."""
    best = float("inf")
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return best
