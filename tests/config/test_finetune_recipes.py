"""Recipes for fine-tuning: each with the numbers of its source, and a grid whose points are configurations."""

from __future__ import annotations

import pytest

from pipeline.config.read import load_config
from pipeline.config.resolve import count_schedule_steps, make_schedule
from pipeline.finetune.points import configure_point, list_points
from tests.conftest import REPOSITORY

FILES = {path.stem: path for path in (REPOSITORY / "configs" / "finetune").glob("*.yaml") if not path.stem.startswith("base")}
IMAGES = 1_281_167  # of ImageNet-1k

# model; side; classes; steps, those of the warmup; batch; learning rates; dev part. The paper's Table 4 (batch 512, no weight
# decay); MAE's Table 9, whose 100 or 50 epochs at a batch of 1024 are 125,114 or 62,557 steps, five of them 6,256.
TABLE = """
paper_imagenet      L/16 384 1000  20000  500  512 0.003,0.01,0.03,0.06  0.01
paper_imagenet_512  L/16 512 1000  20000  500  512 0.003,0.01,0.03,0.06  0.01
paper_imagenet_518  H/14 518 1000  20000  500  512 0.003,0.01,0.03,0.06  0.01
paper_cifar10       L/16 384   10  10000  500  512 0.001,0.003,0.01,0.03 0.02
paper_cifar100      L/16 384  100  10000  500  512 0.001,0.003,0.01,0.03 0.02
paper_pets          L/16 384   37    500  100  512 0.001,0.003,0.01,0.03 0.1
paper_flowers102    L/16 384  102    500  100  512 0.001,0.003,0.01,0.03 0.1
paper_vtab1k        L/16 384  102   2500  200  512 0.01                  0.1
mae_b16_imagenet    B/16 224 1000 125114 6256 1024 0.002                 0.01
mae_l16_imagenet    L/16 224 1000  62557 6256 1024 0.004                 0.01
mae_h14_imagenet    H/14 224 1000  62557 6256 1024 0.004                 0.01
"""
ROWS = {line.split()[0]: line.split()[1:] for line in TABLE.strip().splitlines()}


def test_every_recipe_is_in_the_table() -> None:
    assert set(FILES) == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_its_numbers_are_those_of_its_source(name: str) -> None:
    model, side, classes, total, warmup, batch, rates, dev = ROWS[name]
    config = load_config(FILES[name])
    resolved = config.model.resolve()
    assert (config.model.name, resolved.height_and_width) == (model, (int(side), int(side)))
    assert resolved.num_classes == int(classes)
    assert config.init.head == "new"
    assert config.objective.name == "softmax"
    steps = count_schedule_steps(config, num_samples=IMAGES)
    assert (steps.total, steps.warmup) == (pytest.approx(int(total), abs=1), pytest.approx(int(warmup), abs=1))
    assert config.trainer.global_batch_size == int(batch)
    assert config.finetune is not None
    points = list_points(config.finetune.grid)
    configs = [configure_point(config, point, train="/rest", dev="/dev") for point in points]
    assert [point.optimizer.learning_rate for point in configs] == [float(rate) for rate in rates.split(",")]
    assert config.finetune.dev == float(dev)
    schedule = make_schedule(configs[0], steps)
    assert schedule(steps.warmup) == pytest.approx(configs[0].optimizer.learning_rate)
    assert schedule(steps.total) == pytest.approx(0.0 if name.startswith("paper") else 1e-6, abs=1e-12)
    if name.startswith("paper"):
        assert (config.optimizer.name, config.optimizer.weight_decay, config.optimizer.clip_norm) == ("sgd", 0.0, 1.0)
    else:
        assert (config.optimizer.name, config.optimizer.weight_decay) == ("adamw", 0.05)
        assert config.optimizer.layer_decay == (0.65 if name.startswith("mae_b") else 0.75)


def test_the_recipes_of_the_page_exist() -> None:
    page = (REPOSITORY / "docs" / "finetuning.md").read_text()
    for name in FILES:
        assert name in page, name
