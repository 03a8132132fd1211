"""Every recipe is what its source says: sizes, compute, steps, learning rates, decay, loss, augmentation; by one table."""

from __future__ import annotations

import functools
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.read import load_config
from pipeline.config.resolve import count_schedule_steps, make_schedule
from pipeline.config.run import RunConfig
from pipeline.data.images.augment.nothing import NoAugment
from pipeline.data.images.augment.randaugment_tf import RandAugmentTF
from pipeline.models.vit.section import ViT
from pipeline.objectives.classification import ClassificationSection
from pipeline.optim.adamw import AdamW
from tests.conftest import REPOSITORY

NO_RUNS = (REPOSITORY / "configs" / "suites").glob("*.yaml")  # they have the evaluator's settings alone
CONFIGS = [
    path for path in sorted({*(REPOSITORY / "configs").rglob("*.yaml")} - {*NO_RUNS}) if not path.stem.startswith("base")
]
RECIPES = [path for path in CONFIGS if path.parent.name != "finetune"]
FILES = {path.stem: path for path in RECIPES}
IMAGES = {"in21k": 14_197_122, "in1k": 1_281_167}  # of the whole training sets
OTHER_IMAGES = 50_000  # a number to count with

# parameters; 10^9 multiply-accumulates of an image; tensors that decay, and that do not; steps, those of the warmup; learning
# rate x 10^4 in the middle of the warmup, at its end, after a quarter of the rest, at the end; weight decay; batch; objective;
# dropout; stochastic depth; augmentation: layers and magnitude of RandAugment, or DeiT's three; alphas of MixUp and CutMix.
# Computed from the sources' definitions (docs/recipes.md), not by this project's code.
TABLE = """
b32_jft               102111603   4.4231  51 103  517822 10000     4  8 6.025 0.1 0.1  4096 sigmoid 0   0    none 0   0
b16_jft               100455027  17.5777  51 103  517822 10000     4  8 6.025 0.1 0.1  4096 sigmoid 0   0    none 0   0
l32_jft               325308275  15.3963  99 199  517822 10000     3  6 4.525 0.1 0.1  4096 sigmoid 0   0    none 0   0
l16_jft               323099507  61.5735  99 199 1035645 10000     2  4 3.025 0.1 0.1  4096 sigmoid 0   0    none 0   0
h14_jft               655835251 167.3189 131 263 1035645 10000   1.5  3 2.275 0.1 0.1  4096 sigmoid 0   0    none 0   0
r50x1_jft              60986291   4.1246  54 107  517822 10000     5 10 7.525 0.1 0.1  4096 sigmoid 0   0    none 0   0
r50x2_jft             168845299  16.1874  54 107  517822 10000     5 10 7.525 0.1 0.1  4096 sigmoid 0   0    none 0   0
r101x1_jft             79978419   7.8368 105 209  517822 10000     4  8 6.025 0.1 0.1  4096 sigmoid 0   0    none 0   0
r152x1_jft             95622067  11.5490 156 311  517822 10000     3  6 4.525 0.1 0.1  4096 sigmoid 0   0    none 0   0
r152x2_jft            307191795  45.8852 156 311  517822 10000     3  6 4.525 0.1 0.1  4096 sigmoid 0   0    none 0   0
r50_b32_jft           124833203   8.4717 104 209  517822 10000     4  8 6.025 0.1 0.1  4096 sigmoid 0   0    none 0   0
r50_b16_jft           112546483  21.5492 103 207  517822 10000     4  8 6.025 0.1 0.1  4096 sigmoid 0   0    none 0   0
r50_l32_jft           347767731  19.4320 152 305  517822 10000     1  2 1.525 0.1 0.1  4096 sigmoid 0   0    none 0   0
r50_l16_jft           335256499  65.5578 151 303 1035645 10000     2  4 3.025 0.1 0.1  4096 sigmoid 0   0    none 0   0
b32_in21k             104843091   4.4258  51 103  311948 10000     5 10 7.525 0.1 0.03 4096 sigmoid 0.1 0    none 0   0
b16_in21k             103186515  17.5804  51 103  311948 10000     5 10 7.525 0.1 0.03 4096 sigmoid 0.1 0    none 0   0
l32_in21k             328949075  15.3999  99 199  311948 10000     5 10 7.525 0.1 0.03 4096 sigmoid 0.1 0    none 0   0
l16_in21k             326740307  61.5771  99 199  311948 10000     5 10 7.525 0.1 0.03 4096 sigmoid 0.1 0    none 0   0
h14_in21k             660385363 167.3234 131 263  311948 10000     5 10 7.525 0.1 0.03 4096 sigmoid 0.1 0    none 0   0
b32_in1k               88814824   4.4098  51 103   93835 10000    15 30 25.61   0 0.3  4096 softmax 0.1 0    none 0   0
b16_in1k               87158248  17.5644  51 103   93835 10000    15 30 25.61   0 0.3  4096 softmax 0.1 0    none 0   0
l32_in1k              307585000  15.3786  99 199   93835 10000    15 30 25.61   0 0.3  4096 softmax 0.1 0    none 0   0
l16_in1k              305376232  61.5558  99 199   93835 10000    15 30 25.61   0 0.3  4096 softmax 0.1 0    none 0   0
better_s16_90ep_in1k   22122472   4.5742  51 101  112603 10000     5 10 8.536   0 0.1  1024 softmax 0   0    2,10 0.2 0
better_s16_150ep_in1k  22122472   4.5742  51 101  187671 10000     5 10 8.536   0 0.1  1024 softmax 0   0    2,10 0.2 0
better_s16_300ep_in1k  22122472   4.5742  51 101  375342 10000     5 10 8.536   0 0.1  1024 softmax 0   0    2,10 0.2 0
augreg_ti16_in21k       9740115   1.2577  50 102 1039828 10000     5 10 8.536   0 0.1  4096 sigmoid 0   0    none 0   0
augreg_s32_in21k       30903507   1.1509  50 102 1039828 10000     5 10 8.536   0 0.1  4096 sigmoid 0   0    none 0   0
augreg_s16_in21k       30075219   4.6069  50 102 1039828 10000     5 10 8.536   0 0.1  4096 sigmoid 0   0    2,0  0   0
augreg_b32_in21k      104252499   4.4252  50 102 1039828 10000     5 10 8.536   0 0.1  4096 sigmoid 0   0    2,10 0.2 0
augreg_b16_in21k      102595923  17.5798  50 102 1039828 10000     5 10 8.536   0 0.1  4096 sigmoid 0   0    2,10 0.2 0
augreg_l16_in21k      325690707  61.5761  98 198 1039828 10000     5 10 8.536   0 0.1  4096 sigmoid 0   0    2,15 0.5 0
augreg_r_ti16_in21k    10360403   0.4377  51 104 1039828 10000     5 10 8.536   0 0.03 4096 sigmoid 0   0    none 0   0
augreg_r26_s32_in21k   44456467   3.4719  79 160 1039828 10000     5 10 8.536   0 0.1  4096 sigmoid 0   0    2,0  0   0
augreg_r50_l32_in21k  350358931  19.4346 151 304 1039828 10000     5 10 8.536   0 0.1  4096 sigmoid 0.1 0.1  2,15 0.2 0
augreg_ti16_in1k        5754472   1.2537  51 103   93835 10000     5 10 8.536   0 0.1  4096 sigmoid 0   0    2,0  0   0
augreg_s32_in1k        23026792   1.1431  51 103   93835 10000     5 10 8.536   0 0.1  4096 sigmoid 0   0    2,15 0.2 0
augreg_s16_in1k        22198504   4.5990  51 103   93835 10000     5 10 8.536   0 0.1  4096 sigmoid 0   0    2,15 0.5 0
augreg_b32_in1k        88814824   4.4098  51 103   93835 10000     5 10 8.536   0 0.1  4096 sigmoid 0   0    2,15 0.5 0
augreg_b16_in1k        87158248  17.5644  51 103   93835 10000     5 10 8.536   0 0.1  4096 sigmoid 0   0    2,15 0.5 0
augreg_l16_in1k       305376232  61.5558  99 199   93835 10000     5 10 8.536   0 0.1  4096 sigmoid 0   0    2,15 0.5 0
augreg_r_ti16_in1k      6374760   0.4337  52 105   93835 10000     5 10 8.536   0 0.1  4096 sigmoid 0   0    2,0  0   0
augreg_r26_s32_in1k    36579752   3.4640  80 161   93835 10000     5 10 8.536   0 0.1  4096 sigmoid 0   0    2,15 0.2 0
augreg_r50_l32_in1k   330044456  19.4143 152 305   93835 10000     5 10 8.536   0 0.1  4096 sigmoid 0   0    2,15 0.5 0
deit3_s16_in1k         22059496   4.5989  50 126  500456  3128 20.01 40 34.16 0.1 0.05 2048 sigmoid 0   0.05 3    0.8 1
deit3_b16_in1k         86545384  12.7888  50 126  500456  3128    15 30 25.62 0.1 0.05 2048 sigmoid 0   0.2  3    0.8 1
deit3_l16_in1k        304321512  44.9362  98 246  500456  3128    15 30 25.62 0.1 0.05 2048 sigmoid 0   0.45 3    0.8 1
deit3_h14_in1k        631953640  78.0674 130 326  500456  3128    15 30 25.62 0.1 0.05 2048 sigmoid 0   0.6  3    0.8 1
deit3_s16_in21k        30083281   4.6069  50 126 1663725 34661 5.005 10  8.55 0.1 0.02 2048 softmax 0   0.05 3    0   1
deit3_b16_in21k       102612049  17.5798  50 126 1663725 34661 5.005 10  8.55 0.1 0.02 2048 softmax 0   0.1  3    0   1
deit3_l16_in21k       325736785  61.5761  98 246 1663725 34661 5.005 10  8.55 0.1 0.02 2048 softmax 0   0.3  3    0   1
deit3_h14_in21k       658599761  52.2297 130 326  623897 34661 5.005 10  8.55 0.1 0.02 2048 softmax 0   0.5  3    0   1
demo                     211078   0.0036  18  38     600    50    20 40 29.99 0.1 0.05  128 softmax 0   0    none 0   0
choices_64px             906980   0.0153  18  38    3125   250     5 10  8.55 0.1 0.05   64 softmax 0   0    none 0   0
ti8_64px                2738596   0.1846  26  54    3516   200     5 10  8.55 0.1 0.05  128 softmax 0   0    none 0   0
"""
NAMES = (
    "parameters", "gmacs", "decayed", "undecayed", "steps", "warmup", "rate_mid_warmup", "rate_peak", "rate_quarter",
    "rate_end", "weight_decay", "batch", "objective", "dropout", "stochastic_depth", "augment", "mixup", "cutmix",
)  # fmt: skip
ROWS = {line.split()[0]: dict(zip(NAMES, line.split()[1:], strict=True)) for line in TABLE.strip().splitlines()}

