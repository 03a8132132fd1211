"""`python -m pipeline plan` gives published costs, plans every recipe at every size, and refuses what cannot work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY, Outcome

Call = Callable[..., Outcome]
WriteConfig = Callable[..., Path]
IN21K = ("--samples", "14197122")


def recipe(name: str) -> str:
    return str(REPOSITORY / "configs" / f"{name}.yaml")


def forecast(call: Call, *arguments: str) -> dict[str, Any]:
    outcome = call("plan", *arguments, "--json")
    assert outcome.code == 0, outcome.text
    return json.loads(outcome.text)


@pytest.mark.parametrize("name", ["l16_in21k", "l32_in21k", "h14_in21k"])
def test_every_recipe_from_one_node_to_512(call: Call, name: str) -> None:
    plans = [forecast(call, recipe(name), "--nodes", str(nodes), *IN21K) for nodes in (1, 4, 16, 64, 512)]
    for plan in plans:
        assert plan["compute"]["images"] == pytest.approx(90 * 14_197_122, rel=1e-5)
        waiting = plan["compute"]["step_s"] / plan["compute"]["computing_s"]
        assert plan["compute"]["gpu_hours"] == pytest.approx(waiting * plans[0]["compute"]["gpu_hours"])
        sums = [stage["total"] for stage in plan["memory"]]
        assert sums == sorted(sums, reverse=True)  # every stage holds less than the one before
        assert plan["memory_bytes"] == pytest.approx(0.9 * 80 * 2**30)


@pytest.mark.parametrize(
    ("name", "epochs", "exaflops", "tpu_core_days"),
    [
        ("B/32", 7, 55, None),
        ("B/16", 7, 224, None),
        ("L/32", 7, 196, None),
        ("L/16", 7, 783, None),
        ("L/16", 14, 1567, 680),
        ("H/14", 14, 4262, 2500),
    ],
)
def test_the_papers_costs(call: Call, name: str, epochs: int, exaflops: float, tpu_core_days: float | None) -> None:
    """They are the exaFLOPs of Table 6 and the TPUv3-core-days of Table 2 (arXiv 2010.11929).

    A TPUv3 core makes at most 61.5 TFLOP/s, half of a chip's 123: the paper's runs had an MFU of 32 % (H/14) and 43 % (L/16).
    """
    plan = forecast(
        call,
        recipe("l16_in21k"),
        f"model.name={name}",
        "model.num_classes=18291",
        "model.dropout=0",
        "--samples",
        "303e6",
        f"trainer.duration={epochs} epochs",
        "trainer.peak_tflops=61.5",
        "--mfu",
        "1",
        "--nodes",
        "1",
    )
    assert plan["compute"]["flops"] / 1e18 == pytest.approx(exaflops, rel=0.03)
    if tpu_core_days is not None:
        assert 0.3 < plan["compute"]["gpu_hours"] / 24 / tpu_core_days < 0.45


def test_the_corpus_is_read_where_it_is(call: Call, write_config: WriteConfig) -> None:
    plan = forecast(call, str(write_config()), "--nodes", "1", "trainer.duration=2 epochs", "schedule.warmup=1 steps")
    assert plan["corpus"]["num_samples"] == 83
    assert plan["compute"]["steps"] == round(2 * 83 / 8)
    assert 512 < plan["corpus"]["image_bytes"] < 10_000


@pytest.mark.parametrize(("nodes", "memory_gib", "size"), [("1", "80", 256), ("3", "8", 19), ("3", "6", 9)])
def test_the_table_says_what_to_set(nodes: str, memory_gib: str, size: int, call: Call) -> None:
    command = ("plan", recipe("l16_in21k"), "trainer.zero_stage=1", "--nodes", nodes, "--gpu-memory-gib", memory_gib, *IN21K)
    assert f"set trainer.micro_batch_size={size}," in call(*command).text
    assert "it fits" in call(*command, f"trainer.micro_batch_size={size}").text


def test_shares_of_one_image_at_a_time_must_be_equal(call: Call) -> None:
    command = ("plan", recipe("h14_in21k"), "trainer.zero_stage=1", "--gpu-memory-gib", "9", *IN21K)
    assert "one image fits, but 24 GPUs do not divide a batch of 4096" in call(*command, "--nodes", "3").text
    assert "set trainer.micro_batch_size=" in call(*command, "--nodes", "4").text


def test_a_picture_of_the_failures(call: Call, tmp_path: Path) -> None:
    picture = tmp_path / "lost.png"
    plan = forecast(call, recipe("h14_in21k"), "--nodes", "512", *IN21K, "--simulate", str(picture))
    assert picture.read_bytes()[:4] == b"\x89PNG"
    simulated = plan["simulation"]
    assert min(simulated["mean_lost"]) == pytest.approx(plan["checkpoints"]["lost_at_daly"], rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--nodes", "513", *IN21K), "4096 is less than an image for each of the 4104 ranks"),
        (("--nodes", "1"), "--samples"),
        (("--nodes", "1", *IN21K, "--gpu", "h1000"), "h100pcie"),
        (("--nodes", "0", *IN21K), "--nodes 0: must be more than 0"),
        (("--nodes", "1", *IN21K, "--mfu", "40"), "--mfu 40"),
        (("--nodes", "1", *IN21K, "--simulate", "no-such-folder/lost.png"), "--simulate no-such-folder/lost.png"),
        (("--nodes", "1", *IN21K, "trainer.precision=fp32"), "trainer.peak_tflops"),
        (("--nodes", "1", "--samples", "10"), "less than one step"),
        (("--nodes", "1", "--samples", "1e4"), "schedule.warmup"),
    ],
)
def test_what_cannot_work_is_answered_in_words(call: Call, arguments: tuple[str, ...], words: str) -> None:
    outcome = call("plan", recipe("l16_in21k"), *arguments, "trainer.zero_stage=1")
    assert outcome.code == 2
    assert words in outcome.text
    assert "Traceback" not in outcome.text
