"""Every optimizer at every ZeRO stage on two ranks is itself in one process; and goes on bit for bit, or on other ranks."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.helpers.optimizer_scenarios import Scenario, TinyBackbone, learning_rate, make_images, parse_section
from tests.helpers.trainings import run_ranks

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STOP = 6
STAGES = (0, 1, 2, 3)
AVERAGE = {"decay": 0.8, "warmup": "timm"}
SECTIONS: dict[str, dict[str, Any]] = {
    "adam": {"name": "adam", "learning_rate": 0.01, "clip_norm": 0.5},
    "adamw": {"name": "adamw", "learning_rate": 0.01, "layer_decay": 0.75, "average": AVERAGE},
    "sgdw": {"name": "sgd", "learning_rate": 0.1, "weight_decay_rule": "decoupled_schedule"},
    "lion": {"name": "lion", "learning_rate": 0.01},
    "lamb": {"name": "lamb", "learning_rate": 0.05, "average": AVERAGE},
    "muon": {"name": "muon", "learning_rate": 0.02, "adamw_learning_rate": 0.01, "layer_decay": 0.9, "average": AVERAGE},
}
ELASTIC = ("lamb", "muon")
RUINED = 3


def section_of(name: str) -> dict[str, Any]:
    return {"weight_decay": 0.1, **SECTIONS[name]}


def run(folder: Path, scenarios: dict[str, Scenario], *, num_ranks: int) -> None:
    listing = folder / "scenarios.json"
    listing.write_text(json.dumps([asdict(scenario) for scenario in scenarios.values()]))
    run_ranks("tests.helpers.optimizer_scenarios", str(listing), num_ranks=num_ranks)


def load(folder: Path, name: str) -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / f"{name}.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of it: each optimizer at each stage on two ranks; some in two halves, and on one and three ranks."""
    folder = tmp_path_factory.mktemp("optimizers")

    def out(name: str) -> str:
        return str(folder / f"{name}.safetensors")

    whole = {f"{n}-{s}": Scenario(out(f"{n}-{s}"), section_of(n), s, STOP) for n in SECTIONS for s in STAGES}
    halves = {f"{n}-{s}-half": Scenario(out(f"{n}-{s}-half"), section_of(n), s, 3) for n in ELASTIC for s in STAGES}
    rest = {
        f"{n}-{s}-rest": Scenario(out(f"{n}-{s}-rest"), section_of(n), s, STOP, start=(out(f"{n}-{s}-half"), 3))
        for n in ELASTIC
        for s in STAGES
    }
    ruined = {f"{s}-ruined": Scenario(out(f"{s}-ruined"), section_of("muon"), s, RUINED + 1, ruined=(RUINED,)) for s in STAGES}
    low = {
        f"{n}-{s}-bf16": Scenario(out(f"{n}-{s}-bf16"), section_of(n), s, 4, precision="bf16")
        for n in ELASTIC
        for s in (1, 2, 3)
    }
    before = {f"{s}-before": Scenario(out(f"{s}-before"), section_of("muon"), s, RUINED) for s in STAGES}
    run(folder, whole | halves | rest | ruined | before | low, num_ranks=2)
    for num_ranks in (1, 3):
        elastic = {
            f"{n}-{s}-on-{num_ranks}": Scenario(
                out(f"{n}-{s}-on-{num_ranks}"), section_of(n), (s + 1) % 4, STOP, start=(out(f"{n}-{s}-half"), 3)
            )
            for n in ELASTIC
            for s in STAGES
        }
        run(folder, elastic, num_ranks=num_ranks)
    return folder


def train_alone(name: str) -> dict[str, Tensor]:
    """The optimizer in one process without ZeRO: tests/optim/test_references.py compares that with other people's."""
    section = parse_section(section_of(name))
    model = TinyBackbone()
    optimizer = section.build(model, fused=False)
    for group in optimizer.param_groups:
        for p in group["params"]:
            optimizer.state[p].update(optimizer.first_state(p, group), step=torch.zeros(()))
    optimizer.guard_steps(clip_norm=section.clip_norm)
    for step in range(STOP):
        images, labels = make_images(step)
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.set_learning_rate(learning_rate(step, peak=section.learning_rate))
        optimizer.num_updates = step
        optimizer.step()
    found = {f"master/{key}": p.detach() for key, p in model.named_parameters()}
    for key, p in model.named_parameters():
        found |= {f"{state}/{key}": optimizer.state[p][state] for state in optimizer.state_names_of(p)}
    return found


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To the rounding of gradients that are summed in another order; what Muon makes of that in bf16 is in it."""
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, atol=2e-4, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", SECTIONS)
def test_two_ranks_are_one_process(name: str, stage: int, folder: Path) -> None:
    assert_close(load(folder, f"{name}-{stage}"), train_alone(name))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ELASTIC)
def test_a_run_goes_on_bit_for_bit(name: str, stage: int, folder: Path) -> None:
    found, expected = load(folder, f"{name}-{stage}-rest"), load(folder, f"{name}-{stage}")
    assert found.keys() == expected.keys()
    for key in expected:
        assert torch.equal(found[key], expected[key]), key


@pytest.mark.parametrize("num_ranks", [1, 3])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ELASTIC)
def test_other_ranks_and_stages_go_on(name: str, stage: int, num_ranks: int, folder: Path) -> None:
    assert_close(load(folder, f"{name}-{stage}-on-{num_ranks}"), load(folder, f"{name}-{stage}"))


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("name", ELASTIC)
def test_in_bf16_the_stages_agree(name: str, stage: int, folder: Path) -> None:
    """DeepSpeed has another optimizer for each. A weight that bf16 rounds otherwise, by 2^-8, moves gradients by as much."""
    found, expected = load(folder, f"{name}-{stage}-bf16"), load(folder, f"{name}-2-bf16")
    assert found.keys() == expected.keys()
    for key in (key for key in expected if key.startswith(("master/", "average/"))):
        torch.testing.assert_close(found[key], expected[key], atol=2e-3, rtol=1e-2, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_that_is_refused_changes_nothing(stage: int, folder: Path) -> None:
    """Neither weights, nor momenta, nor the average."""
    found, expected = load(folder, f"{stage}-ruined"), load(folder, f"{stage}-before")
    assert any(key.startswith("average/") for key in found)
    for key in expected:
        assert torch.equal(found[key], expected[key]), key
