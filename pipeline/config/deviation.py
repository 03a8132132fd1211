"""Compare a configuration with a recipe: which settings that shape a run differ, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.read import load_config
from pipeline.config.run import RunConfig
from pipeline.errors import ConfigError
from pipeline.section import flatten, relaunch_rule

PARENTS = "base"  # names of files that begin so are what recipes extend
NO_RECIPES = ("demo", "ti8_64px", "choices_64px", "suites")  # nobody's but ours, or no runs
LEFT_OUT = (
    "name",
    "output_dir",
    "seed",
    "data.train",
    "init_from",
    "data.accept",
    "trainer.devices",
    "trainer.max_steps",
    "trainer.peak_tflops",
)
_SECTIONS_LEFT_OUT = ("evaluation.", "tracking.", "checkpoint.", "finetune.")
UNSET = "-"


@dataclass(frozen=True)
class Difference:
    """Holds a setting's two values, in words."""

    key: str
    here: str
    recipe: str


@dataclass(frozen=True)
class Deviation:
    """Holds how a configuration deviates from a recipe.

    Attributes:
        settings: those that shape the model, the images, the loss or the updates.
        effects: numbers that follow from several settings, where they differ.
        advice: what is often overlooked, in words.
    """

    recipe: Path
    settings: list[Difference]
    effects: list[Difference]
    advice: list[str]


def list_recipes(folder: Path) -> list[Path]:
    """Return the recipes of a folder and its folders."""
    return sorted(
        path
        for path in folder.rglob("*.yaml")
        if not path.name.startswith(PARENTS) and path.stem not in NO_RECIPES and path.parent.name not in NO_RECIPES
    )


def find_recipe(name: str, recipes: Sequence[Path]) -> Path:
    """Return the recipe that is named: a file, or the name of one of the recipes.

    Raises:
        ConfigError: there is none, or several.
    """
    if Path(name).is_file():
        return Path(name)
    found = [path for path in recipes if path.stem == name.removesuffix(".yaml")]
    if len(found) == 1:
        return found[0]
    known = ", ".join(path.stem for path in recipes)
    raise ConfigError(f"--against {name}: {'several recipes are' if found else 'no recipe is'} named so; known: {known}")


def nearest_recipe(config: RunConfig, recipes: Sequence[Path]) -> Deviation:
    """Return the deviation from the recipe with the fewest differences: of the same model if one is, and of as many classes.

    Raises:
        ConfigError: there are no recipes.
    """
    if not recipes:
        raise ConfigError("no recipes are installed next to the software; name one with --against FILE.yaml")
    found = [deviate(config, path) for path in recipes]

    def distance(deviation: Deviation) -> tuple[int, int]:
        keys = {difference.key for difference in deviation.settings}
        model = sum(key.startswith("model.") and key != "model.num_classes" for key in keys)
        return model + ("model.num_classes" in keys), len(keys)

    return min(found, key=distance)


def deviate(config: RunConfig, path: Path) -> Deviation:
    """Compare with one recipe.

    Raises:
        ConfigError: the recipe cannot be read.
    """
    recipe = load_config(path)
    settings = compare_values(_shaping_values(config), _shaping_values(recipe))
    return Deviation(path, settings, compare_effects(config, recipe), _advise(config, recipe))


def compare_values(here: dict[str, Any], there: dict[str, Any]) -> list[Difference]:
    """Return the settings that differ, in words."""
    return [
        Difference(key, _show(here.get(key)), _show(there.get(key)))
        for key in dict.fromkeys([*there, *here])
        if here.get(key) != there.get(key)
    ]


def compare_effects(here: RunConfig, there: RunConfig) -> list[Difference]:
    """Return the numbers that follow from several settings, where they differ."""
    ours, theirs = _effects(here), _effects(there)
    return [Difference(key, ours[key], theirs[key]) for key in ours if ours[key] != theirs[key]]


def built_values(config: RunConfig) -> dict[str, Any]:
    """Return all settings by path, with the model as it is built.

    Raises:
        ConfigError: its sizes contradict each other.
    """
    values = flatten(config.model_dump(mode="json"))
    model = config.model.resolve(head_bias=config.objective.head_bias)
    built = {"family": model.family, **flatten(model.to_dict())}
    built.pop("head_bias", None)  # the objective's
    return {f"model.{key}": value for key, value in built.items()} | {
        key: value for key, value in values.items() if not key.startswith("model.")
    }


def _shaping_values(config: RunConfig) -> dict[str, Any]:
    """Return what shapes the run by path: the model as it is built, and settings that are fixed or told at a relaunch."""
    return {
        key: value
        for key, value in built_values(config).items()
        if key.startswith("model.")
        or (key not in LEFT_OUT and not key.startswith(_SECTIONS_LEFT_OUT) and relaunch_rule(RunConfig, key) != "free")
    }


def _effects(config: RunConfig) -> dict[str, str]:
    """Return numbers that follow from several settings, in words."""
    batch, peak = config.trainer.global_batch_size, config.peak_learning_rate
    return {
        "learning rate after the warmup": f"{peak:.4g}",
        "the same for each 256 images of a batch": f"{peak * 256 / batch:.4g}",
        "multiply-accumulates of an image": f"{config.model.resolve(head_bias=0.0).cost.macs / 1e9:.4g} G",
    }


def _advise(config: RunConfig, recipe: RunConfig) -> list[str]:
    """Return what is often overlooked when a recipe is changed."""
    advice = []
    batch, theirs = config.trainer.global_batch_size, recipe.trainer.global_batch_size
    if batch != theirs and config.peak_learning_rate == recipe.peak_learning_rate:
        advice.append(
            f"the batch is {batch / theirs:.3g} times the recipe's and the learning rate is the same; a rule for other batches "
            f"is optimizer.scale_lr=linear optimizer.reference_batch_size={theirs} (or sqrt)"
        )
    if batch != theirs and "steps" in str(config.schedule.warmup) and config.schedule.warmup == recipe.schedule.warmup:
        advice.append(f"a warmup of {config.schedule.warmup} is {batch / theirs:.3g} times as many images as the recipe's")
    if type(config.optimizer) is not type(recipe.optimizer):
        advice.append("learning rates and weight decays of different optimizers cannot be compared by their numbers")
    if config.model.num_classes != recipe.model.num_classes:
        advice.append("another number of classes: accuracies and losses are not those of the recipe")
    if config.objective.name != recipe.objective.name:
        advice.append(
            "another objective: its learning rate, weight decay and first biases (objective.head_bias) belong together"
        )
    return advice


def _show(value: Any) -> str:
    if value is None:
        return UNSET
    return f"{value:g}" if isinstance(value, float) else str(value)
