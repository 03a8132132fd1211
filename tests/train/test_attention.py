"""The kernel that attention is left with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import ConfigError
from pipeline.train.attention import FLASH3_MODULE, AttentionKernel, use_attention

CPU = torch.device("cpu")
SWITCHES = ("flash", "cudnn", "mem_efficient", "math")


@pytest.fixture(autouse=True)
def switches() -> Iterator[None]:
    """Leave torch's switches as they were."""
    before = {name: getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in SWITCHES}
    yield
    for name, value in before.items():
        getattr(torch.backends.cuda, f"enable_{name}_sdp")(value)


def attend(value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(value, value, value)


@pytest.mark.parametrize(("kernel", "is_flash"), [("flash", True), ("math", False), (None, False)])
def test_it_is_the_one_that_computes(kernel: AttentionKernel | None, is_flash: bool) -> None:
    value = torch.randn(2, 3, 17, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    use_attention(kernel, device=CPU)
    output = attend(value)
    assert ("Flash" in type(output.grad_fn).__name__) == is_flash
    query = value.detach()
    exact = (query @ query.transpose(-1, -2) / 4).softmax(-1) @ query
    torch.testing.assert_close(output.detach(), exact)


def test_on_a_gpu_one_switch_is_left_on_and_torch_chooses_where_nothing_is_asked() -> None:
    gpu = torch.device("cuda")
    before = [getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in SWITCHES]
    use_attention(None, device=gpu)
    assert [getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in SWITCHES] == before
    for kernel, switch in (("flash", "flash"), ("cudnn", "cudnn"), ("efficient", "mem_efficient"), ("math", "math")):
        use_attention(kernel, device=gpu)  # type: ignore[arg-type]
        assert {name for name in SWITCHES if getattr(torch.backends.cuda, f"{name}_sdp_enabled")()} == {switch}


@pytest.mark.parametrize("kernel", ["cudnn", "efficient", "flash3"])
def test_a_cpu_says_what_it_has(kernel: AttentionKernel) -> None:
    with pytest.raises(ConfigError, match=f"trainer.attention={kernel}: a CPU has flash and math"):
        use_attention(kernel, device=CPU)


def test_flash_attention_3_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA B200")
    with pytest.raises(ConfigError, match=f"the module {FLASH3_MODULE} of FlashAttention-3 is not installed"):
        use_attention("flash3", device=gpu)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: "there")
    with pytest.raises(ConfigError, match=r"FlashAttention-3 cannot be used \(No module named"):
        use_attention("flash3", device=gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (10, 0))
    with pytest.raises(ConfigError, match="NVIDIA B200 is no Hopper GPU"):
        use_attention("flash3", device=gpu)
    monkeypatch.delattr(torch.nn.attention, "activate_flash_attention_impl")
    with pytest.raises(ConfigError, match=r"cannot use it: 2\.11 and later can"):
        use_attention("flash3", device=gpu)
