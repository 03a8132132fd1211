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
    from pipeline.monitor.workspace import Group
    from pipeline.run.folder import RunFolder

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
        from pipeline.build.loggers import make_run_identity
        from pipeline.config.read import load_config
        from pipeline.errors import ConfigError
        from pipeline.monitor.loggers import rows_by_step
        from pipeline.monitor.pictures import find_pictures, send_pictures
        from pipeline.monitor.wandb_identity import settle_destination, settle_run
        from pipeline.monitor.wandb_settings import read_wandb_environment
        from pipeline.monitor.workspace import arrange, save_view
        from pipeline.run.evaluations import read_results
        from pipeline.run.folder import RunFolder
        from pipeline.run.records import read_json, read_metrics, replace_json

    folder = RunFolder(Path(arguments.run))
    if not folder.config.exists():
        raise ConfigError(f"{folder.root} is not a run folder: it has no config.yaml")
    config = load_config(folder.config)
    rows = [*read_metrics(folder.metrics), *rows_by_step(read_results(folder).rows)]
    if arguments.pictures and not arguments.dry_run:
        _draw_samples(folder, config)
    pictures = find_pictures(folder) if arguments.pictures else []
    if arguments.pictures and not any(picture.step != 1 for picture in pictures):
        print(f"[workspace] no figures yet: `python -m pipeline figures {folder.root} --all-steps` draws them", flush=True)
    note = folder.root / "wandb_workspace.json"
    sent = {picture.name for picture in pictures} | set((read_json(note) or {}).get("pictures", []))
    names = {name for row in rows for name in row} | sent
    groups = arrange(names)
    if arguments.dry_run:
        print("\n".join(_describe(groups)))
        return 0
    if not rows:
        raise ConfigError(f"{folder.root} has no metrics yet, so there is nothing to arrange; run this after its first lines")
    environment = read_wandb_environment()
    if environment.key is None:
        raise ConfigError(f"a view needs a key of W&B: {environment.no_key}")
    destination = settle_destination(folder.root, environment, project=config.tracking.project, entity=config.tracking.entity)
    if pictures:
        settled = settle_run(folder.root, wanted=None, checkpoint_id=None, step=max(folder.weight_steps(), default=0))
        identity = make_run_identity(config.tracking, name=config.name, run_id=settled.run_id, folder=folder)
        send_pictures(identity, destination, pictures)
        replace_json(note, {**(read_json(note) or {}), "pictures": sorted(sent)})
        print(f"[workspace] {len(pictures)} pictures sent", flush=True)
    address = save_view(
        groups,
        project=destination.project,
        entity=destination.entity,
        title=arguments.title,
        note=note,
    )
    print(f"[workspace] {len(groups)} sections, {sum(len(group.panels) for group in groups)} panels: {address}", flush=True)
    return 0


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
