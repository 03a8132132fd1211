"""Arrange a run's panels at W&B as a saved view, and send pictures there."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.launch.imports import collector_paused
from pipeline.launch.signals import StopRequest

if TYPE_CHECKING:
    from pipeline.config.run import RunConfig
    from pipeline.monitor.pictures import Picture
    from pipeline.monitor.workspace import Group
    from pipeline.run.folder import RunFolder

NOTE = "wandb_workspace.json"  # in the run folder: the view's address, and the pictures that were sent
SAMPLES = "samples.png"  # in the folder of figures

EPILOG = (
    "examples:\n  python -m pipeline workspace runs/l16_in21k\n"
    "  python -m pipeline workspace runs/l16_in21k --pictures        # samples of step 1, and RUN_DIR/figures/step_*/*.png\n"
    "  python -m pipeline workspace runs/l16_in21k --dry-run         # print the sections and panels\n\n"
    "The view shows all runs of the project: the loss first, accuracies over steps and over images seen, speed, pictures, and\n"
    "the rest. The same command writes the same view again. It needs a key (WANDB_API_KEY), and `pip install '.[workspace]'`."
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("run", metavar="RUN_DIR", help="folder of a run")
    command.add_argument("--title", default="ViT pretraining", help="name of the view (default: %(default)s)")
    command.add_argument("--pictures", action="store_true", help="send pictures to the run first")
    command.add_argument("--dry-run", action="store_true", help="print what would be arranged or sent, and send nothing")


def run(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    with collector_paused():
        from pipeline.config.read import load_config
        from pipeline.errors import ConfigError
        from pipeline.monitor.pictures import find_pictures
        from pipeline.monitor.workspace import arrange
        from pipeline.run.folder import RunFolder

    folder = RunFolder(Path(arguments.run))
    if not folder.config.exists():
        raise ConfigError(f"{folder.root} is not a run folder: it has no config.yaml")
    config = load_config(folder.config)
    if arguments.pictures and not arguments.dry_run:
        _draw_samples(folder, config)
    pictures = find_pictures(folder) if arguments.pictures else []
    if arguments.pictures and not any(picture.step != 1 for picture in pictures):
        print(f"[workspace] no figures yet: `python -m pipeline figures {folder.root} --all-steps` draws them", flush=True)
    groups = arrange(_names(folder) | {picture.name for picture in pictures})
    if arguments.dry_run:
        print("\n".join(_describe(groups)))
        return 0
    if not groups:
        raise ConfigError(f"{folder.root} has no metrics yet, so there is nothing to arrange; run this after its first lines")
    _send(folder, config, groups, pictures, title=arguments.title)
    return 0


def _names(folder: RunFolder) -> set[str]:
    """Return the names of a run's metrics at W&B, and of the pictures that were sent."""
    from pipeline.monitor.loggers import rows_by_step
    from pipeline.run.evaluations import read_results
    from pipeline.run.records import read_json, read_metrics

    rows = [*read_metrics(folder.metrics), *rows_by_step(read_results(folder).rows)]
    return {name for row in rows for name in row} | set((read_json(folder.root / NOTE) or {}).get("pictures", []))


def _send(folder: RunFolder, config: RunConfig, groups: Sequence[Group], pictures: Sequence[Picture], *, title: str) -> None:
    """Send pictures, then the view.

    Raises:
        ConfigError: there is no key, or W&B refuses.
    """
    from pipeline.build.loggers import make_run_identity
    from pipeline.errors import ConfigError
    from pipeline.monitor.pictures import send_pictures
    from pipeline.monitor.wandb_identity import settle_destination, settle_run
    from pipeline.monitor.wandb_settings import read_wandb_environment
    from pipeline.monitor.workspace import save_view
    from pipeline.run.records import read_json, replace_json

    environment = read_wandb_environment()
    if environment.key is None:
        raise ConfigError(f"a view needs a key of W&B: {environment.no_key}")
    tracking, note = config.tracking, folder.root / NOTE
    destination = settle_destination(folder.root, environment, project=tracking.project, entity=tracking.entity)
    if pictures:
        settled = settle_run(folder.root, wanted=None, checkpoint_id=None, step=max(folder.weight_steps(), default=0))
        identity = make_run_identity(tracking, name=config.name, run_id=settled.run_id, folder=folder)
        send_pictures(identity, destination, pictures)
        replace_json(note, {**(read_json(note) or {}), "pictures": sorted({picture.name for picture in pictures})})
        print(f"[workspace] {len(pictures)} pictures sent", flush=True)
    address = save_view(groups, project=destination.project, entity=destination.entity, title=title, note=note)
    print(f"[workspace] {len(groups)} sections, {sum(len(group.panels) for group in groups)} panels: {address}", flush=True)


def _draw_samples(folder: RunFolder, config: RunConfig) -> None:
    """Draw the first images that the run was trained on, as they were augmented. Shards may be elsewhere now: it is said."""
    from pipeline.build.samples import draw_first_images
    from pipeline.errors import PipelineError
    from pipeline.files import write_whole

    if (path := folder.figures / SAMPLES).exists():
        return
    try:
        picture = draw_first_images(config, count=32)
    except PipelineError as error:
        print(f"[workspace] no picture of the first samples: {error}", flush=True)
        return
    folder.figures.mkdir(exist_ok=True)
    write_whole(path, picture)


def _describe(groups: Sequence[Group]) -> Iterator[str]:
    for group in groups:
        yield f"{group.name}{'' if group.is_open else ' (closed)'}"
        yield from (f"  {panel.title}: {', '.join(panel.y)} over {panel.x}" for panel in group.panels)
