"""How a configuration deviates from a recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config.deviation import deviate, find_recipe, list_recipes, nearest_recipe
from pipeline.config.read import load_config
from pipeline.errors import ConfigError
from tests.conftest import REPOSITORY, Outcome

CONFIGS = REPOSITORY / "configs"
L16 = CONFIGS / "l16_in21k.yaml"


def test_a_recipe_does_not_deviate_from_itself_and_is_the_nearest() -> None:
    recipes = list_recipes(CONFIGS)
    assert len(recipes) == 63
    found = nearest_recipe(load_config(CONFIGS / "paper" / "b16_in1k.yaml"), recipes)
    assert (found.recipe.name, found.settings, found.effects, found.advice) == ("b16_in1k.yaml", [], [], [])


def test_paths_devices_and_what_is_watched_are_no_deviation(tmp_path: Path) -> None:
    overrides = [
        "name=mine", "output_dir=elsewhere", "seed=7", "data.train=/x", "trainer.devices=2", "data.num_workers=1",
        "checkpoint.every=10 steps", "evaluation.batch_size=7", "tracking.log_every=3",
    ]  # fmt: skip
    assert deviate(load_config(L16, overrides), L16).settings == []


def test_a_model_is_compared_as_it_is_built() -> None:
    """Sizes that the name implies are no deviation."""
    assert deviate(load_config(L16, ["model.width=1024", "model.depth=24"]), L16).settings == []
    (only,) = deviate(load_config(L16, ["model.depth=23"]), L16).settings
    assert (only.key, only.here, only.recipe) == ("model.depth", "23", "24")


def test_a_smaller_batch_at_the_same_learning_rate_is_remarked(call: Callable[..., Outcome]) -> None:
    found = deviate(load_config(L16, ["trainer.global_batch_size=1024"]), L16)
    assert [difference.key for difference in found.settings] == ["trainer.global_batch_size"]
    assert found.advice[0].startswith("the batch is 0.25 times the recipe's and the learning rate is the same")
    assert "optimizer.reference_batch_size=4096" in found.advice[0]
    assert "a warmup of 10000 steps is 0.25 times as many images" in found.advice[1]
    by_rule = ["trainer.global_batch_size=1024", "optimizer.scale_lr=linear", "optimizer.reference_batch_size=4096"]
    scaled = deviate(load_config(L16, by_rule), L16)
    assert [text for text in scaled.advice if "learning rate" in text] == []
    effects = {difference.key: (difference.here, difference.recipe) for difference in scaled.effects}
    assert effects == {"learning rate after the warmup": ("0.00025", "0.001")}  # for each image it is the same
    told = call("doctor", str(L16), "trainer.global_batch_size=1024", "--against", "l16_in21k")
    assert told.code == 0
    assert "trainer.global_batch_size  1024  4096" in told.text
    assert "1 setting deviates" in told.text
    values = json.loads(call("doctor", str(L16), "trainer.global_batch_size=1024", "--against", "l16_in21k", "--json").text)
    assert values["settings"] == [{"key": "trainer.global_batch_size", "here": "1024", "recipe": "4096"}]


def test_a_choice_of_another_member_lists_its_settings() -> None:
    keys = {found.key for found in deviate(load_config(L16, ["optimizer.name=lamb", "objective.name=softmax"]), L16).settings}
    assert {"optimizer.name", "objective.name", "objective.reduction"} <= keys


def test_an_unknown_recipe_is_answered_with_those_that_are_known() -> None:
    recipes = list_recipes(CONFIGS)
    assert find_recipe("deit3_b16_in1k", recipes).parent.name == "deit3"
    assert find_recipe(str(L16), recipes) == L16
    with pytest.raises(ConfigError, match=r"no recipe is named so; known: .*deit3_b16_in1k"):
        find_recipe("deit_b16", recipes)
    with pytest.raises(ConfigError, match=r"--against FILE\.yaml"):
        nearest_recipe(load_config(L16), [])
