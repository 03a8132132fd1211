"""A device's peak rate is found by its name."""

from __future__ import annotations

import pytest
import torch

from pipeline.distributed.hardware import DATA_SHEET_BF16_TFLOPS, DATA_SHEET_MEMORY_GIB, find_gpu, listed_flops, peak_flops
from pipeline.errors import ConfigError


@pytest.mark.parametrize(
    ("device_name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("A100-PCIE-40GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA A10", 125),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA L40", None),
        ("NVIDIA A10G", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", None),
        ("NVIDIA H20", None),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_a_device_has_its_own_data_sheet(device_name: str, tflops: float | None) -> None:
    """Names are as drivers give them."""
    assert listed_flops(device_name) == (None if tflops is None else tflops * 1e12)


@pytest.mark.parametrize("written", ["H100 PCIe", "h100pcie", "H100-PCIE", "h100_pcie"])
def test_a_gpu_is_found_however_it_is_written(written: str) -> None:
    assert find_gpu(written) == "H100 PCIe"


def test_every_gpu_is_found_by_its_own_name_and_has_both_numbers() -> None:
    assert [find_gpu(name) for name in DATA_SHEET_BF16_TFLOPS] == list(DATA_SHEET_BF16_TFLOPS)
    assert DATA_SHEET_MEMORY_GIB.keys() == DATA_SHEET_BF16_TFLOPS.keys()


def test_an_unknown_gpu_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match=r"--gpu V100: not known; write one of .*h100pcie"):
        find_gpu("V100")


def test_a_cpu_has_no_peak() -> None:
    assert peak_flops(torch.device("cpu"), dtype=torch.bfloat16) is None
