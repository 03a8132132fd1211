"""Profile steps with torch's profiler, and say what takes their time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch.profiler import ProfilerActivity, profile

# Parts of the names of operators and kernels, tried in this order; what has none of them is elementwise.
KINDS = {
    "communication": ("nccl", "gloo", "c10d", "allreduce", "all_reduce", "reduce_scatter", "allgather", "all_gather"),
    "attention": ("scaled_dot_product", "flash", "fmha", "attention", "softmax"),
    "optimizer": ("adam", "multi_tensor", "foreach", "optimizer", "lamb", "lerp", "sgd", "newton"),
    "matrix products": (
        "gemm", "aten::mm", "addmm", "bmm", "matmul", "cutlass", "nvjet", "xmma", "cublas", "aten::linear", "mkldnn_linear",
        "convolution", "conv2d",
    ),
    "normalisation": ("norm", "welford"),
    "copies": ("memcpy", "memset", "copy_", "aten::to", "aten::cat", "contiguous", "clone", "fill_", "zero_"),
}  # fmt: skip
ELEMENTWISE = "elementwise and others"
GAPS = "gaps"  # nothing computes: Python, launches, waiting


def kind_of(name: str) -> str:
    """Return what kind of work an operator or a kernel does."""
    lower = name.casefold()
    return next((kind for kind, parts in KINDS.items() if any(part in lower for part in parts)), ELEMENTWISE)


def shares_of(times: Iterable[tuple[str, float]], *, seconds: float) -> dict[str, float]:
    """Return each kind's part of the time, the largest first, and last what no operator took.

    Args:
        times: names, and seconds that each took itself.
        seconds: of the clock, altogether.
    """
    totals: dict[str, float] = defaultdict(float)
    for name, taken in times:
        totals[kind_of(name)] += taken
    shares = {kind: taken / seconds for kind, taken in sorted(totals.items(), key=lambda item: -item[1]) if taken > 0}
    return {**shares, GAPS: max(0.0, 1.0 - sum(shares.values()))}


def describe_shares(shares: Mapping[str, float]) -> str:
    """Return the shares in words."""
    return ", ".join(f"{kind} {100 * share:.3g} %" for kind, share in shares.items())


class Profile:
    """Records what runs on a device from its making to `end`: kernels on a GPU, operators on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
        self._profile = profile(activities=activities)
        self._profile.start()

    def end(self, path: str, *, seconds: float) -> dict[str, float]:
        """Write a trace for Perfetto or chrome://tracing. Return the parts of the time by kind.

        Args:
            seconds: of the clock since the beginning.
        """
        self._profile.stop()
        self._profile.export_chrome_trace(path)
        events = self._profile.key_averages()
        if self.device.type == "cuda":
            times = [(event.key, event.self_device_time_total / 1e6) for event in events if event.device_type.name == "CUDA"]
        else:
            times = [(event.key, event.self_cpu_time_total / 1e6) for event in events]
        return shares_of(times, seconds=seconds)
