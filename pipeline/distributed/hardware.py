"""Look up what a device could compute at best, the denominator of MFU, and its memory."""

from __future__ import annotations

import platform

import torch

from pipeline.distributed.precision import measure_matmul_flops
from pipeline.errors import ConfigError

# dense bf16 tensor-core rates in TFLOP/s from the vendors' data sheets, by words of the device's name
DATA_SHEET_BF16_TFLOPS = {
    "B200": 2250.0, "H200": 989.0, "H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.0, "GH200": 989.0,
    "A100": 312.0, "L40S": 362.0, "L4": 121.0, "A10": 125.0, "RTX 4090": 165.0,
}  # fmt: skip

# Names of slower devices hold one of these: "A100-SXM4-40GB MIG 3g.20gb", "RTX 4090 D", "RTX 4090 Laptop GPU".
OTHER_WORDS = frozenset({"MIG", "D", "Laptop"})

# Memory is from the same data sheets. They say GB and nearly mean GiB: an "80 GB" H100 has 79.1 GiB, a "141 GB" H200 139.8.
DATA_SHEET_MEMORY_GIB = {
    "B200": 180, "H200": 141, "H100 PCIe": 80, "H100 NVL": 94, "H100": 80, "GH200": 96, "A100": 80, "L40S": 48, "L4": 24,
    "A10": 24, "RTX 4090": 24,
}  # fmt: skip


def find_gpu(name: str) -> str:
    """Return the data sheets' name of a GPU, written in any case and with spaces, dashes or underscores.

    Raises:
        ConfigError: no such GPU is known.
    """
    plain = {known.casefold().replace(" ", ""): known for known in DATA_SHEET_BF16_TFLOPS}
    wanted = name.casefold().translate(str.maketrans("", "", " -_"))
    if wanted not in plain:
        raise ConfigError(
            f"--gpu {name}: not known; write one of {', '.join(plain)}, or the nearest of them with trainer.peak_tflops=... "
            "and --gpu-memory-gib"
        )
    return plain[wanted]


def peak_flops(device: torch.device, *, dtype: torch.dtype) -> float | None:
    """Return one device's operations per second: the data sheet's bf16 rate, or a short measurement of an unlisted GPU.

    The result is None on a CPU: what a rank can compute depends on what else runs there at the moment, so a ratio to it says
    nothing.
    """
    if device.type != "cuda":
        return None
    listed = listed_flops(torch.cuda.get_device_name(device))
    return measure_matmul_flops(device, dtype=dtype, size=8192, repeats=5) if listed is None else listed


def listed_flops(device_name: str) -> float | None:
    """Return the data sheet's bf16 rate of a device, by the name that its driver gives; None where none is known.

    Whole words are compared: an L40 is not an L4, an A10G not an A10, and a part of an A100 is none.
    """
    words = device_name.replace("-", " ").split()
    if not OTHER_WORDS.isdisjoint(words):
        return None
    # The longest match comes first: "H100 PCIe" before "H100".
    for name in sorted(DATA_SHEET_BF16_TFLOPS, key=len, reverse=True):
        if f" {name} " in f" {' '.join(words)} ":
            return DATA_SHEET_BF16_TFLOPS[name] * 1e12
    return None


def processor_name() -> str:
    """Return the processor's name as the kernel gives it, or its architecture."""
    try:
        with open("/proc/cpuinfo") as file:
            return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), platform.machine())
    except OSError:  # not Linux
        return platform.machine()
