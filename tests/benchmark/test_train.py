"""The comparison of ways to train: turns, profiles, the search for the largest batch, and a small run from the command line."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
import torch

from pipeline.benchmark.train.compare import Budget, GroupResult, Plan, Result, make_table, measure_group
from pipeline.benchmark.train.contender import largest_that_fits
from pipeline.benchmark.train.entries import BARE, OURS, PRODUCT, Entry, Group, choice_groups, main_group
from pipeline.benchmark.train.peers import check_plain, timm_model, transformers_model
from pipeline.benchmark.train.profile import ELEMENTWISE, GAPS, Profile, kind_of, shares_of
from pipeline.benchmark.train.turn import Turn
from pipeline.benchmark.train.work import read_training, standard_config, with_settings
from pipeline.config.resolve import resolve_run
from pipeline.errors import ConfigError
from tests.conftest import REPOSITORY, run_command


def test_every_contender_of_every_group_is_a_valid_configuration(tmp_path: Path) -> None:
    config = standard_config("L/16", image_size=224, num_classes=1000)
    for group in [main_group(compiled=True), *choice_groups(compiled=True, gpu=True, ranks=2)]:
        assert len({entry.name for entry in group.entries}) == len(group.entries)
        for entry in group.entries:
            own = with_settings(config, folder=str(tmp_path), data="x.tar", batch_size=6, num_workers=0, **entry.trainer)
            run = resolve_run(own, world_size=1)
            assert (run.micro_batch_size, run.accumulation_steps) == (6, 1)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("*l16*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_is_measured_with_its_own_settings(path: Path) -> None:
    own = read_training(str(path), [])
    assert own.tracking.mode == "disabled"
    assert not own.evaluation.datasets
    smaller = with_settings(own, folder="out", data="x.tar", batch_size=2, num_workers=0, zero_stage=2)
    assert smaller.model == own.model
    assert smaller.optimizer == own.optimizer
    assert smaller.trainer.zero_stage == 2
    assert smaller.trainer.global_batch_size == 2


@pytest.mark.usefixtures("timm")
def test_the_peers_models_have_our_parameters() -> None:
    config = standard_config("S/16", image_size=64, num_classes=10).model.resolve()
    ours = sum(parameter.numel() for parameter in config.build().parameters())
    for make in (timm_model, transformers_model):
        model = make(config)
        assert sum(parameter.numel() for parameter in model.parameters()) == ours
        logits = model(torch.zeros(2, 3, 64, 64))
        assert getattr(logits, "logits", logits).shape == (2, 10)


def test_a_model_that_others_have_not_is_left_out_in_words() -> None:
    config = standard_config("S/16", image_size=64, num_classes=10)
    gap = config.model.model_copy(update={"pooling": "gap", "registers": 4})
    with pytest.raises(ConfigError, match="left out: its plain model has no such pooling, registers"):
        check_plain(gap.resolve())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::addmm", "matrix products"),
        ("nvjet_tst_192x192_64x4_2x1_v_bz_coopB_TNT", "matrix products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "matrix products"),
        ("void pytorch_flash::flash_fwd_kernel<...>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3f_64x128x128", "attention"),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", "communication"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
        ("aten::native_layer_norm", "normalisation"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("triton_poi_fused_gelu_7", ELEMENTWISE),
    ],
)
def test_operators_and_kernels_are_sorted(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_shares_and_the_gap_are_the_whole_time() -> None:
    shares = shares_of([("aten::mm", 0.5), ("aten::gelu", 0.1), ("aten::mm", 0.1)], seconds=1.0)
    assert shares == pytest.approx({"matrix products": 0.6, ELEMENTWISE: 0.1, GAPS: 0.3})
    assert list(shares)[-1] == GAPS


def test_a_profile_sees_what_was_computed(tmp_path: Path) -> None:
    profile = Profile(torch.device("cpu"))
    big = torch.randn(400, 400)
    for _ in range(5):
        big = big @ big / 400
    shares = profile.end(str(tmp_path / "trace.json"), seconds=1.0)
    assert shares["matrix products"] == max(share for kind, share in shares.items() if kind != GAPS)
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 5, 8, 37, 100, 255, 256, 1000])
def test_the_largest_batch_is_found_to_a_sixteenth(limit: int) -> None:
    tried: list[int] = []

    def fits(count: int) -> bool:
        tried.append(count)
        return count <= limit

    found = largest_that_fits(fits, most=512)
    assert found <= min(limit, 512)
    assert found % 2 == 0
    assert found >= min(limit, 512) - max(2, limit // 8) or limit < 2
    assert max(tried) <= 512
    assert len(tried) < 20


def test_a_turn_times_the_steps_after_its_warmup() -> None:
    commands = io.StringIO('{"steps": 3, "warmup": 2}\n{"steps": 1, "warmup": 0}\n')
    answers = io.StringIO()
    turn, steps = Turn(torch.device("cpu"), commands=commands, answers=answers), 0

    def loop() -> None:
        nonlocal steps
        while True:
            steps += 1
            turn.waited(1.0)
            turn.step_ended()

    with pytest.raises(SystemExit):
        loop()
    ready, first, second = map(json.loads, answers.getvalue().splitlines())
    assert ready == {"ready": True}
    assert (first["steps"], second["steps"]) == (3, 1)
    assert (first["wait_s"], second["wait_s"]) == (3.0, 1.0)
    assert steps == 1 + 2 + 3 + 1


def test_the_table_has_ratios_and_problems() -> None:
    results = (
        Result(BARE, seconds=[0.1, 0.3, 0.1]),
        Result(OURS, seconds=[0.2], peak_bytes=2**30),
        Result("timm, plain loop", problem="ModuleNotFoundError: No module named 'timm'"),
        Result(PRODUCT, seconds=[1.0]),
    )
    table = make_table(
        GroupResult("g", 10, flops_per_image=1e9, results=results, product_flops=1e12), forecasts=[None, 2**31, None, None]
    )
    lines = table.splitlines()
    assert lines[2] == "| ours, bare loop | 100 | 100 | 1.000 | 10.0 % |  |"
    assert lines[3] == "| ours, Lightning + ZeRO-1 | 200 | 50 | 0.500 | 5.0 % | 1.0 (2.0) |"
    assert "No module named 'timm'" in lines[4]
    assert len(lines) == 7
    assert "1 TFLOP/s" in lines[6]


def test_a_budget_ends() -> None:
    assert Budget(None).is_left()
    assert Budget(1.0).is_left()
    assert not Budget(0.0).is_left()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.long), 2])
def test_contenders_take_turns_and_one_that_cannot_is_named(ranks: int, tmp_path: Path) -> None:
    config = standard_config("Ti/16", image_size=32, num_classes=10)
    config = config.model_copy(update={"model": config.model.model_copy(update={"depth": 2})})
    group = Group(
        "small",
        (
            Entry(BARE, "bare"),
            Entry(OURS, "lightning", {"zero_stage": 2}),
            Entry("refused", "lightning", {"zero_stage": 1}, real_data=True),
            Entry(PRODUCT, "product"),
        ),
    )
    plan = Plan(batch_size=4, steps=2, warmup=1, rounds=2, data=str(tmp_path / "nowhere"), ranks=ranks)
    found = measure_group(group, config, plan, flops_per_image=1e6, profile=tmp_path / "trace.json")
    bare, ours, refused, product = found.results
    assert found.batch_size == 4 * ranks
    for result in (bare, ours, product):
        assert result.problem is None
        assert len(result.seconds) == 2
        assert all(math.isfinite(seconds) and seconds > 0 for seconds in result.seconds)
    assert refused.step_s is None
    assert "nowhere" in str(refused.problem)
    assert ours.shares is not None
    assert sum(ours.shares.values()) == pytest.approx(1.0, abs=0.2)
    assert (tmp_path / "trace.json").exists()
    assert found.product_flops is not None


@pytest.mark.slow
def test_the_command_measures_the_loader_and_writes_json(tmp_path: Path, corpus: Path) -> None:
    out = tmp_path / "figures.json"
    done = run_command(
        "benchmark", "train", "--models", "Ti/16", "--image-size", "32", "--batch", "4", "--steps", "1", "--rounds", "1",
        "--data", str(corpus), "--json", str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (model,) = json.loads(out.read_text())["models"]
    main, loader = model["groups"]
    assert [result["problem"] for result in loader["results"]] == [None, None]
    assert [result["name"] for result in main["results"]][:2] == [BARE, OURS]
    assert "waits for data" in done.stdout or loader["results"][1]["wait_fraction"] < 0.001
    assert "of the matrix product's rate" in done.stdout


def test_a_budget_of_nothing_says_what_it_did_not_reach() -> None:
    done = run_command("benchmark", "train", "--models", "Ti/16", "--budget", "0", "--measure", "loops", "choices")
    assert done.returncode == 0, done.stderr
    assert "not reached in 0 minutes: ViT-Ti/16: loops and libraries; ViT-Ti/16: ZeRO stages" in done.stdout