# The paper's Table 6 (arXiv 2010.11929), exaFLOPs of the pretraining on JFT-300M as long as the recipe has it.
TABLE_6 = {
    "b32_jft": 55, "b16_jft": 224, "l32_jft": 196, "l16_jft": 1567, "h14_jft": 4262,
    "r50x1_jft": 50, "r50x2_jft": 199, "r101x1_jft": 96, "r152x1_jft": 141, "r152x2_jft": 563,
    "r50_b32_jft": 106, "r50_b16_jft": 274, "r50_l32_jft": 246, "r50_l16_jft": 1668,
}  # fmt: skip
# Rows that 6 x multiply-accumulates does not give to half a percent, and what it gives: all with a whole ResNet, and B/32.
# R50+L/16 is none: 7 epochs are 834, half of the 1668 printed for 14; the 859 printed for 7 is taken for a misprint.
ABOVE_TABLE_6 = {
    "b32_jft": 56.3, "r50x1_jft": 52.5, "r50x2_jft": 206.0, "r101x1_jft": 99.7, "r152x1_jft": 147.0, "r152x2_jft": 583.9,
    "r50_b32_jft": 107.8, "r50_l32_jft": 247.3,
}  # fmt: skip

# AugReg (arXiv 2106.10270, section 3.3): layers, magnitude, MixUp's alpha.
LEVELS = {
    "none": None, "light1": (2, 0, 0.0), "light2": (2, 10, 0.2), "medium1": (2, 15, 0.2), "medium2": (2, 15, 0.5),
    "strong1": (2, 20, 0.5), "strong2": (2, 20, 0.8),
}  # fmt: skip


