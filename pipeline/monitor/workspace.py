"""Arrange a project's panels at W&B as a saved view: the loss first, accuracies over steps and images, speed, then the rest.

The library wandb-workspaces writes the view. W&B's own pages group panels by the beginnings of names, in the order of the
alphabet.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.run.records import read_json, replace_json

HOW_TO_INSTALL = "pip install '.[workspace]'"
STEP, IMAGES, COMPUTE = "step", "images_seen", "exaflops"
_SPREADS = ("_std", "_ci95")  # ends of names that accompany an accuracy
PICTURES = "figures/"
LOSS = "train/loss"
TRAINING = (LOSS, "train/accuracy", "train/hit_at_1", "train/learning_rate", "train/gradient_norm")
DIAGNOSTICS = ("diagnostics", "attention_distance")  # protocols that measure no accuracy
SPEED = ("speed/images_per_s", "speed/mfu", "speed/step_time_s", "speed/data_wait_fraction")


@dataclass(frozen=True)
class Panel:
    """Describes a line plot, or where `y` are pictures a browser of them."""

    title: str
    y: tuple[str, ...]
    x: str = STEP
    kind: str = "lines"


@dataclass(frozen=True)
class Group:
    """Describes a section of the view; sections after the first few are closed until somebody opens them."""

    name: str
    panels: tuple[Panel, ...]
    is_open: bool = True


def arrange(names: Collection[str]) -> list[Group]:
    """Return the sections of a view of these metrics and pictures. A section without any is left out.

    Args:
        names: as W&B has them: `train/loss`, `eval/cifar10/few_shot_5shot`, `figures/attention_distance`.
    """
    measures = sorted(name for name in names if name.startswith("eval/") and not name.endswith(_SPREADS))
    sets: dict[str, list[str]] = {}
    for name in measures:
        dataset, protocol = name.split("/")[1:3]
        about = f"{dataset} diagnostics" if protocol.startswith(DIAGNOSTICS) else dataset
        sets.setdefault(about, []).append(name)
    over_steps, over_images = (
        tuple(Panel(f"{dataset} over {label}", tuple(found), x=axis) for dataset, found in sets.items())
        for axis, label in ((STEP, "steps"), (IMAGES, "images seen"))
    )
    pictures = sorted(name for name in names if name.startswith(PICTURES))
    costs = [(axis, label) for axis, label in ((IMAGES, "images seen"), (COMPUTE, "exaFLOPs")) if LOSS in names]
    groups = [
        Group("Training", _panels(names, TRAINING)),
        Group("Evaluation by step", over_steps),
        Group("Evaluation by images seen", over_images),
        Group("Speed", _panels(names, SPEED)),
        Group("Pictures", tuple(Panel(name.removeprefix(PICTURES), (name,), kind="pictures") for name in pictures)),
        Group("Loss by its cost", tuple(Panel(f"loss over {label}", (LOSS,), x=axis) for axis, label in costs)),
    ]
    shown = {name for group in groups for panel in group.panels for name in panel.y}
    rest = sorted(name for name in names if "/" in name and name not in shown and not name.endswith(_SPREADS))
    groups.append(Group("More", _panels(names, rest), is_open=False))
    return [group for group in groups if group.panels]


def _panels(names: Collection[str], wanted: Collection[str]) -> tuple[Panel, ...]:
    return tuple(Panel(name, (name,)) for name in wanted if name in names)


def save_view(groups: Collection[Group], *, project: str, entity: str | None, title: str, note: Path) -> str:
    """Write a view to W&B: that of an earlier call anew, or a new one. Return its address.

    Args:
        entity: None: the key's own.
        note: file that keeps the address for the next call, next to what it keeps already.

    Raises:
        ConfigError: the library is missing, or W&B refuses.
    """
    try:
        import wandb
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise ConfigError(
            f"a view is written with wandb-workspaces, which is not installed ({error}): {HOW_TO_INSTALL}"
        ) from error
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        owner = entity or wandb.Api().default_entity
        if not owner:
            raise ConfigError("the key has no entity of its own at W&B; set tracking.entity")
        view = _earlier(note, project=project, entity=owner)
        if view is None:
            view = workspaces.Workspace(entity=owner, project=project, name=title)
        view.name = title
        view.sections = [_section(group) for group in groups]
        view.save()
        replace_json(note, {**(read_json(note) or {}), "url": view.url, "project": project, "entity": owner})
    except ConfigError:
        raise
    except Exception as error:  # the library and the client raise almost anything
        where = os.environ.get("WANDB_BASE_URL", "W&B")
        raise ConfigError(
            f"{where} has not taken the view: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        ) from error
    return str(view.url)


def _earlier(note: Path, *, project: str, entity: str) -> Any:
    """Return the view of an earlier call; None where there is none, or it was deleted since."""
    import wandb_workspaces.workspaces as workspaces

    known: Mapping[str, Any] = read_json(note) or {}
    if (known.get("project"), known.get("entity")) != (project, entity):
        return None
    try:
        return workspaces.Workspace.from_url(str(known["url"]))
    except (ValueError, KeyError):
        return None


def _section(group: Group) -> Any:
    import wandb_workspaces.reports.v2 as reports
    import wandb_workspaces.workspaces as workspaces

    panels: list[Any] = [
        reports.MediaBrowser(title=panel.title, media_keys=list(panel.y), mode="gallery", gallery_axis="step")
        if panel.kind == "pictures"
        else reports.LinePlot(title=panel.title, x=panel.x, y=list(panel.y))
        for panel in group.panels
    ]
    return workspaces.Section(name=group.name, panels=panels, is_open=group.is_open)
