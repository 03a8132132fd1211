"""A run that resumes with other ranks, or another ZeRO stage, has the same samples, and losses equal to rounding."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline.run.checkpoint import RunFolder
from pipeline.run.checkpoint_search import find_latest
from pipeline.run.records import read_metrics
from pipeline.run.weights import TensorFiles, load_weights
from pipeline.train.zero_state import assign_owners
from tests.helpers.selection import chosen_names, quick_and_slow
from tests.helpers.trainings import train_together

STEPS_A_LEG = 3
LEGS = (2, 3, 1, 4)  # ranks, one launch after the other
STAGES = {name: (stage,) * len(LEGS) for name, stage in (("zero0", 0), ("zero1", 1), ("zero2", 2), ("zero3", 3))}
STAGES["changing"] = (2, 3, 0, 1)
QUICK = ("changing",)  # every stage is in it
BF16_STAGES = {name: (stage,) * len(LEGS) for name, stage in (("zero1_bf16", 1), ("zero2_bf16", 2), ("zero3_bf16", 3))}


def write_scenario(
    folder: Path, values: dict[str, Any], name: str, *, stage: int, precision: str = "fp32", **trainer: Any
) -> Path:
    """Write a configuration without dropout, whose masks belong to a rank; its batches are divisible by one rank only."""
    path = folder / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True, parents=True)
    values = {
        **values,
        "name": name,
        "model": {**values["model"], "dropout": 0.0},
        "checkpoint": {"every": "100 steps"},
        "trainer": {
            **values["trainer"],
            "global_batch_size": 13,
            "precision": precision,
            "zero_stage": stage,
            "duration": f"{STEPS_A_LEG * len(LEGS)} steps",
            **trainer,
        },
    }
    path.write_text(yaml.safe_dump(values))
    return path


def train_in_legs(
    folder: Path, tiny_config: dict[str, Any], stages: dict[str, Sequence[int]], legs: Sequence[int], **trainer: Any
) -> dict[str, RunFolder]:
    """Train each scenario, interrupted after each leg and resumed by the next number of ranks."""
    values = {**tiny_config, "output_dir": str(folder / "runs")}
    for number, num_ranks in enumerate(legs):
        end = {**trainer, "max_steps": STEPS_A_LEG * (number + 1)}
        leg = folder / f"leg-{number}"
        configs = [
            write_scenario(leg, values, name, stage=stage[number], precision="bf16" if "bf16" in name else "fp32", **end)
            for name, stage in stages.items()
        ]
        train_together(configs, leg / "scenarios.json", num_ranks=num_ranks)
    return {name: RunFolder(folder / "runs" / name) for name in stages}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_config: dict[str, Any]) -> RunFolder:
    """Train two ranks from the first step to the last."""
    folder = tmp_path_factory.mktemp("undisturbed")
    values = {**tiny_config, "output_dir": str(folder / "runs")}
    train_together([write_scenario(folder, values, "same", stage=2)], folder / "scenarios.json")
    return RunFolder(folder / "runs" / "same")


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_config: dict[str, Any]
) -> dict[str, RunFolder]:
    chosen = {name: STAGES[name] for name in chosen_names(request) if name in STAGES}
    return train_in_legs(tmp_path_factory.mktemp("elastic"), tiny_config, chosen, LEGS, micro_batch_size=3)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", quick_and_slow(STAGES, quick=QUICK))
def test_other_ranks_go_on_with_the_same_samples_and_losses(
    name: str, runs: dict[str, RunFolder], undisturbed: RunFolder
) -> None:
    assert_same_to_rounding(runs[name], undisturbed)
    assert_same_weights_to_rounding(runs[name], undisturbed, step=STEPS_A_LEG * len(LEGS))
    newest = find_latest(runs[name]).newest
    assert newest is not None
    assert newest.meta.world_size == LEGS[-1]
    assert newest.meta.num_updates == STEPS_A_LEG * len(LEGS)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_other_ranks_go_on_in_bf16(tmp_path: Path, tiny_config: dict[str, Any], undisturbed: RunFolder) -> None:
    theirs = read_metrics(undisturbed.metrics)
    losses = [row["train/loss"] for row in theirs]
    for name, folder in train_in_legs(tmp_path, tiny_config, BF16_STAGES, LEGS, micro_batch_size=3).items():
        ours = read_metrics(folder.metrics)
        assert [row["data/digest"] for row in ours] == [row["data/digest"] for row in theirs], name
        assert [row["train/loss"] for row in ours] == pytest.approx(losses, rel=0.02), name


RESUMED = {
    "zero0_autocast": (0, "bf16_autocast"), "zero1_bf16": (1, "bf16"), "zero1_fp32": (1, "fp32"), "zero2_bf16": (2, "bf16"),
    "zero2_autocast": (2, "bf16_autocast"), "zero3_bf16": (3, "bf16"), "zero3_fp32": (3, "fp32"),
}  # fmt: skip


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory, tiny_config: dict[str, Any]) -> Path:
    """Train every stage and precision twice, in one launch: without a break, and saved and resumed half-way."""
    folder = tmp_path_factory.mktemp("resumed")
    configs = []
    for name, (stage, precision) in RESUMED.items():
        scenario: dict[str, Any] = {"stage": stage, "precision": precision, "duration": "6 steps"}
        whole, parts = ({**tiny_config, "output_dir": str(folder / folder_name)} for folder_name in ("whole", "parts"))
        configs.append(write_scenario(folder / "a", whole, name, **scenario))
        configs.append(write_scenario(folder / "b", parts, name, max_steps=3, **scenario))
        configs.append(write_scenario(folder / "c", parts, name, **scenario))
    train_together(configs, folder / "scenarios.json")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
def test_as_many_ranks_go_on_with_the_same_bits(name: str, resumed: Path) -> None:
    whole, parts = (RunFolder(resumed / folder_name / name) for folder_name in ("whole", "parts"))
    assert parts.checkpoint_steps() == [3, 6]
    ours, theirs = (load_weights(folder.weights_of(6)).model.state_dict() for folder in (parts, whole))
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key
    ours, theirs = read_metrics(parts.metrics), read_metrics(whole.metrics)
    for key in ("step", "train/loss", "train/gradient_norm", "data/digest"):
        assert [row[key] for row in ours] == [row[key] for row in theirs], key


def assert_same_to_rounding(folder: RunFolder, reference: RunFolder) -> float:
    """Assert equal digests, losses within a hundred thousandth, norms within a thousandth. Return the loss difference."""
    ours, theirs = read_metrics(folder.metrics), read_metrics(reference.metrics)
    assert [row["data/digest"] for row in ours] == [row["data/digest"] for row in theirs]
    losses, expected = ([row["train/loss"] for row in rows] for rows in (ours, theirs))
    assert losses == pytest.approx(expected, rel=1e-5)
    norms = [row["train/gradient_norm"] for row in theirs]
    assert [row["train/gradient_norm"] for row in ours] == pytest.approx(norms, rel=1e-3)
    return max(abs(a - b) / b for a, b in zip(losses, expected, strict=True))


def assert_same_weights_to_rounding(folder: RunFolder, reference: RunFolder, *, step: int) -> None:
    """Compare after few steps: Adam divides by the root of tiny second moments, and so multiplies rounding with time."""
    weights = load_weights(reference.weights_of(step)).model.state_dict()
    for key, tensor in load_weights(folder.weights_of(step)).model.state_dict().items():
        torch.testing.assert_close(tensor, weights[key], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", QUICK)
def test_a_checkpoint_holds_whole_tensors_shared_out_between_its_ranks(name: str, runs: dict[str, RunFolder]) -> None:
    path = runs[name].checkpoint_of(STEPS_A_LEG * len(LEGS))
    parts = sorted(path.glob("moments-*.safetensors"))
    assert [part.name for part in parts] == [
        f"moments-{rank:05d}-of-00004.safetensors" for rank in range(1, 4)
    ]  # rank 0: the model
    assert (path / "model.safetensors").samefile(runs[name].weights_of(STEPS_A_LEG * len(LEGS)))
    moments = TensorFiles(parts)
    for key, tensor in load_weights(path / "model.safetensors").model.state_dict().items():
        assert moments.read(f"exp_avg/{key}").shape == tensor.shape
        assert moments.read(f"exp_avg_sq/{key}").min() >= 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3"])
def test_the_model_of_a_checkpoint_is_what_deepspeed_makes_of_its_own(name: str, runs: dict[str, RunFolder]) -> None:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    theirs = get_fp32_state_dict_from_zero_checkpoint(str(runs[name].root / "deepspeed"), tag="end")
    ours = load_weights(runs[name].weights_of(STEPS_A_LEG * len(LEGS))).model.state_dict()
    assert {f"model.{key}" for key in ours} == set(theirs)
    for key, tensor in ours.items():
        assert torch.equal(tensor, theirs[f"model.{key}"]), key


def test_tensors_are_shared_out_evenly() -> None:
    sizes = {f"t{number}": size for number, size in enumerate([100, 90, 50, 50, 20, 10, 10, 5])}
    owners = assign_owners(sizes, num_ranks=3, taken=60)
    mine = [[sizes[name] for name in sizes if owners[name] == rank] for rank in range(3)]
    load = [sum(tensors) + taken for tensors, taken in zip(mine, (60, 0, 0), strict=True)]
    for total, tensors in zip(load, mine, strict=True):
        assert total - min(tensors) <= min(load)  # one tensor less, and it would have the least
    assert owners == assign_owners(dict(reversed(sizes.items())), num_ranks=3, taken=60)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_every_change_of_ranks_at_every_stage(tmp_path: Path, tiny_config: dict[str, Any], undisturbed: RunFolder) -> None:
    """1, 2, 3 and 4 ranks change, from each to each, at ZeRO 1, 2 and 3; `pytest -s` shows the table."""
    stages = {f"zero{stage}": (stage,) * 13 for stage in (1, 2, 3)}
    # Every ordered pair occurs once, as one walk: an Eulerian circuit of the complete directed graph.
    walk = (1, 2, 1, 3, 1, 4, 2, 3, 2, 4, 3, 4, 1)
    assert set(itertools.pairwise(walk)) == set(itertools.permutations(range(1, 5), 2))
    length = {"duration": f"{STEPS_A_LEG * len(walk)} steps"}
    reference = tmp_path / "reference"
    values = {**tiny_config, "output_dir": str(reference)}
    train_together([write_scenario(reference, values, "same", stage=2, **length)], tmp_path / "scenarios.json")
    folders = train_in_legs(tmp_path, tiny_config, stages, walk, micro_batch_size=3, **length)
    print(f"\nranks {' -> '.join(map(str, walk))}, {STEPS_A_LEG} steps each: same samples at every step")
    for name, folder in folders.items():
        difference = assert_same_to_rounding(folder, RunFolder(reference / "same"))
        print(f"{name}: largest relative difference of a loss {difference:.1e}")