@functools.cache
def recipe(name: str) -> RunConfig:
    return load_config(FILES[name])


def augmentation_of(config: RunConfig) -> str:
    augment = config.data.augment
    if isinstance(augment, RandAugmentTF):
        return f"{augment.layers},{augment.magnitude:g}"
    return {"none": "none", "three_augment": "3"}[augment.name]


def schedule_of(config: RunConfig, name: str) -> dict[str, float]:
    images = IMAGES.get(name.rpartition("_")[2], OTHER_IMAGES)
    steps = count_schedule_steps(config, num_samples=config.data.repeats * images)
    rate = make_schedule(config, steps)
    quarter = steps.warmup + round((steps.total - steps.warmup) / 4)
    points = (steps.warmup // 2, steps.warmup, quarter, steps.total)
    rates = dict(zip(NAMES[6:10], (1e4 * rate(step) for step in points), strict=True))
    return {"steps": steps.total, "warmup": steps.warmup} | rates


def decay_of(config: RunConfig) -> dict[str, Any]:
    """Tensors and parameters of the optimizer's groups. The model has no memory."""
    with torch.device("meta"):
        model = config.model.resolve(head_bias=config.objective.head_bias).build()
    groups = config.optimizer.make_groups(model)
    decayed = [group for group in groups if group["weight_decay"] > 0]
    assert {group["lr_scale"] for group in groups} == {1.0}
    return {
        "parameters": sum(parameter.numel() for group in groups for parameter in group["params"]),
        "decayed": sum(len(group["params"]) for group in decayed),
        "undecayed": sum(len(group["params"]) for group in groups if group not in decayed),
        "weight_decay": max(group["weight_decay"] for group in decayed),
    }


def test_every_recipe_has_a_row() -> None:
    """And every name is the name of one file: it names the run folder."""
    assert sorted(path.stem for path in RECIPES) == sorted(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_a_recipe_is_its_row(name: str) -> None:
    """Rates are written to four digits, so they agree to half of the last; all else is as exact as it is written."""
    config, row = recipe(name), ROWS[name]
    assert isinstance(config.objective, ClassificationSection)
    model = config.model.resolve()
    found = {
        **decay_of(config),
        **schedule_of(config, name),
        "gmacs": round(model.cost.macs / 1e9, 4),
        "batch": config.trainer.global_batch_size,
        "objective": config.objective.name,
        "dropout": getattr(model, "dropout", 0.0),
        "stochastic_depth": getattr(model, "stochastic_depth", 0.0),
        "augment": augmentation_of(config),
        "mixup": config.objective.mixing.mixup_alpha,
        "cutmix": config.objective.mixing.cutmix_alpha,
    }
    texts = ("objective", "augment")
    assert {key: found[key] for key in texts} == {key: row[key] for key in texts}
    numbers = {key: float(value) for key, value in row.items() if key not in texts}
    rates = {key for key in numbers if key.startswith("rate_")}
    assert {key: found[key] for key in numbers.keys() - rates} == {key: numbers[key] for key in numbers.keys() - rates}
    assert {key: found[key] for key in rates} == pytest.approx({key: numbers[key] for key in rates}, rel=5e-4, abs=1e-9)


@pytest.mark.parametrize("name", TABLE_6)
def test_the_cost_on_jft_is_table_6s(name: str) -> None:
    config = recipe(name)
    assert config.trainer.duration.unit == "images"
    exaflops = config.model.resolve().cost.training_flops * config.trainer.duration.amount / 1e18
    assert exaflops == pytest.approx(ABOVE_TABLE_6.get(name, TABLE_6[name]), rel=0.005)
    if name in ABOVE_TABLE_6:
        assert 1.005 < exaflops / TABLE_6[name] < 1.05


def test_seven_epochs_of_r50_l16_are_834_exaflops() -> None:
    flops = recipe("r50_l16_jft").model.resolve().cost.training_flops
    assert flops * 7 * 303e6 / 1e18 == pytest.approx(834, rel=0.005)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["augreg_ti16_in21k", "augreg_l16_in1k"])
def test_the_page_has_overrides_for_each_level_of_augreg(name: str, level: str) -> None:
    page = (REPOSITORY / "docs" / "recipes.md").read_text()
    (line,) = (line for line in page.splitlines() if line.startswith(f"| {level} |"))
    config = load_config(FILES[name], shlex.split(line.split("`")[1]))
    assert isinstance(config.objective, ClassificationSection)
    augment, mixup = config.data.augment, config.objective.mixing.mixup_alpha
    if isinstance(augment, NoAugment):
        assert (LEVELS[level], mixup) == (None, 0)
    else:
        assert isinstance(augment, RandAugmentTF)
        assert (augment.layers, augment.magnitude, mixup) == LEVELS[level]


def test_deit3_is_its_commands() -> None:
    """What the table does not hold (facebookresearch/deit, README_revenge.md)."""
    for name in (name for name in FILES if name.startswith("deit3_")):
        config = recipe(name)
        values = config.model_dump(mode="json")
        model, data = values["model"], values["data"]
        assert (model["layer_scale"], model["stochastic_depth_rule"], model["position_class_token"]) == (1e-4, "uniform", False)
        assert (values["optimizer"]["name"], values["optimizer"]["clip_norm"]) == ("lamb", 1.0)
        assert (values["schedule"]["decay"], values["schedule"]["warmup_start"]) == ("cosine", 1e-6)
        is_1k = name.endswith("_in1k")
        assert data["repeats"] == (3 if is_1k else 1)
        assert data["crop"]["name"] == ("random_resized" if is_1k else "simple")
        assert values["objective"].get("reduction", "none") == ("mean" if is_1k else "none")
        assert values["objective"]["label_smoothing"] == (0.0 if is_1k else 0.1)


@pytest.mark.parametrize("path", sorted(RECIPES), ids=lambda p: p.stem)
def test_every_recipe_loads(path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem
    assert config.model.resolve().cost.training_flops > 0


@pytest.mark.parametrize(("name", "rate", "decay"), [("l16_in21k", 1e-3, 0.03), ("l32_in21k", 1e-3, 0.03)])
def test_recipes_are_table_3(name: str, rate: float, decay: float) -> None:
    config = load_config(REPOSITORY / "configs" / f"{name}.yaml")
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (rate, decay)
    assert (config.trainer.global_batch_size, str(config.schedule.warmup), config.schedule.decay) == (
        4096,
        "10000 steps",
        "linear",
    )
    assert isinstance(config.model, ViT)
    assert isinstance(config.optimizer, AdamW)
    assert (str(config.trainer.duration), config.model.dropout, config.optimizer.betas) == ("90 epochs", 0.1, (0.9, 0.999))
