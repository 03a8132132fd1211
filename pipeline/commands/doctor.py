"""List how a configuration deviates from a recipe."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands.options import add_config, read_run
from pipeline.launch.imports import collector_paused
from pipeline.launch.signals import StopRequest

if TYPE_CHECKING:
    from pipeline.config.deviation import Deviation, Difference

EPILOG = (
    "examples:\n  python -m pipeline doctor configs/l16_in21k.yaml trainer.global_batch_size=1024\n"
    "  python -m pipeline doctor my.yaml --against deit3_b16_in1k\n"
    "  python -m pipeline doctor runs/l16/config.yaml --against l16_in21k\n\n"
    "Settings that shape the model, the images, the loss or the updates are compared; paths, devices, checkpoints and "
    "evaluation\nare not. Without --against the recipe with the fewest differences is taken, of the same model if there is one."
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    add_config(command, help="YAML file, also a run's config.yaml")
    command.add_argument(
        "--against", metavar="RECIPE", help="name of a recipe of configs/, or a YAML file (default: the nearest)"
    )
    command.add_argument("--json", action="store_true", help="for programs")


def run(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    import pipeline

    with collector_paused():
        from pipeline.config.deviation import deviate, find_recipe, list_recipes, nearest_recipe

    config = read_run(arguments.config, arguments.overrides)
    recipes = list_recipes(Path(pipeline.__file__).parents[1] / "configs")
    if arguments.against is None:
        found, chosen = nearest_recipe(config, recipes), f"the nearest of {len(recipes)}; --against NAME compares with another"
    else:
        found, chosen = deviate(config, find_recipe(arguments.against, recipes)), ""
    if arguments.json:
        print(json.dumps({**asdict(found), "recipe": str(found.recipe)}, indent=1))
    else:
        print(_to_text(found, source=arguments.config, chosen=chosen))
    return 0


def _to_text(found: Deviation, *, source: str, chosen: str) -> str:
    recipe = found.recipe.relative_to(Path.cwd()) if found.recipe.is_relative_to(Path.cwd()) else found.recipe
    head = f"{source} against {recipe}{f' ({chosen})' if chosen else ''}"
    if not found.settings:
        return f"{head}\nno setting that shapes the run deviates"
    count = len(found.settings)
    lines = [head, "", *_tabulate(found.settings), "", f"{count} setting{'s deviate' if count > 1 else ' deviates'}"]
    if found.effects:
        lines += ["", "what follows:", *_tabulate(found.effects)]
    return "\n".join([*lines, *([""] if found.advice else []), *(f"! {text}" for text in found.advice)])


def _tabulate(differences: list[Difference]) -> list[str]:
    rows = [("", "here", "recipe"), *((found.key, found.here, found.recipe) for found in differences)]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return [f"  {key:<{widths[0]}}  {here:<{widths[1]}}  {recipe}".rstrip() for key, here, recipe in rows]
