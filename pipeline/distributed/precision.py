"""Choose the number format of a run's matrix products: bf16 where the device computes it fast, else fp32."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import torch

TrainingPrecision = Literal["bf16", "bf16_autocast", "fp32"]
EvaluationPrecision = Literal["bf16", "fp32"]

_PRODUCT_SIZE = {"cpu": 256, "cuda": 4096}  # below 0.1 s a product where bf16 is emulated, above the cost of a call elsewhere


def product_bytes(precision: TrainingPrecision) -> int:
    """Return the bytes of an element that matrix products and convolutions read and write."""
    return 4 if precision == "fp32" else 2


def weight_bytes(precision: TrainingPrecision) -> int:
    """Return the bytes of an element of the weights, and of what normalisations and the residual stream read and write."""
    return 2 if precision == "bf16" else 4


@dataclass(frozen=True)
class Choice:
    """Holds a precision, and what the log should say about it."""

    precision: TrainingPrecision
    message: str | None


def measure_matmul_flops(device: torch.device, *, dtype: torch.dtype, size: int, repeats: int) -> float:
    """Return the best rate of a square matrix product over a few tries, in operations per second.

    Args:
        size: number of rows and of columns.
        repeats: measured products, after one that warms up.
    """
    left = torch.randn(size, size, device=device).to(dtype)
    right = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(repeats + 1):  # the first is warm-up, and never the best
        start = time.perf_counter()
        torch.mm(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def measure_bf16_speedup(device: torch.device) -> float:
    """Return the rate of a bf16 matrix product over that of an fp32 one. At 1 or more bf16 is worth using.

    A CPU without AMX or AVX-512 bf16 instructions emulates bf16, at a hundredth to a fifth of the rate. Measuring also
    notices instructions that the processor has and the library may not use (ONEDNN_MAX_CPU_ISA). A GPU counts as fast
    from Ampere on, whatever a short measurement says.
    """
    size = _PRODUCT_SIZE[device.type]
    bf16, fp32 = (measure_matmul_flops(device, dtype=dtype, size=size, repeats=3) for dtype in (torch.bfloat16, torch.float32))
    if device.type != "cuda":
        return bf16 / fp32
    has_tensor_cores = torch.cuda.is_bf16_supported(including_emulation=False)
    return max(bf16 / fp32, 1.0) if has_tensor_cores else min(bf16 / fp32, 0.99)


def choose_training_precision(
    wanted: Literal["auto"] | TrainingPrecision, *, zero_stage: int, recorded: TrainingPrecision | None, bf16_speedup: float
) -> Choice:
    """Return the precision that a launch trains in.

    Args:
        wanted: the setting. An explicit one is taken as it is, with a warning where it is slow.
        recorded: what the run has trained in so far; None at its start.
        bf16_speedup: speedup of the slowest rank's device.
    """
    slow = f"a bf16 matrix product takes {1 / bf16_speedup:.3g} times as long as one in fp32 on this device (measured)"
    if wanted != "auto":
        is_slow = wanted != "fp32" and bf16_speedup < 1
        return Choice(wanted, f"WARNING: trainer.precision={wanted}: {slow}; auto or fp32 is faster here" if is_slow else None)
    if recorded is not None:
        warning = f". WARNING: {slow}" if recorded != "fp32" and bf16_speedup < 1 else ""
        return Choice(recorded, f"precision {recorded}, which this run began with (trainer.precision=auto){warning}")
    if bf16_speedup < 1:
        return Choice("fp32", f"precision fp32 (trainer.precision=auto): {slow}")
    chosen: TrainingPrecision = "bf16" if zero_stage > 0 else "bf16_autocast"  # without ZeRO nothing keeps fp32 masters
    return Choice(chosen, f"precision {chosen} (trainer.precision=auto): {bf16_speedup:.3g} times as fast as fp32 (measured)")


def choose_evaluation_precision(
    wanted: Literal["auto"] | EvaluationPrecision,
    *,
    recorded: EvaluationPrecision | None,
    bf16_speedup: float,
    auto: str = "evaluation.precision=auto",
) -> tuple[EvaluationPrecision, str]:
    """Return the precision that an evaluator computes features in, and a sentence that says so.

    Args:
        wanted: the setting.
        recorded: precision of the newest result; None where there is none. Results of two precisions are not one curve.
        bf16_speedup: speedup of this process's device.
        auto: the setting as it is typed, for the sentence.
    """
    slow = f"a bf16 matrix product takes {1 / bf16_speedup:.3g} times as long as one in fp32 on this device (measured)"
    if wanted == "auto" and recorded is None:
        if bf16_speedup < 1:
            return "fp32", f"precision fp32 ({auto}): {slow}"
        return "bf16", f"precision bf16 ({auto}): {bf16_speedup:.3g} times as fast as fp32 (measured)"
    precision = recorded if wanted == "auto" and recorded is not None else wanted
    assert precision != "auto"
    why = f", as in the earlier results ({auto})" if wanted == "auto" else ""
    warning = f". WARNING: {slow}" if precision == "bf16" and bf16_speedup < 1 else ""
    return precision, f"precision {precision}{why}{warning}"
